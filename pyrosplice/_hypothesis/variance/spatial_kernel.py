r"""The kernel of a variance-component test, and what its null distribution needs of it, computed once for all genes.

.. math:: K = (V^{-1} + \tau I)^{-1}

with V the spatial covariance. τ = 0 is the locally most powerful choice, which bets on a few leading eigenvectors of
V; a small τ ("damping") caps every eigenvalue at 1/τ, the shape of the most powerful test against an effect whose
signal-to-noise ratio in one spot is τ, and finds moderate effects more often. For a CAR covariance it is the same as
a smaller ρ.

A gene that has counts in a set c of at most 500 spots, of up to ``DENSE_LIMIT``, is tested with the kernel that damps
these alone, :math:`K_c = (V_{cc}^{-1} + \tau I)^{-1}`: damping spots that say nothing would shorten the kernel below
the distance between those that do (tests/studies/sv_shapes.py). Else all spots are damped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.chebyshev import InversePolynomial
from pyrosplice._linalg.near_entries import NearEntries
from pyrosplice._linalg.select import sparse_precision
from pyrosplice._linalg.sparse import SparsePattern, SparseSolver
from pyrosplice._overrides import is_ours
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._covariance import SpatialCovariance

DENSE_LIMIT = 2_000
"""Number of spots up to which a sparse precision is inverted densely."""
SPACING = ((5_000, 19), (20_000, 15), (50_000, 13), (np.inf, 11))
"""Up to how many spots how many steps lie between those whose near entries are probed together.

What the others of a colour add to an entry is noise in the kernel that genes of few covered spots are tested with: at
30 to 250 of 2,500 spots it moves their statistics by .01 to .04 of a standard deviation at spacing 19, .02 to .11 at
15, .06 to .22 at 11. Their law is that of the kernel they are tested with, so that only power is at stake.
"""
_LEADING = 32
_PROBES = 16
_MAX_DEGREE = 400  # of a polynomial of the precision; a factor is cheaper for worse-conditioned ones


class SpatialKernel(Protocol):
    """K of N spots. Build one with :func:`spatial_kernel`."""

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        ...

    @property
    def diagonal(self) -> Tensor:
        """Diagonal of K, ``(N,)``."""
        ...

    @property
    def values(self) -> Tensor:
        """Leading eigenvalues, descending, ``(r,)``."""
        ...

    @property
    def vectors(self) -> Tensor:
        """Their eigenvectors, ``(N, r)``."""
        ...

    @property
    def skewness(self) -> float:
        """Third standardised moment of the eigenvalues that are not among the leading ones."""
        ...

    @property
    def trace_square(self) -> float:
        """Sum of all squared eigenvalues."""
        ...

    def product(self, x: Tensor) -> Tensor:
        """Product ``K x`` for rows ``(..., N)``."""
        ...

    def quadratic(self, x: Tensor) -> Tensor:
        """Quadratic form ``x'Kx`` for rows ``(..., N)``: ``(...)``."""
        ...

    def pair_sums(self, sizes: Tensor) -> PairSums:
        r"""Sum over all pairs of different spots, weighted by sizes a ``(B, N)``.

        ``rows`` :math:`a_i \sum_{j \ne i} K_{ij}^2 a_j`, ``(B, N)``, and ``cubes``
        :math:`\sum_{i \ne j} (K_{ij} - c)^3 (a_i a_j)^{3/2}`, ``(B,)``, with c the mean of K.
        """
        ...

    def between(self, spots: Tensor, covered: Tensor) -> Tensor:
        """Entries between all pairs of some spots ``(B, m)``, of which those ``covered`` matter: ``(B, m, m)``."""
        ...


