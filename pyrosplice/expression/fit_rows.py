"""What fits and tests of expression say about themselves, in rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.expression.constraints import Constraints
from pyrosplice.expression.engine.endless_contrasts import identified_contrasts, in_span
from pyrosplice.expression.engine.gene_fits import GlmFit
from pyrosplice.hypothesis.fdr import adjust_jointly
from pyrosplice.optimize.convergence import FitCode
from pyrosplice.representation import FDR


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


def describe_reasons(reasons: Iterable[str]) -> str:
    """How the fits of a model of one's own ended: ``298 converged, 2 stalled``."""
    return ", ".join(f"{number} {reason}" for reason, number in Counter(reasons).most_common())


def describe_codes(codes: Any) -> str:
    """How the fits of expression ended: ``298 converged, 2 separated``."""
    kinds, counts = np.unique(np.asarray(codes), return_counts=True)
    order = np.argsort(-counts)
    return ", ".join(f"{counts[i]} {FitCode(kinds[i]).name.lower().replace('_', ' ')}" for i in order)


def coefficient_rows(
    fit: GlmFit, constraints: Constraints, genes: NDArray[np.object_], names: Sequence[str]
) -> pd.DataFrame:
    """One row a gene and location coefficient; :meth:`pyrosplice.ExpressionGLM.summary` documents it."""
    p = fit.n_location
    full = constraints.full(fit.theta[:, :p].T).T
    inner, rows = fit.inner_covariance, constraints.matrix @ fit.basis.matrix[:p, :p]
    known, infinite = (np.asarray(v) for v in (np.isfinite(inner).all((1, 2)), np.isinf(inner).any((1, 2))))
    variance = (rows @ np.where(known[:, None, None], inner, 0.0) * rows).sum(2)
    variance[~known] = np.where(infinite, np.inf, np.nan)[~known, None]
    for gene, kept in identified_contrasts(fit, constraints.matrix).items():
        variance[gene, ~in_span(kept)] = np.inf
    return pd.DataFrame(
        {
            "gene": np.repeat(genes, full.shape[1]),
            "coefficient": np.tile(names, len(full)),
            "estimate": full.ravel(),
            "se": np.sqrt(variance).ravel(),
            "code": np.repeat([FitCode(k).name.lower() for k in fit.code], full.shape[1]),
        }
    )
