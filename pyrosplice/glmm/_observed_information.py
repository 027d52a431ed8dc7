"""Observed information of a mixed model: second derivatives of its objective from differences of the exact gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice._optimize.newton import solve_curvature
from pyrosplice.glmm._objective import ModeObjective

STEP = 3e-5
TOLERANCE = 1e-20  # Newton decrement, nats²: the gradient is then exact to rounding


def observed_information(objective: ModeObjective, point: Tensor) -> Tensor:
    """Hessian of the loss at ``point`` (B, d), by central differences: (B, d, d).

    Steps of 3e-5 in units of the unknowns (logits, σ, radians), which the loss is smooth in; 2 d evaluations.
    """
    genes, columns = torch.arange(len(point), device=point.device), []
    for unknown in range(point.shape[1]):
        step = torch.zeros_like(point)
        step[:, unknown] = STEP
        above, below = (objective.evaluate(genes, point + sign * step, tolerance=TOLERANCE)[1] for sign in (1, -1))
        columns.append((above - below) / (2 * STEP))
    hessian = torch.stack(columns, -1)
    return 0.5 * (hessian + hessian.mT)


def profiled_information(information: Tensor, n_kept: int) -> Tensor:
    """Information of the first ``n_kept`` unknowns when the others are estimated too: their Schur complement."""
    kept, coupling = information[:, :n_kept, :n_kept], information[:, n_kept:, :n_kept]
    if information.shape[1] == n_kept:
        return kept
    return kept - coupling.mT @ solve_curvature(information[:, n_kept:, n_kept:], coupling)
