"""The protocol between the Laplace engine and a spatial covariance."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SpatialSolver(ABC):
    r"""A spatial covariance in the form that Newton's method needs.

    The field at the spots is :math:`s = F z` with :math:`z \sim N(0, P^{-1})`, so that its covariance is
    :math:`V = F P^{-1} F' + \operatorname{diag}(\delta)`. A sparse precision has F = I; a dense or
    truncated covariance has P = I and F its square root. What a truncation leaves out of the diagonal is
    ``remainder`` δ, so that V keeps its trace.

    Fields are ``(B, N, Q)`` (genes, spots, logits), latents ``(B, r, Q)``; genes never interact.

    ============ ======== ===============================================================
    to override  required for
    ============ ======== ===============================================================
    ``spread``   yes      F z
    ``gather``   yes      F' x
    ``prior``    yes      P z
    ``factorize`` yes     the Newton matrix P ⊗ I + F' M F for a block-diagonal M
    ``color``   yes      draws of the field from standard normal numbers
    ============ ======== ===============================================================
    """

    n_spots: int
    n_latent: int
    prior_logdet: float
    remainder: Tensor | None = None

    @property
    def factor_blocks(self) -> int:
        """Number of Q × Q blocks, about, that a factor of one gene and its inverse hold."""
        return 2 * self.n_latent * (self.n_latent + self.n_spots)

    @abstractmethod
    def spread(self, latent: Tensor) -> Tensor:
        """Take latents to the field, ``F z``: (B, r, Q) to (B, N, Q)."""

    @abstractmethod
    def gather(self, field: Tensor) -> Tensor:
        """Take numbers of the field to the latents, ``F' x``: (B, N, Q) to (B, r, Q)."""

    @abstractmethod
    def prior(self, latent: Tensor) -> Tensor:
        """Multiply latents by their prior precision, ``P z``: (B, r, Q) to (B, r, Q)."""

    @abstractmethod
    def factorize(self, blocks: Tensor) -> Factor:
        """Factor ``P ⊗ I_Q + F' blockdiag(blocks) F``; ``blocks`` is (B, N, Q, Q), symmetric."""

    @abstractmethod
    def color(self, noise: Tensor) -> Tensor:
        """Make a field (B, N, Q) of covariance F P⁻¹ F' from standard normal (B, r, Q), ``F P^{-1/2} noise``."""

    def covariance_product(self, field: Tensor) -> Tensor:
        """Multiply (B, N, Q) fields by the covariance, ``V x``, by a solve with the prior."""
        width = field.shape[-1]
        blocks = field.new_zeros(1, self.n_spots, 1, 1)
        flat = field.transpose(1, 2).reshape(1, -1, self.n_spots).transpose(1, 2)  # one gene, B·Q right-hand sides
        latent = self.gather(flat)
        out = self.spread(self.factorize(blocks).solve(latent.unsqueeze(2)).squeeze(2))
        out = out.transpose(1, 2).reshape(field.shape[0], width, self.n_spots).transpose(1, 2)
        return out if self.remainder is None else out + self.remainder[:, None] * field

    def dense_covariance(self, device: torch.device | str = "cpu") -> Tensor:
        """V as a full symmetric matrix ``(N, N)``, by a solve a spot."""
        identity = torch.eye(self.n_spots, dtype=torch.float64, device=device)
        covariance = self.covariance_product(identity.unsqueeze(0))[0]
        return (covariance + covariance.T) / 2


class Factor(ABC):
    """A factorised Newton matrix S of a batch of genes."""

    @abstractmethod
    def logdet(self) -> Tensor:
        """Log determinant ``log |S|`` of each gene, (B,); NaN where S is not positive definite."""

    @abstractmethod
    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the factor, ``S⁻¹ rhs``, for (B, r, Q) or, with R right-hand sides, (B, r, Q, R)."""

    @abstractmethod
    def spot_covariance(self) -> Tensor:
        """Posterior covariance of the field at every spot, ``F_i S⁻¹ F_i'``: (B, N, Q, Q)."""

    @abstractmethod
    def color(self, noise: Tensor) -> Tensor:
        """Make R posterior draws of the latents, ``S^{-1/2} noise``, from standard normal (B, r, Q, R)."""
