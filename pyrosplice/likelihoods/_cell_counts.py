"""The Pyro distribution of expression: one count a cell, around any likelihood of a location and a scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrosplice.likelihoods._contract import Likelihood


class CellCounts(TorchDistribution):
    r"""Counts of cells, :math:`y_{gi} \sim p(\,\cdot \mid \eta_{gi}, \zeta_{gi})`, one a gene and cell.

    Parameters
    ----------
    likelihood
        Noise of one count.
    eta, zeta
        Location and scale predictor ``(..., G, N)``; the batch shape.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.likelihoods import CellCounts, NegativeBinomial
    >>> eta, zeta = torch.ones(2, 5), torch.zeros(2, 5)  # two genes, five cells
    >>> noise = CellCounts(NegativeBinomial(), eta, zeta)
    >>> noise.batch_shape, noise.sample().shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real

    def __init__(
        self, likelihood: Likelihood, eta: Tensor, zeta: Tensor, *, validate_args: bool | None = False
    ) -> None:
        self.likelihood = likelihood
        self.eta, self.zeta = torch.broadcast_tensors(eta, zeta)
        super().__init__(self.eta.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> CellCounts:
        """Copy the distribution to a larger batch shape."""
        shape = torch.Size(batch_shape)
        return CellCounts(self.likelihood, self.eta.expand(shape), self.zeta.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each count."""
        return self.likelihood.cell_log_prob(value.to(self.eta).unsqueeze(-1), self.eta.unsqueeze(-1), self.zeta)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts ``(*sample_shape, ..., G, N)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        eta, zeta = self.eta.expand(shape), self.zeta.expand(shape)
        with torch.no_grad():
            drawn = self.likelihood.at_scale(zeta).draw(eta, eta.unsqueeze(-1), generator=generator)
        return drawn.squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        return self.likelihood.at_scale(self.zeta).expected(self.eta.unsqueeze(-1)).squeeze(-1)
