"""First-order minimisation of many small problems at once, each gene with its own stopping.

An epoch evaluates every unfinished gene once. A gene has *converged* when its gradient promises less than ``tol``;
mere lack of improvement is not convergence: after ``patience`` epochs without any, the step rule starts afresh from
the best point with a shorter step, and only after several of those does the gene stop, as "stalled". The best point
of each gene is what is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import FirstPoint, Objective, Options
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._optimize.step_rules import RULES
from pyrosplice.errors import check_option
from pyrosplice.reasons import Reason

_MAX_PLATEAUS = 12
_SHORTEST = 1e-12

Self = TypeVar("Self")


class GradientObjective(Protocol):
    """A loss of A genes with D parameters each, and its gradient."""

    def value_and_gradient(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``(A,)`` and gradient ``(A, D)`` at ``(A, D)``."""
        ...

    def step_limit(self, point: Tensor, step: Tensor) -> Tensor:
        """Longest part of each step that may be tried, in (0, 1], ``(A,)``."""
        ...

    def select(self: Self, rows: Tensor) -> Self:
        """Take the loss of some of the genes (indices among the present ones)."""
        ...


@dataclass(frozen=True)
class DescentOptions:
    """Options of :func:`descend`.

    Attributes
    ----------
    optim
        ``"adam"``, ``"sgd"`` or ``"lbfgs"``.
    lr
        First step length of adam and sgd.
    tol
        Largest promised improvement (nats) of a converged gene, and least improvement that counts as one.
    tol_relative
        Whether ``tol`` is multiplied by the size of the loss.
    max_epochs
        Largest number of epochs; −1 means 10,000.
    patience
        Epochs without improvement before the step rule starts afresh.
    keep_history
        Whether to keep the point of every epoch.
    """

    optim: str = "adam"
    lr: float = 0.01
    tol: float = 1e-5
    tol_relative: bool = False
    max_epochs: int = 1000
    patience: int = 5
    keep_history: bool = False

    @property
    def epochs(self) -> int:
        """The number that ``max_epochs`` stands for."""
        return 10_000 if self.max_epochs == -1 else self.max_epochs


@dataclass
class DescentResult:
    """Best points ``(G, D)``, the record of each gene, and the points of every epoch if they were kept."""

    point: Tensor
    convergence: Convergence
    history: list[Tensor]


def descend(
    objective: GradientObjective,
    start: Tensor,
    *,
    curvature: Tensor | None = None,
    options: DescentOptions | None = None,
) -> DescentResult:
    """Minimise the loss of every gene from ``start``.

    Parameters
    ----------
    objective
        The loss.
    start
        ``(G, D)``.
    curvature
        Scale of the second derivatives, ``(G, D)``, positive; ones if None. It makes step lengths and the stopping
        rule independent of the units of the parameters.
    options
        See :class:`DescentOptions`.
    """
    options = options or DescentOptions()
    check_option("optim", options.optim, RULES)
    run = _Run(objective, start, torch.ones_like(start) if curvature is None else curvature, options)
    for _ in range(options.epochs):
        if not len(run.genes):
            break
        run.epoch()
    run.log.finish(run.genes, Reason.MAX_EPOCHS)
    return DescentResult(run.best, run.log, run.history)


