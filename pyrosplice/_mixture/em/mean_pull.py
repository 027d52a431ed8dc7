"""How a prior pulls the means of components: by a number of cells, or with a spread in units of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from pyrosplice._mixture.gaussian_mixture import MixtureParameters


class MeanPull(Protocol):
    """A normal prior of the means, given the covariances; all in standardized units, ``(B, J, M, ...)``."""

    per_covariance: int
    """Times that the prior's density has a component's covariance in it, as one more cell would."""

    def select(self, sets: Tensor) -> Self:
        """Take the prior of some of the data sets."""

    def means(self, counts: Tensor, center: Tensor, parameters: MixtureParameters) -> Tensor:
        """Conditional mean, and mode, given the covariances of ``parameters`` and cells with their ``center``."""

    def roots(self, counts: Tensor, parameters: MixtureParameters) -> Tensor:
        """L with L Lᵀ the conditional covariance of the means, ``(B, J, M, D, D)``."""

    def squares(self, counts: Tensor, center: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(B, J, M, 1)`` and vectors whose squares add to those of the cells about their own centre."""

    def log_density(self, parameters: MixtureParameters) -> Tensor:
        """Log prior density of each component's mean, up to a constant: ``(B, J, M)``."""


@dataclass(frozen=True)
class ScaledPull:
    """Each mean as if some more cells lay at the prior's, which is :class:`~pyrosplice.priors.ScaledNormal`.

    Attributes
    ----------
    mean
        ``(B, 1, M, D)``, with 1 in the place of M where it is the same for all.
    cells
        How many, ``(M,)``.
    """

    mean: Tensor
    cells: Tensor
    per_covariance = 1

    def select(self, sets: Tensor) -> Self:
        """Take the prior of some of the data sets."""
        return replace(self, mean=self.mean[sets])

    def means(self, counts: Tensor, center: Tensor, parameters: MixtureParameters) -> Tensor:
        """Means between the cells' centre and the prior's mean; the covariance has no say in it."""
        cells, kappa = counts[..., None], self.cells[:, None]
        return (cells * center + kappa * self.mean) / (cells + kappa)

    def roots(self, counts: Tensor, parameters: MixtureParameters) -> Tensor:
        """Root of the component's covariance over all cells."""
        spread = (counts + self.cells).rsqrt()
        return spread[..., None, None] * torch.linalg.cholesky(parameters.covariance_matrices())

    def squares(self, counts: Tensor, center: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and vectors of the squared distance to the prior's mean, the component's mean at its best."""
        cells, kappa = counts[..., None], self.cells[:, None]
        return kappa * cells / (cells + kappa), center - self.mean

    def log_density(self, parameters: MixtureParameters) -> Tensor:
        """Log prior density of each component's mean, up to a constant: ``(B, J, M)``."""
        factor, _ = torch.linalg.cholesky_ex(parameters.covariance_matrices())
        gap = torch.linalg.solve_triangular(factor, (parameters.means - self.mean)[..., None], upper=False)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (log_det + self.cells * gap.square().sum((-2, -1)))


@dataclass(frozen=True)
class FixedPull:
    """Each mean about the prior's with a covariance of its own, whatever the spread of the component.

    Maximizing alternates: means given covariances, covariances given means (ECM, Meng & Rubin 1993), which never lowers
    the density.

    Attributes
    ----------
    mean
        ``(B, 1, M, D)``.
    precision
        ``(B, 1, M, D, D)``.
    """

    mean: Tensor
    precision: Tensor
    per_covariance = 0

    def select(self, sets: Tensor) -> Self:
        """Take the prior of some of the data sets."""
        return replace(self, mean=self.mean[sets], precision=self.precision[sets])

    def means(self, counts: Tensor, center: Tensor, parameters: MixtureParameters) -> Tensor:
        """Means weighted by the two precisions, without the inverse of a covariance, which may be small."""
        cells = counts[..., None]
        eye = torch.eye(center.shape[-1], dtype=center.dtype, device=center.device)
        matrix = cells[..., None] * eye + parameters.covariance_matrices() @ self.precision
        step, _ = torch.linalg.solve_ex(matrix, (cells * (center - self.mean))[..., None])
        return self.mean + step[..., 0]

    def roots(self, counts: Tensor, parameters: MixtureParameters) -> Tensor:
        """Inverse root of the sum of the two precisions."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(parameters.covariance_matrices()))
        factor = torch.linalg.cholesky(counts[..., None, None] * inverse + self.precision)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor.mT, eye, upper=True)

    def squares(self, counts: Tensor, center: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and vectors of the squared distance from the cells' centre to the component's own mean."""
        return counts[..., None], center - means

    def log_density(self, parameters: MixtureParameters) -> Tensor:
        """Log prior density of each component's mean, up to a constant: ``(B, J, M)``."""
        gap = parameters.means - self.mean
        return -0.5 * (gap * (self.precision @ gap[..., None])[..., 0]).sum(-1)
