r"""Products with the inverse of a well-conditioned sparse matrix, without a factor.

.. math:: P^{-1} x \approx \sum_k c_k T_k(\tilde P) x, \quad \tilde P = (2P - (b + a) I) / (b - a)

with T the Chebyshev polynomials and [a, b] an interval that holds the eigenvalues of P. The error relative to 1 / a is
about :math:`2 r^d` at degree d, :math:`r = (\sqrt\kappa - 1) / (\sqrt\kappa + 1)`, κ = b / a, so that a degree follows
from the error wanted. Quadratic forms need half as many products, by :math:`T_{2k} = 2 T_k^2 - 1`.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.floating]
WIDTH = 16  # columns worked on together: one cache line of single precision
RUN = 128  # rows summed in single precision before they are added in double
_FAST = {"contract", "reassoc", "nsz"}


class InversePolynomial:
    """``P⁻¹`` as a polynomial of P.

    Parameters
    ----------
    matrix
        P, sparse, symmetric, positive definite.
    lower
        A number > 0 not above the smallest eigenvalue.
    tolerance
        Error wanted, relative to ``1 / lower``; a number in (0, 1).

    Raises
    ------
    InvalidArgumentError
        ``lower`` is not positive.
    """

    def __init__(self, matrix: sp.spmatrix, *, lower: float, tolerance: float) -> None:
        if not 0 < lower < np.inf:
            raise InvalidArgumentError(f"lower: expected a number > 0, found {lower!r}.")
        self.matrix = sp.csr_matrix(matrix)
        upper = float(abs(self.matrix).sum(1).max())  # Gershgorin
        self.centre, self.half = (upper + lower) / 2, max((upper - lower) / 2, 1e-12 * upper)
        root = math.sqrt(max(upper / lower, 1.0))
        ratio = max((root - 1) / (root + 1), 1e-3)
        self.degree = max(4, 2 * math.ceil(math.log(tolerance / 2) / math.log(ratio) / 2))
        self.coefficients = _coefficients(self.centre, self.half, self.degree)

    def product(self, x: Array) -> Array:
        """``P⁻¹ x`` for columns ``(N, R)``, in the precision of x."""
        return np.concatenate([self._product(block) for block in _blocks(x)], 1)[:, : x.shape[1]]

    def _product(self, x: Array) -> Array:
        kind, c = x.dtype.type, self.coefficients
        pointers, columns, values = self.matrix.indptr, self.matrix.indices, self.matrix.data.astype(x.dtype)
        old, new, spare, out = x, np.empty_like(x), np.empty_like(x), kind(c[0]) * x
        _step(pointers, columns, values, x, np.zeros_like(x), new, kind(self.centre), kind(1 / self.half))
        out += kind(c[1]) * new
        for k in range(2, self.degree + 1):
            _step(pointers, columns, values, new, old, spare, kind(self.centre), kind(2 / self.half))
            old, new, spare = new, spare, (np.empty_like(x) if k == 2 else old)
            out += kind(c[k]) * new
        return out

    def quadratic(self, x: Array) -> NDArray[np.float64]:
        """``x'P⁻¹x`` for every column of ``(N, R)``: ``(R,)``."""
        return np.concatenate([self._quadratic(block) for block in _blocks(x)])[: x.shape[1]]

    def _quadratic(self, x: Array) -> NDArray[np.float64]:
        kind, moments = x.dtype.type, np.zeros((self.degree + 1, WIDTH))
        pointers, columns, values = self.matrix.indptr, self.matrix.indices, self.matrix.data.astype(x.dtype)
        moments[0] = np.square(x, dtype=np.float64).sum(0)
        old, new, spare = x, np.empty_like(x), np.empty_like(x)
        centre, scale = kind(self.centre), kind(1 / self.half)
        cross, square = np.zeros(WIDTH), np.zeros(WIDTH)
        _step_with_sums(pointers, columns, values, x, np.zeros_like(x), new, centre, scale, cross, square)
        moments[1], moments[2] = cross, 2 * square - moments[0]
        for k in range(2, self.degree // 2 + 1):
            cross, square = np.zeros(WIDTH), np.zeros(WIDTH)
            _step_with_sums(pointers, columns, values, new, old, spare, centre, kind(2) * scale, cross, square)
            old, new, spare = new, spare, (np.empty_like(x) if k == 2 else old)
            moments[2 * k - 1], moments[2 * k] = 2 * cross - moments[1], 2 * square - moments[0]
        return self.coefficients @ moments


def _coefficients(centre: float, half: float, degree: int) -> NDArray[np.float64]:
    nodes = np.pi * (np.arange(4 * degree) + 0.5) / (4 * degree)
    values = 1 / (centre + half * np.cos(nodes))
    found = 2 / len(nodes) * np.array([(values * np.cos(k * nodes)).sum() for k in range(degree + 1)])
    found[0] /= 2
    return found


def _blocks(x: Array) -> list[Array]:
    """Columns in groups of ``WIDTH``, each contiguous; the last is filled with zeros."""
    missing = -x.shape[1] % WIDTH
    filled = np.concatenate([x, np.zeros((len(x), missing), x.dtype)], 1) if missing else x
    return [np.ascontiguousarray(filled[:, first : first + WIDTH]) for first in range(0, filled.shape[1], WIDTH)]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _step(pointers, columns, values, x, old, out, centre, scale):  # type: ignore[no-untyped-def]
    """``out = scale (P − centre) x − old``."""
    total = np.empty(WIDTH, x.dtype)
    for i in range(len(pointers) - 1):
        for c in range(WIDTH):
            total[c] = -centre * x[i, c]
        for p in range(pointers[i], pointers[i + 1]):
            value, j = values[p], columns[p]
            for c in range(WIDTH):
                total[c] += value * x[j, c]
        for c in range(WIDTH):
            out[i, c] = scale * total[c] - old[i, c]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _step_with_sums(pointers, columns, values, x, old, out, centre, scale, cross, square):  # type: ignore[no-untyped-def]
    """The same, and the sums over rows of ``out x`` and ``out²``, added to ``cross`` and ``square``."""
    total = np.empty(WIDTH, x.dtype)
    by_run, squares = np.zeros(WIDTH, x.dtype), np.zeros(WIDTH, x.dtype)
    n = len(pointers) - 1
    for first in range(0, n, RUN):
        by_run[:] = 0
        squares[:] = 0
        for i in range(first, min(first + RUN, n)):
            for c in range(WIDTH):
                total[c] = -centre * x[i, c]
            for p in range(pointers[i], pointers[i + 1]):
                value, j = values[p], columns[p]
                for c in range(WIDTH):
                    total[c] += value * x[j, c]
            for c in range(WIDTH):
                new = scale * total[c] - old[i, c]
                out[i, c] = new
                by_run[c] += new * x[i, c]
                squares[c] += new * new
        for c in range(WIDTH):
            cross[c] += by_run[c]
            square[c] += squares[c]
