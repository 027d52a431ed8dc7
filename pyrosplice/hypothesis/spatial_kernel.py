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
from pyrosplice.linalg.select import sparse_precision
from pyrosplice.linalg.sparse import SparseSolver, inverse_diagonal

DENSE_LIMIT = 2_000
"""Number of spots up to which a sparse precision is inverted densely."""
_LEADING = 32
_SAMPLED = 64  # columns of K that the sum of its cubes is estimated from


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

    def pair_product(self, x: Tensor, power: int) -> Tensor:
        r""":math:`\sum_{j \ne i} (K_{ij} - c)^p x_j` for rows ``(..., N)``: p = 2, c = 0, or p = 3, c the mean of K.

        Without K at hand, its powers are those of a kernel of 1 / p its range,
        :math:`\beta (K^{-1} + (p^2 - 1) \lambda_{min}(K^{-1}) I)^{-1}` off the diagonal, with β such that the sum of
        all entries is right. On a regular graph this is exact for constant x, and for white noise on average.
        """
        if self.matrix is not None:
            return x @ self._pair_powers[power]
        solver, diagonal, multiple = self._shorter_kernels[power]
        return multiple * (_solve(solver, x) - diagonal * x)

    @cached_property
    def _mean(self) -> float:
        return float(self.product(torch.ones_like(self.diagonal)).mean()) / self.n_spots

    @cached_property
    def _pair_powers(self) -> dict[int, Tensor]:
        assert self.matrix is not None
        powers = {2: self.matrix.square(), 3: (self.matrix - self._mean) ** 3}
        for matrix in powers.values():
            matrix.fill_diagonal_(0.0)
        return powers

    @cached_property
    def _solver(self) -> SparseSolver:
        return SparseSolver(self.precision)

    @cached_property
    def _shorter_kernels(self) -> dict[int, tuple[SparseSolver, Tensor, float]]:
        spots = torch.linspace(0, self.n_spots - 1, min(_SAMPLED, self.n_spots)).round().to(torch.int64)
        columns = self.product(torch.nn.functional.one_hot(spots, self.n_spots).to(self.diagonal)) - self._mean
        cubes = columns**3
        cubes[torch.arange(len(spots)), spots] = 0.0
        totals = {
            2: self.trace_square - float(self.diagonal.square().sum()),
            3: float(cubes.sum(-1).mean()) * self.n_spots,
        }
        return {power: self._shorter_kernel(power, total) for power, total in totals.items()}

    def _shorter_kernel(self, power: int, total: float) -> tuple[SparseSolver, Tensor, float]:
        assert self.precision is not None
        shift = (power**2 - 1) / float(self.values[0])
        precision = sp.csc_matrix(self.precision + shift * sp.identity(self.n_spots))
        solver, diagonal = SparseSolver(precision), torch.from_numpy(inverse_diagonal(precision))
        pairs = _solve(solver, torch.ones_like(diagonal)).sum() - diagonal.sum()
        return solver, diagonal, total / float(pairs)


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
    given = None if isinstance(covariance, Tensor) else sparse_precision(covariance)
    if not isinstance(covariance, Tensor) and given is None:
        covariance = torch.as_tensor(covariance.dense())
    if isinstance(covariance, Tensor):
        return _dense_kernel(_damped(_checked(covariance), damping))
    precision = sp.csc_matrix(given + damping * sp.identity(covariance.n_spots))
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
