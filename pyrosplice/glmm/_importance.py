r"""Importance sampling from the Laplace posterior: the marginal likelihood and its gradient beyond Laplace.

Draws :math:`\nu = \hat\nu + d` from Laplace's Gaussian posterior have the log weight

.. math::
    \log w = \sum_i \left[ \ell_i(\hat\eta_i + d_i) - \ell_i(\hat\eta_i) - \ell_i'(\hat\eta_i)' d_i
      + \tfrac12 d_i' W_i d_i \right], \qquad
    \log p(y) \approx \log \hat p_{\text{Laplace}}(y) + \log \tfrac1S \sum_s w_s ,

what is left of each spot's log likelihood beyond second order. Draws come in pairs ±d, which removes the third order
from the mean of log w. By Fisher's identity the gradient is the weighted mean of the gradient of the joint density,
which in the standardised effects (s, e) depends on the parameters through η alone:

.. math:: \nabla \log p(y) \approx \sum_s \bar w_s \, \ell'(\eta_s)' \, \partial\eta_s / \partial(\Gamma, a, c) .

How far to trust it is the Pareto shape k̂ of the largest weights (Vehtari et al. 2024, JMLR 25:72): below 0.7
the error is about what the draws' spread says, above it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyrosplice._linalg.blocks import matvec, nan_where_indefinite, planar
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Latents
from pyrosplice.glmm._mode import Mode, NewtonStep
from pyrosplice.glmm._objective import Measure

RELIABLE = 0.7  # k̂ up to which the estimate is usable
_CHUNK = 16  # draws solved for at once


@dataclass(frozen=True)
class Importance:
    """Importance-sampling estimate for a batch of genes.

    Attributes
    ----------
    value
        Log marginal likelihood, (B,).
    standard_error
        Standard error of ``value``, from the pairs of draws, (B,).
    pareto_k
        Shape of the tail of the weights, (B,); the estimate is reliable up to 0.7.
    log_weights
        (S, B).
    measure
        ``value`` with its gradient in the parameters.
    """

    value: Tensor
    standard_error: Tensor
    pareto_k: Tensor
    log_weights: Tensor
    measure: Measure


def importance(mode: Mode, *, n_draws: int = 400, seed: int = 0) -> Importance:
    """Correct Laplace's approximation at ``mode`` by ``n_draws`` draws (even: pairs ±).

    The same ``seed`` gives the same standard normal numbers, so that the estimate is a smooth function of the
    parameters.
    """
    generator = torch.Generator(device=mode.eta.device).manual_seed(int(seed))
    log_weights: list[Tensor] = []
    mean = _WeightedMean()
    for half in posterior_deviations(mode, n_draws // 2, generator):
        for sign in (1.0, -1.0):
            away = Latents(sign * half.field, sign * half.noise)
            weight, gradient = _joint_change(mode, away)
            log_weights.append(weight)
            mean.add(weight, gradient)
    log_weight = torch.stack(log_weights)
    correction = torch.logsumexp(log_weight, 0) - math.log(len(log_weight))
    pairs = (log_weight - correction).exp().reshape(-1, 2, log_weight.shape[1]).mean(1)
    value = Laplace(mode).value + correction
    return Importance(
        value=value,
        standard_error=pairs.std(0) / len(pairs) ** 0.5,
        pareto_k=pareto_k(log_weight),
        log_weights=log_weight,
        measure=Measure(value, *mean.value()),
    )


class AtMode(Protocol):
    """What holds the Newton system at a mode."""

    @property
    def step(self) -> NewtonStep: ...


def posterior_deviations(mode: AtMode, n_draws: int, generator: torch.Generator) -> Iterator[Latents]:
    """Draws of the standardised effects from Laplace's posterior, less the mode."""
    step, solver, like = mode.step, mode.step.model.solver, mode.step.latents.noise
    root = nan_where_indefinite(step.white_covariance)  # of a gene without a finite fit, that troubles no other
    a, c = step.parameters.spatial[:, None], step.parameters.white

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)

    for first in range(0, n_draws, _CHUNK):
        count = min(_CHUNK, n_draws - first)
        fields = step.latents.field.unsqueeze(-1).expand(-1, -1, -1, count) * 0
        if solver is not None and step.factor is not None:
            fields = step.factor.color(normal(*step.latents.field.shape, count))
        for field in fields.unbind(-1):
            noise = planar(matvec(root, normal(*like.shape)))
            if solver is not None:
                pulled = matvec(step.information, solver.spread(field) * a) * c
                noise = noise - matvec(step.white_covariance, pulled)
            yield Latents(field, noise)


