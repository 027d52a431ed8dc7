"""Files of Space Ranger and Cell Ranger: matrices of counts, positions of spots, scale factors, images."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError

POSITIONS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
POSITION_FILES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")  # newest first
IMAGES = {"hires": "tissue_hires_image.png", "lowres": "tissue_lowres_image.png"}


@dataclass(frozen=True)
class FeatureMatrix:
    """Counts ``(barcodes, features)``, and the table of the features: ``gene_symbol``, ``feature_types``, by id."""

    counts: sp.csr_matrix
    barcodes: NDArray[np.object_]
    features: pd.DataFrame


def read_feature_matrix(folder: Path, which: str) -> FeatureMatrix:
    """Read ``<which>_feature_bc_matrix``, as ``.h5`` or as a folder of a Matrix Market file and two tables.

    Raises
    ------
    InvalidArgumentError
        Neither there; a file of another layout; names that do not fit the matrix.
    """
    stem = f"{which}_feature_bc_matrix"
    file, inside = folder / f"{stem}.h5", folder / stem
    if file.is_file():
        return _of_h5(file)
    if inside.is_dir():
        return _of_mtx(inside)
    bins = sorted(path.name for path in (folder / "binned_outputs").glob("square_*"))
    hint = f" It has bins of Visium HD: give the folder of one, binned_outputs/{bins[0]} or another." if bins else ""
    there = sorted(path.name for path in folder.iterdir())[:12]
    raise InvalidArgumentError(
        f"source: expected {stem}.h5 or a folder {stem} in {str(folder)!r}, which has {there}.{hint}"
    )


def read_positions(folder: Path) -> pd.DataFrame:
    """Read the positions of all spots of the array, by barcode; the newest layout where there are several.

    Raises
    ------
    InvalidArgumentError
        No file of positions; columns that are missing; barcodes that stand twice; numbers that are missing.
    """
    file = next((folder / name for name in POSITION_FILES if (folder / name).is_file()), None)
    if file is None:
        raise InvalidArgumentError(f"source: expected one of {POSITION_FILES} in {str(folder)!r}, found none.")
    if file.suffix == ".parquet":
        table = _parquet(file)
    else:
        with file.open(encoding="utf-8") as lines:
            headed = lines.readline().startswith("barcode")
        table = pd.read_csv(file, header=0 if headed else None, names=None if headed else list(POSITIONS))
    lacking = [name for name in POSITIONS if name not in table]
    if lacking:
        raise InvalidArgumentError(f"{file.name}: expected columns {list(POSITIONS)}, found no {lacking}.")
    table = table[list(POSITIONS)].set_index("barcode")
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()][0]
        raise InvalidArgumentError(f"{file.name}: barcode {twice!r} stands more than once.")
    unknown = table.apply(pd.to_numeric, errors="coerce").isna().any(axis=1)
    if unknown.any():
        raise InvalidArgumentError(
            f"{file.name}: expected numbers for every barcode, found {int(unknown.sum())} without (first: "
            f"{table.index[unknown][0]!r})."
        )
    return table


def read_scale_factors(folder: Path) -> dict[str, Any]:
    """Scale factors of the images; none where there is no file."""
    file = folder / "scalefactors_json.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"{file.name}: expected JSON ({error}).") from error
    if not isinstance(found, dict):
        raise InvalidArgumentError(f"{file.name}: expected names and numbers, found {type(found).__name__}.")
    return found


def read_images(folder: Path) -> dict[str, NDArray[np.generic]]:
    """Images of the tissue ``(height, width, channels)``, those that are there."""
    files = {name: folder / file for name, file in IMAGES.items() if (folder / file).is_file()}
    if not files:
        return {}
    try:
        from matplotlib.image import imread
    except ImportError as error:
        raise InvalidArgumentError(
            "images: reading them needs matplotlib (pip install 'pyrosplice[plot]'); give images=False to go without."
        ) from error
    return {name: np.asarray(imread(file)) for name, file in files.items()}


def _parquet(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except ImportError as error:
        raise InvalidArgumentError(
            f"{file.name}: reading it needs pyarrow (pip install 'pyrosplice[parquet]')."
        ) from error


def _of_h5(file: Path) -> FeatureMatrix:
    """Read the HDF5 layout of Cell Ranger 3 and later, group ``matrix``, or of 2, a group called as the genome."""
    try:
        with h5py.File(file, "r") as archive:
            groups = [name for name in archive if isinstance(archive[name], h5py.Group)]
            if len(groups) != 1:
                raise InvalidArgumentError(f"{file.name}: expected one group, found {groups}.")
            return _of_group(archive[groups[0]], file.name)
    except OSError as error:
        raise InvalidArgumentError(f"{file.name}: expected an HDF5 file ({error}).") from error


def _of_group(group: h5py.Group, name: str) -> FeatureMatrix:
    new = "features" in group
    needed = ["barcodes", "data", "indices", "indptr", "shape", *([] if new else ["genes", "gene_names"])]
    lacking = [part for part in needed if part not in group]
    if lacking:
        raise InvalidArgumentError(f"{name}: expected a matrix of Cell Ranger, found no {lacking}.")
    shape = tuple(int(size) for size in group["shape"][:])
    parts = group["data"][:], group["indices"][:], group["indptr"][:]
    features = group["features"] if new else group
    columns = {"gene_symbol": _texts(features["name" if new else "gene_names"])}
    if new:
        columns["feature_types"] = _texts(features["feature_type"])
        columns |= {"genome": _texts(features["genome"])} if "genome" in features else {}
    ids = _texts(features["id" if new else "genes"])
    return _matrix(sp.csc_matrix(parts, shape=shape).T, _texts(group["barcodes"]), ids, columns, name)


def _texts(values: h5py.Dataset) -> NDArray[np.object_]:
    return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in values[:]], dtype=object)


def _of_mtx(folder: Path) -> FeatureMatrix:
    """Read ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` or, of old, ``genes.tsv``; zipped or not."""
    matrix = read_part(folder, ("matrix.mtx",), scipy.io.mmread)
    barcodes = read_part(folder, ("barcodes.tsv",), _tsv)
    features = read_part(folder, ("features.tsv", "genes.tsv"), _tsv)
    if features.shape[1] < 2:
        raise InvalidArgumentError(f"{folder.name}: features need an id and a name, found {features.shape[1]} column.")
    columns = {"gene_symbol": features[1].to_numpy(dtype=object)}
    if features.shape[1] > 2:
        columns["feature_types"] = features[2].to_numpy(dtype=object)
    ids = features[0].to_numpy(dtype=object)
    return _matrix(sp.csr_matrix(matrix).T, barcodes[0].to_numpy(dtype=object), ids, columns, folder.name)


def read_part(folder: Path, names: tuple[str, ...], read: Callable[[Any], Any]) -> Any:
    """What ``read`` makes of the first of some files that is there, zipped or not."""
    for name in names:
        for file, opened in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
            if file.is_file():
                opened = gzip.open if file.suffix == ".gz" else opened  # one that is named so itself
                with opened(file, "rb") as stream:
                    return read(stream)
    raise InvalidArgumentError(f"{folder.name}: expected {' or '.join(names)}, zipped or not, found neither.")


def _tsv(stream: Any) -> pd.DataFrame:
    return pd.read_csv(stream, sep="\t", header=None, dtype=str, keep_default_na=False)


def _matrix(
    counts: Any, barcodes: NDArray[np.object_], ids: NDArray[np.object_], columns: dict[str, Any], name: str
) -> FeatureMatrix:
    if counts.shape != (len(barcodes), len(ids)):
        raise InvalidArgumentError(
            f"{name}: expected a matrix of {len(ids)} features and {len(barcodes)} barcodes, found "
            f"{counts.shape[1]} and {counts.shape[0]}."
        )
    return FeatureMatrix(sp.csr_matrix(counts), barcodes, pd.DataFrame(columns, index=pd.Index(ids, dtype=object)))
