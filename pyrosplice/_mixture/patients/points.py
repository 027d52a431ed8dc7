"""Points, weights and covariances of distributions as people hold them, as tensors in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._tables.containers import is_lazy, well_formed
from pyrosplice._tables.names import by_name, names_of
from pyrosplice.errors import InvalidArgumentError


@dataclass(frozen=True)
class PatientCells:
    """The cells of one patient, all of them.

    Attributes
    ----------
    name
        Identifier.
    cells
        ``(N, D)``, float64.
    rows
        Their rows in the table they come from, ``(N,)``.
    weights
        How many cells each counts as, ``(N,)``; None for 1.
    """

    name: str
    cells: Tensor
    rows: NDArray[np.int64]
    weights: Tensor | None = None


def dense(matrix: Any, argument: str) -> NDArray[np.float64]:
    """Numbers in any container, also on disk or with Dask, as an array in float64."""
    found = well_formed(matrix, argument)
    if is_lazy(found):
        read = getattr(found, "compute", None) or getattr(found, "to_memory", None)
        found = well_formed(found[:] if read is None else read(), argument)
    return np.asarray(found.toarray() if scipy.sparse.issparse(found) else found, dtype=np.float64)


def representation_of(adata: anndata.AnnData, use_rep: str | None) -> NDArray[np.float64]:
    """Features of all cells ``(N, D)``: ``obsm[use_rep]``, or ``X`` when None."""
    if use_rep is not None:
        return dense(adata.obsm[use_rep], f"use_rep: obsm[{use_rep!r}]")
    if adata.X is None:
        layers = f" or set adata.X, for example from a layer ({sorted(adata.layers)})" if len(adata.layers) else ""
        raise InvalidArgumentError(
            f"adata: X is None and use_rep is None; give use_rep, a key of obsm {sorted(adata.obsm)}{layers}."
        )
    return dense(adata.X, "adata.X")


def read_supports(supports: Any, patients: pd.Index | None) -> Any:
    """Points of each distribution; tables that name their features are put in the order of the first."""
    parts = _parts(by_name(supports, patients, "supports", what="distribution"), "supports")
    first = next((part.columns for part in parts if isinstance(part, pd.DataFrame)), None)
    for i, part in enumerate(parts):
        if isinstance(part, pd.DataFrame) and not part.columns.equals(first):
            turned = by_name(part.T, first, f"supports: distribution {i}", what="feature")
            parts[i] = part[turned.index] if part.columns.is_unique else part
    return _tensors(parts, "supports")


def read_weights(weights: Any, supports: Any, patients: pd.Index | None, *, identical: bool) -> Any:
    """Weights of the points of each distribution, by the names of distributions and points where both have them."""
    weights = by_name(weights, patients, "weights", what="distribution")
    if isinstance(weights, pd.DataFrame) and identical:
        return _tensors(_parts(by_name(weights.T, names_of(supports), "weights", what="point").T, "weights"), "weights")
    parts = _parts(weights, "weights")
    points = [names_of(supports)] * len(parts) if identical else [names_of(own) for own in supports]
    named = [
        by_name(own, names, f"weights: distribution {i}", what="point")
        for i, (own, names) in enumerate(zip(parts, points, strict=False))
    ]
    return _tensors(named + parts[len(named) :], "weights")


def read_covariances(covariances: Any) -> Any:
    """Covariances of the components of each distribution."""
    return _tensors(_parts(covariances, "covariances"), "covariances")


def check_covariances(covariances: Any, supports: Any) -> None:
    """Raise unless there is a matrix ``(D, D)`` for every point of ``supports``."""
    if len(covariances) != len(supports):
        raise InvalidArgumentError(
            f"covariances: expected {len(supports)}, one for each of supports, found {len(covariances)}."
        )
    for i, (own, at) in enumerate(zip(covariances, supports, strict=True)):
        expected = (*at.shape, at.shape[-1])
        if own.shape != expected:
            raise InvalidArgumentError(f"covariances: {i}: expected {expected}, found {tuple(own.shape)}.")


def _parts(values: Any, argument: str) -> list[Any]:
    """Split points into one part a distribution."""
    if isinstance(values, (str, bytes, Mapping, anndata.AnnData)):
        raise InvalidArgumentError(
            f"{argument}: expected one array for each distribution, found {type(values).__name__}; "
            "give a list in the order of distribution_labels, or an AnnData to AnnData_TripletDataset."
        )
    if isinstance(values, pd.Series):
        return list(values)
    ragged = isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1
    if getattr(values, "shape", None) == ():
        raise InvalidArgumentError(f"{argument}: expected one array for each distribution, found {values!r}.")
    whole = isinstance(values, (np.ndarray, pd.DataFrame, Tensor)) or scipy.sparse.issparse(values) or is_lazy(values)
    if whole and not ragged:
        return list(dense(values, argument))
    if not np.iterable(values):
        raise InvalidArgumentError(f"{argument}: expected one array for each distribution, found {values!r}.")
    return list(values)


def _tensors(parts: list[Any], argument: str) -> Any:
    """Make one tensor where shapes agree, a list of them where they do not; finite float64 either way."""
    found = [torch.tensor(dense(part, f"{argument}: distribution {i}")) for i, part in enumerate(parts)]
    for i, part in enumerate(found):
        if part.numel() == 0 or not bool(part.isfinite().all()):
            raise InvalidArgumentError(
                f"{argument}: distribution {i} is empty, or has NaN or infinite values; leave those cells out "
                "(GaussianMixture takes them with missing='marginalize')."
            )
    if len({part.shape for part in found}) == 1:
        return torch.stack(found)
    if len({part.shape[1:] for part in found}) > 1 and argument == "supports":
        raise InvalidArgumentError(f"{argument}: distributions have different numbers of features.")
    return found
