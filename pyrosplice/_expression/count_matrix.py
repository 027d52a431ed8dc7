"""Counts of cells × genes behind one door: arrays, sparse, Dask, data frames, AnnData in memory or on disk.

Nothing is copied or densified beyond a block of cells or of genes. Every block is checked as it is read.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._tables.containers import is_lazy, well_formed
from pyrosplice.errors import InvalidArgumentError, NotReadyError

Array = NDArray[np.float64]
BLOCK_ENTRIES = 8_000_000  # cells × genes of a block read from disk: 64 MB as float64
HELD_ENTRIES = 20_000_000  # cells × genes kept of data on disk that is wanted by genes, so that it is read rarely


class CountMatrix:
    """Counts ``(N cells, G genes)``, read in blocks.

    Parameters
    ----------
    data
        AnnData (in memory, backed, lazy, a view of these) or its ``.raw``; ndarray, DataFrame, any SciPy sparse matrix
        or array, Tensor, Dask array (also of sparse chunks), or an array on disk. Objects and nullable types are taken
        where they hold numbers; entries of a sparse matrix that stand twice are added up.
    gene_names
        Names, for data that does not carry them; generated ("gene0", …) where absent.
    layer
        Layer of the AnnData to read instead of ``X``.
    counts
        Whether entries must be counts: negative ones are then an error, and fractional ones a warning.

    Raises
    ------
    InvalidArgumentError
        For data that is not two-dimensional, holds text or complex numbers, is damaged (an index out of range), or (on
        reading) negative, NaN or infinite; for an AnnData without ``X``, a layer that it lacks, or a layer of anything
        else.
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
        self._cells: NDArray[np.intp] | None = None  # those of a matrix on disk that are in use
        self._columns: Any = None
        self._held: tuple[int, Array] = (0, np.empty((0, 0)))  # consecutive genes last read from disk
        self.counts = counts
        self.block_cells: int | None = None  # cells of a block; by memory where None
        self._warned = False
        self.gene_names = _names(names, gene_names, self.shape[1])

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: everything but a matrix on disk, whose file may change or move."""
        on_disk = not self.in_memory and not hasattr(self._matrix, "compute")
        return {**self.__dict__, "_matrix": LeftOnDisk(self._matrix.shape)} if on_disk else self.__dict__

    def __copy__(self) -> CountMatrix:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

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
        """Whether blocks of cells are likely to come as CSR matrices."""
        return sp.issparse(self._matrix) or hasattr(self._matrix, "to_memory")

    def take(self, cells: NDArray[np.intp]) -> CountMatrix:
        """Some of the cells, in ascending order; data on disk stays there."""
        if self.in_memory:
            rows = {"_matrix": self._matrix[cells]}
        else:
            rows = {"_cells": cells if self._cells is None else self._cells[cells]}
        some = copy.copy(self)
        vars(some).update(rows, shape=(len(cells), self.shape[1]), _columns=None, _held=(0, np.empty((0, 0))))
        return some

    def _block(self, rows: slice) -> Any:
        """Consecutive cells as a well-formed CSR matrix or ndarray."""
        if self.in_memory:
            return self._matrix[rows]
        cells = np.arange(rows.start, rows.stop) if self._cells is None else self._cells[rows]
        block = self._matrix[int(cells[0]) : int(cells[-1]) + 1]
        block = well_formed(block.compute() if hasattr(block, "compute") else block, "data")
        block = block.tocsr() if sp.issparse(block) else block
        return block if len(cells) == block.shape[0] else block[cells - cells[0]]

    def cell_blocks(self, size: int | None = None) -> Iterator[tuple[slice, Any]]:
        """Blocks of consecutive cells as ``(slice, CSR matrix or ndarray)``, checked."""
        n, g = self.shape
        size = size or self.block_cells or max(1, min(n, BLOCK_ENTRIES * (10 if self.sparse else 1) // g))
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            block = self._block(rows)
            self.check(block.data if sp.issparse(block) else block, start)
            yield rows, block

    def genes(self, which: NDArray[np.intp]) -> Array:
        """Counts of some genes, dense ``(g, N)``, checked."""
        if isinstance(self._matrix, np.ndarray):
            block = np.ascontiguousarray(self._matrix[:, which].T, dtype=np.float64)
            self.check(block.T, 0)
            return block
        if self.in_memory:
            return np.ascontiguousarray(self.columns(which).toarray().T, dtype=np.float64)
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

    def columns(self, which: NDArray[np.intp]) -> sp.csc_matrix:
        """Counts of some genes as a CSC matrix ``(N, g)``, checked."""
        if not (self.in_memory and sp.issparse(self._matrix)):
            return sp.csr_matrix(self.genes(which)).T
        if self._columns is None:
            self._columns = self._matrix.tocsc()
        some = self._columns[:, which]
        self.check(some.data, 0)
        return some

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
                "data: some counts are fractional and are fitted as they are. If they were normalized or "
                "log-transformed, give raw counts (layer=…) and size_factors instead.",
                UserWarning,
                stacklevel=2,
            )


class LeftOnDisk:
    """Stands in a pickle for a matrix on disk; to read from it is an error."""

    ndim = 2

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def __getitem__(self, index: Any) -> Any:
        raise NotReadyError("data: the counts were on disk and are not part of the pickle; open them and fit again.")


def _place(where: NDArray[Any], first_cell: int) -> str:
    return f" in cell {first_cell + int(where[0])}, gene {int(where[1])}" if len(where) == 2 else ""


def _unwrap(data: Any, layer: str | None) -> tuple[Any, Sequence[str] | None]:
    """The matrix that ``data`` holds, well-formed or lazy, and the names of its genes."""
    if layer is not None and not isinstance(data, ad.AnnData):
        raise InvalidArgumentError(
            f"layer: only an AnnData has layers, found {type(data).__name__}; leave {layer!r} out."
        )
    if isinstance(data, ad.AnnData):
        return _in_anndata(data, layer), list(data.var_names)
    if isinstance(data, ad.Raw):
        return well_formed(data.X, "data"), list(data.var_names)
    if isinstance(data, (str, bytes)) or not (
        hasattr(data, "shape") or isinstance(data, (list, tuple)) or is_lazy(data)
    ):
        raise InvalidArgumentError(
            "data: expected AnnData, Raw, ndarray, sparse matrix, Dask array or DataFrame, found "
            f"{type(data).__name__}."
        )
    return well_formed(data, "data"), [str(c) for c in data.columns] if isinstance(data, pd.DataFrame) else None


def _in_anndata(data: ad.AnnData, layer: str | None) -> Any:
    layers = sorted(map(str, data.layers))
    if layer is None:
        if data.X is None:
            raise InvalidArgumentError(f"data: X of the AnnData is None; name the counts by layer= (found {layers}).")
        return well_formed(data.X, "data")
    if not isinstance(layer, str) or layer not in data.layers:
        raise InvalidArgumentError(f"layer: {layer!r} is not in data.layers (found {layers}).")
    return well_formed(data.layers[layer], f"data: layer {layer!r}")


def _names(own: Sequence[str] | None, given: Sequence[str] | None, n_genes: int) -> NDArray[np.object_]:
    names = given if given is not None else own
    if names is None:
        names = [f"gene{i}" for i in range(n_genes)]
    if np.ndim(names) != 1:
        raise InvalidArgumentError(f"gene_names: expected {n_genes} names, found {names!r}.")
    if len(names) != n_genes:
        raise InvalidArgumentError(f"gene_names: expected {n_genes} names, found {len(names)}.")
    return np.asarray([str(name) for name in names], dtype=object)


def raw_blocks(counts: CountMatrix, layer: str | None) -> Iterator[tuple[slice, Any]]:
    """Blocks of cells of an AnnData's X or ``layer``, every entry of them checked.

    Raises
    ------
    InvalidArgumentError
        For entries that are no counts.
    """
    for cells, block in counts.cell_blocks():
        entries = block.data if sp.issparse(block) else block
        wrong = ~((entries >= 0) & (entries == np.rint(entries)) & np.isfinite(entries))
        if wrong.any():
            where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
            raise InvalidArgumentError(
                f"{where}: expected raw counts, found {entries[wrong][0]:g}; name the layer that holds them by layer=, "
                "not normalized, scaled or corrected values."
            )
        yield cells, block
