"""The door for Visium: a folder of Space Ranger, or the AnnData that scanpy and squidpy make of one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyrosplice._tables.columns import one_column
from pyrosplice._tables.coordinates import read_coordinates
from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import check_word
from pyrosplice.data._counts_layer import counted
from pyrosplice.data._space_ranger import (
    FeatureMatrix,
    read_feature_matrix,
    read_images,
    read_positions,
    read_scale_factors,
)
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches, listed
from pyrosplice.spatial._graph import check_coords

SPATIAL, IN_TISSUE, FEATURE_TYPES = "spatial", "in_tissue", "feature_types"


def from_visium(  # noqa: PLR0913 (what folders and AnnData differ in)
    source: str | os.PathLike[str] | AnnData,
    *,
    counts: Literal["filtered", "raw"] = "filtered",
    layer: str | None = None,
    library_id: str | None = None,
    library_key: str | None = None,
    in_tissue: bool = True,
    feature_type: str | None = "Gene Expression",
    images: bool = True,
) -> AnnData:
    """Read Visium counts with their positions, from a folder of Space Ranger or an AnnData of scanpy or squidpy.

    Parameters
    ----------
    source
        Folder ``outs`` of Space Ranger (of Visium HD: that of one bin, ``outs/binned_outputs/square_008um``), with
        ``filtered_feature_bc_matrix.h5`` or the folder of that name, and ``spatial/`` with the positions:
        ``tissue_positions.csv``, before Space Ranger 2 ``tissue_positions_list.csv``, of HD ``.parquet`` (which needs
        pyarrow). Or an AnnData with ``obsm["spatial"]``.
    counts
        Which matrix of a folder: ``"filtered"`` (spots under tissue) or ``"raw"``.
    layer
        Layer of an AnnData's raw counts; by default ``layers["counts"]`` where there is one, else ``X``.
    library_id
        Name of a folder's library in ``uns["spatial"]``; the folder's own by default.
    library_key
        Column of an AnnData's ``obs`` with the library of each spot; needed where ``uns["spatial"]`` has several, whose
        coordinates overlap. Give it to models as ``section_key``.
    in_tissue
        Leave out spots that are not under tissue, with a warning that counts them. An AnnData without
        ``obs["in_tissue"]`` is taken as it is.
    feature_type
        Kind of features that are kept, the others being left out with a warning; None for all.
    images
        Read the images of a folder into ``uns["spatial"][library_id]["images"]``, those that are there.

    Returns
    -------
    AnnData
        ``layers["counts"]`` whole numbers; ``var_names`` ids of the genes where they are known, ``var["gene_symbol"]``
        their names; ``obs["in_tissue"]``, ``array_row``, ``array_col``; ``obsm["spatial"]``: x and y in pixels of the
        full-resolution image; ``uns["spatial"]`` as squidpy has it. A copy in memory.

    Raises
    ------
    InvalidArgumentError
        Files that are missing or of another layout; barcodes without a position; names that stand twice; ``in_tissue``,
        ids of genes or kinds of features that are missing for some; entries that are no counts; options of the other
        kind of source.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from pyrosplice.data import from_visium
    >>> spots = pd.DataFrame({"in_tissue": [1, 1, 1]}, index=["AAAC-1", "AAAG-1", "AAAT-1"])
    >>> genes = pd.DataFrame({"gene_ids": ["ENSG01", "ENSG02"]}, index=["TPM1", "MYL6"])
    >>> adata = anndata.AnnData(np.array([[3.0, 0], [1, 2], [0, 4]]), spots, genes)
    >>> adata.obsm["spatial"] = np.array([[100, 200], [100, 310], [195, 255]])
    >>> read = from_visium(adata)
    >>> list(read.var_names), list(read.var["gene_symbol"]), read.layers["counts"].sum()
    (['ENSG01', 'ENSG02'], ['TPM1', 'MYL6'], np.int64(10))
    """
    check_switches(in_tissue=in_tissue, images=images)
    check_option("counts", counts, ("filtered", "raw"))
    if isinstance(source, AnnData):
        _check_unused("an AnnData", counts=counts != "filtered", library_id=library_id is not None, images=not images)
        adata = _of_anndata(source, layer, library_key)
    elif isinstance(source, (str, os.PathLike)):
        if library_id is not None:
            check_word("library_id", library_id)
        _check_unused("a folder", layer=layer is not None, library_key=library_key is not None)
        adata = _of_folder(Path(source), counts, library_id, images=images)
    else:
        raise InvalidArgumentError(f"source: expected a folder or an AnnData, found {type(source).__name__}.")
    adata = _under_tissue(adata) if in_tissue and IN_TISSUE in adata.obs else adata
    return adata if feature_type is None else _of_type(adata, feature_type)


def _check_unused(what: str, **given: bool) -> None:
    unused = [name for name, is_given in given.items() if is_given]
    if unused:
        raise InvalidArgumentError(f"{unused[0]}: it says nothing of {what}; leave it out.")


def _of_folder(folder: Path, which: str, library_id: str | None, *, images: bool) -> AnnData:
    if not folder.is_dir():
        raise InvalidArgumentError(f"source: expected a folder of Space Ranger, found none at {str(folder)!r}.")
    matrix = read_feature_matrix(folder, which)
    places = read_positions(folder / SPATIAL)
    obs = _obs(matrix, places)
    adata = counted(AnnData(matrix.counts, obs=obs[[IN_TISSUE, "array_row", "array_col"]], var=matrix.features), None)
    adata.obs[IN_TISSUE] = _flags(adata.obs[IN_TISSUE])
    adata.obsm[SPATIAL] = obs[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=np.float64)
    adata.uns[SPATIAL] = {
        library_id or folder.resolve().name: {
            "images": read_images(folder / SPATIAL) if images else {},
            "scalefactors": read_scale_factors(folder / SPATIAL),
            "metadata": {"source": str(folder)},
        }
    }
    return adata


def _obs(matrix: FeatureMatrix, places: pd.DataFrame) -> pd.DataFrame:
    """Rows of the positions for the barcodes of the counts, in their order."""
    barcodes = pd.Index(matrix.barcodes, dtype=object)
    absent = barcodes[~barcodes.isin(places.index)]
    if len(absent):
        raise InvalidArgumentError(
            f"source: expected a position for every barcode with counts, found none for {len(absent)} of "
            f"{len(barcodes)} (first: {absent[0]!r}); are matrix and positions of the same run?"
        )
    return places.loc[barcodes]


def _of_anndata(given: AnnData, layer: str | None, library_key: str | None) -> AnnData:
    if "gene_symbol" not in given.var:
        given = _with_symbols(given)
    adata = counted(given, layer)
    hint = " Coordinates in columns of obs: give them to models, spatial_key=('x', 'y')."
    coords = check_coords(read_coordinates(SPATIAL, adata.obsm, adata.obs, hint=hint), name="adata.obsm['spatial']")
    adata.obsm[SPATIAL] = coords
    libraries = adata.uns.get(SPATIAL, {})
    if not isinstance(libraries, Mapping):
        raise InvalidArgumentError(
            f"adata.uns['spatial']: expected libraries by name, found {type(libraries).__name__}."
        )
    if library_key is not None:
        labels = read_labels(one_column(adata.obs, library_key, "library_key"), f"adata.obs[{library_key!r}]")
        unknown = [name for name in labels.levels if libraries and name not in libraries]
        if unknown:
            raise InvalidArgumentError(
                f"library_key: adata.obs[{library_key!r}] has {listed(unknown)}, not in adata.uns['spatial'], which "
                f"has {sorted(libraries)}."
            )
        adata.obs[library_key] = pd.Categorical(labels.names, list(labels.levels))
    elif len(libraries) > 1:
        raise InvalidArgumentError(
            f"library_key: adata.uns['spatial'] has {len(libraries)} libraries, {sorted(libraries)}, whose coordinates "
            "overlap; name the column of obs with the library of each spot."
        )
    if IN_TISSUE in adata.obs:
        adata.obs[IN_TISSUE] = _flags(adata.obs[IN_TISSUE])
    return adata


def _with_symbols(given: AnnData) -> AnnData:
    """Copy with ``var["gene_symbol"]``, and with ids of genes as names where scanpy has put them into ``var``."""
    adata = given.to_memory(copy=True) if given.isbacked or given.is_view else given.copy()
    adata.var["gene_symbol"] = adata.var_names.to_numpy(dtype=object)
    if "gene_ids" in adata.var:
        adata.var_names = _texts_of_all(adata.var, "gene_ids", "rename that column to keep var_names")
    return adata


def _texts_of_all(var: pd.DataFrame, name: str, instead: str) -> NDArray[np.object_]:
    """A column of ``var`` as text.

    Raises
    ------
    InvalidArgumentError
        Where it is missing or blank for some features.
    """
    labels = read_labels(one_column(var, name, "adata.var"), f"adata.var[{name!r}]", keep_missing=True)
    if labels.missing.any():
        first = var.index[labels.missing][0]
        raise InvalidArgumentError(
            f"adata.var[{name!r}]: expected it of every feature, found none of {int(labels.missing.sum())} of "
            f"{len(var)} (first: {first!r}); fill it in, or {instead}."
        )
    return labels.names


def _flags(column: pd.Series) -> NDArray[np.bool_]:
    """Whether each spot is under tissue.

    Raises
    ------
    InvalidArgumentError
        Where it is not said of every spot by 0 or 1.
    """
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isin(numbers, (0, 1))
    if wrong.any():
        raise InvalidArgumentError(
            f"in_tissue: expected 0 or 1 for every spot, found {int(wrong.sum())} of {len(numbers)} with another value "
            f"(first: {column.iloc[np.flatnonzero(wrong)[0]]!r} at {column.index[wrong][0]!r})."
        )
    return numbers == 1


def _under_tissue(adata: AnnData) -> AnnData:
    inside = adata.obs[IN_TISSUE].to_numpy(dtype=bool)
    if inside.all():
        return adata
    if not inside.any():
        raise InvalidArgumentError(
            f"in_tissue: none of {len(inside)} spots is under tissue; in_tissue=False keeps them."
        )
    warnings.warn(
        f"in_tissue: {int((~inside).sum())} of {len(inside)} spots are not under tissue and are left out; "
        "in_tissue=False keeps them.",
        stacklevel=3,
    )
    return adata[inside].copy()


def _of_type(adata: AnnData, feature_type: str) -> AnnData:
    if FEATURE_TYPES not in adata.var:
        if feature_type != "Gene Expression":
            raise InvalidArgumentError(
                f"feature_type: {feature_type!r} is asked for, and kinds of features are not known."
            )
        return adata
    types = _texts_of_all(adata.var, FEATURE_TYPES, "give feature_type=None, which keeps all")
    check_option("feature_type", feature_type, sorted(set(types)))
    kept = types == feature_type
    if kept.all():
        return adata
    others = ", ".join(f"{int((types == kind).sum())} {kind!r}" for kind in sorted(set(types[~kept])))
    warnings.warn(
        f"feature_type: only {feature_type!r} is kept; left out: {others}. feature_type=None keeps all.", stacklevel=3
    )
    return adata[:, kept].copy()
