"""Exact EM for batches of Gaussian mixtures: one pass over the cells, two matrix products a block, an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pyrosplice.inference.em_statistics import (
    Moments,
    coefficients,
    moments_of,
    n_features,
    nearest_,
    quadratic_features,
    responsibilities_,
)
from pyrosplice.inference.em_update import Penalty, Standardization, maximize
from pyrosplice.inference.row_blocks import RowBlocks
from pyrosplice.models.gaussian_mixture import CovarianceType, MixtureParameters

BLOCK_ELEMENTS = 1_600_000
CACHE_BYTES = 128 * 2**20
STARTS_BYTES = 100
"""What k-means++ takes for a cell: with it, a fit stays within half the data and 200 MB."""
FLOAT32_SMALLEST = 1e-3


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
        In units of the data.
    log_likelihood
        Of the cells at ``parameters``, sample weights applied.
    objective
        Log likelihood plus log prior (up to a constant), per cell.
    n_iter
        EM iterations.
    converged
        True when the tolerance was met.
    singular
        True when a covariance stopped being positive definite; the parameters are the last sound ones.
    """

    parameters: MixtureParameters
    log_likelihood: Tensor
    objective: Tensor
    n_iter: Tensor
    converged: Tensor
    singular: Tensor


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
        _, sums = self.statistics(padded, hard=True)
        return moments_of(sums, self.rows.dim, self.covariance_type, self.total_squares(table.shape[1]))

    def total_squares(self, problems: int) -> Tensor:
        """Sum of yyᵀ over cells, ``(B, problems, D, D)``."""
        return self._squares[:, None].expand(-1, problems, -1, -1)

    def statistics(self, table: Tensor, *, hard: bool = False) -> tuple[Tensor, Tensor]:
        """Sum over cells of log normalisers (or best scores) ``(B, J)`` and statistics ``(B, J, M, P)``."""
        sets, problems, components, width = table.shape
        flat = table.reshape(sets, problems * components, width).to(self.dtype)
        total = table.new_zeros(sets, problems)
        sums = table.new_zeros(sets, problems * components, width)
        for features, weights in self.features():
            used = features[:, :width]
            joint = torch.bmm(flat, used)
            scores = joint.view(sets, problems, components, -1)
            logs = nearest_(scores) if hard else responsibilities_(scores)
            if weights is not None:
                logs = logs * weights[:, None].to(self.dtype)
                scores *= weights[:, None, None].to(self.dtype)
            total += logs.sum(-1, dtype=torch.float64)
            sums += torch.bmm(joint, used.mT)
        return total, sums.view_as(table)

    def promoted(self, sound: Tensor, smallest: Tensor) -> bool:
        """Go over to float64 products, for good, if the statistics would cancel in float32; True when it does."""
        if self.dtype == torch.float64 or (bool(sound.all()) and float(smallest.min()) >= FLOAT32_SMALLEST):
            return False
        self.dtype, self._cache = torch.float64, {}
        return True

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """One E-step over all cells."""
        table, sound, smallest = coefficients(parameters)
        self.promoted(sound, smallest)
        log_likelihood, sums = self.statistics(table)
        log_likelihood = log_likelihood + (self.total_weight * self.standardization.log_det())[:, None]
        squares = self.total_squares(table.shape[1])
        if self.covariance_type == "tied":
            solved = torch.linalg.solve(parameters.covariances, squares)
            log_likelihood = log_likelihood - 0.5 * solved.diagonal(dim1=-2, dim2=-1).sum(-1)
        moments = moments_of(sums, self.rows.dim, self.covariance_type, squares)
        return log_likelihood, moments, (sound | (parameters.weights <= 0)).all(-1)


