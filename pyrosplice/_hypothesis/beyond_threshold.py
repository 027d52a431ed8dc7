"""Tests whether an effect exceeds a threshold, either way, by its estimate and standard error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def threshold_test(effect: Array, se: Array, threshold: float, df: Array | float | None) -> tuple[Array, Array]:
    r"""Distance beyond the threshold in standard errors, with the effect's sign, and p-value of :math:`|\beta| \le c`.

    .. math:: p = P(T > (|b| - c) / s) + P(T > (|b| + c) / s)

    which is uniform at either end of the null, and the two-sided p-value where c is 0. Normal, or Student's t with
    ``df``: with a standard error of 5 degrees of freedom, and c one true standard error, 4.7 % are below 5 %. NaN where
    effect or standard error are not finite. Source: McCarthy & Smyth (2009) Bioinformatics 25:765.
    """
    known = np.isfinite(effect) & np.isfinite(se) & (se > 0)
    size, error = np.where(known, np.abs(effect), np.nan), np.where(known, se, np.nan)
    below, above = (size - threshold) / error, (size + threshold) / error
    free = np.inf if df is None else np.where(np.isnan(df), np.nan, df)
    pvalue = np.zeros_like(size)
    for end in (below, above):
        pvalue += np.where(np.isinf(free), stats.norm.sf(end), stats.t.sf(end, np.minimum(free, 1e300)))
    return np.sign(effect) * np.maximum(below, 0.0), np.minimum(pvalue, 1.0)
