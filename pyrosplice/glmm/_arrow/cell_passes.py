"""Observations without inner effect: negative-binomial and Poisson counts by passes over rows of equal cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.glmm._arrow import cell_kernels as kernels
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import InnerGradient, InnerPoint
from pyrosplice.glmm._arrow.layout import SupportLayout, equal_rows
from pyrosplice.glmm._latents import Latents
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson

Array = NDArray[np.float64]
MERGED = 0.6  # share of distinct rows up to which rows are merged: below it their sums pay for themselves
MOST_COUNT = 1_000_000  # largest count of which the counts above each number are kept


def is_counted(problem: EffectsProblem) -> bool:
    """Whether the fast passes are this problem's density: Poisson's or the negative binomial's of whole counts."""
    likelihood, counts = problem.likelihood, problem.counts
    if problem.noise or problem.space is not None or counts.shape[-1] != 1 or not _is_known(likelihood):
        return False
    return bool((counts == counts.floor()).all()) and float(counts.max()) <= MOST_COUNT


def _is_known(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, Poisson) and (
        likelihood.is_negative_binomial if isinstance(likelihood, NegativeBinomial) else type(likelihood) is Poisson
    )


@dataclass(frozen=True)
class _Rows:
    """Rows by support: columns (w, R), offset (1 or G, R), number (R,), where each support starts, totals (G, R)."""

    columns: Array
    offset: Array
    number: Array
    starts: NDArray[np.int64]
    totals: Array

    @classmethod
    def of(cls, problem: EffectsProblem, layout: SupportLayout) -> _Rows:
        """Sort the cells, and merge those of equal support, columns and offset where there are many."""
        counts = problem.counts[..., 0].numpy()
        offset = np.zeros((1, counts.shape[1])) if problem.offset is None else np.asarray(problem.offset, np.float64)
        offset = offset[None] if offset.ndim == 1 else offset.reshape(*offset.shape[:2])
        exposure = getattr(problem.likelihood, "exposure", None)
        if exposure is not None:
            offset = offset + np.log(exposure.numpy())
        support, columns = layout.support, layout.columns
        if len(offset) == 1:
            first, row = equal_rows(np.column_stack([support, offset[0], columns]))
            if len(first) <= MERGED * len(row):
                shape = (len(first), len(row))
                sums = sp.csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=shape)
                number, totals = np.bincount(row).astype(np.float64), (sums @ counts.T).T
                return cls._sorted(columns[first], offset[:, first], number, support[first], totals)
        order = np.argsort(support, kind="stable")
        return cls._sorted(columns[order], offset[:, order], np.ones(len(order)), support[order], counts[:, order])

    @classmethod
    def _sorted(cls, columns: Array, offset: Array, number: Array, support: NDArray[np.int64], totals: Array) -> _Rows:
        starts = np.searchsorted(support, np.arange(support[-1] + 2)).astype(np.int64)
        solid = np.ascontiguousarray
        return cls(solid(columns.T), solid(offset), number, starts, solid(totals, dtype=np.float64))


class CellEliminator:
    """An :class:`~pyrosplice.glmm._arrow.eliminator.Eliminator` without inner effects, of Poisson or NB counts.

    Parameters
    ----------
    problem, layout
        What is fitted, of which :func:`is_counted` is true, and its supports.
    """

    inner: tuple[str, ...] = ()

    def __init__(self, problem: EffectsProblem, layout: SupportLayout):
        self.rows = _Rows.of(problem, layout)
        self.likelihood, self.hyper = problem.likelihood, problem.likelihood.free
        self.n_supports, self.width = layout.n_supports, layout.width
        counts = problem.counts[..., 0].numpy()
        self.n_genes = len(counts)
        tails = [kernels.tail_counts(own, int(own.max(initial=0))) for own in counts]
        self.tail_starts = np.concatenate([[0], np.cumsum([len(own) for own in tails])]).astype(np.int64)
        self.tails = np.concatenate([*tails, np.zeros(1)])
        # log y! is the sum of log j up to y
        self.constant = -np.array([own @ np.log(np.arange(1.0, len(own) + 1)) for own in tails])

    def zeros(self, genes: Tensor) -> Latents:
        """No inner effects."""
        empty = torch.zeros(len(genes), 0, 1, dtype=torch.float64)
        return Latents(empty, empty)

    def alpha(self, at: InnerPoint) -> Array:
        """Dispersion of each gene, (b,): 0 for Poisson counts."""
        if self.hyper:
            return at.log_hyper[:, 0].exp().numpy()
        held = getattr(self.likelihood, "dispersion", 0.0)
        return torch.as_tensor(held, dtype=torch.float64).reshape(-1).expand(self.n_genes)[at.genes].numpy().copy()

    def of_alpha(self, genes: NDArray[np.int64], alpha: Array) -> tuple[Array, Array]:
        """What depends on the counts and α alone, and its derivative in log α: both (b,)."""
        value, slope = np.empty(len(genes)), np.empty(len(genes))
        kernels.rising(self.tails, self.tail_starts, genes, alpha, value, slope)
        return value + self.constant[genes], slope

    def log_joint(self, at: InnerPoint) -> Tensor:
        """Log density of the counts, (b,)."""
        genes, alpha, value = at.genes.numpy(), self.alpha(at), np.empty(len(at.genes))
        kernels.value_pass(*self.passed(at, alpha), value)
        return torch.from_numpy(value + self.of_alpha(genes, alpha)[0])

    def linearize(self, at: InnerPoint) -> CellElimination:
        """Score and information of every support's coefficients."""
        return CellElimination(self, at)

    def passed(self, at: InnerPoint, alpha: Array) -> tuple[Array | NDArray[np.int64], ...]:
        """Arguments that every pass begins with."""
        rows = self.rows
        blocks = np.ascontiguousarray(at.blocks.numpy())
        return (rows.columns, rows.offset, rows.number, rows.starts, rows.totals, at.genes.numpy(), blocks, alpha)