def block_size(dim: int, covariance_type: CovarianceType) -> int:
    """Rows in a block such that its features stay in cache and the products stay large."""
    return max(1024, BLOCK_ELEMENTS // n_features(dim, covariance_type))


def run_em(expectation: Expectation, start: MixtureParameters, penalty: Penalty, options: EMOptions) -> EMResult:
    """EM from ``start`` ``(B, J, M, ...)``; all in standardised units.

    A mixture that has converged, or failed, is not touched again; data sets and slots without live mixtures are
    dropped from the computation as they become many.
    """
    sets, problems = start.weights.shape[:2]
    state = _State.of(start)
    index = torch.arange(sets * problems, device=start.weights.device).view(sets, problems)
    parameters = start
    for n_iter in tqdm(range(options.max_iter + 1), desc="EM", disable=not options.progress):
        log_likelihood, moments, sound = expectation(parameters)
        objective = (log_likelihood + penalty.log_density(parameters)) / expectation.total_weight[:, None]
        state.record(index, parameters, log_likelihood, objective, sound, n_iter, options.tolerance)
        live = ~state.done[index]
        if not bool(live.any()):
            break
        if int(live.sum()) <= 0.7 * live.numel():
            kept, slots = _compact(live)
            index = index[kept[:, None], slots]
            pick = (kept[:, None], slots)
            moments, parameters = moments.select(pick), parameters.select(pick)
            if len(kept) < live.shape[0]:
                expectation, penalty = expectation.select(kept), penalty.select(kept)
        if n_iter < options.max_iter:
            parameters = maximize(moments, parameters, penalty)
    return state.result(sets, problems)


def _compact(live: Tensor) -> tuple[Tensor, Tensor]:
    """Data sets ``(B',)`` with live slots, and for each the slots ``(B', J')`` that hold them all."""
    kept = live.any(1).nonzero()[:, 0]
    live = live[kept]
    order = torch.argsort(live.to(torch.int8), dim=1, descending=True, stable=True)
    return kept, order[:, : int(live.sum(1).max())]


@dataclass
class _State:
    """Best-known outcome of each mixture, flattened over ``(B, J)``."""

    parameters: MixtureParameters
    log_likelihood: Tensor
    objective: Tensor
    n_iter: Tensor
    converged: Tensor
    singular: Tensor
    done: Tensor

    @classmethod
    def of(cls, start: MixtureParameters) -> _State:
        flat = MixtureParameters(
            start.weights.flatten(0, 1).clone(),
            start.means.flatten(0, 1).clone(),
            start.covariances.flatten(0, 1).clone(),
            start.covariance_type,
        )
        n = len(flat.weights)
        unknown = flat.weights.new_full((n,), -torch.inf)
        no = torch.zeros(n, dtype=torch.bool, device=flat.weights.device)
        return cls(flat, unknown, unknown.clone(), no.to(torch.int64), no, no.clone(), no.clone())

    def record(
        self,
        index: Tensor,
        parameters: MixtureParameters,
        log_likelihood: Tensor,
        objective: Tensor,
        sound: Tensor,
        n_iter: int,
        tolerance: float,
    ) -> None:
        sound = sound & objective.isfinite()
        live = ~self.done[index]
        good, bad = index[live & sound], index[live & ~sound]
        self.singular[bad] = True
        self.done[bad] = True
        new = objective[live & sound]
        self.converged[good] = (new - self.objective[good]).abs() < tolerance
        self.done[good] = self.converged[good]
        self.objective[good], self.log_likelihood[good] = new, log_likelihood[live & sound]
        self.n_iter[good] = n_iter
        for mine, theirs in (
            (self.parameters.weights, parameters.weights),
            (self.parameters.means, parameters.means),
            (self.parameters.covariances, parameters.covariances),
        ):
            mine[good] = theirs[live & sound]

    def result(self, sets: int, problems: int) -> EMResult:
        def shaped(x: Tensor) -> Tensor:
            return x.view(sets, problems, *x.shape[1:])

        p = self.parameters
        parameters = replace(p, weights=shaped(p.weights), means=shaped(p.means), covariances=shaped(p.covariances))
        rest = (self.log_likelihood, self.objective, self.n_iter, self.converged, self.singular)
        return EMResult(parameters, *map(shaped, rest))
