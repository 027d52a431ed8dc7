r"""Joint mode of a mixed model: coefficients, random effect and variance components together.

.. math::
    \max_{\Gamma, \nu, \sigma, \theta}\; \log p(y \mid X\Gamma + \nu)
      + \sum_k \log N(\nu_k;\, 0,\, \sigma_k^2(\theta_k V + (1-\theta_k) I)) + \log p(\Gamma, \sigma, \theta)

For given (Γ, σ, θ) the best ν is the mode that Laplace's method starts from, so the search is over those only. As an
estimate of (σ, θ) the joint mode is degenerate by nature: the density of ν grows as its covariance becomes
singular, towards θ = 1 whatever the data, and without bound as σ → 0. Inference on them rests on the marginal
likelihood (:mod:`pyrosplice.glmm._marginal`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import FirstPoint, Minimizer, Options, minimize
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.glmm._marginal import NEUTRAL, start_coefficients
from pyrosplice.glmm._mode import MixedModel, Mode
from pyrosplice.glmm._objective import FINAL_TOLERANCE, LogPrior, Measure, ModeObjective, Unknowns
from pyrosplice.reasons import Reason

SMALLEST_SIGMA = 1e-3  # below it the joint density is running to infinity
JITTER = 1e-10  # added to V, so that Σ stays invertible at θ = 1 also where V is singular


@dataclass(frozen=True)
class JointFit:
    """Joint modes of a batch of genes.

    Attributes
    ----------
    coefficients
        (B, P, Q), the intercept in the last row; of the engine's coordinates, where the model has a basis.
    sigma, theta
        (B, n_components).
    latents, nu
        Standardised random effects, and ν of the logits (B, N, Q).
    log_joint
        Joint log density of counts and ν, constants included, without the prior of (Γ, σ, θ), (B,).
    gradient_norm
        Norm of the gradient of the objective in (coefficients, σ, ψ), (B,).
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
    log_joint: Tensor
    gradient_norm: Tensor
    convergence: Convergence
    hyper: dict[str, Tensor] = field(default_factory=dict)


class JointObjective(ModeObjective):
    """Minus (joint log density at the best ν + log prior)."""

    unknowns: Unknowns

    def measure(self, mode: Mode) -> Measure:
        """Value, and derivatives at fixed ν (those in ν are zero at the mode)."""
        model, parameters = mode.step.model, mode.step.parameters
        logdet, unexplained = effect_logdet(model, parameters)
        value = mode.log_joint - 0.5 * logdet.sum(-1) - 0.5 * mode.score[0].numel() * math.log(2 * math.pi)
        value = value - model.log_volume
        variance = (parameters.spatial.square() + parameters.white.square().amax(1)).amin(1)
        value = torch.where(variance < SMALLEST_SIGMA**2, torch.inf, value)
        white = mode.score * mode.latents.noise - unexplained / parameters.white
        spatial = torch.zeros_like(parameters.spatial)
        if model.solver is not None:
            explained = (1 - unexplained).sum(1)
            safe = torch.where(parameters.spatial == 0, 1.0, parameters.spatial)
            spatial = (mode.score * model.solver.spread(mode.latents.field)).sum(1) - explained / safe
        coefficients = model.coefficient_slope(mode.score)
        names, hyper = self.unknowns.hyper, tuple[Tensor, ...]()
        if names:
            hyper = model.likelihood.hyper_gradient(model.counts, mode.eta, names, None, None)
        return Measure(value, coefficients, spatial, white, *hyper)

    def information(self) -> Tensor:
        """Information of the unknowns: exact for coefficients, the Gaussian density's own curvature for σ and ψ."""
        out = super().information()
        if self.mode is None:
            raise AssertionError("evaluate first")
        n_gamma, n_sigma, n_angle, _ = self.unknowns.sizes
        parameters = self.mode.step.parameters
        count = float(self.mode.score[0].numel()) / max(self.unknowns.n_components, 1)
        variance = parameters.spatial.square() + parameters.white[:, 0].square()
        diagonal = torch.diagonal(out, dim1=1, dim2=2)
        diagonal[:, n_gamma : n_gamma + n_sigma] += 2 * count / variance[:, :n_sigma].clamp_min(1e-6)
        diagonal[:, n_gamma + n_sigma : n_gamma + n_sigma + n_angle] += count
        return out


