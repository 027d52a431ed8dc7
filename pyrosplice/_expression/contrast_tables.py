"""Tests of genes as tidy tables, their first rows, matrices of statistics, and in an AnnData as scanpy reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._results.annotations import Annotations, storable_table
from pyrosplice._results.layouts import GeneSymbols, in_layout, top_rows, wide_statistics, with_symbols
from pyrosplice._results.rank_genes import one_way_scores, rank_genes_groups, signed_scores
from pyrosplice.errors import check_option

FIRST = ("gene", "contrast", "mean", "log2fc", "effect", "se", "lower", "upper", "statistic", "score")
AFTER = ("pvalue", "pvalue_adj", "reason", "fit_ended", "df", "unit", "n_units")
ASKED = ("lfc_threshold", "alternative", "filtered")
OF_GENES = ("log2fc", "score", "pvalue", "pvalue_adj", "reason")


class Tabulated(Protocol):
    """Results of tests of every gene, in one contrast or several."""

    groupby: str
    reference: str
    method: str

    @property
    def gene_ids(self) -> NDArray[np.object_]: ...

    def to_frame(
        self, *, gene_symbols: GeneSymbols = None, layout: str = "pyrosplice", level: float = 0.95
    ) -> pd.DataFrame:
        """Tabulate them, a row a contrast and gene."""


def joined_contrasts(
    frames: Iterable[tuple[str, pd.DataFrame]], *, gene_symbols: GeneSymbols, layout: str
) -> pd.DataFrame:
    """One tidy table of the tables of several contrasts, by name, a row a contrast and gene."""
    parts = []
    for name, frame in frames:
        effect, pvalue = frame.get("effect", frame["log2fc"]).to_numpy(), frame["pvalue"].to_numpy()
        direction = frame["alternative"].iloc[0] if "alternative" in frame and len(frame) else "two-sided"
        score = signed_scores(pvalue, effect) if direction == "two-sided" else one_way_scores(pvalue, direction)
        part = frame.assign(contrast=name, score=score)
        parts.append(part[[column for column in (*FIRST, *AFTER, *ASKED) if column in part]])
    table = in_layout(with_symbols(pd.concat(parts, ignore_index=True), gene_symbols), layout)
    table.attrs |= parts[0].attrs if len(parts) == 1 else {}
    return table


def top_table(
    self: Tabulated,
    n: int | None = 10,
    *,
    sort_by: str = "pvalue",
    alpha: float | None = None,
    contrast: str | None = None,
    gene_symbols: GeneSymbols = None,
) -> pd.DataFrame:
    """Tabulate the first genes: the ``n`` first rows of :meth:`to_frame` by a column.

    Parameters
    ----------
    n
        How many rows; None for all.
    sort_by
        ``"pvalue"`` and other columns upwards; ``"effect"``, ``"log2fc"``, ``"statistic"`` and ``"score"`` by size,
        largest first; ``"mean"`` downwards. Missing values are last.
    alpha
        Keep rows with ``pvalue_adj`` of at most this; None keeps all.
    contrast
        One of the contrasts; all by default.
    gene_symbols
        As in :meth:`to_frame`.

    Raises
    ------
    InvalidArgumentError
        A column of no numbers; a contrast that was not tested; ``alpha`` outside (0, 1).

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> test = de.test.wald(adata, formula_loc="~ group", factor_loc_totest="group")
    >>> test.top_table(1, alpha=0.05)[["gene", "reason"]]
         gene reason
    0  gene_1
    """
    table = self.to_frame(gene_symbols=gene_symbols)
    if contrast is not None:
        table = table[table["contrast"] == _one_of(contrast, table["contrast"])]
    return top_rows(table, n=n, sort_by=sort_by, alpha=alpha)


def to_matrix(self: Tabulated, value: str = "score") -> pd.DataFrame:
    """Arrange statistics as contrasts × genes, as decoupler's methods take them (``dc.mt.ulm(data=..., net=...)``).

    Parameters
    ----------
    value
        ``"score"`` (standard normal score of the p-value with the sign of the effect), ``"statistic"``, ``"log2fc"`` or
        ``"effect"``. A gene without one has 0.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
    >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
    >>> tests = de.test.versus_rest(adata, "type")
    >>> tests.to_matrix().shape, tests.to_matrix().index.tolist()  # contrasts × genes
    ((3, 3), ['B', 'NK', 'T'])
    """
    return wide_statistics(self.to_frame(), value)


def write_tests(self: Tabulated, adata: ad.AnnData, key_added: str = "rank_genes_groups") -> pd.DataFrame:
    """Write the tests to an AnnData, where ``sc.pl.rank_genes_groups`` and ``sc.get.rank_genes_groups_df`` read them.

    ``uns[key_added]`` has scanpy's ``names``, ``scores``, ``pvals``, ``pvals_adj`` and ``logfoldchanges``, a field a
    contrast, and ``results``, the table of :meth:`to_frame`. Scores are standard normal scores of the p-values with the
    sign of the effect; a gene without a test has score 0 and p-values 1 there, as in scanpy, and NaN and its reason in
    ``results``. Of one contrast ``var`` has ``<key_added>_log2fc``, ``_score``, ``_pvalue``, ``_pvalue_adj`` and
    ``_reason`` too. Survives h5ad and zarr files.

    Parameters
    ----------
    adata
        Has the genes of the test, in any order; further ones have no results.
    key_added
        Key of ``uns``; ``key=`` of scanpy's functions.

    Returns
    -------
    DataFrame
        What was written: ``part``, ``key``, ``missing``.

    Raises
    ------
    InvalidArgumentError
        A view; genes that are not in ``adata``; a key that is not of earlier tests.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
    >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
    >>> tests = de.test.versus_rest(adata, "type")
    >>> _ = tests.write(adata)
    >>> adata.uns["rank_genes_groups"]["names"]["T"][0]  # as scanpy reads it
    'gene_1'
    """
    table = self.to_frame()
    frames = dict(list(table.groupby("contrast", sort=False)))
    params = {"groupby": self.groupby, "reference": self.reference, "method": self.method, "use_raw": False}
    one = next(iter(frames.values())) if len(frames) == 1 else None
    return Annotations(
        kind="tests of genes",
        genes=pd.Index(self.gene_ids),
        var={} if one is None else {name: one[name].to_numpy() for name in OF_GENES},
        uns={**rank_genes_groups(frames), "results": storable_table(table)},
        settings={**params, "corr_method": "benjamini-hochberg"},
    ).write(adata, key_added)


def _one_of(contrast: str, names: pd.Series) -> str:
    known: Mapping[str, None] = dict.fromkeys(names)
    check_option("contrast", contrast, known)
    return contrast
