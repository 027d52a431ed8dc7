"""Sparse precision matrices: block Cholesky, solves, determinants and diagonals of inverses, eight genes at a time.

The pattern is analysed once for a graph (minimum-degree ordering, symbolic factor); genes share it. In the plane the
factor of N spots has O(N log N) blocks and costs O(N^1.5), against O(N³) for a dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator, eigsh, spilu, splu
from torch import Tensor

from pyrosplice._linalg import selected_inverse
from pyrosplice._linalg import sparse_kernels as kernels
from pyrosplice._linalg.blocks import planar
from pyrosplice._linalg.lanes import LANES, zeros
from pyrosplice._linalg.solver import Factor, SpatialSolver
from pyrosplice.errors import InvalidArgumentError


class SparsePattern:
    """Ordering and symbolic factor of a sparse symmetric matrix, with the matrix's own values in factor storage.

    Parameters
    ----------
    matrix
        Symmetric positive definite, (N, N).
    """

    def __init__(self, matrix: sp.spmatrix):
        matrix = sp.csc_matrix(matrix, dtype=np.float64)
        n = matrix.shape[0]
        if matrix.shape != (n, n) or abs(matrix - matrix.T).max() > 1e-10 * abs(matrix).max():
            raise InvalidArgumentError(f"matrix: expected a symmetric square matrix, found shape {matrix.shape}.")
        self.n = n
        self.order = _minimum_degree(matrix)
        ordered = matrix[self.order][:, self.order]
        lower = sp.tril(ordered, -1).tocsc()
        lower.sort_indices()
        self.column_start, self.row = kernels.symbolic_factor(
            lower.indptr.astype(np.int64), lower.indices.astype(np.int64), n
        )
        self.updates = kernels.update_lists(self.column_start, self.row, n)
        self.diagonal = np.ascontiguousarray(ordered.diagonal())
        column = np.repeat(np.arange(n), np.diff(self.column_start))
        entries = lower.tocoo()
        self.at = np.searchsorted(column * n + self.row, entries.col.astype(np.int64) * n + entries.row)
        self.below = entries.data

    def inverse_diagonal(self, matrix: sp.spmatrix | None = None) -> np.ndarray:
        """Diagonal of the inverse, (N,): of the matrix itself, or of another with the same pattern."""
        values, entries = self.diagonal, self.below
        if matrix is not None:
            ordered = sp.csc_matrix(matrix, dtype=np.float64)[self.order][:, self.order]
            lower = sp.tril(ordered, -1).tocsc()
            lower.sort_indices()
            values, entries = ordered.diagonal(), lower.data
        diagonal, below = np.array(values), np.zeros(self.row.size)
        below[self.at] = entries
        start, column, at = self.updates
        selected_inverse.factorize_one(self.column_start, self.row, start, column, at, diagonal, below)
        out = np.empty(self.n)
        out[self.order] = selected_inverse.invert(self.column_start, self.row, diagonal, below)
        return out

    def factorize(self, blocks: np.ndarray | None, q: int) -> LaneFactor:
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
        return LaneFactor(self, diagonal, below)


class LaneFactor:
    """Cholesky factor of up to eight genes; arrays have the gene last."""

    def __init__(self, pattern: SparsePattern, diagonal: np.ndarray, below: np.ndarray):
        self.pattern, self.diagonal, self.below = pattern, diagonal, below
        self.q = diagonal.shape[1]

    def _run(self, kernel: Callable[..., None], *arrays: np.ndarray) -> None:
        kernel(self.pattern.column_start, self.pattern.row, self.diagonal, self.below, *arrays, _width(self.q))

    def logdet(self) -> np.ndarray:
        """Log determinant of each gene in the lanes, (LANES,)."""
        return 2 * np.log(np.einsum("naal->nal", self.diagonal)).sum((0, 1))

    def solve(self, rhs: np.ndarray, *, lower: bool = True) -> np.ndarray:
        """Solve for (R, Q, N, lanes) in and out; ``lower=False`` leaves out the forward half, as draws need."""
        x = zeros(self.pattern.n, self.q, rhs.shape[0])
        kernels.to_lanes(rhs, self.pattern.order, x)
        if lower:
            self._run(kernels.solve_lower, x)
        self._run(kernels.solve_upper, x)
        out = np.empty(rhs.shape)
        kernels.from_lanes(x, self.pattern.order, out)
        return out

    def inverse_blocks(self) -> np.ndarray:
        """Diagonal blocks of the inverse, (Q, Q, N, LANES)."""
        pattern, q = self.pattern, self.q
        diagonal, below = zeros(pattern.n, q, q), zeros(pattern.row.size, q, q)
        longest = int(np.diff(pattern.column_start).max(initial=0))
        self._run(kernels.selected_inverse, diagonal, below, zeros(2 * longest + 1, q, q))
        out = np.empty((q, q, pattern.n, LANES))
        kernels.from_lanes(diagonal, pattern.order, out)
        return out


def inverse_diagonal(matrix: sp.spmatrix) -> np.ndarray:
    """Diagonal of the inverse of a sparse symmetric positive definite matrix, without the inverse: (N,)."""
    return SparsePattern(matrix).inverse_diagonal()


def smallest_eigenpairs(matrix: sp.spmatrix, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest eigenvalues ``(r,)``, ascending, of a sparse positive definite matrix, and eigenvectors ``(N, r)``."""
    matrix = sp.csc_matrix(matrix)
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    symmetric = {"SymmetricMode": True, "DiagPivotThresh": 0.0}
    factor = splu(matrix, permc_spec="MMD_AT_PLUS_A", options=symmetric)
    inverse = LinearOperator(matrix.shape, factor.solve)
    values, vectors = eigsh(matrix, k=rank, sigma=0.0, OPinv=inverse, v0=start)
    order = np.argsort(values)
    return values[order], vectors[:, order]


