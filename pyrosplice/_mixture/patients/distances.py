r"""How far apart patients are: Wasserstein distance between their mixtures, components moved as a whole.

.. math:: MW_2^2(p, q) = \min_{\pi \in \Pi(w, v)} \sum_{ij} \pi_{ij} W_2^2(N_i, N_j), \qquad
          W_2^2(N_i, N_j) = |\mu_i - \mu_j|^2
          + \operatorname{tr}\{\Sigma_i + \Sigma_j - 2(\Sigma_i^{1/2} \Sigma_j \Sigma_i^{1/2})^{1/2}\}.

References
----------
Delon & Desolneux (2020), A Wasserstein-type distance in the space of Gaussian mixture models, SIAM J. Imaging Sci. 13.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrosplice._mixture.patients.triplets import TripletDataset
from pyrosplice.errors import InvalidArgumentError, NotReadyError, own_options_only

PAIRS_AT_ONCE = 200_000


def squared_bures_wasserstein(
    means: Tensor, covariances: Tensor, other_means: Tensor, other_covariances: Tensor
) -> Tensor:
    """Squared W₂ ``(I, J)`` between Gaussians ``(I, D)``, ``(I, D, D)`` and ``(J, D)``, ``(J, D, D)``."""
    values, vectors = torch.linalg.eigh(covariances)
    roots = vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.mT
    traces = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
    other_traces = other_covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
    step = max(1, PAIRS_AT_ONCE // max(1, len(other_means)))
    parts = []
    for a in range(0, len(means), step):
        root = roots[a : a + step, None]
        cross = root @ other_covariances @ root
        fidelity = torch.linalg.eigvalsh((cross + cross.mT) / 2).clamp_min(0).sqrt().sum(-1)
        gap = (means[a : a + step, None] - other_means).square().sum(-1)
        parts.append(gap + traces[a : a + step, None] + other_traces - 2 * fidelity)
    return torch.cat(parts).clamp_min(0)


@own_options_only
def patient_distances(dataset: TripletDataset) -> pd.DataFrame:
    """Mixture-Wasserstein distance MW₂ between all patients of a fitted data set, in units of the data.

    Parameters
    ----------
    dataset
        After :func:`~pyrosplice.fit_gmm`.

    Returns
    -------
    Symmetric table ``(P, P)`` with zero diagonal, patients as index and columns.

    Raises
    ------
    NotReadyError
        The data set has no fitted mixtures.
    ImportError
        POT is not installed: ``pip install 'pyrosplice[transport]'``.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import TripletDataset, fit_gmm, patient_distances
    >>> rng = np.random.default_rng(0)
    >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
    >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
    >>> _ = fit_gmm(dataset, k_comps=2, max_iter=50, verbose=False)
    >>> distances = patient_distances(dataset).to_numpy()
    >>> bool(distances[0, 1] < distances[0, 2])  # patients of a group are closer
    True
    """
    if not isinstance(dataset, TripletDataset):
        raise InvalidArgumentError(f"dataset: expected a data set after fit_gmm, found {type(dataset).__name__}.")
    if dataset.covariances is None or dataset.weights is None:
        raise NotReadyError("dataset: has no mixtures yet; call fit_gmm(dataset) first.")
    try:
        from ot import emd2
    except ImportError as error:
        raise ImportError("patient_distances needs POT: pip install 'pyrosplice[transport]'.") from error
    n_patients, n_components = dataset.weights.shape
    shared = dataset.identical_supports
    flat = dataset.supports.flatten(0, -2), dataset.covariances.flatten(0, -3)
    cost = squared_bures_wasserstein(*flat, *flat).numpy()
    cost = (cost + cost.T) / 2
    np.fill_diagonal(cost, 0.0)
    weights = dataset.weights.numpy() / dataset.weights.sum(1, keepdim=True).numpy()
    distances = np.zeros((n_patients, n_patients))
    for p in range(n_patients):
        rows = slice(None) if shared else slice(p * n_components, (p + 1) * n_components)
        for q in range(p):
            columns = slice(None) if shared else slice(q * n_components, (q + 1) * n_components)
            own, other = weights[p] > 0, weights[q] > 0
            block = np.ascontiguousarray(cost[rows, columns][np.ix_(own, other)])
            moved = emd2(weights[p][own], weights[q][other], block)
            distances[p, q] = distances[q, p] = np.sqrt(max(float(moved), 0.0))
    return pd.DataFrame(distances, index=dataset.names, columns=dataset.names)
