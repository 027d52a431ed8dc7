"""Test statistics of expression models, one value a gene; every p-value is a survival function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import stats

from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
CANCELS = 1e-4  # variance over squared mean below which sums of squares lose more than 4 of 16 digits
ROUNDING = 1e-30  # variance over squared values that is rounding of the values themselves


def wald_z(estimate: Array, se: Array, *, theta0: float = 0.0, df: Any = None) -> tuple[Array, Array]:
    """Statistic ``(θ − θ₀) / se`` and its two-sided p-value, normal or, with ``df``, Student's t."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (estimate - theta0) / se
    tail = stats.norm.sf(np.abs(z)) if df is None else stats.t.sf(np.abs(z), df)
    return z, np.minimum(2 * tail, 1.0)


def wald_chi2(estimate: Array, covariance: Array, *, df: Any = None) -> tuple[Array, Array]:
    """Statistic ``θ' V⁻¹ θ`` of k coefficients ``(G, k)`` and its p-value: χ², or F with ``df`` below.

    Genes with an infinite, undefined or singular variance have statistic and p-value NaN.
    """
    k = estimate.shape[1]
    variance = covariance.diagonal(axis1=1, axis2=2)
    finite = np.isfinite(covariance).all((1, 2)) & np.isfinite(estimate).all(1)
    good = np.asarray(finite & (variance > 0).all(1))
    sd = np.sqrt(variance[good])
    correlation, z = covariance[good] / (sd[:, :, None] * sd[:, None, :]), estimate[good] / sd
    regular = np.linalg.cond(correlation) < 1 / np.finfo(np.float64).eps
    good[good] = regular
    statistic = np.full(len(estimate), np.nan)
    statistic[good] = (z[regular] * np.linalg.solve(correlation[regular], z[regular, :, None])[:, :, 0]).sum(1)
    pval = stats.chi2.sf(statistic, k) if df is None else stats.f.sf(statistic / k, k, df)
    return statistic, pval


def likelihood_ratio(full: Array, reduced: Array, df: int) -> tuple[Array, Array]:
    """Statistic ``2 (ℓ_full − ℓ_reduced)``, not below zero, and its χ² p-value.

    Raises
    ------
    InvalidArgumentError
        For ``df`` below one: the reduced model is not smaller.
    """
    if df < 1:
        raise InvalidArgumentError(
            f"reduced_formula_loc: expected fewer coefficients than the full model, found {-df} more."
        )
    statistic = np.maximum(2 * (full - reduced), 0.0)
    return statistic, stats.chi2.sf(statistic, df)


@dataclass(frozen=True)
class Moments:
    """Cells, mean and variance (ddof 1) of each gene in a group."""

    n: Any  # one number; one a gene where moments are given
    mean: Array
    variance: Array


def group_moments(
    blocks: Callable[[], Iterable[tuple[slice, Any]]], group: NDArray[np.intp], n_groups: int
) -> list[Moments]:
    """Moments of each group from blocks of cells, sparse blocks as they are.

    Genes whose spread is small beside their mean are read a second time, with the mean taken off first.

    Parameters
    ----------
    blocks
        Returns the blocks, each time that it is called.
    group
        Group of each cell, below ``n_groups``.
    """
    n = np.bincount(group, minlength=n_groups)
    mean, variance = _one_pass(blocks(), group, n, None)
    near = np.flatnonzero((variance < CANCELS * mean**2).any(0))
    if len(near):
        middle = mean[:, near]
        shifted = ((cells, _dense(block[:, near]) - middle[group[cells]]) for cells, block in blocks())
        off, spread = _one_pass(shifted, group, n, middle)
        mean[:, near], variance[:, near] = middle + off, spread
    return [Moments(int(n[k]), mean[k], variance[k]) for k in range(n_groups)]


def _one_pass(
    blocks: Iterable[tuple[slice, Any]], group: NDArray[np.intp], n: NDArray[np.intp], level: Array | None
) -> tuple[Array, Array]:
    """Mean and variance of each group ``(K, G)``.

    A variance that is rounding of values of size ``level`` ``(K, G)`` is zero.
    """
    total: Any = 0.0
    square: Any = 0.0
    for cells, block in blocks:
        y = block.astype(np.float64)
        member = sp.csr_matrix((np.ones(y.shape[0]), (group[cells], np.arange(y.shape[0]))), shape=(len(n), y.shape[0]))
        squared = y.multiply(y) if sp.issparse(y) else y * y
        total, square = total + _dense(member @ y), square + _dense(member @ squared)
    mean = total / np.maximum(n, 1)[:, None]
    variance = np.maximum(square - n[:, None] * mean**2, 0.0) / np.where(n > 1, n - 1.0, np.nan)[:, None]
    smallest = 1e-14 * mean**2 if level is None else ROUNDING * level**2
    return mean, np.where(variance < smallest, 0.0, variance)


def _dense(product: Any) -> Array:
    return product.toarray() if sp.issparse(product) else np.asarray(product)


def welch(first: Moments, second: Moments) -> tuple[Array, Array, Array]:
    """Welch's t of ``second − first``, its p-value, and the standard error of the difference.

    NaN where both groups are constant.
    """
    a, b = first.variance / first.n, second.variance / second.n
    se = np.sqrt(a + b)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (second.mean - first.mean) / se
        df = (a + b) ** 2 / (a**2 / (first.n - 1) + b**2 / (second.n - 1))
    t = np.where(se > 0, t, np.nan)
    return t, np.minimum(2 * stats.t.sf(np.abs(t), df), 1.0), se


def mann_whitney(first: Array, second: Array) -> tuple[Array, Array, Array]:
    """Mann–Whitney U of ``second`` ``(g, n2)`` over ``first`` ``(g, n1)``, and its normal p-values, ties corrected.

    Two-sided, and of the alternatives that ``second`` is higher, and lower ``(2, g)``.
    """
    n1, n2 = first.shape[1], second.shape[1]
    n = n1 + n2
    both = np.concatenate([second, first], axis=1)
    rank = stats.rankdata(both, axis=1)
    u = rank[:, :n2].sum(1) - n2 * (n2 + 1) / 2
    ordered = np.sort(rank, axis=1)
    ties = np.array([(c * (c * c - 1.0)).sum() for c in (np.unique(r, return_counts=True)[1] for r in ordered)])
    sd = np.sqrt(n1 * n2 / 12 * ((n + 1) - ties / (n * (n - 1))))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = u - n1 * n2 / 2
        z = np.maximum(np.abs(off) - 0.5, 0.0) / sd
        ways = stats.norm.sf(np.stack([off - 0.5, -off - 0.5]) / sd)
    return u, np.where(sd > 0, np.minimum(2 * stats.norm.sf(z), 1.0), np.nan), np.where(sd > 0, ways, np.nan)
