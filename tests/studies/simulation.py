"""Array simulator for the studies: counts of the spatial multinomial-logit model on grids and irregular layouts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree


def grid_adjacency(side: int) -> sp.csr_matrix:
    """Four-neighbour adjacency of a side × side grid."""
    path = sp.diags([np.ones(side - 1)] * 2, [-1, 1])
    return (sp.kron(path, sp.eye(side)) + sp.kron(sp.eye(side), path)).tocsr()


def knn_adjacency(coordinates: np.ndarray, k: int = 4) -> sp.csr_matrix:
    """Symmetrised k-nearest-neighbour adjacency with weight 1."""
    n = len(coordinates)
    _, neighbours = cKDTree(coordinates).query(coordinates, k + 1)
    rows = np.repeat(np.arange(n), k)
    directed = sp.coo_matrix((np.ones(n * k), (rows, neighbours[:, 1:].ravel())), (n, n)).tocsr()
    return directed.maximum(directed.T).tocsr()


def car_covariance(adjacency: sp.spmatrix, rho: float = 0.99) -> np.ndarray:
    """Dense CAR covariance scaled to unit marginal variance."""
    inverse_root = sp.diags(np.asarray(adjacency.sum(1)).ravel() ** -0.5)
    precision = np.eye(adjacency.shape[0]) - rho * (inverse_root @ adjacency @ inverse_root).toarray()
    covariance = np.linalg.inv(precision)
    scale = np.sqrt(np.diag(covariance))
    return covariance / scale / scale[:, None]


def simulate_counts(
    covariance: np.ndarray,
    *,
    n_genes: int,
    depth: float | np.ndarray,
    sigma: float,
    theta: float,
    seed: int,
    n_isos: int = 3,
    bias: np.ndarray | None = None,
    effect: np.ndarray | None = None,
) -> np.ndarray:
    """Counts (genes, spots, isoforms); ``depth`` may be (spots,), ``effect`` (spots, Q) is added to the logits."""
    rng = np.random.default_rng(seed)
    n, q = len(covariance), n_isos - 1
    root = np.linalg.cholesky(covariance)
    spatial = root @ rng.standard_normal((n_genes, n, q))
    noise = rng.standard_normal((n_genes, n, q))
    eta = sigma * (np.sqrt(theta) * spatial + np.sqrt(1 - theta) * noise)
    eta = eta + (0 if bias is None else bias) + (0 if effect is None else effect)
    odds = np.exp(np.concatenate([eta, np.zeros((n_genes, n, 1))], -1))
    totals = rng.poisson(np.broadcast_to(depth, (n_genes, n)))
    return rng.multinomial(totals, odds / odds.sum(-1, keepdims=True)).astype(float)
