"""Compiled kernels of the sparse block Cholesky: eight genes at a time, one in each lane of a vector register.

All genes of a batch share one sparsity pattern and differ only in their values. Storing the gene index last turns
every scalar operation of a textbook factorisation into one vector operation on ``LANES`` genes
(:mod:`pyrosplice._linalg.lanes`), with the index arithmetic paid once for all of them.

Arrays: ``diagonal`` (N, Q, Q, LANES) and ``below`` (nnz, Q, Q, LANES) hold the blocks of a matrix on the pattern
of its factor; ``column_start`` (N + 1), ``row`` (nnz) is that pattern below the diagonal, by column, rows ascending;
``update_start`` (N + 1), ``update_column``, ``update_at`` list for every row j the columns k < j with a block (j, k)
and where that block is stored. ``width`` has length Q; where it is a tuple, the compiler knows Q and unrolls. Vector
``(p Q + a) Q + b`` of an array of blocks is entry (a, b) of its block p.
"""

import numpy as np

from pyrosplice._linalg.compiled import compiled
from pyrosplice._linalg.lanes import load, minus, minus_product, plus_product, put, quotient, root, same

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


@compiled(nogil=True)
def to_lanes(table, order, out):  # type: ignore[no-untyped-def]
    """Write ``table`` (R, Q, N, lanes) as ``out`` (N, Q, R, LANES), its rows in the order of the factor."""
    for i in range(order.size):
        for a in range(table.shape[1]):
            for r in range(table.shape[0]):
                for lane in range(table.shape[3]):
                    out[i, a, r, lane] = table[r, a, order[i], lane]


@compiled(nogil=True)
def from_lanes(table, order, out):  # type: ignore[no-untyped-def]
    """Write ``table`` (N, Q, R, LANES) as ``out`` (R, Q, N, lanes), its rows in the order of the matrix."""
    for i in range(order.size):
        for r in range(out.shape[0]):
            for a in range(out.shape[1]):
                for lane in range(out.shape[3]):
                    out[r, a, order[i], lane] = table[i, a, r, lane]


@compiled(nogil=True, error_model="numpy")
def factorize_lanes(column_start, row, update_start, update_column, update_at, diagonal, below, width):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Cholesky factor in place. A lane that is not positive definite ends as NaN, the others unharmed."""
    n, q = column_start.size - 1, len(width)
    where = np.zeros(n, np.int64)
    for j in range(n):
        first = column_start[j]
        for p in range(first, column_start[j + 1]):
            where[row[p]] = p
        for u in range(update_start[j], update_start[j + 1]):
            at = update_at[u]
            _subtract_outer(below, at, at, diagonal, j, width)
            for p in range(at + 1, column_start[update_column[u] + 1]):
                _subtract_outer(below, p, at, below, where[row[p]], width)
        _factorize_block(diagonal, j, q)
        for p in range(first, column_start[j + 1]):
            for a in range(q):
                for b in range(q):
                    total = load(below, (p * q + a) * q + b)
                    for c in range(b):
                        left, right = load(below, (p * q + a) * q + c), load(diagonal, (j * q + b) * q + c)
                        total = minus_product(total, left, right)
                    put(below, (p * q + a) * q + b, quotient(total, load(diagonal, (j * q + b) * q + b)))


@compiled(nogil=True, inline="always", error_model="numpy")
def _factorize_block(diagonal, j, q):  # type: ignore[no-untyped-def]
    """Cholesky factor of block j in place; what is above its diagonal stays."""
    for b in range(q):
        for a in range(b, q):
            total = load(diagonal, (j * q + a) * q + b)
            for c in range(b):
                left, right = load(diagonal, (j * q + a) * q + c), load(diagonal, (j * q + b) * q + c)
                total = minus_product(total, left, right)
            total = root(total) if a == b else quotient(total, load(diagonal, (j * q + b) * q + b))
            put(diagonal, (j * q + a) * q + b, total)


@compiled(nogil=True, error_model="numpy")
def solve_lower(column_start, row, diagonal, below, rhs, width):  # type: ignore[no-untyped-def]
    """Solve ``L⁻¹ rhs`` in place; ``rhs`` is (N, Q, R, LANES)."""
    n, q, n_rhs = column_start.size - 1, len(width), rhs.shape[2]
    for j in range(n):
        for a in range(q):
            for r in range(n_rhs):
                total = load(rhs, (j * q + a) * n_rhs + r)
                for c in range(a):
                    left, right = load(diagonal, (j * q + a) * q + c), load(rhs, (j * q + c) * n_rhs + r)
                    total = minus_product(total, left, right)
                put(rhs, (j * q + a) * n_rhs + r, quotient(total, load(diagonal, (j * q + a) * q + a)))
        for p in range(column_start[j], column_start[j + 1]):
            i = row[p]
            for a in range(q):
                for r in range(n_rhs):
                    total = load(rhs, (i * q + a) * n_rhs + r)
                    for c in range(q):
                        left, right = load(below, (p * q + a) * q + c), load(rhs, (j * q + c) * n_rhs + r)
                        total = minus_product(total, left, right)
                    put(rhs, (i * q + a) * n_rhs + r, total)


@compiled(nogil=True, error_model="numpy")
def solve_upper(column_start, row, diagonal, below, rhs, width):  # type: ignore[no-untyped-def]
    """Solve ``L⁻ᵀ rhs`` in place; ``rhs`` is (N, Q, R, LANES)."""
    n, q, n_rhs = column_start.size - 1, len(width), rhs.shape[2]
    for j in range(n - 1, -1, -1):
        for p in range(column_start[j], column_start[j + 1]):
            i = row[p]
            for c in range(q):
                for r in range(n_rhs):
                    total = load(rhs, (j * q + c) * n_rhs + r)
                    for a in range(q):
                        left, right = load(below, (p * q + a) * q + c), load(rhs, (i * q + a) * n_rhs + r)
                        total = minus_product(total, left, right)
                    put(rhs, (j * q + c) * n_rhs + r, total)
        for a in range(q - 1, -1, -1):
            for r in range(n_rhs):
                total = load(rhs, (j * q + a) * n_rhs + r)
                for c in range(a + 1, q):
                    left, right = load(diagonal, (j * q + c) * q + a), load(rhs, (j * q + c) * n_rhs + r)
                    total = minus_product(total, left, right)
                put(rhs, (j * q + a) * n_rhs + r, quotient(total, load(diagonal, (j * q + a) * q + a)))


@compiled(nogil=True, error_model="numpy")
def selected_inverse(column_start, row, diagonal, below, inverse_diagonal, inverse_below, work, width):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Blocks of ``(L L')⁻¹`` on the pattern of L (Takahashi's recursion, last column first).

    ``work`` (2 M + 1, Q, Q, LANES), M the most blocks of a column, is written over: Y = L_Sj L_jj⁻¹ of column j, then
    Z_SS Y, then L_jj⁻¹.
    """
    n, q = column_start.size - 1, len(width)
    local = np.full(n, -1, np.int64)
    unit = work.shape[0] - 1
    half = unit // 2
    for j in range(n - 1, -1, -1):
        first, last = column_start[j], column_start[j + 1]
        _invert_lower(diagonal, j, work, unit, q)
        for p in range(first, last):
            s = p - first
            local[row[p]] = s
            for a in range(q):
                for b in range(q):
                    put(work, ((half + s) * q + a) * q + b, same(0.0))
                    total = same(0.0)
                    for c in range(b, q):
                        left, right = load(below, (p * q + a) * q + c), load(work, (unit * q + c) * q + b)
                        total = plus_product(total, left, right)
                    put(work, (s * q + a) * q + b, total)
        for p in range(first, last):
            k, s = row[p], p - first
            _add_product(inverse_diagonal, k, work, s, half + s, width)
            for at in range(column_start[k], column_start[k + 1]):
                t = local[row[at]]
                if t >= 0:
                    _add_product(inverse_below, at, work, s, half + t, width)
                    _add_transposed_product(inverse_below, at, work, t, work, half + s, width)
        _square_lower(work, unit, inverse_diagonal, j, q)
        for p in range(first, last):
            s = p - first
            local[row[p]] = -1
            for k in range(q * q):
                put(inverse_below, p * q * q + k, minus(load(work, (half + s) * q * q + k)))
            _add_transposed_product(work, s, work, half + s, inverse_diagonal, j, width)


