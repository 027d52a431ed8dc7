"""Random intercepts and slopes of groups, by hand or from the random terms of a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._tables.columns import complete_cells, is_numeric, numbers, one_column
from pyrosplice._tables.formulas import FormulaDesign, complete_rows, formula_source, read_formula
from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import text_names
from pyrosplice._tables.random_terms import RandomTerm, split_random_terms
from pyrosplice.effects._effect import Effect, lower_triangle
from pyrosplice.errors import InvalidArgumentError, check_option

Array = NDArray[np.float64]
GroupCovariance = Literal["full", "diagonal"]


@dataclass(frozen=True, repr=False)
class Groups(Effect):
    """Every group of observations has an intercept of its own, and slopes of its own where those are named.

    Parameters
    ----------
    by
        Column of the table with the groups' names, any labels; of several columns every combination is a group.
    slopes
        One-sided formula of what varies between groups, in lme4's reading: with an intercept unless ``0 +`` stands
        before. ``"~ 1"`` is intercepts only.
    covariance
        ``"full"``: intercept and slopes of a group may be correlated. ``"diagonal"`` (lme4's ``||``): they are not;
        refused for factors and other terms of several columns, whose meaning would depend on their coding.
    as_numeric
        Columns taken as numbers, all others being labels; None decides by type.

    Raises
    ------
    InvalidArgumentError
        Anything else; at :meth:`bind`, columns that are absent, missing labels, a continuous grouping column, and what
        :meth:`Effect.bind` refuses.

    Examples
    --------
    >>> from pyrosplice.effects import Groups
    >>> Groups("donor", slopes="~ 1 + condition")
    Groups('donor', slopes='~ 1 + condition')
    """

    by: str | tuple[str, ...]
    slopes: str = "~ 1"
    covariance: GroupCovariance = "full"
    as_numeric: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        by = text_names(self.by, "by")
        if not by or len(set(by)) < len(by) or not all(name.strip() for name in by):
            raise InvalidArgumentError(f"by: expected a column, or several different ones, found {self.by!r}.")
        object.__setattr__(self, "by", by[0] if len(by) == 1 else tuple(by))
        if not isinstance(self.slopes, str) or not self.slopes.lstrip().startswith("~"):
            raise InvalidArgumentError(f"slopes: expected a formula such as '~ 1 + condition', found {self.slopes!r}.")
        if split_random_terms(self.slopes, "slopes")[1]:
            raise InvalidArgumentError(f"slopes: expected a formula without '|', found {self.slopes!r}.")
        check_option("covariance", self.covariance, get_args(GroupCovariance))
        if self.as_numeric is not None:
            object.__setattr__(self, "as_numeric", tuple(text_names(self.as_numeric, "as_numeric")))

    def __repr__(self) -> str:
        parts = [repr(self.by)]
        parts += [f"slopes={self.slopes!r}"] if self.slopes != "~ 1" else []
        parts += [f"covariance={self.covariance!r}"] if self.covariance != "full" else []
        parts += [f"as_numeric={self.as_numeric!r}"] if self.as_numeric is not None else []
        return f"Groups({', '.join(parts)})"

    @property
    def factor(self) -> str:
        """The grouping factor as a formula writes it, ``"donor:batch"``."""
        return ":".join(name if name.replace(".", "_").isidentifier() else f"`{name}`" for name in self._by)

    @property
    def name(self) -> str:
        """The term as a formula writes it, ``"1 + condition | donor"``."""
        left = self.slopes.strip().removeprefix("~").strip()
        return f"{left} {'|' if self.covariance == 'full' else '||'} {self.factor}"

    @property
    def _by(self) -> tuple[str, ...]:
        return (self.by,) if isinstance(self.by, str) else self.by

    @property
    def _argument(self) -> str:
        return f"effect ({self.name})"

    def complete_rows(self, table: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows have a group and every covariate, ``(N,)``: those that ``missing="drop"`` keeps.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Groups
        >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, None]})
        >>> Groups("donor", slopes="~ 1 + age").complete_rows(cells).tolist()
        [True, True, True, True, True, False]
        """
        groups = complete_cells(table, self._by, self._argument, as_numeric=())
        return groups & complete_rows(self.slopes, table, self._argument, as_numeric=self.as_numeric)

    def levels(self, table: pd.DataFrame) -> pd.Categorical:
        """Group of each row: the combinations that occur, in the order of their columns' levels."""
        codes, paths = np.zeros(len(table), dtype=np.intp), list[tuple[str, ...]]([()])
        for column in self._by:
            series = one_column(table, column, self._argument)
            self._refuse_continuous(series, column)
            labels = read_labels(series, f"{self._argument}: column {column!r}")
            used, codes = np.unique(codes * len(labels.levels) + labels.codes, return_inverse=True)
            pairs = [divmod(int(pair), len(labels.levels)) for pair in used]
            paths = [(*paths[before], labels.levels[own]) for before, own in pairs]
        names = [":".join(path) for path in paths]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgumentError(
                f"{self._argument}: different combinations of {list(self._by)} read the same, {twice!r}; rename levels."
            )
        return pd.Categorical.from_codes(codes, categories=names)

    def columns(self, table: pd.DataFrame) -> pd.DataFrame:
        """Intercept, called ``"1"``, and slopes ``(N, q)``."""
        design = read_formula(self.slopes, table, self._argument, as_numeric=self.as_numeric)
        if self.covariance == "diagonal":
            self._refuse_codings(design)
        names = ["1" if name == "Intercept" else name for name in design.names]
        return pd.DataFrame(design.matrix, columns=names)

    def columns_again(self, table: pd.DataFrame, fitted: pd.DataFrame | None, column_names: Sequence[str]) -> Array:
        """Intercept and slopes of other rows, coded as those that were fitted."""
        if fitted is None:
            raise InvalidArgumentError(f"{self._argument}: its columns are those of a table, and there was none.")
        return read_formula(self.slopes, fitted, self._argument, as_numeric=self.as_numeric).again(
            table, self._argument
        )

    def basis(self, column_names: Sequence[str]) -> Array:
        """Entries of a lower triangle, or of its diagonal, ``(J, q, q)``."""
        every = lower_triangle(column_names)
        kept = [m for (row, column), m in every.items() if row == column or self.covariance == "full"]
        return np.stack(kept)

    def _refuse_continuous(self, series: pd.Series, column: str) -> None:
        named = self.as_numeric is not None and column in self.as_numeric
        fractions = is_numeric(series) and np.mod(numbers(series, column, self._argument), 1).any()
        if named or fractions:
            found = "that is named in as_numeric" if named else "of numbers that are not whole"
            raise InvalidArgumentError(
                f"{self._argument}: expected labels to group by, found a column {column!r} {found}. Its slope for each "
                f"group is (1 + {column} | group)."
            )

    def _refuse_codings(self, design: FormulaDesign) -> None:
        """Raise where uncorrelated effects have no meaning but that of a coding."""
        for term, used in zip(design.terms, design.variables, strict=True):
            factors = sorted(used & set(design.levels))
            if factors or design.terms.count(term) > 1:
                what = f"factor {factors[0]!r}" if factors else f"the {design.terms.count(term)} columns of {term!r}"
                nested = f", or (1 | {self.factor}/{factors[0]}) for an effect of every combination" if factors else ""
                correlated = f"({self.name.replace(' || ', ' | ')})"
                raise InvalidArgumentError(
                    f"{self._argument}: uncorrelated effects of {what} mean another model with every coding. Write "
                    f"{correlated} for correlated ones{nested}."
                )


def random_effects(
    formula: str, table: pd.DataFrame, argument: str, *, as_numeric: Sequence[str] | str | None = None
) -> tuple[str, tuple[Groups, ...]]:
    """The formula without its random terms, and these as effects, in lme4's reading.

    ``(1 | donor)``, ``(1 + condition | donor)``, ``(0 + age | donor)``, ``(1 | donor:batch)``, ``(1 | donor/sample)``,
    which is ``(1 | donor) + (1 | donor:sample)``, and ``(age || donor)`` without correlation.

    Parameters
    ----------
    formula
        One-sided.
    table
        One row an observation; its columns are looked for, their values are read by :func:`bind`.
    argument
        Name of the argument that errors begin with.
    as_numeric
        As for fixed effects: columns taken as numbers, all others being labels; None decides by type.

    Raises
    ------
    InvalidArgumentError
        A term that is none, or names a column that the table does not have.
    """
    rest, terms = split_random_terms(formula, argument)
    numeric = None if as_numeric is None else tuple(text_names(as_numeric, "as_numeric"))
    columns = [str(column) for column in table.columns]
    return rest, tuple(_from_term(term, table, columns, argument, numeric) for term in terms)


def _from_term(
    term: RandomTerm, table: pd.DataFrame, columns: list[str], argument: str, numeric: tuple[str, ...] | None
) -> Groups:
    for name in term.by:
        one_column(table, name, argument)
    formula_source(term.left, columns, argument)
    covariance: GroupCovariance = "full" if term.correlated else "diagonal"
    return Groups(term.by, term.left, covariance, as_numeric=numeric)
