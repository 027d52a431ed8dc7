"""Results as tables: one row a gene, or one row a gene and covariate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyrosplice.estimators.fitted import FittedGene


def sv_table(results: dict[str, Any]) -> pd.DataFrame:
    """Spatial variability: ``gene``, ``statistic``, ``pvalue``, ``pvalue_adj``."""
    return pd.DataFrame({name: results[name] for name in ("gene", "statistic", "pvalue", "pvalue_adj")})


def du_table(results: dict[str, Any]) -> pd.DataFrame:
    """Differential usage: ``gene``, ``covariate`` (within genes), ``statistic``, ``pvalue``, ``pvalue_adj``."""
    genes, covariates = results["gene"], results["covariate"]
    index = {"gene": np.repeat(genes, len(covariates)), "covariate": np.tile(covariates, len(genes))}
    values = {name: np.asarray(results[name]).reshape(-1) for name in ("statistic", "pvalue", "pvalue_adj")}
    return pd.DataFrame(index | values)


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
