"""Results as tables: one row a gene, or one row a gene and covariate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyrosplice.hypothesis.test_table import TestTable
from pyrosplice.usage.records import FittedGene


def test_table(results: dict[str, Any]) -> TestTable:
    """What a test of usage found: a row a gene, or a gene and covariate (covariates within genes)."""
    genes, covariates = results["gene"], results.get("covariate")
    labels = {"gene": genes}
    if covariates is not None:
        labels = {"gene": np.repeat(genes, len(covariates)), "covariate": np.tile(covariates, len(genes))}
    found = {name: np.ravel(results[name]) for name in ("statistic", "pvalue", "pvalue_adj")}
    more: dict[str, Any] = {n: np.ravel(results[n]) for n in ("posterior_df", "reliable") if n in results}
    return TestTable(labels=labels, **found, why=np.ravel(np.asarray(results["reason"], dtype=object)), more=more)


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
            "reason": state.reason.value,
        }
        for state in fitted
    ]
    return pd.DataFrame(rows, index=pd.Index(genes, name="gene"))
