"""Compiled kernels of the supernodal Cholesky of one gene: fronts are dense, nearly all work is products of matrices.

A supernode with w columns J and r rows S below them is eliminated from the dense front of J and S, to which the fronts
of its children have added what they subtract (the multifrontal method: Duff & Reid 1983, ACM TOMS 9:302). Of each are
kept L_JJ⁻¹ (w, w), in ``triangles``, and L_SJ (r, w), in ``panels``, rows together. The inverse goes the other way: all
that a supernode needs of it, Z_SS, stands in its parent's front,

    Y = L_SJ L_JJ⁻¹,  Z_SJ = −Z_SS Y,  Z_JJ = (L_JJ L_JJ')⁻¹ + Y' Z_SS Y.

Arrays: ``first`` (S + 1) columns where supernodes begin; ``start`` (S + 1), ``rows`` their rows; ``parent`` and
``n_children`` (S); ``triangle_at``, ``panel_at`` (S + 1) where they are stored for Q = 1. With Q logits a column or
row stands for Q of them, and numbers of blocks are Q² times as many.
"""

import numpy as np

from pyrosplice._linalg.compiled import compiled

_FAST = {"contract", "reassoc", "nsz"}  # NaN and infinity are kept: they say that a matrix is not positive definite


@compiled(nogil=True, fastmath=_FAST, error_model="numpy")
def _invert_factor(block, column, out):  # type: ignore[no-untyped-def]
    """Cholesky factor of a block in place, of its lower half, and ``out`` its inverse; above the diagonal zeros."""
    w = block.shape[0]
    for j in range(w):
        pivot = np.sqrt(block[j, j])
        block[j, j] = pivot
        for i in range(j + 1, w):
            block[i, j] /= pivot
            column[i] = block[i, j]
        for i in range(j + 1, w):
            factor = block[i, j]
            for k in range(j + 1, i + 1):
                block[i, k] -= factor * column[k]
    for i in range(w):
        for k in range(w):
            out[i, k] = 0.0
        for k in range(i):
            factor = block[i, k]
            for j in range(k + 1):
                out[i, j] -= factor * out[k, j]
        scale = 1.0 / block[i, i]
        for j in range(i):
            out[i, j] *= scale
        out[i, i] = scale


@compiled(nogil=True, fastmath=_FAST, error_model="numpy")
def _take_from_child(update, local, upper, lower, rest):  # type: ignore[no-untyped-def]
    """Take what a child's elimination subtracts off its parent's front; to ``rest`` it is added, its sign turned.

    ``local`` are the places of the child's rows in that front, ascending.
    """
    width = upper.shape[0]
    n_upper = np.searchsorted(local, width)
    for i in range(n_upper):
        line = upper[local[i]]
        for k in range(i + 1):
            line[local[k]] -= update[i, k]
    for i in range(n_upper, local.size):
        line = lower[local[i] - width]
        for k in range(n_upper):
            line[local[k]] -= update[i, k]
        line = rest[local[i] - width]
        for k in range(n_upper, i + 1):
            line[local[k] - width] += update[i, k]


@compiled(nogil=True)
def _table(memory, at, n_rows, n_columns):  # type: ignore[no-untyped-def]
    """Rows and columns of numbers that begin at ``at``."""
    return memory[at : at + n_rows * n_columns].reshape((n_rows, n_columns))


