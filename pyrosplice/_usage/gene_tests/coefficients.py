"""Coefficients of covariates and how well they are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.identified import Coverage, identified_rows
from pyrosplice._hypothesis.coefficients.residual_variance import joint_dof
from pyrosplice._hypothesis.coefficients.score import Linearized, ScoreVariance, score_variance
from pyrosplice._hypothesis.coefficients.wald import contrast_test
from pyrosplice._optimize.newton import solve_curvature
from pyrosplice._usage.fitted_gene import FittedGene, stacked
from pyrosplice._usage.gene_tests.covariate_law import (
    AveragedFit,
    Columns,
    Law,
    averaged_fit,
    contrast_target,
    tested_covariates,
)
from pyrosplice._usage.gene_tests.linearized import informed_spots, linearized
from pyrosplice._usage.gene_tests.terms import Contrast
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.records import ModelSpec
from pyrosplice.glmm._design_information import covariate_information
from pyrosplice.glmm._glm_objective import StandardCoordinates, covariance_from_information
from pyrosplice.reasons import Reason

ENDLESS = (Reason.SEPARATED, Reason.NO_COUNTS)  # fits without finite coefficients


@dataclass(frozen=True)
class Estimates:
    """Coefficients ``[β; b]`` of a batch with all covariates, levels of a factor centred, b at the covariates' means.

    Attributes
    ----------
    beta
        ``(B, P, Q)``.
    coefficients
        Coefficients of orthonormal columns, ``(B, C, Q)``; covariances are of these, ``(B, C Q, C Q)``, NaN for a gene
        that has none: at infinity, or information in no direction that the gene's spots tell apart.
    covariance, by_model
        Covariance from the residuals, or as asked for, and by the model.
    back
        Matrix from coefficients of orthonormal columns to ``[β; b]``, ``(P + 1, C)``.
    variance
        Variance of the score; None where ``covariance`` is the model's.
    influence
        Matrix from the score to the coefficients, ``(B, C Q, C Q)``.
    coverage
        What the genes do not identify.
    posterior_df
        Degrees of freedom ``(B, T)`` with which the variances of the contrasts asked for are known; None where they
        are taken as estimated.
    law_df
        Degrees of freedom of the law of their statistics, ``(B, T)``.
    slope_ratio
        Likelihood ratios ``(B, T)`` for a field whose standard deviation depends on the one covariate of a contrast.
    """

    beta: Tensor
    coefficients: Tensor
    covariance: Tensor
    by_model: Tensor
    back: Tensor
    variance: ScoreVariance | None
    influence: Tensor
    coverage: Coverage
    posterior_df: Tensor | None = None
    law_df: Tensor | None = None
    slope_ratio: Tensor | None = None

    def rows(self, contrast: Tensor) -> Tensor:
        """Orthonormal rows ``(R, C)`` that are zero where ``contrast @ β`` is, ``(R, P)``."""
        return _orthonormal_rows(contrast, self.back)

    def dof(self, rows: Tensor, number: int | None = None) -> Tensor | None:
        """Degrees of freedom ``(B,)`` of the variance of ``rows @ coefficients``; None where it is the model's.

        ``number``: which of the contrasts they are whose variance has posterior degrees of freedom.
        """
        own = None
        if self.variance is not None:
            own = self.variance.dof(_by_logit(rows, self.beta.shape[-1]) @ self.influence)
        if self.law_df is None or number is None:
            return own
        return joint_dof(own, self.law_df[:, number])

    def of_coded(self, covariance: Tensor) -> Tensor:
        """A covariance as that of ``[β; b]``, ``(B, (P + 1) Q, (P + 1) Q)``."""
        back = _by_logit(self.back, self.beta.shape[-1])
        return back @ covariance @ back.T

    def along(self, directions: Tensor) -> Tensor:
        """What :meth:`of_coded` makes of unit variances along ``directions`` ``(C, d)``: ``(1, D, D)``."""
        return self.of_coded(_by_logit(directions @ directions.T, self.beta.shape[-1])[None])

    def wald(
        self, contrast: Tensor, *, by_model: bool = False, number: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Statistic, p-value and rank ``(B, 1)`` each of ``contrast @ β = 0``, ``(R, P)``, as far as identified."""
        covariance = self.by_model if by_model else self.covariance
        rows = self.rows(contrast)
        dof = None if by_model else self.dof(rows, number)
        statistic, pvalue = contrast_test(self.coefficients, covariance, rows, dof)
        rank = torch.full_like(statistic, len(rows))
        for gene in self.coverage.deficient:
            some, one = identified_rows(rows, self.coverage.null_space(gene)), slice(gene, gene + 1)
            rank[gene] = len(some)
            if len(some) == len(rows):
                continue
            statistic[gene] = pvalue[gene] = torch.nan
            if len(some):
                dof = None if by_model else self.dof(some, number)
                dof = None if dof is None else dof[one]
                statistic[one], pvalue[one] = contrast_test(self.coefficients[one], covariance[one], some, dof)
        return statistic, pvalue, rank


