r"""Cells as the rows of a negative-binomial fit, each gene's non-zero counts apart from what all cells have in common.

The log density of one common dispersion α of a gene is

.. math:: -\frac1\alpha \sum_i \log(1 + \alpha\mu_i) + \sum_{y_i > 0} y_i [\eta_i - \log(1 + \alpha\mu_i)] + T(\alpha)

with T of :mod:`pyrosplice._expression.engine.count_table`: the first sum, over every cell, touches no counts, and the
second the non-zeros alone. The sums are exact and compiled (:mod:`pyrosplice._expression.engine.cell_sums`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._expression.engine.cell_sums import add_cells, add_counts, by_stratum
from pyrosplice._expression.engine.count_table import CountTable
from pyrosplice._expression.engine.design_strata import DesignStrata
from pyrosplice._expression.engine.pseudo_cells import Derivatives, Designs, Rows, SearchEnd, symmetric
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]
Index = NDArray[np.intp]
BOUND_SLACK = 1e-9  # rounding of a log density, relative
NEARLY_POISSON_ZETA = 5.0  # scale predictor from which differences of like numbers are summed for themselves
POISSON_ZETA = 70.0  # scale predictor at which sums are those of the Poisson to the last digit


@dataclass(frozen=True)
class NonZeros:
    """Non-zero counts of a block of genes, sorted by gene, then by stratum of the cell.

    Attributes
    ----------
    bounds
        Where those of a gene in a stratum begin and end ``(G, L + 1)``.
    places, values
        Places in the sorted order of cells, and counts.
    product
        Sums of counts times each location column, then times the offset ``(G, P + 1)``.
    log_ratio
        Sums over cells of ``log(y + 0.1) − log 0.1`` times the columns of the design's pseudo-inverse ``(G, P)``.
    """

    bounds: Index
    places: Index
    values: Array
    product: Array
    log_ratio: Array


@dataclass(frozen=True)
class _Sums:
    """Sums over cells of G genes: log terms ``(G,)``, weights m, c, w, μ times designs ``(G, P)``, ``(G, P, P)``."""

    logs: Tensor
    gap: Tensor
    m: Tensor
    m_total: Tensor
    c: Tensor
    c_total: Tensor
    w_total: Tensor
    w_x: Tensor
    w_xx: Tensor
    m_xx: Tensor | None = None
    mean_x: Tensor | None = None
    mean_total: Tensor | None = None


@dataclass(frozen=True)
class SparseRows:
    """What the likelihood of a block of G genes is made of, where α is common to all cells.

    Attributes
    ----------
    design, strata
        Designs of location and scale, and their cells sorted.
    counts, genes
        Counts of a block, and which of its genes these are ``(G,)``.
    level_z, level_offset
        The one row of the scale design ``(1, R)``, and what is added to its predictor ``(1,)``.
    table
        Counts a gene.
    """

    design: Designs
    strata: DesignStrata
    counts: NonZeros
    genes: Index
    level_z: Tensor
    level_offset: Tensor
    table: CountTable
    common_scale = True

    @property
    def x(self) -> Tensor:
        """Location design ``(N, P)``."""
        return self.design.x

    @property
    def z(self) -> Tensor:
        """Scale design ``(N, R)``."""
        return self.design.z

    @property
    def n_genes(self) -> int:
        """Number of genes G."""
        return len(self.genes)

    @property
    def weight(self) -> Tensor:
        """Weights of the cells, ones ``(1, N)``."""
        return self.x.new_ones(1, len(self.x))

    @property
    def zeta_offset(self) -> Tensor:
        """Added to the scale predictor ``(N,)``."""
        return self.level_offset.expand(len(self.x))

    @property
    def without_counts(self) -> Tensor:
        """Which genes have no count ``(G,)``."""
        return self.sum_counts <= 0.0

    @property
    def sum_counts(self) -> Tensor:
        """Total count of each gene ``(G,)``."""
        return self.table.sum_counts()

    @property
    def exposure(self) -> Tensor:
        """Sum of the size factors ``(1,)``."""
        return torch.as_tensor([np.exp(self.strata.offset).sum()])

    def select(self, genes: Tensor) -> SparseRows:
        """The rows of some of the genes."""
        return replace(self, genes=self.genes[genes.numpy()], table=self.table.select(genes))

    def derivatives(self, likelihood: Likelihood, theta: Tensor) -> Derivatives:
        """Log density of each gene and its first two derivatives in ``theta`` ``(G, P + R)``; exact."""
        zeta = self._zeta(theta)
        return self._derivatives(theta, zeta, self._every_cell(self._location(theta), zeta))

    def optimum(self, likelihood: Likelihood, theta: Tensor) -> SearchEnd:
        """What is to know of each gene at the end of a search."""
        zeta = self._zeta(theta)
        every = self._every_cell(self._location(theta), zeta, final=True)
        assert every.m_xx is not None and every.mean_x is not None and every.mean_total is not None
        product = torch.as_tensor(self.counts.product[self.genes])
        gradient = product[:, :-1] - every.mean_x
        # the Poisson's information is not less than the expected one here, and the gain from a step with it not more
        gain = squared_length(every.m_xx, gradient)
        rising = self.table.terms(torch.full_like(zeta, POISSON_ZETA))[0].sum(1)
        value = (product[:, :-1] * self._location(theta)).sum(1) + product[:, -1] - every.mean_total
        bound = value + rising + self.table.constant + gain
        slack = BOUND_SLACK * (1 + value.abs())
        return SearchEnd(self._derivatives(theta, zeta, every), every.m_xx, bound + slack)

    def _location(self, theta: Tensor) -> Tensor:
        return theta[:, : self.x.shape[1]]

    def _zeta(self, theta: Tensor) -> Tensor:
        return theta[:, self.x.shape[1] :] @ self.level_z.T + self.level_offset

    def _derivatives(self, theta: Tensor, zeta: Tensor, every: _Sums) -> Derivatives:
        p = self.x.shape[1]
        some = self._non_zeros(theta[:, :p], zeta)
        rising, slope, curve = (t.sum(-1) for t in self.table.terms(zeta))
        product = torch.as_tensor(self.counts.product[self.genes])
        value = (product[:, :p] * theta[:, :p]).sum(1) + product[:, p] - some.logs - every.logs
        g_zeta = some.m_total - every.gap + slope
        near = zeta[:, 0] > NEARLY_POISSON_ZETA
        excess = torch.where(near, every.c_total, every.m_total - every.w_total)
        excess_x = torch.where(near[:, None], every.c, every.m - every.w_x)
        h_zeta = some.w_total + every.gap - excess + curve
        z = self.level_z[0]
        cross = (excess_x - some.w_x)[:, :, None] * z
        information = torch.cat(
            [
                torch.cat([every.w_xx + some.w_xx, cross], 2),
                torch.cat([cross.mT, h_zeta[:, None, None] * z[:, None] * z], 2),
            ],
            1,
        )
        gradient = torch.cat([product[:, :p] - every.m - some.m, g_zeta[:, None] * z], 1)
        return Derivatives(value + rising + self.table.constant, gradient, information)

    def fisher(self, likelihood: Likelihood, theta: Tensor) -> Tensor:
        """Expected information of the location coefficients ``(G, P, P)``."""
        expected = self._every_cell(self._location(theta), self._zeta(theta), final=True).m_xx
        assert expected is not None
        return expected

    def mean_total(self, a: Tensor) -> Tensor:
        """Sum of the means ``(G,)``."""
        return self._every_cell(a, torch.full_like(a[:, :1], POISSON_ZETA)).m_total

    def mean_sums(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the means, of their squares, and of counts times means, each ``(G,)``."""
        zeta = torch.full_like(a[:, :1], POISSON_ZETA)
        every, some = self._every_cell(a, zeta), self._non_zeros(a, zeta)
        r = math.exp(POISSON_ZETA)
        return every.m_total, 2 * every.gap * r, some.m_total * r

    def log_rates(self) -> Tensor:
        """Least-squares coefficients of log rates, ``log((y + 0.1) / size)``, on the location design ``(G, P)``."""
        inverse = self.design.pseudo_inverse
        offset = torch.as_tensor(self.strata.offset[self.strata.place])
        zeros = (math.log(0.1) - offset) @ inverse
        return torch.as_tensor(self.counts.log_ratio[self.genes]) + zeros

    def _every_cell(self, a: Tensor, zeta: Tensor, *, final: bool = False) -> _Sums:
        plan = self.strata
        u = 1 + len(plan.columns)
        pairs = u * (u + 1) // 2
        constant, slopes = plan.constants_and_slopes(a.numpy())
        out = np.zeros((len(a), len(plan.values), 2 + 2 * u + pairs + (pairs + u if final else 0)))
        alpha = np.exp(-zeta[:, 0].numpy())
        near = zeta[:, 0].numpy() > NEARLY_POISSON_ZETA
        add_cells(plan.columns, plan.offset, plan.starts, constant, slopes, alpha, near, final, out)
        return self._in_design(out, final=final)

    def _non_zeros(self, a: Tensor, zeta: Tensor) -> _Sums:
        plan, counts = self.strata, self.counts
        u = 1 + len(plan.columns)
        constant, slopes = plan.constants_and_slopes(a.numpy())
        out = np.zeros((len(a), len(plan.values), 2 + 2 * u + u * (u + 1) // 2))
        add_counts(
            self.genes,
            counts.bounds,
            counts.places,
            counts.values,
            plan.columns,
            plan.offset,
            constant,
            slopes,
            np.exp(-zeta[:, 0].numpy()),
            out,
        )
        return self._in_design(out, final=False)

    def _in_design(self, sums: Array, *, final: bool) -> _Sums:
        """Sums of strata over [1, continuous columns] ``(G, L, Q)`` as those of all cells over the design."""
        t = torch.as_tensor(sums)
        outward, u = self.strata.transform, 1 + len(self.strata.columns)
        pairs = u * (u + 1) // 2
        at = 2 + 2 * u
        m, c, w = t[:, :, 2 : 2 + u], t[:, :, 2 + u : at], _square(t[:, :, at : at + pairs], u)
        more: dict[str, Tensor] = {}
        if final:
            m_pairs, mean = t[:, :, at + pairs : at + 2 * pairs], t[:, :, at + 2 * pairs :]
            more["m_xx"] = (outward @ _square(m_pairs, u) @ outward.mT).sum(1)
            more["mean_x"] = (outward @ mean.unsqueeze(-1)).squeeze(-1).sum(1)
            more["mean_total"] = mean[:, :, 0].sum(1)
        return _Sums(
            logs=t[:, :, 0].sum(1),
            gap=t[:, :, 1].sum(1),
            m=(outward @ m.unsqueeze(-1)).squeeze(-1).sum(1),
            m_total=m[:, :, 0].sum(1),
            c=(outward @ c.unsqueeze(-1)).squeeze(-1).sum(1),
            c_total=c[:, :, 0].sum(1),
            w_total=w[:, :, 0, 0].sum(1),
            w_x=(outward @ w[:, :, :, :1]).squeeze(-1).sum(1),
            w_xx=(outward @ w @ outward.mT).sum(1),
            **more,
        )


def squared_length(matrix: Tensor, vector: Tensor) -> Tensor:
    """Squared length of each gene's vector by the inverse of a matrix ``(G,)``; infinite where that is not definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    inner = torch.linalg.solve_triangular(factor, vector.unsqueeze(-1), upper=False)
    return torch.where(info == 0, inner.square().sum((1, 2)), torch.inf)


def _square(upper: Tensor, size: int) -> Tensor:
    """Symmetric matrices ``(G, L, size, size)`` from sums over pairs, as the compiled sums order them."""
    order = symmetric(torch.arange(upper.shape[-1])[None], size)[0]
    return upper[:, :, order]


def non_zeros(counts: sp.csc_matrix, designs: Designs, strata: DesignStrata) -> NonZeros:
    """Non-zero counts ``(N, G)`` of a block for designs and strata of its cells."""
    values = counts.data.astype(np.float64, copy=False)
    bounds, places, sorted_values = by_stratum(
        counts.indptr.astype(np.int64),
        counts.indices.astype(np.int64),
        values,
        strata.stratum,
        strata.place,
        len(strata.values),
    )
    genes = sp.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape[::-1])
    logs = sp.csr_matrix((np.log1p(values / 0.1), counts.indices, counts.indptr), shape=counts.shape[::-1])
    product = genes @ np.column_stack([strata.x, strata.offset[strata.place]])
    return NonZeros(bounds, places, sorted_values, product, logs @ designs.pseudo_inverse.numpy())


FitRows = Rows | SparseRows
