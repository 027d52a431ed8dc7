"""Dense reference for the covariate tests: the GLMM's null fit and V⁻¹ for given (σ, θ), one gene at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice.likelihoods._contract import Multinomial


def block_diagonal(blocks: Tensor) -> Tensor:
    """(N, Q, Q) to (N Q, N Q)."""
    return torch.block_diag(*blocks)


def random_effect_fit(counts: Tensor, covariance: Tensor, design: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joint mode of coefficients (flat prior) and ν ~ N(0, covariance ⊗ I) of one gene (N, K).

    Returns residual ``(N, Q)``, coefficients ``(P, Q)`` and ``V⁻¹ = W − W (W + Σ⁻¹)⁻¹ W`` ``(N Q, N Q)``.
    """
    likelihood, eye = Multinomial(), torch.eye(counts.shape[1] - 1, dtype=torch.float64)
    fixed = torch.kron(design, eye)
    precision = torch.kron(torch.linalg.inv(covariance).contiguous(), eye)
    nu = torch.zeros(len(precision), dtype=torch.float64)
    coefficients = torch.zeros(fixed.shape[1], dtype=torch.float64)
    for _ in range(60):
        eta = (fixed @ coefficients + nu).reshape(len(counts), -1)
        residual = likelihood.score(counts, eta).flatten()
        weight = block_diagonal(likelihood.information(counts, eta))
        hessian = torch.cat(
            [
                torch.cat([fixed.T @ weight @ fixed, fixed.T @ weight], 1),
                torch.cat([weight @ fixed, weight + precision], 1),
            ]
        )
        step = torch.linalg.solve(hessian, torch.cat([fixed.T @ residual, residual - precision @ nu]))
        coefficients, nu = coefficients + step[: len(coefficients)], nu + step[len(coefficients) :]
        if step.abs().max() < 1e-11:
            break
    inverse = weight - weight @ torch.linalg.solve(weight + precision, weight)
    return residual.reshape(len(counts), -1), coefficients.reshape(design.shape[1], -1), inverse


def dense_product(matrices: Tensor):
    """Callable ``(B, N, Q, R) ↦ V⁻¹ x`` from dense ``(B, N Q, N Q)``."""
    return lambda x: (matrices @ x.flatten(1, 2)).reshape(x.shape)