@dataclass(frozen=True)
class PairSums:
    """Sums over pairs of different spots, as in :meth:`SpatialKernel.pair_sums`.

    Attributes
    ----------
    rows, cubes
        ``(B, N)`` and ``(B,)``.
    triples
        ``Σ_i a_i`` times the mean of ``a_j a_k`` over pairs near i, ``(B,)``; None of a matrix.
    """

    rows: Tensor
    cubes: Tensor
    triples: Tensor | None = None


@dataclass(frozen=True)
class DenseKernel:
    """K as a matrix; V too where τ is not 0."""

    matrix: Tensor
    values: Tensor
    vectors: Tensor
    skewness: float
    trace_square: float
    spatial: Tensor | None = None
    damping: float = 0.0

    @classmethod
    def of(cls, matrix: Tensor, spatial: Tensor | None = None, damping: float = 0.0) -> DenseKernel:
        """Decompose a matrix into its eigenvalues; refused where it is no covariance."""
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(0), vectors.flip(1)
        if values[-1] < -1e-8 * values[0].abs():
            raise InvalidArgumentError(f"covariance: smallest eigenvalue {float(values[-1]):.3g} is negative.")
        rank = min(_LEADING, len(matrix))
        rest = values[rank:]
        moments = [float(len(rest))] + [float((rest**k).sum()) for k in (1, 2, 3)]
        leading = vectors[:, :rank].contiguous()
        total = float(values.square().sum())
        return cls(matrix, values[:rank], leading, _skewness(moments), total, spatial, damping)

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        return len(self.matrix)

    @cached_property
    def diagonal(self) -> Tensor:
        """Diagonal of K."""
        return self.matrix.diagonal().clone()

    def product(self, x: Tensor) -> Tensor:
        """Product ``K x``."""
        return x @ self.matrix

    def quadratic(self, x: Tensor) -> Tensor:
        """Quadratic form ``x'Kx``."""
        return (x * self.product(x)).sum(-1)

    def pair_sums(self, sizes: Tensor) -> PairSums:
        """Sum over pairs of spots, by the powers of the entries."""
        root = sizes**1.5
        squares, cubes = self._pair_powers
        return PairSums(sizes * (sizes @ squares), (root * (root @ cubes)).sum(-1))

    def between(self, spots: Tensor, covered: Tensor) -> Tensor:
        """K_c: damped where ``covered``, 0 elsewhere."""
        if self.spatial is None:
            return self.matrix[spots.unsqueeze(-1), spots.unsqueeze(-2)]
        n_empty = self.n_spots - int(covered.sum(-1).min())
        if 2 * n_empty < spots.shape[-1]:
            return self._without_damping_of_others(spots, covered, n_empty)
        known = covered.to(self.spatial)
        entries = self.spatial[spots.unsqueeze(-1), spots.unsqueeze(-2)]
        entries = entries * known.unsqueeze(-1) * known.unsqueeze(-2)
        damped = self.damping * entries
        damped.diagonal(dim1=-2, dim2=-1).add_(1.0)
        kernel = torch.cholesky_solve(entries, torch.linalg.cholesky(damped))
        return (kernel + kernel.mT) / 2

    def _without_damping_of_others(self, spots: Tensor, covered: Tensor, n_empty: int) -> Tensor:
        """K_c from K, where few spots e are not covered: ``K_cc + τ K_ce (I − τ K_ee)⁻¹ K_ec``."""
        known = self.matrix.new_zeros(len(spots), self.n_spots).scatter(1, spots, covered.to(self.matrix))
        others = torch.argsort(known, dim=1, stable=True)[:, :n_empty]
        empty = 1 - torch.take_along_dim(known, others, 1)  # 0 for those that fill up
        cross = self.matrix[spots.unsqueeze(-1), others.unsqueeze(-2)] * empty.unsqueeze(-2)
        inner = self.matrix[others.unsqueeze(-1), others.unsqueeze(-2)] * empty.unsqueeze(-1) * empty.unsqueeze(-2)
        inner = torch.eye(n_empty, dtype=inner.dtype, device=inner.device) - self.damping * inner
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), cross.mT, upper=False)
        entries = self.matrix[spots.unsqueeze(-1), spots.unsqueeze(-2)]
        return torch.baddbmm(entries, half.mT, half, alpha=self.damping)

    @cached_property
    def single(self) -> tuple[Tensor, Tensor]:
        """Single-precision K, and its leading eigenvectors times the roots of their eigenvalues."""
        leading = self.vectors * self.values.clamp_min(0.0).sqrt()
        return self.matrix.to(torch.float32), leading.to(torch.float32)

    @cached_property
    def _pair_powers(self) -> tuple[Tensor, Tensor]:
        squares, cubes = self.matrix.square(), (self.matrix - self.matrix.mean()) ** 3
        return squares.fill_diagonal_(0.0), cubes.fill_diagonal_(0.0)


