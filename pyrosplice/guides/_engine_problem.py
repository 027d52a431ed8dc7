"""What the sparse engine needs of a Pyro model, and how the model's own sites lead to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.guides._first_points import ModelTrace
from pyrosplice.guides._latent_sites import LatentSite
from pyrosplice.guides._unit_density import UnitDensity, plates_of
from pyrosplice.likelihoods._contract import Likelihood


@dataclass(frozen=True)
class ModelLinks:
    """Everything that the counts and the random effect depend on, at values of the other sites.

    Attributes
    ----------
    eta
        Linear predictor with the effect in it, ``(G, N, Q)``.
    sigma, theta_logit
        Variance parameters of the effect, ``(G, Q)``.
    hyper
        Hyper-parameters of the likelihood, ``(G, 1)`` by name.
    others
        Log density of all other sites, ``(G,)``.
    """

    eta: Tensor
    sigma: Tensor
    theta_logit: Tensor
    hyper: dict[str, Tensor]
    others: Tensor


@dataclass(frozen=True)
class EngineProblem:
    """Counts around a linear predictor in which one spatial effect is added to something that the engine never reads.

    What :func:`~pyrosplice.guides._gate.problem_of` makes of a model. ``η = h(other sites) + ν``: h, the priors and the
    parametrisation stay in the model, which is run at every evaluation.

    Attributes
    ----------
    density
        Density of the model by unit.
    effect, observed
        Names of the sites of ν and of the counts.
    counts
        ``(G, N, K)``.
    solver
        Solver of the distribution of ν.
    basis
        Coordinates of the logits in which ν is independent; None if it is so in the logits.
    likelihood
        As the engine uses it, hyper-parameters bound.
    hyper
        Names of its hyper-parameters that depend on other sites.
    sigma
        Site that is σ itself, if there is one.
    theta
        Site that is θ or its logit.
    by_autograd
        Closed forms of the likelihood that are not derivatives of its ``log_prob``, and not used.
    """

    density: UnitDensity
    effect: str
    observed: str
    counts: Tensor
    solver: SpatialSolver
    basis: SoftmaxBasis | None
    likelihood: Likelihood
    hyper: tuple[str, ...]
    sigma: str | None
    theta: str | None
    by_autograd: tuple[str, ...] = ()

    @property
    def n_logits(self) -> int:
        """Number Q of logits of a gene."""
        return self.likelihood.n_predictors(self.counts.shape[-1])

    @property
    def integrated(self) -> tuple[str, str]:
        """Sites whose density the engine has itself."""
        return self.effect, self.observed

    @property
    def outer(self) -> tuple[str, ...]:
        """Names of the other latent sites."""
        return tuple(name for name in self.density.latents if name != self.effect)

    def links(self, values: Mapping[str, Tensor]) -> ModelLinks:
        """Run the model at ``values`` of the other sites and zero effect."""
        site = self.density.latents[self.effect]
        zero = torch.zeros(site.value_shape, dtype=torch.float64)
        trace = self.density.trace({**values, self.effect: zero}, without=self.integrated)
        return read_links(self.density, trace, self.effect, self.observed, self.hyper)

    def mixed_model(self, units: Tensor) -> MixedModel:
        """The engine's model of some units; the fixed part of η is given at every evaluation."""
        basis = None if self.basis is None else self.basis.select(units)
        return MixedModel(self.counts[units], None, self.solver, self.likelihood.select(units), basis)

    def describe(self) -> str:
        """What runs, in words."""
        own = f", its {', '.join(self.by_autograd)} worked out by autograd" if self.by_autograd else ""
        return f"{type(self.solver).__name__}, likelihood {self.likelihood.name!r}{own}"


def read_links(
    density: UnitDensity, trace: ModelTrace, effect: str, observed: str, hyper: tuple[str, ...]
) -> ModelLinks:
    """The links of a run of the model."""
    fn, counts = trace.nodes[effect]["fn"], trace.nodes[observed]
    likelihood, n_units = counts["fn"].likelihood, density.n_units
    terms = density.terms(trace)
    others = [term.sum(1) for name, term in terms.items() if name not in (effect, observed)]
    return ModelLinks(
        eta=density.by_unit(observed, counts["fn"].eta, plates_of(counts), event_dim=1),
        sigma=of_effect(density.latents[effect], fn.sigma),
        theta_logit=of_effect(density.latents[effect], fn.theta_logit),
        hyper={name: getattr(likelihood, name).reshape(n_units, 1) for name in hyper},
        others=torch.stack(others).sum(0) if others else density.start.new_zeros(n_units),
    )


def of_effect(site: LatentSite, value: Tensor) -> Tensor:
    """Numbers ``(*batch, Q)`` of the effect's distribution, as ``(G, Q)``."""
    return value.reshape(1 if site.axis is None else value.shape[site.axis], -1, value.shape[-1])[:, 0]
