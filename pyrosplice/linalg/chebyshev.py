r"""Products with the inverse of a well-conditioned sparse matrix, without a factor.

.. math:: P^{-1} x \approx \sum_k c_k T_k(\tilde P) x, \quad \tilde P = (2P - (b + a) I) / (b - a)

with T the Chebyshev polynomials and [a, b] an interval that holds the eigenvalues of P. The error relative to 1 / a is
about :math:`2 r^d` at degree d, :math:`r = (\sqrt\kappa - 1) / (\sqrt\kappa + 1)`, κ = b / a, so that a degree follows
from the error wanted. Products are summed from the highest degree down (Clenshaw), which needs two columns beside x;
quadratic forms need half as many products, by :math:`T_{2k} = 2 T_k^2 - 1`.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.linalg.compiled import compiled
from pyrosplice.linalg.lines import WIDTH, load_line, product_and, repeated, store_line

Array = NDArray[np.floating]
RUN = 128  # rows summed in single precision before they are added in double


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
        upper = float(abs(matrix).sum(1).max())  # Gershgorin
        centre, half = (upper + lower) / 2, max((upper - lower) / 2, 1e-12 * upper)
        self.scaled = sp.csr_matrix((matrix - centre * sp.identity(matrix.shape[0])) / half)  # eigenvalues in [−1, 1]
        root = math.sqrt(max(upper / lower, 1.0))
        ratio = max((root - 1) / (root + 1), 1e-3)
        self.degree = max(4, 2 * math.ceil(math.log(tolerance / 2) / math.log(ratio) / 2))
        self.coefficients = _coefficients(centre, half, self.degree)

    def product(self, x: Array) -> Array:
        """``P⁻¹ x`` for columns ``(N, R)``, in the precision and the memory order of x."""
        out, coefficients = np.empty_like(x), self.coefficients.astype(x.dtype)
        values, work = self.scaled.data.astype(x.dtype), np.empty((3, len(x), WIDTH), x.dtype)
        for first in range(0, x.shape[1], WIDTH):
            size = _fill(work[0], x, first)
            _sum_of_products(self.scaled.indptr, self.scaled.indices, values, work, coefficients)
            out[:, first : first + size] = work[1, :, :size]
        return out

    def quadratic(self, x: Array) -> NDArray[np.float64]:
        """``x'P⁻¹x`` for every column of ``(N, R)``: ``(R,)``."""
        out = np.empty(x.shape[1])
        values, work = self.scaled.data.astype(x.dtype), np.empty((2, len(x), WIDTH), x.dtype)
        for first in range(0, x.shape[1], WIDTH):
            size = _fill(work[0], x, first)
            squares = np.zeros((self.degree // 2 + 1, WIDTH))
            crosses = np.zeros_like(squares)
            squares[0] = np.square(work[0], dtype=np.float64).sum(0)
            _sums_of_squares(self.scaled.indptr, self.scaled.indices, values, work, crosses, squares)
            moments = np.empty((self.degree + 1, WIDTH))
            moments[::2] = 2 * squares - squares[0]
            moments[1::2] = 2 * crosses[1:] - crosses[1]
            out[first : first + size] = (self.coefficients @ moments)[:size]
        return out


def _coefficients(centre: float, half: float, degree: int) -> NDArray[np.float64]:
    nodes = np.pi * (np.arange(4 * degree) + 0.5) / (4 * degree)
    values = 1 / (centre + half * np.cos(nodes))
    found = 2 / len(nodes) * np.array([(values * np.cos(k * nodes)).sum() for k in range(degree + 1)])
    found[0] /= 2
    return found


def _fill(block: Array, x: Array, first: int) -> int:
    """The columns from ``first`` on that a block has place for, and their number; zeros in the rest."""
    columns = x[:, first : first + WIDTH]
    block[:, : columns.shape[1]] = columns
    block[:, columns.shape[1] :] = 0
    return columns.shape[1]


@compiled(nogil=True, error_model="numpy")
def _sum_of_products(pointers, columns, values, work, coefficients):  # type: ignore[no-untyped-def]
    """``Σ c_k T_k(P) x`` by Clenshaw's recurrence: x in ``work[0]``, the sum in ``work[1]``; the degree is even."""
    degree = len(coefficients) - 1
    one = np.ones(1, values.dtype)[0]
    zero, minus = repeated(one - one), repeated(-one)
    x, new, old = work[0], work[1], work[2]
    new[:] = coefficients[degree] * x
    old[:] = 0
    for k in range(degree - 1, -1, -1):
        share, scale = repeated(coefficients[k]), repeated(one if k == 0 else one + one)
        for i in range(len(pointers) - 1):
            total = zero
            for p in range(pointers[i], pointers[i + 1]):
                total = product_and(repeated(values[p]), load_line(new, columns[p]), total)
            rest = product_and(share, load_line(x, i), product_and(minus, load_line(old, i), zero))
            store_line(old, i, product_and(scale, total, rest))
        new, old = old, new


@compiled(nogil=True, error_model="numpy")
def _sums_of_squares(pointers, columns, values, work, crosses, squares):  # type: ignore[no-untyped-def]
    """``Σ T_k T_{k−1}`` and ``Σ T_k²`` over rows, k ≥ 1: T_k the polynomials of P times x, which is ``work[0]``."""
    one = np.ones(1, values.dtype)[0]
    zero, minus = repeated(one - one), repeated(-one)
    new, old, n = work[0], work[1], len(pointers) - 1
    old[:] = 0
    run = np.empty((2, WIDTH), values.dtype)
    for k in range(1, len(squares)):
        scale = repeated(one if k == 1 else one + one)
        for first in range(0, n, RUN):
            cross = square = zero
            for i in range(first, min(first + RUN, n)):
                total = zero
                for p in range(pointers[i], pointers[i + 1]):
                    total = product_and(repeated(values[p]), load_line(new, columns[p]), total)
                total = product_and(scale, total, product_and(minus, load_line(old, i), zero))
                store_line(old, i, total)
                cross = product_and(total, load_line(new, i), cross)
                square = product_and(total, total, square)
            store_line(run, 0, cross)
            store_line(run, 1, square)
            for c in range(WIDTH):
                crosses[k, c] += run[0, c]
                squares[k, c] += run[1, c]
        new, old = old, new
