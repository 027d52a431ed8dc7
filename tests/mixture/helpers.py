"""Small mixtures with known truth, and their densities written out."""

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal

from pyrosplice._mixture.gaussian_mixture import MixtureParameters

F64 = torch.float64


def clouds(n: int, dim: int, k: int, *, seed: int = 0, spread: float = 4.0) -> tuple[NDArray, NDArray]:
    """Cells of k components with different covariances, and their labels."""
    rng = np.random.default_rng(seed)
    means = spread * rng.normal(size=(k, dim))
    roots = np.eye(dim) + 0.4 * rng.normal(size=(k, dim, dim))
    labels = rng.integers(k, size=n)
    return means[labels] + np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(n, dim))), labels


def some_parameters(kind: str, dim: int, k: int, *, seed: int = 1) -> MixtureParameters:
    rng = np.random.default_rng(seed)
    roots = np.eye(dim) + 0.3 * rng.normal(size=(k, dim, dim))
    full = roots @ roots.transpose(0, 2, 1)
    values = {"full": full, "tied": full[0], "diag": full.diagonal(axis1=1, axis2=2), "spherical": full[:, 0, 0]}
    weights = rng.dirichlet(np.full(k, 3.0))
    tensors = (weights, 2 * rng.normal(size=(k, dim)), values[kind].copy())
    return MixtureParameters(*(torch.tensor(t, dtype=F64) for t in tensors), kind)


def brute_force(parameters: MixtureParameters, x: NDArray) -> NDArray:
    """Log density of each cell by scipy, missing values marginalised."""
    matrices = parameters.covariance_matrices().numpy()
    out = np.zeros(len(x))
    for i, row in enumerate(x):
        seen = ~np.isnan(row)
        terms = [
            np.log(w) + (multivariate_normal.logpdf(row[seen], m[seen], c[np.ix_(seen, seen)]) if seen.any() else 0)
            for w, m, c in zip(parameters.weights.numpy(), parameters.means.numpy(), matrices, strict=True)
        ]
        out[i] = np.logaddexp.reduce(terms)
    return out


def doubled(x):
    """Every entry in two halves, zeros spelled out."""
    rows, columns = np.indices(x.shape).reshape(2, -1)
    halves = np.concatenate([x.ravel() / 2] * 2)
    return sp.coo_matrix((halves, (np.tile(rows, 2), np.tile(columns, 2))), shape=x.shape)
