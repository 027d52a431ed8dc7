"""Fit of a mixed model by its Laplace marginal likelihood: boundary starts and the best optimum of each gene."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._optimize.bfgs import FirstPoint, Minimizer, Options, minimize
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Latents
from pyrosplice.glmm._mode import MixedModel, Mode
from pyrosplice.glmm._objective import FINAL_TOLERANCE, LogPrior, Measure, ModeObjective, Unknowns

NEUTRAL = math.pi / 4  # ψ of θ = 1/2
NEAR_ONE = 1.35  # ψ of θ = 0.95
NEAR_ZERO = 0.05  # θ below which the search is made once more, from NEAR_ONE
SCOUTING = 4  # iterations after which that search is given up if it has come back below θ = 1/2
SMALLEST_START = 0.1  # of σ where a search begins: at σ = 0 there is no slope in ψ
PREFERENCE = 1e-7  # nats by which a spatial fit must beat θ = 0 to be preferred


class MarginalObjective(ModeObjective):
    """Minus (Laplace log marginal likelihood + log prior)."""

    def measure(self, mode: Mode) -> Measure:
        """Laplace's approximation and its exact gradient."""
        found = Laplace(mode)
        known = (found.value, found.coefficients_gradient, found.spatial_gradient, found.white_gradient)
        return Measure(*known, *(found.hyper_gradient(self.unknowns.hyper) if self.unknowns.hyper else ()))


@dataclass(frozen=True)
class MarginalFit:
    """Estimates of a batch of genes.

    Attributes
    ----------
    coefficients
        (B, P, Q), the intercept in the last row; of the engine's coordinates, where the model has a basis.
    sigma, theta
        (B, n_components); θ is exactly 0 where the data are best without spatial variance.
    latents
        Standardised random effects at their posterior mode, where ``MixedModel.mode`` starts from.
    nu
        Random effect of the logits at its posterior mode, (B, N, Q).
    log_marginal
        Laplace log marginal likelihood, without the prior, (B,).
    log_marginal_null
        Log marginal likelihood at the θ = 0 optimum without prior, (B,): never above ``log_marginal`` unless a prior is
        given.
    gradient_norm
        Norm of the gradient of the objective in (coefficients, σ, ψ) at the estimates, (B,).
    convergence
        How each gene's search went.
    hyper
        Hyper-parameters of the likelihood that were estimated, (B, 1) each.
    """

    coefficients: Tensor
    sigma: Tensor
    theta: Tensor
    latents: Latents
    nu: Tensor
    log_marginal: Tensor
    log_marginal_null: Tensor
    gradient_norm: Tensor
    convergence: Convergence
    hyper: dict[str, Tensor] = field(default_factory=dict)


