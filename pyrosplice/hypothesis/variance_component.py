r"""Score test of spatial variability: is there a spatial variance component beside an independent one?

Null model of a gene: usage :math:`p_i` from a multinomial-logit in the covariates (intercept included), with or
without over-dispersion that is independent between spots. With residuals :math:`r_i = y_i - n_i p_i`,

.. math::

   e_i = w_i r_i, \quad w_i = \frac{1}{1 + (n_i - 1)\varrho}, \qquad
   T = \sum_{i \ne j} K_{ij}\, e_i' e_j .

- *Weights.* ϱ is the intra-spot correlation of molecules (0 for pure multinomial counts), estimated by moments:
  :math:`\operatorname{cov}(r_i) = n_i (1 + (n_i - 1)\varrho) C`, so that :math:`\operatorname{cov}(e_i) = a_i C` with
  :math:`a_i = n_i w_i`: what a deep spot adds to is bounded when its molecules are not independent.
- *Only pairs of different spots.* Under the null T has mean zero whatever the dispersion, and its variance holds no
  fourth moments, which over-dispersion and rare isoforms make large. This is the score for θ with σ free, since the
  diagonal of K belongs to the independent component.
- *Nuisance.* The covariates' effects are projected out of e (:math:`e - A X (X'AX)^{-1} X' e`,
  :math:`A_i = \operatorname{cov}(e_i)`), so that their estimation does not enter to first order.
- *Null distribution.* :math:`T \sim \sum_{jk} \mu_k \lambda_j \chi^2_1` with μ the eigenvalues of C, estimated from
  the residuals, and λ those of :math:`A^{1/2} P'KP A^{1/2}` without its diagonal. Each gene has its own λ, as each has
  its own totals, which may themselves be spatial: the leading ones from the kernel's leading eigenvectors, the others
  by matching the exact trace, the exact trace of squares, and the skewness that rare isoforms add. That C is an
  estimate is allowed for by
  :math:`P(T > t) \approx P(\sum_{jk} \mu_k (\lambda_j - t \mu_k / (n \sum \mu^2)) \chi^2_1 > 0)`, which is exact for
  normal residuals with equal variances.

Summing over isoforms makes T the same whichever isoform is the reference. A spot without counts has a = 0 and e = 0:
it adds nothing anywhere. Sources: Lin (1997) Biometrika 84:309, "Variance component testing in generalised linear
models with random effects", for the score; the pairwise form, the weights and the null law are derived above.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.chi2_mixture import chi2_mixture_sf
from pyrosplice.hypothesis.spatial_kernel import SpatialKernel
from pyrosplice.inference.glm import GLMObjective
from pyrosplice.inference.newton import newton
from pyrosplice.models.likelihoods import Multinomial

_BLOCK = 2**21
"""Numbers of a block of genes that is worked on at once (16 MB a copy)."""
_MAX_OVERDISPERSION = 0.99


@dataclass(frozen=True)
class VarianceComponentTest:
    """Result, one entry a gene.

    Attributes
    ----------
    statistic
        T over its standard deviation under the null, ``(B,)``.
    pvalue
        Upper tail, ``(B,)``; NaN for a gene that has nothing to test (no counts, one isoform seen, too few spots).
    overdispersion
        The estimate of ϱ, ``(B,)``.
    """

    statistic: Tensor
    pvalue: Tensor
    overdispersion: Tensor


def variance_component_test(
    counts: Tensor, kernel: SpatialKernel, *, design: Tensor | None = None
) -> VarianceComponentTest:
    """Test every gene for a spatial variance component.

    Parameters
    ----------
    counts
        ``(B, N, K)``, whole numbers ≥ 0.
    kernel
        Of the N spots, from :func:`~pyrosplice.hypothesis.spatial_kernel.spatial_kernel`.
    design
        Covariates ``(N, P)`` to adjust for; an intercept is always added. Collinear columns do no harm.
    """
    if counts.ndim != 3 or counts.shape[1] != kernel.n_spots:
        raise InvalidArgumentError(
            f"counts: expected shape (genes, {kernel.n_spots} spots, isoforms), found {tuple(counts.shape)}."
        )
    if design is not None and (design.ndim != 2 or len(design) != kernel.n_spots):
        raise InvalidArgumentError(
            f"design: expected shape ({kernel.n_spots} spots, covariates), found {tuple(design.shape)}."
        )
    basis = orthonormal_columns(design, kernel.diagonal)
    per_spot = counts.shape[2] if design is None else max(counts.shape[2] ** 2, basis.shape[1])
    size = max(1, _BLOCK // (counts.shape[1] * per_spot))
    blocks = [_test_block(block.to(torch.float64), kernel, basis) for block in counts.split(size)]
    return VarianceComponentTest(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def orthonormal_columns(design: Tensor | None, like: Tensor) -> Tensor:
    """Orthonormal basis of the span of the intercept and the covariates, the constant first: ``(N, P')``.

    Whatever the order of the spots: the third moments of the others are positive.
    """
    constant = torch.full_like(like, len(like) ** -0.5).unsqueeze(-1)
    if design is None:
        return constant
    centred = design.to(constant) - design.to(constant).mean(0)
    scale = centred.norm(dim=0)
    centred = centred[:, scale > 1e-10 * design.abs().amax(0)]
    left, values, _ = torch.linalg.svd(centred / centred.norm(dim=0), full_matrices=False)
    left = left[:, values > 1e-8]
    return torch.cat([constant, torch.where(left.pow(3).sum(0) < 0, -left, left)], 1)


def _test_block(counts: Tensor, kernel: SpatialKernel, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    totals = counts.sum(-1)
    usage = _null_usage(counts, basis)
    residual = counts - totals.unsqueeze(-1) * usage
    overdispersion = _overdispersion(residual, totals, usage)
    weight = 1 / (1 + (totals - 1).clamp_min(0.0) * overdispersion.unsqueeze(-1))
    size = weight * totals  # a, (B, N)
    root = _inverse_root_gram(size, basis)
    leverage = size * (basis @ root).square().sum(-1)
    residual = _project(weight.unsqueeze(-1) * residual, size, usage, basis, root)

    planes = residual.movedim(-1, 0)  # (K, B, N)
    norm = residual.square().sum(-1) / (1 - leverage).clamp_min(1e-8)
    diagonal, squares = _pair_moments(kernel, size, basis, root)
    product = (planes * kernel.product(planes)).sum((0, -1)) - (diagonal * norm).sum(-1)
    scatter = planes.permute(1, 0, 2) @ planes.permute(1, 2, 0)
    scatter = scatter / (size * (1 - leverage)).sum(-1)[:, None, None]
    components = torch.linalg.eigvalsh(torch.nan_to_num(scatter))[:, 1:].clamp_min(0.0)

    n_free = (totals > 0).sum(-1) - (root != 0).any(-2).sum(-1)  # what a gene's spots do not tell apart costs nothing
    cubes = _skewness_of_counts(kernel, size, weight, overdispersion, usage, components)
    lam, dof = _spectrum(kernel, size, basis, root, diagonal, squares, cubes, n_free)
    if basis.shape[1] > 1:
        inflation = _variance_ratio(kernel, size, usage)
        lam, squares = lam * inflation.sqrt().unsqueeze(-1), squares * inflation
    pvalue = _tail(product, components, lam, dof)
    spread = (2 * squares * components.square().sum(-1)).sqrt()
    return product / spread, pvalue, overdispersion


def _null_usage(counts: Tensor, basis: Tensor) -> Tensor:
    """Fitted usage ``(B, N or 1, K)``: pooled without covariates, else the multinomial-logit fit."""
    if basis.shape[1] == 1:
        return counts.sum(1, keepdim=True) / counts.sum((1, 2))[:, None, None]
    objective = GLMObjective.of(counts, basis[:, 1:], Multinomial())
    beta, bias = objective.coefficients(newton(objective, objective.start()).point)
    return Multinomial().mean(basis[:, 1:] @ beta + bias.unsqueeze(-2))


def _overdispersion(residual: Tensor, totals: Tensor, usage: Tensor) -> Tensor:
    """ϱ by moments: pairs of molecules of a spot agree more often than their usage says. ``(B,)``"""
    disagreement = 1 - usage.square().sum(-1)  # trace of one molecule's covariance
    excess = (residual.square().sum(-1) - totals * disagreement).sum(-1)
    pairs = (totals * (totals - 1) * disagreement).sum(-1)
    return torch.where(pairs > 0, excess / pairs, 0.0).clamp(0.0, _MAX_OVERDISPERSION)


def _inverse_root_gram(size: Tensor, basis: Tensor) -> Tensor:
    """R ``(B, P, P)`` with ``R R' = (X'AX)⁻¹``, A = diag(a); flat directions are left out."""
    gram = torch.einsum("bn,np,nq->bpq", size, basis, basis)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(gram))
    inverse = torch.where(values > 1e-10 * values[..., -1:], values, torch.inf).rsqrt()
    return vectors * inverse.unsqueeze(-2)


def _project(residual: Tensor, size: Tensor, usage: Tensor, basis: Tensor, root: Tensor) -> Tensor:
    """Residuals with the covariates' effects removed, ``e − A X (X'AX)⁻¹ X'e``."""
    score = basis.T @ residual  # (B, P, K)
    if basis.shape[1] == 1:  # cov(e_i) is a multiple of one matrix, which cancels
        return residual - size.unsqueeze(-1) * (basis @ (root @ (root.mT @ score)))
    n_isos = usage.shape[-1]
    each = torch.diag_embed(usage) - usage.unsqueeze(-1) * usage.unsqueeze(-2)
    each = size[..., None, None] * each  # (B, N, K, K), rows sum to zero
    gram = torch.einsum("np,bnkl,nq->bpkql", basis, each, basis).flatten(3, 4).flatten(1, 2)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(gram))
    inverse = torch.where(values > 1e-10 * values[..., -1:], values, torch.inf).reciprocal()
    step = vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ score.flatten(1).unsqueeze(-1)))
    shift = basis @ step.reshape(len(step), basis.shape[1], n_isos)
    return residual - (each @ shift.unsqueeze(-1)).squeeze(-1)


