"""Design matrices of expression models: from formulas or as given; checked, and re-made for new cells."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
from numpy.typing import NDArray

from pyrosplice._tables.cells import Cells, as_numbers
from pyrosplice._tables.columns import is_numeric
from pyrosplice._tables.formulas import FormulaDesign, read_formula
from pyrosplice._tables.labels import read_labels
from pyrosplice.errors import InvalidArgumentError, listed

Array = NDArray[np.float64]
RANDOM_EFFECTS = "fit without it, and name the donors in ExpressionGLM.test(method='cluster' or 'glmm', donors=…)"
MANY_LEVELS = 20  # distinct numbers in one column that are hardly ever meant as labels
MANY_FRACTIONS = 10  # of numbers that are not whole
INDEPENDENT = 1e-10  # part of a column, centred, that the others do not explain
SIZES = (1e-70, 1e70)  # of a column: the squares of estimate and standard error stay numbers
ROUNDING = 64 * float(np.finfo(float).eps)


@dataclass(frozen=True)
class DesignMatrix:
    """A design ``(N, P)`` with its column names, and the formula that made it, if one did.

    Attributes
    ----------
    matrix, names
        The columns.
    recipe
        How the formula made them, which makes them for other cells; None for a given matrix.
    every_level
        Factors that have one column for every level in place of the formula's own.
    terms, variables
        For each column the term that it comes from, and the table's columns that the term uses.
    reference
        Median of each variable taken as a number.
    """

    matrix: Array
    names: list[str]
    recipe: FormulaDesign | None = None
    every_level: tuple[str, ...] = ()
    terms: list[str] = field(default_factory=list)
    variables: list[frozenset[str]] = field(default_factory=list)
    reference: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.terms and self.names:
            object.__setattr__(self, "terms", [_without_levels(name) for name in self.names])
            object.__setattr__(self, "variables", [_parts(term) for term in self.terms])

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """Levels of each categorical variable, in the order of their columns."""
        return {} if self.recipe is None else self.recipe.levels

    @property
    def numeric(self) -> tuple[str, ...]:
        """Variables taken as numbers."""
        return () if self.recipe is None else self.recipe.numeric

    @property
    def labels_hint(self) -> str:
        """What to do about factors whose levels are all numbers, a sentence after others; "" where there are none."""
        numbers = sorted(
            name for name, levels in self.levels.items() if len(levels) > 2 and all(map(_is_number, levels))
        )
        what = f" Columns {numbers} hold numbers and are taken as labels; name those that are numbers in as_numeric."
        return what if numbers else ""

    def columns_of(self, factor: str, argument: str = "factor_loc_totest") -> list[str]:
        """Columns of the terms that are ``factor``: a variable, or a whole term whose variables are in any order.

        Raises
        ------
        InvalidArgumentError
            Where no column does.
        """
        wanted, variable = _parts(factor), {factor.strip("`")}
        found = [
            name
            for name, term, used in zip(self.names, self.terms, self.variables, strict=True)
            if used and (term == factor or used == variable or _parts(term) == wanted)
        ]
        if not found:
            terms = dict.fromkeys(term for term, used in zip(self.terms, self.variables, strict=True) if used)
            hint = f" {factor!r} is a coefficient: test it as one." if factor in self.names else ""
            raise InvalidArgumentError(
                f"{argument}: {factor!r} is no term of the design; expected one of {listed(terms, near=factor)}, "
                f"whose columns are {listed(self.names, near=factor)}.{hint}"
            )
        return found

    def for_new(self, sample_description: pd.DataFrame, argument: str = "sample_description") -> Array:
        """The design of other cells.

        Raises
        ------
        InvalidArgumentError
            For a level or a column that the fit never saw, or a design that was not made by a formula.
        """
        if self.recipe is None:
            raise InvalidArgumentError(
                "formula_loc: the design of new cells needs a formula of names, numbers and known functions; this "
                "model was fitted to a given matrix, or was saved with a formula that holds other code."
            )
        matrix, labels = self.recipe.again(sample_description, argument), {}
        for name in self.every_level:
            labels[name] = read_labels(sample_description[name], f"{argument}: column {name!r}").names
        return _with_every_level(self.recipe, matrix, labels)[0]


def _is_number(level: str) -> bool:
    try:
        float(level)
    except ValueError:
        return False
    return True


def _without_levels(name: str) -> str:
    """The term of a column, by its name alone: ``cond[T.b]:g[y]`` is of ``cond:g``."""
    return re.sub(r"\[[^\[\]]*\]", "", name)


def _parts(term: str) -> frozenset[str]:
    """What an interaction is between, in no order: ``C(b):a`` is between a and b."""
    parts = re.split(r":(?![^()]*\))", term)
    return frozenset(re.sub(r"^C\(\s*([^,()]+?)\s*(,.*)?\)$", r"\1", part.strip()).strip("`") for part in parts)


def from_formula(
    formula: str,
    sample_description: pd.DataFrame | None,
    *,
    as_numeric: Sequence[str] | str = (),
    n_cells: int,
    argument: str = "formula_loc",
    full_rank_except: Sequence[str] = (),
) -> DesignMatrix:
    """The design of ``formula``: columns not in ``as_numeric`` are categorical, whatever their type.

    Numbers of many different values that are taken as labels are warned about, or refused where most cells would have
    a level of their own.

    Parameters
    ----------
    full_rank_except
        Factors that enter with one column for every level (their redundancy is removed by constraints later).

    Raises
    ------
    InvalidArgumentError
        For unknown columns, missing values, text where a number is needed, or numbers that hardly repeat as labels;
        names the column.
    """
    table = pd.DataFrame(index=pd.RangeIndex(n_cells)) if sample_description is None else sample_description
    if len(table) != n_cells:
        raise InvalidArgumentError(f"sample_description: expected {n_cells} rows, one a cell, found {len(table)}.")
    recipe = read_formula(formula, table, argument, as_numeric=as_numeric, random_effects=RANDOM_EFFECTS)
    _check_levels(recipe, table, argument)
    for name in full_rank_except:
        if name not in recipe.levels:
            raise InvalidArgumentError(f"constraints: {name!r} is not a categorical factor of {formula!r}.")
    by_text = {str(c): i for i, c in enumerate(table.columns)}
    labels = {name: read_labels(table.iloc[:, by_text[name]], argument).names for name in full_rank_except}
    matrix, names, terms, variables = _with_every_level(recipe, recipe.matrix, labels)
    reference = {name: float(np.median(as_numbers(table.iloc[:, by_text[name]], argument))) for name in recipe.numeric}
    return DesignMatrix(matrix, names, recipe, tuple(full_rank_except), terms, variables, reference)


def _check_levels(recipe: FormulaDesign, table: pd.DataFrame, argument: str) -> None:
    """Warn of factors that have no coefficient and of numbers taken as labels; refuse numbers that hardly repeat."""
    for name, levels in recipe.levels.items():
        if len(levels) == 1 and not any(name in used for used in recipe.variables):
            warnings.warn(
                f"{argument}: factor {name!r} is {levels[0]!r} in every cell, and has no coefficient.",
                UserWarning,
                stacklevel=4,
            )
        column = table.iloc[:, [str(c) for c in table.columns].index(name)]
        if not is_numeric(column) or len(levels) < 3:
            continue
        fractions = any(not float(value).is_integer() for value in levels)
        if len(levels) > MANY_LEVELS and 2 * len(levels) > len(table):
            raise InvalidArgumentError(
                f"{argument}: column {name!r} holds numbers, {len(levels)} different ones in {len(table)} cells, which "
                "would be a factor with a coefficient for each; name it in as_numeric for one slope."
            )
        if len(levels) > (MANY_FRACTIONS if fractions else MANY_LEVELS) or 2 * len(levels) > len(table):
            warnings.warn(
                f"{argument}: column {name!r} holds numbers and is taken as a factor of {len(levels)} levels, with a "
                f"coefficient for each; name it in as_numeric for one slope.",
                UserWarning,
                stacklevel=4,
            )


def _with_every_level(
    recipe: FormulaDesign, matrix: Array, labels: dict[str, NDArray[np.object_]]
) -> tuple[Array, list[str], list[str], list[frozenset[str]]]:
    """Columns, names, terms and variables with one indicator a level of the factors in ``labels``."""
    columns = list(zip(recipe.names, recipe.terms, recipe.variables, matrix.T, strict=True))
    for factor, label in labels.items():
        first = next(i for i, column in enumerate(columns) if column[2] == {factor})
        own = [
            (f"{factor}[{level}]", factor, frozenset({factor}), (label == level).astype(float))
            for level in recipe.levels[factor]
        ]
        columns = columns[:first] + own + [c for c in columns[first:] if c[2] != {factor}]
    names, terms, variables, arrays = (list(part) for part in zip(*columns, strict=True))
    return np.column_stack(arrays), names, terms, variables


def from_matrix(dmat: Any, *, n_cells: int, argument: str = "dmat_loc", cells: Cells | None = None) -> DesignMatrix:
    """A pre-built design: DataFrame (whose rows are paired with ``cells`` by name), patsy or formulaic matrix, array.

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
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgumentError(f"{argument}: expected every column's name once, found {twice} more than once.")
    matrix = as_numbers(dmat if cells is None else cells.rows(dmat, argument), argument)
    if matrix.ndim != 2 or matrix.shape[0] != n_cells or matrix.shape[1] == 0:
        raise InvalidArgumentError(f"{argument}: expected shape ({n_cells}, coefficients), found {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InvalidArgumentError(f"{argument}: NaN or infinite entries.")
    return DesignMatrix(matrix, names or [f"coef{i}" for i in range(matrix.shape[1])])


def check_full_rank(matrix: Array, names: Sequence[str], argument: str, *, hint: str = "") -> None:
    """Raise where columns are linear combinations of the others, and name them.

    Columns are centred first where the design has an intercept, so that a date, whose mean is thousands of times its
    spread, is not taken for a constant; what rounding leaves of a column is no column. The message ends in ``hint``.
    """
    scale = np.sqrt(np.square(matrix / np.maximum(np.abs(matrix).max(0), 1e-300)).sum(0)) * np.abs(matrix).max(0)
    if (scale == 0).any():
        empty = [names[int(i)] for i in np.flatnonzero(scale == 0)]
        raise InvalidArgumentError(f"{argument}: columns {empty} are zero for every cell; remove them.")
    odd = [names[int(i)] for i in np.flatnonzero((scale < SIZES[0]) | (scale > SIZES[1]))]
    if odd:
        raise InvalidArgumentError(
            f"{argument}: columns {odd} have numbers too large or too small to work with; rescale them."
        )
    columns = matrix / scale
    ones = np.full(len(columns), 1 / np.sqrt(len(columns)))
    intercept = bool(np.abs(columns @ np.linalg.lstsq(columns, ones, rcond=None)[0] - ones).max() < 1e-10)
    centered = columns - intercept * columns[0]  # a constant is 0: its mean over many cells would be rounded
    centered -= intercept * centered.mean(0)
    spread = np.sqrt(np.square(centered).sum(0))
    noise = ROUNDING / np.maximum(spread, 1e-300)  # of a column of unit length after centring
    constant = spread < ROUNDING
    kept = np.flatnonzero(~constant)
    dependent = [int(i) for i in np.flatnonzero(constant)[1:]]
    if len(kept):
        _, r, pivot = scipy.linalg.qr(centered[:, kept] / spread[kept], mode="economic", pivoting=True)
        size = np.abs(np.diag(r))
        tolerance = max(INDEPENDENT, float(noise[kept].max()))
        rank = int((size > tolerance).sum())
        spare = int(intercept and not constant.any())  # the intercept is made of the others
        if len(kept) - rank > spare:
            dependent += [int(kept[i]) for i in pivot[rank:]]
    if dependent:
        rank = matrix.shape[1] - len(dependent)
        raise InvalidArgumentError(
            f"{argument}: the design has rank {rank} with {matrix.shape[1]} columns; "
            f"{sorted(names[i] for i in dependent)} depend linearly on the others. Drop terms, or constrain them "
            f"(constraints_loc).{hint}"
        )