def effect_logdet(model: MixedModel, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Log determinants ``log |Σ_k|`` (B, Q) and ``c_i² (Σ_k⁻¹)_ii`` (B, N, Q) of ``Σ_k = a_k² V + diag(c_k²)``."""
    n_genes, n_spots, q = model.counts.shape[0], model.counts.shape[1], parameters.spatial.shape[1]
    white = parameters.white.square().expand(n_genes, n_spots, q)
    if model.solver is None:
        return white.log().sum(1), torch.ones_like(white)
    shared = (
        q > 1
        and bool((parameters.spatial == parameters.spatial[:, :1]).all())
        and bool((parameters.white == parameters.white[..., :1]).all())
    )
    width = 1 if shared else q
    ratio = parameters.spatial.square()[:, None, :width] / white[..., :width]
    columns = ratio.permute(0, 2, 1).reshape(-1, n_spots)  # each (gene, logit) is a problem of its own
    factor = model.solver.factorize(columns[:, :, None, None])
    logdet = factor.logdet().reshape(n_genes, width) - model.solver.prior_logdet + white[..., :width].log().sum(1)
    spots = factor.spot_covariance()[..., 0, 0].reshape(n_genes, width, n_spots).permute(0, 2, 1)
    unexplained = 1 - ratio * spots
    return logdet.expand(-1, q), unexplained.expand(-1, -1, q)


def fit_joint(
    model: MixedModel,
    *,
    sigma: Tensor,
    fix_sigma: bool = True,
    log_prior: LogPrior | None = None,
    options: Options | None = None,
    minimizer: Minimizer[ModeObjective] = minimize,
) -> JointFit:
    """Joint mode of every gene.

    Parameters
    ----------
    model
        Counts, design (intercept in its last column), spatial covariance and likelihood.
    sigma
        Where σ starts, or its value when it is held: (B, n_components), one component or one a logit.
    fix_sigma
        Hold σ. Without a prior that keeps σ from 0 the joint density has no maximum in it; genes that run there are
        reported as not converged (``"unbounded"``).
    log_prior, options, minimiser
        As in :func:`~pyrosplice.glmm._marginal.fit_marginal`.
    """
    options = options or Options()
    genes, spatial = model.genes, model.solver is not None
    remainder = None
    if model.solver is not None:
        lost = model.solver.remainder
        remainder = model.counts.new_full((1,), JITTER) if lost is None else lost + JITTER
    unknowns = Unknowns(
        model.n_coefficients,
        model.n_predictors,
        sigma.shape[1],
        spatial,
        sigma if fix_sigma else None,
        remainder,
        hyper=model.hyper,
    )
    hyper = {name: getattr(model.likelihood, name) for name in model.hyper}
    objective = JointObjective(model, unknowns, log_prior)
    begin = unknowns.pack(start_coefficients(model), sigma, torch.full_like(sigma, NEUTRAL), hyper)
    at_begin = objective.evaluate(genes, begin)  # before the information, which is that of its mode
    first = FirstPoint(begin, torch.linalg.inv(objective.information()), *at_begin)
    convergence = Convergence.start(len(genes), device=genes.device)
    point, _, _ = minimizer(objective, genes, first, convergence=convergence, options=options)
    return _assemble(objective, point, convergence)


def _assemble(objective: JointObjective, point: Tensor, convergence: Convergence) -> JointFit:
    genes, unknowns = objective.model.genes, objective.unknowns
    _, gradient = objective.evaluate(genes, point, tolerance=FINAL_TOLERANCE)
    mode = objective.mode
    if mode is None:
        raise AssertionError("evaluate sets the mode")
    coefficients, sigma, angle = unknowns.unpack(point, genes)
    if unknowns.fixed_sigma is None:
        convergence.finish(genes[(sigma.abs() < 10 * SMALLEST_SIGMA).any(-1)], Reason.UNBOUNDED)
    return JointFit(
        coefficients=coefficients,
        sigma=sigma.abs(),
        theta=angle.sin().square(),
        latents=objective.latents,
        nu=objective.model.effect(mode.step.parameters, mode.latents),
        log_joint=objective.measure(mode).value,
        gradient_norm=gradient.norm(dim=-1),
        convergence=convergence,
        hyper=unknowns.hyper_values(point),
    )
