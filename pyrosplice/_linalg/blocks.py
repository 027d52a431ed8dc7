"""Many small Q × Q matrices at once, one a spot and gene.

``torch.linalg`` calls LAPACK once a matrix, which costs more than the arithmetic when Q is 1 to 10. Here every
operation is an elementwise one on ``(..., N, Q, Q)`` tensors, so it is vectorised over spots and genes on any device,
and keeps the memory layout of its inputs: fastest where the last two dimensions are outermost in memory
(:func:`planar`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def planar(x: Tensor) -> Tensor:
    """Reorder the memory of ``(B, N, ...)`` as ``(..., N, B)``, so that each entry is one contiguous plane."""
    order = tuple(range(x.dim()))
    return x.permute(*order[2:], 1, 0).contiguous().permute(x.dim() - 1, x.dim() - 2, *order[: x.dim() - 2])


def last_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension; plane by plane where it is outermost in memory, five times as fast for few."""
    if x.stride(-1) == 1:
        return x.sum(-1)
    out = x[..., 0]
    for k in range(1, x.shape[-1]):
        out = out + x[..., k]
    return out


def last_max(x: Tensor) -> Tensor:
    """Largest along the last dimension, as :func:`last_sum` goes."""
    if x.stride(-1) == 1:
        return x.amax(-1)
    out = x[..., 0]
    for k in range(1, x.shape[-1]):
        out = torch.maximum(out, x[..., k])
    return out


def nan_where_indefinite(matrix: Tensor) -> Tensor:
    """Cholesky factors; NaN where there is none, so that the gene at fault fails alone."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor.masked_fill((info > 0)[..., None, None], torch.nan)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Products of ``(..., A, C)`` and ``(..., C, B)`` matrices."""
    out = left[..., :, 0, None] * right[..., None, 0, :]
    for c in range(1, left.shape[-1]):
        out.addcmul_(left[..., :, c, None], right[..., None, c, :])
    return out


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of ``(..., A, C)`` matrices and ``(..., C)`` vectors."""
    out = matrix[..., :, 0] * vector[..., 0, None]
    for c in range(1, matrix.shape[-1]):
        out.addcmul_(matrix[..., :, c], vector[..., c, None])
    return out


def planar_matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply as :func:`matvec` by matrices that spots share, ``(B, 1, A, C)`` or ``(A, C)``, to :func:`planar`."""
    shape = (matrix.shape[-2], *reversed(vector.shape[:-1]))
    out = vector.new_zeros(shape).permute(*reversed(range(len(shape))))
    for c in range(matrix.shape[-1]):
        out.addcmul_(matrix[..., :, c], vector[..., c, None])
    return out


def congruent(matrix: Tensor, block: Tensor) -> Tensor:
    """Product ``M B M'`` of such matrices M and ``(..., N, C, C)``; the result is :func:`planar`."""
    return _planar_matmul(_planar_matmul(matrix, block), matrix.mT)


def _planar_matmul(left: Tensor, right: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (left.shape[-2], right.shape[-1], *reversed(lead))
    out = left.new_zeros(shape).permute(*reversed(range(2, len(shape))), 0, 1)
    for c in range(left.shape[-1]):
        out.addcmul_(left[..., :, c, None], right[..., None, c, :])
    return out


def sandwich(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    """Scale rows and columns, ``diag(left) matrix diag(right)``: vectors (..., Q), matrices (..., Q, Q) broadcast."""
    return matrix * left[..., :, None] * right[..., None, :]


def inverse_and_logdet(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses and log determinants of symmetric positive definite matrices ``(..., Q, Q)``.

    By Gauss–Jordan sweeps without pivoting, which positive definite matrices do not need. The log determinant of a
    matrix that is not positive definite is NaN, and only its own; its inverse need not be.
    """
    out = matrix.clone()
    logdet = torch.zeros_like(matrix[..., 0, 0])
    for k in range(matrix.shape[-1]):
        pivot = out[..., k, k].clone()
        logdet += pivot.log()
        column = out[..., :, k].clone()
        row = out[..., k, :] / pivot[..., None]
        out -= column[..., :, None] * row[..., None, :]
        out[..., k, :] = row
        out[..., :, k] = -column / pivot[..., None]
        out[..., k, k] = pivot.reciprocal()
    return out, logdet


def positive_part(matrix: Tensor) -> Tensor:
    """Symmetric matrices ``(..., Q, Q)`` with their negative eigenvalues set to zero."""
    if matrix.shape[-1] == 1:
        return matrix.clamp_min(0.0)
    shift = 1e-12 * matrix.abs().amax((-2, -1)).clamp_min(1e-300)
    shifted = matrix + torch.diag_embed(shift[..., None].expand(matrix.shape[:-1]))
    bad = torch.isnan(inverse_and_logdet(shifted)[1]) & torch.isfinite(shift)
    if not bool(bad.any()):
        return matrix
    values, vectors = torch.linalg.eigh(matrix[bad])
    out = matrix.clone()
    out[bad] = (vectors * values.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT
    return out
