"""Why a test gave no p-value, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.optimize.convergence import REASONS
from pyrosplice.usage.records import FittedGene

TEST_REASONS: dict[str, str] = {
    "no_counts": "the gene has no counts",
    "one_isoform": "one isoform of the gene is seen, so that its usage does not vary",
    "not_identified": "over the spots where the gene has counts, what is tested does not vary beside the rest",
    "separated": REASONS["separated"],
    "all_or_nothing": REASONS["all_or_nothing"],
    "endless_sigma": "σ is above 5, nearly every spot has one isoform only: the score test is right, or give σ a prior",
    "few_modes": "the covariate is like one or two waves over the tissue, which holds no replicate of them",
    "between_sections": "the covariate is constant in every section, and sections are too few to replicate it",
    "few_spots": "the spots leave no degrees of freedom for the variance of the residuals",
    "not_finite": REASONS["not_finite"],
    "raised": REASONS["raised"],
}


def reasons_of(
    pvalue: NDArray[np.float64],
    counts: Sequence[Tensor],
    *,
    rank: NDArray[np.float64] | None = None,
    fits: Sequence[Sequence[FittedGene]] | None = None,
    from_residuals: bool = True,
) -> NDArray[Any]:
    """Names among :data:`TEST_REASONS` where ``pvalue``, ``(G,)`` or ``(G, T)``, is missing, "" elsewhere.

    Parameters
    ----------
    counts
        Of each gene, ``(N, K)``.
    rank
        Columns that each test has, in the shape of ``pvalue``.
    fits
        What the tests of a gene rest on.
    from_residuals
        Whether they need degrees of freedom.
    """
    reasons = np.full(pvalue.shape, "", dtype=object)
    for gene in np.unique(np.nonzero(np.isnan(pvalue))[0]):
        seen = int((counts[gene].sum(0) > 0).sum())
        missing = np.isnan(pvalue[gene])
        reason = "few_spots" if from_residuals else "not_finite"
        if fits is not None:
            reason = "endless_sigma" if any(fit.has_endless_sigma for fit in fits[gene]) else reason
            reason = next((fit.reason for fit in fits[gene] if fit.reason in TEST_REASONS), reason)
        found = np.full(missing.shape, reason, dtype=object)
        if rank is not None:
            found = np.where(rank[gene] == 0, "not_identified", found)
        if seen < min(2, counts[gene].shape[1]):
            found = np.full(missing.shape, "one_isoform" if seen else "no_counts", dtype=object)
        elif seen < counts[gene].shape[1]:
            found = np.where(found == "not_identified", found, "separated")
        reasons[gene, ...] = np.where(missing, found, "")
    return reasons
