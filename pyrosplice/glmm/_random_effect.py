"""The documented arguments about the random effect: its spatial covariance, start values, standard deviations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrosplice._linalg.select import solver_for, sparse_precision
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.errors import InvalidArgumentError

START_THETA_LOGIT = -3.0
INIT_RATIOS = ("observed", "uniform")
LARGEST_LOGIT = 36.0
"""θ at a boundary is kept as this logit: 1 − θ = 2e-16."""
_SMOOTHING = 1e-5


def spatial_solver(
    corr_sp: object,
    eigenvalues: Tensor | None,
    eigenvectors: Tensor | None,
    *,
    n_spots: int,
    device: torch.device,
) -> SpatialSolver | None:
    """Solver of the spatial covariance; None for the identity, where nothing is spatial.

    Raises
    ------
    InvalidArgumentError
        No covariance, or one that is not a covariance of ``n_spots`` spots.
    """
    if corr_sp is not None and eigenvalues is None and eigenvectors is None and _is_identity(corr_sp):
        found, solver = _size(corr_sp), None
    else:
        if not isinstance(corr_sp, SpatialSolver):
            corr_sp = solver_for(corr_sp, eigenvalues=eigenvalues, eigenvectors=eigenvectors, device=device)
        found, solver = corr_sp.n_spots, corr_sp
    if found != n_spots:
        raise InvalidArgumentError(f"corr_sp: expected the covariance of n_spots = {n_spots} spots, found {found}.")
    return solver


def fano_sigma(counts: Tensor) -> Tensor:
    """Start of σ for each gene ``(G, 1)``: root of the excess of counts' variance over their mean, kept in [.01, .95].

    Mean over isoforms of the variance over spots (ddof 1), over the mean total of a spot (at least 1).
    """
    variance = counts.var(1).mean(-1) if counts.shape[1] > 1 else counts.new_zeros(len(counts))
    mean = counts.sum(-1).mean(1).clamp_min(1.0)
    return (variance / mean).clamp(1e-4, 0.9).sqrt().unsqueeze(-1)


def observed_effect(counts: Tensor, n_logits: int) -> Tensor:
    """Start of ν for ``init_ratio="observed"``: log of each spot's smoothed ratio to the reference, ``(G, N, Q)``."""
    smoothed = counts + _SMOOTHING
    ratio = (smoothed[..., :-1] / smoothed[..., -1:]).log()
    start = counts.new_zeros(*counts.shape[:2], n_logits)
    shared = min(n_logits, ratio.shape[-1])
    start[..., :shared] = ratio[..., :shared]
    return start


def start_of_effect(
    counts: Tensor, *, n_logits: int, n_components: int, spatial: bool, init_ratio: str
) -> dict[str, Tensor]:
    """Start of σ and logit θ, ``(G, n_components)``, and of ν, ``(G, N, Q)``: zero for ``init_ratio="uniform"``."""
    logit = START_THETA_LOGIT if spatial else -LARGEST_LOGIT
    observed, zero = init_ratio == "observed", counts.new_zeros(*counts.shape[:2], n_logits)
    return {
        "sigma": fano_sigma(counts).expand(-1, n_components),
        "theta_logit": counts.new_full((len(counts), n_components), logit),
        "nu": observed_effect(counts, n_logits) if observed else zero,
    }


def unit_deviations(
    sigma: Tensor, theta_logit: Tensor, n_logits: int, solver: SpatialSolver | None
) -> tuple[Tensor, Tensor]:
    """Standard deviations ``(G, Q)`` of the spatial and ``(G, 1 or N, Q)`` of the independent part of ν.

    Differentiable, and exact at both ends of θ.

    Parameters
    ----------
    sigma, theta_logit
        ``(G, 1)`` or ``(G, Q)``.
    n_logits
        Q.
    solver
        Solver for the spatial covariance; without one, θ means nothing.
    """
    sigma, logit = sigma.expand(-1, n_logits), theta_logit.expand(-1, n_logits)
    if solver is None:
        return torch.zeros_like(sigma), sigma.unsqueeze(1)
    share, rest = torch.sigmoid(logit), torch.sigmoid(-logit).unsqueeze(1)
    if solver.remainder is not None:
        rest = rest + share.unsqueeze(1) * solver.remainder.unsqueeze(-1)
    return sigma * share.sqrt(), sigma.unsqueeze(1) * rest.sqrt()


def logit_of(theta: Tensor) -> Tensor:
    """Logit of θ in [0, 1], finite at the ends."""
    return torch.logit(theta).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def _size(covariance: object) -> int:
    sized = covariance if hasattr(covariance, "shape") else sparse_precision(covariance)
    return int(sized.shape[0])


def _is_identity(covariance: object) -> bool:
    matrix = sparse_precision(covariance)
    if matrix is not None:
        return matrix.nnz == matrix.shape[0] and bool((matrix.diagonal() == 1).all())
    if not isinstance(covariance, Tensor | np.ndarray):
        return False
    matrix = torch.as_tensor(covariance)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        return False
    diagonal = torch.diagonal(matrix)
    return bool((diagonal == 1).all()) and int(torch.count_nonzero(matrix)) == len(matrix)
