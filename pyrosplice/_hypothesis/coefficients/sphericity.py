r"""How far from spherical the variation of units is between the coefficients that are tested together.

Models give an effect of groups one variance in all K − 1 predictors of a gene. Where one isoform varies between units
and the others do not, the statistic of a contrast, :math:`\hat\beta' V^{-1} \hat\beta`, is no F of K − 1 and (K − 1) ν
degrees of freedom: both its halves are sums of squares with the eigenvalues :math:`\lambda` of what the coefficients'
covariance is in units of the model's. By Box's (1954) approximation both have ε times the degrees of freedom,

.. math:: \epsilon = \frac{(\sum \lambda)^2}{Q \sum \lambda^2}, \qquad \tfrac1Q \le \epsilon \le 1,

exact where all λ are equal (ε = 1, the law of one variance), and where there is one (ε = 1 / Q, a t of ν). It is
estimated from the units' effects, which in the normal model are independent of the coefficients, by the same quotient
of their own sums (Greenhouse and Geisser 1959). Chance makes that too small where Q is not small beside ν, and the test
conservative there; a correction for it (Huynh and Feldt 1976, Lecoutre 1991) makes it too large where one λ stands
beside small others, and far out in the tail, where thousands of genes are judged, rejects several times too often.

Normal effects, 100,000 draws a cell, Q = 2, 3 and 5, ν = 2 to 30, all λ equal, a single one, one beside others of .1 or
.3 (``sphericity.csv`` of tests/studies/results): at most 5.1 % at 5 %, 1.4 % at 1 % and .27 % at .1 % (with the
correction 8.3, 3.4 and 1.0 %, with ε = 1 21, 14 and 8.3 %); where all λ are equal and ν = 3, 6, 10 and 30 2.6, 3.6, 4.2
and 4.6 % for Q = 2, .6, 1.8, 2.6 and 4.0 % for Q = 5. A shift in one predictor of three standard errors, all λ equal,
is detected at 5 % in 38, 59, 66 and 74 % and in 14, 34, 45 and 57 % (with ε = 1 53, 65, 70, 75 and 46, 54, 57, 60).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sphericity(variation: Array, df: float) -> Array:
    """ε of every gene, ``(G,)``, within 1 / Q and 1.

    Parameters
    ----------
    variation
        Covariance of the units' effects in units of the model's, up to a factor and a similarity: ``(G, Q, Q)``. Of
        genes with numbers that are not finite, ε is 1.
    df
        Degrees of freedom ν of it; with one it tells nothing, and ε is 1.
    """
    q = variation.shape[-1]
    known = np.asarray(np.isfinite(variation).all((1, 2)))
    matrix = np.where(known[:, None, None], variation, np.eye(q))
    trace, square = np.trace(matrix, axis1=1, axis2=2), np.einsum("gij,gji->g", matrix, matrix)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(trace**2 / (q * square), 1 / q, 1.0)
    return np.where(known & (df > 1) & (square > 0), found, 1.0)


def share_of(df: Array, share: Array | float) -> Array:
    """Degrees of freedom ``(G,)`` times ε, at least one where there were so many."""
    return np.maximum(df * share, np.minimum(df, 1.0))
