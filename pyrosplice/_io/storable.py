"""An AnnData in two parts: what an h5ad file holds unchanged, and the rest as JSON."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, write_elem

from pyrosplice._io.stored_values import assembled, column_from_json, column_to_json, from_json, to_json
from pyrosplice.errors import ModelFileError

TABLES = ("obs", "var")
MAPPINGS = ("uns", "obsm", "varm", "layers", "obsp", "varp")
RESERVED = ("", ".", "..", "_index")  # names that an h5ad file cannot give anything


def anndata_to_bytes(adata: ad.AnnData) -> tuple[bytes, bytes]:
    """An AnnData as an h5ad file, and as JSON of what such a file refuses."""
    plain, rest = split(adata)
    buffer = io.BytesIO()
    with nullable_text(), h5py.File(buffer, "w") as file:
        write_elem(file, "/", ad.AnnData(**plain))
    return buffer.getvalue(), json.dumps(rest).encode()


def anndata_from_bytes(h5ad: bytes, rest: bytes) -> ad.AnnData:
    """Inverse of :func:`anndata_to_bytes`.

    Raises
    ------
    ModelFileError
        An array that says it is larger than the whole file, or is in another file.
    """
    with h5py.File(io.BytesIO(h5ad), "r") as file:
        _check_group(file, len(h5ad))
        adata = read_elem(file)
    return joined(adata, json.loads(rest))


def _check_group(group: h5py.Group, most: int) -> None:
    """Raise where reading a group would read other files, or need more memory than ``most`` bytes an array."""
    for name in group:
        here = f"adata{group.name.rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ModelFileError(f"{here}: expected data, found a link.")
        item = group[name]
        if isinstance(item, h5py.Group):
            _check_group(item, most)
        elif item.is_virtual or item.external:
            raise ModelFileError(f"{here}: its data are in another file.")
        elif (item.size or 0) * item.dtype.itemsize > most:
            raise ModelFileError(f"{here} says that it is larger than its file.")


def split(adata: ad.AnnData) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts of an AnnData that an h5ad file holds unchanged, as arguments of ``AnnData``, and the others as JSON.

    Raises
    ------
    InvalidArgumentError
        Something that no file can hold: a column, an entry of ``uns``; says which.
    """
    plain: dict[str, Any] = {}
    rest: dict[str, Any] = {"entries": []}
    for where in TABLES:
        plain[where], rest[where] = _split_table(getattr(adata, where), f"adata.{where}")
    for where in MAPPINGS:
        plain[where] = _split_mapping(dict(getattr(adata, where)), [where], f"adata.{where}", rest["entries"])
    plain |= _split_mapping({"X": adata.X}, [], "adata", rest["entries"])
    if adata.raw is not None:
        var, rest["raw"] = _split_table(adata.raw.var, "adata.raw.var")
        plain["raw"] = {"X": adata.raw.X, "var": var, "varm": dict(adata.raw.varm)}
    return plain, rest


def joined(adata: ad.AnnData, rest: Mapping[str, Any]) -> ad.AnnData:
    """What :func:`split` was made of, from both its parts."""
    for where in TABLES:
        setattr(adata, where, _joined_table(getattr(adata, where), rest[where]))
    whole: dict[str, Any] = {where: dict(getattr(adata, where)) for where in MAPPINGS}
    for entry in rest["entries"]:
        *path, key = (from_json(part) for part in entry["path"])
        place = whole
        for part in path:
            place = place.setdefault(part, {})
        place[key] = from_json(entry["value"])
    for where, value in whole.items():
        setattr(adata, where, value)
    if rest.get("raw", {}).get("columns"):
        raw = adata.raw
        var = _joined_table(raw.var, rest["raw"])
        adata.raw = ad.AnnData(X=raw.X, obs=adata.obs[[]], var=var, varm=dict(raw.varm))
    return adata


def nullable_text() -> AbstractContextManager[Any]:
    """Lets anndata write text with gaps, where its version has to be told so."""
    if hasattr(ad.settings, "allow_write_nullable_strings"):
        return ad.settings.override(allow_write_nullable_strings=True)
    return nullcontext()


def _split_mapping(
    entries: Mapping[Any, Any], path: Sequence[Any], name: str, rest: list[dict[str, Any]]
) -> dict[Any, Any]:
    """The entries that a file holds; the others go to ``rest`` by their path."""
    plain = {}
    for key, value in entries.items():
        here = f"{name}[{key!r}]" if path else f"{name}.{key}"
        if _is_plain_name(key) and isinstance(value, dict):
            plain[key] = _split_mapping(value, [*path, key], here, rest)
        elif _is_plain_name(key) and _is_plain(value):
            plain[key] = value
        else:
            rest.append({"path": [to_json(part, here) for part in [*path, key]], "value": to_json(value, here)})
    return plain


def _split_table(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    names = [not twice and _is_plain_name(n) for n, twice in zip(table, table.columns.duplicated(False), strict=True)]
    kept = [names[i] and _is_plain_column(table.iloc[:, i]) for i in range(table.shape[1])]
    rest = {}
    for i in np.flatnonzero(~np.array(kept, dtype=bool)).tolist():
        here = f"{name}[{table.columns[i]!r}]"
        rest[str(i)] = {"name": to_json(table.columns[i], here), "values": column_to_json(table.iloc[:, i], here)}
    plain = table.iloc[:, np.flatnonzero(kept)].set_axis(pd.Index(list(table.index), dtype=object), axis=0)
    return plain, {"columns": rest, "index_name": to_json(table.index.name, f"{name}.index.name")}


def _joined_table(plain: pd.DataFrame, rest: Mapping[str, Any]) -> pd.DataFrame:
    columns = [(name, plain.iloc[:, i].array) for i, name in enumerate(plain.columns)]
    for position, column in sorted(rest["columns"].items(), key=lambda item: int(item[0])):
        columns.insert(int(position), (from_json(column["name"]), column_from_json(column["values"])))
    return assembled(columns, plain.index.rename(from_json(rest["index_name"])))


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in RESERVED and not set(name) & {"/", "\0"}


def _is_plain_column(column: pd.Series) -> bool:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _is_plain_column(pd.Series(dtype.categories))
    if not isinstance(dtype, np.dtype):
        return False
    return dtype.kind in "biufc" or (dtype.kind == "O" and all(type(v) is str and "\0" not in v for v in column))


def _is_plain(value: Any) -> bool:
    """Whether an h5ad file takes a value and gives it back."""
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, bool | int | float):
        return not isinstance(value, int) or abs(value) < 2**63
    if isinstance(value, pd.DataFrame):
        named = value.columns.is_unique and all(map(_is_plain_name, value.columns)) and value.index.name is None
        columns = [pd.Series(list(value.index)), *(value.iloc[:, i] for i in range(value.shape[1]))]
        return named and all(map(_is_plain_column, columns))
    if sp.issparse(value):
        return value.format in ("csr", "csc")
    if isinstance(value, np.ndarray) and not value.dtype.names:
        return not np.ma.isMaskedArray(value) and _is_plain_column(pd.Series(value.ravel()))
    if value is None or isinstance(value, list | tuple | set | Mapping | np.generic):
        return False
    return _is_written(value)


def _is_written(value: Any) -> bool:
    """Whether the writer of files takes a value of another type (structured arrays, awkward arrays)."""
    try:
        with nullable_text(), warnings.catch_warnings(), h5py.File(io.BytesIO(), "w") as file:
            warnings.simplefilter("error", FutureWarning)
            write_elem(file, "value", value)
    except Exception:  # of whatever kind: h5py, anndata and NumPy each have their own
        return False
    return True
