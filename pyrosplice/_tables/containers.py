"""Matrices as people hold them, made well-formed: numbers in a plain array or a canonical sparse matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError

NUMBERS = ("integer", "floating", "mixed-integer-float", "boolean", "decimal", "empty")  # of pandas' infer_dtype


def well_formed(matrix: Any, argument: str) -> Any:
    """Return the numbers as an ndarray or a canonical CSR or CSC matrix; what is on disk or with Dask stays there.

    Entries of a sparse matrix that stand twice are added up, as SciPy reads them; explicit zeros are left out; the
    person's own arrays are never changed. Missing values of nullable types become NaN.

    Parameters
    ----------
    matrix
        ndarray, nested list, DataFrame (also nullable, sparse, of objects that are numbers), Tensor (dense or sparse,
        also one that requires a gradient), any SciPy sparse matrix or array; a Dask array or a matrix of a backed
        AnnData comes back as it is: its blocks go through here as they are read.
    argument
        Name of the argument that errors begin with.

    Raises
    ------
    InvalidArgumentError
        Text, complex numbers, dates; an index of a sparse matrix that is out of its range; masked entries.
    """
    if sp.issparse(matrix):
        return _sparse(matrix, argument)
    if isinstance(matrix, torch.Tensor):
        return _tensor(matrix, argument)
    if isinstance(matrix, pd.DataFrame):
        return _frame(matrix, argument)
    if is_lazy(matrix):
        return matrix
    if hasattr(matrix, "to_scipy_sparse"):
        return _sparse(matrix.to_scipy_sparse(), argument)
    if isinstance(matrix, np.ma.MaskedArray):
        if np.ma.getmaskarray(matrix).any():
            raise InvalidArgumentError(f"{argument}: expected numbers, found masked entries.")
        matrix = matrix.data
    try:
        array = np.asarray(matrix)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{argument}: expected a matrix of numbers ({error}).") from error
    return _numeric(array, argument)


def loaded(matrix: Any, argument: str) -> Any:
    """Read a matrix into memory, from disk or Dask if it is there, and check it as :func:`well_formed` does.

    Raises
    ------
    InvalidArgumentError
        As for :func:`well_formed`.
    """
    matrix = well_formed(matrix, argument)
    if not is_lazy(matrix):
        return matrix
    if hasattr(matrix, "compute"):
        matrix = matrix.compute()
    elif hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    else:
        matrix = matrix[...]
    if is_lazy(matrix):
        raise InvalidArgumentError(f"{argument}: expected a matrix, found {type(matrix).__name__}.")
    return well_formed(matrix, argument)


def as_dense(matrix: Any, argument: str) -> NDArray[np.float64]:
    """The numbers of any container as a float64 array in memory, of whatever shape.

    Raises
    ------
    InvalidArgumentError
        As for :func:`well_formed`.
    """
    matrix = loaded(matrix, argument)
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix, dtype=np.float64, order="C")


def of_shape(name: str, value: Any, shapes: tuple[tuple[int, ...], ...]) -> NDArray[np.float64]:
    """Numbers as a dense array of one of the ``shapes``; a zero where none are given.

    Raises
    ------
    InvalidArgumentError
        For another shape, and as for :func:`well_formed`.
    """
    if value is None:
        return np.zeros(())
    given = as_dense(value, name)
    if given.shape not in shapes:
        expected = " or ".join("a number" if shape == () else str(shape) for shape in shapes)
        raise InvalidArgumentError(f"{name}: expected {expected}, found shape {given.shape}.")
    return given


def is_lazy(matrix: Any) -> bool:
    """Whether the numbers are elsewhere: a Dask array, or a matrix of a backed AnnData (HDF5, zarr)."""
    if isinstance(matrix, (np.ndarray, pd.DataFrame, torch.Tensor)) or sp.issparse(matrix):
        return False
    return hasattr(matrix, "compute") or hasattr(matrix, "to_memory") or hasattr(matrix, "chunks")


def _numeric(array: NDArray[Any], argument: str) -> NDArray[Any]:
    if array.dtype.kind == "O":
        if pd.api.types.infer_dtype(array.ravel(), skipna=True) not in NUMBERS:
            wrong = next((v for v in array.ravel() if not isinstance(v, (int, float, np.number, np.bool_))), None)
            raise InvalidArgumentError(f"{argument}: expected numbers, found {wrong!r} ({type(wrong).__name__}).")
        filled = np.where(pd.isna(array), np.nan, array)
        return filled.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise InvalidArgumentError(f"{argument}: expected numbers, found dtype {array.dtype}.")
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float64)
    return array.view(np.ndarray)


def check_sparse(matrix: Any, argument: str) -> None:
    """Raise unless a SciPy sparse matrix is one that can be read: two-dimensional, every index in its range."""
    if matrix.ndim != 2:
        raise InvalidArgumentError(f"{argument}: expected a matrix, found a sparse array of shape {matrix.shape}.")
    if matrix.format not in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok"):
        raise InvalidArgumentError(f"{argument}: a sparse matrix of format {matrix.format!r} is not known.")
    if matrix.format == "coo":
        _check_indices(matrix.row, matrix.shape[0], argument)
        _check_indices(matrix.col, matrix.shape[1], argument)
    if matrix.format in ("bsr", "csr", "csc"):
        _check_compressed(matrix, argument)


def _sparse(matrix: Any, argument: str) -> Any:
    check_sparse(matrix, argument)
    kept = matrix if matrix.format in ("csr", "csc") else matrix.tocsr()
    values = _numeric(kept.data, argument)
    make = sp.csc_matrix if kept.format == "csc" else sp.csr_matrix
    out = make((values, kept.indices, kept.indptr), shape=kept.shape)
    if kept is not matrix:
        _check_compressed(out, argument)
    if not out.has_canonical_format or not (out.data != 0).all():
        out = out.copy()
        if out.data.dtype.kind in "bui":  # the sum of two small integers must not overflow
            out.data = out.data.astype(np.int64)
        out.sum_duplicates()
        out.eliminate_zeros()
    return out


def _check_indices(indices: NDArray[Any], size: int, argument: str) -> None:
    wrong = np.flatnonzero((indices < 0) | (indices >= size))
    if len(wrong):
        raise InvalidArgumentError(
            f"{argument}: the sparse matrix is damaged: index {indices[wrong[0]]} where {size} is the size."
        )


def _check_compressed(matrix: Any, argument: str) -> None:
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise InvalidArgumentError(f"{argument}: the sparse matrix is damaged: {error}.") from error


def _tensor(tensor: torch.Tensor, argument: str) -> Any:
    if tensor.is_complex():
        raise InvalidArgumentError(f"{argument}: expected numbers, found dtype {tensor.dtype}.")
    values = tensor.detach()
    values = (values.to_dense() if values.layout != torch.strided else values).cpu()
    narrow = values.is_floating_point() and values.dtype not in (torch.float32, torch.float64)
    return (values.to(torch.float64) if narrow else values).numpy()


def _frame(table: pd.DataFrame, argument: str) -> Any:
    columns = [_column(table.iloc[:, i], argument) for i in range(table.shape[1])] if _needs_care(table) else None
    if columns is None:
        return _numeric(table.to_numpy(), argument)
    return np.column_stack(columns) if columns else np.empty(table.shape)


def _needs_care(table: pd.DataFrame) -> bool:
    return not all(isinstance(dtype, np.dtype) and dtype.kind in "biuf" for dtype in table.dtypes)


def _column(column: pd.Series, argument: str) -> NDArray[Any]:
    where = f"{argument}: column {column.name!r}"
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_datetime64_any_dtype(column):
        raise InvalidArgumentError(f"{where}: expected numbers, found dtype {column.dtype}.")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return _numeric(column.to_numpy(), where)
