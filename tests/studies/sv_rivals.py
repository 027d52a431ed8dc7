"""Tests of spatially variable genes as others do them, for studies: each takes counts and returns p-values ``(G,)``.

Re-implemented from their papers, without covariates: the numbers are of these, not of the packages.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._hypothesis.variance.cauchy_combination import cauchy_combination
from pyrosplice.spatial.car import CarCovariance

Array = NDArray[np.float64]
RATIOS = np.geomspace(0.01, 20, 30)  # spatial variance over that of the noise
RANGES = (0.03, 0.06, 0.12, 0.25, 0.5)  # of the exponential covariance, in units of the tissue's longer side


def log_normalized(counts: Array, size: Array) -> Array:
    """Log of counts ``(N, G)`` over the spots' sizes, plus one."""
    return np.log1p(counts / size[:, None])


def moran(counts: Array, size: Array, places: Array, graph: sp.csr_matrix) -> Array:
    """Moran's I of log-normalised counts, normal with its mean and variance under randomisation (Cliff and Ord)."""
    z = log_normalized(counts, size)
    z = z - z.mean(0)
    n, total = len(z), graph.sum()
    s1 = 2 * graph.multiply(graph).sum()
    s2 = (4 * np.asarray(graph.sum(1)).ravel() ** 2).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        kurtosis = n * (z**4).sum(0) / (z**2).sum(0) ** 2
        index = n / total * (z * (graph @ z)).sum(0) / (z**2).sum(0)
    first = n * ((n**2 - 3 * n + 3) * s1 - n * s2 + 3 * total**2)
    second = kurtosis * ((n**2 - n) * s1 - 2 * n * s2 + 6 * total**2)
    variance = (first - second) / ((n - 1) * (n - 2) * (n - 3) * total**2) - 1 / (n - 1) ** 2
    return stats.norm.sf((index + 1 / (n - 1)) / np.sqrt(variance))


def spark_x(counts: Array, size: Array, places: Array, graph: sp.csr_matrix) -> Array:
    """Covariance test of normalised counts with eleven projections of the coordinates (Zhu, Sun and Zhou 2021).

    Counts over sizes, coordinates as they are and by five Gaussian and five cosine functions at their quantiles; the
    mixture of χ² by its first two moments, p-values by Cauchy's combination.
    """
    y = counts / size[:, None]
    y = y - y.mean(0)
    spread = np.quantile(np.abs(places - places.mean(0)), np.linspace(0.2, 1, 5), axis=0)
    centered = places - places.mean(0)
    shapes = [centered]
    shapes += [np.exp(-((centered / s) ** 2) / 2) for s in spread]
    shapes += [np.cos(2 * np.pi * centered / s) for s in spread]
    pvalues = []
    for shape in shapes:
        basis = np.linalg.qr(shape - shape.mean(0))[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = ((basis.T @ y) ** 2).sum(0) / (y**2).sum(0)
        pvalues.append(stats.chi2.sf(share * len(y), basis.shape[1]))
    return cauchy_combination(torch.from_numpy(np.stack(pvalues, 1))).numpy()


def hsic(counts: Array, size: Array, places: Array, graph: sp.csr_matrix) -> Array:
    """HSIC of log-normalised counts and space, the CAR kernel of the graph: trace form, gamma of two moments."""
    z = log_normalized(counts, size)
    z = z - z.mean(0)
    kernel = CarCovariance(graph).dense().numpy()
    center = np.eye(len(z)) - 1 / len(z)
    kernel = center @ kernel @ center
    n, values = len(z), np.linalg.eigvalsh(kernel)
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = (z * (kernel @ z)).sum(0) / (z**2).sum(0) * (n - 1)
    mean, variance = values.sum(), 2 * ((values**2).sum() - values.sum() ** 2 / (n - 1)) * (n - 1) / (n + 1)
    return stats.gamma.sf(statistic, mean**2 / variance, scale=variance / mean)


def nn_svg(counts: Array, size: Array, places: Array, graph: sp.csr_matrix) -> Array:
    """Likelihood ratio of a Gaussian process on log-normalised counts (Weber and others 2023), χ² of 2 degrees.

    Exponential covariance; exact likelihood in the place of nearest neighbours', its maximum over grids of range and
    ratio of the variances.
    """
    z = log_normalized(counts, size)
    z = z - z.mean(0)
    n = len(z)
    scaled = (places - places.min(0)) / np.ptp(places, axis=0).max()
    distance = np.linalg.norm(scaled[:, None] - scaled, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        null = -n / 2 * np.log((z**2).mean(0))
        best = null.copy()
        for reach in RANGES:
            values, vectors = np.linalg.eigh(np.exp(-distance / reach))
            square, ones = (vectors.T @ z) ** 2, vectors.T @ np.ones(n)
            cross = (vectors.T @ z) * ones[:, None]
            for ratio in RATIOS:
                weight = 1 / (1 + ratio * values)
                mean = weight @ cross / (weight @ ones**2)
                rest = weight @ square - mean**2 * (weight @ ones**2)
                best = np.maximum(best, -n / 2 * np.log(rest / n) + np.log(weight).sum() / 2)
    return stats.chi2.sf(2 * (best - null), 2)


RIVALS = {"moran": moran, "spark-x": spark_x, "hsic": hsic, "nnsvg": nn_svg}