def fit_marginal(
    model: MixedModel,
    *,
    share_variance: bool = True,
    fixed_sigma: Tensor | None = None,
    log_prior: LogPrior | None = None,
    options: Options | None = None,
    minimizer: Minimizer[ModeObjective] = minimize,
) -> MarginalFit:
    """Maximise the Laplace marginal likelihood (plus log prior) of every gene.

    Parameters
    ----------
    model
        Counts, design (intercept in its last column), spatial covariance and likelihood. With ``solver=None`` the
        random effect is independent between spots and θ is 0. All genes are worked on at once: see
        :func:`genes_at_once`.
    share_variance
        One (σ, θ) for all logits of a gene, else one each.
    fixed_sigma
        Hold σ at these values, (B, n_components).
    log_prior
        Log prior density from the values of the sites ``beta``, ``bias_eta``, ``sigma`` and, in a spatial model,
        ``theta_logit`` of some genes, and the indices of those genes.
    options
        Tolerance and iterations.
    minimiser
        The search; BFGS by default.

    Notes
    -----
    β here maximises the marginal likelihood with only ν integrated out (as TMB does); it is not the joint mode of
    (β, ν), which is what INLA and mgcv use.

    The likelihood in θ can have more than one maximum. The θ = 0 model is fitted first; the spatial model starts from
    it at θ = ½, and genes that fall back to θ ≈ 0 once more at θ = 0.95. The best of all is kept.
    """
    options = options or Options()
    genes = model.genes
    n_components = 1 if share_variance else model.n_predictors
    sigma = model.counts.new_full((len(genes), n_components), 0.5) if fixed_sigma is None else fixed_sigma
    spatial = model.solver is not None
    unknowns = Unknowns(model.n_coefficients, model.n_predictors, n_components, False, fixed_sigma, hyper=model.hyper)
    hyper = {name: getattr(model.likelihood, name) for name in model.hyper}
    null = MarginalObjective(model.without_field(), unknowns, None if spatial else log_prior)
    convergence = Convergence.start(len(genes), device=genes.device)
    begin = unknowns.pack(start_coefficients(model), sigma, None, hyper)
    point, loss = search(null, genes, begin, convergence, options, minimizer)
    if not spatial:
        return _assemble(null, unknowns, point, None, convergence)
    coefficients, sigma, _ = unknowns.unpack(point, genes)
    hyper = unknowns.hyper_values(point)
    remainder = model.solver.remainder if model.solver is not None else None
    unknowns = replace(unknowns, spatial=True, remainder=remainder)
    full = MarginalObjective(model, unknowns, log_prior)

    def at(angle: float) -> Tensor:
        size = sigma.abs().clamp_min(SMALLEST_START)
        return unknowns.pack(coefficients, size, torch.full_like(sigma, angle), hyper)

    best, best_loss, convergence = search_spatial(full, genes, at, options, minimizer)
    if log_prior is None:
        at_zero = unknowns.pack(coefficients, sigma, torch.zeros_like(sigma), hyper)
        best = torch.where((best_loss < loss - PREFERENCE)[:, None], best, at_zero)
    return _assemble(full, unknowns, best, -loss, convergence)


def search_spatial(
    objective: ModeObjective,
    genes: Tensor,
    at: Callable[[float], Tensor],
    options: Options,
    minimizer: Minimizer[ModeObjective] = minimize,
) -> tuple[Tensor, Tensor, Convergence]:
    """The better optimum of each gene from θ = ½ and, where that falls back to θ ≈ 0, from θ = 0.95.

    Parameters
    ----------
    objective
        Objective with the spatial effect.
    genes
        Genes of the objective, (B,).
    at
        Unknowns (B, d) to start from, by the angle ψ.
    options, minimiser
        As for :func:`fit_marginal`.

    Returns
    -------
    Points (B, d), losses (B,) and the record, of all genes of the objective's model.
    """
    convergence, second = (Convergence.start(len(objective.model.genes), device=genes.device) for _ in range(2))
    best, best_loss = search(objective, genes, at(NEUTRAL), convergence, options, minimizer)
    fallen = (objective.unknowns.share(best, genes) < NEAR_ZERO).all(-1).nonzero()[:, 0]
    if len(fallen):
        begin = at(NEAR_ONE)[fallen]
        scouts = replace(options, max_iter=min(SCOUTING, options.max_iter))
        begin, _ = search(objective, genes[fallen], begin, second, scouts, minimizer)
        # below θ = ½ the search would only repeat the first one
        apart = (objective.unknowns.share(begin, genes[fallen]) > 0.5).any(-1)
        fallen, begin = fallen[apart], begin[apart]
    if len(fallen):
        other, other_loss = search(objective, genes[fallen], begin, second, options, minimizer)
        better = other_loss < best_loss[fallen]
        best[fallen[better]], best_loss[fallen[better]] = other[better], other_loss[better]
        _adopt(convergence, second, genes[fallen], better)
    return best, best_loss, convergence