class SparseSolver(SpatialSolver):
    """Spatial covariance given by its sparse precision matrix, on the CPU.

    Parameters
    ----------
    precision
        Sparse, symmetric, positive definite, (N, N): the inverse of the covariance V.
    """

    def __init__(self, precision: sp.spmatrix):
        precision = sp.csr_matrix(precision, dtype=np.float64)
        self.precision = precision
        self.pattern = SparsePattern(precision)
        self.n_spots = self.n_latent = precision.shape[0]
        self._prior_factor = self.pattern.factorize(None, 1)
        self.prior_logdet = float(self._prior_factor.logdet()[0])
        if not np.isfinite(self.prior_logdet):
            raise InvalidArgumentError("precision: expected a positive definite matrix, found one that is not.")

    @property
    def factor_blocks(self) -> int:
        """Numbers that the sparse factor and its selected inverse hold."""
        return 2 * (self.pattern.row.size + self.n_spots)

    def spread(self, latent: Tensor) -> Tensor:
        """Take latents to the field: the same numbers here."""
        return latent

    def gather(self, field: Tensor) -> Tensor:
        """Take numbers of the field to the latents: the same numbers here."""
        return field

    def prior(self, latent: Tensor) -> Tensor:
        """Multiply latents by their prior precision, ``P z``."""
        memory = latent.permute(1, 2, 0)  # (N, Q, B)
        flat = memory.reshape(self.n_spots, -1).numpy()
        return torch.from_numpy(self.precision @ flat).reshape(memory.shape).permute(2, 0, 1)

    def factorize(self, blocks: Tensor) -> SparseFactor:
        """Sparse Cholesky of ``P ⊗ I + blockdiag(blocks)``."""
        memory = planar(blocks).permute(2, 3, 1, 0).numpy()  # (Q, Q, N, B)
        q, n_genes = memory.shape[0], memory.shape[-1]
        groups = [memory[..., g : g + LANES] for g in range(0, n_genes, LANES)]
        return SparseFactor(_in_threads(lambda group: self.pattern.factorize(group, q), groups), n_genes)

    def color(self, noise: Tensor) -> Tensor:
        """Make fields from standard normal numbers, ``L⁻ᵀ noise``: genes and logits share one factor."""
        memory = noise.permute(2, 0, 1).reshape(-1, 1, self.n_spots, 1).numpy()
        draws = torch.from_numpy(self._prior_factor.solve(memory, lower=False))
        return draws.reshape(noise.shape[2], noise.shape[0], self.n_spots).permute(1, 2, 0)


class SparseFactor(Factor):
    """Factors of a batch: a :class:`LaneFactor` for every eight genes, on as many threads as torch has."""

    def __init__(self, lanes: list[LaneFactor], n_genes: int):
        self.lanes, self.n_genes = lanes, n_genes

    def logdet(self) -> Tensor:
        """Log determinant ``log |S|`` of each gene, (B,)."""
        return torch.from_numpy(np.concatenate([lane.logdet() for lane in self.lanes])[: self.n_genes])

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the factor, ``S⁻¹ rhs``."""
        return self._solve(rhs, lower=True)

    def color(self, noise: Tensor) -> Tensor:
        """Make draws of the latents from standard normal numbers, ``L⁻ᵀ noise``."""
        return self._solve(noise, lower=False)

    def _solve(self, rhs: Tensor, *, lower: bool) -> Tensor:
        single = rhs.dim() == 3
        memory = planar(rhs.unsqueeze(-1) if single else rhs).permute(3, 2, 1, 0).numpy()  # (R, Q, N, B)
        jobs = [(lane, memory[..., g * LANES : (g + 1) * LANES]) for g, lane in enumerate(self.lanes)]
        parts = _in_threads(lambda job: job[0].solve(job[1], lower=lower), jobs)
        out = torch.from_numpy(np.concatenate(parts, -1) if len(parts) > 1 else parts[0]).permute(3, 2, 1, 0)
        return out.squeeze(-1) if single else out

    def spot_covariance(self) -> Tensor:
        """Diagonal blocks of ``S⁻¹`` by selected inversion."""
        parts = _in_threads(lambda lane: lane.inverse_blocks(), self.lanes)
        memory = np.concatenate(parts, -1)[..., : self.n_genes]
        return torch.from_numpy(memory).permute(3, 2, 0, 1)


def _width(q: int) -> tuple[int, ...] | np.ndarray:
    """A length that the compiler knows where it unrolls; beyond, one compiled kernel serves every Q."""
    return (0,) * q if q <= kernels.UNROLLED else np.empty(q, np.int8)


def _in_threads(task: Callable[[Any], Any], jobs: Iterable[Any]) -> list[Any]:
    """The kernels release the interpreter lock: run jobs side by side on torch's number of threads."""
    jobs = list(jobs)
    workers = min(len(jobs), torch.get_num_threads())
    if workers <= 1:
        return [task(job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(task, jobs))


def _minimum_degree(matrix: sp.csc_matrix) -> np.ndarray:
    """Fill-reducing order by multiple minimum degree; SuperLU has it, with a factor, here one of the diagonal alone."""
    pattern = abs(matrix)
    dominant = pattern + sp.diags(np.asarray(pattern.sum(0)).ravel() + 1.0)  # pivots stay on the diagonal
    options = {"SymmetricMode": True, "DiagPivotThresh": 0.0}
    diagonal_alone = {"drop_tol": 1.0, "fill_factor": 1.0}
    found = spilu(dominant.tocsc(), permc_spec="MMD_AT_PLUS_A", options=options, **diagonal_alone)
    return np.argsort(found.perm_c)
