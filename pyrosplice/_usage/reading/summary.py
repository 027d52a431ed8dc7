"""Tables of what was measured: one row a gene, or one row an isoform."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import entr
from tqdm.auto import tqdm

from pyrosplice._usage.reading.isoforms import IsoformData, dense
from pyrosplice.errors import check_option


def feature_summary(data: IsoformData, *, level: str = "gene", print_progress: bool = False) -> pd.DataFrame:
    r"""Summary statistics of the filtered counts.

    Parameters
    ----------
    data
        Grouped isoform counts.
    level
        ``"gene"``: index gene, columns ``n_isos``, ``perplexity`` (:math:`\exp(-\sum p_k \log p_k)` of the usage
        over all spots), ``pct_bin_on`` (fraction of spots with a count), ``count_avg`` and ``count_std`` of the
        gene's count per spot. ``"isoform"``: index isoform, the columns of ``var`` and ``pct_bin_on``,
        ``count_total``, ``count_avg``, ``count_std``, ``ratio_total`` (share of the gene's counts), ``ratio_avg``
        and ``ratio_std`` (of the share per spot, over spots where the gene was seen). Standard deviations divide
        by the number of spots less one.
    print_progress
        Show a progress bar.

    Raises
    ------
    InvalidArgumentError
        Another ``level``.

    Examples
    --------
    >>> from pyrosplice.data import feature_summary, read_isoforms, simulate_isoforms
    >>> data = read_isoforms(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> feature_summary(data).columns.tolist()
    ['n_isos', 'perplexity', 'pct_bin_on', 'count_avg', 'count_std']
    >>> feature_summary(data, level="isoform").shape
    (9, 9)
    """
    check_option("level", level, ("gene", "isoform"))
    matrix = data.matrix
    genes = tqdm(data.columns, desc=f"{level} summary", disable=not print_progress)
    rows = [
        _gene_row(counts) if level == "gene" else _isoform_rows(counts)
        for counts in (dense(matrix[:, columns]) for columns in genes)
    ]
    if level == "gene":
        return pd.DataFrame(rows, index=pd.Index(data.gene_names, name="gene"))
    position = np.concatenate(data.columns)
    table = pd.concat(rows, ignore_index=True).set_axis(data.adata.var_names[position], axis=0)
    table = table.iloc[np.argsort(position)]
    return pd.concat([data.adata.var.drop(columns=table.columns, errors="ignore"), table], axis=1)


def _gene_row(counts: np.ndarray) -> dict[str, float]:
    total = counts.sum(1)
    usage = counts.sum(0) / total.sum()
    return {
        "n_isos": counts.shape[1],
        "perplexity": float(np.exp(entr(usage).sum())),
        "pct_bin_on": float((total > 0).mean()),
        "count_avg": float(total.mean()),
        "count_std": float(total.std(ddof=1)),
    }


def _isoform_rows(counts: np.ndarray) -> pd.DataFrame:
    total = counts.sum(1)
    covered = total > 0
    ratio = counts[covered] / total[covered, None]
    return pd.DataFrame(
        {
            "pct_bin_on": (counts > 0).mean(0),
            "count_total": counts.sum(0),
            "count_avg": counts.mean(0),
            "count_std": counts.std(0, ddof=1),
            "ratio_total": counts.sum(0) / total.sum(),
            "ratio_avg": ratio.mean(0),
            "ratio_std": ratio.std(0, ddof=1) if len(ratio) > 1 else np.nan,
        }
    )
