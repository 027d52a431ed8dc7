"""The points that a search of a mixed model evaluates, kept for those who ask for the history of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import FirstPoint, Minimizer, Objective, Options
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.glmm._objective import ModeObjective, Unknowns


@dataclass
class Snapshots:
    """Another minimiser that notes every evaluation of the search that it is given.

    Attributes
    ----------
    minimiser
        The search itself.
    epochs
        Coefficients (G, P, Q), σ and θ (G, components) and ν (G, N, Q) at the start and after every evaluation; genes
        that are not evaluated, those that start at their optimum among them, keep their values.
    """

    minimizer: Minimizer[Objective]
    epochs: list[dict[str, Tensor]] = field(default_factory=list)
    _noted: _Noted | None = None

    def __call__(
        self, objective: ModeObjective, genes: Tensor, first: FirstPoint, *, convergence: Convergence, options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search as ``minimizer`` does."""
        if self._noted is None or self._noted.objective is not objective:  # else a second attempt for some genes
            self.epochs.clear()  # the first search of an objective is of all its genes, just evaluated at the start
            self._noted = _Noted(objective, self.epochs)
            self._noted.note(genes, first.point)
        return self.minimizer(self._noted, genes, first, convergence=convergence, options=options)

    def stacked(self) -> dict[str, Tensor]:
        """Stack the values to one tensor a name, epochs first."""
        return {name: torch.stack([epoch[name] for epoch in self.epochs]) for name in self.epochs[0]}


def joined(histories: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Histories ``(E, genes, ...)`` of batches side by side; shorter ones keep their last epoch."""
    length = max(len(value) for history in histories for value in history.values())

    def padded(value: Tensor) -> Tensor:
        return torch.cat([value, value[-1:].expand(length - len(value), *value.shape[1:])])

    return {name: torch.cat([padded(history[name]) for history in histories], 1) for name in histories[0]}


class _Noted:
    """An objective that writes down where it was evaluated."""

    def __init__(self, objective: ModeObjective, epochs: list[dict[str, Tensor]]) -> None:
        self.objective, self._epochs = objective, epochs

    def evaluate(self, genes: Tensor, point: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        found = self.objective.evaluate(genes, point, **options)
        self.note(genes, point)
        return found

    def note(self, genes: Tensor, point: Tensor) -> None:
        """Add an epoch: what was last evaluated, at ``point`` of the listed genes."""
        mode, unknowns = self.objective.mode, self.objective.unknowns
        if mode is None or not isinstance(unknowns, Unknowns):
            return
        coefficients, sigma, angle = unknowns.unpack(point, genes)
        nu = mode.step.model.effect(mode.step.parameters, mode.latents)
        now = {"coefficients": coefficients, "sigma": sigma.abs(), "theta": angle.sin().square(), "nu": nu}
        now |= unknowns.hyper_values(point)
        last = self._epochs[-1] if self._epochs else now
        self._epochs.append({name: last[name].index_copy(0, genes, value) for name, value in now.items()})

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        return self.objective.step_limit(genes, point, direction)
