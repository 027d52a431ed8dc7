"""Score, Wald and likelihood-ratio tests of covariates: what is tested beside what, one batch of genes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.identified import independent_columns
from pyrosplice._hypothesis.coefficients.residual_variance import joint_dof, trace_sf
from pyrosplice._hypothesis.coefficients.score import (
    CovariateTest,
    Linearized,
    identified_ranks,
    joined,
    orthonormal_terms,
    score_test,
)
from pyrosplice._hypothesis.coefficients.surrogates import Surrogates, surrogate_test
from pyrosplice._hypothesis.likelihood_ratio import chi2_sf, likelihood_ratio_test
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.gene_tests.coefficients import estimates
from pyrosplice._usage.gene_tests.covariate_law import (
    MODEL,
    AveragedFit,
    Columns,
    Law,
    averaged_fit,
    schur_target,
    tested_covariates,
)
from pyrosplice._usage.gene_tests.linearized import informed_spots, linearized
from pyrosplice._usage.gene_tests.terms import Contrast, Term
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.records import ModelSpec
from pyrosplice.reasons import Reason


def score_of_terms(
    counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], design: Design, terms: Sequence[Term], law: Law
) -> list[Tensor]:
    """Score tests of terms with the same nuisance at fits with it, a batch ``(B, N, K)``.

    Statistics, p-values, ranks, posterior degrees of freedom and ratios for an unequal field, ``(B, T)`` each.
    """
    test, *known = _score_test(spec.rebuild(counts, genes), design, terms, law)
    lost = _with_endless_sigma(genes) & (not law.robust)
    statistic, pvalue = (torch.where(lost[:, None], torch.nan, value) for value in (test.statistic, test.pvalue))
    return [statistic, pvalue, test.dof / genes[0].n_logits, *known]


def wald_of_contrasts(
    counts: Tensor,
    spec: ModelSpec,
    genes: Sequence[FittedGene],
    design: Design,
    contrasts: Sequence[Contrast],
    law: Law,
) -> list[Tensor]:
    """Wald tests of contrasts beside all covariates, levels of a factor centred: as :func:`score_of_terms`."""
    if law.unequal and len(contrasts) > 1:
        each = [wald_of_contrasts(counts, spec, genes, design, [one], law) for one in contrasts]
        return [torch.cat(values, -1) for values in zip(*each, strict=True)]
    found = estimates(counts, spec, genes, design, law, contrasts)
    tests = [found.wald(torch.from_numpy(contrast.rows), number=t) for t, contrast in enumerate(contrasts)]
    statistic, pvalue, rank = (torch.cat(values, -1) for values in zip(*tests, strict=True))
    return [statistic, pvalue, rank, *(_or_nan(x, statistic) for x in (found.posterior_df, found.slope_ratio))]


def ratio_of_terms(
    counts: Tensor,
    spec: ModelSpec,
    fits: Sequence[tuple[FittedGene, ...]],
    design: Design,
    terms: Sequence[Term],
    law: Law,
) -> list[Tensor]:
    """Likelihood ratios of terms with the same nuisance, as :func:`score_of_terms`.

    ``fits`` has for each gene that of the nuisance, which is the model of ``spec``, and then one with each term. With
    priors the ratio is that of the maxima of the posterior density where the tested coefficients are free and where
    they are zero.

    Ratios that are robust, or averaged over the posterior of the variances, are multiplied by the quotient of the
    term's Wald statistics with that variance and with the model's: the likelihood's curvature along the term's effect
    is made that of the former (Chandler & Bate 2007, Biometrika 94:167, "vertical" adjustment). Where a coefficient has
    run away, the likelihood has none there, and its ratio rejects most null genes whose group lacks a rare isoform
    (tests/studies/separation.py): the statistic is then the score test's. So it is where σ is at infinity or near
    (:data:`~pyrosplice._usage.infinite.ENDLESS_SIGMA`), and ratios that are not robust are NaN there. Where only
    the quotient is not known, it is that of the score statistics.
    """
    null = [gene[0] for gene in fits]
    loss = torch.tensor([[fit.best_loss for fit in gene] for gene in fits], dtype=torch.float64)
    n_logits = null[0].n_logits
    informed = spec.informed(counts)
    columns, beside = [term.columns for term in terms], [term.nuisance for term in terms]
    ranks = identified_ranks(torch.from_numpy(design.values), informed, terms=columns, nuisance=beside)
    at_zero = torch.stack([_prior_at_zero(counts, spec, null, design, term) for term in terms], -1)
    statistic, pvalue = likelihood_ratio_test(-loss[:, 1:] - at_zero, -loss[:, :1], ranks * n_logits)
    lost = torch.stack([_with_endless_sigma(some) for some in zip(*fits, strict=True)], -1)
    lost = lost[:, :1] | lost[:, 1:]
    known = [_or_nan(None, statistic)] * 2
    if law.robust or law.spectra is not None:
        score, factor, *known = _variance_quotient(counts, spec, fits, design, terms, law)
        separated = torch.tensor([[fit.reason == Reason.SEPARATED for fit in gene[1:]] for gene in fits])
        statistic = torch.where(lost | separated, score.statistic, statistic * factor)
        degrees, dof = ranks * n_logits, score.residual_dof
        pvalue = chi2_sf(statistic, degrees) if dof is None else trace_sf(statistic, ranks, n_logits, dof)
    kept = (ranks > 0) & ~(lost & (not law.robust))
    return [*(torch.where(kept, value, torch.nan) for value in (statistic, pvalue)), ranks, *known]


def _variance_quotient(
    counts: Tensor,
    spec: ModelSpec,
    fits: Sequence[tuple[FittedGene, ...]],
    design: Design,
    terms: Sequence[Term],
    law: Law,
) -> tuple[CovariateTest, Tensor, Tensor, Tensor]:
    """Score tests of the terms, what the law's variance makes of their ratios, and what the posterior knows."""
    model = spec.rebuild(counts, [gene[0] for gene in fits])
    score, posterior_df, slope_ratio = _score_test(model, design, terms, law)
    plain = score.by_model if law.spectra is None else _score_test(model, design, terms, MODEL)[0].statistic
    factor = torch.where(plain == 0, 1.0, score.statistic / plain)
    for t, term in enumerate(terms):
        own, larger = design.only(term.full), [gene[1 + t] for gene in fits]
        rows = torch.eye(len(term.full), dtype=torch.float64)[[term.full.index(column) for column in term.columns]]
        found = estimates(counts, spec.with_design(own), larger, own, law)
        base = found if law.spectra is None else estimates(counts, spec.with_design(own), larger, own, MODEL)
        quotient = (found.wald(rows)[0] / base.wald(rows, by_model=True)[0])[:, 0]
        factor[:, t] = torch.where(torch.isfinite(quotient), quotient, factor[:, t])
    return score, factor, posterior_df, slope_ratio


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


