r"""Well-conditioned coordinates of a design, and the way back to a person's own.

A date or a genomic position has a mean thousands of times its spread: beside an intercept it is nearly the same column
twice, and Newton's information matrix has lost the squares of that in digits. The engine runs over :math:`W = X T`, in
which a column that the others nearly explain is replaced by its remainder (of a QR decomposition), scaled to unit size;
the other columns stay as they are, so that a rare group keeps a coefficient of its own and its small information is not
drowned by that of the others. Estimates come back by :math:`\theta = T b`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]
NEAR = 0.1  # part of a column's length that is new: below it, the column is replaced; 0.13 is a six-way interaction's
RANK = 1e-14
SIZES = (1e-3, 1e3)  # largest entries of a column that is left at its scale


@dataclass(frozen=True)
class Basis:
    r"""Coefficients of a person ``theta = matrix @ inner``, and back; both ``(D, D)``."""

    matrix: Array
    inverse: Array

    @cached_property
    def trivial(self) -> bool:
        """Whether both are the same."""
        return bool(np.array_equal(self.matrix, np.eye(len(self.matrix))))

    @cached_property
    def log_determinant(self) -> float:
        r"""Log of :math:`|\det T^{-1}|`, which half a log determinant of an information gains on the way out."""
        return float(np.linalg.slogdet(self.inverse)[1])

    def part(self, which: slice) -> Basis:
        """Take the part of the basis that concerns some coefficients, which no others mix with."""
        return Basis(self.matrix[which, which], self.inverse[which, which])

    def outward(self, inner: Array) -> Array:
        """Coefficients of the person's design ``(..., D)``."""
        return inner if self.trivial else inner @ self.matrix.T

    def inward(self, theta: Array) -> Array:
        """Coefficients of the engine's design ``(..., D)``."""
        return theta if self.trivial else theta @ self.inverse.T

    def gradient(self, inner: Array) -> Array:
        """Derivatives in the person's coefficients ``(..., D)`` from those in the engine's."""
        return inner if self.trivial else inner @ self.inverse

    def information(self, inner: Array) -> Array:
        """Second derivatives ``(..., D, D)``."""
        return inner if self.trivial else self.inverse.T @ inner @ self.inverse

    def covariance(self, inner: Array) -> Array:
        """Covariances ``(..., D, D)``; infinite variances stay infinite, and what goes with them NaN."""
        if self.trivial:
            return inner
        diagonal = np.eye(len(self.matrix), dtype=bool)
        infinite = np.asarray(np.isposinf(inner[..., diagonal]).any(-1))[..., None, None]
        out = self.matrix @ np.where(infinite, np.nan, inner) @ self.matrix.T
        return np.where(infinite & diagonal, np.inf, out)


def joint(location: Basis, scale: Basis) -> Basis:
    """The coordinates of location and scale coefficients together."""
    return Basis(
        scipy.linalg.block_diag(location.matrix, scale.matrix), scipy.linalg.block_diag(location.inverse, scale.inverse)
    )


def identity(size: int) -> Basis:
    """A person's own coordinates."""
    return Basis(np.eye(size), np.eye(size))


def conditioned(design: Array, weight: Array) -> Basis:
    """Well-conditioned coordinates of ``design`` ``(N, P)`` with ``weight`` ``(N,)`` cells a row.

    A constant column becomes ones; a column that is huge or tiny is scaled; the rest of the work is for columns that
    are nearly explained by others. Where columns depend on each other exactly, they are only scaled.
    """
    p = design.shape[1]
    scale = _scales(design)
    columns, share = design / scale, np.sqrt(weight / weight.sum())[:, None]
    length = np.sqrt(np.square(share * columns).sum(0))
    plain = Basis(np.diag(1 / scale), np.diag(scale))
    if len(design) < p or p < 2 or not (length > 0).all():
        return plain
    order = np.argsort(-_variation(columns, share), kind="stable")
    factor = scipy.linalg.qr(share * columns[:, order] / length[order], mode="r")[0][:p]
    r = factor * np.where(np.diag(factor) < 0, -1.0, 1.0)[:, None]
    size = np.diag(r)
    near = size < NEAR
    if not near.any() or size.min() < RANK:
        return plain
    whole = r * length[order]
    kept = np.where(near, np.eye(p), whole)
    matrix, inverse = scipy.linalg.solve_triangular(whole, kept), scipy.linalg.solve_triangular(kept, whole)
    matrix, inverse = (np.where(near, a, np.eye(p)) for a in (matrix, inverse))
    back = np.argsort(order)
    return Basis(matrix[np.ix_(back, back)] / scale[:, None], inverse[np.ix_(back, back)] * scale)


def _scales(design: Array) -> Array:
    """What each column is divided by: a constant one by its value, one of odd size by its root mean square."""
    largest = np.abs(design).max(0)
    odd = (largest < SIZES[0]) | (largest > SIZES[1])
    safe = np.where(largest > 0, largest, 1.0)
    scale = np.where(odd, safe * np.sqrt(np.square(design / safe).mean(0)), 1.0)
    constant = (np.ptp(design, axis=0) == 0) & (largest > 0)
    return np.where(constant, design[0], np.where(largest > 0, scale, 1.0))


def _variation(columns: Array, share: Array) -> Array:
    """Spread of each column over its mean; infinite for a constant, which comes first."""
    mean = (share**2 * columns).sum(0)
    spread = np.sqrt((share**2 * np.square(columns - mean)).sum(0))
    constant = np.ptp(columns, axis=0) == 0
    with np.errstate(divide="ignore"):
        return np.where(constant, np.inf, np.where(mean == 0, 1e300, spread / np.maximum(np.abs(mean), 1e-300)))
