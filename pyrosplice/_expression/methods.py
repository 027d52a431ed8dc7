"""The methods by which a fitted model tests a contrast, and whether its noise is right enough for them.

Null genes rejected at 5 / 1 / .1 %, and power at 5 % of a log fold change of 0.5 (2,000 to 4,000 genes a cell):

==============================================  ================  ================  ================  ======
layout                                          wald              lrt               score             robust
==============================================  ================  ================  ================  ======
500 against 20 cells, mean 0.2, dispersion 0.5  3.0 / 0.8 / .18   5.0 / 2.1 / .07   4.5 / 0.7 / .07   -
the same, other genes                           3.8 / 1.1 / .26   6.0 / 2.8 / .05   5.8 / 1.0 / .00   3.6
the same, dispersion 2                          2.2 / 0.8 / .05   4.7 / 1.7 / .05   4.7 / 0.7 / .05   2.6
200 and 200, mean 5, half of the cells zero     1.1, power .84    1.1, power .83    1.0, power .83    4.5, .96
200 and 200, mean 20, 70 % zero                 0.1, power .18    0.1, power .17    0.1, power .12    5.5, .79
60 and 60, mean 20, 70 % zero                   0.1, power .02    0.1, power .01    0.0, power .00    4.7, .34
200 and 200, mean 5, dispersion 0.5, no zeros   -                 -                 -                 5.1
==============================================  ================  ================  ================  ======

A rank test of the last layout with zeros, :func:`pyrosplice.api.test.rank_test`: 4.6, power .09. The
likelihood ratio rejects at 1 % every gene of which the 20 cells have no count at all, which is 2 % of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrosplice._expression.donors import Donors
from pyrosplice._expression.engine.cell_sandwich import RobustCovariance, robust_covariance, variance_ratio
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.quasi_test import QuasiFit, quasi_test
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.saddlepoint_test import score_test
from pyrosplice._expression.tests import contrast_test, ratio_test, with_statistic
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
METHODS = ("wald", "lrt", "score", "robust", "ql", "cluster", "glmm")
BY_THE_NOISE = ("wald", "lrt", "score", "ql")
CELLS_TO_JUDGE, GENES_TOLD, SHARE_TOLD = 100, 20, 0.2
RATIO_TOLD = 0.7  # 1 % of negative-binomial genes with 120 cells, mean 50, dispersion 2 are below; of milder ones none


def apply_method(
    method: str, estimator: Estimator, wald: ExpressionTest, rows: Array, *, donors: Any, quasi: Callable[[], QuasiFit]
) -> ExpressionTest:
    """Test contrasts ``rows`` ``(k, P)`` of the full location coefficients, of which ``wald`` is the Wald test.

    ``quasi`` makes the quasi-likelihood fit.
    """
    if method == "lrt":
        return ratio_test(wald, estimator, rows)
    if method != "ql" and len(rows) > 1:
        raise InvalidArgumentError(f"contrast: method {method!r} tests one contrast at a time, found {len(rows)}.")
    if method == "score":
        return with_statistic(wald, *score_test(estimator, rows), otherwise=Reason.NOT_FINITE.value)
    constraints = estimator.input_data.constraints_loc
    if np.abs(rows @ constraints.shift).any():
        raise InvalidArgumentError(f"contrast: method {method!r} takes no coefficient bound to a constant.")
    free = rows @ constraints.matrix
    if method == "ql":
        return with_statistic(wald, *quasi_test(estimator, quasi(), free)[:2], otherwise=Reason.FEW_SPOTS.value)

    def linear(fit: GlmFit, robust: RobustCovariance) -> ExpressionTest:
        found = contrast_test(fit, constraints, rows, gene_ids=wald.gene_ids, mean=wald.mean, robust=robust)
        return replace(found, otherwise=Reason.FEW_SPOTS.value, link=wald.link)

    if method == "robust":
        return linear(estimator.fit, robust_covariance(estimator.source, estimator.fit, free[0]))
    if method == "glmm":
        return linear(*Donors(estimator, donors).mixed(free[0]))
    cluster = Donors(estimator, donors).cluster(free[0])
    result = linear(estimator.fit, RobustCovariance(cluster.covariance, cluster.df))
    pval = np.where(np.isnan(result.pval), np.nan, cluster.pval)
    return with_statistic(result, result.statistic, pval, otherwise=Reason.FEW_SPOTS.value)


def noise_ratio(estimator: Estimator) -> Array:
    """Compare the spread of counts with the fitted noise, negative binomial without weights: ``(G,)``."""
    if not _can_be_judged(estimator):
        raise InvalidArgumentError("noise_model: the variance ratio needs negative-binomial noise, and no weights.")
    return variance_ratio(estimator.source, estimator.fit)


def warn_of_noise(estimator: Estimator | None, *, stacklevel: int) -> None:
    """Warn where the noise gives many genes far more variance than they have; not of fewer than a hundred cells."""
    if estimator is None or not _can_be_judged(estimator) or len(estimator.source.design.x) < CELLS_TO_JUDGE:
        return
    ratio = noise_ratio(estimator)
    few, known = int((ratio < RATIO_TOLD).sum()), int(np.isfinite(ratio).sum())
    if few >= GENES_TOLD and few >= SHARE_TOLD * known:
        warnings.warn(
            f"noise_model: {few} of {known} genes vary less than their negative-binomial fit expects (ratio below "
            f"{RATIO_TOLD}; variance_ratio() has them all), as with zeros beyond the noise: the test has little power "
            "there. Use method='robust', or pyrosplice.api.test.rank_test for groups.",
            UserWarning,
            stacklevel=stacklevel,
        )


def _can_be_judged(estimator: Estimator) -> bool:
    return estimator.source.likelihood.is_negative_binomial and estimator.source.design.weights is None
