"""Searches for the mode of every unit, from the first point and, for units that did not get there, from others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._optimize.newton import UPWARD, NewtonOptions, NewtonResult, has_curvature, newton
from pyrosplice.errors import InvalidArgumentError, check_integer, check_number
from pyrosplice.guides._curvature import Curvature
from pyrosplice.reasons import Reason

IDENTIFIED = 1e-9  # of unit diagonal: least curvature that is no flat direction


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """When searches of a guide end, and how often they are made.

    Parameters
    ----------
    tolerance
        Largest norm of the gradient of a converged unit, nats per unit of the unconstrained coordinates.
    max_iter
        Steps of a unit at most.
    restarts
        Other first points that are tried for units that have not converged.
    starts
        First points that are tried for every unit, of which the highest optimum is kept: more than 1 where a density
        has several (mixtures).

    Raises
    ------
    InvalidArgumentError
        A value outside its range.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyrosplice.guides import AutoNewtonMAP, FitOptions
    >>> def model(counts):
    ...     with pyro.plate("genes", len(counts), dim=-2):
    ...         level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1), 3.0))
    ...         with pyro.plate("cells", counts.shape[1], dim=-1):
    ...             pyro.sample("counts", dist.Poisson(level.exp()), obs=counts)
    >>> counts = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
    >>> guide = AutoNewtonMAP(model).fit(counts, options=FitOptions(tolerance=1e-9, starts=3))
    >>> bool((guide.report()["gradient_norm"] < 1e-9).all())
    True
    >>> FitOptions(max_iter=0)
    Traceback (most recent call last):
        ...
    pyrosplice.errors.InvalidArgumentError: max_iter: expected a whole number of at least 1, found 0.
    """

    tolerance: float = 1e-6
    max_iter: int = 100
    restarts: int = 2
    starts: int = 1

    def __post_init__(self) -> None:
        if check_number("tolerance", self.tolerance) == 0:
            raise InvalidArgumentError("tolerance: expected a positive number, found 0.")
        check_integer("max_iter", self.max_iter)
        check_integer("restarts", self.restarts, least=0)
        check_integer("starts", self.starts)


@dataclass(frozen=True)
class Optimum:
    """Result of the searches: where those of all units ended.

    Attributes
    ----------
    point
        Unknowns searched for, ``(G, p)``.
    value
        Log density there, ``(G,)``.
    gradient
        ``(G, p)``.
    reason
        Why each search ended.
    identified
        Whether the curvature is positive in every direction, ``(G,)``.
    evaluations
        Evaluations of the gradient, ``(G,)``.
    attempts
        First points tried, ``(G,)``.
    """

    point: Tensor
    value: Tensor
    gradient: Tensor
    reason: list[Reason]
    identified: Tensor
    evaluations: Tensor
    attempts: Tensor

    @property
    def converged(self) -> Tensor:
        """Whether the search of each unit ended at an optimum, ``(G,)``."""
        return torch.tensor([reason == Reason.CONVERGED for reason in self.reason])

    def better(self, other: Optimum, rows: Tensor) -> Optimum:
        """The better of two for each of some units: one that converged, then the higher one."""
        mine, theirs = self.converged, other.converged
        higher = other.value.nan_to_num(nan=-torch.inf) > self.value.nan_to_num(nan=-torch.inf)
        chosen = torch.zeros_like(mine)
        chosen[rows] = ((theirs & ~mine) | ((theirs == mine) & higher))[rows]
        tried = torch.zeros_like(chosen)
        tried[rows] = True
        return Optimum(
            point=torch.where(chosen[:, None], other.point, self.point),
            value=torch.where(chosen, other.value, self.value),
            gradient=torch.where(chosen[:, None], other.gradient, self.gradient),
            reason=[b if c else a for a, b, c in zip(self.reason, other.reason, chosen.tolist(), strict=True)],
            identified=torch.where(chosen, other.identified, self.identified),
            evaluations=self.evaluations + torch.where(tried, other.evaluations, 0),
            attempts=self.attempts + tried,
        )


Search = Callable[[int, Tensor], Optimum]  # attempt, units (a,) that are searched; of others anything


def search_units(search: Search, n_units: int, options: FitOptions) -> Optimum:
    """The best optimum of each unit over its first points."""
    every = torch.arange(n_units)
    best = search(0, every)
    for attempt in range(1, options.starts + options.restarts):
        rows = every if attempt < options.starts else (~best.converged).nonzero()[:, 0]
        if not len(rows):
            break
        best = best.better(search(attempt, rows), rows)
    return best


class UnitLoss:
    """Minus the log density in the inner sites, as :func:`~pyrosplice._optimize.newton.newton` takes it.

    The model is run for all units, whichever are asked for; the others stay where they are.
    """

    def __init__(self, curvature: Curvature, outer: Tensor, inner: Tensor, rows: Tensor) -> None:
        self.curvature, self.outer, self.inner, self.rows = curvature, outer, inner, rows
        self._size = torch.zeros(len(rows), dtype=inner.dtype)

    def rounding(self) -> Tensor:
        """Size of the rounding errors of the loss, ``(A,)``."""
        return 1e-12 * self._size + 1e-13

    def loss(self, point: Tensor) -> Tensor:
        """Loss ``(A,)`` at ``(A, m)``."""
        with torch.no_grad():
            value = -self.curvature.density(self.curvature.join(self.outer, self._all(point)))[self.rows]
        self._size = value.abs().nan_to_num(nan=0.0, posinf=0.0)
        return value

    def derivatives(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(A, m)`` and Hessian ``(A, B, k, k)``."""
        found = self.curvature.expand(self.outer, self._all(point))
        return found.gradient[self.rows], found.hessian[self.rows]

    def select(self, rows: Tensor) -> UnitLoss:
        """Take the loss of some of the units (indices among the present ones)."""
        part = UnitLoss(self.curvature, self.outer, self.inner, self.rows[rows])
        part._size = self._size[rows]
        return part

    def _all(self, point: Tensor) -> Tensor:
        return self.inner.index_copy(0, self.rows, point)