@compiled(nogil=True, inline="always", error_model="numpy")
def _add_product(table, left, work, right, at, width):  # type: ignore[no-untyped-def]
    """Add a product of blocks to block ``at`` of ``work``, ``table[left] work[right]``."""
    q = len(width)
    for a in range(q):
        for b in range(q):
            total = load(work, (at * q + a) * q + b)
            for c in range(q):
                factor = load(table, (left * q + a) * q + c)
                total = plus_product(total, factor, load(work, (right * q + c) * q + b))
            put(work, (at * q + a) * q + b, total)


@compiled(nogil=True, inline="always", error_model="numpy")
def _add_transposed_product(table, left, work, right, out, at, width):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Add a product to block ``at`` of ``out``, ``table[left]' work[right]``."""
    q = len(width)
    for a in range(q):
        for b in range(q):
            total = load(out, (at * q + a) * q + b)
            for c in range(q):
                factor = load(table, (left * q + c) * q + a)
                total = plus_product(total, factor, load(work, (right * q + c) * q + b))
            put(out, (at * q + a) * q + b, total)


@compiled(nogil=True, inline="always", error_model="numpy")
def _subtract_outer(table, left, right, out, at, width):  # type: ignore[no-untyped-def]
    """Subtract a product from block ``at`` of ``out``, ``table[left] table[right]'``."""
    q = len(width)
    for a in range(q):
        for b in range(q):
            total = load(out, (at * q + a) * q + b)
            for c in range(q):
                factor = load(table, (left * q + a) * q + c)
                total = minus_product(total, factor, load(table, (right * q + b) * q + c))
            put(out, (at * q + a) * q + b, total)


@compiled(nogil=True, inline="always", error_model="numpy")
def _square_lower(table, block, out, at, q):  # type: ignore[no-untyped-def]
    """Square a lower triangular block, ``B' B``."""
    for a in range(q):
        for b in range(q):
            total = same(0.0)
            for c in range(max(a, b), q):
                total = plus_product(total, load(table, (block * q + c) * q + a), load(table, (block * q + c) * q + b))
            put(out, (at * q + a) * q + b, total)


@compiled(nogil=True, inline="always", error_model="numpy")
def _invert_lower(table, block, out, at, q):  # type: ignore[no-untyped-def]
    """Invert a lower triangular block of ``table`` into one of ``out``."""
    for b in range(q):
        for a in range(q):
            total = same(1.0 if a == b else 0.0)
            if a >= b:
                for c in range(b, a):
                    factor = load(table, (block * q + a) * q + c)
                    total = minus_product(total, factor, load(out, (at * q + c) * q + b))
                total = quotient(total, load(table, (block * q + a) * q + a))
            put(out, (at * q + a) * q + b, total)
