"""BFGS for many small problems at once: each gene its own Hessian, step and stopping time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pyrosplice._optimize.convergence import Convergence
from pyrosplice.reasons import Reason

SUFFICIENT_DECREASE = 1e-4
MAX_HALVINGS = 25


class Objective(Protocol):
    """What :func:`minimize` needs to know of a problem with B genes and d unknowns each."""

    def evaluate(self, genes: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (b,) and gradient (b, d) of the listed genes (b,) at ``point`` (b, d)."""
        ...

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        """Longest step along ``direction`` that may be tried, in (0, 1], (b,)."""
        ...


@dataclass(frozen=True)
class FirstPoint:
    """Where a search begins, and what is known there.

    Attributes
    ----------
    point
        (B, d).
    inverse_hessian
        First approximation, (B, d, d), positive definite.
    loss, gradient
        At ``point``, (B,) and (B, d).
    """

    point: Tensor
    inverse_hessian: Tensor
    loss: Tensor
    gradient: Tensor


Searched = TypeVar("Searched", bound=Objective, contravariant=True)


class Minimizer(Protocol[Searched]):
    """Anything that searches as :func:`minimize` does, with the same arguments and results."""

    def __call__(
        self,
        objective: Searched,
        genes: Tensor,
        first: FirstPoint,
        *,
        convergence: Convergence,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points (B, d), losses (B,) and gradients (B, d)."""
        ...


@dataclass(frozen=True)
class Options:
    """When to stop.

    Attributes
    ----------
    tolerance
        Largest gradient norm of an optimum, in nats per unit of the unknowns.
    max_iter
        Evaluations of a gene at most.
    """

    tolerance: float = 1e-3
    max_iter: int = 200


@dataclass
class Search:
    """State of the genes still running; one row each."""

    row: Tensor
    genes: Tensor
    point: Tensor
    loss: Tensor
    gradient: Tensor
    inverse_hessian: Tensor
    direction: Tensor
    length: Tensor
    halvings: Tensor

    def select(self, rows: Tensor) -> Search:
        """Take the state of some of the rows."""
        return Search(**{name: value[rows] for name, value in vars(self).items()})


def minimize(
    objective: Objective,
    genes: Tensor,
    first: FirstPoint,
    *,
    convergence: Convergence,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise each listed gene's loss; returns points (B, d), losses (B,) and gradients (B, d) in their order.

    Parameters
    ----------
    objective
        The problem.
    genes
        Which genes, (B,): indices into ``convergence``, and what the objective is called with.
    first
        Where each starts.
    convergence
        Filled in: iterations, losses, and for each gene why it stopped.
    options
        When to stop.

    Notes
    -----
    Backtracking line search with sufficient decrease; the Hessian is updated only where curvature is positive.
    A gene that finds no decrease restarts once from the steepest direction scaled by the first approximation.
    """
    n_genes, start = len(first.point), first.point
    point, loss, gradient = start.clone(), first.loss.clone(), first.gradient.clone()
    state = Search(
        row=torch.arange(n_genes, device=start.device),
        genes=genes,
        point=start.clone(),
        loss=first.loss.clone(),
        gradient=first.gradient.clone(),
        inverse_hessian=first.inverse_hessian.clone(),
        direction=torch.zeros_like(start),
        length=start.new_ones(n_genes),
        halvings=torch.zeros(n_genes, dtype=torch.int64, device=start.device),
    )
    convergence.record(first.loss, genes)
    _aim(objective, state, torch.ones(n_genes, dtype=torch.bool, device=start.device))
    for iteration in range(options.max_iter + 1):
        reasons = _stopped(state, options, out_of_time=iteration == options.max_iter)
        for reason, rows in reasons.items():
            convergence.finish(state.genes[rows], reason)
        keep = ~torch.stack(list(reasons.values())).any(0)
        leaving = state.row[~keep]
        point[leaving], loss[leaving], gradient[leaving] = state.point[~keep], state.loss[~keep], state.gradient[~keep]
        if not bool(keep.any()):
            break
        state = state.select(keep)
        trial = state.point + state.length[:, None] * state.direction
        found, slope = objective.evaluate(state.genes, trial)
        _advance(objective, state, trial, found, slope, first.inverse_hessian)
        convergence.record(state.loss, state.genes)
    return point, loss, gradient


def _stopped(state: Search, options: Options, *, out_of_time: bool) -> dict[Reason, Tensor]:
    finite = torch.isfinite(state.loss) & torch.isfinite(state.gradient).all(-1)
    small = finite & (state.gradient.norm(dim=-1) <= options.tolerance)
    stuck = finite & ~small & (state.halvings > MAX_HALVINGS)
    promise = 0.5 * (state.gradient * (state.inverse_hessian @ state.gradient[..., None])[..., 0]).sum(-1)
    small = small | (stuck & (promise <= 10 * _rounding(state.loss)))  # huge counts: the gradient itself is rounding
    stuck = stuck & ~small
    reasons = {Reason.NOT_FINITE: ~finite, Reason.CONVERGED: small, Reason.STALLED: stuck}
    if out_of_time:
        reasons[Reason.MAX_EPOCHS] = finite & ~small & ~stuck
    return reasons


def _rounding(loss: Tensor) -> Tensor:
    """Size of the rounding errors of a loss."""
    return 1e-10 * loss.abs() + 1e-9


def _aim(objective: Objective, state: Search, rows: Tensor) -> None:
    """New directions for the rows that moved."""
    direction = -(state.inverse_hessian @ state.gradient[..., None])[..., 0]
    uphill = ~((direction * state.gradient).sum(-1) < 0)
    direction[uphill] = -state.gradient[uphill]
    limit = objective.step_limit(state.genes, state.point, direction)
    state.direction[rows], state.length[rows], state.halvings[rows] = direction[rows], limit[rows], 0


def _advance(
    objective: Objective, state: Search, trial: Tensor, found: Tensor, slope: Tensor, first_hessian: Tensor
) -> None:
    """Accept or shorten each gene's step, in place."""
    promised = SUFFICIENT_DECREASE * state.length * (state.direction * state.gradient).sum(-1)
    accepted = torch.isfinite(slope).all(-1) & (found <= state.loss + promised + _rounding(state.loss))
    updated = bfgs(state.inverse_hessian, trial - state.point, slope - state.gradient)
    state.inverse_hessian[accepted] = updated[accepted]
    state.point[accepted], state.loss[accepted], state.gradient[accepted] = (
        trial[accepted],
        found[accepted],
        slope[accepted],
    )
    rejected = ~accepted
    state.length[rejected] *= _shorter(state, found, rejected)
    state.halvings[rejected] += 1
    restart = rejected & (state.halvings == MAX_HALVINGS // 2)
    state.inverse_hessian[restart] = first_hessian[state.row[restart]]
    _aim(objective, state, accepted)


def _shorter(state: Search, found: Tensor, rejected: Tensor) -> Tensor:
    """Minimum of the parabola through the start, its slope and the rejected trial, kept within [0.1, 0.5]."""
    slope = state.length * (state.direction * state.gradient).sum(-1)
    ratio = -slope / (2 * (found - state.loss - slope))
    return torch.nan_to_num(ratio, nan=0.1, posinf=0.5, neginf=0.1).clamp(0.1, 0.5)[rejected]


def bfgs(inverse_hessian: Tensor, change: Tensor, difference: Tensor) -> Tensor:
    """Updated inverse Hessians (B, d, d) after steps ``change`` (B, d) that changed the gradient by ``difference``.

    Rows without positive curvature along the step are left as they are.
    """
    curvature = (change * difference).sum(-1)
    rows = curvature > 1e-10 * change.norm(dim=-1) * difference.norm(dim=-1)
    s, y, h, sy = change[rows], difference[rows], inverse_hessian[rows], curvature[rows]
    hy = (h @ y[..., None])[..., 0]
    scale = (1 + (y * hy).sum(-1) / sy) / sy
    outer = hy[:, :, None] * s[:, None, :]
    out = inverse_hessian.clone()
    out[rows] = h + scale[:, None, None] * s[:, :, None] * s[:, None, :] - (outer + outer.mT) / sy[:, None, None]
    return out
