"""Score, Wald and likelihood-ratio tests of covariates: what is tested beside what, one batch of genes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.data.design import Design
from pyrosplice.estimators.fitted import FittedGene, ModelSpec, stacked
from pyrosplice.estimators.gene_tests import linearised
from pyrosplice.estimators.tested_covariates import Contrast, Term
from pyrosplice.hypothesis.dispersion import trace_sf
from pyrosplice.hypothesis.identified import Coverage, identified_rows
from pyrosplice.hypothesis.likelihood_ratio import likelihood_ratio_test
from pyrosplice.hypothesis.score import (
    CovariateTest,
    Linearised,
    ScoreVariance,
    covariate_information,
    identified_ranks,
    score_test,
    score_variance,
)
from pyrosplice.hypothesis.wald import contrast_test
from pyrosplice.inference.glm import covariance_from_information
from pyrosplice.inference.newton import solve_curvature

ENDLESS = ("separated", "no_counts")  # fits without finite coefficients


@dataclass(frozen=True)
class Estimates:
    """Coefficients ``[β; b]`` of a batch with all covariates, levels of a factor centred, b at the covariates' means.

    Attributes
    ----------
    beta
        ``(B, P, Q)``.
    coefficients
        The same of orthonormal columns, ``(B, C, Q)``; covariances are of these, ``(B, C Q, C Q)``, NaN for a gene
        that has none: at infinity, or information in no direction that the gene's spots tell apart.
    covariance, by_model
        From the residuals, or as asked for; by the model.
    back
        From coefficients of orthonormal columns to ``[β; b]``, ``(P + 1, C)``.
    variance
        That of the score; None where ``covariance`` is the model's.
    influence
        From the score to the coefficients, ``(B, C Q, C Q)``.
    coverage
        What the genes do not identify.
    """

    beta: Tensor
    coefficients: Tensor
    covariance: Tensor
    by_model: Tensor
    back: Tensor
    variance: ScoreVariance | None
    influence: Tensor
    coverage: Coverage

    def rows(self, contrast: Tensor) -> Tensor:
        """Orthonormal rows ``(R, C)`` that are zero where ``contrast @ β`` is, ``(R, P)``."""
        rows = contrast @ self.back[:-1]
        return torch.linalg.qr((rows / rows.norm(dim=1, keepdim=True)).T)[0].T

    def dof(self, rows: Tensor) -> Tensor | None:
        """Degrees of freedom ``(B,)`` of the variance of ``rows @ coefficients``; None where it is the model's."""
        if self.variance is None:
            return None
        return self.variance.dof(_by_logit(rows, self.beta.shape[-1]) @ self.influence)

    def of_coded(self, covariance: Tensor) -> Tensor:
        """A covariance as that of ``[β; b]``, ``(B, (P + 1) Q, (P + 1) Q)``."""
        back = _by_logit(self.back, self.beta.shape[-1])
        return back @ covariance @ back.T

    def along(self, directions: Tensor) -> Tensor:
        """What :meth:`of_coded` makes of unit variances along ``directions`` ``(C, d)``: ``(1, D, D)``."""
        return self.of_coded(_by_logit(directions @ directions.T, self.beta.shape[-1])[None])

    def wald(self, contrast: Tensor, *, by_model: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Statistic, p-value and rank ``(B, 1)`` each of ``contrast @ β = 0``, ``(R, P)``, as far as identified."""
        covariance = self.by_model if by_model else self.covariance
        rows = self.rows(contrast)
        dof = None if by_model else self.dof(rows)
        statistic, pvalue = contrast_test(self.coefficients, covariance, rows, dof)
        rank = torch.full_like(statistic, len(rows))
        for gene in self.coverage.deficient:
            some, one = identified_rows(rows, self.coverage.null_space(gene)), slice(gene, gene + 1)
            rank[gene] = len(some)
            if len(some) == len(rows):
                continue
            statistic[gene] = pvalue[gene] = torch.nan
            if len(some):
                dof = None if by_model else self.dof(some)
                dof = None if dof is None else dof[one]
                statistic[one], pvalue[one] = contrast_test(self.coefficients[one], covariance[one], some, dof)
        return statistic, pvalue, rank


def estimates(counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], design: Design, robust: bool) -> Estimates:
    """What the fits of a batch ``(B, N, K)`` with the covariates of ``design`` say of their coefficients."""
    model, beta = spec.rebuild_estimable(counts, genes), stacked(genes)["beta"]
    information, scaling = model.observed_information()
    n_genes, _, n_logits = beta.shape
    columns = scaling.design
    coverage = Coverage.of(columns, spec.informed(counts))
    rank = torch.full((n_genes,), float(columns.shape[1]), dtype=torch.float64)
    information = information.clone()
    for gene in coverage.deficient:  # what is not identified is made independent of the rest, and told apart later
        null = coverage.null_space(gene)
        rank[gene] -= null.shape[1]
        size = torch.diagonal(information[gene]).mean().clamp_min(1.0)
        information[gene] += size * _by_logit(null @ null.T, n_logits)
    lost = torch.tensor([gene.reason in ENDLESS or gene.has_endless_sigma for gene in genes])[:, None, None]

    def known(covariance: Tensor) -> Tensor:
        finite = torch.isfinite(covariance).flatten(1).all(-1)[:, None, None]
        return torch.where(finite & ~lost, covariance, torch.nan)

    orthonormal = scaling.of_columns()
    by_model = known(covariance_from_information(information, orthonormal, n_logits))
    back = torch.from_numpy(design.coding) @ scaling.matrix
    back[-1] = torch.eye(back.shape[1], dtype=back.dtype)[-1]
    eye = torch.eye(information.shape[-1], dtype=torch.float64).expand_as(information)
    coefficients = torch.linalg.solve(scaling.matrix, torch.cat([model.beta, model.bias_eta.unsqueeze(1)], 1)).detach()
    covariance, variance = by_model, None
    if robust:
        fit = linearised(model)
        expected = covariate_information(fit.precision_product, columns, n_genes, n_logits)
        variance = score_variance(fit, columns, expected, rank)
        spread = variance.matrix + model.prior_information()  # estimates differ from the truth by what priors say, too
        covariance = known(covariance_from_information(information, orthonormal, n_logits, spread))
    influence = solve_curvature(information, eye)
    return Estimates(beta, coefficients, covariance, by_model, back, variance, influence, coverage)


def score_of_terms(
    counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], design: Design, terms: Sequence[Term], robust: bool
) -> list[Tensor]:
    """Score tests of terms with the same nuisance at fits with it, a batch ``(B, N, K)``.

    Statistics, p-values and ranks, ``(B, T)`` each.
    """
    test = _score_test(linearised(spec.rebuild(counts, genes)), design, terms, robust)
    lost = _with_endless_sigma(genes) & (not robust)
    statistic, pvalue = (torch.where(lost[:, None], torch.nan, value) for value in (test.statistic, test.pvalue))
    return [statistic, pvalue, test.dof / genes[0].n_logits]


def wald_of_contrasts(
    counts: Tensor,
    spec: ModelSpec,
    genes: Sequence[FittedGene],
    design: Design,
    contrasts: Sequence[Contrast],
    robust: bool,
) -> list[Tensor]:
    """Wald tests of contrasts beside all covariates, levels of a factor centred: as :func:`score_of_terms`."""
    found = estimates(counts, spec, genes, design, robust)
    tests = [found.wald(torch.from_numpy(contrast.rows)) for contrast in contrasts]
    return [torch.cat(values, -1) for values in zip(*tests, strict=True)]


def ratio_of_terms(
    counts: Tensor,
    spec: ModelSpec,
    fits: Sequence[tuple[FittedGene, ...]],
    design: Design,
    terms: Sequence[Term],
    robust: bool,
) -> list[Tensor]:
    """Likelihood ratios of terms with the same nuisance, as :func:`score_of_terms`.

    ``fits`` has for each gene that of the nuisance, which is the model of ``spec``, and then one with each term. With
    priors the ratio is that of the maxima of the posterior density where the tested coefficients are free and where
    they are zero.

    ``robust`` ratios are multiplied by the quotient of the term's Wald statistics with the variance of the residuals
    and without: the likelihood's curvature along the term's effect is made that of the former (Chandler & Bate 2007,
    Biometrika 94:167, "vertical" adjustment). Where a coefficient has run away, the likelihood has none there, and its
    ratio rejects most null genes whose group lacks a rare isoform (tests/studies/separation.py): the statistic is then
    the score test's. So it is where σ is at infinity or near (:data:`~pyrosplice.estimators.infinite.ENDLESS_SIGMA`),
    and ratios that are not robust are NaN there. Where only the quotient is not known, it is that of the score
    statistics.
    """
    null = [gene[0] for gene in fits]
    loss = torch.tensor([[fit.best_loss for fit in gene] for gene in fits], dtype=torch.float64)
    n_logits = null[0].n_logits
    known = spec.informed(counts)
    columns, beside = [term.columns for term in terms], [term.nuisance for term in terms]
    ranks = identified_ranks(torch.from_numpy(design.values), known, terms=columns, nuisance=beside)
    at_zero = torch.stack([_prior_at_zero(counts, spec, null, design, term) for term in terms], -1)
    statistic, pvalue = likelihood_ratio_test(-loss[:, 1:] - at_zero, -loss[:, :1], ranks * n_logits)
    lost = torch.stack([_with_endless_sigma(some) for some in zip(*fits, strict=True)], -1)
    lost = lost[:, :1] | lost[:, 1:]
    if not robust:
        known = (ranks > 0) & ~lost
        return [*(torch.where(known, value, torch.nan) for value in (statistic, pvalue)), ranks]
    statistic = torch.where(ranks > 0, statistic, torch.nan)
    score = _score_test(linearised(spec.rebuild(counts, null)), design, terms, robust)
    if score.residual_dof is None:
        raise AssertionError("a robust test has the degrees of freedom of the residuals")
    factor = torch.where(score.by_model == 0, 1.0, score.statistic / score.by_model)
    for t, term in enumerate(terms):
        own, larger = design.only(term.full), [gene[1 + t] for gene in fits]
        found = estimates(counts, spec.with_design(own), larger, own, robust)
        rows = torch.eye(len(term.full), dtype=torch.float64)[[term.full.index(column) for column in term.columns]]
        quotient = (found.wald(rows)[0] / found.wald(rows, by_model=True)[0])[:, 0]
        factor[:, t] = torch.where(torch.isfinite(quotient), quotient, factor[:, t])
        away = lost[:, t] | torch.tensor([fit.reason == "separated" for fit in larger])
        statistic[:, t] = torch.where(away, score.statistic[:, t], statistic[:, t] * factor[:, t])
    return [statistic, trace_sf(statistic, ranks, n_logits, score.residual_dof), ranks]


def _prior_at_zero(counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], design: Design, term: Term) -> Tensor:
    """Log prior density of the tested coefficients at zero, beside the others at their ``genes``, ``(B,)``."""
    if not spec.with_priors:
        return torch.zeros(len(genes), dtype=torch.float64)
    rows = [term.full.index(column) for column in term.nuisance]
    padded = []
    for gene in genes:
        beta = torch.zeros(len(term.full), gene.n_logits, dtype=torch.float64)
        beta[rows] = gene.values["beta"]
        padded.append(gene.with_values(beta=beta))
    whole = spec.with_design(design.only(term.full)).rebuild(counts, padded).log_prior_density()
    return whole - spec.rebuild(counts, genes).log_prior_density()


def _with_endless_sigma(genes: Sequence[FittedGene]) -> Tensor:
    """Fits whose σ is at infinity or near, ``(B,)``."""
    return torch.tensor([gene.has_endless_sigma for gene in genes])


def _by_logit(matrix: Tensor, n_logits: int) -> Tensor:
    """The same for coefficients of all logits, logits fastest."""
    return torch.kron(matrix.contiguous(), torch.eye(n_logits, dtype=matrix.dtype))


def _score_test(fit: Linearised, design: Design, terms: Sequence[Term], robust: bool) -> CovariateTest:
    return score_test(
        fit,
        torch.from_numpy(design.values),
        terms=[term.columns for term in terms],
        nuisance=[term.nuisance for term in terms],
        robust=robust,
    )