@compiled(nogil=True)
def _set_values(begin, last, matrix, q, where, upper, lower):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Write the columns of a supernode into its front, which are all that the matrix itself has in it."""
    pointers, indices, entries, diagonal = matrix
    upper[:] = 0.0
    lower[:] = 0.0
    width = upper.shape[0]
    for j in range(begin, last):
        at = (j - begin) * q
        for a in range(q):
            for b in range(a + 1):
                upper[at + a, at + b] = diagonal[j, a, b]
        for p in range(pointers[j], pointers[j + 1]):
            row = where[indices[p]] * q
            for a in range(q):
                if row < width:
                    upper[row + a, at + a] = entries[p]
                else:
                    lower[row - width + a, at + a] = entries[p]


@compiled(nogil=True)
def _places(rows, where, q, local):  # type: ignore[no-untyped-def]
    """Places in the front of the rows of one of its children, each Q times."""
    for k in range(rows.size):
        for a in range(q):
            local[k * q + a] = where[rows[k]] * q + a
    return local[: rows.size * q]


@compiled(nogil=True, error_model="numpy")
def factorize(tree, matrix, q, triangles, panels, log_pivot, sizes):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Factor of a matrix: pointers, rows, entries below its diagonal by column, times I_Q; blocks ``(N, Q, Q)`` on it.

    Writes ``triangles``, ``panels``, and log pivots ``(N Q,)``: NaN where the matrix is not positive definite.
    """
    first, start, rows, _parent, n_children, triangle_at, panel_at = tree
    n_nodes, square = first.size - 1, q * q
    updates, sums = np.empty(sizes[0] * square), np.empty(sizes[2] * square)
    uppers, lowers, column = np.empty(sizes[3] * square), np.empty(sizes[5] * square), np.empty(sizes[4] * q)
    where, local = np.empty(first[n_nodes], np.int64), np.empty(sizes[6] * q, np.int64)
    waiting, at, n_waiting, top = np.empty(n_nodes, np.int64), np.zeros(n_nodes, np.int64), 0, 0
    for s in range(n_nodes):
        begin, last = first[s], first[s + 1]
        w, r = (last - begin) * q, (start[s + 1] - start[s]) * q
        for j in range(begin, last):
            where[j] = j - begin
        for p in range(start[s], start[s + 1]):
            where[rows[p]] = last - begin + p - start[s]
        upper, lower, rest = _table(uppers, 0, w, w), _table(lowers, 0, r, w), _table(sums, 0, r, r)
        _set_values(begin, last, matrix, q, where, upper, lower)
        if n_children[s] > 0:
            rest[:] = 0.0
        for _ in range(n_children[s]):
            n_waiting -= 1
            child, top = waiting[n_waiting], at[n_waiting]
            places = _places(rows[start[child] : start[child + 1]], where, q, local)
            _take_from_child(_table(updates, top, places.size, places.size), places, upper, lower, rest)
        triangle = _table(triangles, triangle_at[s] * square, w, w)
        _invert_factor(upper, column, triangle)
        log_pivot[begin * q : last * q] = np.log(np.diag(upper))
        if r > 0:
            panel, update = _table(panels, panel_at[s] * square, r, w), _table(updates, top, r, r)
            np.dot(lower, triangle.T, panel)
            np.dot(panel, panel.T, update)
            if n_children[s] > 0:
                update += rest
            waiting[n_waiting], at[n_waiting] = s, top
            n_waiting += 1
            top += r * r


