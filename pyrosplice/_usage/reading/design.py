"""Covariates: from arrays, tables, columns of ``obs`` or a formula to one checked matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._linalg.rank import collinear_columns, constant_columns
from pyrosplice._tables.columns import complete_cells, one_column, typed_column
from pyrosplice._tables.containers import as_dense
from pyrosplice._tables.formulas import FormulaDesign, complete_rows, read_formula
from pyrosplice._tables.labels import Labels
from pyrosplice._tables.names import by_name
from pyrosplice.effects._group_terms import Groups, random_effects
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
ARGUMENT = "design_mtx"
RANDOM_EFFECTS = "write random terms as (1 | section) or (1 + covariate | donor)"


@dataclass(frozen=True)
class Design:
    """Covariates of every spot, without the intercept (the models have their own).

    Attributes
    ----------
    values
        ``(N, P)``, float64.
    names
        P names, unique.
    factors
        For each covariate the name of what it came from. Covariates of one factor are the levels of a categorical
        column: they sum to one, so with an intercept one of them is redundant.
    given_terms
        For each covariate the term of a formula that it came from; empty where there was no formula.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.data import build_design
    >>> obs = pd.DataFrame({"layer": ["L1", "L1", "L2", "L3"], "depth": [1.0, 2.0, 4.0, 3.0]})
    >>> design = build_design(["layer", "depth"], obs)
    >>> design.names, design.factors, design.values.shape
    (('layer_L1', 'layer_L2', 'layer_L3', 'depth'), ('layer', 'layer', 'layer', 'depth'), (4, 4))
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    factors: tuple[str, ...]
    given_terms: tuple[str, ...] = ()

    def take(self, spots: NDArray[Any]) -> Design:
        """Take the covariates of some spots: a mask, or positions in any order.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> from pyrosplice.data import build_design
        >>> design = build_design("depth", pd.DataFrame({"depth": [1.0, 2.0, 4.0, 3.0]}))
        >>> design.take(np.array([2, 0])).values.ravel().tolist()
        [4.0, 1.0]
        """
        return replace(self, values=self.values[spots])

    def only(self, columns: Sequence[int]) -> Design:
        """Some of the covariates, which must be linearly independent; each is then a factor of its own.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.data import build_design
        >>> obs = pd.DataFrame({"layer": ["L1", "L2", "L2"], "depth": [1.0, 2.0, 4.0]})
        >>> design = build_design(["layer", "depth"], obs)
        >>> design.only([1, 2]).names
        ('layer_L2', 'depth')
        """
        names = tuple(self.names[i] for i in columns)
        return Design(np.ascontiguousarray(self.values[:, list(columns)]), names, names)

    @property
    def against_first(self) -> Design:
        """The levels of each factor against its first one, as a formula codes them: columns that are estimable."""
        kept = self.estimable
        if len(kept) == len(self.names):
            return self
        names, terms = (tuple(own[i] for i in kept) for own in (self.names, self.terms))
        return Design(np.ascontiguousarray(self.reduced), names, names, terms)

    @property
    def terms(self) -> tuple[str, ...]:
        """What belongs together: for each covariate its term of the formula, else its factor."""
        return self.given_terms or self.factors

    @property
    def estimable(self) -> list[int]:
        """Covariates left when the first level of every factor is the reference."""
        repeated = {factor for factor in self.factors if self.factors.count(factor) > 1}
        first = {self.factors.index(factor) for factor in repeated}
        return [i for i in range(len(self.names)) if i not in first]

    @property
    def reduced(self) -> NDArray[np.float64]:
        """Covariates that can be estimated together, ``(N, P')``: all but the first level of every factor."""
        return self.values[:, self.estimable]

    @property
    def coding(self) -> NDArray[np.float64]:
        """Matrix ``(P + 1, P' + 1)`` from coefficients of ``reduced`` and intercept to those of all covariates.

        Effects of the levels of a factor are centred: they sum to zero, and the intercept takes up their mean, so that
        the linear predictor stays the same and no level is special.
        """
        kept = self.estimable
        matrix = np.zeros((len(self.names) + 1, len(kept) + 1))
        matrix[kept, np.arange(len(kept))] = 1.0
        matrix[-1, -1] = 1.0
        for factor in {factor for factor in self.factors if self.factors.count(factor) > 1}:
            levels = [i for i, name in enumerate(self.factors) if name == factor]
            mean = matrix[levels].mean(0)
            matrix[levels] -= mean
            matrix[-1] += mean
        return matrix

    def check(self) -> None:
        """Raise if a covariate is constant, or a combination of the intercept and the others, but for rounding.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.data import build_design
        >>> design = build_design("depth", pd.DataFrame({"depth": [2.0, 2.0, 2.0]}))
        >>> design.check()
        Traceback (most recent call last):
            ...
        pyrosplice.errors.InvalidArgumentError: design_mtx: expected covariates that vary between spots, found
        constant 'depth' (value 2); the models have an intercept already.
        """
        constant = constant_columns(torch.from_numpy(self.values))
        if constant:
            name, value = self.names[constant[0]], self.values[0, constant[0]]
            raise InvalidArgumentError(
                f"design_mtx: expected covariates that vary between spots, found constant {name!r} "
                f"(value {value:g}); the models have an intercept already."
            )
        if self.reduced.shape[1] + 1 >= len(self.values):
            raise InvalidArgumentError(
                f"design_mtx: expected fewer covariates than spots, found {self.reduced.shape[1]} beside the intercept "
                f"and {len(self.values)} spots ({', '.join(self.names[:3])}, …)."
            )
        dependent = collinear_columns(torch.from_numpy(self.reduced))
        if dependent:
            name = self.names[self.estimable[dependent[0]]]
            raise InvalidArgumentError(
                f"design_mtx: expected linearly independent covariates, found {name!r} collinear with the intercept "
                "and the covariates before it. Leave it out."
            )


