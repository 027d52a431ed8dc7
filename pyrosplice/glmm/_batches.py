"""The data of a mixed model in the engine's terms: standardised design, batches of genes, values with gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._optimize.bfgs import Minimizer, Objective, Options
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.glmm._design_information import covariate_information
from pyrosplice.glmm._effect_density import effect_density
from pyrosplice.glmm._glm_objective import StandardCoordinates
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._marginal import MarginalObjective, batches_of, fit_marginal
from pyrosplice.glmm._mode import MixedModel, Mode
from pyrosplice.glmm._objective import FINAL_TOLERANCE, LogPrior, Unknowns
from pyrosplice.glmm._observed_information import observed_information, profiled_information
from pyrosplice.glmm._random_effect import logit_of, unit_deviations
from pyrosplice.glmm._snapshots import Snapshots
from pyrosplice.likelihoods._contract import Likelihood


@dataclass(frozen=True)
class MixedEngine:
    """Data of G genes and what the engine makes of them.

    Attributes
    ----------
    counts
        ``(G, N, K)``.
    scaling
        The design, standardised, with its intercept column.
    solver
        Solver for the spatial covariance; None if nothing is spatial.
    likelihood
        Density of a spot's counts.
    basis
        Coordinates of the logits in which the random effect is independent; None if it is so in the logits.
    """

    counts: Tensor
    scaling: StandardCoordinates
    solver: SpatialSolver | None
    likelihood: Likelihood
    basis: SoftmaxBasis | None = None

    @property
    def n_logits(self) -> int:
        """Number Q of logits of a gene."""
        return self.likelihood.n_predictors(self.counts.shape[-1])

    def model(self, genes: Tensor) -> MixedModel:
        """The engine's model of some of the genes."""
        basis = None if self.basis is None else self.basis.select(genes)
        return MixedModel(self.counts[genes], self.scaling.design, self.solver, self.likelihood.select(genes), basis)

    def batches(self) -> list[Tensor]:
        """Indices of the genes that are worked on together, within bounded memory."""
        return batches_of(self.counts, self.n_logits, self.solver)

    def coefficients(self, beta: Tensor, bias_eta: Tensor, genes: Tensor | None = None) -> Tensor:
        """The engine's coefficients ``(G, P + 1, Q)`` of all genes, or of those listed; differentiable.

        They are of the standardised design and of the coordinates of ``basis``.
        """
        own = torch.linalg.solve(self.scaling.matrix, torch.cat([beta, bias_eta.unsqueeze(1)], 1))
        if self.basis is None:
            return own
        return (self.basis if genes is None else self.basis.select(genes)).coordinates(own)

    def weights(self, coefficients: Tensor, genes: Tensor) -> dict[str, Tensor]:
        """Sites ``beta`` and ``bias_eta`` of some genes from the engine's coefficients ``(..., B, P + 1, Q)``."""
        if self.basis is not None:
            coefficients = self.basis.select(genes).logits(coefficients)
        own = self.scaling.matrix @ coefficients
        return {"beta": own[..., :-1, :], "bias_eta": own[..., -1, :]}

    def sites(self, coefficients: Tensor, sigma: Tensor, theta: Tensor, genes: Tensor) -> dict[str, Tensor]:
        """Values of the sites of some genes, with any leading dimensions; θ is zero where nothing is spatial."""
        spatial = theta if self.solver is not None else torch.zeros_like(theta)
        return {**self.weights(coefficients, genes), "sigma": sigma, "theta_logit": logit_of(spatial)}

    def own_prior(self, prior: LogPrior, genes: Tensor) -> LogPrior:
        """A log prior of the sites as a function of the engine's values of some genes.

        ``genes`` are the indices that ``prior`` knows the engine's genes by.
        """

        def log_prior(values: dict[str, Tensor], rows: Tensor) -> Tensor:
            own = torch.cat([values["beta"], values["bias_eta"].unsqueeze(1)], 1)
            return prior({**values, **self.weights(own, genes[rows])}, genes[rows])

        return log_prior

    def parameters(self, beta: Tensor, bias_eta: Tensor, sigma: Tensor, theta_logit: Tensor) -> Parameters:
        """Values of the sites as the engine's parameters; differentiable."""
        coefficients = self.coefficients(beta, bias_eta)
        return Parameters(coefficients, *unit_deviations(sigma, theta_logit, self.n_logits, self.solver))

    def mode(self, parameters: Parameters, genes: Tensor) -> Mode:
        """Mode of the random effects of the listed genes, at their rows of ``parameters``."""
        model = self.model(genes)
        return model.mode(detached(parameters).select(genes), model.zeros(), tolerance=FINAL_TOLERANCE)

    def log_marginal(self, parameters: Parameters) -> Tensor:
        """Laplace log marginal likelihood ``(G,)``; differentiable once."""
        values = []
        for genes in self.batches():
            found = Laplace(self.mode(parameters, genes))
            gradients = (found.coefficients_gradient, found.spatial_gradient, found.white_gradient)
            own = parameters.select(genes)
            values.append(_with_gradient(found.value, zip(vars(own).values(), gradients, strict=True)))
        return torch.cat(values)

    def log_joint(self, parameters: Parameters, nu: Tensor) -> Tensor:
        """Joint log density of counts and ν ``(G,)``, constants included; differentiable once."""
        values = []
        for genes in self.batches():
            own, effect, model = parameters.select(genes), nu[genes], self.model(genes)
            effect = effect if model.basis is None else model.basis.coordinates(effect)
            eta = model.fixed_part(own.coefficients) + effect
            likelihood = model.likelihood.log_prob(self.counts[genes], eta).sum(-1)
            found = effect_density(model, detached(own), effect.detach())
            terms = ((effect, found.nu), (own.spatial, found.spatial), (own.white, found.white))
            values.append(likelihood + _with_gradient(found.value - model.log_volume, terms))
        return torch.cat(values)

    def conditional_information(self, mode: Mode) -> Tensor:
        r"""Information of the engine's coefficients given (σ, θ), ``X'(W⁻¹ + Σ)⁻¹ X``: ``(B, D, D)``.

        Predictors fastest. Inverts neither Σ nor W.
        """
        product = mode.step.marginal_precision_product
        return covariate_information(product, self.scaling.design, len(mode.eta), self.n_logits)

    def logit_information(self, information: Tensor) -> Tensor:
        """Information of the engine's coefficients of all genes as that of logits, the design still standardised."""
        return information if self.basis is None else self.basis.logit_information(information)

    def information(self, values: Mapping[str, Tensor], *, fix_sigma: bool, log_prior: LogPrior | None) -> Tensor:
        """Information of the standardised coefficients at the sites' values, all unknowns estimated, ``(G, D, D)``."""
        found = [
            self.observed_information(
                genes,
                {name: value.detach()[genes] for name, value in values.items()},
                fix_sigma=fix_sigma,
                log_prior=None if log_prior is None else self.own_prior(log_prior, genes),
            )
            for genes in self.batches()
        ]
        return self.logit_information(torch.cat(found))

    def observed_information(
        self, genes: Tensor, values: Mapping[str, Tensor], *, fix_sigma: bool, log_prior: LogPrior | None
    ) -> Tensor:
        """Information of the engine's coefficients of some genes, the other unknowns estimated too, ``(B, D, D)``.

        ``values`` are those of the sites of these genes; ``log_prior`` is of the engine's values.
        """
        coefficients, model = self.coefficients(values["beta"], values["bias_eta"], genes), self.model(genes)
        unknowns = Unknowns(
            n_coefficients=coefficients.shape[1],
            n_predictors=coefficients.shape[2],
            n_components=values["sigma"].shape[1],
            spatial=self.solver is not None,
            fixed_sigma=values["sigma"] if fix_sigma else None,
            remainder=None if self.solver is None else self.solver.remainder,
            hyper=model.hyper,
        )
        objective = MarginalObjective(model, unknowns, log_prior)
        point = unknowns.pack(coefficients, values["sigma"], (values["theta_logit"] / 2).exp().atan(), values)
        return profiled_information(observed_information(objective, point), unknowns.sizes[0])

    def dense_covariance(self) -> Tensor:
        """Spatial covariance V as a full matrix, ``(N, N)``."""
        if self.solver is None:
            return torch.eye(self.counts.shape[1], dtype=torch.float64, device=self.counts.device)
        return self.solver.dense_covariance(self.counts.device)


