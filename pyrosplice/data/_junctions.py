"""The door for counts of splice junctions or isoforms: long and wide tables, files of STAR, STARsolo and regtools."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pyrosplice._tables.columns import one_column
from pyrosplice._tables.containers import as_dense
from pyrosplice._tables.coordinates import read_coordinates, spatial_key_of
from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import as_text
from pyrosplice._usage.reading.isoforms import check_unique
from pyrosplice.data._counts_layer import counted
from pyrosplice.data._splice_files import intron_clusters, read_samples, read_starsolo
from pyrosplice.errors import InvalidArgumentError, check_known, listed

ROLES = ("cell", "feature", "count", "gene")


def from_junctions(
    source: pd.DataFrame | str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    genes: Mapping[str, str] | pd.Series | None = None,
    obs: pd.DataFrame | None = None,
    spatial: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> AnnData:
    """Read counts of splice junctions or isoforms into the AnnData that :class:`~pyrosplice.SplisosmGLMM` takes.

    Parameters
    ----------
    source
        One of

        - a long table, one row a cell and feature: columns ``cell``, ``feature``, ``count``, ``gene`` (others are not
          read; ``columns`` says what they are called);
        - a wide table, cells × features, all of it numbers, with ``genes``;
        - the folder ``SJ/raw`` of STARsolo (or ``Solo.out``, or what it is in): unique reads;
        - files by sample, ``{"s1": "s1.bed", …}``: BED of ``regtools junctions extract``, or ``SJ.out.tab`` of STAR.
    genes
        Gene of each feature, a dict or Series by feature, in the place of a column. Files of junctions need none: their
        ``gene_symbol`` is then the intron cluster. "" for a feature without a gene, which models leave out.
    obs
        Table of the cells, by name. Cells without a count are those that only it has; a cell with counts that it lacks
        is refused. By default the cells of the counts, in order of appearance.
    spatial
        Columns of ``obs`` with coordinates, ``("x", "y")``, for ``obsm["spatial"]``.
    columns
        Names of the columns of a long table where they are others: ``{"cell": "barcode", "feature": "transcript_id"}``.

    Returns
    -------
    AnnData
        ``layers["counts"]`` whole numbers (``X``: the same, float32), ``var["gene_symbol"]``. Of files of junctions
        also ``chromosome``, ``start``, ``end`` (first and last base of the intron, from 1), ``strand`` and
        ``cluster``: introns that share a splice site, directly or through others; give ``group_iso_by="cluster"`` to
        model the choice among them.

    Raises
    ------
    InvalidArgumentError
        Missing columns, files, names or genes; no cell or no feature; counts that are negative, fractional or missing;
        a cell and feature, or a junction of a file, that stand twice; a feature of two genes; cells that ``obs`` lacks.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.data import from_junctions
    >>> long = pd.DataFrame({
    ...     "cell": ["a", "a", "b"], "feature": ["T-1", "T-2", "T-1"], "count": [3, 1, 2], "gene": ["T", "T", "T"]
    ... })
    >>> obs = pd.DataFrame({"x": [0.0, 1, 2], "y": [5.0, 5, 5]}, index=["a", "b", "c"])
    >>> adata = from_junctions(long, obs=obs, spatial=("x", "y"))
    >>> adata.layers["counts"].toarray().tolist(), adata.obsm["spatial"].tolist()
    ([[3, 1], [2, 0], [0, 0]], [[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    >>> wide = pd.DataFrame({"T-1": [3, 2], "T-2": [1, 0]}, index=["a", "b"])
    >>> list(from_junctions(wide, genes={"T-1": "T", "T-2": "T"}).var["gene_symbol"])
    ['T', 'T']
    """
    named = _column_names(columns)
    long = isinstance(source, pd.DataFrame) and all(named[role] in source for role in ROLES[:3])
    if columns is not None and not long:
        what = f"whose columns are {listed(source.columns)}" if isinstance(source, pd.DataFrame) else "no table"
        raise InvalidArgumentError(
            f"columns: expected a long table with {[named[r] for r in ROLES[:3]]}, found {what}."
        )
    if isinstance(source, pd.DataFrame):
        counts, cells, features = _of_long(source, named, genes) if long else _of_wide(source, genes)
    elif isinstance(source, Mapping):
        counts, cells, features = read_samples(source)
    elif isinstance(source, (str, os.PathLike)):
        counts, cells, features = read_starsolo(Path(source))
    else:
        raise InvalidArgumentError(
            f"source: expected a DataFrame, a folder or files by sample, found {type(source).__name__}."
        )
    if not isinstance(source, pd.DataFrame):
        features = features.assign(cluster=intron_clusters(features))
        features.insert(0, "gene_symbol", features["cluster"] if genes is None else _genes_of(genes, features.index))
    return _assembled(counts, pd.Index(cells, dtype=object), features, obs, spatial)


def _column_names(columns: Mapping[str, str] | None) -> dict[str, str]:
    if columns is not None and not isinstance(columns, Mapping):
        raise InvalidArgumentError(
            f"columns: expected names by role, such as {{'cell': 'barcode'}}, found {columns!r}."
        )
    for role in columns or {}:
        check_known("columns", role, ROLES, "roles among")
    return {role: role for role in ROLES} | dict(columns or {})


def _of_long(
    table: pd.DataFrame, named: Mapping[str, str], genes: Mapping[str, str] | pd.Series | None
) -> tuple[sp.csr_matrix, pd.Index, pd.DataFrame]:
    """Counts, cells and features of a table with one row a cell and feature."""
    cell, feature = (_labels(table, named[role], role) for role in ROLES[:2])
    pairs = pd.MultiIndex.from_arrays([cell, feature])
    if not pairs.is_unique:
        twice = pairs[pairs.duplicated()][0]
        raise InvalidArgumentError(
            f"source: expected one row a cell and feature, found several of {twice}; add them up first "
            f"(groupby([{named['cell']!r}, {named['feature']!r}]).sum())."
        )
    values = as_dense(one_column(table, named["count"], "source").to_frame(), "source")[:, 0]
    wrong = np.flatnonzero(~((values >= 0) & (values == np.rint(values)) & np.isfinite(values)))
    if len(wrong):
        raise InvalidArgumentError(
            f"source: expected counts, whole numbers ≥ 0, found {len(wrong)} others (first: {values[wrong[0]]:g}, cell "
            f"{cell[wrong[0]]!r}, feature {feature[wrong[0]]!r}). Shares of reads are to be rounded first."
        )
    rows, cells = pd.factorize(cell)
    cols, features = pd.factorize(feature)
    counts = sp.csr_matrix((values, (rows, cols)), shape=(len(cells), len(features)))
    counts.eliminate_zeros()
    if (named["gene"] in table) == (genes is not None):
        found = "both" if genes is not None else "neither"
        raise InvalidArgumentError(f"genes: expected them, or a column {named['gene']!r} of the table, found {found}.")
    if genes is None:
        genes = _gene_column(feature, _labels(table, named["gene"], "gene"))
    return counts, pd.Index(cells), pd.DataFrame({"gene_symbol": _genes_of(genes, pd.Index(features))}, index=features)


def _labels(table: pd.DataFrame, column: str, role: str) -> pd.Index:
    return pd.Index(read_labels(one_column(table, column, "source"), f"source, {role}: column {column!r}").names)


def _gene_column(feature: pd.Index, gene: pd.Index) -> pd.Series:
    pairs = pd.DataFrame({"feature": feature, "gene": gene}).drop_duplicates()
    twice = pairs[pairs["feature"].duplicated(keep=False)]
    if len(twice):
        name = twice["feature"].iloc[0]
        raise InvalidArgumentError(
            f"source: expected one gene a feature, found {sorted(twice['gene'][twice['feature'] == name])} of {name!r}."
        )
    return pairs.set_index("feature")["gene"]


def _of_wide(
    table: pd.DataFrame, genes: Mapping[str, str] | pd.Series | None
) -> tuple[sp.csr_matrix, pd.Index, pd.DataFrame]:
    """Counts, cells and features of a table of cells × features."""
    if genes is None:
        raise InvalidArgumentError(
            f"genes: expected the gene of each feature of a wide table; for a long one, columns {ROLES[:3]} (columns= "
            f"says what they are called), found {listed(table.columns)}."
        )
    features = as_text(table.columns)
    check_unique("source.columns", features)
    var = pd.DataFrame({"gene_symbol": _genes_of(genes, features)}, index=features)
    return sp.csr_matrix(as_dense(table, "source")), as_text(table.index), var


def _genes_of(genes: Mapping[str, str] | pd.Series, features: pd.Index) -> list[str]:
    """Gene of each feature, "" for none."""
    if not isinstance(genes, (Mapping, pd.Series)):
        raise InvalidArgumentError(f"genes: expected a dict or Series by feature, found {type(genes).__name__}.")
    given = pd.Series(genes, dtype=object)
    given.index = as_text(given.index)
    check_unique("genes", given.index)
    absent = features[~features.isin(given.index)]
    if len(absent):
        raise InvalidArgumentError(
            f"genes: expected one for each of {len(features)} features, found none for {len(absent)} (first: "
            f"{absent[0]!r}); give '' to those that have none."
        )
    found = given.loc[features]
    return ["" if pd.isna(gene) else str(gene) for gene in found]


def _assembled(
    counts: sp.csr_matrix, cells: pd.Index, var: pd.DataFrame, obs: pd.DataFrame | None, spatial: Sequence[str] | None
) -> AnnData:
    check_unique("source, cells", cells)
    if 0 in counts.shape:
        raise InvalidArgumentError(
            f"source: expected counts of at least one cell and one feature, found {counts.shape[0]} cells and "
            f"{counts.shape[1]} features; is it the right table or file, and did a filter leave nothing of it?"
        )
    if obs is None:
        if spatial is not None:
            raise InvalidArgumentError("spatial: expected obs beside it, whose columns these are.")
        obs = pd.DataFrame(index=cells)
    elif not isinstance(obs, pd.DataFrame):
        raise InvalidArgumentError(f"obs: expected a DataFrame by cell, found {type(obs).__name__}.")
    else:
        counts, obs = _rows_of(counts, cells, obs)
    adata = counted(AnnData(sp.csr_matrix(counts, dtype=np.float64), obs=obs, var=var), None)
    adata.X = adata.layers["counts"].astype(np.float32)
    if spatial is not None:
        key = spatial_key_of(spatial, "spatial")
        if isinstance(key, str):
            raise InvalidArgumentError(f"spatial: expected columns of obs such as ('x', 'y'), found {spatial!r}.")
        adata.obsm["spatial"] = read_coordinates(key, {}, adata.obs, of="source")
    return adata


def _rows_of(counts: sp.csr_matrix, cells: pd.Index, obs: pd.DataFrame) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Counts of the cells of ``obs``, zero for those that have none."""
    names = as_text(obs.index)
    check_unique("obs", names)
    absent = cells[~cells.isin(names)]
    if len(absent):
        raise InvalidArgumentError(
            f"obs: expected a row for every cell with counts, found none for {len(absent)} of {len(cells)} (first: "
            f"{absent[0]!r}; obs has {listed(names[:3])}, …). Leave their counts out first, if they are not wanted."
        )
    place = sp.csr_matrix(
        (np.ones(len(cells)), (names.get_indexer(cells), np.arange(len(cells)))), (len(names), len(cells))
    )
    return sp.csr_matrix(place @ counts), obs.set_axis(names, axis=0)
