"""Why a test gave no p-value, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice.reasons import Reason

WITHOUT_TESTS = (Reason.NO_COUNTS, Reason.SEPARATED, Reason.ALL_OR_NOTHING, Reason.NOT_FINITE, Reason.RAISED)
"""Reasons of fits that no test rests on."""


def reasons_of(
    pvalue: NDArray[np.float64],
    counts: Sequence[Tensor],
    *,
    rank: NDArray[np.float64] | None = None,
    fits: Sequence[Sequence[FittedGene]] | None = None,
    from_residuals: bool = True,
) -> NDArray[Any]:
    """Words of :class:`~pyrosplice.reasons.Reason` where ``pvalue``, ``(G,)`` or ``(G, T)``, is missing, "" elsewhere.

    Parameters
    ----------
    counts
        Counts of each gene, ``(N, K)``.
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
        reason = Reason.FEW_SPOTS if from_residuals else Reason.NOT_FINITE
        if fits is not None:
            reason = Reason.ENDLESS_SIGMA if any(fit.has_endless_sigma for fit in fits[gene]) else reason
            reason = next((fit.reason for fit in fits[gene] if fit.reason in WITHOUT_TESTS), reason)
        found = np.full(missing.shape, reason.value, dtype=object)
        if rank is not None:
            found = np.where(rank[gene] == 0, Reason.NOT_IDENTIFIED.value, found)
        if seen < min(2, counts[gene].shape[1]):
            found = np.full(missing.shape, (Reason.ONE_ISOFORM if seen else Reason.NO_COUNTS).value, dtype=object)
        elif seen < counts[gene].shape[1]:
            found = np.where(found == Reason.NOT_IDENTIFIED, found, Reason.SEPARATED.value)
        reasons[gene, ...] = np.where(missing, found, "")
    return reasons