def _pair_moments(kernel: SpatialKernel, size: Tensor, basis: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    r"""Diagonal of the projected kernel ``P'KP``, ``(B, N)``, and ``Σ_{i≠j} a_i a_j (P'KP)_ij²``, ``(B,)``.

    With :math:`F = X R`, :math:`P'KP = K - F (AF)'K - K (AF) F' + F (AF)'K(AF) F'` and
    :math:`\operatorname{tr}(KPAP'KPAP') = a'(K∘K)a - 2 \operatorname{tr} F'AKAKAF + \|F'AKAF\|^2`.
    """
    factor = (basis @ root).mT  # (B, P, N)
    weighted = size.unsqueeze(-2) * factor
    image = kernel.product(weighted)
    inner = image @ weighted.mT
    diagonal = kernel.diagonal - 2 * (factor * image).sum(-2) + (factor * (inner @ factor)).sum(-2)
    whole = (size * kernel.pair_product(size, 2)).sum(-1) + (size * kernel.diagonal).square().sum(-1)
    whole = whole - 2 * (size.unsqueeze(-2) * image.square()).sum((-2, -1)) + inner.square().sum((-2, -1))
    return diagonal, whole - (size * diagonal).square().sum(-1)


def _skewness_of_counts(
    kernel: SpatialKernel, size: Tensor, weight: Tensor, overdispersion: Tensor, usage: Tensor, components: Tensor
) -> Tensor:
    r"""What the skewness of counts adds to ``Σ λ³``: ``(B,)``.

    Normal residuals give T the third cumulant :math:`8 \sum \mu^3 \lambda^3`; skewed ones add
    :math:`4 \sum_{i \ne j} K_{ij}^3 \langle S_i, S_j \rangle` with :math:`S_i = E\,e_i \otimes e_i \otimes e_i`. It
    matters for rare isoforms. :math:`S_i` is taken as that of a Dirichlet-multinomial spot with the mean usage.
    """
    rho = overdispersion.unsqueeze(-1)
    totals = size / weight
    skew = size * weight * (1 + (2 * totals - 1).clamp_min(0.0) * rho) / (1 + rho)
    mean = (usage * totals.unsqueeze(-1)).sum(-2) / totals.sum(-1, keepdim=True)
    inner = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device) - mean.unsqueeze(-1) - mean.unsqueeze(-2)
    inner = inner + mean.square().sum(-1)[:, None, None]
    molecule = (mean.unsqueeze(-1) * mean.unsqueeze(-2) * inner**3).sum((-2, -1))
    excess = molecule * (skew * kernel.pair_product(skew, 3)).sum(-1)
    return excess / (2 * (components**3).sum(-1))