def _or_nan(posterior_df: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan) if posterior_df is None else posterior_df


def _score_test(
    model: MultinomGLM, design: Design, terms: Sequence[Term], law: Law
) -> tuple[CovariateTest, Tensor, Tensor]:
    """Score tests of terms with the same nuisance, posterior degrees of freedom and ratios for an unequal field."""
    if law.spectra is None or not isinstance(model, MultinomGLMM):
        test = _test_at(linearized(model), design, terms, law.robust)
        unknown = torch.full_like(test.statistic, torch.nan)
        return test, unknown, unknown
    groups = [[term] for term in terms] if law.unequal else [terms]
    found = [_averaged_null(model, design, group, law) for group in groups]
    each = [_test_at(one.fit, design, group, law.robust) for one, group in zip(found, groups, strict=True)]
    test, posterior_df = joined(each), torch.cat([one.posterior_df for one in found], -1)
    n_logits = model.bias_eta.shape[-1]
    dof = joint_dof(test.residual_dof, torch.cat([one.law_df for one in found], -1))
    pvalue = trace_sf(test.statistic, test.dof / n_logits, n_logits, dof)
    slope_ratio = torch.cat([one.slope_ratio for one in found], -1)
    test = replace(test, pvalue=pvalue, residual_dof=dof)
    if law.surrogates is not None:
        test = _among_surrogates(test, found[0].fit, design, terms, law.surrogates)
    return test, posterior_df, slope_ratio


def _among_surrogates(
    test: CovariateTest, fit: Linearized, design: Design, terms: Sequence[Term], surrogates: Surrogates
) -> CovariateTest:
    """The tests with p-values that are ranks; NaN where a gene's spots do not tell all columns of a term apart."""
    columns, nuisance = [term.columns for term in terms], [term.nuisance for term in terms]
    _, bases = orthonormal_terms(torch.from_numpy(design.values), columns, nuisance)
    groups = [group for _, group in bases]
    named = dict(zip([term.name for term in terms], groups, strict=True))
    statistic, pvalue = surrogate_test(fit, bases[0][0], named, surrogates)
    widths = torch.tensor([group.shape[1] for group in groups]) * fit.residual.shape[-1]
    whole = torch.isfinite(test.statistic) & (test.dof == widths)
    statistic, pvalue = (torch.where(whole, value, torch.nan) for value in (statistic, pvalue))
    return replace(test, statistic=statistic, pvalue=pvalue, dof=torch.where(whole, test.dof, 0))


def _averaged_null(model: MultinomGLMM, design: Design, terms: Sequence[Term], law: Law) -> AveragedFit:
    """A null fit at its posterior mean covariance, and what is known of terms beside it."""
    values = torch.from_numpy(design.values)
    columns, nuisance = [term.columns for term in terms], [term.nuisance for term in terms]
    _, bases = orthonormal_terms(values, columns, nuisance)
    base, groups = bases[0][0], [group for _, group in bases]
    every = torch.cat([base, *groups], 1) * len(values) ** 0.5
    n_fixed, widths = base.shape[1], [group.shape[1] for group in groups]
    kept = independent_columns(every, informed_spots(model), n_fixed, widths)
    target = schur_target(kept, n_fixed, model.bias_eta.shape[-1], widths)
    tested = tested_covariates(design, columns)
    return averaged_fit(model, law, Columns(every, kept, n_fixed), target, tested)


def _test_at(fit: Linearized, design: Design, terms: Sequence[Term], robust: bool) -> CovariateTest:
    return score_test(
        fit,
        torch.from_numpy(design.values),
        terms=[term.columns for term in terms],
        nuisance=[term.nuisance for term in terms],
        robust=robust,
    )
