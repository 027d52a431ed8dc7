"""Normal prior of a cluster's mean that is worth a number of cells, whatever the spread of the cluster."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class ScaledNormal(TorchDistribution):
    r"""Prior of a component's mean that weighs as much as some cells at ``loc``: :math:`N(\mu_0, \Sigma/\kappa)`.

    Σ is the component's own covariance. With an inverse-Wishart (or inverse-gamma) prior of that it is the conjugate
    prior of a normal distribution. As it is given to ``priors=`` it is the distribution for Σ = I.

    Parameters
    ----------
    loc
        μ₀, ``batch_shape + (D,)``, units of the data.
    cells
        κ, the number of cells that the prior mean is worth, ``batch_shape``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.priors import ScaledNormal
    >>> prior = ScaledNormal(torch.zeros(2), cells=4.0)  # worth four cells at zero
    >>> prior.event_shape, prior.given(torch.eye(2)).covariance_matrix.diagonal()
    (torch.Size([2]), tensor([0.2500, 0.2500]))
    """

    arg_constraints = {"loc": constraints.real_vector, "cells": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, cells: Tensor | float, *, validate_args: bool | None = None) -> None:
        cells = torch.as_tensor(cells, dtype=loc.dtype, device=loc.device)
        shape = torch.broadcast_shapes(cells.shape, loc.shape[:-1])
        self.loc, self.cells = loc.expand(shape + loc.shape[-1:]), cells.expand(shape)
        super().__init__(shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: object = None) -> ScaledNormal:
        """Copy the distribution to more batch dimensions."""
        return ScaledNormal(
            self.loc.expand(torch.Size(batch_shape) + self.event_shape), self.cells.expand(torch.Size(batch_shape))
        )

    def given(self, covariance: Tensor) -> MultivariateNormal:
        """The distribution of the mean of a component with ``covariance`` ``(..., D, D)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.priors import ScaledNormal
        >>> ScaledNormal(torch.zeros(2), cells=4.0).given(8 * torch.eye(2)).covariance_matrix
        tensor([[2., 0.],
                [0., 2.]])
        """
        return MultivariateNormal(self.loc, covariance / self.cells[..., None, None])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density for Σ = I, constants included."""
        return self._standard().log_prob(value)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw means for Σ = I."""
        return self._standard().rsample(torch.Size(sample_shape))

    def _standard(self) -> MultivariateNormal:
        return self.given(torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device))
