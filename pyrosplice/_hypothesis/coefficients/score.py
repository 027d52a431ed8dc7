r"""Score test of covariates in a multinomial-logit model, with or without spatial random effect.

At a null fit with residuals r, the derivatives of the log (marginal) likelihood in the linear predictor of every spot
(Q free logits), and marginal precision :math:`V^{-1}` of the linearised model,

.. math::

   U = (X \otimes I_Q)' r, \qquad I = (X \otimes I_Q)' V^{-1} (X \otimes I_Q), \qquad
   T = U_t^{*\prime} (I_{tt} - I_{tn} I_{nn}^{-1} I_{nt})^{-1} U_t^*, \quad U_t^* = U_t - I_{tn} I_{nn}^{-1} U_n,

with t the tested columns and n the intercept and the nuisance covariates. Columns count as far as they vary over the
spots that inform about a gene (:mod:`pyrosplice._hypothesis.coefficients.identified`). For the GLM :math:`V^{-1} = W`
and r = y − n p; for the GLMM, given its estimated spatial covariance Σ,
:math:`V^{-1} = (W^{-1} + Σ)^{-1} = W - W (W + Σ^{-1})^{-1} W`, and r is the derivative of Laplace's approximation:
y − n p at the mode of the random effect, and what the curvature there adds to it. Columns are first made orthonormal to
the intercept and the nuisance, so that shift, unit and coding of a covariate make no difference. T is χ² with Q degrees
of freedom a (linearly independent) column.

The variance of :math:`U_t^*` may be the model's, as above, or what the residuals say: with a dispersion between the
logits, or, for the independent spots of a GLM, with the excess variance that counts have where usage varies
(:mod:`pyrosplice._hypothesis.coefficients.residual_variance`). Sources: Rao (1948); Breslow & Clayton (1993) JASA 88:9
for the GLMM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.identified import Coverage
from pyrosplice._hypothesis.coefficients.residual_variance import (
    Dispersion,
    Excess,
    dispersed,
    dispersion_of,
    excess_of,
    trace_sf,
)
from pyrosplice._hypothesis.likelihood_ratio import chi2_sf
from pyrosplice._linalg.blocks import matmul
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._design_information import PrecisionProduct, covariate_information


@dataclass(frozen=True)
class Linearized:
    """A fitted model as the tests of covariates see it.

    Attributes
    ----------
    residual
        Derivative of the log (marginal) likelihood in the linear predictor of each spot, ``(B, N, Q)``.
    precision_product
        The product with V⁻¹.
    spot_precision
        Diagonal blocks of V⁻¹, ``(B, N, Q, Q)``.
    repeats
        Where spots are independent, so that V⁻¹ is its diagonal blocks: (n − 1) / n for the n counts of each spot,
        ``(B, N)``, or 1 if n is random. None for a model with a random effect.
    informed
        Spots that inform, ``(B, N)``; None if all do.
    """

    residual: Tensor
    precision_product: PrecisionProduct
    spot_precision: Tensor
    repeats: Tensor | None = None
    informed: Tensor | None = None


@dataclass(frozen=True)
class CovariateTest:
    """Score tests of T terms in B genes.

    Attributes
    ----------
    statistic, pvalue
        ``(B, T)``; NaN where not estimable.
    dof
        Degrees of freedom ``(B, T)``: Q for each column that varies, beside the nuisance, over the gene's spots.
    residual_dof
        Degrees of freedom of the residuals, ν ``(B, T)``; None with the model's variance.
    by_model
        The statistic with the model's variance, ``(B, T)``.
    """

    statistic: Tensor
    pvalue: Tensor
    dof: Tensor
    residual_dof: Tensor | None
    by_model: Tensor


def information_product(information: Tensor) -> PrecisionProduct:
    """The GLM's ``V⁻¹ x = W x`` from the information of the spots, ``(B, N, Q, Q)``."""
    return lambda x: matmul(information, x)