@compiled(nogil=True)
def _between_rows(front, rows, first, last, other_rows, q, local, known):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Copy the inverse between some rows from the front of columns ``first`` to ``last`` and of ``other_rows``."""
    p = 0
    for k in range(rows.size):
        place = rows[k] - first
        if rows[k] >= last:
            while other_rows[p] < rows[k]:
                p += 1
            place = last - first + p
        for a in range(q):
            local[k * q + a] = place * q + a
    for i in range(rows.size * q):
        line = front[local[i]]
        for k in range(rows.size * q):
            known[i, k] = line[local[k]]


@compiled(nogil=True)
def _put_front(corner, cross, known, front):  # type: ignore[no-untyped-def]
    """Join the parts of the inverse on a front; ``cross`` with its sign turned."""
    w = corner.shape[0]
    for i in range(w):
        for k in range(w):
            front[i, k] = corner[i, k]
    for i in range(cross.shape[0]):
        for k in range(w):
            front[w + i, k] = -cross[i, k]
            front[k, w + i] = -cross[i, k]
        for k in range(cross.shape[0]):
            front[w + i, w + k] = known[i, k]


@compiled(nogil=True, error_model="numpy")
def inverse_blocks(tree, q, triangles, panels, sizes, out):  # type: ignore[no-untyped-def]
    """Diagonal blocks ``(N, Q, Q)`` of the inverse."""
    first, start, rows, parent, n_children, triangle_at, panel_at = tree
    n_nodes, square, left, top = first.size - 1, q * q, n_children.copy(), 0
    fronts, at = np.empty(sizes[1] * square), np.zeros(n_nodes, np.int64)  # a front stands until its last child is done
    corners, squares, local = np.empty(sizes[3] * square), np.empty(sizes[2] * square), np.empty(sizes[6] * q, np.int64)
    ys, crosses = np.empty(sizes[5] * square), np.empty(sizes[5] * square)
    for s in range(n_nodes - 1, -1, -1):
        begin, last, above = first[s], first[s + 1], parent[s]
        w, r = (last - begin) * q, (start[s + 1] - start[s]) * q
        triangle, corner = _table(triangles, triangle_at[s] * square, w, w), _table(corners, 0, w, w)
        np.dot(triangle.T, triangle, corner)
        known, y, cross = _table(squares, 0, r, r), _table(ys, 0, r, w), _table(crosses, 0, r, w)
        if r > 0:
            others = rows[start[above] : start[above + 1]]
            height = (first[above + 1] - first[above] + others.size) * q
            front = _table(fronts, at[above], height, height)
            _between_rows(front, rows[start[s] : start[s + 1]], first[above], first[above + 1], others, q, local, known)
            left[above] -= 1
            if left[above] == 0:
                top -= height * height
            np.dot(_table(panels, panel_at[s] * square, r, w), triangle, y)
            np.dot(known, y, cross)
            corner += np.dot(y.T, cross)
        for j in range(last - begin):
            out[begin + j] = corner[j * q : (j + 1) * q, j * q : (j + 1) * q]
        if n_children[s] > 0:
            at[s] = top
            _put_front(corner, cross, known, _table(fronts, top, w + r, w + r))
            top += (w + r) * (w + r)


@compiled(nogil=True, error_model="numpy")
def substitute_forward(tree, q, triangles, panels, sizes, x):  # type: ignore[no-untyped-def]
    """Solve ``L⁻¹ x`` in place, for ``(N Q, R)``."""
    first, start, rows, _parent, _n_children, triangle_at, panel_at = tree
    square, n_rhs = q * q, x.shape[1]
    heads, tails = np.empty(sizes[4] * q * n_rhs), np.empty(sizes[6] * q * n_rhs)
    for s in range(first.size - 1):
        begin, last = first[s] * q, first[s + 1] * q
        w, r = last - begin, (start[s + 1] - start[s]) * q
        solved, change = _table(heads, 0, w, n_rhs), _table(tails, 0, r, n_rhs)
        np.dot(_table(triangles, triangle_at[s] * square, w, w), x[begin:last], solved)
        x[begin:last] = solved
        if r > 0:
            np.dot(_table(panels, panel_at[s] * square, r, w), solved, change)
            for i in range(r):
                row = rows[start[s] + i // q] * q + i % q
                for k in range(n_rhs):
                    x[row, k] -= change[i, k]


@compiled(nogil=True, error_model="numpy")
def substitute_backward(tree, q, triangles, panels, sizes, x):  # type: ignore[no-untyped-def]
    """Solve ``L⁻ᵀ x`` in place, for ``(N Q, R)``."""
    first, start, rows, _parent, _n_children, triangle_at, panel_at = tree
    square, n_rhs = q * q, x.shape[1]
    heads, tails = np.empty(sizes[4] * q * n_rhs), np.empty(sizes[6] * q * n_rhs)
    for s in range(first.size - 2, -1, -1):
        begin, last = first[s] * q, first[s + 1] * q
        w, r = last - begin, (start[s + 1] - start[s]) * q
        change, known = _table(heads, 0, w, n_rhs), _table(tails, 0, r, n_rhs)
        if r > 0:
            for i in range(r):
                row = rows[start[s] + i // q] * q + i % q
                for k in range(n_rhs):
                    known[i, k] = x[row, k]
            np.dot(_table(panels, panel_at[s] * square, r, w).T, known, change)
            for i in range(w):
                for k in range(n_rhs):
                    x[begin + i, k] -= change[i, k]
        np.dot(_table(triangles, triangle_at[s] * square, w, w).T, x[begin:last], change)
        x[begin:last] = change
