r"""Score test of covariates in a multinomial-logit model, with or without spatial random effect.

At a null fit with working residuals :math:`r = y - n p` (Q free logits a spot) and marginal precision
:math:`V^{-1}` of the linearised model,

.. math::

   U = (X \otimes I_Q)' r, \qquad I = (X \otimes I_Q)' V^{-1} (X \otimes I_Q), \qquad
   T = U_t^{*\prime} (I_{tt} - I_{tn} I_{nn}^{-1} I_{nt})^{-1} U_t^*, \quad U_t^* = U_t - I_{tn} I_{nn}^{-1} U_n,

with t the tested columns and n the intercept and the nuisance covariates. For the GLM :math:`V^{-1} = W`; for the
GLMM, given its estimated spatial covariance Σ, :math:`V^{-1} = (W^{-1} + Σ)^{-1} = W - W (W + Σ^{-1})^{-1} W` and, at
the mode of the random effect, r is :math:`V^{-1}` times the working response. Columns are first made orthonormal to
the intercept and the nuisance, so that shift, unit and coding of a covariate make no difference. T is χ² with Q degrees
of freedom a (linearly independent) column. The variance of U may be I, the model's, or I with the dispersion that the
residuals have (:mod:`pyrosplice.hypothesis.dispersion`). Sources: Rao (1948); Breslow & Clayton (1993) JASA 88:9 for
the GLMM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.dispersion import Dispersion, dispersed, dispersion_of, trace_sf
from pyrosplice.hypothesis.likelihood_ratio import chi2_sf
from pyrosplice.linalg.blocks import matmul

PrecisionProduct = Callable[[Tensor], Tensor]
"""``V⁻¹ x`` of every gene: ``(B, N, Q, R)`` to ``(B, N, Q, R)``."""

_BLOCK = 2**24


@dataclass(frozen=True)
class Linearised:
    """A fitted model as the tests of covariates see it.

    Attributes
    ----------
    residual
        ``y − n p`` of the free logits, ``(B, N, Q)``.
    precision_product
        The product with V⁻¹.
    spot_precision
        Diagonal blocks of V⁻¹, ``(B, N, Q, Q)``.
    """

    residual: Tensor
    precision_product: PrecisionProduct
    spot_precision: Tensor


@dataclass(frozen=True)
class CovariateTest:
    """Score tests of T terms in B genes.

    Attributes
    ----------
    statistic, pvalue
        ``(B, T)``; NaN where not estimable.
    dof
        Degrees of freedom ``(T,)``.
    plain
        Statistics with the model's variance, ``(B, T)``.
    dispersion
        That of the residuals, if asked for.
    """

    statistic: Tensor
    pvalue: Tensor
    dof: Tensor
    plain: Tensor
    dispersion: Dispersion | None = None


def information_product(information: Tensor) -> PrecisionProduct:
    """The GLM's ``V⁻¹ x = W x`` from the information of the spots, ``(B, N, Q, Q)``."""
    return lambda x: matmul(information, x)


def score_test(
    residual: Tensor,
    precision_product: PrecisionProduct,
    design: Tensor,
    *,
    terms: Sequence[Sequence[int]] | None = None,
    nuisance: Sequence[Sequence[int]] | None = None,
    spot_precision: Tensor | None = None,
) -> CovariateTest:
    r"""Score tests of terms, each beside the intercept and its own nuisance covariates only.

    Parameters
    ----------
    residual
        ``y − n p`` of the free logits at the null fit, ``(B, N, Q)``.
    precision_product
        ``x ↦ V⁻¹ x``, ``(B, N, Q, R)`` to ``(B, N, Q, R)``.
    design
        Covariates, ``(N, P)``.
    terms
        Columns of ``design`` that are tested together (the indicators of a factor). Default: each on its own.
    nuisance
        Columns of ``design`` that each term is adjusted for; those of the null fit must be among them. Default: none.
        The intercept is always adjusted for.
    spot_precision
        Diagonal blocks of V⁻¹, ``(B, N, Q, Q)``: with them the variance of the score has the dispersion of the
        residuals, as all covariates leave them (to first order), and T the law of a Lawley–Hotelling trace. Default:
        the model's own variance, and χ².

    Raises
    ------
    InvalidArgumentError
        A term without any variation beyond intercept and nuisance.
    """
    n_logits = residual.shape[-1]
    joint, bases = _orthonormal_terms(design.to(residual), terms, nuisance)
    score = (joint.T @ residual).flatten(1)  # logits fastest
    information = covariate_information(precision_product, joint, len(residual), n_logits)
    dispersion = None
    if spot_precision is not None:
        step, rank = _least_squares(information, score)
        left = residual - precision_product((joint @ step.unflatten(1, (-1, n_logits))).unsqueeze(-1)).squeeze(-1)
        dispersion = dispersion_of(left, spot_precision, rank / n_logits)
    eye = torch.eye(n_logits, dtype=joint.dtype, device=joint.device)
    plain, robust = [], []
    for base, group in bases:
        weights, width = torch.kron(joint.T @ torch.cat([base, group], 1), eye), base.shape[1] * n_logits
        own = weights.T @ information @ weights
        part, variance = _without_nuisance(score @ weights, own, width)
        plain.append(_quadratic(variance, part))
        if dispersion is not None:
            robust.append(_quadratic(_sandwich(dispersed(dispersion.root, own), own, width), part))
    ranks = torch.tensor([group.shape[1] for _, group in bases], device=joint.device)
    unadjusted = torch.stack(plain, -1)
    if dispersion is None:
        return CovariateTest(unadjusted, chi2_sf(unadjusted, ranks * n_logits), ranks * n_logits, unadjusted)
    statistic = torch.stack(robust, -1)
    return CovariateTest(statistic, trace_sf(statistic, ranks, dispersion), ranks * n_logits, unadjusted, dispersion)


