"""Values, columns and tables of any type as JSON and back; nothing in it is ever executed."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from pyrosplice.errors import InvalidArgumentError, ModelFileError

SCALARS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "timestamp": (pd.Timestamp, lambda value: value.isoformat(), pd.Timestamp),
    "datetime": (datetime.datetime, lambda value: value.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda value: value.isoformat(), datetime.date.fromisoformat),
    "bytes": (bytes, lambda value: value.hex(), bytes.fromhex),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
}
"""Values beside those of JSON: their type, to JSON and back."""

SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def to_json(value: Any, name: str) -> Any:
    """A value as JSON: what JSON has as itself, everything else as ``{kind: content}``.

    Raises
    ------
    InvalidArgumentError
        A value that no file can hold, called ``name``.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biufcU":
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if value is pd.NA or value is pd.NaT:
        return {"missing": "NA" if value is pd.NA else "NaT"}
    for kind, (wanted, forth, _) in SCALARS.items():
        if type(value) is wanted:
            return {kind: forth(value)}
    for kind, sequence in SEQUENCES.items():
        if type(value) is sequence:
            return {kind: [to_json(entry, name) for entry in value]}
    if isinstance(value, Mapping):
        return {"dict": [[to_json(key, name), to_json(entry, name)] for key, entry in value.items()]}
    if type(value) is np.ndarray and value.dtype.kind in "biufcOUSmM":
        content = column_to_json(pd.Series(value.ravel(), dtype=object if value.dtype.kind in "US" else None), name)
        return {"array": {"shape": list(value.shape), "values": content, "dtype": str(value.dtype)}}
    if isinstance(value, torch.Tensor):
        return {"tensor": _tensor_to_json(value, name)}
    if isinstance(value, pd.DataFrame):
        return {"table": table_to_json(value, name)}
    if isinstance(value, pd.Series):
        return {"series": [table_to_json(value.to_frame(0), name), to_json(value.name, name)]}
    if sp.issparse(value) and value.format in ("csr", "csc"):
        parts = [to_json(getattr(value, part), name) for part in ("data", "indices", "indptr")]
        return {value.format: [*parts, list(value.shape)]}
    raise InvalidArgumentError(
        f"{name}: found {type(value).__name__} {str(value)[:40]!r}, which cannot be stored in a file, so that the "
        "model could not be saved; make it text or plain numbers, or leave it out."
    )


def from_json(stored: Any) -> Any:
    """Inverse of :func:`to_json`."""
    if not isinstance(stored, dict):
        return stored
    ((kind, content),) = stored.items()
    if kind == "missing":
        return pd.NA if content == "NA" else pd.NaT
    if kind in SCALARS:
        return SCALARS[kind][2](content)
    if kind in SEQUENCES:
        return SEQUENCES[kind](from_json(entry) for entry in _listed(content))
    if kind == "dict":
        return {from_json(key): from_json(entry) for key, entry in _listed(content)}
    if kind == "array":
        values = np.asarray(column_from_json(content["values"]))
        return values.astype(content["dtype"]).reshape(content["shape"])
    if kind == "tensor":
        return torch.from_numpy(from_json(content))
    if kind == "table":
        return table_from_json(content)
    if kind == "series":
        return table_from_json(content[0]).iloc[:, 0].rename(from_json(content[1]))
    if kind in ("csr", "csc"):
        matrix = sp.csr_matrix if kind == "csr" else sp.csc_matrix
        return matrix(tuple(from_json(part) for part in content[:3]), shape=content[3])
    raise ModelFileError(f"a value is stored as {kind!r}, which this version does not know.")


def _listed(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise ModelFileError(f"a list is stored as {str(content)[:40]!r}.")
    return content


def _tensor_to_json(tensor: torch.Tensor, name: str) -> Any:
    try:
        return to_json(tensor.detach().cpu().numpy(), name)
    except TypeError as error:  # bfloat16, which NumPy does not have, or no dense tensor
        raise InvalidArgumentError(f"{name}: cannot be saved ({error}); give float32 or float64.") from error


def table_to_json(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """Write all of a DataFrame as JSON."""
    columns = [
        {
            "name": to_json(table.columns[i], f"{name}.columns"),
            "values": column_to_json(table.iloc[:, i], f"{name}[{table.columns[i]!r}]"),
        }
        for i in range(table.shape[1])
    ]
    index = column_to_json(pd.Series(list(table.index), dtype=object), f"{name}.index")
    return {"columns": columns, "index": index, "index_name": to_json(table.index.name, f"{name}.index.name")}


def table_from_json(stored: Mapping[str, Any]) -> pd.DataFrame:
    """Inverse of :func:`table_to_json`."""
    index = pd.Index(list(column_from_json(stored["index"])), name=from_json(stored["index_name"]))
    columns = [(from_json(c["name"]), column_from_json(c["values"])) for c in stored["columns"]]
    return assembled(columns, index)


def assembled(columns: list[tuple[Any, Any]], index: pd.Index) -> pd.DataFrame:
    """A table of named columns, in whatever names."""
    table = pd.DataFrame({i: pd.Series(values, index=index) for i, (_, values) in enumerate(columns)}, index=index)
    table.columns = pd.Index([name for name, _ in columns], dtype=None if columns else object, tupleize_cols=False)
    return table


def column_to_json(column: pd.Series, name: str) -> dict[str, Any]:
    """A column of any dtype as JSON."""
    dtype: Any = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categories = column_to_json(pd.Series(dtype.categories), name)
        return {"kind": "category", "codes": column.cat.codes.tolist(), "of": categories, "ordered": dtype.ordered}
    if isinstance(dtype, pd.IntervalDtype):
        sides = {side: column_to_json(pd.Series(getattr(column.array, side)), name) for side in ("left", "right")}
        return {"kind": "interval", "closed": dtype.closed, **sides}
    if dtype.kind in "mM" and not isinstance(dtype, pd.ArrowDtype):
        return {"kind": "time", "dtype": str(dtype), "numbers": column.astype("int64").tolist()}
    if isinstance(dtype, pd.PeriodDtype):
        return {"kind": "period", "dtype": str(dtype), "numbers": column.array.asi8.tolist()}
    return {"kind": "values", "dtype": str(dtype), "values": [to_json(value, name) for value in column]}


def column_from_json(stored: Mapping[str, Any]) -> Any:
    """Inverse of :func:`column_to_json`: an array."""
    kind = stored["kind"]
    if kind == "category":
        return pd.Categorical.from_codes(stored["codes"], column_from_json(stored["of"]), ordered=stored["ordered"])
    if kind == "interval":
        left, right = (column_from_json(stored[side]) for side in ("left", "right"))
        return pd.arrays.IntervalArray.from_arrays(left, right, closed=stored["closed"])
    if kind == "time":
        return pd.Series(stored["numbers"], dtype="int64").astype(stored["dtype"]).array
    if kind == "period":
        ordinals = np.array(stored["numbers"], dtype=np.int64)
        return pd.arrays.PeriodArray(ordinals, dtype=pd.PeriodDtype(stored["dtype"].removeprefix("period[")[:-1]))
    if kind != "values" or not isinstance(stored["values"], list):
        raise ModelFileError(f"a column is stored as {kind!r}, which this version does not know.")
    values = np.empty(len(stored["values"]), dtype=object)
    for i, value in enumerate(stored["values"]):
        values[i] = from_json(value)
    return values if stored["dtype"] == "object" else pd.array(values, dtype=stored["dtype"])
