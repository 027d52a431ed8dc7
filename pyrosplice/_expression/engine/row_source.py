"""Rows of counts for each block of genes, from a matrix: one pass over the non-zeros, or dense by blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.engine.basis import Basis, conditioned, joint
from pyrosplice._expression.engine.count_table import CountTable
from pyrosplice._expression.engine.design_strata import DesignStrata, design_strata
from pyrosplice._expression.engine.pseudo_cells import Compression, Designs, Rows, as_tensor, compress, distinct_rows
from pyrosplice._expression.engine.sparse_rows import FitRows, SparseRows, non_zeros
from pyrosplice._overrides import is_ours
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]
Index = NDArray[np.intp]
BLOCK_SIZE = 30_000  # rows × genes of a block: its arrays stay in cache, and below where torch would split them
SMALL_COUNT = 255  # largest count kept in the table of exceedances
MANY_LEVELS = 16
SPARSE_CELLS = 1000  # twice as fast from there, 100 genes, 70 % non-zero, 1 to 3 continuous columns; level at 10 genes
SPARSE_BLOCK = 16_000_000  # cells × genes of a block of sparse rows, whose non-zeros are in memory
MIN_SPARSE_GENES = 8


@dataclass(frozen=True)
class Design:
    """What the predictors of N cells are made of; all float64.

    Attributes
    ----------
    x, z
        Free columns of the location and the scale design, ``(N, P)`` and ``(N, R)``.
    offset
        Added to the location predictor: ``(N,)``, or ``(N, G)`` gene-wise.
    zeta_offset
        Added to the scale predictor ``(N,)``.
    weights
        Observation weights: ``(N,)``, ``(N, G)``, or None for ones.
    strata
        Label of each cell (donor, say) that rows must not be summed across, ``(N,)``; None for one stratum.
    """

    x: Array
    z: Array
    offset: Array
    zeta_offset: Array
    weights: Array | None = None
    strata: Index | None = None

    @property
    def gene_wise(self) -> bool:
        """Whether offsets or weights differ between genes."""
        return self.offset.ndim == 2 or (self.weights is not None and self.weights.ndim == 2)


class CountTally:
    """Accumulates :class:`CountTable` over blocks of non-zero counts."""

    def __init__(self, n_genes: int, n_levels: int, *, small: int = SMALL_COUNT) -> None:
        self.small = small
        self.shape = (n_genes, n_levels, small + 1)
        self.histogram = np.zeros(self.shape)
        self.rest: list[tuple[Index, Array, Array]] = []

    def add(self, gene: Index, level: Index | int, value: NDArray[Any], weight: Array | None) -> None:
        """Count entries of ``value`` at (gene, level)."""
        cell = gene * self.shape[1] + level
        whole = value.astype(np.intp)
        tabled = (whole <= self.small) & (whole == value)
        code, w = cell * (self.small + 1) + whole, weight
        if not tabled.all():
            rest = ~tabled
            one = np.ones(int(rest.sum())) if weight is None else weight[rest]
            self.rest.append((cell[rest], value[rest].astype(np.float64), one))
            code, w = code[tabled], None if weight is None else weight[tabled]
        self.histogram += np.bincount(code, weights=w, minlength=self.histogram.size).reshape(self.shape)

    def finish(self) -> GeneTables:
        """The table of all genes, as arrays."""
        values = np.arange(self.small + 1.0)
        constant = -(self.histogram @ gammaln(values + 1)).sum(1)
        largest = np.where(self.histogram > 0, values, 0.0).max((1, 2)).astype(np.intp)
        exceed = self.histogram[:, :, ::-1].cumsum(2)[:, :, ::-1]
        exceed = np.concatenate([exceed[:, :, 1:], np.zeros((*self.shape[:2], 1))], 2)
        cell, value, weight = (
            (np.concatenate(parts) for parts in zip(*self.rest, strict=True))
            if self.rest
            else (np.zeros(0, np.intp), np.zeros(0), np.zeros(0))
        )
        order = np.argsort(cell, kind="stable")
        cell, value, weight = cell[order], value[order], weight[order]
        np.add.at(constant, cell // self.shape[1], -weight * gammaln(value + 1))
        starts = np.searchsorted(cell, np.arange(self.shape[0] * self.shape[1] + 1))
        return GeneTables(exceed, largest, starts, value, weight, constant)


@dataclass(frozen=True)
class GeneTables:
    """Tables of all genes: exceedances, and the other counts as one ragged array."""

    exceed: Array
    largest: Index
    starts: Index
    value: Array
    weight: Array
    constant: Array

    def table(self, genes: Index, device: torch.device | str) -> CountTable:
        """The :class:`CountTable` of some genes."""
        n_levels = self.exceed.shape[1]
        cells = genes[:, None] * n_levels + np.arange(n_levels)
        length = self.starts[cells + 1] - self.starts[cells]
        width = int(length.max(initial=0))
        values, weights = np.zeros((*cells.shape, width)), np.zeros((*cells.shape, width))
        if width:
            slot = np.arange(width) < length[..., None]
            source = (self.starts[cells][..., None] + np.arange(width))[slot]
            values[slot], weights[slot] = self.value[source], self.weight[source]
        top = int(self.largest[genes].max(initial=0))
        return CountTable(
            *(as_tensor(a, device) for a in (self.exceed[genes, :, :top], values, weights, self.constant[genes]))
        )


@dataclass
class RowSource:
    """The rows of every block of genes, for a design and a likelihood.

    Cells of equal design rows are summed on the way (:mod:`pyrosplice._expression.engine.pseudo_cells`) where the
    likelihood and the design allow it; the counts are then read once, here, and never again.
    """

    counts: CountMatrix
    design: Design
    likelihood: Likelihood
    device: torch.device | str = "cpu"
    block_size: int | None = None  # genes
    compression: Compression | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        d, n = self.design, self.counts.shape[0]
        self.needs_table = self.likelihood.by_totals
        self.strata = np.zeros(n, np.intp) if d.strata is None else d.strata
        if self.likelihood.by_totals and not d.gene_wise:
            self.compression = compress(d.offset, d.x, d.z, d.zeta_offset, self.strata.astype(float))
        self.level, first = distinct_rows(d.z, d.zeta_offset)
        self.cell_levels = len(first) > MANY_LEVELS
        if self.cell_levels:
            self.compression, self.level, first = None, np.arange(n), np.arange(n)
        self.level_z, self._level_offset = (
            as_tensor(d.z[first], self.device),
            as_tensor(d.zeta_offset[first], self.device),
        )
        self.designs = self.make_designs()
        if self.compression is not None:
            self._read()
        else:
            self.group = np.arange(n)
            self.stratum = self.strata
            self.order = np.arange(self.counts.shape[1])

    @property
    def n_rows(self) -> int:
        """Cells, or pseudo-cells."""
        return self.counts.shape[0] if self.compression is None else self.compression.n_rows

    def with_location(self, matrix: Array) -> RowSource:
        """Copy with location design ``x @ matrix`` for the same counts; nothing is read again."""
        other = copy.copy(self)
        for computed in ("basis", "conditioned", "_strata"):
            vars(other).pop(computed, None)
        other.design = replace(self.design, x=self.design.x @ matrix)
        other.designs = other.make_designs()
        return other

    @cached_property
    def basis(self) -> Basis:
        """Well-conditioned coordinates of location and scale, in which the engine works."""
        d, plan = self.design, self.compression
        first = np.arange(len(d.x)) if plan is None else plan.first
        cells = np.ones(len(d.x)) if plan is None else np.bincount(plan.group).astype(float)
        return joint(conditioned(d.x[first], cells), conditioned(d.z[first], cells))

    @cached_property
    def conditioned(self) -> RowSource:
        """Rows of the same counts in the coordinates of :attr:`basis`."""
        if self.basis.trivial:
            return self
        p = self.design.x.shape[1]
        location, scale = self.basis.matrix[:p, :p], self.basis.matrix[p:, p:]
        other = copy.copy(self)
        vars(other).pop("_strata", None)
        other.designs = self.make_designs(location, scale)
        other.level_z = self.level_z @ self._tensor(scale)
        return other

    @property
    def reach(self) -> Array:
        """Largest entry of each location column ``(P,)`` in the coordinates of :attr:`basis`."""
        return self.conditioned.designs.x.abs().amax(0).cpu().numpy()

    def make_designs(self, location: Array | None = None, scale: Array | None = None) -> Designs:
        """The designs of the rows, or these in other coordinates."""
        d, plan = self.design, self.compression
        x, z = (d.x, d.z) if plan is None else (plan.expand(d.x), plan.expand(d.z))
        x, z = (x if location is None else x @ location), (z if scale is None else z @ scale)
        return Designs(self._tensor(x), self._tensor(z))

    def _read(self) -> None:
        plan, d = self.compression, self.design
        assert plan is not None
        n_genes = self.counts.shape[1]
        starts, weights = plan.starts, np.ones(self.counts.shape[0]) if d.weights is None else d.weights
        self.total = np.zeros((plan.n_rows, n_genes))
        tally = CountTally(n_genes, len(self.level_z))
        for cells, read in self.counts.cell_blocks():
            block = sp.csr_matrix(read)  # sums in the same order, to the bit, however the counts are stored
            for k, everyone in enumerate(plan.members):
                low, high = np.searchsorted(everyone, [cells.start, cells.stop])
                some = everyone[low:high]
                if len(some):
                    part = block[some - cells.start]
                    basis = plan.weights[k][low:high] * weights[some, None]
                    self.total[starts[k] : starts[k + 1]] += part.T.dot(basis).T
            _tally(tally, block, self.level[cells], None if d.weights is None else weights[cells])
        self._tables = tally.finish()
        self._weight = np.concatenate([w.T @ weights[m] for w, m in zip(plan.weights, plan.members, strict=True)])
        sizes = np.diff(starts)
        self.group = np.repeat(np.arange(len(sizes)), sizes)
        self.stratum = np.repeat(self.strata[plan.first], sizes)
        self.order = np.argsort(self._tables.largest, kind="stable")

    @cached_property
    def sparse(self) -> bool:
        """Whether fits sum over every cell and over non-zero counts apart: see :class:`SparseRows` for what that needs.

        Negative-binomial counts of one dispersion, on the processor, whose cells have no weights and no offsets by
        gene, where many cells have designs of their own.
        """
        d, kind = self.design, self.likelihood
        known = kind.is_negative_binomial and is_ours(type(kind)) and getattr(kind, "exposure", None) is None
        plain = d.weights is None and d.offset.ndim == 1 and len(self.level_z) == 1
        cells = self.compression is None and self.counts.shape[0] >= SPARSE_CELLS
        return known and plain and cells and self.counts.counts and torch.device(self.device).type == "cpu"

    @overload
    def blocks(self, genes: Index | None = None) -> Iterator[tuple[Index, Rows]]: ...
    @overload
    def blocks(self, genes: Index | None = None, *, fitted: bool) -> Iterator[tuple[Index, FitRows]]: ...

    def blocks(self, genes: Index | None = None, *, fitted: bool = False) -> Iterator[tuple[Index, FitRows]]:
        """Blocks of genes (of all, or of ``genes``) and their rows; genes of like counts are kept together.

        ``fitted`` rows are those of a fit, :class:`SparseRows` where the source is :attr:`sparse`.
        """
        order = self.order if genes is None else self.order[np.isin(self.order, genes)]
        apart = fitted and self.sparse
        least, entries = (MIN_SPARSE_GENES, SPARSE_BLOCK) if apart else (4, BLOCK_SIZE)
        size = self.block_size or max(least, min(entries // self.n_rows, len(order)))
        for start in range(0, len(order), size):
            some = order[start : start + size]
            yield some, self._sparse_rows(some) if apart else self.rows(some)

    def rows(self, genes: Index) -> Rows:
        """The rows of some genes."""
        return self._dense_rows(genes) if self.compression is None else self._summed_rows(genes)

    def _summed_rows(self, genes: Index) -> Rows:
        plan, d = self.compression, self.design
        assert plan is not None
        t = self._tensor
        return Rows(
            design=self.designs,
            offset=t(np.concatenate(plan.nodes)[None]),
            zeta_offset=t(plan.expand(d.zeta_offset)),
            total=t(self.total[:, genes].T),
            weight=t(self._weight[None]),
            level_z=self.level_z,
            level_offset=self._level_offset,
            table=self._tables.table(genes, self.device),
        )

    @cached_property
    def _strata(self) -> DesignStrata:
        return design_strata(self.designs.x.numpy(), self.design.offset)

    def _sparse_rows(self, genes: Index) -> SparseRows:
        counts = self.counts.columns(genes)
        tally = CountTally(len(genes), 1)
        tally.add(np.repeat(np.arange(len(genes)), np.diff(counts.indptr)), 0, counts.data, None)
        return SparseRows(
            self.designs,
            self._strata,
            non_zeros(counts, self.designs, self._strata),
            np.arange(len(genes)),
            self.level_z,
            self._level_offset,
            tally.finish().table(np.arange(len(genes)), self.device),
        )

    def _dense_rows(self, genes: Index) -> Rows:
        d, t = self.design, self._tensor
        y = self.counts.genes(genes)
        offset = d.offset[None] if d.offset.ndim == 1 else d.offset[:, genes].T
        weight = (
            np.ones((1, len(d.x)))
            if d.weights is None
            else np.atleast_2d(d.weights[:, genes].T if d.weights.ndim == 2 else d.weights)
        )
        return Rows(
            design=self.designs,
            offset=t(offset),
            zeta_offset=t(d.zeta_offset),
            total=t(y * weight),
            weight=t(weight),
            level_z=self.level_z,
            level_offset=self._level_offset,
            table=self._dense_table(y, weight) if self.needs_table else None,
        )

    def _dense_table(self, y: Array, weight: Array) -> CountTable:
        weight = np.broadcast_to(weight, y.shape)
        levels = len(self.level_z)
        if (levels == 1 and y.shape[1] <= SMALL_COUNT) or self.cell_levels:
            shape = (len(y), 1, y.shape[1]) if levels == 1 else (*y.shape, 1)
            constant = -(weight * gammaln(y + 1)).sum(1)
            empty = np.zeros((len(y), levels, 0))
            return CountTable(*map(self._tensor, (empty, y.reshape(shape), weight.reshape(shape), constant)))
        tally = CountTally(len(y), levels)
        gene, cell = np.nonzero(y)
        tally.add(gene, self.level[cell], y[gene, cell], weight[gene, cell])
        return tally.finish().table(np.arange(len(y)), self.device)

    def _tensor(self, array: Array) -> Tensor:
        return as_tensor(array, self.device)


def _tally(tally: CountTally, block: sp.csr_matrix, level: Index, weight: Array | None) -> None:
    cell = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    at = level[cell] if tally.shape[1] > 1 else 0
    tally.add(block.indices.astype(np.intp), at, block.data, None if weight is None else weight[cell])
