"""Counts of cells × genes behind one door: arrays, sparse, Dask, data frames, AnnData in memory or on disk.

Nothing is copied or densified beyond a block of cells or of genes. Every block is checked as it is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
BLOCK_ENTRIES = 8_000_000  # cells × genes of a block read from disk: 64 MB as float64
HELD_ENTRIES = 20_000_000  # cells × genes kept of data on disk that is wanted by genes, so that it is read rarely


class CountMatrix:
    """Counts ``(N cells, G genes)``, read in blocks.

    Parameters
    ----------
    data
        ndarray, any scipy sparse matrix or array, Dask array, DataFrame, AnnData (also backed) or its ``.raw``.
    gene_names
        Names, for data that does not carry them; generated ("gene0", …) where absent.
    layer
        Layer of the AnnData to read instead of ``X``.
    counts
        Whether entries must be counts: negative ones are then an error, and fractional ones a warning.

    Raises
    ------
    InvalidArgumentError
        For data that is not two-dimensional, of another type, or (on reading) negative, NaN or infinite.
    """

    def __init__(
        self, data: Any, *, gene_names: Sequence[str] | None = None, layer: str | None = None, counts: bool = True
    ) -> None:
        matrix, names = _unwrap(data, layer)
        if getattr(matrix, "ndim", len(getattr(matrix, "shape", ()))) != 2:
            raise InvalidArgumentError(f"data: expected cells × genes, found {type(data).__name__}.")
        self.shape: tuple[int, int] = (int(matrix.shape[0]), int(matrix.shape[1]))
        if 0 in self.shape:
            raise InvalidArgumentError(f"data: expected at least one cell and one gene, found shape {self.shape}.")
        self._matrix = matrix.tocsr() if sp.issparse(matrix) else matrix
        self._columns: Any = None
        self._held: tuple[int, Array] = (0, np.empty((0, 0)))  # consecutive genes last read from disk
        self.counts = counts
        self.block_cells: int | None = None  # cells of a block; by memory where None
        self._warned = False
        self.gene_names = _names(names, gene_names, self.shape[1])

    @property
    def matrix(self) -> Any:
        """The data as it is held: ndarray, CSR matrix, or the array on disk."""
        return self._matrix

    @property
    def in_memory(self) -> bool:
        """Whether the data is an array or a sparse matrix in memory."""
        return isinstance(self._matrix, np.ndarray) or sp.issparse(self._matrix)

    @property
    def sparse(self) -> bool:
        """Whether blocks of cells come as CSR matrices."""
        return sp.issparse(self._matrix) or hasattr(self._matrix, "to_memory")

    def cell_blocks(self, size: int | None = None) -> Iterator[tuple[slice, Any]]:
        """Blocks of consecutive cells as ``(slice, CSR matrix or ndarray)``, checked."""
        n, g = self.shape
        size = size or self.block_cells or max(1, min(n, BLOCK_ENTRIES * (10 if self.sparse else 1) // g))
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            block = self._matrix[rows]
            if hasattr(block, "compute"):
                block = block.compute()
            if sp.issparse(block):
                block = block.tocsr()
                self.check(block.data, start)
            else:
                block = np.asarray(block)
                self.check(block, start)
            yield rows, block

    def genes(self, which: NDArray[np.intp]) -> Array:
        """Counts of some genes, dense ``(g, N)``, checked."""
        if isinstance(self._matrix, np.ndarray):
            block = np.ascontiguousarray(self._matrix[:, which].T, dtype=np.float64)
            self.check(block.T, 0)
            return block
        if self.in_memory:
            if self._columns is None:
                self._columns = self._matrix.tocsc()
            some = self._columns[:, which]
            self.check(some.data, 0)
            return np.ascontiguousarray(some.toarray().T, dtype=np.float64)
        first, held = self._held
        if not len(held) or which.min() < first or which.max() >= first + len(held):
            first = int(which.min())
            stop = max(int(which.max()) + 1, min(first + HELD_ENTRIES // self.shape[0], self.shape[1]))
            held = np.empty((stop - first, self.shape[0]))
            for rows, block in self.cell_blocks():
                some = block[:, first:stop]
                held[:, rows] = (some.toarray() if sp.issparse(some) else some).T
            self._held = (first, held)
        return held[which - first]

    def check(self, values: NDArray[Any], first_cell: int) -> None:
        """Raise for entries that cannot be counts; warn once of fractional ones."""
        if values.size == 0:
            return
        low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            where = np.argwhere(~np.isfinite(values))[0]
            raise InvalidArgumentError(f"data: NaN or infinite value{_place(where, first_cell)}; remove or impute it.")
        if not self.counts:
            return
        if low < 0:
            where = np.argwhere(values < 0)[0]
            raise InvalidArgumentError(
                f"data: expected counts, found {low:g}{_place(where, first_cell)}; give raw counts, not scaled values."
            )
        fractional = values.dtype.kind == "f" and not self._warned and bool((values != np.rint(values)).any())
        if fractional:
            self._warned = True
            warnings.warn(
                "data: some counts are fractional; the count model is fitted to them as they are.",
                UserWarning,
                stacklevel=2,
            )


def _place(where: NDArray[Any], first_cell: int) -> str:
    return f" in cell {first_cell + int(where[0])}, gene {int(where[1])}" if len(where) == 2 else ""


def _unwrap(data: Any, layer: str | None) -> tuple[Any, Sequence[str] | None]:
    if isinstance(data, ad.AnnData):
        if layer is not None and layer not in data.layers:
            raise InvalidArgumentError(f"layer: {layer!r} is not in data.layers (found {sorted(data.layers)}).")
        return (data.X if layer is None else data.layers[layer]), list(data.var_names)
    if isinstance(data, ad.Raw):
        return data.X, list(data.var_names)
    if isinstance(data, pd.DataFrame):
        return data.to_numpy(), [str(c) for c in data.columns]
    if isinstance(data, np.ndarray) or sp.issparse(data) or hasattr(data, "compute"):
        return (np.asarray(data) if isinstance(data, np.matrix) else data), None
    raise InvalidArgumentError(
        f"data: expected AnnData, Raw, ndarray, sparse matrix, Dask array or DataFrame, found {type(data).__name__}."
    )


def _names(own: Sequence[str] | None, given: Sequence[str] | None, n_genes: int) -> NDArray[np.object_]:
    names = given if given is not None else own
    if names is None:
        names = [f"gene{i}" for i in range(n_genes)]
    if len(names) != n_genes:
        raise InvalidArgumentError(f"gene_names: expected {n_genes} names, found {len(names)}.")
    return np.asarray([str(name) for name in names], dtype=object)
