"""Anything that holds cells in rows, as blocks that EM can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.inference.row_blocks import RowBlocks

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
        Matrix ``(N, D)``: array, Tensor, scipy sparse, Dask array, AnnData (``obsm[use_rep]``, or ``X``), a torch
        Dataset of rows (alone or first in a tuple), or a DataLoader, of which the data set is read in order.
    size
        Rows in a block.
    use_rep
        Key of ``obsm``; AnnData only.
    dtype, device
        Of the blocks; as given when None, integers as float64.
    weights
        Of the rows, ``(N,)``.

    Raises
    ------
    InvalidArgumentError
        ``data`` is not a matrix, or ``use_rep`` is not in it.
    """
    if isinstance(data, anndata.AnnData):
        data = _representation(data, use_rep)
    read, n_rows = _reader(data)
    if n_rows == 0:
        raise InvalidArgumentError("X: expected at least one row, found none.")
    kind = dtype or _floating(read(0, 1).dtype)

    def block(start: int, stop: int) -> Tensor:
        return read(start, stop).to(device=device, dtype=kind)[None]

    return RowBlocks(block, n_rows, size=size, weights=None if weights is None else weights[None])


def is_array(data: Any) -> bool:
    """True for what scikit-learn calls an array: NumPy, lists, tables, scipy sparse."""
    return not (isinstance(data, (Tensor, Dataset, DataLoader, anndata.AnnData)) or hasattr(data, "compute"))


def as_given(data: Any, values: Tensor) -> Any:
    """``values`` as a NumPy array if ``data`` :func:`is_array`, as the Tensor that they are otherwise."""
    return values.cpu().numpy() if is_array(data) else values


def _floating(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float32 else torch.float64


def _representation(adata: anndata.AnnData, use_rep: str | None) -> Any:
    if use_rep is None:
        return adata.X
    if use_rep not in adata.obsm:
        raise InvalidArgumentError(f"use_rep: expected a key of obsm {sorted(adata.obsm)}, found {use_rep!r}.")
    return np.asarray(adata.obsm[use_rep])


def _reader(data: Any) -> tuple[Read, int]:
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, Dataset):
        return _from_dataset(data), len(data)  # type: ignore[arg-type]
    if getattr(data, "ndim", 2) != 2:
        raise InvalidArgumentError(f"X: expected a matrix (rows, features), found shape {tuple(data.shape)}.")
    if isinstance(data, Tensor):
        return lambda a, b: data[a:b], len(data)
    if scipy.sparse.issparse(data):
        rows = data.tocsr()
        return lambda a, b: torch.from_numpy(rows[a:b].toarray()), rows.shape[0]
    if hasattr(data, "compute"):
        return lambda a, b: torch.from_numpy(np.asarray(data[a:b].compute())), int(data.shape[0])
    array = np.asarray(data)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise InvalidArgumentError(f"X: expected a numeric matrix, found shape {array.shape}, dtype {array.dtype}.")
    return lambda a, b: torch.from_numpy(np.require(array[a:b], requirements=["C", "W"])), len(array)


def _from_dataset(data: Any) -> Read:
    def row(i: int) -> Tensor:
        item = data[i]
        return torch.as_tensor(item[0] if isinstance(item, (tuple, list)) else item)

    return lambda a, b: torch.stack([row(i) for i in range(a, b)])