def newton_search(
    curvature: Curvature, outer: Tensor, start: Tensor, rows: Tensor, *, tolerance: float, max_iter: int
) -> tuple[Tensor, NewtonResult]:
    """Newton's method over the inner sites of some units: points ``(G, m)`` of all, and the record of ``rows``."""
    loss = UnitLoss(curvature, outer, start, rows)
    options = NewtonOptions(tol=tolerance, max_epochs=max_iter)
    found = newton(loss, start[rows], options=options, solve=curvature.solve)
    return start.index_copy(0, rows, found.point), found


def newton_optimum(
    curvature: Curvature, outer: Tensor, start: Tensor, rows: Tensor, options: FitOptions
) -> tuple[Optimum, Tensor]:
    """The mode over the inner sites, and the Hessian ``(G, B, k, k)`` there."""
    tolerance = min(1e-10, options.tolerance**2)
    point, found = newton_search(curvature, outer, start, rows, tolerance=tolerance, max_iter=options.max_iter)
    end = curvature.expand(outer, point)
    reasons = [Reason.RUNNING] * len(point)
    for row, reason in zip(rows.tolist(), found.convergence.reason, strict=True):
        reasons[row] = reason
    evaluations = torch.zeros(len(point), dtype=torch.int64).index_copy(0, rows, found.convergence.n_iter + 1)
    optimum = Optimum(
        point=point,
        value=-end.value,
        gradient=-end.gradient,
        reason=reasons,
        identified=has_curvature(end.hessian, IDENTIFIED),
        evaluations=evaluations,
        attempts=torch.ones_like(evaluations),
    )
    return judged(optimum, ~has_curvature(end.hessian, -UPWARD), options.tolerance), end.hessian


def judged(optimum: Optimum, upward: Tensor, tolerance: float) -> Optimum:
    """Correct the reasons of units by what was found at their last point."""
    small = optimum.gradient.norm(dim=1) <= tolerance
    at_rounding = is_small(optimum, tolerance)
    finite = torch.isfinite(optimum.value) & torch.isfinite(optimum.gradient).all(1)
    reasons = []
    for unit, reason in enumerate(optimum.reason):
        if not bool(finite[unit]):
            reason = reason if reason == Reason.NO_MODE else Reason.NOT_FINITE
        elif bool(upward[unit]) and (bool(small[unit]) or (reason == Reason.CONVERGED and bool(at_rounding[unit]))):
            reason = Reason.SADDLE
        elif reason == Reason.STALLED and bool(small[unit]):
            reason = Reason.CONVERGED
        elif reason == Reason.CONVERGED and not bool(at_rounding[unit]):
            reason = Reason.STALLED
        reasons.append(reason)
    return replace(optimum, reason=reasons)


def is_small(optimum: Optimum, tolerance: float) -> Tensor:
    """Whether a gradient is within the tolerance, or as small as the rounding of its value allows, ``(G,)``."""
    return optimum.gradient.norm(dim=1) <= (1e-9 * (1 + optimum.value.abs())).clamp_min(tolerance)
