"""Compiled analysis of how a sparse symmetric matrix is eliminated: tree, postorder, counts, supernodes, their rows.

A *supernode* is a run of columns of the Cholesky factor that have the same rows below it, so that it is eliminated as
one dense block. A supernode is merged with the next where that adds few zeros, and cut where it is wide. Source: Liu
(1990) SIAM J. Matrix Anal. Appl. 11:134, of the tree; Ashcraft & Grimes (1989) ACM TOMS 15:291, of the merging.
"""

import numpy as np

from pyrosplice._linalg.compiled import compiled

WIDEST = 64  # columns of a supernode: their triangle is inverted column by column, all else is products of matrices
MERGED = ((4, 1.0), (16, 0.8), (48, 0.1), (2**62, 0.05))
"""Up to how many columns what share of zeros is stored for a larger block (Chen et al. 2008, ACM TOMS 35:22)."""


@compiled(nogil=True)
def elimination_tree(pointers, indices):  # type: ignore[no-untyped-def]
    """Parent of every column, −1 of a root; of a symmetric matrix by all its entries."""
    n = pointers.size - 1
    parent, ancestor = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    for i in range(n):
        for p in range(pointers[i], pointers[i + 1]):
            k = np.int64(indices[p])
            while k != -1 and k < i:
                above = ancestor[k]
                ancestor[k] = i
                if above == -1:
                    parent[k] = i
                k = above
    return parent


@compiled(nogil=True)
def postorder(parent):  # type: ignore[no-untyped-def]
    """Columns in an order in which each subtree is a run that ends at its root."""
    n = parent.size
    head, sibling = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    for k in range(n - 1, -1, -1):
        if parent[k] >= 0:
            sibling[k] = head[parent[k]]
            head[parent[k]] = k
    order, stack, at = np.empty(n, np.int64), np.empty(n, np.int64), 0
    for root in range(n):
        if parent[root] >= 0:
            continue
        stack[0], top = root, 0
        while top >= 0:
            child = head[stack[top]]
            if child >= 0:
                head[stack[top]] = sibling[child]
                top += 1
                stack[top] = child
            else:
                order[at] = stack[top]
                at += 1
                top -= 1
    return order


@compiled(nogil=True)
def column_counts(pointers, indices, parent):  # type: ignore[no-untyped-def]
    """Entries of every column of the factor, the diagonal's among them."""
    n = parent.size
    count, mark = np.ones(n, np.int64), np.full(n, -1, np.int64)
    for i in range(n):
        mark[i] = i
        for p in range(pointers[i], pointers[i + 1]):
            k = np.int64(indices[p])
            while k < i and mark[k] != i:
                mark[k] = i
                count[k] += 1
                k = parent[k]
    return count


@compiled(nogil=True)
def supernodes(parent, count, columns_up_to, share, widest):  # type: ignore[no-untyped-def]
    """First column of every supernode and, last, the number of columns; of a matrix in postorder."""
    n = parent.size
    starts, n_found = np.empty(n + 1, np.int64), 0
    for j in range(n):
        if j == 0 or parent[j - 1] != j or count[j - 1] != count[j] + 1:
            starts[n_found] = j
            n_found += 1
    starts[n_found] = n
    # from the last to the first: merge a supernode with the run that follows it, where that holds its parent
    kept = np.empty(n_found + 1, np.int64)
    n_kept, run_end, run_height, run_zeros = 0, n, 0, 0.0
    for s in range(n_found - 1, -1, -1):
        first, width = starts[s], starts[s + 1] - starts[s]
        merged = False
        if s < n_found - 1 and starts[s + 1] <= parent[starts[s + 1] - 1] < run_end:
            columns = run_end - first
            height = width + run_height
            zeros = run_zeros + width * (height - count[first])
            stored = columns * (columns + 1) / 2 + columns * (height - columns)
            for k in range(columns_up_to.size):
                if columns <= columns_up_to[k]:
                    merged = zeros <= share[k] * stored
                    break
            if merged:
                run_height, run_zeros = height, zeros
        if not merged:
            if s < n_found - 1:
                kept[n_kept] = starts[s + 1]
                n_kept += 1
            run_end, run_height, run_zeros = starts[s + 1], count[first], 0.0
    kept[n_kept] = 0
    n_kept += 1
    out, n_out = np.empty(n + 1, np.int64), 0
    for k in range(n_kept - 1, -1, -1):
        end = kept[k - 1] if k > 0 else n
        pieces = (end - kept[k] + widest - 1) // widest
        for piece in range(pieces):
            out[n_out] = kept[k] + (end - kept[k]) * piece // pieces
            n_out += 1
    out[n_out] = n
    return out[: n_out + 1].copy()


@compiled(nogil=True)
def supernode_rows(pointers, indices, first):  # type: ignore[no-untyped-def]
    """Rows below every supernode, ascending: where each one's begin, the rows, and the supernode of the first of them.

    The latter, −1 of a root, is the parent.
    """
    n, n_nodes = pointers.size - 1, first.size - 1
    node = np.empty(n, np.int64)
    for s in range(n_nodes):
        node[first[s] : first[s + 1]] = s
    start, parent = np.zeros(n_nodes + 1, np.int64), np.full(n_nodes, -1, np.int64)
    head, sibling, mark = np.full(n_nodes, -1, np.int64), np.full(n_nodes, -1, np.int64), np.full(n, -1, np.int64)
    rows, used = np.empty(max(4 * n, 16), np.int32), 0
    for s in range(n_nodes):
        begin, last = used, first[s + 1]
        if used + n - last > rows.size:
            grown = np.empty(2 * rows.size + n, np.int32)
            grown[:used] = rows[:used]
            rows = grown
        for p in range(pointers[first[s]], pointers[last]):
            i = np.int64(indices[p])
            if i >= last and mark[i] != s:
                mark[i] = s
                rows[used] = i
                used += 1
        child = head[s]
        while child >= 0:
            for p in range(start[child], start[child + 1]):
                i = np.int64(rows[p])
                if i >= last and mark[i] != s:
                    mark[i] = s
                    rows[used] = i
                    used += 1
            child = sibling[child]
        rows[begin:used] = np.sort(rows[begin:used])
        start[s + 1] = used
        if used > begin:
            parent[s] = node[rows[begin]]
            sibling[s] = head[parent[s]]
            head[parent[s]] = s
    return start, rows[:used].copy(), parent


@compiled(nogil=True)
def stack_sizes(first, start, parent, n_children):  # type: ignore[no-untyped-def]
    """Most numbers that the stacks hold: of the factorisation's updates, and of the inverse's fronts."""
    n_nodes = parent.size
    waiting, top, most_updates = np.zeros(n_nodes + 1, np.int64), 0, 0
    held = 0
    for s in range(n_nodes):
        height = start[s + 1] - start[s]
        for _ in range(n_children[s]):
            top -= 1
            held -= waiting[top]
        waiting[top] = height * height
        held += waiting[top]
        top += 1
        most_updates = max(most_updates, held)
    left = n_children.copy()
    held, most_fronts = 0, 0
    for s in range(n_nodes - 1, -1, -1):
        above = parent[s]
        if above >= 0:
            left[above] -= 1
            if left[above] == 0:
                size = first[above + 1] - first[above] + start[above + 1] - start[above]
                held -= size * size
        if n_children[s] > 0:
            size = first[s + 1] - first[s] + start[s + 1] - start[s]
            held += size * size
            most_fronts = max(most_fronts, held)
    return most_updates, most_fronts
