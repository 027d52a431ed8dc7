r"""The score test of counts by its saddlepoint law: right where few counts decide, and groups differ much in size.

Under the null hypothesis the score :math:`S = \sum_i c_i (y_i - \mu_i)` is a sum of independent negative-binomial
counts with known weights, so all of its law is known through

.. math:: K(t) = \sum_i \Big[-\tfrac1{\alpha_i} \log\big(1 - \alpha_i \mu_i (e^{c_i t} - 1)\big) - c_i t \mu_i\Big] .

With t solving :math:`K'(t) = S`, :math:`r = \pm\sqrt{2 (t S - K(t))}` and :math:`u = t \sqrt{K''(t)}`, the root
:math:`r^* = r + \log(u / r) / r` is standard normal to third order, far into both tails (Barndorff-Nielsen 1986;
Lugannani and Rice 1980; for tests of unbalanced groups, Dey and others 2017). The χ² law of likelihood ratio and score
knows nothing of the third moment, which is large where the smaller group has a handful of counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
STEPS = 60
FARTHEST = 40.0  # of c t: a tilt of e⁴⁰ is beyond any count
POISSON = 1e-9  # dispersion below which it changes no digit
CENTER = 1e-3  # |r| below which the correction is its limit


@dataclass(frozen=True)
class NullScore:
    """A score and what its law is made of, genes × kinds of cells.

    ``score`` ``(G,)``; ``weight`` c and ``mean`` μ ``(G, N)``; ``dispersion`` α ``(G, 1)`` or ``(G, N)``; ``cells`` of
    each kind ``(N,)``.
    """

    score: Array
    weight: Array
    mean: Array
    dispersion: Array
    cells: Array


def saddlepoint_test(null: NullScore) -> tuple[Array, Array]:
    """The corrected signed root r* and its two-sided p-value ``(G,)``, twice that of the smaller tail."""
    root = np.full(len(null.score), np.nan)
    dispersion = np.maximum(null.dispersion, POISSON)
    finite = np.isfinite(null.score) & np.isfinite(null.weight).all(1) & np.isfinite(null.mean).all(1)
    good = finite & ((null.weight != 0) & (null.mean > 0)).any(1)
    if good.any():
        root[good] = _root(null.score[good], null.weight[good], null.mean[good], dispersion[good], null.cells)
    return root, np.minimum(2 * stats.norm.sf(np.abs(root)), 1.0)


def _root(score: Array, c: Array, mean: Array, alpha: Array, cells: Array) -> Array:
    odds = np.log1p(1 / (alpha * np.maximum(mean, 1e-300)))
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.minimum(odds, FARTHEST) / np.abs(c)  # beyond it, no moment exists
    high = np.where(c > 0, reach, np.inf).min(1)
    low = -np.where(c < 0, reach, np.inf).min(1)
    end = FARTHEST / np.abs(c).max(1)
    low, high = np.where(np.isfinite(low), low, -end), np.where(np.isfinite(high), high, end)
    t = np.zeros(len(score))
    low, high = np.where(score > 0, 0.0, low), np.where(score > 0, high, 0.0)
    for _ in range(STEPS):
        q = _tilted(t, c, mean, alpha)
        gap = (c * (q - mean)) @ cells - score
        curve = (c**2 * q * (1 + alpha * q)) @ cells
        low, high = np.where(gap < 0, t, low), np.where(gap < 0, high, t)
        new = t - gap / curve
        new = np.where((new > low) & (new < high), new, (low + high) / 2)
        moved = np.abs(new - t) * np.sqrt(curve)
        t = np.where(gap == 0, t, new)
        if (moved < 1e-10).all():
            break
    q = _tilted(t, c, mean, alpha)
    x = t[:, None] * c
    cumulant = (-np.log1p(-alpha * mean * np.expm1(x)) / alpha - x * mean) @ cells
    r = np.sign(t) * np.sqrt(2 * np.maximum(t * score - cumulant, 0.0))
    u = t * np.sqrt((c**2 * q * (1 + alpha * q)) @ cells)
    spread = mean * (1 + alpha * mean)
    skewness = (c**3 * spread * (1 + 2 * alpha * mean)) @ cells / ((c**2 * spread) @ cells) ** 1.5
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(r) < CENTER, r + skewness / 6, r + np.log(u / r) / r)


def _tilted(t: Array, c: Array, mean: Array, alpha: Array) -> Array:
    """Means of the counts where each is as likely as its score says: tilted by ``e^{c t y}``."""
    x = t[:, None] * c
    return mean * np.exp(x) / np.maximum(1 - alpha * mean * np.expm1(x), 1e-12)
