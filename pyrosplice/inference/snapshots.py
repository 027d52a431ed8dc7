"""The points that a search of a mixed model evaluates, kept for those who ask for the history of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrosplice.inference.objective import ModeObjective
from pyrosplice.inference.quasi_newton import Minimiser


@dataclass
class Snapshots:
    """Another minimiser that notes every evaluation of the search that it is given.

    Attributes
    ----------
    minimiser
        The search itself.
    n_genes
        G.
    epochs
        Coefficients (G, P, Q), σ and θ (G, components) and ν (G, N, Q) after every evaluation; genes that are not
        evaluated keep their values.
    """

    minimiser: Minimiser
    n_genes: int
    epochs: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, objective: ModeObjective, genes: Tensor, start: Tensor, *rest: Any, **options: Any) -> Any:
        """Search as ``minimiser`` does."""
        if len(genes) == self.n_genes:  # a search of its own, not a second attempt for some genes
            self.epochs.clear()
        return self.minimiser(_Noted(objective, self.epochs), genes, start, *rest, **options)

    def stacked(self) -> dict[str, Tensor]:
        """One tensor a name, epochs first."""
        return {name: torch.stack([epoch[name] for epoch in self.epochs]) for name in self.epochs[0]}


def joined(histories: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Histories ``(E, genes, ...)`` of batches side by side; shorter ones keep their last epoch."""
    length = max(len(value) for history in histories for value in history.values())

    def padded(value: Tensor) -> Tensor:
        return torch.cat([value, value[-1:].expand(length - len(value), *value.shape[1:])])

    return {name: torch.cat([padded(history[name]) for history in histories], 1) for name in histories[0]}


class _Noted:
    def __init__(self, objective: ModeObjective, epochs: list[dict[str, Tensor]]) -> None:
        self._objective, self._epochs = objective, epochs

    def evaluate(self, genes: Tensor, point: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        found = self._objective.evaluate(genes, point, **options)
        mode = self._objective.mode
        if mode is not None:
            coefficients, sigma, angle = self._objective.unknowns.unpack(point, genes)
            nu = mode.step.model.random_part(mode.step.parameters, mode.latents)
            now = {"coefficients": coefficients, "sigma": sigma.abs(), "theta": angle.sin().square(), "nu": nu}
            now |= self._objective.unknowns.hyper_values(point)
            self._epochs.append({name: self._updated(name, genes, value) for name, value in now.items()})
        return found

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        return self._objective.step_limit(genes, point, direction)

    def _updated(self, name: str, genes: Tensor, value: Tensor) -> Tensor:
        if not self._epochs:
            return value.clone()
        return self._epochs[-1][name].index_copy(0, genes, value)
