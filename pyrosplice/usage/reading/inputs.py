"""Checks of what users hand to a model: counts, design and device, as float64 tensors or a clear error."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods.contract import Likelihood
from pyrosplice.linalg.rank import collinear_columns
from pyrosplice.tables.containers import as_dense
from pyrosplice.tables.names import by_name, names_of, square_by_name


def as_counts(counts: Any, device: torch.device, likelihood: Likelihood) -> Tensor:
    """Counts ``(G, N, K)`` from ``(G, N, K)`` or ``(N, K)`` in any container, or from a list of tables ``(N, K)``.

    Raises
    ------
    InvalidArgumentError
        Wrong number of dimensions, no genes or spots, or a count that is NaN, infinite, negative or fractional; text
        and the like; tables of a list that name other spots or isoforms than its first.
    NotImplementedError
        One isoform where the likelihood needs more: there is no usage to model.
    """
    table = as_tensor(counts, "counts")
    if table.ndim not in (2, 3):
        raise InvalidArgumentError(
            f"counts: expected shape (n_genes, n_spots, n_isos) or (n_spots, n_isos), found {tuple(table.shape)}."
        )
    table = (table if table.ndim == 3 else table.unsqueeze(0)).to(device, torch.float64)
    n_genes, n_spots, n_isos = table.shape
    if n_genes == 0 or n_spots == 0:
        raise InvalidArgumentError(f"counts: expected a gene and a spot at least, found shape {tuple(table.shape)}.")
    least, most = likelihood.n_categories
    if n_isos < 2 <= least:
        raise NotImplementedError(f"counts: a gene needs at least two isoforms, found {n_isos}; drop such genes first.")
    if n_isos < least or (most is not None and n_isos > most):
        raise InvalidArgumentError(
            f"counts: the {likelihood.name} likelihood is for {least if least == most else f'at least {least}'} "
            f"columns a spot, found {n_isos}."
        )
    checks = {"finite": ~torch.isfinite(table), "non-negative": table < 0, "whole": table != table.round()}
    for problem, wrong in list(checks.items())[: None if likelihood.of_counts else 1]:
        if bool(wrong.any()):
            gene, spot, iso = torch.nonzero(wrong)[0].tolist()
            raise InvalidArgumentError(
                f"counts: expected {problem} numbers, found {table[gene, spot, iso].item()} "
                f"at gene {gene}, spot {spot}, isoform {iso} ({int(wrong.sum())} such entries)."
            )
    return table.clone()  # the person's own may change later


def spot_names(counts: Any) -> pd.Index | None:
    """Names of the spots of a table of counts, or of the first of a list of tables; None where there are none."""
    return names_of(counts[0] if isinstance(counts, list | tuple) and len(counts) else counts)


def as_design(design_mtx: Any, n_spots: int, device: torch.device, names: pd.Index | None = None) -> Tensor:
    """Covariates ``(N, P)``; P = 0 for None. A table is paired with the spots by ``names``, where there are some.

    Raises
    ------
    InvalidArgumentError
        Not a matrix with one row a spot, or an entry that is no finite number; names that agree in part.
    """
    if design_mtx is None:
        return torch.zeros(n_spots, 0, dtype=torch.float64, device=device)
    design_mtx = design_mtx.to_frame() if isinstance(design_mtx, pd.Series) else design_mtx
    design = as_tensor(by_name(design_mtx, names, "design_mtx", what="spot"), "design_mtx").to(device, torch.float64)
    if design.ndim != 2 or len(design) != n_spots:
        raise InvalidArgumentError(
            f"design_mtx: expected shape (n_spots = {n_spots}, n_factors), found {tuple(design.shape)}."
        )
    if not bool(torch.isfinite(design).all()):
        spot, factor = torch.nonzero(~torch.isfinite(design))[0].tolist()
        raise InvalidArgumentError(
            f"design_mtx: expected finite numbers, found {design[spot, factor].item()} at spot {spot}, column {factor}."
        )
    return design.clone()


def as_covariance(
    names: pd.Index | None, corr_sp: Any, eigenvalues: Any = None, eigenvectors: Any = None
) -> tuple[Any, Any, Any]:
    """A spatial covariance and its eigenpairs as dense arrays, tables by the spots' ``names``; objects as they are.

    Raises
    ------
    InvalidArgumentError
        Entries that are no numbers; names that agree with those of the spots in part.
    """
    if isinstance(corr_sp, pd.DataFrame | np.ndarray | list) or sp.issparse(corr_sp):
        corr_sp = as_dense(square_by_name(corr_sp, names, "corr_sp", what="spot"), "corr_sp")
    if eigenvalues is not None:
        eigenvalues = as_tensor(eigenvalues, "corr_sp_eigvals")
    if eigenvectors is not None:
        eigenvectors = by_name(eigenvectors, names, "corr_sp_eigvecs", what="spot")
        eigenvectors = as_tensor(eigenvectors, "corr_sp_eigvecs")
    return corr_sp, eigenvalues, eigenvectors


def as_tensor(given: Any, argument: str) -> Tensor:
    """Numbers of any container as a tensor, on their device.

    Raises
    ------
    InvalidArgumentError
        What is no number; a list of tables of several shapes.
    """
    if isinstance(given, Tensor) and (given.is_quantized or given.is_nested or given.is_meta):
        raise InvalidArgumentError(f"{argument}: expected numbers, found a tensor that is quantized, nested or meta.")
    if isinstance(given, Tensor) and given.layout == torch.strided and not given.is_complex():
        return given.detach()
    if isinstance(given, list | tuple) and any(hasattr(part, "shape") for part in given):
        given = np.stack([as_dense(part, argument) for part in _alike(given, argument)])
    array = as_dense(given, argument)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _alike(parts: Sequence[Any], argument: str) -> list[Any]:
    """Tables of a list with their rows and columns in the order of the first."""
    parts = [part.detach() if isinstance(part, Tensor) else part for part in parts]
    shapes = [tuple(part.shape) for part in parts if hasattr(part, "shape")]
    if len(shapes) < len(parts) or len(set(shapes)) > 1:
        raise InvalidArgumentError(f"{argument}: expected a list of tables of one shape, found {sorted(set(shapes))}.")
    names = names_of(parts[0])
    return [by_name(part, names, argument, what="spot") for part in parts]


def warn_if_collinear(design: Tensor) -> None:
    """Say once which columns :func:`~pyrosplice.linalg.rank.collinear_columns` finds, if any."""
    columns = collinear_columns(design)
    if columns:
        warnings.warn(
            f"design_mtx: columns {columns} are constant or determined by the intercept and the columns before them; "
            "usage ratios are unaffected, but their coefficients are not identified. Drop them, or give beta a prior.",
            stacklevel=3,
        )
