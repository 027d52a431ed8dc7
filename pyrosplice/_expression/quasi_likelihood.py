r"""Quasi-likelihood F-tests: variances moderated over genes.

A gene's quasi-dispersion :math:`s_g^2` is its deviance over the residual degrees of freedom. Across genes
:math:`s_g^2 \sim s_0^2 F(d_g, d_0)`; the moderated variance is the posterior mean (Smyth 2004, section 6.2)

.. math:: \tilde s_g^2 = \frac{d_0 s_0^2 + d_g s_g^2}{d_0 + d_g}, \qquad
          F = \frac{(D_{red} - D_{full}) / k}{\tilde s_g^2} \sim F(k, d_0 + d_g)

(Lund, Nettleton, McCarthy and Smyth 2012). A unit deviance has mean one only where counts are large and the dispersion
is small; elsewhere the deviance is divided by what the model expects of it (:func:`expected_unit_deviance`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import digamma, polygamma, xlogy

Array = NDArray[np.float64]
SUMMED_BELOW = 15.0
MOST_COUNT = 600


@dataclass(frozen=True)
class SqueezedVariance:
    """Moderated variances ``posterior``, the prior's ``location`` (G,) and degrees of freedom ``prior_df``."""

    posterior: Array
    location: Array
    prior_df: float


def squeeze_variance(s2: Array, df: Array, *, covariate: Array | None = None) -> SqueezedVariance:
    """Estimate :math:`s_0^2` (a natural spline in ``covariate``, if given) and :math:`d_0` by moments of ``log s2``.

    Parameters
    ----------
    s2, df : (G,)
        Variances and their degrees of freedom; genes with ``df`` zero or ``s2`` NaN do not enter.
    covariate : (G,), optional
        Mean log expression.
    """
    use = (df > 0) & np.isfinite(s2)
    floor = 1e-5 * np.median(s2[use])
    z = np.log(np.maximum(s2[use], floor))
    e = z - digamma(df[use] / 2) + np.log(df[use] / 2)
    location = np.full(len(s2), np.nan)
    if covariate is None or use.sum() < 20:
        fitted, rank = np.full(use.sum(), e.mean()), 1
        location[:] = e.mean()
    else:
        basis = natural_spline(covariate, np.quantile(covariate[use], [0.0, 0.25, 0.5, 0.75, 1.0]))
        coefficients, _, rank, _ = np.linalg.lstsq(basis[use], e, rcond=None)
        location = basis @ coefficients
        fitted = location[use]
    spread = float(np.square(e - fitted).sum() / max(len(e) - rank, 1) - polygamma(1, df[use] / 2).mean())
    if spread > 0:
        prior_df = 2 * float(inverse_trigamma(spread))
        location = np.exp(location + digamma(prior_df / 2) - np.log(prior_df / 2))
        posterior = (prior_df * location + df * np.where(use, s2, 0.0)) / (prior_df + df)
    else:
        prior_df, location = np.inf, np.exp(location)
        posterior = location.copy()
    return SqueezedVariance(posterior, location, float(prior_df))


def inverse_trigamma(x: Array | float) -> Array:
    """The y with ``trigamma(y) = x``, by Newton on 1 / trigamma (Smyth 2004, appendix)."""
    x = np.asarray(x, dtype=np.float64)
    y = np.where(x > 1e7, 1 / np.sqrt(x), np.where(x < 1e-6, 1 / x, 0.5 + 1 / x))
    middle = (x <= 1e7) & (x >= 1e-6)
    for _ in range(50):
        tri = polygamma(1, y)
        step = np.where(middle, tri * (1 - tri / x) / polygamma(2, y), 0.0)
        y = y + step
        if (-step / y < 1e-9).all():
            break
    return np.asarray(y)


def natural_spline(x: Array, knots: Array) -> Array:
    """Natural cubic spline basis ``(n, len(knots))``: constant, linear, and cubic between the knots, linear outside."""
    knots = np.unique(knots)
    if len(knots) < 3:
        return np.column_stack([np.ones_like(x), x])

    def cubic(k: int) -> Array:
        last = knots[-1]
        return (np.maximum(x - knots[k], 0) ** 3 - np.maximum(x - last, 0) ** 3) / (last - knots[k])

    columns = [cubic(k) - cubic(len(knots) - 2) for k in range(len(knots) - 2)]
    return np.column_stack([np.ones_like(x), x, *columns])


def expected_unit_deviance(mean: Array, dispersion: Array) -> Array:
    r"""Mean of the negative-binomial unit deviance at the true mean, ``(G,)``.

    Summed over the distribution up to mean 15; beyond, that of a gamma with the same coefficient of variation,
    :math:`2k(\log k - \psi(k))` with :math:`1/k = 1/\mu + \alpha`.
    """
    k = 1 / (1 / mean + dispersion)
    out = 2 * k * (np.log(k) - digamma(k))
    y = np.arange(MOST_COUNT + 1.0)
    few = np.flatnonzero(mean < SUMMED_BELOW)
    for some in np.array_split(few, max(len(few) // 1000, 1)):
        m, r = mean[some, None], 1 / dispersion[some, None]
        unit = 2 * (xlogy(y, y / m) - (y + r) * np.log((y + r) / (m + r)))
        out[some] = (stats.nbinom.pmf(y, r, r / (r + m)) * unit).sum(1)
    return out


def quasi_f(deviance_drop: Array, k: int, squeezed: SqueezedVariance, df: Array) -> tuple[Array, Array, Array]:
    """F statistic, its p-value and its lower degrees of freedom ``(G,)``, at most the genes' residual total."""
    total = np.minimum(squeezed.prior_df + df, df.sum())
    statistic = np.maximum(deviance_drop, 0.0) / k / squeezed.posterior
    return statistic, stats.f.sf(statistic, k, total), total
