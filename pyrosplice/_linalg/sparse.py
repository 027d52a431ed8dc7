"""Sparse precision matrices: block Cholesky, solves, determinants and diagonals of inverses.

The pattern is analysed once for a graph (minimum-degree ordering, symbolic factor); genes share it. In the plane the
factor of N spots has O(N log N) blocks and costs O(N^1.5), against O(N³) for a dense one. Many genes of few spots are
worked on eight at a time (:mod:`~pyrosplice._linalg.lane_factor`), few genes or many spots one gene at a time
(:mod:`~pyrosplice._linalg.supernodal`), which :data:`SPOTS_A_GENE` decides: the same numbers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator, eigsh, splu
from torch import Tensor

from pyrosplice._linalg.blocks import planar
from pyrosplice._linalg.lane_factor import LaneFactor, LanePattern
from pyrosplice._linalg.lanes import LANES
from pyrosplice._linalg.solver import Factor, SpatialSolver
from pyrosplice._linalg.supernodal import OrderedMatrix, SupernodalFactor, Supernodes
from pyrosplice.errors import InvalidArgumentError

SPOTS_A_GENE = 2_000
"""Spots for each gene of eight from which genes are factored one at a time, by supernodes.

On grids of 2,500, 10,000 and 40,000 spots the factor and selected inverse of eight genes in lanes cost what those of 3,
6 and 12 genes cost by supernodes, of one to three logits.
"""


class SparsePattern:
    """Ordering and symbolic factor of a sparse symmetric matrix, with the matrix's own values in factor storage.

    Parameters
    ----------
    matrix
        Symmetric positive definite, (N, N).
    """

    def __init__(self, matrix: sp.spmatrix):
        matrix = sp.csc_matrix(matrix, dtype=np.float64)
        self.n = n = matrix.shape[0]
        if matrix.shape != (n, n) or abs(matrix - matrix.T).max() > 1e-10 * abs(matrix).max():
            raise InvalidArgumentError(f"matrix: expected a symmetric square matrix, found shape {matrix.shape}.")
        self.supernodes = Supernodes.of(matrix)
        self.values = OrderedMatrix.of(matrix, self.supernodes.order)

    @cached_property
    def lanes(self) -> LanePattern:
        """Elimination of eight genes at a time."""
        return LanePattern(self.supernodes.order, self.values)

    @property
    def n_numbers(self) -> int:
        """Numbers that the factor of one logit of a gene among many holds, and its selected inverse."""
        return self.supernodes.n_numbers if self._by_gene(LANES) else 2 * (self.lanes.row.size + self.n)

    def inverse_diagonal(self, matrix: sp.spmatrix | None = None) -> np.ndarray:
        """Diagonal of the inverse, (N,): of the matrix itself, or of another with the same pattern."""
        values = self.values
        if matrix is not None:
            values = OrderedMatrix.of(sp.csc_matrix(matrix, dtype=np.float64), self.supernodes.order)
        return SupernodalFactor(self.supernodes, values).inverse_blocks()[0, 0, :, 0]

    def groups(self, n_genes: int) -> list[slice]:
        """Genes that are factored together: one, or up to eight."""
        eights = [slice(g, min(g + LANES, n_genes)) for g in range(0, n_genes, LANES)]
        return [
            group
            for eight in eights
            for group in (
                [slice(g, g + 1) for g in range(eight.start, eight.stop)]
                if self._by_gene(eight.stop - eight.start)
                else [eight]
            )
        ]

    def factorize(self, blocks: np.ndarray | None, q: int) -> LaneFactor | SupernodalFactor:
        """Factor ``matrix ⊗ I_Q + blockdiag(blocks)`` for one of the groups; ``blocks`` is (Q, Q, N, G)."""
        n_genes = 1 if blocks is None else blocks.shape[-1]
        if n_genes == 1 and self._by_gene(1):
            return SupernodalFactor(self.supernodes, self.values, None if blocks is None else blocks[..., 0], q)
        return self.lanes.factorize(blocks, q)

    def _by_gene(self, n_genes: int) -> bool:
        """Whether so many genes are factored one at a time."""
        return self.n >= SPOTS_A_GENE * n_genes


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
        return self.pattern.n_numbers

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
        q, groups = memory.shape[0], self.pattern.groups(memory.shape[-1])
        return SparseFactor(_in_threads(lambda group: self.pattern.factorize(memory[..., group], q), groups), groups)

    def color(self, noise: Tensor) -> Tensor:
        """Make fields from standard normal numbers, ``L⁻ᵀ noise``: genes and logits share one factor."""
        memory = noise.permute(2, 0, 1).reshape(-1, 1, self.n_spots, 1).numpy()
        draws = torch.from_numpy(self._prior_factor.solve(memory, lower=False))
        return draws.reshape(noise.shape[2], noise.shape[0], self.n_spots).permute(1, 2, 0)


class SparseFactor(Factor):
    """Factors of a batch, one for each group of genes, on as many threads as torch has."""

    def __init__(self, parts: list[LaneFactor | SupernodalFactor], groups: list[slice]):
        self._parts, self._groups = parts, groups

    def logdet(self) -> Tensor:
        """Log determinant ``log |S|`` of each gene, (B,)."""
        return torch.from_numpy(np.concatenate([part.logdet() for part in self._parts]))

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the factor, ``S⁻¹ rhs``."""
        return self._solve(rhs, lower=True)

    def color(self, noise: Tensor) -> Tensor:
        """Make draws of the latents from standard normal numbers, ``L⁻ᵀ noise``."""
        return self._solve(noise, lower=False)

    def _solve(self, rhs: Tensor, *, lower: bool) -> Tensor:
        single = rhs.dim() == 3
        memory = planar(rhs.unsqueeze(-1) if single else rhs).permute(3, 2, 1, 0).numpy()  # (R, Q, N, B)
        jobs = [(part, memory[..., group]) for part, group in zip(self._parts, self._groups, strict=True)]
        parts = _in_threads(lambda job: job[0].solve(job[1], lower=lower), jobs)
        out = torch.from_numpy(np.concatenate(parts, -1) if len(parts) > 1 else parts[0]).permute(3, 2, 1, 0)
        return out.squeeze(-1) if single else out

    def spot_covariance(self) -> Tensor:
        """Diagonal blocks of ``S⁻¹`` by selected inversion."""
        parts = _in_threads(lambda part: part.inverse_blocks(), self._parts)
        return torch.from_numpy(np.concatenate(parts, -1)).permute(3, 2, 0, 1)


def _in_threads(task: Callable[[Any], Any], jobs: Iterable[Any]) -> list[Any]:
    """The kernels release the interpreter lock: run jobs side by side on torch's number of threads."""
    jobs = list(jobs)
    workers = min(len(jobs), torch.get_num_threads())
    if workers <= 1:
        return [task(job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(task, jobs))