class CellElimination:
    """Score and information of each support; there is nothing to eliminate."""

    def __init__(self, cells: CellEliminator, at: InnerPoint):
        self.cells, self.at, self.alpha = cells, at, cells.alpha(at)
        shape = (len(at.genes), cells.n_supports, cells.width)
        score, information = np.empty(shape), np.empty((*shape, cells.width))
        kernels.score_pass(*cells.passed(at, self.alpha), score, information)
        self.score, self.information = torch.from_numpy(score), torch.from_numpy(information)
        self.decrement = self.logdet = torch.zeros(len(score), dtype=torch.float64)
        self.curved = torch.ones(len(score), dtype=torch.bool)
        self._pulled: Tensor | None = None

    def advance(self, step: Tensor) -> Latents:
        """No inner effects."""
        return self.cells.zeros(self.at.genes)

    def deviations(self, n_draws: int, generator: torch.Generator) -> Iterator[tuple[Latents, Tensor]]:
        """No inner effects."""
        return ((self.cells.zeros(self.at.genes), self.decrement) for _ in range(n_draws))

    def respond(self, blocks: Tensor, sds: Tensor, log_hyper: Tensor) -> CellResponse:
        """First-order change of the score."""
        score = -(self.information @ blocks[..., None])[..., 0]
        if log_hyper.shape[1]:
            if self._pulled is None:
                self.measure(torch.zeros_like(self.information))
            assert self._pulled is not None
            score = score + log_hyper[:, :, None] * self._pulled
        return CellResponse(self, score)

    def average_information(self, steps: Sequence[Tensor], latents: Sequence[Latents]) -> Tensor:
        """No inner effects."""
        return torch.zeros(len(self.score), 0, 0, dtype=torch.float64)

    def measure(self, covariance: Tensor) -> CellMeasure:
        """Value and derivatives at this point, taken for the mode."""
        cells, genes = self.cells, self.at.genes.numpy()
        value, explicit = np.empty(len(genes)), np.empty(len(genes))
        tilt, pulled = np.empty(self.score.shape), np.empty(self.score.shape)
        cov = np.ascontiguousarray(covariance.numpy())
        kernels.measure_pass(*cells.passed(self.at, self.alpha), cov, value, tilt, pulled, explicit)
        constant, slope = cells.of_alpha(genes, self.alpha)
        self._pulled = torch.from_numpy(pulled)
        return CellMeasure(
            torch.from_numpy(value + constant),
            self.score,
            torch.from_numpy(tilt),
            self,
            torch.from_numpy(explicit + slope),
        )

    def pulled(self) -> Tensor:
        """Derivative of the score in log α, (b, U, w)."""
        assert self._pulled is not None
        return self._pulled


@dataclass
class CellResponse:
    """Change of the score; there are no inner effects."""

    elimination: CellElimination
    score: Tensor

    def advance(self, step: Tensor) -> Latents:
        """No inner effects."""
        return self.elimination.advance(step)


@dataclass
class CellMeasure:
    """Laplace's value and what its gradient needs."""

    value: Tensor
    raw_score: Tensor
    tilt: Tensor
    elimination: CellElimination
    explicit: Tensor

    def gradient(self, adjoint: Tensor) -> InnerGradient:
        """Derivatives of the value, given the adjoint's part in b."""
        own = self.elimination
        blocks = self.raw_score + self.tilt - (own.information @ adjoint[..., None])[..., 0]
        log_hyper = self.explicit[:, None] + (own.pulled() * adjoint).sum((1, 2))[:, None]
        return InnerGradient(
            blocks, torch.zeros(len(blocks), 0, dtype=torch.float64), log_hyper[:, : len(own.cells.hyper)]
        )
