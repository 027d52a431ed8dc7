"""Compiled kernels of the sparse block Cholesky: eight genes at a time, one in each lane of a vector register.

All genes of a batch share one sparsity pattern and differ only in their values. Storing the gene index last turns
every scalar operation of a textbook factorisation into one vector operation on ``LANES`` genes, with the index
arithmetic paid once for all of them.

Arrays: ``diagonal`` (N, Q, Q, LANES) and ``below`` (nnz, Q, Q, LANES) hold the blocks of a matrix on the pattern
of its factor; ``column_start`` (N + 1), ``row`` (nnz) is that pattern below the diagonal, by column, rows ascending;
``update_start`` (N + 1), ``update_column``, ``update_at`` list for every row j the columns k < j with a block (j, k)
and where that block is stored. ``width`` has length Q; where it is a tuple, the compiler knows Q and unrolls.
"""

import numpy as np

from pyrosplice._linalg.compiled import compiled

LANES = 8
UNROLLED = 4  # largest Q for which the compiler unrolls the sums over logits


@compiled()
def symbolic_factor(column_start, row, n):  # type: ignore[no-untyped-def]
    """Pattern of the Cholesky factor of a matrix whose strict lower triangle is given by column."""
    parent_head = np.full(n, -1, np.int64)
    sibling = np.full(n, -1, np.int64)
    mark = np.full(n, -1, np.int64)
    start = np.zeros(n + 1, np.int64)
    out = np.empty(max(4 * row.size, 16), np.int64)
    used = 0
    for j in range(n):
        mark[j] = j
        begin = used
        source = j
        while source >= 0:  # j itself (its own rows), then every child (the child's rows)
            if source == j:
                lo, hi = column_start[j], column_start[j + 1]
            else:
                lo, hi = start[source], start[source + 1]
            for p in range(lo, hi):
                i = row[p] if source == j else out[p]
                if mark[i] != j and i > j:
                    mark[i] = j
                    if used == out.size:
                        grown = np.empty(2 * out.size, np.int64)
                        grown[:used] = out
                        out = grown
                    out[used] = i
                    used += 1
            source = parent_head[j] if source == j else sibling[source]
        out[begin:used] = np.sort(out[begin:used])
        start[j + 1] = used
        if used > begin:
            parent = out[begin]
            sibling[j] = parent_head[parent]
            parent_head[parent] = j
    return start, out[:used].copy()


@compiled()
def update_lists(column_start, row, n):  # type: ignore[no-untyped-def]
    """List for every row the columns with a block in it and where those blocks are stored."""
    count = np.zeros(n + 1, np.int64)
    for p in range(row.size):
        count[row[p] + 1] += 1
    start = np.cumsum(count)
    column = np.empty(row.size, np.int64)
    at = np.empty(row.size, np.int64)
    fill = start[:-1].copy()
    for k in range(n):
        for p in range(column_start[k], column_start[k + 1]):
            i = row[p]
            column[fill[i]] = k
            at[fill[i]] = p
            fill[i] += 1
    return start, column, at


