r"""Null law of the restricted likelihood ratio of one variance, of few groups or many.

With eigenvalues :math:`\mu_s` of what the data know about the effects, all else profiled out (a group's effect is known
to :math:`1/\mu`), and independent standard normal :math:`w_s`, the ratio of the linearised model is

.. math:: LR = \sup_{\lambda \ge 0} \sum_s \Big[ \frac{\lambda \mu_s}{1 + \lambda \mu_s} w_s^2
    - \log(1 + \lambda \mu_s) \Big] .

For k equal eigenvalues, :math:`S = \sum w^2 \sim \chi^2_k`, it is :math:`S - k - k \log(S / k)` where S > k, else 0: no
draws are needed. Unequal ones are taken for :math:`k = (\sum \mu)^2 / \sum \mu^2` equal ones: chances of .05, .01 and
.001 are within 4, 10 and 10 % of 200,000 draws for log-normal eigenvalues of 5, 11 and 39 groups (log sd up to 1.5),
and 20 % too small where one of six groups is known ten times better than the others. For large k it is the equal
mixture of zero and :math:`\chi^2_1`, which 5 groups exceed 1.5 to 2 times too seldom.

A field has eigenvalues too, and so have effects of cells; that the noise of negative-binomial counts is estimated
beside them is not allowed for, which costs power where it competes (an effect of each cell).

Source: Crainiceanu & Ruppert (2004) JRSS B 66:165, whose spectral form this is, with known noise, as that of counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
ZERO = 1e-4  # twice nats up to which a ratio is zero: searches stop there
_NEWTON = 12  # from the right of a convex function, a near start


def single_variance_sf(statistic: Array, freedom: Array) -> Array:
    """P-values of ratios ``(G,)``, given the effective number k of groups, its mean counted off; 1 where it is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.maximum(statistic, 0.0) / freedom
        size = 1 + each + np.sqrt(2 * each)
        for _ in range(_NEWTON):
            slope = 1 - 1 / size
            size = np.where(slope > 0, size - (size - 1 - np.log(size) - each) / np.where(slope > 0, slope, 1), 1.0)
        pvalue = np.where(statistic > ZERO, stats.chi2.sf(freedom * size, freedom), 1.0)
    return np.where(np.isfinite(statistic) & np.isfinite(freedom), pvalue, np.nan)


def mixture_sf(statistic: Array, n_parameters: int) -> Array:
    """P-values of ratios ``(G,)`` of m variances and covariances by the equal mixture of χ² with m and m − 1 freedom.

    The limit for m = 1, and for a column that leaves an unrestricted covariance with its m − 1 covariances (Stram & Lee
    1994, Biometrics 50:1171). For more, the limit is a mixture of χ² with 0 to m degrees of freedom in which odd and
    even ones have a half each, and this is a bound of it.
    """
    upper = stats.chi2.sf(statistic, n_parameters)
    lower = stats.chi2.sf(statistic, n_parameters - 1) if n_parameters > 1 else 0.0
    return np.where(np.isnan(statistic), np.nan, np.where(statistic > ZERO, 0.5 * (upper + lower), 1.0))
