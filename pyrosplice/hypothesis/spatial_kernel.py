r"""The kernel of a variance-component test, and what its null distribution needs of it, computed once for all genes.

.. math:: K = (V^{-1} + \tau I)^{-1}

with V the spatial covariance. τ = 0 is the locally most powerful choice, which bets on a few leading eigenvectors of
V; a small τ ("damping") caps every eigenvalue at 1/τ, the shape of the most powerful test against an effect whose
signal-to-noise ratio in one spot is τ, and finds moderate effects more often. For a CAR covariance it is the same as
a smaller ρ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.linalg.sparse import SparseSolver, inverse_diagonal

DENSE_LIMIT = 2_000
"""Number of spots up to which a sparse precision is inverted densely."""
_LEADING = 32


@dataclass(frozen=True)
class SpatialKernel:
    """K of N spots. Build one with :func:`spatial_kernel`.

    Attributes
    ----------
    values, vectors
        Leading eigenvalues, ``(r,)``, and eigenvectors, ``(N, r)``.
    diagonal
        Diagonal of K, ``(N,)``.
    skewness
        Third standardised moment of the eigenvalues that are not among the leading ones.
    trace_square
        Sum of all squared eigenvalues.
    matrix
        K itself, ``(N, N)``; None for a sparse precision with many spots.
    precision
        Sparse inverse of K, else None.
    """

    values: Tensor
    vectors: Tensor
    diagonal: Tensor
    skewness: float
    trace_square: float
    matrix: Tensor | None = None
    precision: sp.csc_matrix | None = None

    @property
    def n_spots(self) -> int:
        """N."""
        return self.diagonal.shape[0]

    def product(self, x: Tensor) -> Tensor:
        """``K x`` for rows ``(..., N)``."""
        return x @ self.matrix if self.matrix is not None else _solve(self._solver, x)

    def squared_product(self, x: Tensor) -> Tensor:
        r"""``(K ∘ K) x`` for rows ``(..., N)``.

        Without K at hand, its squares are a multiple of the identity and a kernel of half K's range,
        :math:`\alpha I + \beta (K^{-1} + 3 \lambda_{min}(K^{-1}) I)^{-1}`, with α and β such that the trace and the
        sum of all squares are K's. It is exact in both limits of x (constant, and white noise) on a regular graph.
        """
        if self.matrix is not None:
            return x @ self._squares
        solver, identity, multiple = self._half_range
        return identity * x + multiple * _solve(solver, x)

    @cached_property
    def _squares(self) -> Tensor:
        assert self.matrix is not None
        return self.matrix.square()

    @cached_property
    def _solver(self) -> SparseSolver:
        return SparseSolver(self.precision)

    @cached_property
    def _half_range(self) -> tuple[SparseSolver, float, float]:
        assert self.precision is not None
        shorter = sp.csc_matrix(self.precision + (3 / float(self.values[0])) * sp.identity(self.n_spots))
        solver = SparseSolver(shorter)
        ones = torch.ones(self.n_spots, dtype=torch.float64)
        # α N + β tr S = Σ K_ii², α N + β 1'S1 = tr K²
        trace, total = float(inverse_diagonal(shorter).sum()), float(_solve(solver, ones).sum())
        squares = float(self.diagonal.square().sum())
        multiple = (self.trace_square - squares) / (total - trace)
        return solver, (squares - multiple * trace) / self.n_spots, multiple


def spatial_kernel(covariance: Any, *, damping: float = 0.1) -> SpatialKernel:
    """Kernel of a spatial covariance.

    Parameters
    ----------
    covariance
        V: a dense ``(N, N)`` tensor, or an object with ``precision`` (sparse V⁻¹), ``n_spots`` and ``eigen(rank)``
        such as :class:`~pyrosplice.spatial.car.CarCovariance`. Nothing dense is made of the latter above
        ``DENSE_LIMIT`` spots.
    damping
        τ ≥ 0, default 0.1.
    """
    if not 0 <= damping < np.inf:
        raise InvalidArgumentError(f"damping: expected a finite number ≥ 0, found {damping!r}.")
    if isinstance(covariance, Tensor):
        return _dense_kernel(_damped(_checked(covariance), damping))
    precision = sp.csc_matrix(covariance.precision + damping * sp.identity(covariance.n_spots))
    values, vectors = covariance.eigen(min(_LEADING, covariance.n_spots))
    kernel = _sparse_kernel(precision, values / (1 + damping * values), vectors)
    if covariance.n_spots > DENSE_LIMIT:
        return kernel
    matrix = _solve(SparseSolver(precision), torch.eye(covariance.n_spots, dtype=torch.float64))
    return replace(kernel, matrix=(matrix + matrix.T) / 2)


def _checked(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InvalidArgumentError(f"covariance: expected a square matrix, found shape {tuple(matrix.shape)}.")
    matrix = matrix.to(torch.float64)
    if not torch.isfinite(matrix).all() or (matrix - matrix.T).abs().max() > 1e-8 * matrix.abs().max():
        raise InvalidArgumentError("covariance: expected a symmetric matrix of finite numbers.")
    return matrix


def _damped(matrix: Tensor, damping: float) -> Tensor:
    if damping == 0:
        return matrix
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    damped = torch.linalg.solve(eye + damping * matrix, matrix)
    return (damped + damped.T) / 2


def _dense_kernel(matrix: Tensor) -> SpatialKernel:
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    if values[-1] < -1e-8 * values[0].abs():
        raise InvalidArgumentError(f"covariance: smallest eigenvalue {float(values[-1]):.3g} is negative.")
    rank = min(_LEADING, len(matrix))
    rest = values[rank:]
    moments = [float(len(rest))] + [float((rest**k).sum()) for k in (1, 2, 3)]
    return SpatialKernel(
        values[:rank],
        vectors[:, :rank].contiguous(),
        matrix.diagonal().clone(),
        _skewness(moments),
        float(values.square().sum()),
        matrix=matrix,
    )


def _sparse_kernel(precision: sp.csc_matrix, values: Tensor, vectors: Tensor) -> SpatialKernel:
    """Power sums of the other eigenvalues from differences in h of their ``Σ λ / (1 + h λ) = tr (K⁻¹ + h I)⁻¹ − …``."""
    n = precision.shape[0]
    diagonal = inverse_diagonal(precision)
    step = min(1e-3 / float(values[-1]), 0.5 / float(values[0]))

    def others(h: float) -> float:
        trace = inverse_diagonal(sp.csc_matrix(precision + h * sp.identity(n))).sum()
        return float(trace) - float((values / (1 + h * values)).sum())

    middle, lower, upper = others(0.0), others(-step), others(step)
    square, cube = (lower - upper) / (2 * step), (lower - 2 * middle + upper) / (2 * step**2)
    skewness = _skewness([float(n - len(values)), middle, square, cube])
    trace_square = square + float(values.square().sum())
    return SpatialKernel(values, vectors, torch.from_numpy(diagonal), skewness, trace_square, precision=precision)


def _skewness(moments: list[float]) -> float:
    """Of a spectrum with power sums ``[count, Σλ, Σλ², Σλ³]``."""
    count, first, second, third = moments
    if count == 0:
        return 0.0
    mean = first / count
    variance = max(second / count - mean**2, 0.0)
    if variance <= 1e-12 * mean**2:
        return 0.0
    return (third / count - 3 * mean * second / count + 2 * mean**3) / variance**1.5


def _solve(solver: SparseSolver, x: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    return solver.covariance_product(flat.unsqueeze(-1)).squeeze(-1).reshape(x.shape)
