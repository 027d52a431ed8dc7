r"""Newton's method for many small problems at once: one step solves all genes, none waits for or disturbs another.

Step :math:`\delta = H^{-1} g` from the gradient g of the loss and its Hessian H, halved until the loss does not rise.
The half squared step in the metric of H, the *decrement* :math:`\tfrac12 g' H^{-1} g`, is the improvement that
the quadratic model still promises; a gene has converged when it is below the tolerance.

H is used as it is where it has a Cholesky factor. Where it has none, its eigenvalues are replaced by their absolute
values and the directions of (relatively) zero curvature are left alone: the minimum-norm step for a collinear design,
a descent step where a prior or likelihood is not log-concave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pyrosplice._optimize.convergence import Convergence
from pyrosplice.reasons import Reason

SINGULAR = 1e-10
"""Relative curvature, after scaling H to unit diagonal, below which a direction counts as flat."""
UPWARD = 1e-7
"""Negative curvature of unit diagonal that is no rounding: the loss falls in that direction."""
_MAX_HALVINGS = 40

Self = TypeVar("Self")
Solve = Callable[[Tensor, Tensor], Tensor]  # Hessians (A, ...) and right sides (A, D, R) to steps (A, D, R)


class NewtonObjective(Protocol):
    """A loss of A genes with D parameters each, and its first two derivatives."""

    def rounding(self) -> Tensor:
        """Size of the rounding errors of the loss, ``(A,)``: a smaller rise is none."""
        ...

    def loss(self, point: Tensor) -> Tensor:
        """Loss ``(A,)`` at ``(A, D)``."""
        ...

    def derivatives(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(A, D)`` and Hessian ``(A, D, D)``, or what ``solve`` takes, of the loss at ``(A, D)``."""
        ...

    def select(self: Self, rows: Tensor) -> Self:
        """Take the loss of some of the genes (indices among the present ones)."""
        ...


@dataclass(frozen=True)
class NewtonOptions:
    """Options of :func:`newton`.

    Attributes
    ----------
    tol
        Largest decrement (nats) of a converged gene.
    max_epochs
        Largest number of steps.
    keep_history
        Whether to keep the point of every epoch.
    """

    tol: float = 1e-10
    max_epochs: int = 1000
    keep_history: bool = False


@dataclass
class NewtonResult:
    """Points ``(G, D)``, the record of each gene, and the points of every epoch if they were kept."""

    point: Tensor
    convergence: Convergence
    history: list[Tensor]


def newton(
    objective: NewtonObjective,
    start: Tensor,
    *,
    options: NewtonOptions | None = None,
    solve: Solve | None = None,
) -> NewtonResult:
    """Minimise the loss of every gene from ``start`` ``(G, D)``; ``solve`` is :func:`solve_curvature` unless given."""
    solve = solve or solve_curvature
    options = options or NewtonOptions()
    point = start.clone()
    genes = torch.arange(len(start), device=start.device)
    log = Convergence.start(len(start), device=start.device)
    loss = objective.loss(point)
    log.record(loss, genes)
    history = [point.clone()] if options.keep_history else []
    for _ in range(options.max_epochs):
        if not len(genes):
            break
        here = point[genes]
        gradient, hessian = objective.derivatives(here)
        finite = torch.isfinite(loss) & torch.isfinite(gradient).all(-1) & torch.isfinite(hessian).flatten(1).all(-1)
        step = _step(gradient, hessian, finite, solve)
        decrement = 0.5 * (gradient * step).sum(-1)
        new, new_loss, moved = _halved_step(objective, here, loss, step, decrement, finite)
        point[genes] = new
        log.record(new_loss, genes)
        if options.keep_history:
            history.append(point.clone())
        done = finite & (decrement <= options.tol)
        log.finish(genes[~finite], Reason.NOT_FINITE)
        log.finish(genes[done], Reason.CONVERGED)
        log.finish(genes[finite & ~done & ~moved], Reason.STALLED)
        stay = torch.nonzero(finite & ~done & moved).squeeze(-1)
        if len(stay) < len(genes):
            objective = objective.select(stay)
        genes, loss = genes[stay], new_loss[stay]
    log.finish(genes, Reason.MAX_EPOCHS)
    return NewtonResult(point, log, history)


