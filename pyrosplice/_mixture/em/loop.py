"""Exact EM for batches of Gaussian mixtures: one pass over the cells, two matrix products a block, an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pyrosplice._mixture.em.m_step import Penalty, Standardization, maximize
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.sufficient_statistics import (
    Moments,
    bounded_responsibilities_,
    coefficients,
    inner_products,
    moments_of,
    n_features,
    nearest_,
    quadratic_features,
)
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType
from pyrosplice.reasons import Reason

BLOCK_ELEMENTS = 2_400_000
CACHE_BYTES = 128 * 2**20
STARTS_BYTES = 100
"""What k-means++ takes for a cell: with it, a fit stays within half the data and 200 MB."""
FLOAT32_SMALLEST, FLOAT64_SMALLEST = 1e-3, 1e-12
"""Variances, as shares of the data's, below which statistics of that precision cancel."""


@dataclass(frozen=True, kw_only=True)
class EMOptions:
    """How EM is run.

    Attributes
    ----------
    max_iter
        Most iterations; the starting values' E-step is not counted.
    tolerance
        EM stops when the log joint density per cell changes by less than this.
    progress
        Show a progress bar.
    """

    max_iter: int = 100
    tolerance: float = 1e-3
    progress: bool = False


@dataclass(frozen=True)
class EMResult:
    """Outcome of B × J mixtures, each field with leading dimensions ``(B, J)``.

    Attributes
    ----------
    parameters
        Parameters in units of the data.
    log_likelihood
        Log likelihood of the cells at ``parameters``, sample weights applied.
    objective
        Log likelihood plus log prior (up to a constant), per cell.
    n_iter
        EM iterations.
    converged
        True when the tolerance was met.
    singular
        True when a covariance stopped being positive definite, or became so small against the spread of the data
        that nothing can be computed of it; the parameters are the last sound ones.
    """

    parameters: MixtureParameters
    log_likelihood: Tensor
    objective: Tensor
    n_iter: Tensor
    converged: Tensor
    singular: Tensor


def why_ended(*, converged: bool, singular: bool) -> Reason:
    """How EM ended for one mixture."""
    if singular:
        return Reason.SINGULAR
    return Reason.CONVERGED if converged else Reason.MAX_EPOCHS


class Expectation(Protocol):
    """The E-step of some data: all that :func:`run_em` knows of them."""

    total_weight: Tensor

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """Log likelihood ``(B, J)``, moments, and soundness ``(B, J)`` of parameters ``(B, J, M, ...)``."""

    def select(self, sets: Tensor) -> Expectation:
        """The E-step of some of the data sets."""