def score_test(
    fit: Linearized,
    design: Tensor,
    *,
    terms: Sequence[Sequence[int]] | None = None,
    nuisance: Sequence[Sequence[int]] | None = None,
    robust: bool = False,
) -> CovariateTest:
    r"""Score tests of terms, each beside the intercept and its own nuisance covariates only.

    Parameters
    ----------
    fit
        The null fit.
    design
        Covariates, ``(N, P)``.
    terms
        Columns of ``design`` that are tested together (the indicators of a factor). Default: each on its own.
    nuisance
        Columns of ``design`` that each term is adjusted for; those of the null fit must be among them. Default: none.
        The intercept is always adjusted for.
    robust
        The variance of the score from the residuals, as all covariates leave them (to first order), instead of the
        model; T has the law of a Lawley–Hotelling trace.

    Raises
    ------
    InvalidArgumentError
        A term without any variation beyond intercept and nuisance.
    """
    residual, n_logits = fit.residual, fit.residual.shape[-1]
    joint, parts = _parts(design.to(residual), terms, nuisance, fit.informed, len(residual))
    score = (joint.T @ residual).flatten(1)  # logits fastest
    information = covariate_information(fit.precision_product, joint, len(residual), n_logits)
    observed = None
    if robust:
        step, rank = _least_squares(information, score)
        moved = (joint @ step.unflatten(1, (-1, n_logits))).unsqueeze(-1)
        left = replace(fit, residual=residual - fit.precision_product(moved).squeeze(-1))
        observed = score_variance(left, joint, information, rank / n_logits)
    found, expected, dof = [], [], []
    for part in parts:
        own, variance, rows = part.without_nuisance(score, information, n_logits)
        value = plain = _quadratic(variance, own)
        if observed is not None:
            dof.append(observed.dof(rows))
            value = _quadratic(_regular(rows @ observed.matrix @ rows.mT, rows), own)
        known = torch.isfinite(plain) & (part.rank > 0)
        expected.append(torch.where(known, plain, torch.nan))
        found.append(torch.where(known, value, torch.nan))
    ranks = torch.stack([part.rank for part in parts], -1)
    statistic, by_model = torch.stack(found, -1), torch.stack(expected, -1)
    if observed is None:
        return CovariateTest(statistic, chi2_sf(statistic, ranks * n_logits), ranks * n_logits, None, by_model)
    freedom = torch.stack(dof, -1)
    return CovariateTest(statistic, trace_sf(statistic, ranks, n_logits, freedom), ranks * n_logits, freedom, by_model)


def joined(tests: Sequence[CovariateTest]) -> CovariateTest:
    """Tests of one term each as those of all of them."""
    residual = [test.residual_dof for test in tests if test.residual_dof is not None]
    statistic, pvalue, dof, by_model = (
        torch.cat([getattr(test, name) for test in tests], -1) for name in ("statistic", "pvalue", "dof", "by_model")
    )
    return CovariateTest(statistic, pvalue, dof, torch.cat(residual, -1) if residual else None, by_model)


def identified_ranks(
    design: Tensor, informed: Tensor, *, terms: Sequence[Sequence[int]], nuisance: Sequence[Sequence[int]]
) -> Tensor:
    """Columns that each term adds to its nuisance over the ``informed`` spots ``(B, N)`` of each gene, ``(B, T)``."""
    _, parts = _parts(design, terms, nuisance, informed, len(informed))
    return torch.stack([part.rank for part in parts], -1)


@dataclass(frozen=True)
class _Part:
    """A term and its nuisance as combinations of the joint basis.

    Attributes
    ----------
    weights
        ``(B, S, W)``; columns of zeros for what a gene does not identify.
    width
        How many of the W are of the nuisance.
    rank
        How many of the others are not zero, ``(B,)``.
    """

    weights: Tensor
    width: int
    rank: Tensor

    def without_nuisance(self, score: Tensor, information: Tensor, n_logits: int) -> tuple[Tensor, Tensor, Tensor]:
        """The term's score, its variance by the model, and both as combinations ``(B, R, D)`` of the whole score."""
        eye = torch.eye(n_logits, dtype=score.dtype, device=score.device)
        spread = torch.einsum("bsw,qr->bsqwr", self.weights, eye).flatten(3).flatten(1, 2)
        own = _regular(spread.mT @ information @ spread, spread.mT)
        part, variance, projection = _without_nuisance(
            (spread.mT @ score.unsqueeze(-1)).squeeze(-1), own, self.width * n_logits
        )
        return part, variance, projection @ spread.mT


def _parts(
    design: Tensor,
    terms: Sequence[Sequence[int]] | None,
    nuisance: Sequence[Sequence[int]] | None,
    informed: Tensor | None,
    n_genes: int,
) -> tuple[Tensor, list[_Part]]:
    """Orthonormal basis of all columns ``(N, S)``, and every term in it, gene by gene."""
    joint, bases = orthonormal_terms(design, terms, nuisance)
    coverage = None if informed is None else Coverage.of(joint, informed)
    parts = []
    for base, group in bases:
        width = base.shape[1]
        common = joint.T @ torch.cat([base, group], 1)
        weights = common.expand(n_genes, -1, -1)
        rank = torch.full((n_genes,), group.shape[1], device=design.device)
        if coverage is not None and coverage.deficient:
            weights = weights.clone()
            for gene in coverage.deficient:
                beside, more = coverage.basis_beside(gene, common[:, :width], common[:, width:])
                weights[gene] = 0
                weights[gene, :, : beside.shape[1]] = beside
                weights[gene, :, width : width + more.shape[1]] = more
                rank[gene] = more.shape[1]
        parts.append(_Part(weights, width, rank))
    return joint, parts


def _regular(matrix: Tensor, rows: Tensor) -> Tensor:
    """Make ``matrix`` regular: rows that are zero are independent of the others instead of nothing."""
    return matrix + torch.diag_embed((rows == 0).all(-1).to(matrix))


