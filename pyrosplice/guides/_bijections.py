"""Unconstrained coordinates of the values of a site, one to one, for every support that Pyro's models have."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import IndependentTransform, Transform


class VectorToLowerCholesky(Transform):
    """Transformation of ``D (D + 1) / 2`` real numbers to a lower triangular matrix, its diagonal given by logs.

    Pyro's own takes ``D × D`` numbers and ignores those above the diagonal: a direction without curvature for each.
    """

    domain = constraints.real_vector
    codomain: constraints.Constraint = constraints.lower_cholesky
    bijective = True

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the matrices."""
        size = (math.isqrt(1 + 8 * shape[-1]) - 1) // 2
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the vectors."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))

    def _call(self, x: Tensor) -> Tensor:
        size = self.forward_shape(x.shape)[-1]
        rows, columns = torch.tril_indices(size, size, device=x.device)
        entries = torch.where(rows == columns, x.exp(), x)
        flat = x.new_zeros(*x.shape[:-1], size * size)
        return flat.index_copy(-1, rows * size + columns, entries).unflatten(-1, (size, size))

    def _inverse(self, y: Tensor) -> Tensor:
        rows, columns = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        entries = y[..., rows, columns]
        diagonal = rows == columns
        return torch.where(diagonal, torch.where(diagonal, entries, 1.0).log(), entries)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the volume that a unit of ``x`` becomes."""
        return torch.diagonal(y, dim1=-2, dim2=-1).log().sum(-1)


class VectorToPositiveDefinite(VectorToLowerCholesky):
    """Transformation of ``D (D + 1) / 2`` real numbers to a positive definite matrix, by its Cholesky factor."""

    codomain: constraints.Constraint = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        root = super()._call(x)
        return root @ root.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the volume, of the lower triangle, that a unit of ``x`` becomes."""
        size = y.shape[-1]
        logs = torch.diagonal(super()._call(x), dim1=-2, dim2=-1).log()
        powers = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        return size * math.log(2) + (powers * logs).sum(-1)


def bijection(support: constraints.Constraint) -> Transform:
    """Transformation from unconstrained coordinates to values of a support, without a coordinate too many.

    Raises
    ------
    NotImplementedError
        If torch knows none for the support.
    """
    if isinstance(support, constraints.independent):
        inner = bijection(support.base_constraint)
        count = support.reinterpreted_batch_ndims
        return IndependentTransform(inner, count) if count else inner
    if support is constraints.positive_definite:
        return VectorToPositiveDefinite()
    if support is constraints.lower_cholesky:
        return VectorToLowerCholesky()
    return biject_to(support)
