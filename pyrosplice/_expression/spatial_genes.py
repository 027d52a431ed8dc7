"""Spatially variable genes of an AnnData: one call from counts to a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice._expression.formula_design import from_formula
from pyrosplice._expression.positions import SPATIAL_KEY
from pyrosplice._expression.spatial_variability import section_columns
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.names import places_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]
TOTAL = "total"


def spatially_variable_genes(  # noqa: PLR0913 (an interface of many options)
    adata: ad.AnnData,
    *,
    layer: str | None = None,
    formula: str = "~ 1",
    as_numeric: Sequence[str] | str = (),
    size_factors: Any = TOTAL,
    spatial_key: str | Sequence[str] = SPATIAL_KEY,
    adj_key: str | None = None,
    k_neighbors: int | None = None,
    section_key: str | None = None,
    likelihood: str | Likelihood = "nb",
    genes: Any = None,
    key_added: str | None = None,
) -> pd.DataFrame:
    """Find the genes whose expression varies in space, from raw counts.

    A negative-binomial regression of each gene on the covariates, with the spots' sizes, is tested for an effect of the
    spots that is alike in neighbours, by the score: see :meth:`pyrosplice.ExpressionGLM.test_spatial_variability`.

    Parameters
    ----------
    adata
        Spots × genes with coordinates in ``obsm``; in memory, backed, lazy, or a view.
    layer
        Layer of the raw counts; ``X`` by default.
    formula
        What else the genes depend on, columns of ``obs``: variability that it explains does not count.
    as_numeric
        Columns of the formula that are numbers; all others are labels.
    size_factors
        ``"total"``: total counts of all genes in each spot, over their mean. Or positive numbers ``(N,)``, paired by
        name if they have names, or the column of ``obs`` that holds them (one called "total": give it as a Series); or
        None: what varies in space may then be no more than depth.
    spatial_key, adj_key, k_neighbors, section_key
        Coordinates in ``obsm``, or columns of ``obs`` such as ``("x", "y")``; or a graph in ``obsp``; how many nearest
        spots are neighbours; column of ``obs`` with the section of each spot. Sections have levels of their own, and no
        neighbours in others. By default neighbours are those of ``obsp["spatial_connectivities"]`` where squidpy has
        left it (weights as given, averaged with its transpose), else the six nearest; ``k_neighbors`` or another
        ``spatial_key`` asks for the nearest ones. ``attrs["graph"]`` of the table says which were taken.
    likelihood
        ``"nb"``, ``"poisson"``, or a likelihood of one count with a log mean.
    genes
        Names, positions or a mask of those to test; all by default. Totals are of all genes in any case.
    key_added
        Write the table to ``adata.var`` too, in columns ``<key_added>_pvalue`` and so on.

    Returns
    -------
    DataFrame
        By gene: ``statistic``, ``pvalue``, ``pvalue_adj`` (Benjamini–Hochberg), ``reason`` ("" or why there is no
        p-value, see :class:`pyrosplice.reasons.Reason`), ``mean``, ``coverage`` (share of spots with a count).

    Raises
    ------
    InvalidArgumentError
        Counts that are negative or fractional; spots without counts or coordinates; names of genes that stand twice;
        sections of no more than ``k_neighbors`` spots; columns that ``adata.var`` has already.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> from pyrosplice import spatially_variable_genes
    >>> rng, place = np.random.default_rng(0), np.stack(np.divmod(np.arange(144), 12), 1)
    >>> mean = np.where(place[:, :1] < 4, [[6.0, 2.0, 2.0]], 2.0)
    >>> adata = anndata.AnnData(rng.poisson(mean).astype(float), obsm={"spatial": place})
    >>> table = spatially_variable_genes(adata, size_factors=None)
    >>> (table["pvalue"] < 0.001).tolist()
    [True, False, False]
    """
    if not isinstance(adata, ad.AnnData):
        raise InvalidArgumentError(f"adata: expected an AnnData, found {type(adata).__name__}.")
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise InvalidArgumentError(f"adata.var_names: {twice!r} stands more than once; call var_names_make_unique().")
    which = places_of(genes, adata.var_names, "genes")
    columns = None if key_added is None else _new_columns(adata, key_added)
    totals = _totals(adata, layer)
    if isinstance(size_factors, str) and size_factors == TOTAL:
        size_factors = _sizes(totals)
    cells = Cells.of(adata, None, adata.n_obs)
    design = from_formula(formula, cells.table, as_numeric=as_numeric, n_cells=cells.n, argument="formula")
    dmat = pd.DataFrame(design.matrix, columns=design.names, index=adata.obs_names)
    if section_key is not None:
        labels = cells.levels(section_key, "section_key")
        for k, column in enumerate(section_columns(design.matrix, labels.codes).T):
            dmat[f"{section_key}: {k + 1}"] = column
    glm = ExpressionGLM(likelihood=likelihood)
    data = adata if genes is None else adata[:, which]
    glm.fit(data, dmat_loc=dmat, layer=layer, size_factors=size_factors)
    table = glm.test_spatial_variability(
        spatial_key=spatial_key, adj_key=adj_key, k_neighbors=k_neighbors, section_key=section_key
    )
    if columns is not None:
        for name, column in columns.items():
            adata.var[column] = table[name].reindex(adata.var_names, fill_value="" if name == "reason" else np.nan)
    return table


RESULTS = ("statistic", "pvalue", "pvalue_adj", "reason", "mean", "coverage")


def _new_columns(adata: ad.AnnData, key_added: str) -> dict[str, str]:
    """The column of ``adata.var`` for each one of the table, none of which is there."""
    if not isinstance(key_added, str) or not key_added:
        raise InvalidArgumentError(f"key_added: expected a word, found {key_added!r}.")
    if adata.is_view:
        raise InvalidArgumentError("key_added: adata is a view, which has no table of its own; give a copy of it.")
    columns = {name: f"{key_added}_{name}" for name in RESULTS}
    there = [column for column in columns.values() if column in adata.var]
    if there:
        raise InvalidArgumentError(f"key_added: adata.var has {there} already; delete these, or choose another key.")
    return columns


def _totals(adata: ad.AnnData, layer: str | None) -> Array:
    """Total count of each spot ``(N,)``, every entry checked.

    Raises
    ------
    InvalidArgumentError
        For entries that are no counts.
    """
    counts = CountMatrix(adata, layer=layer, counts=False)
    total = np.zeros(counts.shape[0])
    for spots, block in counts.cell_blocks():
        entries = block.data if sp.issparse(block) else block
        wrong = (entries < 0) | (entries != np.rint(entries))
        if wrong.any():
            where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
            raise InvalidArgumentError(
                f"{where}: expected raw counts, found {entries[wrong][0]:g}; name the layer that holds them by layer=, "
                "not normalized, scaled or corrected values."
            )
        total[spots] = np.asarray(block.sum(1, dtype=np.float64)).ravel()
    return total


def _sizes(totals: Array) -> Array:
    empty = np.flatnonzero(totals == 0)
    if len(empty):
        raise InvalidArgumentError(
            f"size_factors: {len(empty)} of {len(totals)} spots have no counts at all (first: row {empty[0]}); remove "
            "them (scanpy.pp.filter_cells(adata, min_counts=1)), or give size factors."
        )
    return totals / totals.mean()
