r"""Null law of the pairwise quadratic form of standardised residuals: their permutations over the covered spots.

With :math:`u_i = e_i / \sqrt{a_i}` the residuals of the spots that have counts, S = diag(√a), L = S X (X'AX)^{-1/2}
(orthonormal columns) and Q = I − LL',

.. math:: T = \operatorname{tr}(u' M u), \quad M = Q\,(S K S - \Lambda)\,Q, \quad
          \Lambda_i = \frac{(Q S K S Q)_{ii}}{1 - \lVert L_i \rVert^2}

so that tr M = 0. Under the null the u are exchangeable up to what differs between spots: T is compared with its
permutations, of which the mean, the variance and the third cumulant are exact whatever the number of spots, the
totals and the number of isoforms, and a gamma (Pearson type III) tail through these three gives p. Up to ``ENUMERATED``
covered spots all permutations are looked at instead. Covariates take up degrees of freedom a second time when residuals
are permuted (Q takes their part out): u is scaled by :math:`\sqrt{(m - 1)/(m - P)}`.

Counts of few molecules at unequal sizes have residuals of one variance, but not of one law: where :math:`\mu_i` is
small u is rare and large, :math:`\mu_i^{-1/2}`, and carries little of T. Mean powers of u over all spots then say more
of these spots than of those that make T (12 counts in 256 spots, sizes log-normal of sd 1.5: 10 % rejected at 5 %).
With ``alike=False`` spots, and pairs and triples of different ones, count by what they carry:
:math:`\sum_{i \ne j} e_i^2 e_j^2 / \sum_{i \ne j} a_i a_j` in the place of the mean of :math:`u_i^2 u_j^2`, and so on.
That is the same where all a are equal, and 4 to 5 % there (tests/studies/sv_expression.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np
import torch
from scipy import special
from torch import Tensor

from pyrosplice._hypothesis.variance.exact_moments import GraphSums, permutation_cumulants
from pyrosplice._hypothesis.variance.spatial_kernel import DenseKernel, PairSums, SparseKernel, SpatialKernel

EXACT = 500
"""Covered spots up to which the kernel between them is worked on entry by entry."""
ENUMERATED = 7
"""Covered spots up to which p is the share of all their permutations."""
_CENTERED = 20_000  # covered spots above which centring moves the variance by .2 % or less (p by 1 % at p = .001)
_HEAVY = 20  # spots of the largest totals beside the kernel's leading eigenvectors
_BLOCK = 2**19  # entries of the kernels of the genes that are worked on at once
_TINY = float(np.finfo(np.float64).tiny)
_NORMAL = 1e-4  # a skewness that a gamma law needs not less than


@dataclass(frozen=True)
class Residuals:
    """Residuals of the null model, for B genes.

    Attributes
    ----------
    vectors
        u, ``(B, N, K)``; 0 where a spot has no counts.
    scale
        √a, ``(B, N)``; 0 there.
    loading
        L, ``(B, N, P)``, with orthonormal columns; zero ones for covariates that the gene's spots do not tell apart.
    alike
        Whether u has one law in all covered spots; else one variance only, and K = 1.
    """

    vectors: Tensor
    scale: Tensor
    loading: Tensor
    alike: bool = True

    @cached_property
    def n_covered(self) -> Tensor:
        """Number m of spots with counts, ``(B,)``."""
        return (self.scale > 0).sum(-1)

    @property
    def n_free(self) -> Tensor:
        """Degrees of freedom left by the covariates, m − P, ``(B,)``."""
        told_apart = (self.loading != 0).any(-2)  # of covariates; the others cost nothing
        return self.n_covered - told_apart.sum(-1)

    @cached_property
    def leverage(self) -> Tensor:
        """Squared norm of the rows of L, ``(B, N)``."""
        return self.loading.square().sum(-1)

    def take(self, genes: Tensor) -> Residuals:
        """Some of the genes."""
        return Residuals(self.vectors[genes], self.scale[genes], self.loading[genes], self.alike)

    def graph_sums(self) -> GraphSums:
        """What the law needs of the residuals, exchangeable as they are or as far as they carry T."""
        if self.alike:
            return GraphSums.of_vectors(self.permuted_vectors())
        return self._weighted_sums()

    def _weighted_sums(self) -> GraphSums:
        size, count = self.scale.square(), self.n_covered.to(self.scale)
        free = (size * (1 - self.leverage)).sum(-1).clamp_min(_TINY)  # what the covariates leave of Σ a
        level = ((1 - 1 / count) * size.sum(-1) / free).sqrt().unsqueeze(-1)
        residual = level * self.scale * self.vectors.squeeze(-1)
        found, expected = (_distinct_products(x) for x in (residual, self.scale))
        second, third, *products = (x / y.clamp_min(_TINY) for x, y in zip(found, expected, strict=True))
        return GraphSums.of_products(count, (count * second, count * third), products)

    def permuted_vectors(self) -> Tensor:
        """What is permuted: u centred over the covered spots, of the same total square, scaled for covariates."""
        covered = (self.scale > 0).to(self.scale).unsqueeze(-1)
        count = covered.sum(1, keepdim=True)
        centered = self.vectors - covered * (self.vectors.sum(1, keepdim=True) / count)
        before, after = self.vectors.square().sum((1, 2)), centered.square().sum((1, 2))
        freedom = (self.n_covered - 1) / self.n_free.clamp_min(1)
        factor = torch.where(after > 0, before / after, 0.0) * freedom
        return centered * factor.sqrt()[:, None, None]


def permutation_law(residuals: Residuals, kernel: SpatialKernel) -> tuple[Tensor, Tensor]:
    """Standardised statistic and p-value, ``(B,)`` each, by the law that the number of covered spots asks for."""
    small = residuals.n_covered <= EXACT
    statistic, pvalue = (torch.empty_like(residuals.scale[:, 0]) for _ in range(2))
    for genes, law in ((torch.nonzero(small).squeeze(-1), exact_law), (torch.nonzero(~small).squeeze(-1), product_law)):
        if len(genes):
            some = residuals if len(genes) == len(small) else residuals.take(genes)
            statistic[genes], pvalue[genes] = law(some, kernel)
    return statistic, pvalue


def exact_law(residuals: Residuals, kernel: SpatialKernel) -> tuple[Tensor, Tensor]:
    """Standardised statistic and p-value, ``(B,)`` each, from the kernel between a gene's covered spots."""
    n_covered = residuals.n_covered
    order = torch.argsort(n_covered, stable=True)
    statistic, shares, sums, first = torch.empty_like(residuals.scale[:, 0]), {}, [], 0
    while first < len(order):  # genes of similar coverage together, so that little is padded
        size = max(1, _BLOCK // max(int(n_covered[order[first]]), 1) ** 2)
        genes = order[first : first + size]
        genes = genes[: max(1, _BLOCK // max(int(n_covered[genes[-1]]), 1) ** 2)]
        some, matrix = _covered_only(residuals.take(genes), kernel)
        statistic[genes], centered = _centered_form(matrix, some)
        for i in torch.nonzero((some.n_covered <= ENUMERATED) & (some.n_free >= 2)).flatten().tolist():
            m = int(some.n_covered[i])
            shares[int(genes[i])] = _share_of_permutations(centered[i, :m, :m], some.permuted_vectors()[i, :m])
        sums.append(GraphSums.of_matrix(centered))
        first += len(genes)
    ordered, value = residuals.take(order), statistic[order]
    found = _gamma_tail(value, GraphSums.cat(sums), ordered.graph_sums(), ordered)
    standardized, pvalue = (torch.empty_like(x).index_copy_(0, order, x) for x in found)
    for gene, share in shares.items():
        pvalue[gene] = share
    return standardized, pvalue


def _covered_only(residuals: Residuals, kernel: SpatialKernel) -> tuple[Residuals, Tensor]:
    """The genes at their covered spots, padded to the most covered, and K between these ``(B, m, m)``."""
    width = max(int(residuals.n_covered.max()), 1)
    if isinstance(kernel, DenseKernel) and int(residuals.n_covered.min()) == kernel.n_spots:
        return residuals, kernel.matrix.expand(len(residuals.scale), -1, -1).clone()
    spots = torch.argsort((residuals.scale == 0).to(torch.int8), dim=1, stable=True)[:, :width]
    some = replace(
        residuals,
        vectors=torch.take_along_dim(residuals.vectors, spots.unsqueeze(-1), 1),
        scale=torch.take_along_dim(residuals.scale, spots, 1),
        loading=torch.take_along_dim(residuals.loading, spots.unsqueeze(-1), 1),
    )
    return some, kernel.between(spots, some.scale > 0)


def _centered_form(matrix: Tensor, residuals: Residuals) -> tuple[Tensor, Tensor]:
    """T ``(B,)`` and HMH ``(B, m, m)``, H the centring of covered spots; ``matrix`` (K between them) is overwritten."""
    scale, loading, vectors = residuals.scale, residuals.loading, residuals.vectors
    matrix.mul_(scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2))
    image = matrix @ loading
    inner = loading.mT @ image
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    projected = diagonal - 2 * (loading * image).sum(-1) + ((loading @ inner) * loading).sum(-1)
    removed = projected / (1 - residuals.leverage).clamp_min(1e-8)
    diagonal -= removed
    statistic = (vectors * (matrix @ vectors)).sum((-2, -1))

    image = image - removed.unsqueeze(-1) * loading
    inner = inner - loading.mT @ (removed.unsqueeze(-1) * loading)
    half = image - loading @ inner / 2  # Q M Q = M − L half' − half L'
    covered = (scale > 0).to(scale)
    count = covered.sum(-1)
    sums = (
        (matrix @ covered.unsqueeze(-1)).squeeze(-1)
        - (loading @ (half.mT @ covered.unsqueeze(-1))).squeeze(-1)
        - (half @ (loading.mT @ covered.unsqueeze(-1))).squeeze(-1)
    )
    mean = (sums * covered).sum(-1) / count
    level = (sums - covered * (mean / 2).unsqueeze(-1)) / count.unsqueeze(-1)
    left = torch.cat([loading, covered.unsqueeze(-1)], -1)
    right = torch.cat([half, level.unsqueeze(-1)], -1)
    matrix.baddbmm_(left, right.mT, alpha=-1).baddbmm_(right, left.mT, alpha=-1)
    return statistic, matrix


def product_law(residuals: Residuals, kernel: SpatialKernel) -> tuple[Tensor, Tensor]:
    """Law of the statistic as :func:`exact_law` has it, from products with the kernel: N × K numbers at a time.

    Mean and variance are exact up to what ``kernel.pair_sums`` is; terms of the third cumulant that are smaller
    than the leading ones by the number of spots are taken at their leading order.
    """
    data = residuals.graph_sums()  # first: what it needs is free again before the rest
    form = _ProjectedForm.of(residuals, kernel)
    vectors, scale, covered = residuals.vectors, residuals.scale, form.covered
    planes = (scale.unsqueeze(-1) * vectors).movedim(-1, 0)
    statistic = kernel.quadratic(planes).sum(0) - (form.removed.unsqueeze(-1) * vectors.square()).sum((1, 2))

    dense = isinstance(kernel, DenseKernel)
    count = covered.sum(-1, keepdim=True)
    negligible = not dense and int(count.min()) > _CENTERED
    sums = torch.zeros_like(covered) if negligible else covered * form.product(covered)
    total = sums.sum(-1, keepdim=True)
    diagonal = covered * (form.diagonal - 2 * sums / count + total / count.square())
    moved = diagonal - covered * diagonal.sum(-1, keepdim=True) / count
    pairs = kernel.pair_sums(scale.square())
    square = form.square(pairs.rows.sum(-1)) - 2 * sums.square().sum(-1) / count.squeeze(-1)
    square = square + (total / count).square().squeeze(-1)
    triangle = _trace_of_cube_by_subspace(form, square) if dense else _trace_of_cube_by_means(form, pairs)
    cubes = (diagonal**3).sum(-1)
    sums_of_kernel = GraphSums(
        trace=diagonal.sum(-1),
        diagonal2=diagonal.square().sum(-1),
        diagonal3=cubes,
        square=square,
        cube=pairs.cubes + cubes,
        barbell=(moved * form.product(moved)).sum(-1) if dense else cubes,
        loop_double=(diagonal * (pairs.rows + diagonal.square())).sum(-1),
        triangle=triangle,
    )
    return _gamma_tail(statistic, sums_of_kernel, data, residuals)


@dataclass(frozen=True)
class _ProjectedForm:
    """M as products: ``image`` S K S L, ``inner`` L'SKSL, ``projected`` the diagonal of Q S K S Q, ``removed`` Λ."""

    residuals: Residuals
    kernel: SpatialKernel
    image: Tensor
    inner: Tensor
    projected: Tensor
    removed: Tensor

    @classmethod
    def of(cls, residuals: Residuals, kernel: SpatialKernel) -> _ProjectedForm:
        scale, loading = residuals.scale, residuals.loading
        image = (scale.unsqueeze(-2) * kernel.product((scale.unsqueeze(-1) * loading).mT)).mT
        inner = loading.mT @ image
        projected = scale.square() * kernel.diagonal
        projected = projected - 2 * (loading * image).sum(-1) + ((loading @ inner) * loading).sum(-1)
        removed = projected / (1 - residuals.leverage).clamp_min(1e-8)
        return cls(residuals, kernel, image, inner, projected, removed)

    @cached_property
    def covered(self) -> Tensor:
        """1 where a spot has counts, ``(B, N)``."""
        return (self.residuals.scale > 0).to(self.removed)

    @cached_property
    def _removed_diagonal(self) -> Tensor:
        """Diagonal of ``Q Λ Q``."""
        loading = self.residuals.loading
        core = loading.mT @ (self.removed.unsqueeze(-1) * loading)
        return self.removed * (1 - 2 * self.residuals.leverage) + ((loading @ core) * loading).sum(-1)

    @property
    def diagonal(self) -> Tensor:
        """Diagonal of M, ``(B, N)``."""
        return self.projected - self._removed_diagonal

    def square(self, pairs: Tensor) -> Tensor:
        """Trace ``tr M²`` from ``Σ_{i≠j} a_i a_j K_ij²``."""
        whole = pairs + (self.residuals.scale.square() * self.kernel.diagonal).square().sum(-1)
        whole = whole - 2 * self.image.square().sum((-2, -1)) + self.inner.square().sum((-2, -1))
        return whole - 2 * (self.projected * self.removed).sum(-1) + (self.removed * self._removed_diagonal).sum(-1)

    def product(self, x: Tensor) -> Tensor:
        """Product ``M x``, ``(B, N)``."""
        loading, scale = self.residuals.loading, self.residuals.scale
        x = x - (loading @ (loading.mT @ x.unsqueeze(-1))).squeeze(-1)
        x = scale * self.kernel.product(scale * x) - self.removed * x
        return x - (loading @ (loading.mT @ x.unsqueeze(-1))).squeeze(-1)

    def take(self, genes: Tensor) -> _ProjectedForm:
        """Some of the genes."""
        parts = (x[genes] for x in (self.image, self.inner, self.projected, self.removed))
        return _ProjectedForm(self.residuals.take(genes), self.kernel, *parts)


def _trace_of_cube_by_means(form: _ProjectedForm, pairs: PairSums) -> Tensor:
    """Trace ``tr M³`` of many spots: the kernel's without its diagonal, times local means of ``a_i a_j a_k``.

    Right where a varies over larger distances than K, or at random. Against the law by entries (grids and random
    places, 2,500 to 4,900 spots, totals log-normal of sd 0 to 1.5) p at three standard deviations is within 12 %.
    """
    assert isinstance(form.kernel, SparseKernel) and pairs.triples is not None
    return form.kernel.pair_trace_cube * pairs.triples / form.kernel.n_spots


def _trace_of_cube_by_subspace(form: _ProjectedForm, square: Tensor) -> Tensor:
    """Trace ``tr (HMH)³`` from leading eigenvalues, by Rayleigh–Ritz on eigenvectors and the heaviest spots.

    Against all eigenvalues, grids of 576 to 1,600 spots, coverage 30 to 100 %, totals log-normal of sd 0 to 1.5: within
    5 % up to 1,024 spots, 12 % beyond.
    """
    n_genes, n_spots = form.removed.shape
    size = max(1, _BLOCK // (n_spots * (form.kernel.vectors.shape[1] + _HEAVY)))
    power_sums = [_power_sums_of_subspace(form.take(genes)) for genes in torch.arange(n_genes).split(size)]
    known = min(form.kernel.vectors.shape[1] + _HEAVY, n_spots)
    return _with_the_rest(form, known, torch.cat(power_sums, -1).to(square), square)


def _power_sums_of_subspace(form: _ProjectedForm) -> Tensor:
    """Sums of the first three powers of the Ritz values, ``(3, B)``; in single precision."""
    kernel = form.kernel
    assert isinstance(kernel, DenseKernel)
    scale, loading, removed, covered, image_of_loading = (
        x.to(torch.float32)
        for x in (form.residuals.scale, form.residuals.loading, form.removed, form.covered, form.image)
    )
    matrix, leading = kernel.single
    heaviest = scale.topk(min(_HEAVY, scale.shape[1]), dim=-1).indices
    smooth = (scale.scatter(1, heaviest, 0.0)).unsqueeze(-1) * leading  # beside the heaviest spots' own columns
    basis = torch.cat([smooth, torch.nn.functional.one_hot(heaviest, scale.shape[1]).to(scale).mT], -1)  # V
    heavy = torch.take_along_dim(scale, heaviest, 1).unsqueeze(-1) * matrix[heaviest]
    rows = torch.cat([(scale.unsqueeze(-1) * smooth).mT @ matrix, heavy], 1)
    image = (scale.unsqueeze(-2) * rows).mT - removed.unsqueeze(-1) * basis  # (SKS − Λ) V
    level = covered.unsqueeze(-2) @ basis / covered.sum(-1)[:, None, None]
    inside = basis - covered.unsqueeze(-1) * level  # H V
    share = loading.mT @ inside
    of_ones = scale * ((scale * covered) @ matrix) - removed * covered
    image = image - of_ones.unsqueeze(-1) * level - (image_of_loading - removed.unsqueeze(-1) * loading) @ share
    ritz = ((inside - loading @ share).mT @ image).to(torch.float64)  # V'HMHV
    gram = (inside.mT @ inside).to(torch.float64)
    size = gram.diagonal(dim1=-2, dim2=-1).clamp_min(_TINY).rsqrt()
    gram, ritz = (x * size.unsqueeze(-1) * size.unsqueeze(-2) for x in (gram, ritz))
    gram = gram + 1e-6 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    found = torch.cholesky_solve(ritz, torch.linalg.cholesky_ex(gram).L)
    twice = found @ found
    traces = [x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (found, twice)]
    return torch.stack([*traces, (twice * found.mT).sum((-2, -1))])


def _with_the_rest(form: _ProjectedForm, known: int, sums: Tensor, square: Tensor) -> Tensor:
    """Sum of cubes of eigenvalues from power sums of those known, the trace (0) and the trace of squares of all."""
    left = (form.residuals.n_free - known).clamp_min(1).to(square)
    mean = -sums[0] / left
    variance = ((square - sums[1]) / left - mean.square()).clamp_min(0.0)
    return sums[2] + left * (mean**3 + 3 * mean * variance + form.kernel.skewness * variance**1.5)


def _gamma_tail(statistic: Tensor, kernel: GraphSums, data: GraphSums, residuals: Residuals) -> tuple[Tensor, Tensor]:
    """T standardised by its permutations, and P(T > t) of the gamma law with their skewness."""
    mean, variance, third = permutation_cumulants(kernel, data, residuals.n_covered.to(statistic))
    testable = (residuals.n_free >= 2) & (variance > 1e-12 * kernel.square * data.square) & torch.isfinite(statistic)
    spread = torch.where(testable, variance, 1.0).sqrt()
    standardized = (statistic - mean) / spread
    pvalue = gamma_sf(standardized, third / spread**3)
    return torch.where(testable, standardized, torch.nan), torch.where(testable, pvalue, torch.nan)


def gamma_sf(z: Tensor, skewness: Tensor) -> Tensor:
    """Upper tail of the gamma law with mean 0, variance 1 and this skewness, of either sign."""
    bounded = torch.where(skewness.abs() < _NORMAL, _NORMAL, skewness).cpu().numpy()
    shape = 4 / bounded**2
    x = np.clip(shape + z.cpu().numpy() * np.sqrt(shape) * np.sign(bounded), 0, None)
    tail = np.where(bounded > 0, special.gammaincc(shape, x), special.gammainc(shape, x))
    return torch.from_numpy(tail).to(z).clamp_min(_TINY)


def _distinct_products(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums of x² and x³, and over different units of ``x_i² x_j²``, ``x_i³ x_j³``, ``x_i² x_j² x_k²``: ``(..., n)``."""
    second, third, fourth, sixth = ((x**k).sum(-1) for k in (2, 3, 4, 6))
    triples = second**3 - 3 * second * fourth + 2 * sixth
    return second, third, second.square() - fourth, third.square() - sixth, triples


def _share_of_permutations(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Share of all permutations whose T is not less than that observed."""
    orders = torch.tensor(list(permutations(range(len(vectors)))), device=vectors.device)
    moved = vectors[orders]  # (m!, m, K)
    values = (moved * (matrix @ moved)).sum((-2, -1))
    return (values >= values[0] - 1e-9 * values.abs().amax()).to(vectors).mean()