class SparseKernel:
    """K of many spots by its sparse inverse: products by polynomials, entries between near spots by probes.

    Parameters
    ----------
    covariance
        V, with ``n_spots`` and ``eigen(rank)``.
    precision
        V⁻¹, sparse.
    damping
        τ.
    """

    def __init__(self, covariance: SpatialCovariance, precision: sp.spmatrix, damping: float) -> None:
        self._covariance, self._damping = covariance, damping
        self.n_spots: int = precision.shape[0]
        self.precision = sp.csc_matrix(precision + damping * sp.identity(self.n_spots))
        self.precision.sort_indices()
        # what a shipped covariance knows of its precision; a subclass may have another
        self._known = covariance if is_ours(type(covariance)) else None
        self._pattern = getattr(self._known, "pattern", None) or SparsePattern(self.precision)
        self.diagonal = torch.from_numpy(self._pattern.inverse_diagonal(self.precision))

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = self._covariance.eigen(min(_LEADING, self.n_spots))
        return values / (1 + self._damping * values), vectors

    @property
    def values(self) -> Tensor:
        """Leading eigenvalues of K: those of V, damped."""
        return self._eigen[0]

    @property
    def vectors(self) -> Tensor:
        """Leading eigenvectors, which are those of V."""
        return self._eigen[1]

    @property
    def skewness(self) -> float:
        """Third standardised moment of the other eigenvalues, from power sums."""
        return self._power_sums[0]

    @property
    def trace_square(self) -> float:
        """Sum of all squared eigenvalues, from power sums."""
        return self._power_sums[1]

    @cached_property
    def _power_sums(self) -> tuple[float, float]:
        """Skewness of the other eigenvalues and sum of all squares, from differences in h of ``tr (K⁻¹ + h I)⁻¹``."""
        n, values = self.n_spots, self.values
        step = min(1e-3 / float(values[-1]), 0.5 / float(values[0]))

        def others(h: float) -> float:
            trace = self._pattern.inverse_diagonal(self.precision + h * sp.identity(n)).sum()
            return float(trace) - float((values / (1 + h * values)).sum())

        middle, lower, upper = others(0.0), others(-step), others(step)
        square, cube = (lower - upper) / (2 * step), (lower - 2 * middle + upper) / (2 * step**2)
        skewness = _skewness([float(n - len(values)), middle, square, cube])
        return skewness, square + float(values.square().sum())

    def _inverse(self, tolerance: float) -> InversePolynomial | _InverseFactor:
        least = getattr(self._known, "least_precision", 0.0)
        lower = least + self._damping if least + self._damping > 0 else 0.999 / float(self.values[0])
        polynomial = InversePolynomial(self.precision, lower=lower, tolerance=tolerance)
        return polynomial if polynomial.degree <= _MAX_DEGREE else _InverseFactor(SparseSolver(self.precision))

    @cached_property
    def _fine(self) -> InversePolynomial | _InverseFactor:
        return self._inverse(2e-5)

    @cached_property
    def _coarse(self) -> InversePolynomial | _InverseFactor:
        return self._inverse(1e-3)

    def product(self, x: Tensor) -> Tensor:
        """Product ``K x``, to 1e-3 of K's largest eigenvalue, in single precision."""
        columns = x.reshape(-1, x.shape[-1]).T.to(torch.float32).numpy()
        return torch.from_numpy(self._coarse.product(columns)).T.to(x).reshape(x.shape)

    def quadratic(self, x: Tensor) -> Tensor:
        """Form ``x'Kx``, to 2e-5 of K's largest eigenvalue; columns in single precision, sums in double."""
        columns = x.reshape(-1, x.shape[-1]).T.to(torch.float32).numpy()
        return torch.from_numpy(self._fine.quadratic(columns)).to(x).reshape(x.shape[:-1])

    def pair_sums(self, sizes: Tensor) -> PairSums:
        """Sum over pairs of near spots; the mean of K is taken as 0."""
        found = self.near.pair_sums(sizes.numpy())
        return PairSums(*(torch.from_numpy(x).to(sizes) for x in (found.rows, found.cubes, found.triples)))

    def between(self, spots: Tensor, covered: Tensor) -> Tensor:
        """0 between spots that are far from each other; damped whether ``covered`` or not."""
        entries = torch.from_numpy(self.near.between(spots.numpy()))
        entries.diagonal(dim1=-2, dim2=-1).copy_(self.diagonal[spots])
        return entries

    @cached_property
    def near(self) -> NearEntries:
        """Entries between near spots."""
        spacing = next(steps for most, steps in SPACING if self.n_spots <= most)
        return NearEntries.of(self._inverse(4e-3), self.precision, spacing=spacing)

    @cached_property
    def pair_trace_cube(self) -> float:
        """Trace of the cube of K without its diagonal, by probes."""
        generator = np.random.default_rng(1)
        signs = torch.from_numpy(generator.choice([-1.0, 1.0], (_PROBES, self.n_spots)))
        once = self.product(signs) - self.diagonal * signs
        return float((once * (self.product(once) - self.diagonal * once)).sum()) / _PROBES