def build_design(
    design_mtx: Any,
    obs: pd.DataFrame,
    *,
    covariate_names: Sequence[str] | None = None,
    spots: NDArray[np.bool_] | None = None,
) -> Design:
    """Covariates of the spots of ``obs``.

    Parameters
    ----------
    design_mtx
        Array, tensor or sparse matrix ``(N, P)`` or ``(N,)``; DataFrame or Series with N rows (matched by name where
        it has the spots' names, in whatever order, by position where it has none of them); name of a column of
        ``obs`` or a list of names; or a one-sided formula on ``obs`` such as ``"~ region + log(total)"`` (a column
        that is called so goes before). Everything that is no number (text, booleans, categoricals, dates) becomes one
        covariate a level, ``column_level``; the columns of arrays are called ``factor_1``, …
    obs
        Table of spots.
    covariate_names
        P names to use instead.
    spots
        Mask of the spots to make covariates of, ``(N,)``; all by default. Levels that only others have are none.

    Raises
    ------
    InvalidArgumentError
        A column that ``obs`` lacks; another number of rows than spots; names that agree in part; spots without a label
        or a number; values that are neither; a formula that cannot be read; wrong number of names.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.data import build_design
    >>> obs = pd.DataFrame({"layer": ["L1", "L1", "L2", "L3"], "depth": [1.0, 2.0, 4.0, 3.0]})
    >>> build_design("~ layer + log(depth)", obs).names
    ('layer[T.L2]', 'layer[T.L3]', 'log(depth)')
    >>> build_design(["layer"], obs).names  # without a formula, one covariate a level
    ('layer_L1', 'layer_L2', 'layer_L3')
    """
    formula, table = _formula_and_table(design_mtx, obs)
    table = table if spots is None else table[spots]
    values, names, factors, terms = _from_columns(table) if formula is None else _from_formula(formula, table)
    if covariate_names is not None:
        names = ["" if name is None else str(name) for name in covariate_names]
    if len(names) != values.shape[1]:
        raise InvalidArgumentError(f"covariate_names: expected {values.shape[1]} names, found {len(names)}: {names}.")
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise InvalidArgumentError(f"covariate_names: expected unique names, none of them blank, found {names}.")
    return Design(np.ascontiguousarray(values), tuple(names), tuple(factors), tuple(terms))


def split_design(design_mtx: Any, obs: pd.DataFrame) -> tuple[Any, tuple[Groups, ...]]:
    """Covariates without the random terms of their formula, and these terms; none of what is no formula."""
    return random_effects(design_mtx, obs, ARGUMENT) if formula_of(design_mtx, obs) is not None else (design_mtx, ())


def is_intercept(formula: str, obs: pd.DataFrame) -> bool:
    """Whether what random terms left of a formula is an intercept only."""
    return list(read_formula(formula, obs, ARGUMENT).names) == ["Intercept"]


def complete_spots(design_mtx: Any, obs: pd.DataFrame) -> NDArray[np.bool_]:
    """Which spots have a label or a number in everything that a design uses, ``(N,)``."""
    formula, table = _formula_and_table(design_mtx, obs)
    if formula is not None:
        return complete_rows(formula, table, ARGUMENT)
    return complete_cells(table, table.columns, ARGUMENT)


def formula_of(design_mtx: Any, obs: pd.DataFrame) -> str | None:
    """The formula that covariates are asked for by, if they are: a column may be called so."""
    return design_mtx if isinstance(design_mtx, str) and "~" in design_mtx and design_mtx not in obs.columns else None