def genes_at_once(n_spots: int, n_predictors: int, n_latent_blocks: int, *, memory: float = 5e8) -> int:
    """Genes worked on together so that factors and Q × Q blocks stay within ``memory`` bytes: under 8, or a multiple.

    ``n_latent_blocks`` is the number of Q × Q blocks of a factor and its inverse.
    """
    per_gene = 8.0 * n_predictors**2 * (n_latent_blocks + 30 * n_spots)
    most = int(max(memory / per_gene, 1))
    return most if most < 8 else min(most // 8, 8) * 8


def batches_of(counts: Tensor, n_predictors: int, solver: SpatialSolver | None) -> list[Tensor]:
    """Indices of the genes of ``counts`` ``(G, N, K)`` that are worked on together, within bounded memory."""
    blocks = 0 if solver is None else solver.factor_blocks
    genes = torch.arange(len(counts), device=counts.device)
    return list(genes.split(genes_at_once(counts.shape[1], n_predictors, blocks)))


def start_coefficients(model: MixedModel) -> Tensor:
    """The likelihood's start as the intercept, zero for the covariates: (B, P, Q)."""
    coefficients = model.counts.new_zeros(len(model.counts), model.n_coefficients, model.n_predictors)
    coefficients[:, -1] = model.likelihood.start(model.counts)
    return coefficients


def search(
    objective: ModeObjective,
    genes: Tensor,
    begin: Tensor,
    convergence: Convergence,
    options: Options,
    minimizer: Minimizer[ModeObjective],
) -> tuple[Tensor, Tensor]:
    """Points (B, d) and losses (B,) of the listed genes, from their expected information at ``begin``."""
    at_begin = objective.evaluate(genes, begin)  # before the information, which is that of its mode
    first = FirstPoint(begin, torch.linalg.inv(objective.information()), *at_begin)
    point, loss, _ = minimizer(objective, genes, first, convergence=convergence, options=options)
    return point, loss


def _adopt(convergence: Convergence, second: Convergence, genes: Tensor, better: Tensor) -> None:
    """Take over the record of a second search where it found more."""
    convergence.n_iter[genes] += second.n_iter[genes]
    for gene in genes[better].tolist():
        convergence.reason[gene] = second.reason[gene]
        convergence.best_loss[gene] = second.best_loss[gene]
        convergence.best_epoch[gene] = convergence.n_iter[gene]


def _assemble(
    objective: MarginalObjective, unknowns: Unknowns, point: Tensor, null: Tensor | None, convergence: Convergence
) -> MarginalFit:
    """Evaluate once more, tightly, with σ ≥ 0 and ψ in [0, π/2]."""
    genes, latents = objective.model.genes, objective.latents
    coefficients, sigma, angle = unknowns.unpack(point, genes)
    old = unknowns.parameters(point, genes)
    hyper = unknowns.hyper_values(point)
    point = unknowns.pack(coefficients, sigma.abs(), torch.atan2(angle.sin().abs(), angle.cos().abs()), hyper)
    latents.field.mul_(torch.where(old.spatial < 0, -1.0, 1.0)[:, None])
    latents.noise.mul_(torch.where(old.white < 0, -1.0, 1.0))
    objective.mode = None
    loss, gradient = objective.evaluate(genes, point, tolerance=FINAL_TOLERANCE)
    mode = objective.mode
    if mode is None:
        raise AssertionError("evaluate sets the mode")
    value = Laplace(mode).value
    coefficients, sigma, angle = unknowns.unpack(point, genes)
    convergence.best_loss = torch.minimum(convergence.best_loss, loss)
    return MarginalFit(
        coefficients=coefficients,
        sigma=sigma,
        theta=angle.sin().square(),
        latents=objective.latents,
        nu=objective.model.effect(mode.step.parameters, mode.latents),
        log_marginal=value,
        log_marginal_null=value if null is None else null,
        gradient_norm=gradient.norm(dim=-1),
        convergence=convergence,
        hyper=hyper,
    )
