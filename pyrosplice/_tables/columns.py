"""Columns of a table as numbers or labels: one typing for formulas and for columns that are named plainly."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._tables.labels import Labels, read_labels
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]


def typed_column(
    table: pd.DataFrame, name: str, argument: str, *, as_numeric: Collection[str] | None = None
) -> Array | Labels:
    """A column as numbers, all finite, or else labels, none missing.

    Parameters
    ----------
    table, name
        The column.
    argument
        Name of the argument that errors begin with.
    as_numeric
        Columns taken as numbers, all others being labels; None decides by type, see :func:`is_numeric`.

    Raises
    ------
    InvalidArgumentError
        No such column, or two; missing values; values that are neither numbers nor labels.
    """
    column = one_column(table, name, argument)
    if is_numeric(column) if as_numeric is None else name in as_numeric:
        return numbers(column, name, argument if is_numeric(column) else f"{argument}, as_numeric")
    return read_labels(column, f"{argument}: column {name!r}")


def complete_cells(
    table: pd.DataFrame, names: Iterable[str], argument: str, *, as_numeric: Collection[str] | None = None
) -> NDArray[np.bool_]:
    """Which rows have a label or a finite number in every one of some columns, ``(N,)``."""
    complete = np.ones(len(table), dtype=bool)
    for name in names:
        column = one_column(table, name, argument)
        if is_numeric(column) if as_numeric is None else name in as_numeric:
            complete &= np.isfinite(_as_floats(column, name, argument))
        else:
            complete &= ~read_labels(column, f"{argument}: column {name!r}", keep_missing=True).missing
    return complete


def is_numeric(column: pd.Series) -> bool:
    """Whether a column holds numbers, by its type or, of objects, by what they are; booleans are labels."""
    if column.dtype == object:
        kind = pd.api.types.infer_dtype(column, skipna=True)
        return kind in ("integer", "floating", "mixed-integer-float", "decimal")
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def one_column(table: pd.DataFrame, name: str, argument: str) -> pd.Series:
    """The column of that name, whatever the type of the table's names.

    Raises
    ------
    InvalidArgumentError
        None, or several.
    """
    where = [i for i, c in enumerate(table.columns) if str(c) == name]
    if len(where) != 1:
        found = f"{len(where)} columns" if where else "no column"
        columns = [str(c) for c in table.columns]
        raise InvalidArgumentError(f"{argument}: {found} {name!r} in the table, which has {columns}.")
    return table.iloc[:, where[0]]


def numbers(column: pd.Series, name: str, argument: str) -> Array:
    """A column as float64, all finite.

    Raises
    ------
    InvalidArgumentError
        Values that are no numbers, missing or infinite.
    """
    array = _as_floats(column, name, argument)
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise InvalidArgumentError(
            f"{argument}: column {name!r} has {len(wrong)} value(s) missing or infinite (first: row "
            f"{column.index[wrong[0]]!r}); fill them in, or leave those rows out (missing='drop', where the call "
            "takes it)."
        )
    return array


def _as_floats(column: pd.Series, name: str, argument: str) -> Array:
    dates = pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column)
    try:
        if dates or pd.api.types.is_complex_dtype(column):
            raise TypeError(f"dtype {column.dtype}")
        values = pd.Series(column.to_numpy()) if isinstance(column.dtype, pd.CategoricalDtype) else column
        values = values.sparse.to_dense() if isinstance(values.dtype, pd.SparseDtype) else values
        floats = values.astype("Float64") if values.dtype != object else values.where(values.notna(), np.nan)
        return floats.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{argument}: column {name!r} does not hold numbers ({error}).") from error
