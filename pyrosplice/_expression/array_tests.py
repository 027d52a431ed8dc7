"""``stats.*``: the tests of expression on plain arrays, each returning its p-values ``(G,)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pyrosplice._expression.statistics import (
    Moments,
    group_moments,
    likelihood_ratio,
    mann_whitney,
    wald_chi2,
    wald_z,
    welch,
)
from pyrosplice.errors import InvalidArgumentError

__all__ = [
    "hypergeom_test",
    "likelihood_ratio_test",
    "mann_whitney_u_test",
    "t_test_moments",
    "t_test_raw",
    "two_coef_z_test",
    "wald_test",
    "wald_test_chisq",
]

Array = NDArray[np.float64]


def likelihood_ratio_test(ll_full: ArrayLike, ll_reduced: ArrayLike, df_full: int, df_reduced: int) -> Array:
    """p-values of twice the difference of the log likelihoods of two nested models.

    Parameters
    ----------
    ll_full, ll_reduced
        Log likelihood of each gene ``(G,)``.
    df_full, df_reduced
        Coefficients of each model.

    Raises
    ------
    InvalidArgumentError
        Arrays of different shape, or a reduced model that is not smaller.

    Examples
    --------
    >>> import pyrosplice.api as de
    >>> de.stats.likelihood_ratio_test([-100.0, -100.0], [-103.0, -100.1], df_full=2, df_reduced=1).round(4)
    array([0.0143, 0.6547])
    """
    full, reduced = _alike(ll_full=ll_full, ll_reduced=ll_reduced)
    return likelihood_ratio(full, reduced, int(df_full) - int(df_reduced))[1]


def wald_test(theta_mle: ArrayLike, theta_sd: ArrayLike, theta0: ArrayLike = 0.0) -> Array:
    """Two-sided p-values of one coefficient against ``theta0``, by the normal distribution.

    *Differs from* the original: a standard error of zero is no evidence, and gives NaN.

    Parameters
    ----------
    theta_mle, theta_sd
        Estimate and standard error of each gene ``(G,)``.
    theta0
        A number, or one a gene.

    Examples
    --------
    >>> import pyrosplice.api as de
    >>> de.stats.wald_test([1.96, 0.0], [1.0, 1.0]).round(3)
    array([0.05, 1.  ])
    """
    estimate, sd = _alike(theta_mle=theta_mle, theta_sd=theta_sd)
    _check_positive("theta_sd", sd)
    difference = estimate - _like(theta0, estimate.shape, "theta0")
    return np.where(sd > 0, wald_z(difference, sd)[1], np.nan)


def wald_test_chisq(theta_mle: ArrayLike, theta_covar: ArrayLike, theta0: ArrayLike = 0.0) -> Array:
    """p-values of several coefficients against ``theta0`` together; NaN where a covariance is singular.

    Parameters
    ----------
    theta_mle
        Estimates, coefficients × genes.
    theta_covar
        Their covariance, genes × coefficients × coefficients.
    theta0
        A number, or coefficients × genes.

    Examples
    --------
    >>> import numpy as np
    >>> import pyrosplice.api as de
    >>> estimates = np.array([[2.0, 0.1], [2.0, 0.1]])  # two coefficients of two genes
    >>> de.stats.wald_test_chisq(estimates, np.stack([np.eye(2)] * 2)).round(3)
    array([0.018, 0.99 ])
    """
    estimate, covariance = _array("theta_mle", theta_mle), _array("theta_covar", theta_covar)
    if estimate.ndim != 2 or covariance.shape != (estimate.shape[1], estimate.shape[0], estimate.shape[0]):
        raise InvalidArgumentError(
            f"theta_covar: expected theta_mle of coefficients × genes and genes × coefficients × coefficients, found "
            f"shapes {estimate.shape} and {covariance.shape}."
        )
    return wald_chi2((estimate - _like(theta0, estimate.shape, "theta0")).T, covariance)[1]


def two_coef_z_test(theta_mle0: ArrayLike, theta_mle1: ArrayLike, theta_sd0: ArrayLike, theta_sd1: ArrayLike) -> Array:
    """Two-sided p-values of the difference of two coefficients of independent estimates, one a gene ``(G,)`` each.

    Examples
    --------
    >>> import pyrosplice.api as de
    >>> de.stats.two_coef_z_test([1.0, 1.0], [1.1, 3.0], [0.5, 0.5], [0.5, 0.5]).round(4)
    array([0.8875, 0.0047])
    """
    first, second, sd0, sd1 = _alike(
        theta_mle0=theta_mle0, theta_mle1=theta_mle1, theta_sd0=theta_sd0, theta_sd1=theta_sd1
    )
    _check_positive("theta_sd0", sd0)
    _check_positive("theta_sd1", sd1)
    sd = np.hypot(sd0, sd1)
    return np.where(sd > 0, wald_z(first - second, sd)[1], np.nan)


def mann_whitney_u_test(x0: Any, x1: Any) -> Array:
    """Two-sided p-values of the Mann–Whitney test of each gene, normal with continuity and corrected for ties.

    Parameters
    ----------
    x0, x1
        Observations × genes, dense or sparse, of two groups; or the observations of one gene.

    Examples
    --------
    >>> import numpy as np
    >>> import pyrosplice.api as de
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.normal(0, 1, (30, 2)), rng.normal([0, 2], 1, (30, 2))  # the second gene differs
    >>> de.stats.mann_whitney_u_test(a, b) < 0.01
    array([False,  True])
    """
    first, second = _observations(x0, x1)
    _, pval, _ = mann_whitney(_dense(first).T, _dense(second).T)
    return np.where(np.isnan(pval) & _finite(first) & _finite(second), 1.0, pval)  # all observations tied


def t_test_raw(x0: Any, x1: Any) -> Array:
    """Two-sided p-values of Welch's t-test of each gene; NaN where both groups are constant.

    *Differs from* the original: variances divide by n − 1.

    Parameters
    ----------
    x0, x1
        Observations × genes, dense or sparse, of two groups; or the observations of one gene.

    Examples
    --------
    >>> import numpy as np
    >>> import pyrosplice.api as de
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.normal(0, 1, (30, 2)), rng.normal([0, 2], 1, (30, 2))  # the second gene differs
    >>> de.stats.t_test_raw(a, b) < 0.01
    array([False,  True])
    """
    first, second = (_moments(x) for x in _observations(x0, x1))
    return welch(first, second)[1]


def t_test_moments(
    mu0: ArrayLike, mu1: ArrayLike, var0: ArrayLike, var1: ArrayLike, n0: ArrayLike, n1: ArrayLike
) -> Array:
    """Two-sided p-values of Welch's t-test from means, sample variances ``(G,)`` and numbers of observations.

    *Differs from* the original: where both variances are zero there is no test, and the p-value is NaN.

    Examples
    --------
    >>> import pyrosplice.api as de
    >>> de.stats.t_test_moments(mu0=[0.0, 0.0], mu1=[0.1, 1.0], var0=[1.0, 1.0], var1=[1.0, 1.0], n0=30, n1=30).round(4)
    array([7.e-01, 3.e-04])
    """
    mean0, mean1, variance0, variance1 = _alike(mu0=mu0, mu1=mu1, var0=var0, var1=var1)
    _check_positive("var0", variance0)
    _check_positive("var1", variance1)
    sizes = [_like(n, mean0.shape, name) for name, n in (("n0", n0), ("n1", n1))]
    if min(n.min(initial=2) for n in sizes) < 2:
        raise InvalidArgumentError("n0: expected at least two observations a group.")
    return welch(Moments(sizes[0], mean0, variance0), Moments(sizes[1], mean1, variance1))[1]


def hypergeom_test(intersections: ArrayLike, enquiry: ArrayLike, references: ArrayLike, background: ArrayLike) -> Array:
    """p-values of at least as many genes in common as found, of a set drawn at random.

    Parameters
    ----------
    intersections
        Genes that each reference set shares with the enquired set ``(R,)``.
    enquiry
        Size of the enquired set.
    references
        Size of each reference set ``(R,)``.
    background
        Number of genes that both are drawn from.

    Raises
    ------
    InvalidArgumentError
        Numbers that no such sets have.

    Examples
    --------
    >>> import pyrosplice.api as de
    >>> de.stats.hypergeom_test([5, 1], enquiry=10, references=[20, 20], background=200).round(4)  # one is expected
    array([0.0011, 0.6602])
    """
    shared, sizes = _alike(intersections=intersections, references=references)
    drawn, everyone = _like(enquiry, shared.shape, "enquiry"), _like(background, shared.shape, "background")
    for name, value in (("intersections", shared), ("enquiry", drawn), ("references", sizes), ("background", everyone)):
        if not ((value >= 0) & (value == np.rint(value))).all():
            raise InvalidArgumentError(f"{name}: expected numbers of genes, found {value[:5]}.")
    if ((shared > np.minimum(drawn, sizes)) | (np.maximum(drawn, sizes) > everyone)).any():
        raise InvalidArgumentError("intersections: expected no more than the sets have, nor these than the background.")
    return np.asarray(stats.hypergeom.sf(shared - 1, everyone, sizes, drawn))


def _array(name: str, value: ArrayLike) -> Array:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: expected numbers ({error}).") from error


def _alike(**values: ArrayLike) -> list[Array]:
    """Arrays of one shape."""
    arrays = {name: np.atleast_1d(_array(name, value)) for name, value in values.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InvalidArgumentError(f"{next(iter(arrays))}: expected arrays of one shape, found {found}.")
    return list(arrays.values())


def _like(value: ArrayLike, shape: tuple[int, ...], name: str) -> Array:
    array = _array(name, value)
    if array.size != 1 and array.shape != shape:
        raise InvalidArgumentError(f"{name}: expected a number or shape {shape}, found shape {array.shape}.")
    return np.broadcast_to(array.ravel() if array.size == 1 else array, shape)


def _check_positive(name: str, value: Array) -> None:
    if (value < 0).any():
        raise InvalidArgumentError(f"{name}: expected no negative number, found {value.min():g}.")


def _observations(x0: Any, x1: Any) -> tuple[Any, Any]:
    """Two groups as observations × genes."""
    both = []
    for name, x in (("x0", x0), ("x1", x1)):
        matrix = x.tocsr() if sp.issparse(x) else _array(name, x)
        matrix = matrix[:, None] if matrix.ndim == 1 else matrix
        if matrix.ndim != 2 or matrix.shape[0] == 0:
            raise InvalidArgumentError(f"{name}: expected observations × genes, found shape {matrix.shape}.")
        both.append(matrix)
    if both[0].shape[1] != both[1].shape[1]:
        raise InvalidArgumentError(f"x1: expected {both[0].shape[1]} genes as in x0, found {both[1].shape[1]}.")
    return both[0], both[1]


def _moments(x: Any) -> Moments:
    n = x.shape[0]
    if n < 2:
        raise InvalidArgumentError(f"x0: expected at least two observations a group, found {n}.")
    if sp.issparse(x):
        return group_moments(lambda: [(slice(0, n), x)], np.zeros(n, np.intp), 1)[0]
    return Moments(n, x.mean(0), x.var(0, ddof=1))


def _dense(matrix: Any) -> Array:
    return matrix.toarray().astype(np.float64) if sp.issparse(matrix) else matrix


def _finite(matrix: Any) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(_dense(matrix)).all(0))
