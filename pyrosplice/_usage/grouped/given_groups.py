"""Groups of spots as a person gives them to a model of counts: labels, effects of a table's columns, terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import by_name
from pyrosplice.effects._effect import Effect
from pyrosplice.effects._field import Field, Independent
from pyrosplice.effects._group_terms import Groups, random_effects
from pyrosplice.errors import InvalidArgumentError, call_hint
from pyrosplice.glmm._bound_effects import BoundEffects, FittedSites, bind_effects

ARGUMENT = "groups"
SAID = (str, Effect, Field, Independent, type)  # what is no label, or a text
UNNAMED = "group"  # what a factor is called whose labels have no name
EXPECTED = (
    "labels of the spots, {'section': labels}, Groups('section') or '(1 | section)' with the table that has the column"
)


def read_groups(groups: object, table: object, n_spots: int, names: pd.Index | None) -> BoundEffects:
    """Effects of groups from whatever says them.

    Parameters
    ----------
    groups
        Labels, a mapping of names to labels, an effect, random terms of a formula, or a list of effects and terms.
    table
        Columns of effects and terms, a row a spot; None for labels alone.
    n_spots, names
        Of the counts.

    Raises
    ------
    InvalidArgumentError
        Something else; a table that nothing is read from, or none where columns are needed; another number of labels
        or rows than spots; what effects refuse.
    """
    if isinstance(groups, Mapping):
        return _of_labels(groups, table, n_spots, names)
    every = [groups] if isinstance(groups, SAID) else list(groups) if isinstance(groups, (list, tuple)) else []
    terms = any(isinstance(one, str) and "|" in one for one in every) and len(every) != n_spots
    if not (isinstance(groups, SAID) or terms or any(isinstance(one, SAID[1:]) for one in every)):
        name = getattr(groups, "name", None)
        return _of_labels({UNNAMED if name is None else name: groups}, table, n_spots, names)
    for one in every:
        if not (isinstance(one, Effect) or (isinstance(one, str) and "|" in one)):
            raise InvalidArgumentError(f"{ARGUMENT}: expected {EXPECTED}, found {one!r}{call_hint(one, Effect)}.")
    if table is None:
        raise InvalidArgumentError(f"table: {groups!r} is of columns; give the table of the spots that has them.")
    frame, given = _table(table, n_spots, names), list[Effect]()
    for one in every:
        given += [one] if isinstance(one, Effect) else _terms(str(one), frame)
    return bind_effects(given, frame, FittedSites(), what="spots", stacklevel=4)


def _terms(text: str, table: pd.DataFrame) -> tuple[Groups, ...]:
    """Random terms, with or without the ``~`` of a formula; anything fixed beside them is refused."""
    rest, terms = random_effects(f"~ {text.strip().removeprefix('~').strip()}", table, ARGUMENT)
    if rest.replace(" ", "") not in ("~1", "~"):
        raise InvalidArgumentError(
            f"{ARGUMENT}: expected random terms such as '(1 | section)' alone, found {text!r}; covariates are those of "
            "design_mtx."
        )
    return terms


def _of_labels(labels: Mapping[Any, Any], table: object, n_spots: int, names: pd.Index | None) -> BoundEffects:
    """An intercept for each label of each name."""
    if table is not None:
        raise InvalidArgumentError(
            f"{ARGUMENT}: expected {EXPECTED}, found labels, for which nothing is read from table; leave that out."
        )
    if not labels:
        raise InvalidArgumentError(f"{ARGUMENT}: expected {EXPECTED}, found none.")
    columns = {}
    for key, own in labels.items():
        name = f"{ARGUMENT}[{key!r}]" if len(labels) > 1 else ARGUMENT
        if not isinstance(key, str) or not key.strip():
            raise InvalidArgumentError(f"{ARGUMENT}: expected names of grouping factors, found {key!r}.")
        paired = by_name(own, names, name, what="spot") if isinstance(own, pd.Series) else own
        if isinstance(paired, (str, Effect)) or not hasattr(paired, "__len__"):
            raise InvalidArgumentError(f"{name}: expected {n_spots} labels, one a spot, found {paired!r}.")
        read = read_labels(paired, name)
        if len(read.codes) != n_spots:
            raise InvalidArgumentError(f"{name}: expected {n_spots} labels, one a spot, found {len(read.codes)}.")
        columns[key] = read.categorical
    frame = pd.DataFrame(columns)
    return bind_effects([Groups(key) for key in columns], frame, FittedSites(), what="spots", stacklevel=5)


def _table(table: object, n_spots: int, names: pd.Index | None) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame):
        raise InvalidArgumentError(f"table: expected a DataFrame with a row a spot, found {type(table).__name__}.")
    if len(table) != n_spots:
        raise InvalidArgumentError(f"table: expected {n_spots} rows, one a spot, found {len(table)}.")
    paired: pd.DataFrame = by_name(table, names, "table", what="spot")
    return paired
