r"""Supports, columns and levels: what of an :class:`EffectsProblem` does not depend on a gene.

A *support* is a set of observations that no inner effect links with another: without a field, the observations of one
combination of levels of all grouping factors; with one, a connected component of its precision. η of observation i of
support u is :math:`c_i' b_u`, with c_i the distinct columns of the design and of all effects, each once; a column that
is a multiple of another among the observations of a combination (all that is constant there, beside an intercept) is
that multiple of its coefficient. A component of several combinations has a set of columns for each of them, zero
elsewhere, and all supports are padded to one width.

Everything is expanded to Q linear predictors here, once: index ``k * Q + q`` for column k, and so for coefficients and
for columns of an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._level_spaces import DEPENDENT
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
NEAR = 0.1  # part of a column outside of those before it, below which sums of squares lose over two digits


@dataclass(frozen=True)
class Incidence:
    """Which levels of an effect a support sees: one entry for each pair of the two.

    Attributes
    ----------
    support, level : (R,)
        The pair.
    select : (R, w Q, q Q)
        How the level's effects enter the support's coefficients.
    """

    support: Indices
    level: Indices
    select: Array


@dataclass(frozen=True)
class SupportLayout:
    """Supports of a problem and how coefficients and effects enter them.

    Attributes
    ----------
    support : (N,)
        Support of each observation, 0 to U − 1.
    columns : (N, w)
        c of each observation.
    fixed : (U, w Q, P Q)
        A: how the coefficients of the design enter those of a support.
    incidences
        One of each effect of groups.
    n_predictors
        Q.
    """

    support: Indices
    columns: Array
    fixed: Array
    incidences: tuple[Incidence, ...]
    n_predictors: int

    @classmethod
    def of(cls, problem: EffectsProblem) -> SupportLayout:
        """Lay a problem out."""
        for block in problem.groups:
            _check_block(block, len(problem.design))
        n_predictors = problem.likelihood.n_predictors(problem.counts.shape[-1])
        levels = np.column_stack([np.zeros(len(problem.design), np.int64), *(b.levels for b in problem.groups)])
        first, combination = equal_rows(levels)
        combinations = levels[first]
        columns, places = _distinct([problem.design, *(b.columns for b in problem.groups)])
        columns, shift = _apart(columns)
        columns, reduction = _without_multiples(columns, combination)
        if problem.space is None:
            support, copy = combination, np.zeros_like(combination)
            holder, slot = np.arange(len(combinations)), np.zeros(len(combinations), np.int64)
        else:
            support = _components(problem.space, len(problem.design))
            pairs, pair = np.unique(np.column_stack([support, combination]), axis=0, return_inverse=True)
            reduction = reduction.select(pairs[:, 1])
            holder, first = pairs[:, 0], np.searchsorted(pairs[:, 0], pairs[:, 0])
            slot = np.arange(len(pairs)) - first
            copy, combinations = slot[pair.ravel()], combinations[pairs[:, 1]]
        width = columns.shape[1]
        spread = np.zeros((len(columns), width * (int(slot.max()) + 1)))
        spread[np.arange(len(columns))[:, None], copy[:, None] * width + np.arange(width)] = columns
        maker = _Placement(holder.astype(np.int64), slot, width, n_predictors, reduction)
        fixed = maker.incidence(np.zeros(len(holder), np.int64), shift[:, places[0]])
        incidences = (maker.incidence(combinations[:, e + 1], shift[:, place]) for e, place in enumerate(places[1:]))
        return cls(support, spread, fixed.select, tuple(incidences), n_predictors)

    def turned(self, fixed: Array, effects: Sequence[Array]) -> SupportLayout:
        """The layout of coefficients ``fixed`` (P, P) times others, and of effects times others by their (q, q)."""
        whole = np.eye(self.n_predictors)
        incidences = (
            replace(entry, select=entry.select @ np.kron(turn, whole))
            for entry, turn in zip(self.incidences, effects, strict=True)
        )
        return replace(self, fixed=self.fixed @ np.kron(fixed, whole), incidences=tuple(incidences))

    @property
    def n_supports(self) -> int:
        """U."""
        return len(self.fixed)

    @property
    def width(self) -> int:
        """Length of b, w Q."""
        return self.fixed.shape[1]


@dataclass(frozen=True)
class _Reduction:
    """What the distinct columns of each combination are: ``factor`` (C, k) times the column at ``place`` (C, k)."""

    place: Indices
    factor: Array

    def select(self, combinations: Indices) -> _Reduction:
        """Take some of the combinations."""
        return _Reduction(self.place[combinations], self.factor[combinations])


@dataclass(frozen=True)
class _Placement:
    """Where each combination of levels has its columns: in which support, and in which set of columns of that."""

    support: Indices
    slot: Indices
    width: int
    n_predictors: int
    reduction: _Reduction

    def incidence(self, level: NDArray[np.int64], entering: Array) -> Incidence:
        """Entries of an effect whose levels (C,) the combinations have; its columns are all ones times (k, q)."""
        rows = np.flatnonzero(level >= 0)
        pairs, entry = np.unique(np.column_stack([self.support[rows], level[rows]]), axis=0, return_inverse=True)
        select = np.zeros((len(pairs), (int(self.slot.max()) + 1) * self.width, entering.shape[1]))
        for k in np.flatnonzero(entering.any(1)):
            own, factor = self.reduction.place[rows, k], self.reduction.factor[rows, k, None]
            select[entry.ravel(), self.slot[rows] * self.width + own] += factor * entering[k]
        expanded: Array = np.asarray(np.kron(select, np.eye(self.n_predictors)), dtype=np.float64)
        return Incidence(pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64), expanded)


def equal_rows(table: NDArray[np.int64] | Array) -> tuple[Indices, Indices]:
    """First row of each set of equal rows of ``table`` (N, C), sorted by their values, and the set (N,) of each row.

    Column by column, which is ten times as fast as sorting whole rows.
    """
    code = np.zeros(len(table), np.int64)
    for column in table.T:
        values, rank = np.unique(column, return_inverse=True)
        code = np.unique(code * len(values) + rank, return_inverse=True)[1]
    first = np.unique(code, return_index=True)[1]
    return first.astype(np.int64), code.astype(np.int64)


def _distinct(parts: list[Array]) -> tuple[Array, list[Indices]]:
    """Distinct columns of all parts ``(N, w)``, and where those of each part are among them."""
    known: dict[bytes, int] = {}
    columns: list[Array] = []
    places: list[Indices] = []
    for part in parts:
        own = np.zeros(part.shape[1], np.int64)
        for k, column in enumerate(np.ascontiguousarray(part.T, dtype=np.float64) + 0.0):  # −0 becomes 0
            own[k] = known.setdefault(column.tobytes(), len(columns))
            if own[k] == len(columns):
                columns.append(column)
        places.append(own)
    return np.column_stack(columns), places


def _apart(columns: Array) -> tuple[Array, Array]:
    """Columns (N, k), those that others before them nearly explain less that, and the (k, k) that makes given ones.

    Years beside a constant, and covariates that are nearly the same: sums of squares would leave little of how they
    differ.
    """
    size = np.sqrt(np.square(columns).mean(0))
    scaled = columns / np.where(size > 0, size, 1.0)
    root = np.linalg.qr(scaled, mode="r") / np.sqrt(len(columns))
    out, shift = columns.copy(), np.eye(columns.shape[1])
    for k in range(1, min(root.shape)):
        if DEPENDENT < abs(root[k, k]) < NEAR:
            share = np.linalg.lstsq(root[:k, :k], root[:k, k], rcond=DEPENDENT)[0]
            for j in np.flatnonzero(share):  # one by one, so that equal rows stay equal
                out[:, k] -= size[k] * share[j] * scaled[:, j]
            shift[:, k] += shift[:, :k] @ (size[k] * share / np.where(size[:k] > 0, size[:k], 1.0))
    return out, shift


def _without_multiples(columns: Array, combination: Indices) -> tuple[Array, _Reduction]:
    """Columns (N, w) without those that are multiples of others in each observation's combination, which vary."""
    n_combinations, n_columns = int(combination.max()) + 1, columns.shape[1]
    place = np.zeros((n_combinations, n_columns), np.int64)
    factor, count = np.zeros((n_combinations, n_columns)), np.zeros(n_combinations, np.int64)
    kept: list[NDArray[np.bool_]] = []
    out = np.zeros_like(columns)
    for k, column in enumerate(columns.T):
        open_ = ~_everywhere(column == 0, combination)
        for j, other in enumerate(kept):
            ratio = np.zeros(n_combinations)
            filled = np.flatnonzero(columns[:, j])
            ratio[combination[filled]] = column[filled] / columns[filled, j]
            equal = _everywhere(column == ratio[combination] * columns[:, j], combination) & open_ & other
            place[equal, k], factor[equal, k], open_ = place[equal, j], ratio[equal], open_ & ~equal
        place[open_, k], factor[open_, k] = count[open_], 1.0
        rows = np.flatnonzero(open_[combination])
        out[rows, count[combination[rows]]] = column[rows]
        count += open_
        kept.append(open_)
    return out[:, : max(1, int(count.max()))], _Reduction(place, factor)


