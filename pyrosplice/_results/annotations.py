"""What a result says of cells and genes, written to an AnnData under one key: paired by name, all of it or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._tables.names import as_text, check_word
from pyrosplice.errors import InvalidArgumentError, listed

RECORD = "pyrosplice"  # entry of uns[key_added] that says what was written, and by what
HELD = re.compile("%(?=(25)*2F)")  # what a name must not have where "/" stands as "%2F"
PARTS = ("obs", "var", "obsm", "layers")


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What a result says, by the part of an AnnData that it belongs to; arrays are in the order of the names.

    Attributes
    ----------
    kind
        Class or function that the result is of.
    cells, genes
        Names of the cells ``(N,)`` and of the genes ``(G,)`` (or isoforms) of the result; None of one that says nothing
        of them.
    obs, var
        One value a cell, or a gene, by what it says.
    obsm, layers
        Arrays ``(N, d)`` and ``(N, G)``.
    uns
        What stands in ``uns[key_added]``: tables, arrays, mappings, plain values.
    settings
        How the result was made, for ``uns[key_added]["params"]``; what is None is left out.
    """

    kind: str
    cells: pd.Index | None = None
    genes: pd.Index | None = None
    obs: Mapping[str, Any] = field(default_factory=dict)
    var: Mapping[str, Any] = field(default_factory=dict)
    obsm: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    layers: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    uns: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, adata: ad.AnnData, key_added: str) -> pd.DataFrame:
        """Write to ``adata``: ``obs``, ``var``, ``obsm`` and ``layers`` under ``<key_added>_<name>``, and ``uns``.

        What an earlier result of the same kind wrote under this key is replaced, and what it wrote and this one does
        not is taken out. Cells and genes of ``adata`` that the result says nothing of have NaN, "" or no value.

        Parameters
        ----------
        adata
            Has all cells and genes of the result, in any order.
        key_added
            Key of ``uns``, and prefix of the others.

        Returns
        -------
        DataFrame
            What was written, a row each: ``part``, ``key``, and ``missing``, how many cells or genes of ``adata`` the
            result says nothing of.

        Raises
        ------
        InvalidArgumentError
            No AnnData, or a view; a cell or gene that is not in it, or stands twice; a key that something else has.
            Nothing is written then.
        """
        earlier, names = self.check(adata, key_added)
        cells, genes = (self._places(adata, axis) for axis in ("obs", "var"))
        values = self._aligned(adata, cells, genes)
        record = {"kind": self.kind, **{part: np.array(keys, dtype=object) for part, keys in names.items() if keys}}
        for part, keys in earlier.items():
            for stale in set(keys) - set(names.get(part, ())):
                del getattr(adata, part)[stale]
        for part, found in values.items():
            for key, value in zip(names[part], found, strict=True):
                getattr(adata, part)[key] = value
        params = {name: _plain(value) for name, value in self.settings.items() if value is not None}
        adata.uns[key_added] = {"params": params, **self.uns, RECORD: record}
        missing = {"obs": _absent(adata.n_obs, cells), "var": _absent(adata.n_vars, genes), "uns": 0}
        missing |= {"obsm": missing["obs"], "layers": missing["obs"] + missing["var"]}
        rows = [(part, key, missing[part]) for part in PARTS for key in names[part]]
        return pd.DataFrame([*rows, ("uns", key_added, 0)], columns=["part", "key", "missing"])

    def check(self, adata: ad.AnnData, key_added: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Raise where :meth:`write` would for the keys; those of an earlier result, and those to write, by part.

        Values are not looked at, so that a call can ask before its work is done.
        """
        check_target(adata, key_added)
        earlier = _earlier(adata, key_added, self.kind)
        names = {part: [f"{key_added}_{name}" for name in getattr(self, part)] for part in PARTS}
        for part, wanted in names.items():
            _check_free(adata, part, [key for key in wanted if key not in earlier.get(part, ())])
        return earlier, names

    def _places(self, adata: ad.AnnData, axis: str) -> NDArray[np.intp] | None:
        """Where the cells or genes of the result are in ``adata``; None where it says nothing of them."""
        needed = {"obs": ("obs", "obsm", "layers"), "var": ("var", "layers")}[axis]
        what, theirs = {"obs": ("cell", self.cells), "var": ("gene", self.genes)}[axis]
        if theirs is None:
            if any(getattr(self, part) for part in needed):
                raise InvalidArgumentError(
                    f"adata: the {what}s of this result have no names, by which they could be paired with those of an "
                    "AnnData; fit an AnnData, or tables that have names."
                )
            return None
        return places_in(theirs, getattr(adata, f"{axis}_names"), f"adata.{axis}_names", what)

    def _aligned(
        self, adata: ad.AnnData, cells: NDArray[np.intp] | None, genes: NDArray[np.intp] | None
    ) -> dict[str, list[Any]]:
        """Values in the order of ``adata``, by part."""
        out: dict[str, list[Any]] = {part: [] for part in PARTS}
        for part, places, names in (("obs", cells, adata.obs_names), ("var", genes, adata.var_names)):
            out[part] = [spread_column(value, places, names) for value in getattr(self, part).values()]
        for value in self.obsm.values():
            whole = np.full((adata.n_obs, value.shape[1]), np.nan)
            whole[cells] = value
            out["obsm"].append(whole)
        for value in self.layers.values():
            whole = np.full(adata.shape, np.nan)
            whole[np.ix_(cells, genes)] = value  # type: ignore[arg-type]
            out["layers"].append(whole)
        return out


def check_target(adata: object, key_added: object) -> None:
    """Raise unless results can be written to ``adata`` under this key."""
    if not isinstance(adata, ad.AnnData):
        raise InvalidArgumentError(f"adata: expected an AnnData to write to, found {type(adata).__name__}.")
    check_word("key_added", key_added)
    if adata.is_view:
        raise InvalidArgumentError("key_added: adata is a view, which has no table of its own; give a copy of it.")


def places_in(wanted: pd.Index, names: pd.Index, argument: str, what: str) -> NDArray[np.intp]:
    """Positions among ``names`` of all that are ``wanted``, compared as text.

    Raises
    ------
    InvalidArgumentError
        One that is not there, or stands twice on either side.
    """
    theirs, ours = as_text(wanted), as_text(names)
    for whose, index in ((argument, ours), ("the result", theirs)):
        if not index.is_unique:
            twice = index[index.duplicated()][0]
            raise InvalidArgumentError(f"{argument}: {twice!r} stands more than once in {whose}; make names unique.")
    places = ours.get_indexer(theirs)
    absent = theirs[places < 0]
    if len(absent):
        raise InvalidArgumentError(
            f"{argument}: expected the {what}s of the result, and {len(absent)} of {len(theirs)} are not there (first: "
            f"{absent[0]!r}; there are {listed(ours, near=str(absent[0]), most=6)}). Give the data that were fitted."
        )
    return places


def spread_column(values: Any, places: NDArray[np.intp] | None, names: pd.Index) -> Any:
    """A column of all ``names`` with ``values`` at some ``places``; NaN, "" or no value elsewhere."""
    n = len(names)
    if isinstance(values, pd.Categorical):
        codes = np.full(n, -1)
        codes[places] = values.codes
        return pd.Categorical.from_codes(codes, dtype=values.dtype)
    array = np.asarray(values)
    if array.dtype == bool:
        return array_of_booleans(array, places, n)
    text = array.dtype == object or array.dtype.kind in "US"
    column = np.full(n, "", dtype=object) if text else np.full(n, np.nan)
    column[places] = [str(value) for value in array] if text else array
    return column


def array_of_booleans(values: NDArray[np.bool_], places: NDArray[np.intp] | None, n: int) -> Any:
    """Booleans at some places of n; pandas' nullable ones where there are others."""
    whole, known = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    whole[places], known[places] = values, True
    return whole if known.all() else pd.arrays.BooleanArray(whole, ~known)


def storable_table(table: pd.DataFrame) -> pd.DataFrame:
    """A table as h5ad and zarr hold it: text of objects, rows named by text; "/" in a column's name stands as "%2F".

    "%2F" itself stands as "%252F", so that columns whose names differ stay apart.
    """
    out = table.copy()
    out.columns = [HELD.sub("%25", str(name)).replace("/", "%2F") for name in out.columns]
    for name in out.columns:
        if out[name].dtype == object:
            out[name] = [str(value) for value in out[name]]
    return out.set_axis(out.index.astype(str), axis=0)


def _plain(value: Any) -> Any:
    """A setting as a plain value that files hold."""
    if isinstance(value, (bool, int, float, str, np.ndarray)):
        return value
    if isinstance(value, (list, tuple)):
        return np.array([str(one) for one in value], dtype=object)
    return str(value)


def _absent(n: int, places: NDArray[np.intp] | None) -> int:
    return 0 if places is None else n - len(places)


def _earlier(adata: ad.AnnData, key_added: str, kind: str) -> dict[str, list[str]]:
    """Keys that an earlier result of this kind wrote, by part."""
    if key_added not in adata.uns:
        return {}
    there = adata.uns[key_added]
    record = there.get(RECORD) if isinstance(there, Mapping) else None
    if not isinstance(record, Mapping) or record.get("kind") != kind:
        whose = f"results of {record['kind']}" if isinstance(record, Mapping) and "kind" in record else "something else"
        raise InvalidArgumentError(
            f"key_added: adata.uns[{key_added!r}] holds {whose}; delete it, or choose another key_added."
        )
    kept = {part: [str(key) for key in record[part]] for part in PARTS if part in record}
    return {part: [key for key in keys if key in getattr(adata, part)] for part, keys in kept.items()}


def _check_free(adata: ad.AnnData, part: str, keys: list[str]) -> None:
    there = [key for key in keys if key in getattr(adata, part)]
    if there:
        raise InvalidArgumentError(
            f"key_added: adata.{part} has {there} already; delete these, or choose another key_added."
        )
