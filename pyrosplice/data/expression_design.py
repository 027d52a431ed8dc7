"""Design matrices of expression models: from formulas by formulaic, or as given; checked, and re-made for new cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
from formulaic import Formula, ModelSpec
from formulaic.errors import FormulaicError
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DesignMatrix:
    """A design ``(N, P)`` with its column names, and the formula that made it, if one did.

    Attributes
    ----------
    matrix, names
        The columns.
    spec
        formulaic's record of how the columns were made; None for a given matrix.
    levels
        Levels of each categorical variable, in the order of their columns.
    numeric
        Variables taken as numbers.
    """

    matrix: Array
    names: list[str]
    spec: ModelSpec | None = None
    levels: dict[str, list[Any]] = field(default_factory=dict)
    numeric: tuple[str, ...] = ()

    def columns_of(self, factor: str) -> list[str]:
        """Columns of the terms that contain ``factor`` (a variable or a whole term of the formula).

        Raises
        ------
        InvalidArgumentError
            Where no column does.
        """
        found: list[str] = []
        if self.spec is not None:
            for term, columns in self.spec.term_indices.items():
                variables = {re.sub(r"^C\((\w+).*\)$", r"\1", str(f)) for f in term.factors}
                if str(term) == factor or (variables == {factor}):
                    found += [self.names[i] for i in columns]
        else:
            found = [n for n in self.names if n == factor or n.startswith(f"{factor}[")]
        if not found:
            raise InvalidArgumentError(f"factor_loc_totest: {factor!r} makes none of the columns {self.names}.")
        return found

    def for_new(self, sample_description: pd.DataFrame) -> Array:
        """The design of other cells.

        Raises
        ------
        InvalidArgumentError
            For a level or a column that the fit never saw, or a design that was not made by a formula.
        """
        if self.spec is None:
            raise InvalidArgumentError("formula_loc: new cells need a design made by a formula.")
        data = pd.DataFrame(index=sample_description.index)
        for name in (*self.levels, *self.numeric):
            if name not in sample_description:
                raise InvalidArgumentError(f"sample_description: column {name!r} is missing.")
            column = sample_description[name]
            if name in self.numeric:
                data[name] = column.astype(float)
                continue
            unseen = sorted({str(v) for v in column} - {str(v) for v in self.levels[name]})
            if unseen:
                raise InvalidArgumentError(
                    f"sample_description: column {name!r} has levels that the fit never saw: {unseen}."
                )
            data[name] = pd.Categorical(column.astype(str), categories=[str(v) for v in self.levels[name]])
        return np.asarray(self.spec.get_model_matrix(data), dtype=np.float64)


def from_formula(
    formula: str, sample_description: pd.DataFrame | None, *, as_numeric: Sequence[str] | str = (), n_cells: int,
    argument: str = "formula_loc", full_rank_except: Sequence[str] = (),
) -> DesignMatrix:  # fmt: skip
    """The design of ``formula``: columns not in ``as_numeric`` are categorical, whatever their type.

    Parameters
    ----------
    full_rank_except
        Factors that enter with one column for every level (their redundancy is removed by constraints later).

    Raises
    ------
    InvalidArgumentError
        For unknown columns, missing values, or text where a number is needed; names the column.
    """
    table = pd.DataFrame(index=pd.RangeIndex(n_cells)) if sample_description is None else sample_description
    if len(table) != n_cells:
        raise InvalidArgumentError(f"sample_description: expected {n_cells} rows, one a cell, found {len(table)}.")
    try:
        parsed = Formula(formula)
    except FormulaicError as error:
        raise InvalidArgumentError(f"{argument}: {formula!r} is not a formula ({error}).") from error
    numeric = (as_numeric,) if isinstance(as_numeric, str) else tuple(as_numeric)
    mentioned = {str(c) for c in table.columns if re.search(rf"(?<![\w.]){re.escape(str(c))}(?![\w.])", formula)}
    used = sorted({str(v) for v in parsed.required_variables} | mentioned)
    for name in (*used, *numeric):
        if name not in table.columns:
            raise InvalidArgumentError(
                f"{argument}: no column {name!r} in sample_description (found {[str(c) for c in table.columns]})."
            )
    data, levels = _typed_columns(table, used, numeric, argument)
    for name in full_rank_except:
        if name not in levels:
            raise InvalidArgumentError(f"constraints: {name!r} is not a categorical factor of {formula!r}.")
    try:
        matrix = parsed.get_model_matrix(data)
    except FormulaicError as error:
        raise InvalidArgumentError(f"{argument}: {formula!r} cannot be evaluated ({error}).") from error
    if not hasattr(matrix, "columns"):
        raise InvalidArgumentError(f"{argument}: expected a right-hand side such as '~1 + x', found {formula!r}.")
    names = [str(c) for c in matrix.columns]
    values, spec = np.asarray(matrix, dtype=np.float64), matrix.model_spec
    design = DesignMatrix(values, names, spec, levels, tuple(n for n in used if n in numeric))
    for name in full_rank_except:
        design = _every_level(design, name, data[name])
    return design


def _typed_columns(
    table: pd.DataFrame, used: list[str], numeric: tuple[str, ...], argument: str
) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    data, levels = pd.DataFrame(index=table.index), {}
    for name in used:
        column = table[name]
        if column.isna().any():
            raise InvalidArgumentError(
                f"{argument}: column {name!r} of sample_description has {int(column.isna().sum())} missing value(s)."
            )
        if name in numeric:
            try:
                data[name] = column.astype(float)
            except (TypeError, ValueError) as error:
                raise InvalidArgumentError(f"as_numeric: column {name!r} does not hold numbers ({error}).") from error
        else:
            kept = column.cat.remove_unused_categories() if isinstance(column.dtype, pd.CategoricalDtype) else None
            order = list(kept.cat.categories) if kept is not None else sorted(column.unique())
            levels[name] = order
            data[name] = pd.Categorical(column.astype(str), categories=[str(v) for v in order])
    return data, levels


def _every_level(design: DesignMatrix, factor: str, column: pd.Series) -> DesignMatrix:
    """Replace the columns of ``factor`` by one indicator for every level."""
    old = set(design.columns_of(factor))
    levels = [str(v) for v in column.cat.categories]
    indicators = {f"{factor}[{v}]": np.asarray(column == v, float) for v in levels}
    first = min(design.names.index(n) for n in old)
    parts: list[tuple[str, Array]] = []
    for i, name in enumerate(design.names):
        if i == first:
            parts += list(indicators.items())
        if name not in old:
            parts.append((name, design.matrix[:, i]))
    names = [name for name, _ in parts]
    return DesignMatrix(np.column_stack([c for _, c in parts]), names, None, design.levels, design.numeric)


def from_matrix(dmat: Any, *, n_cells: int, argument: str = "dmat_loc") -> DesignMatrix:
    """A pre-built design: DataFrame, patsy or formulaic matrix, or plain array.

    Raises
    ------
    InvalidArgumentError
        For a wrong number of rows, or entries that are not finite numbers.
    """
    info = getattr(dmat, "design_info", None)
    if hasattr(dmat, "columns"):
        names = [str(c) for c in dmat.columns]
    elif info is not None:
        names = [str(c) for c in info.column_names]
    else:
        names = []
    try:
        matrix = np.asarray(dmat, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{argument}: expected numbers ({error}).") from error
    if matrix.ndim != 2 or matrix.shape[0] != n_cells or matrix.shape[1] == 0:
        raise InvalidArgumentError(f"{argument}: expected shape ({n_cells}, coefficients), found {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InvalidArgumentError(f"{argument}: NaN or infinite entries.")
    return DesignMatrix(matrix, names or [f"coef{i}" for i in range(matrix.shape[1])])


def check_full_rank(matrix: Array, names: Sequence[str], argument: str) -> None:
    """Raise where columns are linear combinations of the others, and name them."""
    scale = np.sqrt(np.square(matrix).sum(0))
    if (scale == 0).any():
        empty = [names[int(i)] for i in np.flatnonzero(scale == 0)]
        raise InvalidArgumentError(f"{argument}: columns {empty} are zero for every cell; remove them.")
    _, r, pivot = scipy.linalg.qr(matrix / scale, mode="economic", pivoting=True)
    size = np.abs(np.diag(r))
    rank = int((size > size[0] * 1e-9).sum())
    if rank < matrix.shape[1]:
        dependent = sorted(names[int(i)] for i in pivot[rank:])
        raise InvalidArgumentError(
            f"{argument}: the design has rank {rank} with {matrix.shape[1]} columns; {dependent} depend linearly on "
            "the others. Drop terms, or constrain them (constraints_loc)."
        )
