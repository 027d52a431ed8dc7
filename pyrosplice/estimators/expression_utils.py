"""``utils.*``: designs and constraints outside a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from pyrosplice.data.constraints import resolve_constraints
from pyrosplice.data.expression_design import DesignMatrix, from_formula, from_matrix
from pyrosplice.data.size_factors import median_of_ratios, normed_sum
from pyrosplice.errors import InvalidArgumentError

__all__ = ["constraint_matrix_from_string", "design_matrix", "median_of_ratios", "normed_sum", "setup_constrained"]


def design_matrix(
    data: Any = None, sample_description: pd.DataFrame | None = None, formula: str | None = None,
    as_numeric: Sequence[str] | str = (), dmat: Any = None,
) -> pd.DataFrame:  # fmt: skip
    """The design of ``formula``, or ``dmat`` checked, as a DataFrame with named columns."""
    table = data.obs if sample_description is None and isinstance(data, ad.AnnData) else sample_description
    if dmat is not None:
        design = from_matrix(dmat, n_cells=len(dmat), argument="dmat")
    elif formula is None or table is None:
        raise InvalidArgumentError("formula: expected a formula with sample_description, or dmat.")
    else:
        design = from_formula(formula, table, as_numeric=as_numeric, n_cells=len(table), argument="formula")
    return pd.DataFrame(design.matrix, columns=design.names)


def setup_constrained(
    sample_description: pd.DataFrame, formula: str, constraints: Any, as_numeric: Sequence[str] | str = ()
) -> tuple[pd.DataFrame, list[str], np.ndarray, list[str]]:
    """Design and constraint matrix of a formula with constraints, for ``dmat_loc`` and ``constraints_loc``.

    Returns
    -------
    tuple
        Design, names of its columns, constraint matrix (columns × free), names of the free coefficients.
    """
    every_level = list(constraints) if isinstance(constraints, dict) else []
    design = from_formula(
        formula, sample_description, as_numeric=as_numeric, n_cells=len(sample_description), argument="formula",
        full_rank_except=every_level,
    )  # fmt: skip
    resolved = resolve_constraints(constraints, design, sample_description, argument="constraints")
    _no_constant(resolved.shift)
    return pd.DataFrame(design.matrix, columns=design.names), design.names, resolved.matrix, resolved.free_names


def constraint_matrix_from_string(coef_names: Sequence[str], constraints: Sequence[str]) -> np.ndarray:
    """The matrix C of θ = C θ_free for string constraints on named coefficients."""
    design = DesignMatrix(np.zeros((0, len(coef_names))), list(coef_names))
    resolved = resolve_constraints(list(constraints), design, None, argument="constraints")
    _no_constant(resolved.shift)
    return resolved.matrix


def _no_constant(shift: np.ndarray) -> None:
    if np.abs(shift).any():
        raise InvalidArgumentError("constraints: a constant needs string constraints given to fit.model itself.")
