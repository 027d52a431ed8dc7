"""One Gaussian a unit, given by the blocks of its precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrosplice.guides._curvature import Curvature


class UnitNormal(TorchDistribution):
    """Independent Gaussians of units, batch shape ``(G,)``, event shape ``(m,)``.

    Parameters
    ----------
    loc
        Means ``(G, m)``.
    hessian
        Precisions by block, ``(G, B, k, k)``, in the layout of ``curvature``.
    curvature
        Gives the layout.

    Raises
    ------
    ValueError
        If a precision is not positive definite.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, hessian: Tensor, curvature: Curvature, validate_args: bool | None = None) -> None:
        self.loc, self.hessian, self.curvature = loc, hessian, curvature
        self.root, info = torch.linalg.cholesky_ex(hessian)
        if bool((info != 0).any()):
            units = (info != 0).any(1).nonzero()[:, 0].tolist()
            raise ValueError(f"precision: expected positive definite matrices, found others in units {units}.")
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> UnitNormal:
        """Copy with dimensions to the left of the units."""
        shape = torch.Size(batch_shape)
        if shape[-1:] != self.loc.shape[:1]:
            raise NotImplementedError(f"UnitNormal: the last batch dimension is its {len(self.loc)} units.")
        expanded = copy(self)
        expanded._batch_shape = shape
        return expanded

    def centered(self) -> UnitNormal:
        """Copy around zero."""
        moved = copy(self)
        moved.loc = torch.zeros_like(self.loc)
        return moved

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, G, m)``."""
        lead = (*torch.Size(sample_shape), *self.batch_shape[:-1])
        shape = (*lead, *self.root.shape[:-1], 1)
        white = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.curvature.unfold(self._scaled(white))[..., 0]

    def _scaled(self, white: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root.mT, white, upper=True)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``(..., G)``."""
        lead = value.shape[:-2]
        off = (value - self.loc).reshape(-1, *self.loc.shape)
        folded = torch.stack([self.curvature.fold(one[..., None]) for one in off])
        squares = (self.root.mT @ folded).square().sum((-3, -2, -1))
        return (self.log_scale - 0.5 * squares).reshape(*lead, *self.loc.shape[:1])

    @property
    def log_scale(self) -> Tensor:
        """Log density at the mean, ``(G,)``."""
        logs = torch.diagonal(self.root, dim1=-2, dim2=-1).log().sum((-2, -1))
        return logs - 0.5 * self.loc.shape[1] * math.log(2 * math.pi)

    @property
    def mean(self) -> Tensor:
        """Mean of each unit, ``(G, m)``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each unknown, ``(G, m)``."""
        inverse = torch.cholesky_inverse(self.root)
        return self.curvature.unfold(torch.diagonal(inverse, dim1=-2, dim2=-1)[..., None])[..., 0]

    @property
    def precision_matrix(self) -> Tensor:
        """Precision matrix of each unit, ``(G, m, m)``."""
        return self.curvature.dense(self.hessian)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariance matrix of each unit, ``(G, m, m)``."""
        return torch.linalg.inv(self.precision_matrix)