@compiled(nogil=True, fastmath={"contract"}, error_model="numpy")
def factorize_lanes(column_start, row, update_start, update_column, update_at, diagonal, below, width):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Cholesky factor in place. A lane that is not positive definite ends as NaN, the others unharmed."""
    n, q = column_start.size - 1, len(width)
    where = np.zeros(n, np.int64)
    pivot = np.empty((q, q, LANES))
    for j in range(n):
        first = column_start[j]
        for p in range(first, column_start[j + 1]):
            where[row[p]] = p
        for u in range(update_start[j], update_start[j + 1]):
            at = update_at[u]
            end = column_start[update_column[u] + 1]
            for a in range(q):
                for c in range(q):
                    for lane in range(LANES):
                        pivot[a, c, lane] = below[at, a, c, lane]
            for a in range(q):
                for b in range(a + 1):
                    for c in range(q):
                        for lane in range(LANES):
                            diagonal[j, a, b, lane] -= pivot[a, c, lane] * pivot[b, c, lane]
            for p in range(at + 1, end):
                _subtract_outer(below[p], pivot, below[where[row[p]]], width)
        _factorize_block(diagonal[j], q)
        for p in range(first, column_start[j + 1]):
            for a in range(q):
                for b in range(q):
                    for c in range(b):
                        for lane in range(LANES):
                            below[p, a, b, lane] -= below[p, a, c, lane] * diagonal[j, b, c, lane]
                    for lane in range(LANES):
                        below[p, a, b, lane] /= diagonal[j, b, b, lane]


@compiled(nogil=True, inline="always", error_model="numpy")
def _factorize_block(block, q):  # type: ignore[no-untyped-def]
    for b in range(q):
        for c in range(b):
            for lane in range(LANES):
                block[b, b, lane] -= block[b, c, lane] * block[b, c, lane]
        for lane in range(LANES):
            block[b, b, lane] = np.sqrt(block[b, b, lane])
        for a in range(b + 1, q):
            for c in range(b):
                for lane in range(LANES):
                    block[a, b, lane] -= block[a, c, lane] * block[b, c, lane]
            for lane in range(LANES):
                block[a, b, lane] /= block[b, b, lane]


@compiled(nogil=True, fastmath={"contract"}, error_model="numpy")
def solve_lower(column_start, row, diagonal, below, rhs, width):  # type: ignore[no-untyped-def]
    """Solve ``L⁻¹ rhs`` in place; ``rhs`` is (N, Q, R, LANES)."""
    n, q, n_rhs = column_start.size - 1, len(width), rhs.shape[2]
    for j in range(n):
        for a in range(q):
            for c in range(a):
                for r in range(n_rhs):
                    for lane in range(LANES):
                        rhs[j, a, r, lane] -= diagonal[j, a, c, lane] * rhs[j, c, r, lane]
            for r in range(n_rhs):
                for lane in range(LANES):
                    rhs[j, a, r, lane] /= diagonal[j, a, a, lane]
        for p in range(column_start[j], column_start[j + 1]):
            i = row[p]
            for a in range(q):
                for c in range(q):
                    for r in range(n_rhs):
                        for lane in range(LANES):
                            rhs[i, a, r, lane] -= below[p, a, c, lane] * rhs[j, c, r, lane]


@compiled(nogil=True, fastmath={"contract"}, error_model="numpy")
def solve_upper(column_start, row, diagonal, below, rhs, width):  # type: ignore[no-untyped-def]
    """Solve ``L⁻ᵀ rhs`` in place; ``rhs`` is (N, Q, R, LANES)."""
    n, q, n_rhs = column_start.size - 1, len(width), rhs.shape[2]
    for j in range(n - 1, -1, -1):
        for p in range(column_start[j], column_start[j + 1]):
            i = row[p]
            for a in range(q):
                for c in range(q):
                    for r in range(n_rhs):
                        for lane in range(LANES):
                            rhs[j, c, r, lane] -= below[p, a, c, lane] * rhs[i, a, r, lane]
        for a in range(q - 1, -1, -1):
            for c in range(a + 1, q):
                for r in range(n_rhs):
                    for lane in range(LANES):
                        rhs[j, a, r, lane] -= diagonal[j, c, a, lane] * rhs[j, c, r, lane]
            for r in range(n_rhs):
                for lane in range(LANES):
                    rhs[j, a, r, lane] /= diagonal[j, a, a, lane]


@compiled(nogil=True, fastmath={"contract"}, error_model="numpy")
def selected_inverse(column_start, row, diagonal, below, inverse_diagonal, inverse_below, width):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Blocks of ``(L L')⁻¹`` on the pattern of L (Takahashi's recursion, last column first)."""
    n, q = column_start.size - 1, len(width)
    local = np.full(n, -1, np.int64)
    longest = 0
    for j in range(n):
        longest = max(longest, column_start[j + 1] - column_start[j])
    scaled = np.empty((max(longest, 1), q, q, LANES))  # Y = L_Sj L_jj⁻¹
    product = np.empty((max(longest, 1), q, q, LANES))  # Z_SS Y
    unit = np.empty((q, q, LANES))  # L_jj⁻¹
    for j in range(n - 1, -1, -1):
        first, last = column_start[j], column_start[j + 1]
        _invert_lower(diagonal[j], unit, q)
        for p in range(first, last):
            local[row[p]] = p - first
            for a in range(q):
                for b in range(q):
                    for lane in range(LANES):
                        total = 0.0
                        for c in range(b, q):
                            total += below[p, a, c, lane] * unit[c, b, lane]
                        scaled[p - first, a, b, lane] = total
                        product[p - first, a, b, lane] = 0.0
        for p in range(first, last):
            k, s = row[p], p - first
            _add_product(inverse_diagonal[k], scaled[s], product[s], width)
            for at in range(column_start[k], column_start[k + 1]):
                t = local[row[at]]
                if t >= 0:
                    _add_product(inverse_below[at], scaled[s], product[t], width)
                    _add_transposed_product(inverse_below[at], scaled[t], product[s], width)
        _square_lower(unit, inverse_diagonal[j], q)
        for p in range(first, last):
            s = p - first
            local[row[p]] = -1
            for a in range(q):
                for b in range(q):
                    for lane in range(LANES):
                        inverse_below[p, a, b, lane] = -product[s, a, b, lane]
            _add_transposed_product(scaled[s], product[s], inverse_diagonal[j], width)


