"""False discovery rate over genes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control


def adjust_pvalues(pvalues: ArrayLike) -> np.ndarray:
    """Benjamini–Hochberg adjusted p-values of each column.

    Parameters
    ----------
    pvalues
        ``(G,)`` or ``(G, C)``: genes, covariates. NaN (not tested) stays NaN and does not count as a test.

    Returns
    -------
    numpy.ndarray
        Adjusted p-values of the same shape.
    """
    values = np.array(pvalues, dtype=np.float64)
    columns = values.reshape(len(values), -1) if values.size else values
    for column in columns.T:
        tested = ~np.isnan(column)
        if tested.any():
            column[tested] = false_discovery_control(column[tested], method="bh")
    return columns.reshape(values.shape)


def adjust_jointly(pval: ArrayLike) -> NDArray[np.float64]:
    """Benjamini–Hochberg q-values over all entries of an array of any shape; NaN stays NaN, and is no test."""
    values = np.asarray(pval, dtype=np.float64)
    return adjust_pvalues(values.ravel()).reshape(values.shape)
