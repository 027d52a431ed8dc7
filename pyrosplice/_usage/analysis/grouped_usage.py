"""Tests and effects of covariates beside random effects of groups, by t and F of the units' degrees of freedom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._hypothesis.coefficients.sphericity import share_of, sphericity
from pyrosplice._hypothesis.coefficients.unit_law import fewest_units, freedom_of
from pyrosplice._hypothesis.coefficients.unit_statistics import (
    Reasons,
    ratio_of_units,
    score_of_units,
    wald_of_units,
    wald_tail,
    worse_of,
)
from pyrosplice._hypothesis.coefficients.wald import Effects
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._usage.analysis.fits import UsageAnalysis, batches_alike
from pyrosplice._usage.analysis.options import UsageTestOptions
from pyrosplice._usage.effect_sizes import average_usage_effects, centered_log_odds, changes_of
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.gene_tests.linearized import run_batches
from pyrosplice._usage.gene_tests.missing_results import reasons_of
from pyrosplice._usage.gene_tests.terms import Contrast, contrasts_of
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.effects._units import ContrastUnits
from pyrosplice.glmm._arrow.between_units import variation_of_units
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.satterthwaite import covariance_law
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]


@dataclass(frozen=True)
class UnitContrast:
    """Contrasts ``(k, 1 + P)`` of intercept and covariates that are tested together, and their units."""

    rows: Array
    units: ContrastUnits

    @classmethod
    def of(cls, spec: GroupedSpec, contrast: Contrast, df: DfRule | float, *, stacklevel: int) -> UnitContrast:
        """Contrasts of covariates with their units; warns where spots are the units of what varies within groups."""
        rows = np.concatenate([np.zeros((len(contrast.rows), 1)), contrast.rows], 1)
        return cls(rows, fewest_units(spec.units(), rows, df, stacklevel=stacklevel + 1))


@dataclass(frozen=True)
class UnitTests:
    """Tests of a batch of genes ``(B, T)``: statistics, p-values, and why there is none.

    ``df`` is the denominator's degrees of freedom; ``sphericity`` is in it, and times ``n_tested`` the numerator's.
    """

    statistic: Array
    pvalue: Array
    df: Array
    sphericity: Array
    ended: Reasons


def grouped_usage_tests(
    analysis: UsageAnalysis, options: UsageTestOptions, *, show: bool, stacklevel: int
) -> dict[str, Any]:
    """Test covariates beside random effects of groups, as ``test_differential_usage`` documents it."""
    prepared, design, df = analysis.prepared, analysis.prepared.design, options.df_used
    if design is None:
        raise AssertionError("tests of covariates have a design")
    spec = analysis.grouped_spec(with_design=True)
    wanted = contrasts_of(design, options.by, options.contrasts)
    tested = [UnitContrast.of(spec, contrast, df, stacklevel=stacklevel + 1) for contrast in wanted]
    genes = full_fits(analysis, show=show)
    batches = batches_alike(analysis, spec, genes)
    own = [[genes[g] for g in some] for some in batches]
    calls = [
        (analysis.counts(some), spec.at(fits), fits, tested, options.method, df)
        for some, fits in zip(batches, own, strict=True)
    ]
    found = run_batches(unit_tests, calls, description=options.method, n_jobs=analysis.jobs(None), show=show)
    shape = (analysis.n_genes, len(wanted))
    whole = {name: np.full(shape, np.nan) for name in ("statistic", "pvalue", "df", "sphericity")}
    ended = np.full(shape, "", dtype=object)
    for some, part in zip(batches, found, strict=True):
        for name, values in whole.items():
            values[some] = getattr(part, name)
        ended[some] = part.ended
    why = reasons_of(whole["pvalue"], prepared.counts, fits=[[gene] for gene in genes], from_residuals=False)
    why = np.where((why == Reason.NOT_FINITE.value) & (ended != ""), ended, why)
    n_logits = np.array([gene.n_logits for gene in genes])
    return {
        "gene": list(prepared.gene_names),
        "covariate": [one.name for one in wanted],
        **whole,
        "pvalue_adj": adjust_pvalues(whole["pvalue"]),
        "n_tested": n_logits[:, None] * np.array([len(one.rows) for one in wanted]),
        "unit": [[one.units.unit for one in tested]] * len(genes),
        "n_units": np.tile([one.units.n_units for one in tested], (len(genes), 1)),
        "reason": why.tolist(),
        "method": options.method,
        "by": options.by if options.contrasts is None else "contrast",
        "variance": "model",
        "law": "units",
    }


def full_fits(analysis: UsageAnalysis, *, show: bool) -> list[FittedGene]:
    """Genes fitted with all covariates: those of ``fit`` where it had them, else new ones, once."""
    if analysis.fit.with_design or analysis.prepared.design is None:
        return analysis.fit.genes
    return analysis.listed_fits(analysis.grouped_spec(with_design=True), ("listed", "all covariates"), show=show)


def unit_tests(
    counts: Tensor,
    spec: GroupedSpec,
    genes: Sequence[FittedGene],
    tested: Sequence[UnitContrast],
    method: str,
    df: DfRule | float,
) -> UnitTests:
    """Test contrasts of a batch of genes ``(B, N, K)`` with one number of isoforms.

    With Q logits a contrast of k rows is k Q coefficients, n units are n Q of them, and have Q times the degrees of
    freedom of one: the variance of an effect is that of all logits, and in the coordinates in which its covariance is
    a multiple of I, they are replicates of each other. As far as they are not, both are ε times as many
    (:mod:`pyrosplice._hypothesis.coefficients.sphericity`).
    """
    problem, fit = spec.problem(counts), spec.restored(genes)
    law = covariance_law(problem, fit)
    q, columns = genes[0].n_logits, []
    for one in tested:
        k = q * len(one.rows)
        freedom = freedom_of(law, one.rows, one.units, df, n_predictors=q)
        share = sphericity_of(problem, fit, one.units, df)
        if method == "lrt":
            statistic, ended = ratio_of_units(problem, one.rows, fit)
            freedom = np.minimum(freedom, q * one.units.df) if df == "clip" else freedom
            tail = wald_tail(statistic, k, freedom, sphericity=share)
        elif method == "score":
            statistic, ended = score_of_units(problem, one.rows, fit)
            tail = wald_tail(statistic, k, freedom, sphericity=share)
        else:
            statistic, ended = wald_of_units(fit, one.rows), worse_of(fit.reason)
            tail = wald_tail(statistic, k, freedom, sphericity=share)
        lost = ended != ""
        found = statistic, tail, share_of(freedom, share), share
        columns.append((*(np.where(lost, np.nan, values) for values in found), ended))
    return UnitTests(*(np.stack(values, 1) for values in zip(*columns, strict=True)))


def sphericity_of(problem: EffectsProblem, fit: EffectsFit, units: ContrastUnits, df: DfRule | float) -> Array:
    """How far logits are replicates of each other between the units of a contrast, ε ``(B,)``; 1 by other rules."""
    if df != "clip" or units.of_observations or fit.coefficients.shape[2] == 1:
        return np.ones(len(fit.coefficients))
    return sphericity(variation_of_units(problem, fit, units.compared).numpy(), units.df)


def grouped_gene_effects(
    counts: Tensor,
    spec: GroupedSpec,
    genes: Sequence[FittedGene],
    covariates: Sequence[UnitContrast],
    df: DfRule | float,
) -> tuple[Effects, Effects]:
    """Effects ``(B, P, K)`` of covariates on log odds and on shares, of a batch ``(B, N, K)``."""
    fit, design = spec.restored(genes), spec.design
    if design is None:
        raise AssertionError("effects are those of a design")
    given, q = torch.from_numpy(design.values), genes[0].n_logits
    order = torch.roll(torch.arange(fit.covariance.shape[-1]), -q)  # the intercept last
    beta, covariance = fit.coefficients[:, 1:], fit.covariance[:, order][:, :, order]
    problem = spec.problem(counts)
    law = covariance_law(problem, fit)
    dof = [
        share_of(freedom_of(law, one.rows, one.units, df, n_predictors=q), sphericity_of(problem, fit, one.units, df))
        for one in covariates
    ]
    usage = average_usage_effects(spec.predictor(genes), beta, covariance, given, changes_of(given, design.terms))
    odds, freedom = centered_log_odds(beta, covariance), torch.from_numpy(np.stack(dof, -1))
    return replace(odds, dof=freedom), replace(usage, dof=freedom)
