"""Compiled kernels of the diagonal of the inverse of one sparse matrix: Cholesky factor and Takahashi's recursion.

The same steps as in ``sparse_kernels`` for a single matrix of numbers, which eight lanes would be wasted on; arrays as
there, without the last three axes.
"""

import numpy as np

from pyrosplice._linalg.compiled import compiled


@compiled(nogil=True, fastmath={"contract"}, error_model="numpy")
def factorize_one(column_start, row, update_start, update_column, update_at, diagonal, below):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Cholesky factor in place; NaN where the matrix is not positive definite."""
    n = column_start.size - 1
    where = np.zeros(n, np.int64)
    for j in range(n):
        first, last = column_start[j], column_start[j + 1]
        for p in range(first, last):
            where[row[p]] = p
        for u in range(update_start[j], update_start[j + 1]):
            at = update_at[u]
            pivot = below[at]
            diagonal[j] -= pivot * pivot
            for p in range(at + 1, column_start[update_column[u] + 1]):
                below[where[row[p]]] -= below[p] * pivot
        diagonal[j] = np.sqrt(diagonal[j])
        for p in range(first, last):
            below[p] /= diagonal[j]


@compiled(nogil=True, fastmath={"contract"}, error_model="numpy")
def invert(column_start, row, diagonal, below):  # type: ignore[no-untyped-def]
    """Diagonal of ``(L L')⁻¹``, from its entries on the pattern of L, last column first."""
    n = column_start.size - 1
    inverse_diagonal, inverse_below = np.empty(n), np.empty(row.size)
    local = np.full(n, -1, np.int64)
    longest = 1
    for j in range(n):
        longest = max(longest, column_start[j + 1] - column_start[j])
    scaled, product = np.empty(longest), np.empty(longest)
    for j in range(n - 1, -1, -1):
        first, last = column_start[j], column_start[j + 1]
        for p in range(first, last):
            local[row[p]] = p - first
            scaled[p - first] = below[p] / diagonal[j]
            product[p - first] = 0.0
        for p in range(first, last):
            k, s = row[p], p - first
            total = product[s] + inverse_diagonal[k] * scaled[s]
            for at in range(column_start[k], column_start[k + 1]):
                t = local[row[at]]
                if t >= 0:
                    product[t] += inverse_below[at] * scaled[s]
                    total += inverse_below[at] * scaled[t]
            product[s] = total
        value = 1.0 / (diagonal[j] * diagonal[j])
        for p in range(first, last):
            local[row[p]] = -1
            inverse_below[p] = -product[p - first]
            value += scaled[p - first] * product[p - first]
        inverse_diagonal[j] = value
    return inverse_diagonal
