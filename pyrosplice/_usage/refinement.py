"""Beyond Laplace's method: marginal likelihoods by importance sampling, and the estimates at their optimum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._batches import MixedEngine, detached
from pyrosplice.glmm._importance import importance
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._objective import LogPrior
from pyrosplice.glmm._refine import StartingPoint, refine

FEWEST_DRAWS = 50  # below which a Pareto tail cannot be fitted


@dataclass(frozen=True)
class MarginalLikelihood:
    """Importance-sampling estimates for G genes.

    Attributes
    ----------
    value
        Log marginal likelihood, nats, without log prior, ``(G,)``.
    standard_error
        Monte Carlo standard error, ``(G,)``.
    pareto_k
        Shape of the tail of the weights, ``(G,)``: up to 0.7 the estimate and its standard error can be relied on.
    """

    value: Tensor
    standard_error: Tensor
    pareto_k: Tensor


@dataclass(frozen=True)
class Refinement:
    """Estimates of the sites that were refined, ν among them, and the genes ``(G,)`` whose search ended."""

    values: dict[str, Tensor]
    converged: Tensor


@dataclass(frozen=True)
class ImportanceSampling:
    """How to draw ν from Laplace's posterior: an even number of draws, at least 50, and their seed."""

    n_draws: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        n_draws = self.n_draws
        if isinstance(n_draws, bool) or not isinstance(n_draws, int) or n_draws < FEWEST_DRAWS or n_draws % 2:
            raise InvalidArgumentError(
                f"n_draws: expected an even number of at least {FEWEST_DRAWS}, found {n_draws!r}."
            )

    def log_marginal(self, engine: MixedEngine, parameters: Parameters) -> MarginalLikelihood:
        """Log marginal likelihood of each gene."""
        found = []
        for genes in engine.batches():
            estimate = importance(engine.mode(parameters, genes), n_draws=self.n_draws, seed=self.seed)
            found.append((estimate.value, estimate.standard_error, estimate.pareto_k))
        return MarginalLikelihood(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def refine(self, engine: MixedEngine, values: Mapping[str, Tensor], prior: LogPrior | None) -> Refinement:
        """Optimum of the sampled marginal likelihood (and log ``prior``) from ``values`` of the sites; see there."""
        refined = {name: value.clone() for name, value in values.items()}
        converged = torch.zeros(len(values["sigma"]), dtype=torch.bool, device=values["sigma"].device)
        for genes in engine.batches():
            coefficients = engine.coefficients(values["beta"][genes], values["bias_eta"][genes], genes)
            start = StartingPoint(coefficients, values["sigma"][genes], torch.sigmoid(values["theta_logit"][genes]))
            own = None if prior is None else engine.own_prior(prior, genes)
            found = refine(engine.model(genes), start, n_draws=self.n_draws, seed=self.seed, log_prior=own)
            done = torch.nonzero(found.converged).squeeze(-1)
            for name, value in engine.sites(found.coefficients, found.sigma, found.theta, genes).items():
                refined[name][genes[done]] = value[done]
            converged[genes] = found.converged
        parameters = engine.parameters(*(refined[name] for name in ("beta", "bias_eta", "sigma", "theta_logit")))
        for genes in engine.batches():
            mode = engine.mode(parameters, genes)
            refined["nu"][genes] = mode.step.model.effect(detached(parameters).select(genes), mode.latents)
        return Refinement(refined, converged)