def _spectrum(
    kernel: SpatialKernel,
    size: Tensor,
    basis: Tensor,
    root: Tensor,
    diagonal: Tensor,
    squares: Tensor,
    cubes: Tensor,
    n_free: Tensor,
) -> tuple[Tensor, Tensor]:
    """Eigenvalues λ ``(B, r + 2)`` of the null law and how often each counts, ``(B, r + 2)``.

    The leading r are those of ``Λ^½ U'(A − AX(X'AX)⁻¹X'A)UΛ^½`` less the removed diagonal; two more with real
    multiplicities stand for all others (Gauss quadrature with their count, trace, trace of squares and skewness).
    """
    scaled = kernel.vectors * kernel.values.clamp_min(0.0).sqrt()
    rank = scaled.shape[1]
    rows, columns = torch.triu_indices(rank, rank, device=scaled.device)
    packed = size @ (scaled[:, rows] * scaled[:, columns])
    gram = packed.new_zeros(len(size), rank, rank)
    gram[:, columns, rows] = packed  # eigvalsh reads the lower triangle
    loading = (size.unsqueeze(-1) * (basis @ root)).mT @ scaled  # (B, P, r)
    gram = gram - loading.mT @ loading
    leading = torch.linalg.eigvalsh(torch.nan_to_num(gram)).flip(-1)

    removed = (size.square() * diagonal).sum(-1) / size.sum(-1)
    lam = leading - removed.unsqueeze(-1)
    count = torch.arange(1, rank + 1, device=lam.device) <= n_free.unsqueeze(-1)
    lam = torch.where(count, lam, 0.0)
    left = (n_free - rank).clamp_min(0).to(lam.dtype)
    mean = -lam.sum(-1) / left.clamp_min(1.0)
    variance = ((squares - lam.square().sum(-1)) / left.clamp_min(1.0) - mean.square()).clamp_min(0.0)
    spread = variance.sqrt()
    several = spread > 1e-6 * lam.abs().amax(-1)  # with few spots the leading ones are all there is
    skewness = kernel.skewness + torch.where(several, cubes / (left * spread**3), 0.0)
    reach = (skewness.square() + 4).sqrt()
    ends = torch.stack([skewness + reach, skewness - reach], -1) / 2
    rest = mean.unsqueeze(-1) + spread.unsqueeze(-1) * ends
    rest_dof = left.unsqueeze(-1) * ends.flip(-1).abs() / reach.unsqueeze(-1)
    return torch.cat([lam, rest], -1), torch.cat([count.to(lam.dtype), rest_dof], -1)


