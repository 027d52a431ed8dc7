"""Observations without inner effect under any likelihood, by the methods of its contract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import InnerGradient, InnerPoint
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._mode import Latents
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._guarded import guarded
from pyrosplice.likelihoods._recombined import Recombined

DIFFERENCE = 1e-5  # step in logs of hyper-parameters whose effect on scores only predicts where the next mode is


class ObservationEliminator:
    """An :class:`~pyrosplice.glmm._arrow.eliminator.Eliminator` without inner effects, of any likelihood.

    Parameters
    ----------
    problem, layout
        What is fitted, and its supports.
    """

    inner: tuple[str, ...] = ()

    def __init__(self, problem: EffectsProblem, layout: SupportLayout):
        self.support, self.columns = torch.from_numpy(layout.support), torch.from_numpy(layout.columns)
        self.counts = problem.counts.to(torch.float64)
        basis = basis_of(problem.isoform_effect, problem.counts)
        started = guarded(problem.likelihood, []).bind_start(len(self.counts), self.counts)
        self.likelihood: Likelihood = started if basis is None else Recombined(started, basis.root)
        self.hyper = problem.likelihood.free
        self.n_supports, self.width, self.n_predictors = layout.n_supports, layout.width, layout.n_predictors
        self.offset: Tensor | None = None
        if problem.offset is not None:
            offset = torch.as_tensor(problem.offset, dtype=torch.float64)
            if offset.ndim == 1:
                offset = offset[None, :, None].expand(1, -1, self.n_predictors)
            self.offset = offset if basis is None else basis.coordinates(offset.expand(len(self.counts), -1, -1))

    def zeros(self, genes: Tensor) -> Latents:
        """No inner effects."""
        empty = torch.zeros(len(genes), 0, self.n_predictors, dtype=torch.float64)
        return Latents(empty, empty)

    def bound(self, genes: Tensor, log_hyper: Tensor) -> Likelihood:
        """Likelihood of some genes at these logs of hyper-parameters (b, H)."""
        values = {name: log_hyper[:, k : k + 1].exp() for k, name in enumerate(self.hyper)}
        chosen = self.likelihood.select(genes)
        return chosen.bind(values) if values else chosen

    def spread(self, blocks: Tensor) -> Tensor:
        """Coefficients (b, U, w Q) of supports as the predictor (b, N, Q) that they make."""
        own = blocks.unflatten(2, (-1, self.n_predictors))
        out = torch.zeros(len(blocks), len(self.support), self.n_predictors, dtype=torch.float64)
        for k, column in enumerate(self.columns.unbind(1)):
            out.addcmul_(own[:, self.support, k], column[:, None])
        return out

    def gathered(self, field: Tensor) -> Tensor:
        """Sums ``C' x`` of each support of fields (b, N, Q): (b, U, w Q)."""
        parts = [self._sums(field * column[:, None]) for column in self.columns.unbind(1)]
        return torch.stack(parts, 2).flatten(2)

    def squared(self, information: Tensor) -> Tensor:
        """Sums ``C' W C`` of each support of information (b, N, Q, Q): (b, U, w Q, w Q)."""
        w, q = self.columns.shape[1], self.n_predictors
        out = torch.empty(len(information), self.n_supports, w, q, w, q, dtype=torch.float64)
        for k in range(w):
            for m in range(k + 1):
                weight = (self.columns[:, k] * self.columns[:, m])[:, None, None]
                block = self._sums(information * weight)
                out[:, :, k, :, m], out[:, :, m, :, k] = block, block.mT
        return out.flatten(4, 5).flatten(2, 3)

    def _sums(self, field: Tensor) -> Tensor:
        out = field.new_zeros(len(field), self.n_supports, *field.shape[2:])
        return out.index_add_(1, self.support, field)

    def spot_covariance(self, covariance: Tensor) -> Tensor:
        """Covariance (b, N, Q, Q) of each predictor from that of b (b, U, w Q, w Q)."""
        w, q = self.columns.shape[1], self.n_predictors
        blocks = covariance.unflatten(3, (w, q)).unflatten(2, (w, q))
        out = torch.zeros(len(covariance), len(self.support), q, q, dtype=torch.float64)
        for k in range(w):
            for m in range(w):
                weight = (self.columns[:, k] * self.columns[:, m])[:, None, None]
                out.addcmul_(blocks[:, self.support, k, :, m], weight)
        return out

    def predictor(self, at: InnerPoint) -> Tensor:
        """Linear predictor at a point, (b, N, Q)."""
        eta = self.spread(at.blocks)
        return eta if self.offset is None else eta + (self.offset if len(self.offset) == 1 else self.offset[at.genes])

    def log_joint(self, at: InnerPoint) -> Tensor:
        """Log density of the counts, (b,)."""
        return self.bound(at.genes, at.log_hyper).log_prob(self.counts[at.genes], self.predictor(at)).sum(-1)

    def linearize(self, at: InnerPoint) -> ObservationElimination:
        """Score and information of every support's coefficients."""
        return ObservationElimination(self, at)


