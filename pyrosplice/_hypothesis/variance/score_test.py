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
- *Null distribution.* Permutations of the standardised residuals over the covered spots, see
  :mod:`~pyrosplice._hypothesis.variance.permutation_law`: each gene has its own, as each has its own totals, which may
  themselves be spatial, however few spots they cover.

Summing over isoforms makes T the same whichever isoform is the reference. A spot without counts has a = 0 and e = 0:
it adds nothing anywhere. Sources: Lin (1997) Biometrika 84:309, "Variance component testing in generalised linear
models with random effects", for the score; the pairwise form, the weights and the null law are derived above.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._hypothesis.variance.permutation_law import Residuals, permutation_law
from pyrosplice._hypothesis.variance.spatial_kernel import SparseKernel, SpatialKernel
from pyrosplice._linalg.lines import WIDTH
from pyrosplice._optimize.newton import newton
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._glm_objective import GLMObjective
from pyrosplice.likelihoods._contract import Multinomial

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
        Kernel of the N spots, from :func:`~pyrosplice._hypothesis.variance.spatial_kernel.spatial_kernel`.
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
    size = genes_per_block(kernel, per_spot)
    blocks = [_test_genes(block.to(torch.float64), kernel, basis) for block in counts.split(size)]
    return VarianceComponentTest(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def genes_per_block(kernel: SpatialKernel, per_spot: int) -> int:
    """Number of genes of a block, of which ``per_spot`` numbers a spot are held at once."""
    size = max(1, _BLOCK // (kernel.n_spots * per_spot))
    if isinstance(kernel, SparseKernel):  # whose products take that many columns for the price of one
        size = WIDTH * max(1, size // WIDTH)
    return size


def orthonormal_columns(design: Tensor | None, like: Tensor) -> Tensor:
    """Orthonormal basis of the span of the intercept and the covariates, the constant first: ``(N, P')``.

    Whatever the order of the spots: the third moments of the others are positive.
    """
    constant = torch.full_like(like, len(like) ** -0.5).unsqueeze(-1)
    if design is None:
        return constant
    centered = design.to(constant) - design.to(constant).mean(0)
    scale = centered.norm(dim=0)
    centered = centered[:, scale > 1e-10 * design.abs().amax(0)]
    left, values, _ = torch.linalg.svd(centered / centered.norm(dim=0), full_matrices=False)
    left = left[:, values > 1e-8]
    return torch.cat([constant, torch.where(left.pow(3).sum(0) < 0, -left, left)], 1)


def _test_genes(counts: Tensor, kernel: SpatialKernel, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    residuals, overdispersion = standardized_residuals(counts, basis)
    return *permutation_law(residuals, kernel), overdispersion


def standardized_residuals(counts: Tensor, basis: Tensor) -> tuple[Residuals, Tensor]:
    """Residuals u of the null model and ϱ ``(B,)``; counts ``(B, N, K)``, orthonormal covariates ``(N, P)``."""
    counts = counts.movedim(-1, 0).contiguous().movedim(0, -1)  # memory by isoform: long rows in all that follows
    totals = counts.sum(-1)
    usage = _null_usage(counts, basis)
    residual = torch.addcmul(counts, totals.unsqueeze(-1), usage, value=-1)
    overdispersion = _overdispersion(residual, totals, usage)
    weight = 1 / (1 + (totals - 1).clamp_min(0.0) * overdispersion.unsqueeze(-1))
    size = weight * totals  # a, (B, N)
    root = inverse_root_gram(size, basis)
    residual = _project(residual.mul_(weight.unsqueeze(-1)), size, usage, basis, root)
    scale = size.sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    planes = torch.tensordot(_contrasts(residual), residual.movedim(-1, 0), ([0], [0])).mul_(inverse)
    loading = (scale.unsqueeze(-2) * (root.mT @ basis.T)).mT
    return Residuals(planes.movedim(0, -1), scale, loading), overdispersion


def _contrasts(residual: Tensor) -> Tensor:
    """Orthonormal contrasts ``(K, K − 1)``: residuals sum to zero over isoforms, so that they lose nothing."""
    n_isos = residual.shape[-1]
    centring = torch.eye(n_isos, dtype=residual.dtype, device=residual.device) - 1 / n_isos
    return torch.linalg.svd(centring)[0][:, : n_isos - 1]


def _null_usage(counts: Tensor, basis: Tensor) -> Tensor:
    """Fitted usage ``(B, N or 1, K)``: pooled without covariates, else the multinomial-logit fit."""
    if basis.shape[1] == 1:
        return counts.sum(1, keepdim=True) / counts.sum((1, 2))[:, None, None]
    objective = GLMObjective.of(counts, basis[:, 1:], Multinomial())
    beta, bias = objective.coefficients(newton(objective, objective.start()).point)
    return Multinomial().mean(basis[:, 1:] @ beta + bias.unsqueeze(-2))


def _overdispersion(residual: Tensor, totals: Tensor, usage: Tensor) -> Tensor:
    """Overdispersion ϱ ``(B,)`` by moments: pairs of a spot's molecules agree more often than their usage says."""
    disagreement = 1 - usage.square().sum(-1)  # trace of one molecule's covariance
    excess = residual.square().sum((-2, -1)) - (totals * disagreement).sum(-1)
    pairs = (totals * (totals - 1) * disagreement).sum(-1)
    return torch.where(pairs > 0, excess / pairs, 0.0).clamp(0.0, _MAX_OVERDISPERSION)


def inverse_root_gram(size: Tensor, basis: Tensor) -> Tensor:
    """R ``(B, P, P)`` with ``R R' = (X'AX)⁻¹``, A = diag(a); flat directions are left out."""
    gram = torch.einsum("bn,np,nq->bpq", size, basis, basis)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(gram))
    inverse = torch.where(values > 1e-10 * values[..., -1:], values, torch.inf).rsqrt()
    return vectors * inverse.unsqueeze(-2)


def _project(residual: Tensor, size: Tensor, usage: Tensor, basis: Tensor, root: Tensor) -> Tensor:
    """Residuals with the covariates' effects removed, ``e − A X (X'AX)⁻¹ X'e``."""
    score = basis.T @ residual  # (B, P, K)
    if basis.shape[1] == 1:  # cov(e_i) is a multiple of one matrix, which cancels
        return torch.addcmul(residual, size.unsqueeze(-1), basis @ (root @ (root.mT @ score)), value=-1)
    n_isos = usage.shape[-1]
    each = torch.diag_embed(usage) - usage.unsqueeze(-1) * usage.unsqueeze(-2)
    each = size[..., None, None] * each  # (B, N, K, K), rows sum to zero
    gram = torch.einsum("np,bnkl,nq->bpkql", basis, each, basis).flatten(3, 4).flatten(1, 2)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(gram))
    inverse = torch.where(values > 1e-10 * values[..., -1:], values, torch.inf).reciprocal()
    step = vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ score.flatten(1).unsqueeze(-1)))
    shift = basis @ step.reshape(len(step), basis.shape[1], n_isos)
    return residual - (each @ shift.unsqueeze(-1)).squeeze(-1)
