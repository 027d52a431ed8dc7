"""Cells of any design sorted into strata of equal discrete covariates, so that sums over them need few columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._expression.engine.pseudo_cells import distinct_rows

Array = NDArray[np.float64]
Index = NDArray[np.intp]
FEW_VALUES = 32  # distinct values of a discrete column, at most
CELLS_A_STRATUM = 256  # on average, at least: a tile of the compiled sums


@dataclass(frozen=True)
class DesignStrata:
    """Cells sorted by stratum, with what changes within a stratum and what does not.

    Attributes
    ----------
    x
        Location design ``(N, P)``, cells in their own order.
    discrete
        Columns of it that are constant in every stratum; the others are continuous.
    stratum, place
        Stratum of each cell, and its place in the sorted order ``(N,)``.
    starts
        First place of each stratum, and N: ``(L + 1,)``.
    columns, offset
        Continuous columns ``(D, N)`` and the offset ``(N,)``, sorted.
    values
        Discrete columns' values in each stratum ``(L, P − D)``.
    """

    x: Array
    discrete: NDArray[np.bool_]
    stratum: Index
    place: Index
    starts: Index
    columns: Array
    offset: Array
    values: Array

    @cached_property
    def transform(self) -> Tensor:
        """Design row of a cell from [1, its continuous columns], for each stratum: ``(L, P, 1 + D)``."""
        n_strata, p, d = len(self.values), len(self.discrete), len(self.columns)
        out = np.zeros((n_strata, p, 1 + d))
        out[:, self.discrete, 0] = self.values
        out[:, np.flatnonzero(~self.discrete), 1 + np.arange(d)] = 1.0
        return torch.as_tensor(out)

    def constants_and_slopes(self, a: Array) -> tuple[Array, Array]:
        """Coefficients ``(G, P)`` as constants of the strata ``(G, L)`` and slopes ``(G, D)``."""
        constant = a[:, self.discrete] @ self.values.T
        return np.ascontiguousarray(constant), np.ascontiguousarray(a[:, ~self.discrete])


def design_strata(x: Array, offset: Array) -> DesignStrata:
    """Sort the cells of a location design ``(N, P)`` with these offsets ``(N,)``.

    Where columns of few values make more strata than pay, only constant ones count as discrete.
    """
    few = np.array([_few_values(column) for column in x.T], dtype=bool)
    stratum, first = distinct_rows(x[:, few]) if few.any() else (np.zeros(len(x), np.intp), np.zeros(1, np.intp))
    if len(first) * CELLS_A_STRATUM > len(x):
        few = np.ptp(x, axis=0) == 0
        stratum, first = np.zeros(len(x), np.intp), np.zeros(1, np.intp)
    order = np.argsort(stratum, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    starts = np.concatenate([[0], np.cumsum(np.bincount(stratum))]).astype(np.intp)
    columns = np.ascontiguousarray(x[order][:, ~few].T)
    return DesignStrata(x, few, stratum, place, starts, columns, offset[order], x[first][:, few])


def _few_values(column: Array) -> bool:
    if len(np.unique(column[:: max(1, len(column) // 1000)])) > FEW_VALUES:
        return False
    return len(np.unique(column)) <= FEW_VALUES