def covariate_information(precision_product: PrecisionProduct, columns: Tensor, n_genes: int, n_logits: int) -> Tensor:
    """``(X ⊗ I)' V⁻¹ (X ⊗ I)`` of covariates ``(N, C)``: ``(B, C Q, C Q)``, logits fastest."""
    n_spots = columns.shape[0]
    eye = torch.eye(n_logits, dtype=columns.dtype, device=columns.device)
    size = max(1, _BLOCK // (n_genes * n_spots * n_logits**2))
    parts = []
    for some in columns.split(size, 1):
        spread = torch.einsum("nc,qk->nqck", some, eye).flatten(2)
        image = precision_product(spread.expand(n_genes, *spread.shape))
        parts.append(torch.einsum("nc,bnqr->bcqr", columns, image).flatten(1, 2))
    information = torch.cat(parts, -1)
    return (information + information.mT) / 2


def _least_squares(information: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """One Fisher step ``(B, D)`` along what a gene's information knows, and how many directions that are ``(B,)``."""
    finite = torch.isfinite(information).flatten(1).all(-1)[:, None, None]
    scale = torch.diagonal(information, dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    scaled = torch.where(finite, scale[:, :, None] * information * scale[:, None], 0.0)
    values, vectors = torch.linalg.eigh(scaled)
    known = values > 1e-10 * values[:, -1:]
    along = (vectors.mT @ (scale * score).unsqueeze(-1)).squeeze(-1)
    step = scale * (vectors @ torch.where(known, along / values, 0.0).unsqueeze(-1)).squeeze(-1)
    return step, known.sum(-1).to(score.dtype)


def _quadratic(matrix: Tensor, vector: Tensor) -> Tensor:
    """``vector' matrix⁻¹ vector``, ``(B,)``."""
    return (vector.unsqueeze(-1) * _solve(matrix, vector.unsqueeze(-1))).sum((-2, -1))


def _without_nuisance(score: Tensor, information: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Score and information of what follows the first ``width`` coefficients, those projected out."""
    cross = information[:, :width, width:]
    solved = _solve(information[:, :width, :width], torch.cat([cross, score[:, :width, None]], -1))
    information = information[:, width:, width:] - cross.mT @ solved[..., :-1]
    return score[:, width:] - (cross.mT @ solved[..., -1:]).squeeze(-1), information


def _sandwich(observed: Tensor, information: Tensor, width: int) -> Tensor:
    """Variance of the projected score when that of the score is ``observed`` and its derivative ``−information``."""
    cross = observed.new_zeros(observed.shape[0], observed.shape[1] - width, observed.shape[1])
    cross[..., :width] = -_solve(information[:, :width, :width], information[:, :width, width:]).mT
    torch.diagonal(cross[..., width:], dim1=-2, dim2=-1).fill_(1.0)
    return cross @ observed @ cross.mT


def _orthonormal_terms(
    design: Tensor, terms: Sequence[Sequence[int]] | None, nuisance: Sequence[Sequence[int]] | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Orthonormal bases: of all columns, and for every term of intercept and nuisance, ``(N, S')``, and of what it adds
    to them.
    """
    terms = [[j] for j in range(design.shape[1])] if terms is None else terms
    nuisance = [()] * len(terms) if nuisance is None else [tuple(columns) for columns in nuisance]
    constant = torch.full_like(design[:, :1], len(design) ** -0.5)
    base_of = {
        beside: torch.cat([constant, _basis(design[:, list(beside)], constant)], 1) if beside else constant
        for beside in dict.fromkeys(nuisance)
    }
    bases = []
    for term, beside in zip(terms, nuisance, strict=True):
        base = base_of[beside]
        group = _basis(design[:, list(term)], base)
        if not group.shape[1]:
            raise InvalidArgumentError(
                f"design: column(s) {list(term)} are constant or a combination of the nuisance covariates; "
                "expected variation to test. Drop them."
            )
        bases.append((base, group))
    used = sorted({column for columns in (*terms, *nuisance) for column in columns})
    return torch.cat([constant, _basis(design[:, used], constant)], 1), bases


def _basis(columns: Tensor, base: Tensor) -> Tensor:
    """Orthonormal basis of the columns' part that is orthogonal to ``base``."""
    centred = columns - columns.mean(0)
    size = centred.norm(dim=0)
    varies = size > 1e-12 * columns.abs().amax(0) * len(columns) ** 0.5
    scaled = centred[:, varies] / size[varies]
    rest = scaled - base @ (base.T @ scaled)
    rest = rest - base @ (base.T @ rest)
    left, values, _ = torch.linalg.svd(rest, full_matrices=False)
    return left[:, values > 1e-8]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix⁻¹ right``; NaN for a gene whose matrix is not positive definite."""
    scale = torch.diagonal(matrix, dim1=-2, dim2=-1).rsqrt().unsqueeze(-1)
    factor, info = torch.linalg.cholesky_ex(scale * matrix * scale.mT)
    singular = (info != 0) | (torch.diagonal(factor, dim1=-2, dim2=-1).amin(-1) < 1e-7)
    solution = scale * torch.cholesky_solve(scale * right, factor)
    return torch.where(singular[:, None, None], torch.nan, solution)