class _InverseFactor:
    """The interface of :class:`~pyrosplice._linalg.chebyshev.InversePolynomial` by a sparse factor."""

    def __init__(self, solver: SparseSolver) -> None:
        self._solver = solver

    def product(self, x: NDArray[Any]) -> NDArray[Any]:
        """Product ``P⁻¹ x``."""
        rows = torch.from_numpy(np.ascontiguousarray(x.T, dtype=np.float64)).unsqueeze(-1)
        return self._solver.covariance_product(rows).squeeze(-1).numpy().T.astype(x.dtype)

    def quadratic(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Quadratic form ``x'P⁻¹x``."""
        return (x * self.product(x.astype(np.float64))).sum(0, dtype=np.float64)


def spatial_kernel(covariance: Tensor | SpatialCovariance, *, damping: float = 0.1) -> SpatialKernel:
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
    if isinstance(covariance, Tensor):
        matrix = _checked(covariance)
    elif given is None:
        matrix = _checked(torch.as_tensor(covariance.dense()))
    elif covariance.n_spots > DENSE_LIMIT:
        return SparseKernel(covariance, given, damping)
    else:
        inverse = torch.linalg.inv(torch.from_numpy(given.toarray()).to(torch.float64))
        matrix = (inverse + inverse.T) / 2
    return DenseKernel.of(_damped(matrix, damping), matrix if damping else None, damping)


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


def _skewness(moments: list[float]) -> float:
    """Third standardised moment of eigenvalues with power sums ``[count, Σλ, Σλ², Σλ³]``."""
    count, first, second, third = moments
    if count == 0:
        return 0.0
    mean = first / count
    variance = max(second / count - mean**2, 0.0)
    if variance <= 1e-12 * mean**2:
        return 0.0
    return (third / count - 3 * mean * second / count + 2 * mean**3) / variance**1.5