@compiled(nogil=True, inline="always", fastmath={"contract"})
def _add_product(left, right, out, width):  # type: ignore[no-untyped-def]
    """Add a product of blocks, ``out += left right``."""
    q = len(width)
    for a in range(q):
        for b in range(q):
            if q <= UNROLLED:
                for lane in range(LANES):
                    total = out[a, b, lane]
                    for c in range(q):
                        total += left[a, c, lane] * right[c, b, lane]
                    out[a, b, lane] = total
            else:
                for c in range(q):
                    for lane in range(LANES):
                        out[a, b, lane] += left[a, c, lane] * right[c, b, lane]


@compiled(nogil=True, inline="always", fastmath={"contract"})
def _add_transposed_product(left, right, out, width):  # type: ignore[no-untyped-def]
    """Add a product with the first block transposed, ``out += left' right``."""
    q = len(width)
    for a in range(q):
        for b in range(q):
            if q <= UNROLLED:
                for lane in range(LANES):
                    total = out[a, b, lane]
                    for c in range(q):
                        total += left[c, a, lane] * right[c, b, lane]
                    out[a, b, lane] = total
            else:
                for c in range(q):
                    for lane in range(LANES):
                        out[a, b, lane] += left[c, a, lane] * right[c, b, lane]


@compiled(nogil=True, inline="always", fastmath={"contract"})
def _subtract_outer(left, right, out, width):  # type: ignore[no-untyped-def]
    """Subtract a product with the second block transposed, ``out -= left right'``."""
    q = len(width)
    for a in range(q):
        for b in range(q):
            if q <= UNROLLED:
                for lane in range(LANES):
                    total = out[a, b, lane]
                    for c in range(q):
                        total -= left[a, c, lane] * right[b, c, lane]
                    out[a, b, lane] = total
            else:
                for c in range(q):
                    for lane in range(LANES):
                        out[a, b, lane] -= left[a, c, lane] * right[b, c, lane]


@compiled(nogil=True, inline="always", fastmath={"contract"})
def _square_lower(block, out, q):  # type: ignore[no-untyped-def]
    """Square a lower triangular block, ``B' B``."""
    for a in range(q):
        for b in range(q):
            for lane in range(LANES):
                total = 0.0
                for c in range(max(a, b), q):
                    total += block[c, a, lane] * block[c, b, lane]
                out[a, b, lane] = total


@compiled(nogil=True, inline="always", error_model="numpy")
def _invert_lower(block, out, q):  # type: ignore[no-untyped-def]
    for b in range(q):
        for a in range(q):
            for lane in range(LANES):
                out[a, b, lane] = 1.0 if a == b else 0.0
        for a in range(b, q):
            for c in range(b, a):
                for lane in range(LANES):
                    out[a, b, lane] -= block[a, c, lane] * out[c, b, lane]
            for lane in range(LANES):
                out[a, b, lane] /= block[a, a, lane]
