"""Tests whether an effect exceeds a threshold, either way or in one direction, by its estimate and standard error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def threshold_test(effect: Array, se: Array, threshold: float, df: Array | float | None) -> tuple[Array, Array]:
    r"""Distance beyond the threshold in standard errors, with the effect's sign, and p-value of :math:`|\beta| \le c`.

    .. math:: p = P(T > (|b| - c) / s) + P(T > (|b| + c) / s)

    which is uniform at either end of the null where the standard error is known, and the two-sided p-value where c is
    0. Normal, or Student's t with ``df``, whose level is then a little below: with c one true standard error, 4.7 % of
    p-values are below 5 % at 5 degrees of freedom, and 4.4 to 5.0 % at 3, by the size of c. NaN where
    effect or standard error are not finite. Source: McCarthy & Smyth (2009) Bioinformatics 25:765.
    """
    size, error = _known(np.abs(effect), se)
    below, above = (size - threshold) / error, (size + threshold) / error
    pvalue = _tail(below, df) + _tail(above, df)
    return np.sign(effect) * np.maximum(below, 0.0), np.minimum(pvalue, 1.0)


def one_sided_test(
    effect: Array, se: Array, threshold: float, df: Array | float | None, *, greater: bool
) -> tuple[Array, Array]:
    r"""Distance of the effect from the threshold in standard errors, and p-value of the null on its other side.

    ``greater``: the null is :math:`\beta \le c`, and :math:`p = P(T > (b - c) / s)`; else it is
    :math:`\beta \ge -c`, and :math:`p = P(T < (b + c) / s)`. The laws are those of :func:`threshold_test`.
    """
    value, error = _known(effect, se)
    statistic = (value - threshold if greater else value + threshold) / error
    return statistic, _tail(statistic if greater else -statistic, df)


def _known(effect: Array, se: Array) -> tuple[Array, Array]:
    """Effects and standard errors that a test can use, NaN elsewhere."""
    known = np.isfinite(effect) & np.isfinite(se) & (se > 0)
    return np.where(known, effect, np.nan), np.where(known, se, np.nan)


def _tail(statistic: Array, df: Array | float | None) -> Array:
    """Probability of more than the statistic: normal, or Student's t."""
    free = np.inf if df is None else np.where(np.isnan(df), np.nan, df)
    return np.where(np.isinf(free), stats.norm.sf(statistic), stats.t.sf(statistic, np.minimum(free, 1e300)))
