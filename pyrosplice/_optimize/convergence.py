"""How each gene's fit went: one record for every engine, and the ``logger`` of a fitted model."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.reasons import Reason


class FitCode(IntEnum):
    """The reasons of fits of expression as the numbers that tensors and files hold; from ``FAILED`` on it failed."""

    CONVERGED = 0
    POISSON_BOUNDARY = 1
    SEPARATED = 2
    ALL_ZERO = 3
    FAILED = 4
    MAX_EPOCHS = 5
    STALLED = 6
    NOT_FINITE = 7
    RAISED = 8
    SADDLE = 9
    UNBOUNDED = 10
    NO_MODE = 11

    @classmethod
    def of(cls, reason: Reason) -> FitCode:
        """The number of a reason; ``FAILED`` where it has none of its own."""
        return next((code for code in cls if code.reason == reason), cls.FAILED)

    @property
    def reason(self) -> Reason:
        """Say why the fit ended in the words of every family."""
        own = {FitCode.POISSON_BOUNDARY: Reason.BOUNDARY, FitCode.ALL_ZERO: Reason.NO_COUNTS}
        return own.get(self) or Reason(self.name.lower())


def reasons_of_codes(codes: object) -> NDArray[np.object_]:
    """The words of an array of :class:`FitCode`, in its shape."""
    return np.array([code.reason.value for code in FitCode], dtype=object)[np.asarray(codes)]


@dataclass
class Convergence:
    """Record of searches, one row per gene, filled in while an engine runs.

    Attributes
    ----------
    reason
        Why each gene stopped, length G.
    n_iter
        Iterations made, ``(G,)``.
    best_loss
        Lowest minus log density seen, ``(G,)``; infinite before the first epoch.
    best_epoch
        Epoch at which it was seen, ``(G,)``; epoch 0 is the start.
    """

    reason: list[Reason]
    n_iter: Tensor
    best_loss: Tensor
    best_epoch: Tensor
    _epochs: list[Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def start(cls, n_genes: int, *, device: torch.device | str = "cpu") -> Convergence:
        """An empty record for ``n_genes`` genes."""
        zeros = torch.zeros(n_genes, dtype=torch.int64, device=device)
        best = torch.full((n_genes,), float("inf"), dtype=torch.float64, device=device)
        return cls([Reason.RUNNING] * n_genes, zeros, best, zeros.clone())

    @property
    def converged(self) -> Tensor:
        """Whether each gene is at an optimum, ``(G,)`` bool."""
        return torch.tensor([reason == Reason.CONVERGED for reason in self.reason])

    @property
    def loss_history(self) -> Tensor:
        """Minus log density by epoch, ``(E, G)``; a gene that has stopped keeps its last value."""
        if not self._epochs:
            return self.best_loss.new_zeros(0, len(self.reason))
        return torch.stack(self._epochs)

    def record(self, loss: Tensor, genes: Tensor) -> Tensor:
        """Append one epoch's loss ``(A,)`` of the listed genes ``(A,)``; returns which of them improved."""
        loss = loss.detach()
        epoch = len(self._epochs)
        latest = self._epochs[-1].clone() if epoch else self.best_loss.clone()
        latest[genes] = loss
        self._epochs.append(latest)
        improved = loss < self.best_loss[genes]
        better = genes[improved]
        self.best_loss[better], self.best_epoch[better] = loss[improved], epoch
        self.n_iter[genes] = epoch
        return improved

    def absorb(self, part: Convergence, genes: Tensor) -> None:
        """Take over the record that another search made of the listed genes, ``(A,)`` in its order."""
        for gene, reason in zip(genes.tolist(), part.reason, strict=True):
            self.reason[gene] = reason
        self.n_iter[genes], self.best_loss[genes], self.best_epoch[genes] = part.n_iter, part.best_loss, part.best_epoch
        for epoch in range(max(len(self._epochs), len(part._epochs))):
            if epoch == len(self._epochs):
                self._epochs.append(self._epochs[-1].clone() if epoch else torch.full_like(self.best_loss, torch.inf))
            self._epochs[epoch][genes] = part._epochs[min(epoch, len(part._epochs) - 1)]

    def finish(self, genes: Tensor, reason: Reason) -> None:
        """Note why the listed genes stopped."""
        for gene in genes.tolist():
            self.reason[gene] = reason