def fit_without_effect(
    engine: MixedEngine, prior: LogPrior | None, options: Options, minimizer: Minimizer[Objective]
) -> tuple[Convergence, list[dict[str, Tensor]]]:
    """Fit coefficients and the likelihood's hyper-parameters together, the random effect held at zero.

    Returns the record and the values of the sites at every evaluation, the estimates last.
    """
    genes, sigma = torch.arange(len(engine.counts)), engine.counts.new_zeros(len(engine.counts), 1)
    snapshots = Snapshots(minimizer)
    own = None if prior is None else engine.own_prior(prior, genes)
    fit = fit_marginal(engine.model(genes), fixed_sigma=sigma, log_prior=own, options=options, minimizer=snapshots)
    steps = []
    for found in (*snapshots.epochs, {"coefficients": fit.coefficients, **fit.hyper}):
        hyper = {name: found[name] for name in engine.likelihood.free}
        steps.append({**engine.weights(found["coefficients"], genes), **hyper})
    return fit.convergence, steps


def detached(parameters: Parameters) -> Parameters:
    """Copy without gradients."""
    return Parameters(*(value.detach() for value in vars(parameters).values()))


def _with_gradient(value: Tensor, terms: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Give ``value`` (B,) a gradient in each tensor (B, ...)."""
    for tensor, gradient in terms:
        if tensor.requires_grad:
            value = value + ((tensor - tensor.detach()) * gradient).flatten(1).sum(1)
    return value
