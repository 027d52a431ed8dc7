"""Dense and low-rank spatial covariances, batched over genes, on any torch device."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice._linalg.solver import Factor, SpatialSolver


class LowRankSolver(SpatialSolver):
    r"""Spatial covariance :math:`V = F F' + \operatorname{diag}(\delta)`, F its scaled leading eigenvectors.

    Parameters
    ----------
    eigenvalues, eigenvectors
        Leading eigenpairs of V, (r,) and (N, r). Eigenvalues at or below rounding error are dropped.
    variances
        Diagonal of V, (N,). What the eigenpairs leave out of it is kept as ``remainder``, so that a truncated V has
        the trace of the whole and σ², θ keep their meaning. None: the eigenpairs are all of V.
    """

    def __init__(self, eigenvalues: Tensor, eigenvectors: Tensor, *, variances: Tensor | None = None):
        kept = eigenvalues > 1e-12 * eigenvalues.max()
        self.root = (eigenvectors[:, kept] * eigenvalues[kept].sqrt()).to(torch.float64)
        self.n_spots, self.n_latent = self.root.shape
        self.prior_logdet = 0.0
        lost = None if variances is None else (variances.to(self.root) - self.root.square().sum(1)).clamp_min(0.0)
        self.remainder = lost if lost is not None and bool((lost > 1e-9).any()) else None

    @classmethod
    def from_dense(cls, covariance: Tensor) -> LowRankSolver:
        """Decompose a dense (N, N) covariance into all its eigenpairs."""
        values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
        return cls(values, vectors)

    def spread(self, latent: Tensor) -> Tensor:
        """Take latents to the field, ``F z``."""
        return self._apply(self.root, latent)

    def gather(self, field: Tensor) -> Tensor:
        """Take numbers of the field to the latents, ``F' x``."""
        return self._apply(self.root.T, field)

    def prior(self, latent: Tensor) -> Tensor:
        """Latents are independent a priori."""
        return latent

    def factorize(self, blocks: Tensor) -> LowRankFactor:
        """Dense Cholesky of ``I + F' blockdiag(blocks) F``, one (rQ, rQ) matrix a gene."""
        q, matrix = blocks.shape[-1], quadratic_forms(self.root, blocks)
        torch.diagonal(matrix, dim1=1, dim2=2).add_(1.0)
        cholesky, info = torch.linalg.cholesky_ex(matrix)
        cholesky[info > 0] = torch.nan
        return LowRankFactor(self, cholesky, q)

    def color(self, noise: Tensor) -> Tensor:
        """Make a field from standard normal numbers, ``F noise``."""
        return self.spread(noise)

    def _apply(self, matrix: Tensor, x: Tensor) -> Tensor:
        return (matrix @ x.permute(2, 1, 0)).permute(2, 1, 0)


class LowRankFactor(Factor):
    """Cholesky factors (B, rQ, rQ), latent-major."""

    def __init__(self, solver: LowRankSolver, cholesky: Tensor, q: int):
        self.solver, self.cholesky, self.q = solver, cholesky, q

    def logdet(self) -> Tensor:
        """Log determinant ``log |S|`` of each gene, (B,)."""
        return 2 * torch.diagonal(self.cholesky, dim1=1, dim2=2).log().sum(-1)

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the factor, ``S⁻¹ rhs``."""
        columns = rhs.reshape(rhs.shape[0], self.cholesky.shape[-1], -1)
        return torch.cholesky_solve(columns, self.cholesky).reshape(rhs.shape)

    def spot_covariance(self) -> Tensor:
        """Posterior covariance of the field at every spot, ``F_i S⁻¹ F_i'``."""
        root, q = self.solver.root, self.q
        wide = torch.zeros(self.solver.n_latent, q, self.solver.n_spots, q, dtype=root.dtype, device=root.device)
        for a in range(q):
            wide[:, a, :, a] = root.T
        wide = wide.reshape(1, self.cholesky.shape[-1], -1).expand(len(self.cholesky), -1, -1)
        half = torch.linalg.solve_triangular(self.cholesky, wide, upper=False)
        half = half.reshape(len(self.cholesky), -1, self.solver.n_spots, q)
        return torch.einsum("bkna,bknc->bnac", half, half)

    def color(self, noise: Tensor) -> Tensor:
        """Make draws of the latents from standard normal numbers, ``L⁻ᵀ noise``."""
        columns = noise.reshape(noise.shape[0], self.cholesky.shape[-1], -1)
        return torch.linalg.solve_triangular(self.cholesky.mT, columns, upper=True).reshape(noise.shape)


def quadratic_forms(columns: Tensor, blocks: Tensor) -> Tensor:
    """Forms ``(U ⊗ I)' blockdiag(blocks) (U ⊗ I)`` of U ``(N, r)`` and blocks ``(B, N, Q, Q)``: ``(B, r Q, r Q)``."""
    q, rank = blocks.shape[-1], columns.shape[1]
    matrix = blocks.new_empty(len(blocks), rank, q, rank, q)
    for a in range(q):
        for b in range(a + 1):
            product = (columns.T * blocks[:, None, :, a, b]) @ columns
            matrix[:, :, a, :, b] = product
            matrix[:, :, b, :, a] = product
    return matrix.reshape(len(blocks), rank * q, rank * q)