def _variance_ratio(kernel: SpatialKernel, size: Tensor, usage: Tensor) -> Tensor:
    r"""``Σ K_ij² tr(A_i A_j)`` over what it were if all :math:`A_i = a_i (diag p_i - p_i p_i')` were multiples of one.

    With covariates, neighbours have more similar usage, and so more similar covariances, than spots at large.
    """
    exact = mean = torch.zeros_like(size[:, 0])
    for k in range(usage.shape[-1]):
        for m in range(k + 1):
            plane = size * usage[..., k] * (float(k == m) - usage[..., m])
            twice = 1.0 if k == m else 2.0
            exact = exact + twice * (plane * kernel.pair_product(plane, 2)).sum(-1)
            mean = mean + twice * plane.sum(-1).square()
    alike = mean * (size * kernel.pair_product(size, 2)).sum(-1) / size.sum(-1).square()
    return exact / alike


def _tail(statistic: Tensor, components: Tensor, lam: Tensor, dof: Tensor) -> Tensor:
    """P-values from the self-normalised mixture; components (B, K − 1), lam and dof (B, J)."""
    n_free = dof.sum(-1, keepdim=True)
    share = components / components.square().sum(-1, keepdim=True)
    shift = (statistic.unsqueeze(-1) * share / n_free).unsqueeze(-1)
    weights = components.unsqueeze(-1) * (lam.unsqueeze(-2) - shift)
    weights = torch.where(dof.unsqueeze(-2) > 0, weights, 0.0)
    pvalue = chi2_mixture_sf(
        torch.zeros_like(statistic), weights.flatten(-2), dof.unsqueeze(-2).expand_as(weights).flatten(-2)
    )
    usable = (n_free.squeeze(-1) >= 2) & torch.isfinite(statistic)
    return torch.where(usable, pvalue, torch.nan)
