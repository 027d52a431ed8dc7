r"""How the residuals of a fitted model scatter between the logits, beside what the model says.

The random effect of a GLMM has one variance for all logits, or one each, without covariance between them. Counts of
several isoforms often say otherwise. With :math:`r_i` the residuals of the
spots (:mod:`pyrosplice.hypothesis.score`) and :math:`P_{ii}` the diagonal blocks of the marginal precision
:math:`V^{-1}`, their covariance by the model,

.. math::
   \Phi = \Big(\sum_i r_i r_i'\Big) \Big((1 - p / n) \sum_i P_{ii}\Big)^{-1}

is a dispersion of Q × Q numbers: one where the model is right; for Q = 1 the sum of squares of the residuals over what
the model expects. p coefficients a logit were fitted, and spots count as they inform:
:math:`n = 1 / \sum_i w_i^2` with shares :math:`w_i = \operatorname{tr}((\sum_j P_{jj})^{-1} P_{ii}) / Q`, the number of
spots if all inform the same (Kish's effective sample size). With the root :math:`G = \Phi^{1/2}` the score
:math:`U = (X \otimes I)' r` has variance :math:`(I \otimes G)\, I_{XX}\, (I \otimes G)'`. G moves with the basis of the
logits, so that tests do not depend on it. A χ² statistic of c columns that is made with it is a Lawley–Hotelling
trace: of one column Hotelling's T² on ν = n − p degrees of freedom. Sources: McCullagh (1983) Ann. Statist. 11:59 for
one logit; McKeon (1974) Biometrika 61:381 for the F law of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import fdtrc
from torch import Tensor


@dataclass(frozen=True)
class Dispersion:
    """Of every gene: ``root`` G ``(B, Q, Q)`` and its degrees of freedom ν ``(B,)``; NaN where it has none."""

    root: Tensor
    dof: Tensor


def dispersion_of(residual: Tensor, spot_precision: Tensor, n_coefficients: Tensor | int) -> Dispersion:
    """Dispersion of the residuals of a model, NaN for a gene with a logit without information or without ν > 0.

    Parameters
    ----------
    residual
        ``(B, N, Q)``.
    spot_precision
        Diagonal blocks of V⁻¹, ``(B, N, Q, Q)``; zero for spots that do not inform.
    n_coefficients
        Fitted coefficients a logit, the intercept among them: one number, or ``(B,)``.
    """
    total, observed = spot_precision.sum(1), residual.mT @ residual
    factor, failed = _factor(total)
    failed = failed | ~torch.isfinite(observed).flatten(1).all(-1)
    effective = effective_spots(spot_precision)
    blank = failed[:, None, None]
    half = torch.linalg.solve_triangular(factor, torch.where(blank, factor, observed), upper=False)
    values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.mT, upper=False))
    root = (vectors * values.clamp_min(0.0).sqrt()[:, None]) @ vectors.mT
    root = torch.linalg.solve_triangular(factor, factor @ root, upper=False, left=False)
    dof = effective - n_coefficients
    dof = torch.where(failed | ~(dof > 0), torch.nan, dof)
    return Dispersion(root * (effective / dof).sqrt()[:, None, None], dof)


def effective_spots(spot_precision: Tensor) -> Tensor:
    """Number of spots as they inform, n ``(B,)``; NaN for a gene with a logit without information."""
    factor, failed = _factor(spot_precision.sum(1))
    share = (spot_precision * torch.cholesky_inverse(factor)[:, None]).sum((-2, -1)) / factor.shape[-1]
    return torch.where(failed, torch.nan, share.square().sum(-1).reciprocal())


def _factor(total: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the information of the logits, and where there is none (there the factor is of ones)."""
    deviation = torch.diagonal(total, dim1=-2, dim2=-1).sqrt()
    factor, info = torch.linalg.cholesky_ex(total / (deviation[:, :, None] * deviation[:, None]))
    failed = info != 0
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.where(failed[:, None, None], eye, deviation[:, :, None] * factor), failed


def trace_sf(statistic: Tensor, n_columns: Tensor, n_logits: int, dof: Tensor) -> Tensor:
    """``P(T > statistic)`` of statistics ``(B, T)`` of ``n_columns`` ``(T,)`` covariates each, ``dof`` is ν ``(B,)``.

    One column: Hotelling's law, exact for normal residuals, NaN for ν < Q. More: McKeon's F law, NaN for ν ≤ Q + 3.
    χ² as ν grows.
    """
    q, columns, dof = n_logits, n_columns.to(statistic), dof[:, None]
    numerator = q * columns
    spread = (dof + columns - q - 1) * (dof - 1) / ((dof - q - 3) * (dof - q)) - 1
    denominator = 4 + (numerator + 2) / spread
    scale = numerator * (denominator - 2) / (denominator * (dof - q - 1)) * dof
    single = columns == 1
    denominator = torch.where(single, dof - q + 1, denominator)
    scale = torch.where(single, dof * q / (dof - q + 1), scale)
    known = torch.where(single, dof >= q, dof > q + 3)
    ratio = torch.where(known, statistic.clamp_min(0.0) / scale, torch.nan)
    tail = fdtrc(*(x.cpu().numpy() for x in torch.broadcast_tensors(numerator, denominator, ratio)))
    return torch.as_tensor(tail).to(statistic).clamp_min(torch.finfo(torch.float64).tiny)


def dispersed(root: Tensor, information: Tensor) -> Tensor:
    """``(I ⊗ G) information (I ⊗ G)'`` for ``information`` ``(B, C Q, C Q)``, logits fastest."""
    n_genes, size = information.shape[:2]
    n_logits = root.shape[-1]
    blocks = information.reshape(n_genes, size // n_logits, n_logits, size // n_logits, n_logits)
    return torch.einsum("bkq,bcqdr,blr->bckdl", root, blocks, root).reshape(n_genes, size, size)
