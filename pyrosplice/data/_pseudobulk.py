"""Counts of cells summed by donor and cell type: samples for tests whose units are donors."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._expression.count_matrix import CountMatrix, raw_blocks
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.labels import Labels
from pyrosplice._tables.names import text_names
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option

N_CELLS, TOTAL = "n_cells", "total_counts"


def pseudobulk(
    adata: ad.AnnData,
    by: str | Sequence[str],
    *,
    layer: str | None = None,
    min_cells: int = 1,
    missing: str = "raise",
) -> ad.AnnData:
    """Sum the raw counts of the cells of every combination of some labels, such as donor and cell type.

    Cells of one donor are no independent samples; their sums are, one a donor. The result is fitted as any counts are:
    ``ExpressionGLM("~ condition").fit(sums, size_factors="total_counts").test(factor="condition", method="ql")``.

    Parameters
    ----------
    adata
        Cells × genes; in memory, backed, lazy, or a view. Sparse counts stay sparse.
    by
        Column(s) of ``obs``, ``["donor", "cell_type"]``.
    layer
        Layer of the raw counts; ``X`` by default.
    min_cells
        Combinations of fewer cells are left out, and named in ``uns["pseudobulk"]["left_out"]``.
    missing
        Cells without one of the labels: ``"raise"`` refuses, ``"drop"`` leaves them out.

    Returns
    -------
    AnnData
        A row a combination that there is, named by its labels, ``"d1_B cell"``. ``X``: sums (CSR); ``obs``: the labels
        (categoricals), ``n_cells``, ``total_counts``, and those columns of ``adata.obs`` that have one value in every
        combination (not those without any value); ``var``: that of ``adata``; ``uns["pseudobulk"]``: ``by``, ``layer``,
        ``min_cells``, ``left_out`` and ``dropped``, the number of cells without a label.

    Raises
    ------
    InvalidArgumentError
        Entries that are no counts; unknown columns, or labels that are missing; combinations whose names are the same
        text; no combination of ``min_cells`` cells; a column called ``n_cells`` or ``total_counts`` among ``by``.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from pyrosplice.data import pseudobulk
    >>> obs = pd.DataFrame({"donor": ["a", "a", "b"], "sex": ["f", "f", "m"], "depth": [1.0, 2.0, 3.0]})
    >>> obs.index = ["cell1", "cell2", "cell3"]
    >>> sums = pseudobulk(anndata.AnnData(np.array([[1.0, 0.0], [2.0, 1.0], [5.0, 0.0]]), obs), "donor")
    >>> sums.X.toarray().tolist(), sums.obs["sex"].tolist(), "depth" in sums.obs
    ([[3.0, 1.0], [5.0, 0.0]], ['f', 'm'], False)
    """
    if not isinstance(adata, ad.AnnData):
        raise InvalidArgumentError(f"adata: expected an AnnData, found {type(adata).__name__}.")
    columns = list(dict.fromkeys(text_names(by, "by")))
    if not columns or {N_CELLS, TOTAL} & set(columns):
        raise InvalidArgumentError(f"by: expected columns of obs other than {N_CELLS!r} and {TOTAL!r}, found {by!r}.")
    check_option("missing", missing, ("raise", "drop"))
    least = check_integer("min_cells", min_cells)
    cells = Cells.of(adata, None, adata.n_obs)
    labels = [cells.levels(name, "by", keep_missing=missing == "drop") for name in columns]
    group, groups = _combinations(labels)
    size = np.bincount(group[group >= 0], minlength=len(groups))
    kept = np.flatnonzero(size >= least)
    names = _names(labels, groups)
    if not len(kept):
        raise InvalidArgumentError(f"min_cells: no combination of {columns} has {least} cells, only {size.max()}.")
    place = np.full(len(groups) + 1, -1)
    place[kept] = np.arange(len(kept))
    row = place[group]
    sums = _summed(adata, layer, row, len(kept))
    obs = pd.DataFrame(
        {
            name: pd.Categorical.from_codes(groups[kept, k], categories=list(own.levels))
            for k, (name, own) in enumerate(zip(columns, labels, strict=True))
        },
        index=pd.Index(names[kept], dtype=str),
    )
    obs[N_CELLS], obs[TOTAL] = size[kept], np.asarray(sums.sum(1)).ravel()
    table = cells.table if cells.table is not None else pd.DataFrame(index=adata.obs_names)
    for name, values in _constants(table, row, len(kept)).items():
        if name not in obs:
            obs[name] = values.set_axis(obs.index)
    record = {"by": np.array(columns, dtype=object), "layer": layer or "X", "min_cells": least}
    record |= {"left_out": names[size < least], "dropped": int((group < 0).sum())}
    var = adata.var if isinstance(adata.var, pd.DataFrame) else adata.var.to_memory()
    return ad.AnnData(sums, obs=obs, var=var.copy(), uns={"pseudobulk": record})


def _combinations(labels: Sequence[Labels]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which combination each cell has ``(N,)``, −1 without one, and the codes of those that there are ``(C, L)``."""
    codes = np.stack([own.codes for own in labels], 1)
    complete = (codes >= 0).all(1)
    if not complete.any():
        raise InvalidArgumentError("by: no cell has all of the labels.")
    groups, which = np.unique(codes[complete], axis=0, return_inverse=True)
    group = np.full(len(codes), -1, dtype=np.intp)
    group[complete] = which.ravel()
    return group, groups


def _names(labels: Sequence[Labels], groups: NDArray[np.intp]) -> NDArray[np.object_]:
    """Names of combinations, all different."""
    levels = [[own.levels[code] for code in groups[:, k]] for k, own in enumerate(labels)]
    names = np.array(["_".join(parts) for parts in zip(*levels, strict=True)], dtype=object)
    twice = pd.Index(names)[pd.Index(names).duplicated()]
    if len(twice):
        raise InvalidArgumentError(f"by: two combinations of labels read the same, {twice[0]!r}; rename their levels.")
    return names


def _summed(adata: ad.AnnData, layer: str | None, row: NDArray[np.intp], n_rows: int) -> sp.csr_matrix:
    """Sums of the cells of each row ``(n_rows, G)``; cells of row −1 are in none, but checked too."""
    counts, total = CountMatrix(adata, layer=layer, counts=False), sp.csr_matrix((n_rows, adata.n_vars))
    for cells, block in raw_blocks(counts, layer):
        own = row[cells]
        used = np.flatnonzero(own >= 0)
        member = sp.csr_matrix((np.ones(len(used)), (own[used], used)), shape=(n_rows, len(own)))
        total = total + sp.csr_matrix(member @ sp.csr_matrix(block, dtype=np.float64))
    return total


def _constants(table: pd.DataFrame, row: NDArray[np.intp], n_rows: int) -> dict[str, pd.Series]:
    """Columns with one value in every row of sums, missing ones of all its cells among them."""
    used, out = row >= 0, {}
    for name in table.columns:
        column = table[name][used] if list(table.columns).count(name) == 1 else None
        if column is None or column.isna().all():
            continue
        codes, _ = pd.factorize(column, use_na_sentinel=True)
        spread = pd.DataFrame({"row": row[used], "code": codes}).groupby("row")["code"]
        if bool((spread.min() == spread.max()).all()):
            first = np.unique(row[used], return_index=True)[1]
            out[str(name)] = column.iloc[first]
    return out
