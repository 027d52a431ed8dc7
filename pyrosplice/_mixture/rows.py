"""Anything that holds cells in rows, as blocks that EM can read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._tables.containers import is_lazy, well_formed
from pyrosplice.errors import InvalidArgumentError

Read = Callable[[int, int], Tensor]


def as_rows(
    data: Any,
    *,
    size: int,
    use_rep: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    weights: Tensor | None = None,
) -> RowBlocks:
    """Blocks of ``size`` rows of ``data``.

    Parameters
    ----------
    data
        Matrix ``(N, D)``: array, table, Tensor, scipy sparse, Dask array, AnnData (``obsm[use_rep]``, or ``X``; also
        backed), a torch Dataset of rows (alone or first in a tuple), or a DataLoader, of which the data set is read
        in order, each row once, whether it shuffles, drops the last batch, or not.
    size
        Rows in a block.
    use_rep
        Key of ``obsm``; AnnData only.
    dtype, device
        Type and device of the blocks; as given when None, integers as float64.
    weights
        Weights of the rows, ``(N,)``.

    Raises
    ------
    InvalidArgumentError
        ``data`` is not a matrix of numbers, ``use_rep`` is not in it, or a loader leaves out or changes rows.
    """
    if isinstance(data, anndata.AnnData):
        data = representation_of(data, use_rep)
    read, n_rows = _reader(data)
    if n_rows == 0:
        raise InvalidArgumentError("X: expected at least one row, found none.")
    first = read(0, 1)
    if first.ndim != 2 or first.is_complex():
        raise InvalidArgumentError(
            f"X: expected rows of numbers, found shape {tuple(first.shape[1:])} and dtype {first.dtype} of the first."
        )
    kind = dtype or _floating(first.dtype)

    def block(start: int, stop: int) -> Tensor:
        return read(start, stop).to(device=device, dtype=kind)[None]

    return RowBlocks(block, n_rows, size=size, weights=None if weights is None else weights[None])


def is_array(data: Any) -> bool:
    """True for what scikit-learn calls an array: NumPy, lists, tables, scipy sparse."""
    return not (isinstance(data, (Tensor, Dataset, DataLoader, anndata.AnnData)) or is_lazy(data))


def as_given(data: Any, values: Tensor) -> Any:
    """Return ``values`` as a NumPy array if ``data`` :func:`is_array`, as the Tensor that they are otherwise."""
    return values.cpu().numpy() if is_array(data) else values


def representation_of(adata: anndata.AnnData, use_rep: str | None) -> Any:
    """Features of an AnnData, ``obsm[use_rep]``, or ``X`` for None, as they are held.

    Raises
    ------
    InvalidArgumentError
        There is no such key, or no ``X``.
    """
    if use_rep is None:
        try:
            held = adata.X
        except (ValueError, TypeError, IndexError) as error:
            raise InvalidArgumentError(
                f"X: this view of a backed AnnData cannot be read from its file ({error}); give adata.to_memory()."
            ) from error
        if held is None:
            raise InvalidArgumentError(
                f"use_rep: the AnnData has no X (it is None); give a key of obsm {sorted(adata.obsm)}, or set X."
            )
        return held
    if use_rep not in adata.obsm:
        raise InvalidArgumentError(f"use_rep: expected a key of obsm {sorted(adata.obsm)}, found {use_rep!r}.")
    return adata.obsm[use_rep]


def in_memory(matrix: Any, argument: str) -> NDArray[np.float64]:
    """Read all of a matrix ``(N, D)``, whatever holds it, as float64."""
    on_disk = is_lazy(matrix) and not (hasattr(matrix, "compute") or hasattr(matrix, "to_memory"))
    dense = _dense(matrix[...] if on_disk else matrix, argument)
    if dense.ndim != 2:
        raise InvalidArgumentError(f"{argument}: expected a matrix (cells, features), found shape {dense.shape}.")
    return dense.astype(np.float64, copy=False)


def _dense(matrix: Any, argument: str) -> NDArray[Any]:
    """A block of rows, computed if it has to be, as a plain array of numbers."""
    if hasattr(matrix, "compute"):
        matrix = matrix.compute()
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    found = well_formed(matrix, argument)
    return found.toarray() if scipy.sparse.issparse(found) else found


def _floating(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float32 else torch.float64


def _reader(data: Any) -> tuple[Read, int]:
    if isinstance(data, DataLoader):
        _check_loader(data)
        data = data.dataset
    if isinstance(data, Dataset):
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            raise InvalidArgumentError("X: EM reads rows more than once; give a data set with a length, not a stream.")
        return _from_dataset(data), len(data)
    if isinstance(data, Tensor):
        _check_matrix(data)
        dense = data.detach() if data.layout == torch.strided else data.detach().to_dense()
        return lambda a, b: dense[a:b], len(dense)
    if is_lazy(data):
        _check_matrix(data)
        if any(math.isnan(length) for length in data.shape):
            raise InvalidArgumentError("X: the lazy array does not know its shape; call its compute_chunk_sizes().")
        return lambda a, b: _as_tensor(_dense(data[a:b], "X")), int(data.shape[0])
    found = well_formed(data, "X")
    _check_matrix(found)
    if scipy.sparse.issparse(found):
        rows = found.tocsr()
        return lambda a, b: _as_tensor(rows[a:b].toarray()), rows.shape[0]
    return lambda a, b: _as_tensor(found[a:b]), len(found)


def _check_matrix(data: Any) -> None:
    if len(data.shape) != 2:
        raise InvalidArgumentError(f"X: expected a matrix (rows, features), found shape {tuple(data.shape)}.")


def _as_tensor(block: NDArray[Any]) -> Tensor:
    block = block.astype(np.float64) if block.dtype.kind in "ub" else block
    native = block.astype(block.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def _check_loader(loader: DataLoader[Any]) -> None:
    """Refuse a loader that would leave out, repeat or change rows: its data set is read in order, each row once."""
    sampler = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if not (whole or isinstance(loader.dataset, IterableDataset)):
        raise InvalidArgumentError(
            f"X: a DataLoader with {type(sampler).__name__} leaves out or repeats rows; give a data set of the rows "
            "that you mean (torch.utils.data.Subset), or sample_weight."
        )
    if loader.collate_fn is not default_collate and loader.batch_size is not None:
        raise InvalidArgumentError("X: a DataLoader's collate_fn is not followed; give a data set of the rows.")


def _from_dataset(data: Any) -> Read:
    def row(i: int) -> Tensor:
        item = data[i]
        item = item[0] if isinstance(item, (tuple, list)) and not _is_row(item) else item
        return item.detach() if isinstance(item, Tensor) else _as_tensor(well_formed(item, "X"))

    def read(a: int, b: int) -> Tensor:
        rows = [row(i) for i in range(a, b)]
        if len({tuple(r.shape) for r in rows}) > 1:
            raise InvalidArgumentError("X: the rows of the data set have different numbers of features.")
        block = torch.stack(rows)
        if block.is_complex():
            raise InvalidArgumentError(f"X: expected numbers, found dtype {block.dtype} in rows {a} to {b - 1}.")
        return block

    return read


def _is_row(item: Any) -> bool:
    """Whether an item is a list of plain numbers, not a row and what goes with it."""
    return isinstance(item, list) and all(isinstance(v, (int, float, np.number)) for v in item)


def column_names(data: Any, use_rep: str | None) -> pd.Index | None:
    """Names of the features of a DataFrame, of ``X`` of an AnnData or of a table in its ``obsm``; None without."""
    if isinstance(data, anndata.AnnData):
        data = data.obsm[use_rep] if use_rep is not None and use_rep in data.obsm else data
    if isinstance(data, anndata.AnnData):
        return pd.Index(data.var_names)
    return data.columns if isinstance(data, pd.DataFrame) else None
