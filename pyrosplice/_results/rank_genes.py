"""Tests of genes in the structure of scanpy's ``rank_genes_groups``, which its tables and figures read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
SMALLEST = float(np.finfo(np.float64).tiny)
MOST_SCORE = float(stats.norm.isf(SMALLEST))
FIELDS = {"names": "gene", "scores": "score", "pvals": "pvalue", "pvals_adj": "pvalue_adj", "logfoldchanges": "log2fc"}


def signed_scores(pvalue: Array, effect: Array) -> Array:
    """Standard normal scores ``(G,)`` of two-sided p-values, with the sign of the effect; NaN without a p-value."""
    return np.sign(effect) * stats.norm.isf(np.clip(pvalue, SMALLEST, 1.0) / 2)


def one_way_scores(pvalue: Array, alternative: str) -> Array:
    """Standard normal scores ``(G,)`` of one-sided p-values: positive where expression is higher."""
    score = stats.norm.isf(np.clip(pvalue, SMALLEST, 1.0))
    return np.maximum(score, -MOST_SCORE) if alternative == "greater" else np.minimum(-score, MOST_SCORE)


def rank_genes_groups(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Arrays of scanpy's structure: a field a comparison, genes by score, largest first.

    As in scanpy a gene without a test has score 0 and p-values 1, as its figures take no NaN; the tables that the
    structure is made of say why it has none.

    Parameters
    ----------
    tables
        By comparison: ``gene``, ``score``, ``pvalue``, ``pvalue_adj`` and ``log2fc``, the same genes in each.
    """
    untested = {"score": 0.0, "pvalue": 1.0, "pvalue_adj": 1.0}
    known = {name: table.fillna(untested) for name, table in tables.items()}
    ordered = {name: t.iloc[np.argsort(-t["score"].to_numpy(), kind="stable")] for name, t in known.items()}
    types = {"names": object, "scores": np.float32, "pvals": np.float64, "pvals_adj": np.float64}
    return {
        name: np.rec.fromarrays(
            [table[column].to_numpy() for table in ordered.values()],
            dtype=[(group, types.get(name, np.float32)) for group in ordered],
        )
        for name, column in FIELDS.items()
    }
