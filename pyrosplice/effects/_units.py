r"""What the units of a coefficient are: observations, or the groups whose random effects it is compared with.

A contrast w'β is *carried* by the effects of a factor if no data within its groups tell about it once every group has
these effects of its own: w is outside of the row space of (I − P) X, P the projection on the effects' columns within
groups. Condition is carried by (1 | donor) if donors have one condition each, and by (1 + condition | donor) in any
case. Of several factors that carry a contrast the one with the fewest groups has its units; without any, observations
are its units. All of this depends on what X and the effects span, not on how they are coded.

Between–within degrees of freedom are those of analysis of variance (Pinheiro and Bates 2000, Mixed-Effects Models in S
and S-PLUS, 2.4.2): groups less those of the factor that they are nested in, less the coefficients that the factor
carries and that one does not. For a slope it is the number of groups that know about it less the coefficients that it
is explained by. Where a contrast varies within some groups and between the others, only the former count, as in
nlme, which is on the safe side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._level_spaces import (
    Rows,
    orthogonal_turn,
    rank_within,
    rows_of_levels,
    scaling_turn,
    spanned,
    without,
)
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
ESTIMABLE = 1e-6  # part of a contrast outside of what data tell, below which it is rounding


class NamedDesign(Protocol):
    """What is asked of the design of a formula: columns, their names, terms and variables, and which are numbers."""

    @property
    def matrix(self) -> Array: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def terms(self) -> list[str]: ...
    @property
    def variables(self) -> list[frozenset[str]]: ...
    @property
    def numeric(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Coefficients:
    """The fixed part of a model.

    Attributes
    ----------
    matrix : (N, P)
        Design, of full rank.
    names
        P names of its columns.
    terms
        The term of a formula that each column is of, for sentences; the names, where none are given.
    numeric
        Names of columns that are covariates of observations, for which there is no nested effect.
    """

    matrix: Array
    names: Sequence[str]
    terms: Sequence[str] = ()
    numeric: Sequence[str] = ()

    @classmethod
    def of(cls, design: NamedDesign) -> Coefficients:
        """The columns of a formula."""
        covariates = [
            name
            for name, used in zip(design.names, design.variables, strict=True)
            if used and used <= set(design.numeric)
        ]
        return cls(design.matrix, design.names, design.terms, covariates)

    @cached_property
    def turn(self) -> Array:
        """T ``(P, P)`` that makes the columns uncorrelated, of one size: near columns keep what they differ in."""
        turn = orthogonal_turn(self.matrix)
        return scaling_turn(self.matrix) if turn is None else turn

    @cached_property
    def turned(self) -> Array:
        """Columns times T, ``(N, P)``, one by one, so that equal rows stay equal."""
        return np.stack([(self.matrix * own).sum(1) for own in self.turn.T], 1)


@dataclass(frozen=True)
class ContrastUnits:
    """Units of a contrast.

    Attributes
    ----------
    unit, n_units
        Their factor, or what observations are called, and their number.
    df
        Between–within degrees of freedom.
    spent
        Degrees of freedom that coefficients of the same units take: ``df + spent`` are what these units have in all.
    of_observations
        Whether observations are the units.
    compared
        By place of an effect among those of the model, squares ``(q, q)`` of the combinations of its columns that the
        contrast is compared with; none where observations are the units.
    """

    unit: str
    n_units: int
    df: float
    spent: float
    of_observations: bool = False
    compared: Mapping[int, Array] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class _Stratum:
    """All effects of one grouping factor.

    Attributes
    ----------
    name
        The factor.
    levels : (N,)
    groups
        Observations of each group.
    columns : (N, q)
        Those of all its effects.
    intercept
        Whether these span a constant within each group.
    effects
        Number of columns of each, by its place among all effects.
    """

    name: str
    levels: NDArray[np.intp]
    groups: Rows
    columns: Array
    intercept: bool
    effects: Mapping[int, int]

    def compared(self, squares: Array) -> dict[int, Array]:
        """Parts of ``squares`` (q, q) of all columns that are of each effect, where there are any."""
        ends = np.cumsum(list(self.effects.values()))
        parts = {
            place: squares[end - width : end, end - width : end]
            for (place, width), end in zip(self.effects.items(), ends, strict=True)
        }
        return {place: part for place, part in parts.items() if part.any()}

    @property
    def constant(self) -> Array:
        """A column of ones where an effect of the factor is one, else no column."""
        return np.ones((len(self.levels), int(self.intercept)))


@dataclass(frozen=True, repr=False, eq=False)
class DesignUnits:
    """Units of every contrast of a design beside some effects of groups.

    Parameters
    ----------
    coefficients
        The design.
    blocks
        Effects of groups (:func:`pyrosplice.effects._effect.bind`).
    observations
        What observations are called.
    sections
        A factor within whose levels a field is: name, and level of each observation ``(N,)``. None for no field, or
        for one section.
    """

    coefficients: Coefficients
    blocks: Sequence[GroupBlock]
    observations: str = "cells"
    sections: tuple[str, NDArray[np.intp]] | None = None
    _strata: tuple[_Stratum, ...] = field(init=False, repr=False)
    _sections: Rows = field(init=False, repr=False)
    _spaces: dict[tuple[int, bytes], Array] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_strata", _strata(self.blocks))
        object.__setattr__(self, "_sections", () if self.sections is None else rows_of_levels(self.sections[1]))

    def of(self, contrast: Array) -> ContrastUnits:
        """Units of w'β, w ``(P,)``.

        Raises
        ------
        InvalidArgumentError
            No more units than coefficients that are compared with them.
        """
        units = self.describe(contrast)
        if units.df < 1:
            raise InvalidArgumentError(
                f"{self._subject(contrast)}: expected more units than coefficients, found {units.n_units} "
                f"({units.unit}), whose differences the model's coefficients and effects explain all. Take "
                "covariates out of the formula, or test it where there are more; if it varies within few groups only, "
                "leave a part of these out, so that it varies within none."
            )
        return units

    def warning(self, contrast: Array, *, samples: str = "sample") -> str | None:
        """What is wrong with observations as the units of w'β; None where nothing is.

        Parameters
        ----------
        samples
            Column of the samples of a group, or what it would be called.
        """
        between = self._between_sections(contrast)
        if between is not None:
            return between
        varying = [s for s in self._strata if s.intercept and not self._carries(contrast, s.groups, s.constant)]
        if not varying or any(self._carries(contrast, s.groups, s.columns) for s in self._strata):
            return None
        largest = max(varying, key=lambda stratum: len(stratum.groups))
        names = [self.coefficients.names[i] for i in np.flatnonzero(contrast).tolist()]
        slope = f"(1 + {self._subject(contrast)} | {largest.name})"
        nested = "" if set(names) & set(self.coefficients.numeric) else f"(1 | {largest.name}/{samples}) or "
        return (
            f"{self._subject(contrast)} varies within {largest.name}; {self.observations} are the units of this test. "
            f"Add {nested}{slope}."
        )

    def _between_sections(self, contrast: Array) -> str | None:
        """What is wrong where sections differ in a contrast, and only a field in each stands for their differences."""
        if self.sections is None or any(self._carries(contrast, s.groups, s.columns) for s in self._strata):
            return None
        name, levels = self.sections
        if not self._carries(contrast, self._sections, np.ones((len(levels), 1))):
            return None
        return (
            f"{self._subject(contrast)} does not vary within {name}, whose differences the field does not stand for; "
            f"{self.observations} are the units of this test. Add (1 | {name})."
        )

    def table(self) -> pd.DataFrame:
        """One row a coefficient: ``coefficient``, ``unit``, ``n_units``, ``df``, between–within, 0 for none."""
        every = [self.describe(row) for row in np.eye(len(self.coefficients.names))]
        columns = [list(self.coefficients.names), [u.unit for u in every], [u.n_units for u in every]]
        parts = dict(zip(("coefficient", "unit", "n_units"), columns, strict=True))
        return pd.DataFrame({**parts, "df": [max(u.df, 0.0) for u in every]})

    def describe(self, contrast: Array) -> ContrastUnits:
        """Units of w'β, also where their degrees of freedom are none."""
        weights = np.asarray(contrast, dtype=np.float64)
        n_coefficients = len(self.coefficients.names)
        if weights.shape != (n_coefficients,) or not np.isfinite(weights).all() or not weights.any():
            raise InvalidArgumentError(
                f"contrast: expected {n_coefficients} finite weights, not all zero, found {contrast!r}."
            )
        for stratum in sorted(self._strata, key=lambda s: len(s.groups)):
            if stratum.intercept and self._carries(weights, stratum.groups, stratum.constant):
                return self._between(weights, stratum)
            if self._carries(weights, stratum.groups, stratum.columns):
                return self._by_slope(weights, stratum)
        n = len(self.coefficients.matrix)
        innermost = [s for s in self._strata if not any(o is not s and _nested(o, s) for o in self._strata)]
        taken = sum(int(rank_within(s.groups, s.columns).sum()) for s in innermost)
        left = [self._rank(s.groups, s.columns) for s in innermost]
        spent = float(min(left, default=n_coefficients))
        return ContrastUnits(self.observations, n, n - taken - spent, spent, of_observations=True)

    def _between(self, contrast: Array, stratum: _Stratum) -> ContrastUnits:
        """Groups that have one value each."""
        outer = [s for s in self._strata if s is not stratum and s.intercept and _nested(stratum, s)]
        outer = [s for s in outer if not self._carries(contrast, s.groups, s.constant)]
        around = max(outer, key=lambda s: len(s.groups), default=None)
        n, within = len(stratum.groups), self._rank(stratum.groups, stratum.constant)
        whole = np.linalg.lstsq(stratum.columns, stratum.constant[:, 0], rcond=None)[0]
        compared = stratum.compared(np.where(np.abs(np.outer(whole, whole)) > ESTIMABLE, np.outer(whole, whole), 0.0))
        if around is None:
            spent = float(len(contrast) - within)
            return ContrastUnits(stratum.name, n, n - spent, spent, compared=compared)
        spent = float(self._rank(around.groups, around.constant) - within)
        return ContrastUnits(stratum.name, n, n - len(around.groups) - spent, spent, compared=compared)

    def _by_slope(self, contrast: Array, stratum: _Stratum) -> ContrastUnits:
        """Groups that have slopes of their own of what the contrast compares."""
        groups, constant = stratum.groups, stratum.constant
        slopes = [k for k, column in enumerate(stratum.columns.T) if not _constant(column)]
        alone = {k: np.hstack([constant, stratum.columns[:, [k]]]) for k in slopes}
        essential = [k for k in slopes if self._carries(contrast, groups, alone[k])] or slopes
        others = np.hstack([constant, np.delete(stratum.columns, essential, axis=1)])
        directions = rank_within(groups, stratum.columns) - rank_within(groups, others)
        explained = self._rank(groups, others) - self._rank(groups, stratum.columns)
        n = int((directions > 0).sum())
        spent = float(explained / directions.max())
        compared = stratum.compared(np.diag(np.isin(np.arange(stratum.columns.shape[1]), essential).astype(float)))
        df = float(directions.sum() / directions.max()) - spent
        return ContrastUnits(stratum.name, n, df, spent, compared=compared)

    def _left(self, groups: Rows, columns: Array) -> Array:
        """Right singular vectors ``(P, r)`` of what is left of the scaled design within groups; found once."""
        key = id(groups), columns.tobytes()  # groups are the strata's, which live as long as this
        if key not in self._spaces:
            left = without(groups, columns, self.coefficients.turned) / np.sqrt(len(columns))
            _, s, vt = np.linalg.svd(left, full_matrices=False)
            self._spaces[key] = vt[s > ESTIMABLE].T
        return self._spaces[key]

    def _rank(self, groups: Rows, columns: Array) -> int:
        return int(self._left(groups, columns).shape[1])

    def _carries(self, contrast: Array, groups: Rows, columns: Array) -> bool:
        """Whether data within groups that have effects of these columns tell nothing of the contrast."""
        scaled = contrast @ self.coefficients.turn
        space = self._left(groups, columns)
        outside = scaled - space @ (space.T @ scaled)
        return bool(np.linalg.norm(outside) > ESTIMABLE * np.linalg.norm(scaled))

    def _subject(self, contrast: Array) -> str:
        """What a contrast is about: its terms."""
        terms = self.coefficients.terms or self.coefficients.names
        return " + ".join(dict.fromkeys(terms[i] for i in np.flatnonzero(contrast).tolist()))


