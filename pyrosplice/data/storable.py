"""Whether all of an AnnData can be written to a file, found out before anything is computed from it."""

from __future__ import annotations

import io
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp
from anndata.io import write_elem

from pyrosplice.data.stored_tables import split_table
from pyrosplice.errors import InvalidArgumentError

MAPPINGS = ("uns", "obsm", "varm", "layers", "obsp", "varp")


def check_storable(adata: ad.AnnData) -> None:
    """Raise unless a file can hold all of ``adata``; says what it is that it cannot.

    Raises
    ------
    InvalidArgumentError
        A column, or an entry of ``uns`` and the like, that would be refused or changed.
    """
    split_table(adata.obs, "adata.obs")
    split_table(adata.var, "adata.var")
    for where in MAPPINGS:
        _check(f"adata.{where}", dict(getattr(adata, where)))
    _check("adata.X", adata.X)
    if adata.raw is not None:
        _check("adata.raw.var", adata.raw.var)


def nullable_text() -> AbstractContextManager[Any]:
    """Lets anndata write text with gaps, where its version has to be told so."""
    if hasattr(ad.settings, "allow_write_nullable_strings"):
        return ad.settings.override(allow_write_nullable_strings=True)
    return nullcontext()


def _check(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str) or key in ("", ".", "..") or set(key) & {"/", "\0"}:
                raise InvalidArgumentError(
                    f"{name}: the key {key!r} cannot be stored in a file, so that the fitted model could not be saved; "
                    "rename it (a text without '/')."
                )
            _check(f"{name}[{key!r}]", entry)
        return
    matrix = sp.issparse(value) or (isinstance(value, np.ndarray) and not np.ma.isMaskedArray(value))
    if value is None or isinstance(value, (bool, int, float)) or (matrix and value.dtype.kind in "biufc"):
        return
    problem = _changed(value) or _refused(value)
    if problem:
        raise InvalidArgumentError(
            f"{name}: found {type(value).__name__}, which cannot be stored in a file, so that the fitted model could "
            f"not be saved ({problem}); leave it out of adata."
        )


def _changed(value: Any) -> str | None:
    """What a file would do to a value that it takes."""
    if np.ma.isMaskedArray(value):
        return "its mask would be lost"
    if isinstance(value, list) and len({isinstance(entry, str) for entry in value}) > 1:
        return "its numbers would become text"
    if isinstance(value, np.ndarray) and value.dtype.kind == "O" and any(isinstance(v, bytes) for v in value.ravel()):
        return "its bytes would become text"
    return None


def _refused(value: Any) -> str | None:
    """What the writer of files says about a value."""
    try:
        with nullable_text(), warnings.catch_warnings(), h5py.File(io.BytesIO(), "w") as file:
            warnings.simplefilter("error", FutureWarning)
            write_elem(file, "value", value)
    except Exception as error:  # of whatever kind: h5py, anndata and NumPy each have their own
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None
