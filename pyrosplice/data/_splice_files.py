"""Files with counts of splice junctions: of STAR, STARsolo and regtools, and which introns share a splice site."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from pyrosplice.data._space_ranger import read_part
from pyrosplice.errors import InvalidArgumentError

STAR = ("chromosome", "start", "end", "strand", "motif", "annotated", "count", "multi", "overhang")
BED12, STAR_STRANDS = 12, {"0": "?", "1": "+", "2": "-"}
INTRON = ["chromosome", "start", "end", "strand"]


def read_starsolo(folder: Path) -> tuple[sp.csr_matrix, list[str], pd.DataFrame]:
    """Counts ``(cells, junctions)``, barcodes and junctions of a folder ``SJ/raw``, or of one that has it inside.

    Raises
    ------
    InvalidArgumentError
        No such folder or file; junctions or barcodes that do not fit the matrix.
    """
    inside = [folder / part for part in ("", "raw", "SJ/raw", "Solo.out/SJ/raw")]
    found = next((path for path in inside if any(path.glob("matrix.mtx*"))), None)
    if found is None:
        raise InvalidArgumentError(
            f"source: expected SJ/raw of STARsolo with matrix.mtx in {str(folder)!r}, found none."
        )
    matrix = sp.csr_matrix(read_part(found, ("matrix.mtx",), scipy.io.mmread)).T
    barcodes = read_part(found, ("barcodes.tsv",), _table)[0].tolist()
    junctions = _introns(read_part(found, ("features.tsv",), _table), "features.tsv")
    if matrix.shape != (len(barcodes), len(junctions)):
        raise InvalidArgumentError(
            f"source: expected a matrix of {len(junctions)} junctions and {len(barcodes)} barcodes, found "
            f"{matrix.shape[1]} and {matrix.shape[0]}."
        )
    return sp.csr_matrix(matrix), barcodes, junctions.drop(columns=["count", "multi", "overhang"])


def read_samples(files: Mapping[Any, Any]) -> tuple[sp.csr_matrix, list[str], pd.DataFrame]:
    """Counts ``(samples, junctions)``, samples and junctions of one file a sample.

    Files are ``SJ.out.tab`` of STAR (unique reads), or BED12 of ``regtools junctions extract``.

    Raises
    ------
    InvalidArgumentError
        No files; a file that is missing or of another layout; a junction that stands twice in one.
    """
    if not files:
        raise InvalidArgumentError("source: expected a file for each sample, found none.")
    tables = []
    for sample, path in files.items():
        table = _junctions_of(Path(os.fspath(path)))
        twice = table.index[table.index.duplicated()]
        if len(twice):
            raise InvalidArgumentError(f"{os.fspath(path)}: junction {twice[0]!r} stands more than once.")
        tables.append(table.assign(sample=str(sample)))
    stacked = pd.concat(tables)
    codes, names = pd.factorize(stacked.index)
    samples = [str(sample) for sample in files]
    rows = pd.Categorical(stacked["sample"], samples).codes
    counts = sp.csr_matrix((stacked["count"].to_numpy(), (rows, codes)), shape=(len(samples), len(names)))
    return counts, samples, stacked[~stacked.index.duplicated()].loc[names, INTRON]


def intron_clusters(introns: pd.DataFrame) -> NDArray[np.object_]:
    """Name the cluster of each intron: those that share a splice site, directly or through others.

    A cluster is called by its chromosome, its first and last base, and its strand.
    """
    n_introns = len(introns)
    if not n_introns:
        return np.empty(0, dtype=object)
    ties = []
    for site in ("start", "end"):
        codes = pd.factorize(pd.MultiIndex.from_frame(introns[["chromosome", "strand", site]]))[0]
        ties.append(sp.csr_matrix((np.ones(n_introns), (np.arange(n_introns), codes)), shape=(n_introns, n_introns)))
    both = sp.hstack(ties, format="csr")
    labels = connected_components(both @ both.T, directed=False)[1]
    grouped = introns.groupby(labels)
    first, last = grouped["start"].transform("min"), grouped["end"].transform("max")
    names = introns["chromosome"] + ":" + first.astype(str) + "-" + last.astype(str) + ":" + introns["strand"]
    # clusters of two pairs of sites may span the same bases
    number = pd.Series(labels).groupby(names.to_numpy()).transform(lambda own: pd.factorize(own)[0]).to_numpy()
    return np.array(
        [name if k == 0 else f"{name}/{k + 1}" for name, k in zip(names, number, strict=True)], dtype=object
    )


def _table(stream: Any) -> pd.DataFrame:
    return pd.read_csv(stream, sep="\t", header=None, dtype=str, keep_default_na=False, comment="#")


def _junctions_of(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise InvalidArgumentError(f"source: expected a file of junctions, found none at {str(file)!r}.")
    if not file.stat().st_size:
        return _introns(pd.DataFrame(columns=range(len(STAR)), dtype=str), file.name)
    table = read_part(file.parent, (file.name,), _table)
    if table.shape[1] == len(STAR):
        return _introns(table, file.name)
    if table.shape[1] != BED12:
        raise InvalidArgumentError(
            f"{file.name}: expected the {len(STAR)} columns of STAR's SJ.out.tab or {BED12} of regtools' BED, found "
            f"{table.shape[1]}."
        )
    sizes = table[10].str.rstrip(",").str.split(",")
    if not sizes.str.len().eq(2).all():
        raise InvalidArgumentError(f"{file.name}: expected two blocks a junction, as of regtools junctions extract.")
    first, last = (_whole(sizes.str[k], file.name) for k in (0, 1))
    start, end = _whole(table[1], file.name) + first + 1, _whole(table[2], file.name) - last
    return _named(
        pd.DataFrame(
            {
                "chromosome": table[0],
                "start": start,
                "end": end,
                "strand": table[5],
                "count": _whole(table[4], file.name),
            }
        )
    )


def _introns(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Junctions of STAR's table, by name."""
    if table.shape[1] != len(STAR):
        raise InvalidArgumentError(f"{name}: expected the {len(STAR)} columns of SJ.out.tab, found {table.shape[1]}.")
    table = table.set_axis(list(STAR), axis=1)
    strand = table["strand"].map(STAR_STRANDS)
    if strand.isna().any():
        raise InvalidArgumentError(
            f"{name}: expected strands 0, 1 or 2, found {table['strand'][strand.isna()].iloc[0]!r}."
        )
    whole = {column: _whole(table[column], name) for column in STAR if column not in ("chromosome", "strand")}
    return _named(table.assign(strand=strand, **whole))


def _whole(column: pd.Series, name: str) -> pd.Series:
    try:
        return column.astype(np.int64)
    except ValueError as error:
        raise InvalidArgumentError(f"{name}: expected whole numbers ({error}).") from error


def _named(table: pd.DataFrame) -> pd.DataFrame:
    start, end = table["start"].astype(str), table["end"].astype(str)
    return table.set_axis(table["chromosome"] + ":" + start + "-" + end + ":" + table["strand"], axis=0)
