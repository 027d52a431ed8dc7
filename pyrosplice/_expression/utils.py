"""``utils.*``: designs and constraints outside a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from pyrosplice._expression.constraints import Constraints, resolve_constraints
from pyrosplice._expression.formula_design import DesignMatrix, check_full_rank, from_formula, from_matrix
from pyrosplice._expression.size_factors import median_of_ratios, normed_sum
from pyrosplice.errors import InvalidArgumentError, check_option

__all__ = [
    "constraint_matrix_from_dict",
    "constraint_matrix_from_string",
    "constraint_system_from_star",
    "design_matrix",
    "median_of_ratios",
    "normed_sum",
    "preview_coef_names",
    "setup_constrained",
    "view_coef_names",
]

RETURN_TYPES = ("patsy", "dataframe")
System = tuple[pd.DataFrame, list[str], np.ndarray | None, list[str] | None]


def design_matrix(
    data: Any = None,
    sample_description: pd.DataFrame | None = None,
    formula: str | None = None,
    as_numeric: Sequence[str] | str = (),
    dmat: Any = None,
    return_type: str = "patsy",
) -> tuple[pd.DataFrame, list[str]]:
    """The design of ``formula``, or ``dmat`` checked, and the names of its columns.

    *Differs from* the original: the design is a DataFrame for either ``return_type``, since formulas are read without
    patsy; ``fit.model`` and the tests take it as ``dmat_loc``.

    Parameters
    ----------
    data, sample_description
        The table of cells, or an AnnData that has it.
    formula, as_numeric
        As for ``fit.model``.
    dmat
        A design instead.
    return_type
        ``"patsy"`` or ``"dataframe"``.

    Returns
    -------
    tuple
        The design, cells × coefficients, and the names of its columns.

    Raises
    ------
    InvalidArgumentError
        Where neither a formula with a table nor a design is given, or both.

    Examples
    --------
    >>> import pandas as pd
    >>> import pyrosplice.api as de
    >>> cells = pd.DataFrame({"group": ["a", "b", "b"], "age": [20.0, 30.0, 50.0]})
    >>> design, names = de.utils.design_matrix(sample_description=cells, formula="~ group + age", as_numeric=["age"])
    >>> design
       Intercept  group[T.b]   age
    0        1.0         0.0  20.0
    1        1.0         1.0  30.0
    2        1.0         1.0  50.0
    """
    check_option("return_type", return_type, RETURN_TYPES)
    if dmat is not None:
        if formula is not None:
            raise InvalidArgumentError("dmat: expected either it or formula.")
        design = from_matrix(dmat, n_cells=len(dmat), argument="dmat")
        return _frame(design, getattr(dmat, "index", None)), list(design.names)
    table = data.obs if sample_description is None and isinstance(data, ad.AnnData) else sample_description
    if formula is None or table is None:
        raise InvalidArgumentError("formula: expected a formula with sample_description, or dmat.")
    design = from_formula(formula, table, as_numeric=as_numeric, n_cells=len(table), argument="formula")
    return _frame(design, table.index), list(design.names)


def view_coef_names(dmat: Any) -> np.ndarray:
    """Names of the columns of a design: a DataFrame, or a matrix of patsy's or formulaic's.

    Raises
    ------
    InvalidArgumentError
        For a design that has no names.

    Examples
    --------
    >>> import pandas as pd
    >>> import pyrosplice.api as de
    >>> cells = pd.DataFrame({"group": ["a", "b"]})
    >>> design, _ = de.utils.design_matrix(sample_description=cells, formula="~ 1 + group")
    >>> de.utils.view_coef_names(design).tolist()
    ['Intercept', 'group[T.b]']
    """
    if not hasattr(dmat, "columns") and not hasattr(dmat, "design_info"):
        raise InvalidArgumentError(f"dmat: expected a design with names of its columns, found {type(dmat).__name__}.")
    return np.asarray(from_matrix(dmat, n_cells=len(dmat), argument="dmat").names)


def preview_coef_names(
    sample_description: pd.DataFrame, formula: str, as_numeric: Sequence[str] | str = ()
) -> list[str]:
    """Names of the coefficients of a formula, for ``coef_to_test``.

    Examples
    --------
    >>> import pandas as pd
    >>> import pyrosplice.api as de
    >>> de.utils.preview_coef_names(pd.DataFrame({"group": ["a", "b", "c"]}), "~ 1 + group")
    ['Intercept', 'group[T.b]', 'group[T.c]']
    """
    return design_matrix(sample_description=sample_description, formula=formula, as_numeric=as_numeric)[1]


def constraint_system_from_star(
    dmat: Any = None,
    sample_description: pd.DataFrame | None = None,
    formula: str | None = None,
    as_numeric: Sequence[str] | str = (),
    constraints: Any = None,
    return_type: str = "patsy",
) -> System:
    """Build a design and its constraint matrix, from any form of constraints, for ``dmat_loc`` and ``constraints_loc``.

    Parameters
    ----------
    dmat
        A design; or ``sample_description`` with ``formula`` and ``as_numeric``.
    constraints
        As for ``fit.model``; a dict needs a formula.

    Returns
    -------
    tuple
        Design, names of its columns, constraint matrix (columns × free; None without constraints), and the terms of
        the formula (None for a design).

    Raises
    ------
    InvalidArgumentError
        For a design that is not of full rank under the constraints.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 4), "batch": list("uuvvxxyy")})
    >>> system = de.utils.constraint_system_from_star(
    ...     sample_description=cells, formula="~ 1 + group + batch", constraints={"batch": "group"}
    ... )
    >>> system[1]
    ['Intercept', 'group[T.b]', 'batch[u]', 'batch[v]', 'batch[x]', 'batch[y]']
    """
    check_option("return_type", return_type, RETURN_TYPES)
    if dmat is not None and isinstance(constraints, dict):
        raise InvalidArgumentError("constraints: a dict needs the formula and sample_description in place of dmat.")
    if dmat is None:
        design, terms, resolved = _system(sample_description, formula, as_numeric, constraints)
        index = None if sample_description is None else sample_description.index
    else:
        design, terms = from_matrix(dmat, n_cells=len(dmat), argument="dmat"), None
        resolved, index = resolve_constraints(constraints, design, None, argument="constraints"), None
        _no_constant(resolved)
    check_full_rank(design.matrix @ resolved.matrix, resolved.free_names, "formula" if dmat is None else "dmat")
    return _frame(design, index), list(design.names), None if constraints is None else resolved.matrix, terms


def constraint_matrix_from_dict(
    sample_description: pd.DataFrame,
    formula: str,
    as_categorical: bool | Sequence[bool] = True,
    constraints: dict[str, str] | None = None,
    return_type: str = "patsy",
) -> System:
    """Build design and constraints as :func:`constraint_system_from_star`, from ``{"batch": "condition"}``.

    Parameters
    ----------
    as_categorical
        Whether columns of ``sample_description`` are factors: one answer for all, or one for each.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 4), "batch": list("uuvvxxyy")})
    >>> design, names, constraints, _ = de.utils.constraint_matrix_from_dict(
    ...     cells, "~ 1 + group + batch", constraints={"batch": "group"}
    ... )
    >>> design.shape, constraints.shape  # within each group the effects of its batches sum to zero
    ((8, 6), (6, 4))
    """
    if not constraints:
        raise InvalidArgumentError("constraints: expected a dict such as {'batch': 'condition'}, found none.")
    columns = [str(c) for c in sample_description.columns]
    factors = [as_categorical] * len(columns) if isinstance(as_categorical, bool) else list(as_categorical)
    if len(factors) != len(columns):
        raise InvalidArgumentError(f"as_categorical: expected {len(columns)} answers, found {len(factors)}.")
    numbers = [
        name
        for i, (name, factor) in enumerate(zip(columns, factors, strict=True))
        if not factor and pd.api.types.is_numeric_dtype(sample_description.dtypes.iloc[i])
    ]
    return constraint_system_from_star(
        sample_description=sample_description,
        formula=formula,
        as_numeric=numbers,
        constraints=constraints,
        return_type=return_type,
    )


def constraint_matrix_from_string(
    dmat: Any = None, coef_names: Sequence[str] | None = None, constraints: Sequence[str] = ()
) -> np.ndarray:
    """The matrix C of θ = C θ_free, columns × free, for string constraints on named coefficients.

    Parameters
    ----------
    dmat
        A design, whose names are taken where ``coef_names`` is None, and whose rank is checked.
    coef_names
        Names of the coefficients.
    constraints
        Such as ``["batch1 + batch2 = 0"]``.

    Examples
    --------
    >>> import pyrosplice.api as de
    >>> matrix = de.utils.constraint_matrix_from_string(coef_names=["mean", "b1", "b2"], constraints=["b1 + b2 = 0"])
    >>> matrix @ [5.0, 1.0]  # free: mean and b1
    array([ 5.,  1., -1.])
    """
    if dmat is None and coef_names is None:
        raise InvalidArgumentError("coef_names: expected names of coefficients, or a design that has them.")
    names = list(view_coef_names(dmat)) if coef_names is None else [str(name) for name in coef_names]
    design = DesignMatrix(np.zeros((0, len(names))), names)
    strings = [constraints] if isinstance(constraints, str) else list(constraints)
    if not strings:
        raise InvalidArgumentError("constraints: expected at least one, such as 'batch1 + batch2 = 0'.")
    resolved = resolve_constraints(strings, design, None, argument="constraints")
    _no_constant(resolved)
    if dmat is not None:
        matrix = from_matrix(dmat, n_cells=len(dmat), argument="dmat").matrix
        if matrix.shape[1] != len(names):
            raise InvalidArgumentError(f"coef_names: expected {matrix.shape[1]}, as dmat has, found {len(names)}.")
        check_full_rank(matrix @ resolved.matrix, resolved.free_names, "dmat")
    return resolved.matrix


def setup_constrained(
    sample_description: pd.DataFrame, formula: str, constraints: Any, as_numeric: Sequence[str] | str = ()
) -> tuple[pd.DataFrame, list[str], np.ndarray, list[str]]:
    """Design and constraint matrix of a formula with constraints, for ``dmat_loc`` and ``constraints_loc``.

    Returns
    -------
    tuple
        Design, names of its columns, constraint matrix (columns × free), names of the free coefficients.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 4), "batch": list("uuvvxxyy")})
    >>> design, names, matrix, free = de.utils.setup_constrained(cells, "~ 1 + group + batch", {"batch": "group"})
    >>> design.shape, matrix.shape, free
    ((8, 6), (6, 4), ['Intercept', 'group[T.b]', 'batch[u]', 'batch[x]'])
    """
    design, _, resolved = _system(sample_description, formula, as_numeric, constraints)
    return _frame(design, sample_description.index), list(design.names), resolved.matrix, resolved.free_names


def _system(
    table: pd.DataFrame | None, formula: str | None, as_numeric: Sequence[str] | str, constraints: Any
) -> tuple[DesignMatrix, list[str], Constraints]:
    if table is None or formula is None:
        raise InvalidArgumentError("formula: expected a formula with sample_description, or dmat.")
    design = from_formula(
        formula,
        table,
        as_numeric=as_numeric,
        n_cells=len(table),
        argument="formula",
        full_rank_except=list(constraints) if isinstance(constraints, dict) else [],
    )
    resolved = resolve_constraints(constraints, design, table, argument="constraints")
    _no_constant(resolved)
    return design, list(dict.fromkeys(design.terms)), resolved


def _frame(design: DesignMatrix, index: Any) -> pd.DataFrame:
    return pd.DataFrame(design.matrix, columns=design.names, index=index)


def _no_constant(resolved: Constraints) -> None:
    if np.abs(resolved.shift).any():
        raise InvalidArgumentError("constraints: a constant needs string constraints given to fit.model itself.")
