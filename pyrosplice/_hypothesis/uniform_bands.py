r"""What uniform numbers look like: exact intervals of a share, exact simultaneous bands of their distribution.

The chance that the counts of n independent uniform numbers below some points all stay between bounds is that of a walk
of Poisson counts from point to point, conditioned on n in the end (Khmaladze & Shinjikashvili 2001, Adv. Appl. Probab.
33:702; Moscovich & Nadler 2017, Stat. Probab. Lett. 123:177): no simulation, no limit law. Bands give every point the
same local level, which makes them tight in the tails too (Säilynoja, Bürkner & Vehtari 2022, Stat. Comput. 32:32).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binom, poisson

Array = NDArray[np.float64]
SURE = (10.0, 20)  # a Poisson count exceeds its mean by ten deviations and twenty with a chance below 1e-18


def exact_interval(rejected: int, tests: int, confidence: float = 0.99) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share: never covers less often than ``confidence``; NaN without tests."""
    if tests == 0:
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low = 0.0 if rejected == 0 else float(beta.ppf(tail, rejected, tests - rejected + 1))
    high = 1.0 if rejected == tests else float(beta.isf(tail, rejected + 1, tests - rejected))
    return low, high


def staying_probability(points: Array, lower: NDArray[np.int64], upper: NDArray[np.int64], n: int) -> float:
    """Chance that of ``n`` uniform numbers ``lower[k]`` to ``upper[k]`` are at or below ``points[k]``, for all k.

    Parameters
    ----------
    points
        ``(m,)``, in [0, 1], not decreasing.
    lower, upper
        ``(m,)``.
    """
    chance, least, before = np.ones(1), 0, 0.0
    for point, low, high in zip([*points, 1.0], [*lower, n], [*upper, n], strict=True):
        low, high = max(int(low), least), min(int(high), n)
        if high < low:
            return 0.0
        step = n * (point - before)
        most = min(high - least, int(step + SURE[0] * step**0.5) + SURE[1]) if step > 0 else 0
        moved = np.convolve(chance, poisson.pmf(np.arange(most + 1), step))
        chance = moved[low - least : high - least + 1]
        if not len(chance):
            return 0.0
        least, before = low, point
    return float(min(1.0, chance[-1] / poisson.pmf(n, n)))


@lru_cache(maxsize=64)
def order_band(size: int, confidence: float, *, simultaneous: bool) -> tuple[Array, Array]:
    """Band ``(size,)`` in which the order statistics of uniform numbers lie, each, or all of them at once."""
    rank = np.arange(1, size + 1)

    def edges(level: float) -> tuple[Array, Array]:
        return beta.ppf(level / 2, rank, size + 1 - rank), beta.isf(level / 2, rank, size + 1 - rank)

    def inside(level: float) -> float:
        low, high = edges(level)
        points = np.sort(np.concatenate([low, high]))
        least, most = np.searchsorted(high, points, side="right"), np.searchsorted(low, points, side="left")
        return staying_probability(points, least, most, size)

    return edges(_local_level(inside, 1 - confidence, 2 * size, 1e-3) if simultaneous else 1 - confidence)


@lru_cache(maxsize=64)
def rank_band(n: int, n_ranks: int, confidence: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of ``n`` uniform ranks 0, …, ``n_ranks`` − 1 below 1, 2, …, ``n_ranks`` − 1: the band of all at once."""
    points = np.arange(1, n_ranks) / n_ranks

    def edges(level: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        low, high = binom.ppf(level / 2, n, points), binom.isf(level / 2, n, points)
        return low.astype(np.int64), high.astype(np.int64)

    level = _local_level(lambda one: staying_probability(points, *edges(one), n), 1 - confidence, n_ranks, 1e-9)
    return edges(level)


def rank_pvalue(ranks: NDArray[np.int64], n_ranks: int) -> float:
    """Exact p-value of uniform ranks 0, …, ``n_ranks`` − 1: of the smallest local level of their distribution."""
    n, points = len(ranks), np.arange(1, n_ranks) / n_ranks
    below = np.searchsorted(np.sort(ranks), np.arange(1, n_ranks), side="left")
    level = min(1.0, float(np.minimum(binom.cdf(below, n, points), binom.sf(below - 1, n, points)).min()))
    above = level * (1 + 1e-9)  # bands of all that is less extreme
    low, high = binom.ppf(above, n, points), binom.isf(above, n, points)
    return 1.0 - staying_probability(points, low.astype(np.int64), high.astype(np.int64), n)


def _local_level(inside: Callable[[float], float], outside: float, n_points: int, tolerance: float) -> float:
    """Level of each point at which all stay inside but for a chance of ``outside``; never more than that chance."""

    def excess(log_level: float) -> float:
        return 1 - inside(float(np.exp(log_level))) - outside

    low, high = np.log(outside / n_points) - 1e-9, np.log(outside)
    if excess(high) <= 0:  # one point
        return outside
    found = brentq(excess, low, high, xtol=tolerance)
    while excess(found) > 0:  # chances of counts go in steps
        found -= tolerance
    return float(np.exp(found))
