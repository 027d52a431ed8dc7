"""How large effects of covariates on usage are: a table of all genes and isoforms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._hypothesis.coefficients.identified import TOUCHED
from pyrosplice._hypothesis.coefficients.wald import Effects
from pyrosplice._usage.analysis.differential_usage import batches_under, effect_fits, law_of
from pyrosplice._usage.analysis.fits import Analyzed, UsageAnalysis, batches_alike
from pyrosplice._usage.analysis.grouped_usage import UnitContrast, grouped_gene_effects
from pyrosplice._usage.analysis.options import check_of_isoforms, check_units, law_name
from pyrosplice._usage.effect_sizes import average_usage_effects, centered_log_odds, changes_of
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.gene_tests.coefficients import estimates
from pyrosplice._usage.gene_tests.covariate_law import Law
from pyrosplice._usage.gene_tests.missing_results import reasons_of
from pyrosplice._usage.gene_tests.terms import Contrast, CovarianceLaw, contrasts_of
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.records import ModelSpec
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.errors import NoResultsError, check_option, check_share

Floats = NDArray[np.float64]
Part = tuple[list[int], list[FittedGene], dict[str, Effects]]  # positions of genes, their fits, effects by scale
POINTS = 100.0  # percentage points of usage


def get_effects(
    self: Analyzed,
    *,
    level: float = 0.95,
    variance: Literal["robust", "model"] | None = None,
    law: CovarianceLaw | None = None,
    df: DfRule | float | None = None,
) -> pd.DataFrame:
    """Estimate how much each covariate changes each isoform, with standard errors and intervals.

    After ``fit(with_design_mtx=True)``. With a GLMM the effects are those of the *marginal* optimum with σ
    estimated (as in the Wald test), conditional on the random effect. No isoform is the reference of an effect; the
    last one is that of the GLMM's random effect, whose fit it changes a little, unless this is ``"symmetric"``.

    Parameters
    ----------
    level
        Confidence of the intervals.
    variance
        ``"robust"`` (default): standard errors from the residuals, and intervals are Student's on their degrees of
        freedom; ``"model"``: as the model says, and normal. See :meth:`test_differential_usage`. With random effects of
        groups it is the model's, and intervals are Student's by the units' degrees of freedom.
    law
        As there: ``"averaged"`` (default with a spatial effect), one generalised least-squares step from the fits
        at the posterior mean of the covariance, so that intervals and Wald tests agree; ``"plugin"``, the fitted
        coefficients with the covariance that was estimated.
    df
        With random effects of groups: as there.

    Returns
    -------
    pandas.DataFrame
        One row a gene, covariate and isoform (name in ``var``), on two scales:

        ``log_odds``: log odds of the isoform against the geometric mean of all isoforms, a unit of the covariate;
        for a level of a factor, against the mean of the levels.

        ``usage_points``: percentage points of usage, averaged over the spots; the derivative for a continuous
        covariate, 1 against 0 where these are its values, and a level of a factor against the mean of its levels.
        With two levels that is half their difference. Levels that a formula coded are against the one it left out.

        Each with ``_se``, ``_lower`` and ``_upper``, from the covariance of β and intercept with (σ, θ) estimated
        too; these are NaN where a coefficient is at infinity, or no degrees of freedom are left. An effect that
        the gene's spots do not identify (a level in which it has no molecules, and so the mean of the levels) is
        NaN altogether; the others of such a gene are averages over the spots where its usage is identified.
        ``reason``: "" or why one is missing, a word of :class:`~pyrosplice.reasons.Reason`.

    Raises
    ------
    NotReadyError
        Before ``setup_data`` or ``fit``.
    InvalidArgumentError
        A fit without covariates; ``level`` outside (0, 1); another ``variance`` or ``law``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # genes, covariates, logits
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> effects = model.get_effects()
    >>> effects.shape, list(effects.columns[:8])
    ((6, 12), ['gene', 'covariate', 'isoform', 'log_odds', 'log_odds_se', 'log_odds_lower',
    'log_odds_upper', 'usage_points'])
    """
    analysis = self.analysis
    prepared = analysis.prepared
    design = effects_asked(analysis, level=level, variance=variance, law=law, df=df, what="get_effects")
    parts, robust = effect_parts(analysis, design, variance=variance, law=law, df=df)
    tables: dict[int, pd.DataFrame] = {}
    for batch, some, effects in parts:
        found = {name: (e.estimate, e.standard_error, *e.interval(level)) for name, e in effects.items()}
        for row, gene in enumerate(batch):
            labels = [[prepared.gene_names[gene]], design.names, prepared.isoform_names(gene)]
            own = {name: [value[row].numpy().ravel() for value in values] for name, values in found.items()}
            table = _gene_table(labels, own)
            values = [column for columns in own.values() for column in columns]
            why = why_missing(values, prepared.counts[gene], some[row], robust)
            tables[gene] = table.assign(reason=why)
    return pd.concat([tables[gene] for gene in range(analysis.n_genes)], ignore_index=True)


def effects_asked(
    analysis: UsageAnalysis,
    *,
    level: float,
    variance: str | None,
    law: str | None,
    df: DfRule | float | None,
    what: str,
) -> Design:
    """The covariates whose effects ``what`` asks for; raises where there are none, or an option is wrong."""
    analysis.shipped_only(what)
    likelihood = analysis.options.likelihood
    check_of_isoforms(likelihood, f"{what} is of shares of isoforms; its effects are the fits' beta")
    check_share("level", level)
    if variance is not None:
        check_option("variance", variance, ("robust", "model"))
    if law is not None:
        check_option("law", law, get_args(CovarianceLaw))
    design = analysis.prepared.design
    check_units(variance, law, df, grouped=analysis.prepared.listed is not None)
    if design is None or not analysis.fit.with_design:
        raise NoResultsError(f"{what}: expected models with covariates; call fit(with_design_mtx=True) first.")
    return design


def effect_parts(
    analysis: UsageAnalysis,
    design: Design,
    *,
    variance: Literal["robust", "model"] | None,
    law: CovarianceLaw | None,
    df: DfRule | float | None,
) -> tuple[Iterator[Part], bool]:
    """Effects batch by batch, and whether their errors are of residuals."""
    if analysis.prepared.listed is not None:
        return _grouped_parts(analysis, design, "clip" if df is None else df), False
    held_to = law_of(analysis, law_name(law, variance or "robust", analysis.model_type), variance or "robust")
    return _parts(analysis, design, held_to), held_to.robust


def _parts(analysis: UsageAnalysis, design: Design, law: Law) -> Iterator[Part]:
    """Effects without groups, batch by batch."""
    genes, spec = effect_fits(analysis, law, show=False)
    for batch in batches_under(analysis, law):
        some = [genes[g] for g in batch]
        yield batch, some, gene_effects(analysis.counts(batch), spec, some, design, law)


def _grouped_parts(analysis: UsageAnalysis, design: Design, df: DfRule | float) -> Iterator[Part]:
    """Effects beside those of groups, batch by batch."""
    spec = analysis.grouped_spec(with_design=True)
    covariates = [UnitContrast.of(spec, one, df, stacklevel=5) for one in contrasts_of(design, "covariate", None)]
    for batch in batches_alike(analysis, spec, analysis.fit.genes):
        some = [analysis.fit.genes[g] for g in batch]
        odds, usage = grouped_gene_effects(analysis.counts(batch), spec.at(some), some, covariates, df)
        points = replace(usage, estimate=POINTS * usage.estimate, standard_error=POINTS * usage.standard_error)
        yield batch, some, {"log_odds": odds, "usage_points": points}


def gene_effects(
    counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], design: Design, law: Law
) -> dict[str, Effects]:
    """Effects ``(B, P, K)`` of a batch ``(B, N, K)`` by scale: ``log_odds`` and ``usage_points``."""
    unit = np.eye(len(design.names))
    contrasts = [Contrast(name, row[None]) for name, row in zip(design.names, unit, strict=True)]
    found, given = estimates(counts, spec, genes, design, law, contrasts), torch.from_numpy(design.values)
    eta = torch.stack([gene.linear_predictor(counts.shape[1], given) for gene in genes])
    middle = given.mean(0)  # where the intercept of the estimates is
    covariates, changes = given - middle, [change.moved(-middle) for change in changes_of(given, design.terms)]

    def both(some: slice, spots: Tensor, covariance: Tensor) -> tuple[Effects, Effects]:
        beta = found.beta[some]
        usage = average_usage_effects(eta[some][:, spots], beta, covariance, covariates[spots], changes)
        return centered_log_odds(beta, covariance), usage

    everywhere, covariance = torch.ones(len(given), dtype=torch.bool), found.of_coded(found.covariance)
    odds, usage = both(slice(None), everywhere, covariance)
    for gene in found.coverage.deficient:
        one, (spots, null) = slice(gene, gene + 1), found.coverage.identified(gene)
        along, every = (found.along(directions) for directions in (null, torch.eye(len(null), dtype=null.dtype)))
        parts = zip((odds, usage), *(both(one, spots, some) for some in (covariance[one], along, every)), strict=True)
        for whole, own, loose, unit in parts:
            known = loose.standard_error <= TOUCHED * unit.standard_error
            whole.estimate[one] = torch.where(known, own.estimate, torch.nan)
            whole.standard_error[one] = torch.where(known, own.standard_error, torch.nan)
    each = [found.dof(found.rows(torch.from_numpy(one.rows)), t) for t, one in enumerate(contrasts)]
    known = [one for one in each if one is not None]
    dof = torch.stack(known, -1) if known else None
    return {
        "log_odds": Effects(odds.estimate, odds.standard_error, dof),
        "usage_points": Effects(POINTS * usage.estimate, POINTS * usage.standard_error, dof),
    }


def why_missing(effect: Sequence[Floats], counts: Tensor, fit: FittedGene, from_residuals: bool) -> NDArray[Any]:
    """Why effects, errors and ends of intervals ``(R,)`` of one gene are missing; "" where they are not."""
    known = np.where(np.isfinite(effect).all(0), 1.0, np.nan)[None]
    rank = np.isfinite(effect[0]).astype(np.float64)[None]
    return reasons_of(known, [counts], rank=rank, fits=[[fit]], from_residuals=from_residuals)[0]


def _gene_table(labels: Sequence[Sequence[str]], effects: Mapping[str, Sequence[Floats]]) -> pd.DataFrame:
    """Effects of one gene as rows, isoforms within covariates."""
    table = pd.MultiIndex.from_product(labels, names=["gene", "covariate", "isoform"]).to_frame(index=False)
    for scale, values in effects.items():
        for suffix, value in zip(("", "_se", "_lower", "_upper"), values, strict=True):
            table[scale + suffix] = value
    return table
