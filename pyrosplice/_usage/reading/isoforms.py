"""One count matrix a gene, from an AnnData of isoform counts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._tables.columns import one_column
from pyrosplice._tables.containers import check_sparse, loaded
from pyrosplice._tables.labels import read_labels
from pyrosplice.errors import InvalidArgumentError, is_number


@dataclass(frozen=True)
class IsoformData:
    """The isoforms that passed the filters, grouped by gene.

    Attributes
    ----------
    adata
        Spots × kept isoforms, isoforms in their order in ``var``; a copy.
    layer
        Layer that holds the counts; None for ``X``.
    gene_names
        Display name of each gene, unique, in order of first appearance.
    columns
        For each gene, the positions of its isoforms in ``adata``.

    Examples
    --------
    >>> from pyrosplice.data import read_isoforms, simulate_isoforms
    >>> data = read_isoforms(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> data.gene_names, data.n_isos
    (('gene_1', 'gene_2', 'gene_3'), [3, 3, 3])
    """

    adata: AnnData
    layer: str | None
    gene_names: tuple[str, ...]
    columns: tuple[NDArray[np.intp], ...]

    @property
    def n_isos(self) -> list[int]:
        """Number of isoforms of each gene."""
        return [len(columns) for columns in self.columns]

    @property
    def matrix(self) -> Any:
        """Counts of all isoforms, ``(N, ΣK)``, in a layout from which columns are cheap."""
        return by_column(self.adata.X if self.layer is None else self.adata.layers[self.layer])

    def counts(self) -> list[Tensor]:
        """Counts of every gene, each ``(N, K)`` float64; no more than one gene is made dense at a time.

        Examples
        --------
        >>> from pyrosplice.data import read_isoforms, simulate_isoforms
        >>> data = read_isoforms(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
        >>> [counts.shape for counts in data.counts()]
        [torch.Size([64, 3]), torch.Size([64, 3]), torch.Size([64, 3])]
        """
        matrix = self.matrix
        return [torch.from_numpy(dense(matrix[:, columns])) for columns in self.columns]


def read_isoforms(  # noqa: PLR0913 (a documented interface)
    adata: AnnData,
    *,
    layer: str | None = "counts",
    group_iso_by: str = "gene_symbol",
    gene_names: str | None = None,
    min_counts: float = 10,
    min_bin_pct: float = 0.0,
    spots: NDArray[np.bool_] | None = None,
    n_isos: tuple[int, int | None] = (2, None),
) -> IsoformData:
    """Check, filter and group isoform counts.

    In this order: the given spots; isoforms with a total of at least ``min_counts`` that are seen in at least a
    fraction ``min_bin_pct`` of the spots; genes with at least two such isoforms, or as ``n_isos`` says.

    Parameters
    ----------
    adata
        Spots × isoforms, in memory, backed or lazy.
    layer
        Layer of counts, whole numbers ≥ 0, in any container; None for ``X``.
    group_iso_by
        Column of ``var`` that says which gene an isoform belongs to; isoforms without a name, or with a blank one,
        are left out with a warning.
    gene_names
        Column of ``var`` with the genes' display names; those of ``group_iso_by`` by default.
    min_counts
        Least total count of an isoform over all spots.
    min_bin_pct
        Least fraction of spots with a count; values above 1 are percents.
    spots
        Mask of spots to keep, ``(n_obs,)``; all by default.
    n_isos
        Least and greatest number of isoforms of a gene; None for any. A gene of more is left out.

    Raises
    ------
    InvalidArgumentError
        Not an AnnData; a missing layer or column; counts that are negative, fractional or NaN; duplicated spots,
        isoforms or genes; an isoform without counts that ``min_counts`` lets through; nothing left.

    Examples
    --------
    >>> from pyrosplice.data import read_isoforms, simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=64, n_genes=3, n_isoforms=4, seed=0)
    >>> data = read_isoforms(adata, min_counts=50)  # isoforms of fewer molecules are left out
    >>> adata.n_vars, data.adata.n_vars
    (12, 9)
    """
    check_anndata(adata)
    _check_keys(adata, layer, group_iso_by, gene_names)
    fraction = _fraction(min_counts, min_bin_pct)
    for table in ("obs", "var"):
        check_unique(f"adata.{table}_names", getattr(adata, f"{table}_names"))
        check_unique(f"adata.{table}.columns", list(getattr(adata, table).keys()))
    counts = loaded(adata.X if layer is None else adata.layers[layer], matrix_name(layer))
    check_counts(counts, adata, matrix_name(layer))

    var = table_of(adata, "var")
    counts = counts if spots is None else counts[np.flatnonzero(spots)]
    total, seen = column_totals(by_column(counts))
    group = _groups(one_column(var, group_iso_by, "group_iso_by"), group_iso_by)
    kept = (total >= min_counts) & (seen >= fraction * counts.shape[0]) & group.notna().to_numpy()
    members = group[kept].groupby(group[kept]).transform("size").reindex(group.index).fillna(0).to_numpy()
    least, most = n_isos
    kept &= (members >= least) & (members <= (most or np.inf))
    if not kept.any():
        raise _nothing_left(group, layer, min_counts, min_bin_pct, n_isos)
    _check_seen(adata.var_names[kept & (total == 0)], min_counts)

    filtered = subset(adata, spots, kept)
    if layer is None:
        filtered.X = counts[:, np.flatnonzero(kept)]
    else:
        filtered.layers[layer] = counts[:, np.flatnonzero(kept)]
    codes, genes = pd.factorize(group[kept])
    columns = tuple(np.flatnonzero(codes == gene) for gene in range(len(genes)))
    names = [str(gene) for gene in genes]
    if gene_names is not None:
        names = _display_names(one_column(filtered.var, gene_names, "gene_names"), columns, names, gene_names)
    check_unique("gene_names" if gene_names is not None else "group_iso_by", names)
    return IsoformData(filtered, layer, tuple(names), columns)


def check_anndata(adata: Any) -> None:
    """Raise unless ``adata`` is an AnnData."""
    if not isinstance(adata, AnnData):
        hint = "; read a file with anndata.read_h5ad" if isinstance(adata, str | os.PathLike) else ""
        raise InvalidArgumentError(f"adata: expected an AnnData, found {type(adata).__name__}{hint}.")


def table_of(adata: AnnData, where: Literal["obs", "var"]) -> pd.DataFrame:
    """Read ``obs`` or ``var`` as a DataFrame, also of a lazy AnnData."""
    table = getattr(adata, where)
    return table if isinstance(table, pd.DataFrame) else table.to_memory()


def subset(adata: AnnData, spots: NDArray[np.bool_] | None, kept: NDArray[np.bool_]) -> AnnData:
    """Copy of some spots and isoforms, all of it in memory; of a backed one without ``raw``.

    Raises
    ------
    InvalidArgumentError
        A sparse matrix with an index out of its range.
    """
    rows = np.ones(adata.n_obs, dtype=bool) if spots is None else spots
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "layers", "obsp", "varp")}
    matrices = {f"adata.{where}[{key!r}]": value for where, part in parts.items() for key, value in part.items()}
    for name, matrix in (matrices if adata.isbacked else matrices | {"adata.X": adata.X}).items():
        if sp.issparse(matrix):
            check_sparse(matrix, name)
    if not adata.isbacked:
        return adata[rows, kept].to_memory(copy=True)
    found = AnnData(obs=adata.obs, var=adata.var, uns=adata.uns, **parts)[rows, kept].copy()
    try:
        x = adata.X if adata.X is None else loaded(adata.X, "adata.X")
    except OSError as error:
        warnings.warn(f"adata.X: its file cannot be read ({error}); filtered_adata has none.", stacklevel=4)
        return found
    found.X = x if x is None else x[np.flatnonzero(rows)][:, np.flatnonzero(kept)]
    return found


def check_key(adata: AnnData, argument: str, key: Any, where: str, hint: str = "") -> None:
    """Raise unless ``adata.<where>`` has ``key`` (None is not asked for); say what it has, and what else to do."""
    mapping = getattr(adata, where)
    if key is not None and (not isinstance(key, str) or key not in set(map(str, mapping.keys()))):
        raise InvalidArgumentError(
            f"{argument}: adata.{where} has no {key!r}; it has {sorted(map(str, mapping.keys()))}.{hint}"
        )


def _check_keys(adata: AnnData, layer: str | None, group_iso_by: str, gene_names: str | None) -> None:
    check_key(adata, "layer", layer, "layers", " None reads adata.X.")
    if layer is None and adata.X is None:
        raise InvalidArgumentError(
            f"layer: None is for counts in adata.X, which is None; name one of {sorted(adata.layers.keys())}."
        )
    if group_iso_by is None:
        raise InvalidArgumentError(f"group_iso_by: expected a column of adata.var, one of {list(adata.var.keys())}.")
    check_key(adata, "group_iso_by", group_iso_by, "var")
    check_key(adata, "gene_names", gene_names, "var")


def matrix_name(layer: str | None) -> str:
    """What counts are called in messages."""
    return "adata.X" if layer is None else f"layer {layer!r}"


def check_unique(argument: str, names: Sequence[str] | pd.Index) -> None:
    """Raise if a name occurs twice."""
    index = pd.Index(names)
    if not index.is_unique:
        repeated = index[index.duplicated()].unique()
        raise InvalidArgumentError(
            f"{argument}: expected unique names, found {len(repeated)} used more than once, e.g. {repeated[0]!r}."
        )


def check_counts(counts: Any, adata: AnnData, name: str) -> None:
    """Raise unless every entry is a whole number ≥ 0; say which spot and isoform is not."""
    if counts.shape != adata.shape:
        raise InvalidArgumentError(f"{name}: expected shape {adata.shape}, found {counts.shape}.")
    values = counts.data if sp.issparse(counts) else np.asarray(counts)
    for problem, wrong in (
        ("NaN or infinite", lambda v: ~np.isfinite(v)),
        ("negative", lambda v: v < 0),
        ("non-integer", lambda v: v != np.rint(v)),
    ):
        found = wrong(values)
        if found.any():
            first = int(np.flatnonzero(found.ravel())[0])
            if sp.issparse(counts):
                # stored order of the format itself, so that `first` is the entry that was found
                coordinates = counts.tocoo()
                row, column = int(coordinates.row[first]), int(coordinates.col[first])
            else:
                row, column = divmod(first, counts.shape[1])
            raise InvalidArgumentError(
                f"{name}: expected counts, whole numbers ≥ 0, found {int(found.sum())} {problem} "
                f"(first: {values.ravel()[first]} at spot {adata.obs_names[row]!r}, "
                f"isoform {adata.var_names[column]!r})."
            )


def by_column(counts: Any) -> Any:
    """Counts in a layout from which columns are cheap: CSC for sparse, an array otherwise."""
    return sp.csc_matrix(counts) if sp.issparse(counts) else np.asarray(counts)


def dense(columns: Any) -> NDArray[np.float64]:
    """A few columns as a float64 array."""
    values = columns.toarray() if sp.issparse(columns) else columns
    return np.ascontiguousarray(values, dtype=np.float64)


def column_totals(matrix: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Total of each column and the number of its non-zero entries."""
    total = np.asarray(matrix.sum(0, dtype=np.float64)).ravel()
    return total, np.asarray((matrix != 0).sum(0), dtype=np.float64).ravel()


def _fraction(min_counts: float, min_bin_pct: float) -> float:
    if not (is_number(min_counts) and min_counts >= 0):
        raise InvalidArgumentError(f"min_counts: expected a number ≥ 0, found {min_counts!r}.")
    if not (is_number(min_bin_pct) and 0 <= min_bin_pct <= 100):
        raise InvalidArgumentError(f"min_bin_pct: expected a fraction or percent in [0, 100], found {min_bin_pct!r}.")
    return min_bin_pct / 100 if min_bin_pct > 1 else min_bin_pct


def _groups(values: pd.Series, column: str) -> pd.Series:
    """Name of each isoform's gene, None where there is none; those are warned about once."""
    labels = read_labels(values, f"group_iso_by: adata.var[{column!r}]", keep_missing=True)
    missing = int(labels.missing.sum())
    if missing:
        warnings.warn(
            f"group_iso_by: {missing} isoforms have no value in adata.var[{column!r}], or a blank one, and are left "
            "out.",
            stacklevel=3,
        )
    return pd.Series(labels.names, index=values.index, dtype=object)


def _nothing_left(
    group: pd.Series, layer: str | None, min_counts: float, min_bin_pct: float, n_isos: tuple[int, int | None]
) -> InvalidArgumentError:
    wanted = {(2, None): "two or more isoforms", (1, 1): "one isoform", (2, 2): "two isoforms"}.get(n_isos, n_isos)
    largest = int(group.value_counts().max()) if group.notna().any() else 0
    return InvalidArgumentError(
        f"adata: nothing is left of {len(group)} isoforms in {matrix_name(layer)}: expected a gene with {wanted} "
        f"that pass min_counts={min_counts} and min_bin_pct={min_bin_pct}; before these filters the largest gene "
        f"by group_iso_by has {largest} isoform(s)."
    )


def _check_seen(unseen: pd.Index, min_counts: float) -> None:
    if len(unseen):
        raise InvalidArgumentError(
            f"min_counts: expected a value that leaves out isoforms that are never seen, found {min_counts} and "
            f"{len(unseen)} isoforms without a single count (e.g. {unseen[0]!r}), whose usage "
            "cannot be estimated. Use min_counts=1 or more."
        )


def _display_names(
    values: pd.Series, columns: Sequence[NDArray[np.intp]], groups: Sequence[str], column: str
) -> list[str]:
    """Find a display name for each gene: the only value that its isoforms have."""
    names = []
    labels = pd.Series(read_labels(values, f"gene_names: adata.var[{column!r}]", keep_missing=True).names, dtype=object)
    for group, positions in zip(groups, columns, strict=True):
        found = labels.iloc[positions].dropna().unique()
        if len(found) != 1:
            raise InvalidArgumentError(
                f"gene_names: expected one name a gene in adata.var[{column!r}], found {len(found)} for {group!r}: "
                f"{[str(name) for name in found[:3]]}."
            )
        names.append(str(found[0]))
    return names
