r"""The rows that a fit runs over: cells, or far fewer pseudo-cells that carry the same likelihood.

Cells that share a row of the designs differ only in their offset :math:`o_i` (log size factor), and the likelihood
needs from them sums such as :math:`\sum_i (w_i + y_i\alpha) \log(1 + e^{t + o_i})` at some t. The function is
analytic in a strip of half-width π about the real line, so its interpolant at K Chebyshev nodes :math:`u_k` of the
offsets' range :math:`[m - h, m + h]` converges like :math:`\rho^{-K}`, :math:`\rho = \pi/h + \sqrt{\pi^2/h^2 + 1}`:
twenty nodes reach the last digit for size factors that span a factor of eight. With the interpolation weights
:math:`L_k(o_i)`,

.. math:: \sum_i y_i f(t + o_i) = \sum_k \Big[\sum_i y_i L_k(o_i)\Big] f(t + u_k),

one pass over the (non-zero) counts leaves K pseudo-cells a distinct row, whatever the number of cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._expression.engine.count_table import CountTable
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]
PRECISION = 1e-17  # aimed-at error of the interpolant, relative to the function's size in its strip
MAX_NODES = 64
LOG_MEAN_LIMIT = 50.0  # of means at a start


@dataclass(frozen=True)
class Designs:
    """Location and scale designs ``(N, P)``, ``(N, R)`` with what every fit of a block needs from them.

    A weighted cross-product is one product of the weights with the columns' pairwise products, kept here; and least
    squares on ``x`` one with its pseudo-inverse.
    """

    x: Tensor
    z: Tensor

    @cached_property
    def products(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pairwise products of columns: x with x and z with z (upper triangles), x with z."""
        (i, j), (k, m) = (torch.triu_indices(d.shape[1], d.shape[1], device=d.device) for d in (self.x, self.z))
        cross = (self.x.unsqueeze(2) * self.z.unsqueeze(1)).flatten(1)
        return self.x[:, i] * self.x[:, j], cross, self.z[:, k] * self.z[:, m]

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """Pseudo-inverse of x, transposed: ``(N, P)``."""
        return torch.linalg.pinv(self.x).T.contiguous()

    def information(self, h_eta: Tensor, h_cross: Tensor, h_zeta: Tensor) -> Tensor:
        """Information ``[x z]' diag(·) [x z]`` for weights ``(G, N)`` of three blocks: ``(G, P + R, P + R)``."""
        xx, xz, zz = self.products
        p, r = self.x.shape[1], self.z.shape[1]
        h_a, h_b = symmetric(h_eta @ xx, p), symmetric(h_zeta.expand(-1, len(zz)) @ zz, r)
        cross = (h_cross @ xz).unflatten(1, (p, r))
        return torch.cat([torch.cat([h_a, cross], 2), torch.cat([cross.mT, h_b], 2)], 1)

    def gram(self, weight: Tensor) -> Tensor:
        """Weighted products of columns, ``x' diag(weight) x``, of each gene ``(G, P, P)``."""
        return symmetric(weight @ self.products[0], self.x.shape[1])


def symmetric(upper: Tensor, size: int) -> Tensor:
    """Symmetric matrices ``(G, size, size)`` from their upper triangles ``(G, size (size + 1) / 2)``."""
    i, j = torch.triu_indices(size, size, device=upper.device)
    place = torch.empty(size, size, dtype=torch.long, device=upper.device)
    place[i, j] = place[j, i] = torch.arange(len(i), device=upper.device)
    return upper[:, place]


@dataclass(frozen=True)
class Derivatives:
    """Log density ``(G,)``, gradient ``(G, D)`` and observed information ``(G, D, D)``, location first."""

    value: Tensor
    gradient: Tensor
    information: Tensor

    def __add__(self, other: Derivatives) -> Derivatives:
        return Derivatives(
            self.value + other.value, self.gradient + other.gradient, self.information + other.information
        )


@dataclass(frozen=True)
class SearchEnd:
    """What is to know of each gene where a search ended.

    Attributes
    ----------
    derivatives
        Of the log density.
    fisher
        Expected information of the location coefficients ``(G, P, P)``.
    poisson_bound
        What the log density at the Poisson boundary, one Newton step on, does not exceed ``(G,)``.
    """

    derivatives: Derivatives
    fisher: Tensor
    poisson_bound: Tensor

    def replace(self, genes: Tensor, other: SearchEnd) -> None:
        """Put those of ``other`` in the place of some genes'."""
        d, new = self.derivatives, other.derivatives
        d.value[genes], d.gradient[genes], d.information[genes] = new.value, new.gradient, new.information
        self.fisher[genes], self.poisson_bound[genes] = other.fisher, other.poisson_bound


