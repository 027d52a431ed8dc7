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

from pyrosplice._linalg.compiled import compiled
from pyrosplice._linalg.lines import WIDTH, load_line, product_and, product_less, repeated, store_line
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.floating]
RUN = 128  # rows summed in single precision before they are added in double


class InversePolynomial:
    """Inverse of a matrix P as a polynomial of P.

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
        center, half = (upper + lower) / 2, max((upper - lower) / 2, 1e-12 * upper)
        self.scaled = sp.csr_matrix((matrix - center * sp.identity(matrix.shape[0])) / half)  # eigenvalues in [−1, 1]
        root = math.sqrt(max(upper / lower, 1.0))
        ratio = max((root - 1) / (root + 1), 1e-3)
        self.degree = max(4, 2 * math.ceil(math.log(tolerance / 2) / math.log(ratio) / 2))
        self.coefficients = _coefficients(center, half, self.degree)

    def product(self, x: Array) -> Array:
        """Product ``P⁻¹ x`` for columns ``(N, R)``, in the precision and the memory order of x."""
        out, coefficients = np.empty_like(x), self.coefficients.astype(x.dtype)
        once, twice, block = self._matrices(x)
        new, old = np.empty_like(block), np.empty_like(block)
        for first in range(0, x.shape[1], WIDTH):
            size = _fill(block, x, first)
            np.multiply(block, coefficients[-1], out=new)
            old.fill(0)
            for k in range(self.degree - 1, -1, -1):
                _step(*(twice if k else once), new, old, block, coefficients[k])
                new, old = old, new
            out[:, first : first + size] = new[:, :size]
        return out

    def quadratic(self, x: Array) -> NDArray[np.float64]:
        """Quadratic form ``x'P⁻¹x`` for every column of ``(N, R)``: ``(R,)``."""
        out = np.empty(x.shape[1])
        once, twice, new = self._matrices(x)
        old = np.empty_like(new)
        for first in range(0, x.shape[1], WIDTH):
            size = _fill(new, x, first)
            old.fill(0)
            crosses, squares = np.zeros((2, self.degree // 2 + 1, WIDTH))
            squares[0] = np.square(new, dtype=np.float64).sum(0)
            for k in range(1, len(squares)):
                _step_with_sums(*(once if k == 1 else twice), new, old, crosses[k], squares[k])
                new, old = old, new
            moments = np.empty((self.degree + 1, WIDTH))
            moments[::2] = 2 * squares - squares[0]
            moments[1::2] = 2 * crosses[1:] - crosses[1]
            out[first : first + size] = (self.coefficients @ moments)[:size]
        return out

    def _matrices(self, x: Array) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        """The scaled matrix, twice that, both in the precision of x; place for a block of columns of x."""
        pattern, values = (self.scaled.indptr, self.scaled.indices), self.scaled.data.astype(x.dtype)
        return (*pattern, values), (*pattern, 2 * values), np.empty((len(x), WIDTH), x.dtype)


def _coefficients(center: float, half: float, degree: int) -> NDArray[np.float64]:
    nodes = np.pi * (np.arange(4 * degree) + 0.5) / (4 * degree)
    values = 1 / (center + half * np.cos(nodes))
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
def _step(pointers, columns, values, new, old, x, share):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Advance the recursion: ``old = P new − old + share x``."""
    for i in range(len(pointers) - 1):
        total = product_less(repeated(share), load_line(x, i), load_line(old, i))
        for p in range(pointers[i], pointers[i + 1]):
            total = product_and(repeated(values[p]), load_line(new, columns[p]), total)
        store_line(old, i, total)


@compiled(nogil=True, error_model="numpy")
def _step_with_sums(pointers, columns, values, new, old, cross, square):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Advance the recursion, ``old = P new − old``, and add its products with ``new`` and itself to the last two."""
    n, zero, run = len(pointers) - 1, repeated(values[0] - values[0]), np.empty((2, WIDTH), values.dtype)
    for first in range(0, n, RUN):
        crosses = squares = zero
        for i in range(first, min(first + RUN, n)):
            total = product_less(zero, zero, load_line(old, i))
            for p in range(pointers[i], pointers[i + 1]):
                total = product_and(repeated(values[p]), load_line(new, columns[p]), total)
            store_line(old, i, total)
            crosses = product_and(total, load_line(new, i), crosses)
            squares = product_and(total, total, squares)
        store_line(run, 0, crosses)
        store_line(run, 1, squares)
        for c in range(WIDTH):
            cross[c] += run[0, c]
            square[c] += run[1, c]
