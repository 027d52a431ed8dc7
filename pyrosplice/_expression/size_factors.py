"""Size factors of cells: given, or estimated from the counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._tables.cells import Cells
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]


def resolve_size_factors(size_factors: Any, cells: Cells) -> Array | None:
    """Size factors as an array ``(N,)``: from an array, a Series (paired by name), or the name of a column.

    Raises
    ------
    InvalidArgumentError
        For an unknown column, a wrong length, or values that are not positive and finite.
    """
    if size_factors is None:
        return None
    values = cells.numbers(size_factors, "size_factors")
    n_cells = cells.n_used
    if values.ndim == 2 and 1 in values.shape:
        values = values.ravel()
    if values.shape != (n_cells,):
        raise InvalidArgumentError(f"size_factors: expected {n_cells} values, one a cell, found shape {values.shape}.")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise InvalidArgumentError(
            f"size_factors: expected positive numbers, found {values[bad[0]]} at cell {bad[0]} "
            f"({len(bad)} such); remove empty cells before fitting."
        )
    return values


def normed_sum(data: Any, *, layer: str | None = None) -> Array:
    """Total count of each cell over the mean total, ``(N,)``; of an AnnData the counts of ``layer``, or ``X``.

    Raises
    ------
    InvalidArgumentError
        Where there is no count at all.

    Examples
    --------
    >>> import numpy as np
    >>> import pyrosplice.api as de
    >>> de.utils.normed_sum(np.array([[2, 0, 0], [1, 2, 3]]))
    array([0.5, 1.5])
    """
    counts = CountMatrix(data, layer=layer)
    total = np.zeros(counts.shape[0])
    for cells, block in counts.cell_blocks():
        total[cells] = np.asarray(block.sum(1, dtype=np.float64)).ravel()
    if not total.any():
        raise InvalidArgumentError("data: expected counts, found none but zeros.")
    return total / total.mean()


def median_of_ratios(data: Any, *, layer: str | None = None) -> Array:
    """Median of the ratios of a sample's counts to the genes' geometric means (Anders and Huber 2010, eq. 5), ``(N,)``.

    Of an AnnData the counts of ``layer``, or ``X``.

    Raises
    ------
    InvalidArgumentError
        Where no gene is counted in every sample (single cells): use :func:`normed_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import pyrosplice.api as de
    >>> de.utils.median_of_ratios(np.array([[2, 4, 6], [4, 8, 12]])).round(3)  # the second sample is twice as deep
    array([0.707, 1.414])
    """
    counts = CountMatrix(data, layer=layer)
    n, g = counts.shape
    logs, everywhere = np.zeros(g), np.ones(g, bool)
    for _, block in counts.cell_blocks():
        dense = block.toarray() if sp.issparse(block) else block
        everywhere &= (dense > 0).all(0)
        logs += np.where(everywhere, np.log(np.where(dense > 0, dense, 1)).sum(0), 0.0)
    if not everywhere.any():
        raise InvalidArgumentError("data: no gene is counted in every cell; use normed_sum for sparse counts.")
    use = np.flatnonzero(everywhere)
    out = np.empty(n)
    for cells, block in counts.cell_blocks():
        some = block[:, use]
        dense = some.toarray() if sp.issparse(some) else np.asarray(some, dtype=np.float64)
        out[cells] = np.exp(np.median(np.log(dense) - logs[use] / n, axis=1))
    return out