def covariates_again(design: Design, formula: str | None, obs: pd.DataFrame, new: pd.DataFrame, argument: str) -> Array:
    """Covariates of a design for the rows of another table, ``(N', P)``.

    Parameters
    ----------
    design, formula, obs
        The design, the formula that it is of (None if of columns) and the table that it was made of.
    new
        The other table, with the same columns.
    argument
        Name of the table that errors begin with.

    Raises
    ------
    InvalidArgumentError
        A column that is absent or has missing values; a level that the first table did not have; covariates whose
        columns are not known by their names any more.
    """
    if formula is not None:
        made = read_formula(formula, obs, ARGUMENT, random_effects=RANDOM_EFFECTS)
        return made.again(new, argument)[:, _covariates_of(made)]
    pieces = []
    for factor in dict.fromkeys(design.factors):
        own = [name for name, source in zip(design.names, design.factors, strict=True) if source == factor]
        levels = [name.removeprefix(f"{factor}_") for name in own]
        if design.given_terms or (len(own) > 1 and any(name == level for name, level in zip(own, levels, strict=True))):
            raise InvalidArgumentError(
                f"{argument}: what {own[0]!r} was made of is not known any more; give the covariates "
                f"{list(design.names)} themselves, as design_mtx."
            )
        column = typed_column(new, factor, argument, as_numeric=[factor] if len(own) == 1 else [])
        if isinstance(column, Labels):
            unseen = sorted(set(column.levels) - set(levels))
            if unseen:
                raise InvalidArgumentError(
                    f"{argument}: column {factor!r} has levels that the fit never saw: {unseen}; it saw {levels}."
                )
            pieces.append((column.names[:, None] == np.array(levels, dtype=object)).astype(np.float64))
        else:
            pieces.append(column[:, None])
    return np.concatenate(pieces, axis=1)


def _formula_and_table(design_mtx: Any, obs: pd.DataFrame) -> tuple[str | None, pd.DataFrame]:
    """A formula, if it is one, and the columns that covariates are made of, in the order of the spots."""
    formula = formula_of(design_mtx, obs)
    if formula is not None:
        return formula, obs
    if isinstance(design_mtx, str):
        return None, _columns([design_mtx], obs)
    if isinstance(design_mtx, (list, tuple, pd.Index)) and all(isinstance(name, str) for name in design_mtx):
        return None, _columns(list(design_mtx), obs)
    for read in ("to_memory", "to_pandas"):  # of a lazy AnnData's obs; of xarray's arrays and other libraries' tables
        design_mtx = getattr(design_mtx, read)() if hasattr(design_mtx, read) else design_mtx
    table = _table(design_mtx)
    if len(table) != len(obs):
        raise InvalidArgumentError(f"design_mtx: expected {len(obs)} rows (spots), found {len(table)}.")
    if isinstance(design_mtx, (pd.Series, pd.DataFrame)):
        table = by_name(table, obs.index, ARGUMENT, what="spot")
    return None, table.set_axis(obs.index, axis=0).set_axis([str(name) for name in table.columns], axis=1)


def _table(design_mtx: Any) -> pd.DataFrame:
    """A table of whatever holds covariates; arrays' rows have no names."""
    if isinstance(design_mtx, pd.api.extensions.ExtensionArray):
        design_mtx = pd.Series(design_mtx)
    if isinstance(design_mtx, pd.Series):
        return design_mtx.to_frame("factor_1" if design_mtx.name is None else design_mtx.name)
    if isinstance(design_mtx, pd.DataFrame):
        return design_mtx
    values = as_dense(design_mtx, ARGUMENT)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] == 0:
        raise InvalidArgumentError(f"design_mtx: expected shape (n_spots, n_factors), found {values.shape}.")
    return pd.DataFrame(values, columns=[f"factor_{i + 1}" for i in range(values.shape[1])])


def _columns(names: list[str], obs: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in names if name not in set(map(str, obs.columns))]
    if missing or not names:
        raise InvalidArgumentError(
            f"design_mtx: expected columns of adata.obs, which has {list(map(str, obs.columns))}; found {missing}. "
            "A formula begins with '~'."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"design_mtx: expected every column once, found {twice!r} twice.")
    return pd.DataFrame({name: one_column(obs, name, ARGUMENT) for name in names}, index=obs.index)


def _from_columns(table: pd.DataFrame) -> tuple[Array, list[str], list[str], list[str]]:
    """Covariates and, for each, its name and the name of its source."""
    pieces, names, factors = [], [], []
    for name in table.columns:
        column = typed_column(table, name, ARGUMENT)
        if isinstance(column, Labels):
            pieces.append((column.codes[:, None] == np.arange(len(column.levels))).astype(np.float64))
            names += [f"{name}_{level}" for level in column.levels]
        else:
            pieces.append(column[:, None])
            names.append(name)
        factors += [name] * pieces[-1].shape[1]
    return np.concatenate(pieces, axis=1), names, factors, []


def _from_formula(formula: str, table: pd.DataFrame) -> tuple[Array, list[str], list[str], list[str]]:
    design = read_formula(formula, table, ARGUMENT, random_effects=RANDOM_EFFECTS)
    kept = _covariates_of(design)
    if not kept:
        raise InvalidArgumentError(f"design_mtx: formula {formula!r} has no covariates beside the intercept.")
    names = [design.names[i] for i in kept]
    return design.matrix[:, kept], names, names, [design.terms[i] for i in kept]


def _covariates_of(design: FormulaDesign) -> list[int]:
    """Columns that are no intercept; one of the table may be called 1."""
    return [i for i, term in enumerate(design.terms) if term != "1" or design.variables[i]]