@dataclass(frozen=True)
class Rows:
    """What the likelihood of a block of G genes is made of.

    Attributes
    ----------
    design : Designs
        Designs of location and scale.
    offset : Tensor (1, N) or (G, N)
        Added to ``x a``.
    zeta_offset : Tensor (N,)
        Added to ``z b``.
    total, weight : Tensor (G, N), (1 or G, N)
        Weighted sum of the counts of a row, and the sum of the weights.
    level_z, level_offset : Tensor (E, R), (E,)
        Distinct rows of the scale design, for ``table``.
    table : CountTable or None
        Counts a gene; None where the likelihood needs none.
    """

    design: Designs
    offset: Tensor
    zeta_offset: Tensor
    total: Tensor
    weight: Tensor
    level_z: Tensor
    level_offset: Tensor
    table: CountTable | None = None

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
        return self.total.shape[0]

    @property
    def common_scale(self) -> bool:
        """Whether every row has the same scale predictor."""
        return self.level_z.shape[0] == 1

    def select(self, genes: Tensor) -> Rows:
        """The rows of some of the genes."""
        return replace(
            self,
            offset=self.offset if self.offset.shape[0] == 1 else self.offset[genes],
            total=self.total[genes],
            weight=self.weight if self.weight.shape[0] == 1 else self.weight[genes],
            table=None if self.table is None else self.table.select(genes),
        )

    @property
    def without_counts(self) -> Tensor:
        """Which genes have no entry but zeros ``(G,)``."""
        return self.total.abs().sum(1) <= 0.0

    @property
    def sum_counts(self) -> Tensor:
        """Weighted total count of each gene ``(G,)``."""
        return self.total.sum(1)

    @property
    def exposure(self) -> Tensor:
        """Sum of the weighted size factors ``(1,)`` or ``(G,)``."""
        return (self.weight * self.offset.exp()).sum(1)

    def derivatives(self, likelihood: Likelihood, theta: Tensor) -> Derivatives:
        """Log density of each gene and its first two derivatives in ``theta`` ``(G, P + R)``."""
        p = self.x.shape[1]
        a, b = theta[:, :p], theta[:, p:]
        t = likelihood.terms(self.total, self.weight, self.eta(a), self.zeta(b))
        value = t.value.sum(-1)
        g_b = t.g_zeta.expand(-1, len(self.z)) @ self.z
        information = self.design.information(t.h_eta, t.h_cross, t.h_zeta)
        if self.table is not None:
            value = value + self.table.constant
            if likelihood.is_negative_binomial:
                levels, slope, curve = self.table.terms(self.zeta_levels(b))
                value = value + levels.sum(-1)
                g_b = g_b + slope @ self.level_z
                information[:, p:, p:] += weighted_gram(curve, self.level_z, self.level_z)
        return Derivatives(value, torch.cat([t.g_eta @ self.x, g_b], 1), information)

    def fisher(self, likelihood: Likelihood, theta: Tensor) -> Tensor:
        """Expected information of the location coefficients ``(G, P, P)``; observed where the likelihood gives none."""
        p = self.x.shape[1]
        eta, zeta = self.eta(theta[:, :p]), self.zeta(theta[:, p:])
        return self.design.gram(likelihood.location_information(self.total, self.weight, eta, zeta))

    def optimum(self, likelihood: Likelihood, theta: Tensor) -> SearchEnd:
        """What is to know of each gene at the end of a search."""
        d = self.derivatives(likelihood, theta)
        return SearchEnd(d, self.fisher(likelihood, theta), torch.full_like(d.value, torch.inf))

    def mean_total(self, a: Tensor) -> Tensor:
        """Weighted sum of the means that are exponentials of the predictor, ``(G,)``."""
        return (self.weight * self.eta(a).clamp_max(LOG_MEAN_LIMIT).exp()).sum(1)

    def mean_sums(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted sums of such means, of their squares, and of counts times means, each ``(G,)``."""
        mu = self.eta(a).clamp_max(LOG_MEAN_LIMIT).exp()
        weighted = self.weight * mu
        return weighted.sum(1), (weighted * mu).sum(1), (self.total * mu).sum(1)

    def log_rates(self) -> Tensor:
        """Least-squares coefficients of the rows' log rates on the location design ``(G, P)``."""
        size = self.weight * self.offset.exp()
        logs = torch.log((self.total + 0.1 * self.weight) / size.clamp_min(1e-300))
        return logs @ self.design.pseudo_inverse

    def eta(self, a: Tensor) -> Tensor:
        """Location predictor ``(G, N)`` at coefficients ``a`` ``(G, P)``."""
        return a @ self.x.T + self.offset

    def zeta(self, b: Tensor) -> Tensor:
        """Scale predictor, ``(G, N)``, or ``(G, 1)`` where it is common to all rows."""
        if self.common_scale:
            return self.zeta_levels(b)
        return b @ self.z.T + self.zeta_offset

    def zeta_levels(self, b: Tensor) -> Tensor:
        """Scale predictor of each level of the scale design ``(G, E)``."""
        return b @ self.level_z.T + self.level_offset


@dataclass(frozen=True)
class Compression:
    """How cells map to pseudo-cells: ``group`` (N,), first cell of each group, and each group's nodes and weights."""

    group: NDArray[np.intp]
    first: NDArray[np.intp]
    nodes: list[Array]
    weights: list[Array]  # (cells of the group, K)
    members: list[NDArray[np.intp]]

    @property
    def n_rows(self) -> int:
        """Number of pseudo-cells."""
        return sum(len(u) for u in self.nodes)

    @property
    def starts(self) -> NDArray[np.intp]:
        """First pseudo-cell of each group."""
        return np.concatenate([[0], np.cumsum([len(u) for u in self.nodes])]).astype(np.intp)

    def expand(self, per_cell: Array) -> Array:
        """A per-cell array that is constant within groups, for the pseudo-cells."""
        return np.repeat(per_cell[self.first], [len(u) for u in self.nodes], axis=0)


def chebyshev_weights(offset: Array) -> tuple[Array, Array]:
    """Nodes ``(K,)`` on the range of ``offset`` and the interpolation weights ``(n, K)`` of each offset."""
    low, high = float(offset.min()), float(offset.max())
    center, half = (low + high) / 2, (high - low) / 2
    if half < 1e-12:
        return np.array([center]), np.ones((len(offset), 1))
    rho = math.pi / half + math.hypot(math.pi / half, 1.0)
    k = min(max(math.ceil(-math.log(PRECISION) / math.log(rho)) + 1, 4), MAX_NODES)
    angle = (np.arange(k) + 0.5) * math.pi / k
    nodes = center + half * np.cos(angle)
    # L_k(o) = (1/K) [1 + 2 Σ_m T_m(x_k) T_m(x)], stable for every K
    x = np.arccos(np.clip((offset - center) / half, -1.0, 1.0))
    m = np.arange(1, k)
    weights = (1 + 2 * np.cos(np.outer(x, m)) @ np.cos(np.outer(m, angle))) / k
    return nodes, weights


def distinct_rows(*designs: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index of each row's group of equal rows ``(N,)``, and the first row of each group."""
    stacked = np.ascontiguousarray(np.column_stack(designs) + 0.0)  # −0 becomes 0
    keys = stacked.view(np.dtype((np.void, stacked.dtype.itemsize * stacked.shape[1]))).ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return group.astype(np.intp), first.astype(np.intp)


def compress(offset: Array, *designs: Array) -> Compression | None:
    """Pseudo-cells for cells with these offsets ``(N,)`` and designs; None where there would be more than N/2."""
    n = len(offset)
    group, first = distinct_rows(*designs)
    if 2 * len(first) > n:
        return None
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group))[:-1])
    nodes, weights = zip(*(chebyshev_weights(offset[m]) for m in members), strict=True)
    spread = max(float(np.ptp(offset[m])) for m in members) / 2
    plan = Compression(group, first, list(nodes), list(weights), members)
    too_wide = max(len(u) for u in nodes) == MAX_NODES and spread > math.pi
    return None if too_wide or 2 * plan.n_rows > n else plan


def as_tensor(array: Array, device: torch.device | str) -> Tensor:
    """A contiguous float64 tensor on ``device``, which autograd can use whatever mode it is made in."""
    with torch.inference_mode(False):
        return torch.as_tensor(np.require(array, np.float64, ["C", "W"]), device=device)


def weighted_gram(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Weighted products ``left' diag(weight) right`` of each gene ``(G, P, R)``, by the columns' pairwise products."""
    pairs = (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)
    return (weight.expand(-1, len(pairs)) @ pairs).unflatten(1, (left.shape[1], right.shape[1]))