def estimates(
    counts: Tensor,
    spec: ModelSpec,
    genes: Sequence[FittedGene],
    design: Design,
    law: Law,
    contrasts: Sequence[Contrast] = (),
) -> Estimates:
    """What the fits of a batch ``(B, N, K)`` with the covariates of ``design`` say of their coefficients.

    Averaged over the posterior of the variances, they are one generalised least-squares step from the fits, at the mean
    covariance; ``contrasts`` are those whose ``posterior_df`` are wanted.
    """
    model, beta = spec.rebuild_estimable(counts, genes), stacked(genes)["beta"]
    basis = _CodedBasis.of(model, design)
    if law.spectra is not None and isinstance(model, MultinomGLMM):
        point = _averaged(model, basis, design, law, contrasts)
        ended = torch.tensor([gene.reason in ENDLESS for gene in genes])[:, None, None]
        point = replace(point, coefficients=torch.where(ended, basis.coefficients, point.coefficients))
        beta = torch.where(ended, beta, basis.back[:-1] @ point.coefficients)
    else:
        point = _fitted(model, basis, law)
    return _with_covariance(model, point, basis, beta, spec.informed(counts), genes)


@dataclass(frozen=True)
class _CodedBasis:
    """Orthonormal columns of a design, the fitted coefficients of them, and the way back to ``[β; b]``."""

    scaling: StandardCoordinates
    coefficients: Tensor
    back: Tensor

    @classmethod
    def of(cls, model: MultinomGLM, design: Design) -> _CodedBasis:
        scaling = StandardCoordinates.of(model.design_mtx)
        weights = torch.cat([model.beta, model.bias_eta.unsqueeze(1)], 1).detach()
        back = torch.from_numpy(design.coding) @ scaling.matrix
        back[-1] = torch.eye(back.shape[1], dtype=back.dtype)[-1]
        return cls(scaling, torch.linalg.solve(scaling.matrix, weights), back)


@dataclass(frozen=True)
class _Point:
    """Coefficients ``(B, C, Q)`` of orthonormal columns and their information.

    ``fit`` is what residuals are of, and ``expected`` the information of the columns in it; None without residuals.
    """

    coefficients: Tensor
    information: Tensor
    fit: Linearized | None
    expected: Tensor | None
    posterior_df: Tensor | None = None
    law_df: Tensor | None = None
    slope_ratio: Tensor | None = None


def _fitted(model: MultinomGLM, basis: _CodedBasis, law: Law) -> _Point:
    """Point and information of the coefficients at the estimates."""
    fit = linearized(model) if law.robust else None
    expected = None if fit is None else _information(fit, basis)
    return _Point(basis.coefficients, model.observed_information()[0], fit, expected)


def _information(fit: Linearized, basis: _CodedBasis) -> Tensor:
    """Information of the coefficients of the orthonormal columns, the covariance given, ``(B, C Q, C Q)``."""
    n_genes, _, n_logits = basis.coefficients.shape
    return covariate_information(fit.precision_product, basis.scaling.design, n_genes, n_logits)