class QuadraticExpectation:
    """E-step of complete data through quadratic features, kept in memory as far as a budget allows."""

    def __init__(
        self, rows: RowBlocks, standardization: Standardization, covariance_type: CovarianceType, covariance: Tensor
    ) -> None:
        self.rows, self.standardization, self.covariance_type = rows, standardization, covariance_type
        self.total_weight = rows.total_weight()
        self.dtype = rows.dtype
        inverse = standardization.inverse
        self._squares = self.total_weight[:, None, None] * (inverse @ covariance @ inverse.mT)
        self.log_det = (self.total_weight * standardization.log_det())[:, None]
        self._cache: dict[int, Tensor] = {}
        cells = rows.n_rows * rows.n_sets
        spared = int(0.4 * cells * rows.dim * rows.dtype.itemsize) - STARTS_BYTES * cells
        self._budget = max(CACHE_BYTES // 4, CACHE_BYTES + spared)

    def select(self, sets: Tensor) -> QuadraticExpectation:
        """The E-step of some of the data sets."""
        rows = self.rows
        weights = None if rows.weights is None else rows.weights[sets]
        fewer = RowBlocks(lambda a, b: rows.block(a, b)[sets], rows.n_rows, size=rows.size, weights=weights)
        out = object.__new__(type(self))
        out.__dict__.update(self.__dict__, rows=fewer, standardization=self.standardization.select(sets))
        out.total_weight, out._squares = self.total_weight[sets], self._squares[sets]
        out.log_det = self.log_det[sets]
        out._cache = {start: features[sets] for start, features in self._cache.items()}
        return out

    def features(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Features ``(B, P, n)`` of each block and its weights ``(B, n)``."""
        for start, stop in self.rows.spans():
            block = self._cache.get(start)
            if block is None:
                block = self._compute(start, stop)
                size = block.numel() * block.element_size()
                if size * (1 + len(self._cache)) <= self._budget:
                    self._cache[start] = block
            yield block, self.rows.block_weights(start, stop)

    def _compute(self, start: int, stop: int) -> Tensor:
        y = (self.rows.block(start, stop) - self.standardization.shift[:, None]).mT
        return quadratic_features((self.standardization.inverse @ y).to(self.dtype), self._kept)

    @property
    def _kept(self) -> CovarianceType:
        """The type whose features are made."""
        return self.covariance_type

    def hard_moments(self, table: Tensor) -> Moments:
        """Moments of cells given to their nearest mean; ``table`` ``(B, J, M, 1 + D)`` ranks the means."""
        width = n_features(self.rows.dim, self.covariance_type)
        padded = torch.nn.functional.pad(table, (0, width - table.shape[-1]))
        _, sums = self.statistics(padded)
        return moments_of(sums, self.rows.dim, self.covariance_type, self.total_squares(table.shape[1]))

    def total_squares(self, problems: int) -> Tensor:
        """Sum of yyᵀ over cells, ``(B, problems, D, D)``."""
        return self._squares[:, None].expand(-1, problems, -1, -1)

    def statistics(self, table: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum over cells of log normalisers ``(B, J)`` and statistics ``(B, J, M, P)``.

        ``level`` ``(B, J)`` is taken out of the scores to keep their exponentials in range. Without one every cell
        is given to its best component, and the sums are those of the best scores.
        """
        sets, problems, components, width = table.shape
        total, sums = table.new_zeros(sets, problems), table.new_zeros(sets, problems * components, width)
        if level is not None:
            total += level * self.total_weight[:, None]
            table = torch.cat([table[..., :1] - level[..., None, None], table[..., 1:]], -1)
        flat = table.reshape(sets, problems * components, width).to(self.dtype)
        for features, weights in self.features():
            used = features[:, :width]
            joint = torch.bmm(flat, used)
            scores = joint.view(sets, problems, components, -1)
            logs = nearest_(scores) if level is None else bounded_responsibilities_(scores, flat, used)
            if weights is not None:
                logs = logs * weights[:, None].to(self.dtype)
                scores *= weights[:, None, None].to(self.dtype)
            total += logs.sum(-1, dtype=torch.float64)
            sums += inner_products(joint, used)
        return total, sums.view_as(table)

    def promoted(self, sound: Tensor, smallest: Tensor) -> bool:
        """Go over to float64 products, for good, if the statistics would cancel in float32; True when it does."""
        if self.dtype == torch.float64 or (bool(sound.all()) and float(smallest.min()) >= FLOAT32_SMALLEST):
            return False
        self.dtype, self._cache = torch.float64, {}
        return True

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """Run an E-step over all cells."""
        table, sound, smallest = coefficients(parameters)
        self.promoted(sound, smallest)
        level = table[..., 0]
        if self.covariance_type != "tied":
            level = level + 0.5 * (table[..., 1 : 1 + self.rows.dim] * parameters.means).sum(-1)
        log_likelihood, sums = self.statistics(table, level.amax(-1))
        log_likelihood = log_likelihood + self.log_det
        squares = self.total_squares(table.shape[1])
        if self.covariance_type == "tied":
            solved, _ = torch.linalg.solve_ex(parameters.covariances, squares)
            log_likelihood = log_likelihood - 0.5 * solved.diagonal(dim1=-2, dim2=-1).sum(-1)
        moments = moments_of(sums, self.rows.dim, self.covariance_type, squares)
        sound = (sound | (parameters.weights <= 0)).all(-1) & (smallest >= FLOAT64_SMALLEST)
        return log_likelihood, moments, sound


def block_size(dim: int, covariance_type: CovarianceType) -> int:
    """Rows in a block such that its features stay in cache and the products stay large."""
    return max(1024, BLOCK_ELEMENTS // n_features(dim, covariance_type))


def run_em(expectation: Expectation, start: MixtureParameters, penalty: Penalty, options: EMOptions) -> EMResult:
    """EM from ``start`` ``(B, J, M, ...)``; all in standardised units.

    A mixture that has converged, or failed, is not touched again; data sets and slots without live mixtures are
    dropped from the computation as they become many.
    """
    sets, problems = start.weights.shape[:2]
    outcomes = _Outcomes.before(start)
    index = torch.arange(sets * problems, device=start.weights.device).view(sets, problems)
    live = torch.ones_like(index, dtype=torch.bool)
    unknown = torch.full_like(start.weights[..., 0], -torch.inf)
    parameters, before = start, _Step(start, unknown, unknown, 0)
    for n_iter in tqdm(range(options.max_iter + 1), desc="EM", disable=not options.progress):
        log_likelihood, moments, sound = expectation(parameters)
        objective = (log_likelihood + penalty.log_density(parameters)) / expectation.total_weight[:, None]
        sound = sound & objective.isfinite()
        now = _Step(parameters, log_likelihood, objective, n_iter)
        converged = sound & ((objective - before.objective).abs() < options.tolerance)
        ended = live & (converged | ~sound) if n_iter < options.max_iter else live
        if bool(ended.any()):
            outcomes.keep(index, now, ended & sound, converged=converged, singular=~sound)
            outcomes.keep(index, before, ended & ~sound, converged=converged, singular=~sound)
            live = live & ~ended
            if not bool(live.any()):
                break
            if int(live.sum()) <= 0.7 * live.numel():
                kept, slots = _compact(live)
                pick = (kept[:, None], slots)
                if len(kept) < len(live):
                    expectation, penalty = expectation.select(kept), penalty.select(kept)
                index, live, now, moments = index[pick], live[pick], now.select(pick), moments.select(pick)
        before, parameters = now, maximize(moments, now.parameters, penalty)
    return outcomes.result(sets, problems)


def _compact(live: Tensor) -> tuple[Tensor, Tensor]:
    """Data sets ``(B',)`` with live slots, and for each the slots ``(B', J')`` that hold them all."""
    kept = live.any(1).nonzero()[:, 0]
    live = live[kept]
    order = torch.argsort(live.to(torch.int8), dim=1, descending=True, stable=True)
    return kept, order[:, : int(live.sum(1).max())]


@dataclass(frozen=True)
class _Step:
    """Parameters, what the E-step found at them ``(B, J)``, and the number of M-steps before."""

    parameters: MixtureParameters
    log_likelihood: Tensor
    objective: Tensor
    n_iter: int

    def select(self, pick: tuple[Tensor, ...]) -> _Step:
        return _Step(self.parameters.select(pick), self.log_likelihood[pick], self.objective[pick], self.n_iter)


@dataclass(frozen=True)
class _Outcomes:
    """Outcome of each mixture, flattened over ``(B, J)``; filled as they end."""

    parameters: MixtureParameters
    log_likelihood: Tensor
    objective: Tensor
    n_iter: Tensor
    converged: Tensor
    singular: Tensor

    @classmethod
    def before(cls, start: MixtureParameters) -> _Outcomes:
        weights, means, covariances = (t.flatten(0, 1).clone() for t in (start.weights, start.means, start.covariances))
        flat = MixtureParameters(weights, means, covariances, start.covariance_type)
        n = len(flat.weights)
        numbers = flat.weights.new_empty(2, n)
        no = torch.zeros(2, n, dtype=torch.bool, device=numbers.device)
        return cls(flat, numbers[0], numbers[1], no[0].to(torch.int64), no[0], no[1])

    def keep(self, index: Tensor, step: _Step, ended: Tensor, *, converged: Tensor, singular: Tensor) -> None:
        """The mixtures ``ended`` of those at ``index`` end with ``step``."""
        at = index[ended]
        for mine, theirs in (
            (self.parameters.weights, step.parameters.weights),
            (self.parameters.means, step.parameters.means),
            (self.parameters.covariances, step.parameters.covariances),
            (self.log_likelihood, step.log_likelihood),
            (self.objective, step.objective),
            (self.converged, converged),
            (self.singular, singular),
        ):
            mine[at] = theirs[ended]
        self.n_iter[at] = step.n_iter

    def result(self, sets: int, problems: int) -> EMResult:
        def shaped(x: Tensor) -> Tensor:
            return x.view(sets, problems, *x.shape[1:])

        p = self.parameters
        parameters = replace(p, weights=shaped(p.weights), means=shaped(p.means), covariances=shaped(p.covariances))
        rest = (self.log_likelihood, self.objective, self.n_iter, self.converged, self.singular)
        return EMResult(parameters, *map(shaped, rest))
