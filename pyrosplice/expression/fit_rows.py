"""What tests of expression say about themselves, in rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrosplice.hypothesis.fdr import adjust_jointly
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