@dataclass(frozen=True)
class ScoreVariance:
    """Variance that the residuals of a fit give the score.

    Attributes
    ----------
    matrix
        ``(B, D, D)``.
    information
        Variance by the model.
    fit, columns
        What the score is of.
    source
        Dispersion or excess of the residuals.
    """

    matrix: Tensor
    information: Tensor
    fit: Linearized
    columns: Tensor
    source: Dispersion | Excess

    def dof(self, rows: Tensor) -> Tensor:
        """Degrees of freedom ν ``(B,)`` of the variance of combinations ``(B, R, D)`` of the score."""
        if isinstance(self.source, Dispersion):
            return self.source.dof
        metric = rows.mT @ _solve(_regular(rows @ self.information @ rows.mT, rows), rows)
        n_genes, n_logits = len(rows), self.fit.residual.shape[-1]
        metric = metric.reshape(n_genes, -1, n_logits, self.columns.shape[1], n_logits).transpose(2, 3)
        pairs = (self.columns[:, :, None] * self.columns[:, None]).flatten(1)
        spots = pairs @ metric.flatten(3).flatten(1, 2)  # of each spot Q × Q
        return self.source.dof((spots * self.fit.spot_precision.flatten(2)).sum(-1))


def score_variance(
    fit: Linearized, columns: Tensor, information: Tensor, n_coefficients: Tensor | int
) -> ScoreVariance:
    """Variance of the score of ``columns`` ``(N, C)``, beside ``n_coefficients`` that were fitted for each logit.

    ``information`` is its variance by the model, ``(B, C Q, C Q)``.
    """
    if fit.repeats is None:
        dispersion = dispersion_of(fit.residual, fit.spot_precision, n_coefficients)
        return ScoreVariance(dispersed(dispersion.root, information), information, fit, columns, dispersion)
    excess = excess_of(fit.residual, fit.spot_precision, fit.repeats, n_coefficients)
    matrix = covariate_information(information_product(excess.variance), columns, *fit.residual.shape[::2])
    return ScoreVariance(matrix, information, fit, columns, excess)


def _least_squares(information: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher step ``(B, D)`` along what a gene's information knows, and how many directions that are ``(B,)``."""
    finite = torch.isfinite(information).flatten(1).all(-1)[:, None, None]
    scale = torch.diagonal(information, dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    scaled = torch.where(finite, scale[:, :, None] * information * scale[:, None], 0.0)
    values, vectors = torch.linalg.eigh(scaled)
    known = values > 1e-10 * values[:, -1:]
    along = (vectors.mT @ (scale * score).unsqueeze(-1)).squeeze(-1)
    step = scale * (vectors @ torch.where(known, along / values, 0.0).unsqueeze(-1)).squeeze(-1)
    return step, known.sum(-1).to(score.dtype)


def _quadratic(matrix: Tensor, vector: Tensor) -> Tensor:
    """Quadratic form ``vector' matrix⁻¹ vector``, ``(B,)``."""
    return (vector.unsqueeze(-1) * _solve(matrix, vector.unsqueeze(-1))).sum((-2, -1))


def _without_nuisance(score: Tensor, information: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score and information of all but the first ``width`` coefficients, which are projected out.

    And the projection, ``(B, D − width, D)``.
    """
    n_genes, size = score.shape
    projection = score.new_zeros(n_genes, size - width, size)
    projection[..., :width] = -_solve(information[:, :width, :width], information[:, :width, width:]).mT
    torch.diagonal(projection[..., width:], dim1=-2, dim2=-1).fill_(1.0)
    variance = projection @ information[..., width:]
    return (projection @ score.unsqueeze(-1)).squeeze(-1), (variance + variance.mT) / 2, projection


def orthonormal_terms(
    design: Tensor, terms: Sequence[Sequence[int]] | None, nuisance: Sequence[Sequence[int]] | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Orthonormal bases of all columns, and two for every term.

    Those are of intercept and nuisance, ``(N, S')``, and of what the term adds to them.
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
    centered = columns - columns.mean(0)
    size = centered.norm(dim=0)
    varies = size > 1e-12 * columns.abs().amax(0) * len(columns) ** 0.5
    scaled = centered[:, varies] / size[varies]
    rest = scaled - base @ (base.T @ scaled)
    rest = rest - base @ (base.T @ rest)
    left, values, _ = torch.linalg.svd(rest, full_matrices=False)
    return left[:, values > 1e-8]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve ``matrix⁻¹ right``; NaN for a gene whose matrix is not positive definite."""
    scale = torch.diagonal(matrix, dim1=-2, dim2=-1).rsqrt().unsqueeze(-1)
    factor, info = torch.linalg.cholesky_ex(scale * matrix * scale.mT)
    singular = (info != 0) | (torch.diagonal(factor, dim1=-2, dim2=-1).amin(-1) < 1e-7)
    solution = scale * torch.cholesky_solve(scale * right, factor)
    return torch.where(singular[:, None, None], torch.nan, solution)
