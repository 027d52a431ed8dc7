"""Block Cholesky of a sparse matrix for eight genes at a time, one in each lane of a vector register."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyrosplice._linalg import sparse_kernels as kernels
from pyrosplice._linalg.lanes import LANES, zeros
from pyrosplice._linalg.supernodal import OrderedMatrix

Array = NDArray[np.float64]


class LanePattern:
    """Symbolic factor of a sparse symmetric matrix, with the matrix's own values in factor storage.

    Parameters
    ----------
    order
        Place of every column in the elimination.
    matrix
        The values, in that order.
    """

    def __init__(self, order: NDArray[np.int64], matrix: OrderedMatrix):
        self.order, self.n, self.diagonal, self.below = order, len(order), matrix.diagonal, matrix.entries
        pointers, indices = matrix.pointers.astype(np.int64), matrix.indices.astype(np.int64)
        self.column_start, self.row = kernels.symbolic_factor(pointers, indices, self.n)
        self.updates = kernels.update_lists(self.column_start, self.row, self.n)
        column = np.repeat(np.arange(self.n), np.diff(self.column_start))
        entry_column = np.repeat(np.arange(self.n), np.diff(pointers))
        self.at = np.searchsorted(column * self.n + self.row, entry_column * self.n + indices)

    def factorize(self, blocks: Array | None, q: int) -> LaneFactor:
        """Factor ``matrix ⊗ I_Q + blockdiag(blocks)`` for up to eight genes; ``blocks`` is (Q, Q, N, lanes ≤ 8)."""
        diagonal = zeros(self.n, q, q)
        if blocks is not None:
            kernels.to_lanes(blocks.transpose(1, 0, 2, 3), self.order, diagonal)
        below = zeros(self.row.size, q, q)
        for a in range(q):
            diagonal[:, a, a] += self.diagonal[:, None]
            below[self.at, a, a] = self.below[:, None]
        start, column, at = self.updates
        kernels.factorize_lanes(self.column_start, self.row, start, column, at, diagonal, below, _width(q))
        return LaneFactor(self, diagonal, below, 1 if blocks is None else blocks.shape[-1])


class LaneFactor:
    """Cholesky factor of up to eight genes; arrays have the gene last."""

    def __init__(self, pattern: LanePattern, diagonal: Array, below: Array, n_genes: int):
        self.pattern, self.diagonal, self.below, self.n_genes = pattern, diagonal, below, n_genes
        self.q = diagonal.shape[1]

    def _run(self, kernel: Callable[..., None], *arrays: Array) -> None:
        kernel(self.pattern.column_start, self.pattern.row, self.diagonal, self.below, *arrays, _width(self.q))

    def logdet(self) -> Array:
        """Log determinant of each gene, (G,)."""
        found: Array = 2 * np.log(np.einsum("naal->nal", self.diagonal)).sum((0, 1))[: self.n_genes]
        return found

    def solve(self, rhs: Array, *, lower: bool = True) -> Array:
        """Solve for (R, Q, N, G) in and out; ``lower=False`` leaves out the forward half, as draws need."""
        x = zeros(self.pattern.n, self.q, rhs.shape[0])
        kernels.to_lanes(rhs, self.pattern.order, x)
        if lower:
            self._run(kernels.solve_lower, x)
        self._run(kernels.solve_upper, x)
        out = np.empty(rhs.shape)
        kernels.from_lanes(x, self.pattern.order, out)
        return out

    def inverse_blocks(self) -> Array:
        """Diagonal blocks of the inverse, (Q, Q, N, G)."""
        pattern, q = self.pattern, self.q
        diagonal, below = zeros(pattern.n, q, q), zeros(pattern.row.size, q, q)
        longest = int(np.diff(pattern.column_start).max(initial=0))
        self._run(kernels.selected_inverse, diagonal, below, zeros(2 * longest + 1, q, q))
        out = np.empty((q, q, pattern.n, LANES))
        kernels.from_lanes(diagonal, pattern.order, out)
        return out[..., : self.n_genes]


def _width(q: int) -> tuple[int, ...] | NDArray[np.int8]:
    """A length that the compiler knows where it unrolls; beyond, one compiled kernel serves every Q."""
    return (0,) * q if q <= kernels.UNROLLED else np.empty(q, np.int8)
