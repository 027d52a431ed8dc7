"""Results as tables: one row a gene, or one row a gene and covariate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyrosplice.usage.records import FittedGene


def sv_table(results: dict[str, Any]) -> pd.DataFrame:
    """Spatial variability: ``gene``, ``statistic``, ``pvalue``, ``pvalue_adj``; ``reason`` if some are missing."""
    table = pd.DataFrame({name: results[name] for name in ("gene", "statistic", "pvalue", "pvalue_adj")})
    return _with_reasons(table, results)


def du_table(results: dict[str, Any]) -> pd.DataFrame:
    """Differential usage: ``gene``, ``covariate`` (within genes) and the same, ``posterior_df`` and ``reliable``."""
    genes, covariates = results["gene"], results["covariate"]
    index = {"gene": np.repeat(genes, len(covariates)), "covariate": np.tile(covariates, len(genes))}
    names = ["statistic", "pvalue", "pvalue_adj", *(n for n in ("posterior_df", "reliable") if n in results)]
    values = {name: np.asarray(results[name]).reshape(-1) for name in names}
    return _with_reasons(pd.DataFrame(index | values), results)


def _with_reasons(table: pd.DataFrame, results: dict[str, Any]) -> pd.DataFrame:
    """With a column ``reason`` if p-values are missing: why, or "" (files of earlier versions do not know)."""
    reasons = np.asarray(results.get("reason", []), dtype=object).reshape(-1)
    return table.assign(reason=reasons) if len(reasons) == len(table) and (reasons != "").any() else table


def training_table(model_type: str, genes: Sequence[str], fitted: Sequence[FittedGene]) -> pd.DataFrame:
    """How each gene's fit went, indexed by gene."""
    rows = [
        {
            "model_type": model_type,
            "converged": state.converged,
            "best_loss": state.best_loss,
            "best_epoch": state.best_epoch,
            "fitting_time_s": state.fitting_time_s,
            "n_iter": state.n_iter,
            "reason": state.reason,
        }
        for state in fitted
    ]
    return pd.DataFrame(rows, index=pd.Index(genes, name="gene"))
