"""Where spots are, as an AnnData holds it: a key of ``obsm``, or columns of ``obs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._tables.columns import is_numeric, numbers, one_column
from pyrosplice._tables.containers import as_dense
from pyrosplice._tables.names import by_name
from pyrosplice.errors import InvalidArgumentError, listed

SpatialKey = str | tuple[str, ...]  # a key of obsm, or columns of obs


def spatial_key_of(given: Any, argument: str = "spatial_key") -> SpatialKey:
    """Read where coordinates are: one key of ``obsm``, or two or three columns of ``obs``, as a tuple.

    Raises
    ------
    InvalidArgumentError
        For anything else; a column that is named twice.
    """
    if isinstance(given, str):
        return given
    columns = tuple(given) if isinstance(given, (list, tuple)) else ()
    if len(columns) not in (2, 3) or not all(isinstance(name, str) for name in columns):
        raise InvalidArgumentError(
            f"{argument}: expected a key of adata.obsm, or two or three columns of adata.obs such as ('x', 'y'), found "
            f"{given!r}."
        )
    if len(set(columns)) < len(columns):
        raise InvalidArgumentError(f"{argument}: expected different columns, found {list(columns)}.")
    return columns


def coordinates_name(key: SpatialKey, of: str = "adata") -> str:
    """What errors call the coordinates of a key."""
    return f"{of}.obsm[{key!r}]" if isinstance(key, str) else f"{of}.obs[{list(key)!r}]"


def has_coordinates(key: SpatialKey, obsm: Mapping[str, Any], obs: pd.DataFrame | None) -> bool:
    """Whether the key, or every column, is there."""
    if isinstance(key, str):
        return key in obsm
    return obs is not None and set(key) <= set(map(str, obs.columns))


def read_coordinates(
    key: SpatialKey, obsm: Mapping[str, Any], obs: pd.DataFrame | None, *, of: str = "adata", hint: str = ""
) -> NDArray[np.float64]:
    """Coordinates ``(N, D)`` float64 in the order of ``obs``; of a table in ``obsm``, paired by name.

    Parameters
    ----------
    key
        As :func:`spatial_key_of` returns it.
    obsm, obs
        Of the AnnData; None for ``obs`` that is not known, by whose names nothing is then paired.
    of
        What errors call the AnnData.
    hint
        What errors say at their end.

    Raises
    ------
    InvalidArgumentError
        Keys or columns that are not there; what is no number; columns with missing values.
    """
    name = coordinates_name(key, of)
    if isinstance(key, str):
        if key not in set(map(str, obsm)):
            beside = "" if obs is None or key not in obs else f" obs has a column {key!r}: name all columns, (x, y)."
            raise InvalidArgumentError(f"spatial_key: {of}.obsm has no {key!r}; it has {sorted(obsm)}.{beside}{hint}")
        return as_dense(by_name(obsm[key], None if obs is None else obs.index, name, what="spot"), name)
    if obs is None or not has_coordinates(key, obsm, obs):
        there = [] if obs is None else [str(column) for column in obs.columns]
        lacking = [column for column in key if column not in there]
        raise InvalidArgumentError(f"spatial_key: {of}.obs has no {lacking}; it has {listed(there)}.{hint}")
    return np.column_stack([_numbers(one_column(obs, column, "spatial_key"), column, name) for column in key])


def _numbers(column: pd.Series, name: str, argument: str) -> NDArray[np.float64]:
    if not is_numeric(column):
        raise InvalidArgumentError(f"{argument}: column {name!r} has no numbers, but {column.dtype}.")
    return numbers(column, name, argument)