def posterior_form(step: NewtonStep, deviation: Latents) -> Tensor:
    """Quadratic form ``d' H d`` of a deviation from the mode in Laplace's posterior precision, (B,)."""
    change = step.model.random_part(step.parameters, deviation)
    form = deviation.noise.square().sum((1, 2)) + (change * matvec(step.information, change)).sum((1, 2))
    if step.model.solver is not None:
        form = form + (deviation.field * step.model.solver.prior(deviation.field)).sum((1, 2))
    return form


def pareto_k(log_weights: Tensor) -> Tensor:
    """Shape k̂ of a generalised Pareto distribution fitted to the largest weights, (S, B) to (B,)."""
    n_draws = len(log_weights)
    n_tail = min(n_draws // 5, math.ceil(3 * n_draws**0.5)) + 1
    tail = (log_weights - log_weights.amax(0)).sort(0).values[-n_tail:].exp()
    excess = tail[1:] - tail[0]
    return torch.stack([_shape(column) for column in excess.unbind(1)])


def _joint_change(mode: Mode, away: Latents) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Log weight (B,) of the effects ``mode + away``, and the gradient of the joint density in the parameters there."""
    step, model = mode.step, mode.step.model
    change = model.random_part(step.parameters, away)
    eta = mode.eta + change
    remainder = model.likelihood.kernel(model.counts, eta) - model.likelihood.kernel(model.counts, mode.eta)
    quadratic = (change * (0.5 * matvec(step.information, change) - mode.score)).sum(-1)
    score = model.likelihood.score(model.counts, eta)
    latents = mode.latents.moved(away)
    spatial = torch.zeros_like(step.parameters.spatial)
    if model.solver is not None:
        spatial = (score * model.solver.spread(latents.field)).sum(1)
    return (remainder + quadratic).sum(-1), (model.coefficient_slope(score), spatial, score * latents.noise)


class _WeightedMean:
    """Running mean of several tensors (B, ...) with weights given by their logs (B,)."""

    def __init__(self) -> None:
        self._top: Tensor | None = None
        self._total: Tensor | None = None
        self._sums: list[Tensor] = []

    def add(self, log_weight: Tensor, values: tuple[Tensor, ...]) -> None:
        if self._top is None or self._total is None:
            self._top, self._total = log_weight, torch.ones_like(log_weight)
            self._sums = [value.clone() for value in values]
            return
        top = torch.maximum(self._top, log_weight)
        old, new = (self._top - top).exp(), (log_weight - top).exp()
        self._total = self._total * old + new
        self._sums = [_scaled(sums, old) + _scaled(value, new) for sums, value in zip(self._sums, values, strict=True)]
        self._top = top

    def value(self) -> list[Tensor]:
        if self._total is None:
            raise AssertionError("nothing was added")
        return [_scaled(sums, 1 / self._total) for sums in self._sums]


def _scaled(value: Tensor, scale: Tensor) -> Tensor:
    return value * scale.reshape(-1, *[1] * (value.dim() - 1))


def one_sided(excess: Tensor) -> bool:
    """Whether a quarter of the sorted tail is nothing beside its largest weight: no Pareto distribution fits."""
    return not bool(excess[len(excess) // 4] > 1e-100)


def _shape(excess: Tensor) -> Tensor:
    """k̂ of one gene; −∞ where its weights do not differ, ∞ where a few draws have all the weight."""
    if not bool((excess[-1] > 1e-12) & torch.isfinite(excess).all()):
        return excess.new_tensor(-math.inf if bool(torch.isfinite(excess).all()) else math.nan)
    if one_sided(excess):
        return excess.new_tensor(math.inf)
    shape, _ = fit_generalized_pareto(excess)
    return torch.as_tensor(shape, dtype=excess.dtype, device=excess.device)