def solve_curvature(hessian: Tensor, right: Tensor) -> Tensor:
    """Solve ``|H|⁺ right`` for ``(A, D, R)``: by Cholesky, or in the eigenbasis where H is not positive definite.

    NaN where H is not finite.
    """
    scale = torch.diagonal(hessian, dim1=-2, dim2=-1).abs()
    scale = torch.where(scale > 0, scale, 1.0).rsqrt()
    scaled = scale.unsqueeze(-1) * hessian * scale.unsqueeze(-2)
    factor, info = torch.linalg.cholesky_ex(scaled)
    pivots = torch.diagonal(factor, dim1=-2, dim2=-1)
    regular = (info == 0) & (pivots.square().amin(-1) > SINGULAR if pivots.shape[-1] else info == 0)
    right = scale.unsqueeze(-1) * right
    solution = torch.zeros_like(right)
    finite = torch.isfinite(scaled).flatten(1).all(-1)
    good, bad = torch.nonzero(regular & finite).squeeze(-1), torch.nonzero(~regular & finite).squeeze(-1)
    solution[good] = torch.cholesky_solve(right[good], factor[good])
    solution[~finite] = torch.nan
    if len(bad):
        values, vectors = torch.linalg.eigh(scaled[bad])
        size = values.abs()
        inverse = torch.where(size > SINGULAR * size.amax(-1, keepdim=True), 1 / size, 0.0)
        solution[bad] = vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ right[bad]))
    return scale.unsqueeze(-1) * solution


def has_curvature(hessian: Tensor, least: float) -> Tensor:
    """Whether a Hessian ``(G, ..., k, k)``, scaled to unit diagonal, has no eigenvalue below ``least``: ``(G,)``."""
    diagonal = torch.diagonal(hessian, dim1=-2, dim2=-1)
    scale = torch.where(diagonal.abs() > 0, diagonal.abs(), 1.0).rsqrt()
    scaled = scale[..., None] * hessian * scale[..., None, :]
    _, info = torch.linalg.cholesky_ex((scaled - least * torch.eye(hessian.shape[-1]).to(hessian)).nan_to_num())
    return (info == 0).reshape(len(hessian), -1).all(1) & torch.isfinite(hessian).flatten(1).all(1)


def _step(gradient: Tensor, hessian: Tensor, finite: Tensor, solve: Solve) -> Tensor:
    step = torch.zeros_like(gradient)
    step[finite] = solve(hessian[finite], gradient[finite].unsqueeze(-1)).squeeze(-1)
    return step


def _halved_step(
    objective: NewtonObjective, here: Tensor, loss: Tensor, step: Tensor, decrement: Tensor, finite: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points and losses after the longest of the steps 1, ½, ¼, … that lowers the loss, and which genes have one."""
    new, new_loss, moved = here.clone(), loss.clone(), torch.zeros_like(finite)
    noise = objective.rounding()
    trying, length = torch.nonzero(finite).squeeze(-1), 1.0
    current = objective if len(trying) == len(here) else objective.select(trying)
    for _ in range(_MAX_HALVINGS):
        if not len(trying):
            break
        candidate = here[trying] - length * step[trying]
        value = current.loss(candidate)
        good = value <= loss[trying] + noise[trying] - 1e-4 * length * decrement[trying]  # a NaN is never good
        kept = trying[good]
        new[kept], new_loss[kept], moved[kept] = candidate[good], value[good], True
        left = torch.nonzero(~good).squeeze(-1)
        if len(left) < len(trying):
            current = current.select(left)
        trying, length = trying[left], length / 2
    return new, new_loss, moved