def _everywhere(true: NDArray[np.bool_], combination: Indices) -> NDArray[np.bool_]:
    """Whether it is true of all observations of each combination."""
    return np.bincount(combination[~true], minlength=int(combination.max()) + 1) == 0


def _components(space: SpatialSolver, n_spots: int) -> Indices:
    """Connected component of each spot by the field's precision; one for a covariance that is not sparse."""
    if not isinstance(space, SparseSolver):
        return np.zeros(n_spots, np.int64)
    return np.asarray(connected_components(space.precision, directed=False)[1], np.int64)


def _check_block(block: GroupBlock, n_observations: int) -> None:
    """Raise unless an effect's arrays fit each other and the observations."""
    n_levels, (_, q, q2) = len(block.level_names), block.basis.shape
    wrong = [
        (block.levels.shape != (n_observations,), f"levels of shape ({n_observations},), found {block.levels.shape}"),
        (
            block.columns.shape != (n_observations, q) or q != q2 or not q,
            f"columns ({n_observations}, q) and a basis (J, q, q), found {block.columns.shape} and {block.basis.shape}",
        ),
        (
            len(block.parameters) != len(block.basis),
            f"{len(block.basis)} names of parameters, one a matrix of the basis",
        ),
        (
            bool(np.any((block.levels < -1) | (block.levels >= n_levels))),
            f"levels from −1 to {n_levels - 1}, one for each of level_names",
        ),
        (not bool(np.isfinite(block.columns).all()), "finite columns"),
        (
            block.root is not None and block.root.shape != (n_levels, n_levels),
            f"a root of shape ({n_levels}, {n_levels})",
        ),
    ]
    for bad, expected in wrong:
        if bad:
            raise InvalidArgumentError(f"groups: effect {block.name!r}: expected {expected}.")
