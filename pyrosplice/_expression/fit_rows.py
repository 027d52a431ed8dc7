"""What fits and tests of expression say about themselves, in rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._expression.engine.endless_contrasts import identified_contrasts, in_span
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._hypothesis.fdr import adjust_jointly
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._representation import FDR
from pyrosplice.reasons import Reason


def describe_genes(pval: Any, names: Any, *, shown: int = 5) -> dict[str, str]:
    """Rows on the p-values (G,) of a test: how many, how many found, the smallest."""
    found, asked = int((adjust_jointly(pval) <= FDR).sum()), int(np.isfinite(pval).sum())
    order = np.argsort(np.where(np.isfinite(pval), pval, np.inf))[: min(shown, asked)]
    smallest = ", ".join(f"{names[i]} ({pval[i]:.2g})" for i in order)
    return {
        "tested": f"{asked} of {len(pval)} genes",
        "found": f"{found} at FDR {FDR:.0%}",
        "smallest p": smallest or "none",
    }


def coefficient_rows(
    fit: GlmFit,
    constraints: Constraints,
    genes: NDArray[np.object_],
    names: Sequence[str],
    robust: RobustCovariance | None = None,
) -> pd.DataFrame:
    """Tabulate location coefficients, a row each; :meth:`pyrosplice.ExpressionGLM.summary` documents it.

    ``robust``: covariance of the free location coefficients and what is identified of all, where not the fit's own.
    """
    p = fit.n_location
    full = constraints.full(fit.theta[:, :p].T).T
    inner, rows, identified = fit.inner_covariance, constraints.matrix @ fit.basis.matrix[:p, :p], None
    if robust is not None:
        inner, rows, identified = robust.covariance, constraints.matrix, robust.identified
    known, infinite = (np.asarray(v) for v in (np.isfinite(inner).all((1, 2)), np.isinf(inner).any((1, 2))))
    variance = (rows @ np.where(known[:, None, None], inner, 0.0) * rows).sum(2)
    variance[~known] = np.where(infinite, np.inf, np.nan)[~known, None]
    identified = identified_contrasts(fit, constraints.matrix) if identified is None else identified
    for gene, kept in identified.items():
        variance[gene, ~in_span(kept)] = np.inf
    ended = np.repeat(fit.reason, full.shape[1])
    return TestTable(
        labels={"gene": np.repeat(genes, full.shape[1]), "coefficient": np.tile(names, len(full))},
        effect=full,
        se=np.sqrt(variance),
        why=unless_ended(ended, Reason.NOT_IDENTIFIED.value),
        more={"fit_ended": ended},
    ).to_frame()
