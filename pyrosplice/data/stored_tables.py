"""Tables of spots and isoforms as data that any file can hold, of whatever types their columns are."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError, ModelFileError

RESERVED = ("", ".", "..", "_index")  # names that an h5ad file cannot give a column

TAGS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "timestamp": (pd.Timestamp, lambda value: value.isoformat(), pd.Timestamp),
    "datetime": (datetime.datetime, lambda value: value.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda value: value.isoformat(), datetime.date.fromisoformat),
    "bytes": (bytes, lambda value: value.hex(), bytes.fromhex),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
}
"""Values of object columns beside those of JSON: their type, to JSON and back."""


def split_table(table: pd.DataFrame, argument: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table without the columns that an h5ad file would refuse or change, and these as JSON.

    Parameters
    ----------
    table
        ``obs`` or ``var``.
    argument
        What errors call it.

    Returns
    -------
    Plain columns, by text index; and what :func:`join_table` makes the whole table of.

    Raises
    ------
    InvalidArgumentError
        A column whose values or name no file can hold; says which.
    """
    odd = [i for i, name in enumerate(table.columns) if not (_plain_name(name) and _plain_values(table.iloc[:, i]))]
    stored = {}
    for i in odd:
        name = f"{argument}[{table.columns[i]!r}]"
        stored[str(i)] = {"name": _scalar(table.columns[i], name), "values": _encoded(table.iloc[:, i], name)}
    plain = table.iloc[:, [i for i in range(table.shape[1]) if i not in set(odd)]]
    plain = plain.set_axis(pd.Index(list(table.index), dtype=object), axis=0)
    return plain, {"columns": stored, "index_name": _scalar(table.index.name, f"{argument}.index.name")}


def join_table(plain: pd.DataFrame, stored: Mapping[str, Any]) -> pd.DataFrame:
    """Inverse of :func:`split_table`."""
    columns = [(name, plain.iloc[:, i]) for i, name in enumerate(plain.columns)]
    for position, column in sorted(stored["columns"].items(), key=lambda item: int(item[0])):
        values = pd.Series(_decoded(column["values"]), index=plain.index)
        columns.insert(int(position), (_value(column["name"]), values))
    index = plain.index.rename(_value(stored["index_name"]))
    if not columns:
        return pd.DataFrame(index=index)
    table = pd.concat([column.reset_index(drop=True) for _, column in columns], axis=1)
    table.columns = pd.Index([name for name, _ in columns])
    return table.set_axis(index, axis=0)


def _plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in RESERVED and not set(name) & {"/", "\0"}


def _plain_values(column: pd.Series) -> bool:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _plain_values(pd.Series(dtype.categories))
    if not isinstance(dtype, np.dtype):
        return False
    return dtype.kind in "biufc" or (dtype.kind == "O" and all(type(v) is str and "\0" not in v for v in column))


def _encoded(column: pd.Series, name: str) -> dict[str, Any]:
    """A column as JSON."""
    dtype: Any = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categories = _encoded(pd.Series(dtype.categories), name)
        return {"kind": "category", "codes": column.cat.codes.tolist(), "of": categories, "ordered": dtype.ordered}
    if isinstance(dtype, pd.IntervalDtype):
        sides = {side: _encoded(pd.Series(getattr(column.array, side)), name) for side in ("left", "right")}
        return {"kind": "interval", "closed": dtype.closed, **sides}
    if dtype.kind in "mM" and not isinstance(dtype, pd.ArrowDtype):
        return {"kind": "time", "dtype": str(dtype), "numbers": column.astype("int64").tolist()}
    if isinstance(dtype, pd.PeriodDtype):
        return {"kind": "period", "dtype": str(dtype), "numbers": column.array.asi8.tolist()}
    return {"kind": "values", "dtype": str(dtype), "values": [_scalar(value, name) for value in column]}


def _decoded(stored: Mapping[str, Any]) -> Any:
    kind = stored["kind"]
    if kind == "category":
        return pd.Categorical.from_codes(stored["codes"], _decoded(stored["of"]), ordered=stored["ordered"])
    if kind == "interval":
        return pd.arrays.IntervalArray.from_arrays(
            _decoded(stored["left"]), _decoded(stored["right"]), closed=stored["closed"]
        )
    if kind == "time":
        return pd.array(np.array(stored["numbers"], dtype=np.int64), dtype="int64").astype(stored["dtype"])
    if kind == "period":
        ordinals = pd.Series(stored["numbers"], dtype="int64").to_numpy()
        return pd.arrays.PeriodArray(ordinals, dtype=pd.PeriodDtype(stored["dtype"][7:-1]))
    if kind != "values":
        raise ModelFileError(f"a column is stored as {kind!r}, which this version does not know.")
    values = [_value(value) for value in stored["values"]]
    if stored["dtype"] == "object":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return pd.array(values, dtype=stored["dtype"])


def _scalar(value: Any, name: str) -> Any:
    """One value as JSON."""
    value = value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value
    if value is pd.NA or value is pd.NaT:
        return {"missing": "NA" if value is pd.NA else "NaT"}
    if value is None or type(value) in (bool, int, float, str):
        return value
    for tag, (kind, to_json, _) in TAGS.items():
        if type(value) is kind:
            return {tag: to_json(value)}
    raise InvalidArgumentError(
        f"{name}: found {value!r} ({type(value).__name__}), which cannot be stored in a file, so that the fitted model "
        "could not be saved; make it text or numbers, or leave it out of adata."
    )


def _value(stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    ((tag, value),) = stored.items()
    if tag == "missing":
        return pd.NA if value == "NA" else pd.NaT
    return TAGS[tag][2](value)