class ObservationElimination:
    """Score and information of each support; there is nothing to eliminate."""

    def __init__(self, observations: ObservationEliminator, at: InnerPoint):
        self.observations, self.at = observations, at
        self.likelihood, self.counts = observations.bound(at.genes, at.log_hyper), observations.counts[at.genes]
        self.eta = observations.predictor(at)
        self.score = observations.gathered(self.likelihood.score(self.counts, self.eta))
        information = self.likelihood.information(self.counts, self.eta)
        self.information = observations.squared(information)
        self.decrement = torch.zeros(len(self.eta), dtype=torch.float64)
        self.curved = torch.ones(len(self.eta), dtype=torch.bool)

    def advance(self, step: Tensor) -> Latents:
        """No inner effects."""
        return self.observations.zeros(self.at.genes)

    def deviations(self, n_draws: int, generator: torch.Generator) -> Iterator[tuple[Latents, Tensor]]:
        """No inner effects."""
        return ((self.observations.zeros(self.at.genes), self.decrement) for _ in range(n_draws))

    def respond(self, blocks: Tensor, sds: Tensor, log_hyper: Tensor) -> ObservationResponse:
        """First-order change of the score."""
        score = -(self.information @ blocks[..., None])[..., 0]
        if log_hyper.shape[1] and bool(log_hyper.any()):
            own, logs = self.observations, self.at.log_hyper
            up, down = (
                own.bound(self.at.genes, logs + sign * DIFFERENCE * log_hyper).score(self.counts, self.eta)
                for sign in (1, -1)
            )
            score = score + own.gathered((up - down) / (2 * DIFFERENCE))
        return ObservationResponse(self, score)

    def measure(self, covariance: Tensor) -> ObservationMeasure:
        """Value and derivatives at this point, taken for the mode."""
        spots = self.observations.spot_covariance(covariance)
        tilt = -0.5 * self.likelihood.information_gradient(self.counts, self.eta, spots)
        value = self.likelihood.log_prob(self.counts, self.eta).sum(-1)
        return ObservationMeasure(value, self.score, self.observations.gathered(tilt), self, spots)


@dataclass
class ObservationResponse:
    """Change of the score; there are no inner effects."""

    elimination: ObservationElimination
    score: Tensor

    def advance(self, step: Tensor) -> Latents:
        """No inner effects."""
        return self.elimination.advance(step)


@dataclass
class ObservationMeasure:
    """Laplace's value and what its gradient needs."""

    value: Tensor
    raw_score: Tensor
    tilt: Tensor
    elimination: ObservationElimination
    covariance: Tensor

    def gradient(self, adjoint: Tensor) -> InnerGradient:
        """Derivatives of the value, given the adjoint's part in b."""
        own = self.elimination
        blocks = self.raw_score + self.tilt - (own.information @ adjoint[..., None])[..., 0]
        log_hyper = torch.zeros(len(blocks), 0, dtype=torch.float64)
        if own.observations.hyper:
            along = own.observations.spread(adjoint)
            log_hyper = own.likelihood.hyper_gradient(
                own.counts, own.eta, own.observations.hyper, along, self.covariance
            )[0]
        return InnerGradient(blocks, torch.zeros(len(blocks), 0, dtype=torch.float64), log_hyper)
