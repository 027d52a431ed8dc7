"""The form in which small sets of real counts lie in the package: an ``.npz`` without pickles, a ``.toml``, a license.

Counts are sparse by row. Of each row the columns are stored as gaps from one to the next, and of all 16-bit numbers
first the low bytes, then the high ones: deflate then takes half of what an ``.h5ad`` of the same counts takes (1.6 MB
against 3.1 MB, the five sets; anndata 0.12, gzip 9 with shuffle). ``tools/pack_data_sets.py`` writes it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]
ABOUT = ("title", "repository", "commit", "files", "publication", "license", "changes", "note")  # of every .toml


def set_names() -> list[str]:
    """Names of the sets in the package, sorted."""
    return sorted(entry.name.removesuffix(".npz") for entry in _folder().iterdir() if entry.name.endswith(".npz"))


def unpacked(name: str) -> AnnData:
    """Make a new AnnData of a set: ``layers["counts"]`` int32, ``X`` the same counts in float32, source in ``uns``."""
    stored = _stored(name)
    counts = counts_of(stored)
    obs, var = (pd.DataFrame(index=pd.Index(_text(stored[f"{axis}_names"]), dtype=object)) for axis in ("obs", "var"))
    for key in stored:
        axis, _, column = key.partition("/")
        if axis in ("obs", "var") and not column.endswith(".levels"):
            (obs if axis == "obs" else var)[column] = _column(stored, key)
    adata = AnnData(counts.astype(np.float32), obs=obs, var=var, layers={"counts": counts})
    adata.obsm.update({key.removeprefix("obsm/"): stored[key].copy() for key in stored if key.startswith("obsm/")})
    adata.uns.update(about(name))
    return adata


def about(name: str) -> dict[str, str]:
    """Read what the ``.toml`` of a set says of it, and the text of its licence (``license_text``)."""
    said = tomllib.loads((_folder() / f"{name}.toml").read_text(encoding="utf-8"))
    text = (_folder() / f"{name}.LICENSE").read_text(encoding="utf-8")
    return {**{key: str(said[key]) for key in ABOUT}, "license_text": text}


def packed_counts(counts: sp.csr_matrix) -> dict[str, NDArray[np.generic]]:
    """Arrays to store for counts below 2¹⁶ of at most 2¹⁶ features; :func:`counts_of` reads them."""
    counts = sp.csr_matrix(counts)
    counts.sort_indices()
    gaps = np.diff(counts.indices, prepend=0)
    first = counts.indptr[:-1][np.diff(counts.indptr) > 0]
    gaps[first] = counts.indices[first]
    return {
        "shape": np.array(counts.shape),
        "counts.values": _bytes_apart(counts.data),
        "counts.gaps": _bytes_apart(gaps),
        "counts.of_row": np.diff(counts.indptr).astype(np.uint16),
    }


def counts_of(stored: Arrays) -> sp.csr_matrix:
    """Counts ``(N, features)``, int32, with memory of their own."""
    gaps, of_row = _together(stored["counts.gaps"]), stored["counts.of_row"].astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(of_row)])
    sums = np.concatenate([[0], np.cumsum(gaps)])
    columns = sums[1:] - np.repeat(sums[bounds[:-1]], of_row)
    shape = (int(stored["shape"][0]), int(stored["shape"][1]))
    return sp.csr_matrix((_together(stored["counts.values"]).astype(np.int32), columns, bounds), shape=shape)


@cache
def _stored(name: str) -> Arrays:
    """Arrays of a set, read once and never to be written to."""
    with (_folder() / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for array in arrays.values():
        array.setflags(write=False)
    return MappingProxyType(arrays)


def _folder() -> resources.abc.Traversable:
    return resources.files("pyrosplice.data") / "sets"


def _bytes_apart(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    narrow = values.astype("<u2")
    if not np.array_equal(narrow, values):
        raise OverflowError("expected whole numbers from 0 to 65,535")
    return np.ascontiguousarray(narrow.view(np.uint8).reshape(-1, 2).T)


def _together(halves: NDArray[np.generic]) -> NDArray[np.int64]:
    return np.ascontiguousarray(halves.T).view("<u2").ravel().astype(np.int64)


def _column(stored: Arrays, key: str) -> pd.Categorical | NDArray[np.generic]:
    if f"{key}.levels" in stored:
        return pd.Categorical.from_codes(stored[key].astype(np.int64), _text(stored[f"{key}.levels"]))
    values = stored[key]
    return _text(values) if values.dtype.kind == "S" else values.copy()


def _text(values: NDArray[np.generic]) -> NDArray[np.object_]:
    return np.char.decode(values.astype(np.bytes_), "utf-8").astype(object)