class _Run:
    """State of the unfinished genes."""

    def __init__(self, objective: GradientObjective, start: Tensor, curvature: Tensor, options: DescentOptions) -> None:
        self.options, self.objective = options, objective
        self.genes = torch.arange(len(start), device=start.device)
        self.log = Convergence.start(len(start), device=start.device)
        self.rule = RULES[options.optim](curvature.clamp_min(1e-12), options.lr)
        self.best, self.point = start.clone(), start.clone()
        self.best_gradient = torch.zeros_like(start)
        self.loss, self.gradient = objective.value_and_gradient(start)
        self.reference = self.loss.clone()
        self.waited = torch.zeros_like(self.genes)
        self.plateaus = torch.zeros_like(self.genes)
        self.history = [start.clone()] if options.keep_history else []
        self._note(torch.ones_like(self.genes, dtype=torch.bool))
        self._stop()

    def epoch(self) -> None:
        """Evaluate every unfinished gene once."""
        step = self.rule.displacement(self.gradient)
        step = self.objective.step_limit(self.point, step).unsqueeze(-1) * step
        trial = self.point + step
        loss, gradient = self.objective.value_and_gradient(trial)
        usable = torch.isfinite(loss) & torch.isfinite(gradient).all(-1)
        taken = usable & self.rule.accepts(self.loss, loss, (self.gradient * step).sum(-1))
        rows, back = torch.nonzero(taken).squeeze(-1), torch.nonzero(~taken).squeeze(-1)
        change = gradient[rows] - self.gradient[rows]
        self.point[rows], self.loss[rows], self.gradient[rows] = trial[rows], loss[rows], gradient[rows]
        self.rule.moved(rows, step[rows], change)
        self.rule.refused(back)
        if self.options.keep_history:
            self.history.append(self.history[-1].index_copy(0, self.genes, self.point))
        self._note(taken)
        self._plateau()
        self._stop()

    def _note(self, taken: Tensor) -> None:
        improved = self.log.record(self.loss, self.genes)
        better = self.genes[improved]
        self.best[better], self.best_gradient[better] = self.point[improved], self.gradient[improved]
        progress = self.loss < self.reference - self._tolerance()
        self.reference = torch.where(progress, self.loss, self.reference)
        self.waited = torch.where(progress, 0, self.waited + taken.to(self.waited))

    def _plateau(self) -> None:
        rows = torch.nonzero(self.waited >= self.options.patience).squeeze(-1)
        if not len(rows):
            return
        genes = self.genes[rows]
        self.point[rows], self.gradient[rows] = self.best[genes], self.best_gradient[genes]
        self.loss[rows] = self.reference[rows] = self.log.best_loss[genes]
        self.waited[rows] = 0
        self.plateaus[rows] += 1
        self.rule.plateau(rows)

    def _stop(self) -> None:
        finite = torch.isfinite(self.loss) & torch.isfinite(self.gradient).all(-1)
        done = finite & (self.rule.promise(self.gradient) <= self._tolerance())
        stuck = finite & ~done & ((self.plateaus > _MAX_PLATEAUS) | (self.rule.rate < _SHORTEST))
        self.log.finish(self.genes[~finite], Reason.NOT_FINITE)
        self.log.finish(self.genes[done], Reason.CONVERGED)
        self.log.finish(self.genes[stuck], Reason.STALLED)
        stay = torch.nonzero(finite & ~done & ~stuck).squeeze(-1)
        if len(stay) == len(self.genes):
            return
        self.objective = self.objective.select(stay)
        self.rule.select(stay)
        for name in ("genes", "point", "loss", "gradient", "reference", "waited", "plateaus"):
            setattr(self, name, getattr(self, name)[stay])

    def _tolerance(self) -> Tensor:
        size = self.loss.abs() if self.options.tol_relative else torch.ones_like(self.loss)
        return self.options.tol * size


@dataclass(frozen=True)
class Descent:
    """First-order search of a mixed model's objective: a :class:`~pyrosplice._optimize.bfgs.Minimizer`.

    The random effects follow their mode at every evaluation, so the search is over the other unknowns only.
    """

    options: DescentOptions

    def __call__(
        self,
        objective: Objective,
        genes: Tensor,
        first: FirstPoint,
        *,
        convergence: Convergence,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points (B, d), losses (B,) and gradients (B, d); ``options`` may only shorten the search."""
        curvature = 1 / torch.diagonal(first.inverse_hessian, dim1=1, dim2=2)
        limited = replace(self.options, max_epochs=min(self.options.epochs, options.max_iter))
        result = descend(_AtMode(objective, genes), first.point, curvature=curvature, options=limited)
        convergence.absorb(result.convergence, genes)
        loss, gradient = objective.evaluate(genes, result.point)
        return result.point, loss, gradient


@dataclass(frozen=True)
class _AtMode:
    """Some genes of an :class:`~pyrosplice._optimize.bfgs.Objective`."""

    objective: Objective
    genes: Tensor

    def value_and_gradient(self, point: Tensor) -> tuple[Tensor, Tensor]:
        return self.objective.evaluate(self.genes, point)

    def step_limit(self, point: Tensor, step: Tensor) -> Tensor:
        return self.objective.step_limit(self.genes, point, step)

    def select(self, rows: Tensor) -> _AtMode:
        return _AtMode(self.objective, self.genes[rows])