def describe_units(
    coefficients: Coefficients, blocks: Sequence[GroupBlock], *, observations: str = "cells"
) -> pd.DataFrame:
    """Units of every coefficient: columns ``coefficient``, ``unit``, ``n_units`` and ``df``, between–within."""
    return DesignUnits(coefficients, blocks, observations).table()


def _strata(blocks: Sequence[GroupBlock]) -> tuple[_Stratum, ...]:
    """Effects by what they group: factors that put together the same observations are one."""
    alike: dict[bytes, list[int]] = {}
    for place, block in enumerate(blocks):
        alike.setdefault(pd.factorize(block.levels)[0].tobytes(), []).append(place)
    out = []
    for places in alike.values():
        same = [blocks[place] for place in places]
        levels, columns = same[0].levels, np.hstack([block.columns for block in same])
        groups = rows_of_levels(levels)
        name = same[0].name.rpartition("|")[2].strip()
        intercept = spanned(groups, columns, np.ones(len(levels)))
        widths = {place: blocks[place].columns.shape[1] for place in places}
        out.append(_Stratum(name, levels, groups, columns, intercept, widths))
    return tuple(out)


def _nested(inner: _Stratum, outer: _Stratum) -> bool:
    """Whether every group of ``inner`` is in one of ``outer``."""
    return len(inner.groups) > len(outer.groups) and all(
        (outer.levels[rows] == outer.levels[rows[0]]).all() for rows in inner.groups if len(rows)
    )


def _constant(column: Array) -> bool:
    return bool(column.min() == column.max())