def _averaged(
    model: MultinomGLMM, basis: _CodedBasis, design: Design, law: Law, contrasts: Sequence[Contrast]
) -> _Point:
    """Point and information of the coefficients at the posterior mean covariance."""
    columns, n_logits = basis.scaling.design, basis.coefficients.shape[-1]
    rows = [_orthonormal_rows(torch.from_numpy(contrast.rows), basis.back) for contrast in contrasts]
    coverage = Coverage.of(columns, informed_spots(model))
    kept, target = coverage.independent(), contrast_target(rows, n_logits, coverage)
    tested = tested_covariates(design, [contrast.columns for contrast in contrasts])
    found = averaged_fit(model, law, Columns(columns, kept, columns.shape[1]), target, tested)
    expected = _information(found.fit, basis)
    information = expected + model.prior_information()
    moved = basis.coefficients + _step(model, found, basis, information)
    known = torch.isfinite(moved).flatten(1).all(1)[:, None, None]
    coefficients = torch.where(known, moved, basis.coefficients)
    known_with = found.posterior_df, found.law_df, found.slope_ratio
    point = _Point(coefficients, information, found.fit, expected, *known_with)
    return point if law.robust else replace(point, fit=None, expected=None)


def _step(model: MultinomGLMM, found: AveragedFit, basis: _CodedBasis, information: Tensor) -> Tensor:
    """Step from the fitted coefficients to generalised least squares of the working response, with priors if any."""
    columns = basis.scaling.design
    left = (found.response - columns @ basis.coefficients).unsqueeze(-1)
    slope = columns.T @ found.fit.precision_product(left).squeeze(-1)
    if model.priors:  # at the fit their slope is minus that of the likelihood
        slope = slope - columns.T @ linearized(model).residual
    return solve_curvature(information, slope.flatten(1).unsqueeze(-1)).squeeze(-1).unflatten(1, slope.shape[1:])


def _with_covariance(
    model: MultinomGLM, point: _Point, basis: _CodedBasis, beta: Tensor, informed: Tensor, genes: Sequence[FittedGene]
) -> Estimates:
    columns, (n_genes, n_columns, n_logits) = basis.scaling.design, point.coefficients.shape
    coverage = Coverage.of(columns, informed)
    rank = torch.full((n_genes,), float(n_columns), dtype=torch.float64)
    information = point.information.clone()
    for gene in coverage.deficient:  # what is not identified is made independent of the rest, and told apart later
        null = coverage.null_space(gene)
        rank[gene] -= null.shape[1]
        size = torch.diagonal(information[gene]).mean().clamp_min(1.0)
        information[gene] += size * _by_logit(null @ null.T, n_logits)
    lost = torch.tensor([gene.reason in ENDLESS or gene.has_endless_sigma for gene in genes])[:, None, None]

    def known(covariance: Tensor) -> Tensor:
        finite = torch.isfinite(covariance).flatten(1).all(-1)[:, None, None]
        return torch.where(finite & ~lost, covariance, torch.nan)

    orthonormal = basis.scaling.of_columns()
    by_model = known(covariance_from_information(information, orthonormal, n_logits))
    covariance, variance = by_model, None
    if point.fit is not None and point.expected is not None:
        variance = score_variance(point.fit, columns, point.expected, rank)
        spread = variance.matrix + model.prior_information()  # estimates differ from the truth by what priors say, too
        covariance = known(covariance_from_information(information, orthonormal, n_logits, spread))
    eye = torch.eye(information.shape[-1], dtype=torch.float64).expand_as(information)
    influence = solve_curvature(information, eye)
    known_with = point.posterior_df, point.law_df, point.slope_ratio
    return Estimates(
        beta, point.coefficients, covariance, by_model, basis.back, variance, influence, coverage, *known_with
    )


def _orthonormal_rows(contrast: Tensor, back: Tensor) -> Tensor:
    """Orthonormal rows ``(R, C)`` that are zero where ``contrast @ β`` is, ``(R, P)``."""
    rows = contrast @ back[:-1]
    return torch.linalg.qr((rows / rows.norm(dim=1, keepdim=True)).T)[0].T


def _by_logit(matrix: Tensor, n_logits: int) -> Tensor:
    """A matrix of one logit's coefficients as one of all logits', logits fastest."""
    return torch.kron(matrix.contiguous(), torch.eye(n_logits, dtype=matrix.dtype))
