"""What a job reads: a file of cells, and the columns, layers and coordinates that its options name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import anndata
import pandas as pd
from anndata import AnnData

from pyrosplice._tables.coordinates import SpatialKey, has_coordinates
from pyrosplice._tables.formulas import formula_source
from pyrosplice._tables.random_terms import split_random_terms
from pyrosplice.errors import InvalidArgumentError, listed

LAYER = "counts"  # read where the file has it and nothing else is asked for
MATRIX = "X"  # what --layer calls the matrix itself


def read_cell_file(path: Path) -> AnnData:
    """Read an h5ad file or a zarr folder into memory.

    Raises
    ------
    InvalidArgumentError
        There is none, or it is not one.
    """
    if not path.exists():
        raise InvalidArgumentError(f"{str(path)!r}: there is no such file; expected an .h5ad file or a .zarr folder.")
    try:
        adata = anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)
    except ImportError as error:
        raise InvalidArgumentError(
            f"{str(path)!r}: is a folder, read as zarr, which needs `pip install zarr`."
        ) from error
    except Exception as error:  # of whatever kind h5py, zarr and anndata raise for what is not theirs
        kind = "zarr folder" if path.is_dir() else "h5ad file"
        raise InvalidArgumentError(f"{str(path)!r}: could not be read as {kind} ({error}).") from error
    if not isinstance(adata, AnnData) or 0 in adata.shape:
        raise InvalidArgumentError(f"{str(path)!r}: expected cells and genes, found shape {adata.shape}.")
    return adata


def layer_of(adata: AnnData, given: str | None) -> str | None:
    """Which layer has the counts, None for ``X``: the one given, else ``counts`` where there is one.

    Raises
    ------
    InvalidArgumentError
        There is no such layer, or no ``X``.
    """
    chosen = (LAYER if LAYER in adata.layers else MATRIX) if given is None else given
    if chosen in adata.layers:
        return chosen
    if chosen != MATRIX:
        raise InvalidArgumentError(f"--layer: expected one of {listed([*adata.layers, MATRIX])}, found {given!r}.")
    if adata.X is None:
        raise InvalidArgumentError(f"--layer: the file has no X; expected one of {listed(adata.layers)}.")
    return None


def check_column(table: pd.DataFrame, option: str, name: str, of: str = "obs") -> None:
    """Raise :class:`~pyrosplice.errors.InvalidArgumentError` unless the table has the column."""
    if name not in table.columns:
        raise InvalidArgumentError(
            f"{option}: expected a column of {of}, {listed(table.columns, near=name)}, found {name!r}."
        )


def columns_used(table: pd.DataFrame, option: str, formula: str, *, groups: bool = False) -> list[str]:
    """Columns of the table that a formula uses, those of its random terms among them; with ``groups``, their factors.

    Raises
    ------
    InvalidArgumentError
        It is no formula, or of columns that the table does not have.
    """
    columns = [str(name) for name in table.columns]
    rest, terms = split_random_terms(formula, option)
    used = [
        name for part in (rest, *(term.left for term in terms)) for name in formula_source(part, columns, option)[1]
    ]
    used += [name for term in terms for name in term.by] if groups else []
    return list(dict.fromkeys(used))


def check_used(table: pd.DataFrame, option: str, names: Iterable[str], used: Sequence[str], where: str) -> None:
    """Raise :class:`~pyrosplice.errors.InvalidArgumentError` for columns that are absent, or that nothing uses."""
    for name in names:
        check_column(table, option, name)
        if name not in used:
            raise InvalidArgumentError(
                f"{option}: expected a column of {where}, {listed(used, near=name)}, found {name!r}, which would "
                "change nothing."
            )


def check_names_once(names: pd.Index, what: str) -> None:
    """Raise :class:`~pyrosplice.errors.InvalidArgumentError` where two cells or genes have one name."""
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise InvalidArgumentError(
            f"FILE: expected names of {what} that stand once, found {len(twice)} more than once, e.g. "
            f"{str(twice[0])!r}; make them unique (var_names_make_unique, obs_names_make_unique)."
        )


def spatial_key_given(given: str) -> SpatialKey:
    """Read ``--spatial-key``: a key of ``obsm``, or columns of ``obs`` with commas between them."""
    columns = tuple(part.strip() for part in given.split(","))
    return columns if len(columns) > 1 else given


def check_coordinates(adata: AnnData, key: SpatialKey) -> None:
    """Raise :class:`~pyrosplice.errors.InvalidArgumentError` unless the coordinates are there."""
    if not has_coordinates(key, adata.obsm, adata.obs):
        name = key if isinstance(key, str) else ",".join(key)
        raise InvalidArgumentError(
            f"--spatial-key: expected a key of obsm, {listed(adata.obsm)}, or columns of obs as 'x,y', found {name!r}."
        )


def as_labels(adata: AnnData, names: tuple[str, ...], option: str) -> AnnData:
    """Take columns of numbers as labels: a copy of the table of cells in which they are categories."""
    for name in names:
        check_column(adata.obs, option, name)
        adata.obs[name] = adata.obs[name].astype("category")
    return adata
