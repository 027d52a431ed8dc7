"""Tests of covariates for differential usage, and what a tissue can say of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.surrogates import Surrogates
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._usage.analysis.fits import TEST_BATCH, Analyzed, UsageAnalysis
from pyrosplice._usage.analysis.grouped_usage import grouped_usage_tests
from pyrosplice._usage.analysis.options import UsageTestOptions, check_units, law_name
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.gene_tests import covariate_tests
from pyrosplice._usage.gene_tests.covariate_law import Law
from pyrosplice._usage.gene_tests.linearized import GeneTests, run_batches
from pyrosplice._usage.gene_tests.missing_results import reasons_of
from pyrosplice._usage.gene_tests.reliability import (
    between_sections,
    refused,
    reliable,
    shares_of_genes,
    unequal_field,
    warn_of_few_modes,
)
from pyrosplice._usage.gene_tests.terms import (
    By,
    Contrast,
    Term,
    TestLaw,
    Variance,
    contrasts_of,
    same_nuisance,
    terms_of,
)
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.records import ModelSpec
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.errors import NoResultsError


def test_differential_usage(  # noqa: PLR0913 (a documented interface)
    self: Analyzed,
    method: Literal["score", "wald", "lrt"] = "score",
    print_progress: bool = True,
    return_results: bool = False,
    *,
    by: By = "covariate",
    contrasts: object = None,
    variance: Variance | None = None,
    law: TestLaw | None = None,
    n_surrogates: int | None = None,
    random_seed: int | None = None,
    df: DfRule | float | None = None,
) -> dict[str, Any] | None:
    """Test every gene and covariate for an effect on usage (β = 0 in all logits).

    With ``model_type="glm"`` the association is unconditional. With a GLMM it is conditional on the random effect,
    at the *marginal* optimum with σ estimated: the user's fit if it is that, else found here, once. Priors are
    honoured: the optimum is that of the posterior density, a ratio that of its maxima with the tested coefficients
    free and zero, and the variance of an estimate has what they add.

    A covariate that varies like a few waves over the tissue meets a spatial effect that does so too, and one tissue
    holds few replicates of such waves. How few, the results say: ``posterior_df``, ``reliable``, and no p-value at
    all below 5 degrees of freedom; :meth:`covariate_modes` says it before. A covariate that is constant in each of
    two (up to about six) sections is refused whatever the model says. P-values at the estimated covariance
    (``law="plugin"``) do *not* hold for such a covariate where usage follows domains (a gradient: 23 to 27 % of
    null genes at 5 %, tests/studies/calibration_finds_faults.py).

    Parameters
    ----------
    method
        ``"score"`` after ``fit(with_design_mtx=False)``: each covariate beside the intercept and all covariates but
        the levels of its own factor, at fits with those, which are made here where there are any. ``"wald"`` after
        ``fit(with_design_mtx=True)``: from the full information matrix; a level of a factor is compared with the
        mean of the levels. ``"lrt"`` after either: twice the log (marginal) likelihood ratio of the models with and
        without the covariate, the others (those of the score test) in both and σ and θ estimated under each. It
        makes a fit more for every covariate.
    print_progress, return_results
        Progress bars; return the results instead of keeping them.
    by
        ``"covariate"``: one test each. ``"factor"``: the levels of a factor (columns of a term of a formula)
        jointly, (L − 1) Q degrees of freedom, called as the factor is.
    contrasts
        For ``"wald"``, instead of ``by``: combinations of coefficients that are tested to be zero, levels of a
        factor centred. ``{"a or b": {"region_a": 1, "region_b": -1}}``; ``{name: weights}`` with one weight a
        covariate, ``(P,)``, or several rows that are tested jointly, ``(C, P)``; or a matrix of one test a row.
    variance
        Variance of the score, and so of estimates. ``"robust"`` (default, but for surrogates): from the residuals
        (:mod:`pyrosplice._hypothesis.coefficients.residual_variance`). With a random effect, the model's with the
        dispersion that they have between the logits, which one variance for all logits does not give. In a GLM,
        with the excess variance that counts have where usage varies between spots, more in deep spots than in
        shallow ones. P-values are then not of χ² but of an F law on the residuals' degrees of freedom ν
        (Hotelling's for one column, McKeon's for more), NaN for genes whose spots leave none. Likelihood ratios are
        multiplied by the quotient of the Wald statistics with this variance and with the model's (Chandler & Bate
        2007, Biometrika 94:167); where a coefficient is at infinity ("separated"), whose ratio rejects most null
        genes, they are the score statistic. ``"model"``: as the model says; for counts that are known to follow it,
        and with ``law="plugin"`` a little liberal at few counts a spot. ``"het"``: as ``"robust"``, and the
        standard deviation of the spatial effect may depend on the tested covariate, over which it is averaged too:
        where usage varies in space on one side of the tissue and not on the other, at the price of power. Score and
        Wald tests of single covariates.
    law
        What the covariance of the random effect is taken to be. ``"averaged"`` (default with ``"glmm-full"``): its
        mean over the restricted posterior of (σ, θ) and of the slope of the spatial spectrum, V, V^1.5, V² or V³,
        as usage in domains with sharp edges has a steeper one than V
        (:mod:`pyrosplice._hypothesis.coefficients.restricted_posterior`); p-values are of an F law whose degrees of
        freedom are the residuals', ``posterior_df`` and three a mode of the covariate together (harmonically: a
        covariate of few modes meets few patterns of a field that may have edges). Where σ or θ have a prior it is
        that, else a half-normal of standard deviation 1.5 for each part. The steeper ones are of the spots'
        positions (:func:`~pyrosplice.spatial._graph.wide_graph`), as a graph in pieces knows of no waves over the
        tissue; where graph or covariance were given, of these. ``"plugin"`` (default with ``"glmm-null"``, for
        which there is no other): at the estimates, as if they were known; right where usage follows the model and
        the covariate varies like noise, and faster; no reliability is told. None for ``"glm"``.
        ``"surrogates"``, for ``method="score"``, a check beside the default that takes no model of usage for
        right: the statistic at the averaged covariance among those of covariates redrawn with the same energy at
        every scale (:mod:`pyrosplice._hypothesis.coefficients.surrogates`); up to 4,000 spots.
    n_surrogates, random_seed
        For ``law="surrogates"``: how many (default 999, least 19; the smallest p-value is one over one more), and
        their seed (default 0). The same surrogates serve all genes.
    df
        With random effects of groups: the denominator's degrees of freedom of F, which all methods are then held
        to. ``"clip"`` (default): Satterthwaite's, at most twice the between–within ones;
        ``"satterthwaite"`` or ``"between-within"`` alone; ``"normal"``: infinite; or a number. All K − 1 logits
        share the variance of an effect, so that those of the design count K − 1 times; of a covariate within groups
        the curvature's, at most the design's. By ``"clip"`` numerator and denominator of F have ε times as many,
        1 / (K − 1) to 1, as far as isoforms vary unequally between the units
        (:mod:`pyrosplice._hypothesis.coefficients.sphericity`); by the others ε is 1.
        400 genes without effect, 4 against 4 sections of 100 spots, depth 3, with ``(1 | section)`` and a field, Wald
        (``effects_isoforms.csv`` of tests/studies/results): at 5 % of three and five isoforms 2.0 and 3.0 % where all
        vary between sections (with ε = 1, ``"satterthwaite"``, 3.5 and 6.5), 6.0 and 4.3 % where only the last does
        (7.8 and 9.3; at 1 % 1.3 and 1.3, and 2.5 and 4.0), .8 % where sections are alike (1.3); 19 to 24 % without
        ``(1 | section)`` where they are not. The price is power where units are few beside isoforms: three isoforms
        that all vary, 35 % for 43, and next to none from five isoforms in 2 against 2 units.

    Returns
    -------
    dict or None
        ``gene`` (G), ``covariate`` (T: covariates, factors or contrasts), ``statistic``, ``pvalue``, ``pvalue_adj``
        (Benjamini–Hochberg over the genes of a covariate), ``df``, ``(G, T)`` each, ``method``, ``by``,
        ``variance`` and ``law``. With the averaged law, ``(G, T)`` each, ``posterior_df``: degrees of freedom with
        which the variance of what is tested is known; ``unequal_field``: whether the spatial effect's standard
        deviation depends on the covariate (a likelihood ratio above 6); ``reliable``: whether there is a p-value,
        25 degrees of freedom or more, a covariate of three modes or more (:meth:`covariate_modes`) and no unequal
        field (tests/studies/du_covariates.py has the sizes behind these limits). A gene need not have counts
        wherever a covariate varies: what its spots identify is tested, with its own ``df``. ``reason``, G lists of
        T: "" or why there is no p-value, among
        :class:`~pyrosplice.reasons.Reason`. With random effects of groups ``df`` is that of the denominator of F,
        ``(G, T)``; ``sphericity``, ``(G, T)``, the ε that is in it, and that the numerator's ``n_tested`` are times;
        ``n_tested``, ``(G, T)``, how many coefficients are tested together; ``unit``, G lists of T, what
        the covariate is compared between (a grouping factor or ``"spots"``); and ``n_units`` how many there are.

    Warns
    -----
    UserWarning
        A covariate that varies within groups without a slope or nested effect, whose units are spots.

    Raises
    ------
    InvalidArgumentError
        Another method; no design; a fit that is with covariates where it should be without, or the other way round;
        contrasts that cannot be tested, or for another method; another ``by``, ``variance`` or ``law``; options
        that exclude each other.
    NotReadyError
        Before ``setup_data`` or ``fit``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # genes, covariates, logits: the first gene follows the covariate
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(print_progress=False)
    >>> model.test_differential_usage(method="score", print_progress=False)
    >>> results = model.get_formatted_test_results("du").set_index(["gene", "covariate"])
    >>> results["pvalue"] < 0.01
    gene    covariate
    gene_1  iid           True
    gene_2  iid          False
    Name: pvalue, dtype: bool
    """
    analysis = self.analysis
    analysis.shipped_only("test_differential_usage")
    options = UsageTestOptions(
        method=method,
        by=by,
        contrasts=contrasts,
        variance=variance,
        law=law,
        n_surrogates=n_surrogates,
        random_seed=random_seed,
        df=df,
    )
    results = usage_tests(analysis, options, show=print_progress)
    if return_results:
        return results
    analysis.results["du"] = results
    return None


def usage_tests(analysis: UsageAnalysis, options: UsageTestOptions, *, show: bool) -> dict[str, Any]:
    """Test covariates, and arrange what :func:`test_differential_usage` returns."""
    prepared, design, method = analysis.prepared, _design_to_test(analysis, options), options.method
    if prepared.listed is not None:
        return grouped_usage_tests(analysis, options, show=show, stacklevel=5)
    covariance = law_name(options.law, options.variance_used, analysis.model_type)
    law = law_of(analysis, covariance, options.variance_used, options.surrogates)
    wanted: Sequence[Any] = (
        contrasts_of(design, options.by, options.contrasts) if method == "wald" else terms_of(design, options.by)
    )
    names, tested = [one.name for one in wanted], [one.columns for one in wanted]
    options.check_unequal(names, tested)
    kinds: dict[str, Callable[..., GeneTests]] = {
        "score": usage_score_tests,
        "lrt": usage_ratio_tests,
        "wald": usage_wald_tests,
    }
    tests = kinds[method](analysis, wanted, law, show=show)
    more: dict[str, Any] = {}
    if law.spectra is not None:
        modes = np.array([modes_of(analysis, columns) for columns in tested])
        tests = refused(tests, prepared, tested, modes, of_posterior=law.surrogates is None)
        warn_of_few_modes(tests, names, modes, stacklevel=4)
        more = {"posterior_df": tests.posterior_df, "unequal_field": unequal_field(tests)}
        more |= {"reliable": reliable(tests, modes)}
    return {
        "gene": list(prepared.gene_names),
        "covariate": names,
        "statistic": tests.statistic,
        "pvalue": tests.pvalue,
        "pvalue_adj": adjust_pvalues(tests.pvalue),
        "df": tests.rank.astype(np.int64) * (np.array(prepared.data.n_isos)[:, None] - 1),
        "reason": tests.reason.tolist(),
        "method": method,
        "by": options.by if options.contrasts is None else "contrast",
        "variance": options.variance_used,
        "law": covariance,
        **more,
    }


def _design_to_test(analysis: UsageAnalysis, options: UsageTestOptions) -> Design:
    """The covariates, if the options go with them and with the fit."""
    prepared = analysis.prepared
    options.check(prepared.covariate_names)
    if prepared.design is None:
        raise NoResultsError("design_mtx: expected covariates to test; setup_data was called without a design.")
    options.check_fit(with_design=analysis.fit.with_design)
    check_units(options.variance, options.law, options.df, grouped=prepared.listed is not None)
    return prepared.design


def covariate_modes(self: Analyzed) -> pd.DataFrame:
    """Measure how much a tissue can say of each covariate: a look before the tests.

    A covariate that varies like one wave over the tissue meets a field that does so too, once: whatever the number
    of spots, there is one replicate. After a fit, for every gene, the posterior of the field's variances tells with
    how many degrees of freedom the variance of the covariate's effect is known
    (:mod:`pyrosplice._hypothesis.coefficients.restricted_posterior`).

    Returns
    -------
    pandas.DataFrame
        One row a covariate: ``modes``, over how many eigenvectors of the spatial covariance it is spread (1 to N:
        white noise has about N / 3); ``posterior_df``, the median over the genes, and ``like_spots``, of how many
        independent spots a t-test has as many (NaN before ``fit``); ``refused``, share of the genes with fewer than
        5, ``reliable``, with 25 or more where the modes are three or more, and ``few``, the rest (NaN before
        ``fit``).

    Raises
    ------
    NotReadyError
        Before ``setup_data``.
    InvalidArgumentError
        No covariates, or a model without a spatial effect.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid", "smooth"), seed=0)
    >>> model = SplisosmGLMM()
    >>> model.setup_data(adata, design_mtx=["iid", "smooth"])
    >>> model.fit(print_progress=False)
    >>> modes = model.covariate_modes().set_index("covariate")["modes"]
    >>> bool(modes["iid"] > 3 * modes["smooth"])  # few waves over the tissue: few replicates
    True
    """
    analysis = self.analysis
    analysis.shipped_only("covariate_modes")
    analysis.without_groups("covariate_modes", "Their units are in units().")
    prepared = analysis.prepared
    if prepared.design is None or analysis.model_type != "glmm-full":
        raise NoResultsError("covariate_modes: expected covariates and model_type='glmm-full'.")
    terms = terms_of(prepared.design, "covariate")
    modes = [modes_of(analysis, term.columns) for term in terms]
    table = pd.DataFrame({"covariate": [term.name for term in terms], "modes": modes})
    df = np.full((1, len(terms)), np.nan)
    if analysis.fitted is not None:
        df = usage_score_tests(analysis, terms, law_of(analysis, "averaged", "robust"), show=False).posterior_df
    closed = np.array([between_sections(prepared, term.columns) for term in terms])
    return shares_of_genes(table, df, closed)


def modes_of(analysis: UsageAnalysis, columns: Sequence[int]) -> float:
    """Count the patterns of space that the covariates are spread over."""
    design = analysis.prepared.design
    if design is None:
        raise AssertionError("tests of covariates have a design")
    return analysis.spectra().effective_modes(torch.from_numpy(design.values[:, list(columns)]))


def law_of(
    analysis: UsageAnalysis, covariance: str | None, variance: Variance, surrogates: tuple[int, int] | None = None
) -> Law:
    """What tests are held to; ``surrogates`` are how many covariates are redrawn, and their seed."""
    spectra = analysis.spectra() if covariance in ("averaged", "surrogates") else None
    redrawn = None if surrogates is None else Surrogates(analysis.prepared.patterns(), *surrogates)
    return Law(robust=variance != "model", spectra=spectra, unequal=variance == "het", surrogates=redrawn)


def usage_score_tests(analysis: UsageAnalysis, terms: Sequence[Term], law: Law, *, show: bool) -> GeneTests:
    """Test covariates of all genes by the score."""

    def fits(group: list[Term]) -> Sequence[Any]:
        return analysis.fit_with(group[0].nuisance, show=show)

    return _by_nuisance(UsageTask(covariate_tests.score_of_terms, "score", analysis, law, show), terms, fits)


def usage_ratio_tests(analysis: UsageAnalysis, terms: Sequence[Term], law: Law, *, show: bool) -> GeneTests:
    """Test covariates of all genes by the likelihood ratio."""
    fits: dict[tuple[int, ...], list[FittedGene]] = {}
    for columns in dict.fromkeys(columns for term in terms for columns in (term.full, term.nuisance)):
        fits[columns] = analysis.fit_with(columns, show=show)

    def own(group: list[Term]) -> Sequence[Any]:
        return list(zip(fits[group[0].nuisance], *(fits[term.full] for term in group), strict=True))

    return _by_nuisance(UsageTask(covariate_tests.ratio_of_terms, "lrt", analysis, law, show), terms, own)


def usage_wald_tests(analysis: UsageAnalysis, contrasts: Sequence[Contrast], law: Law, *, show: bool) -> GeneTests:
    """Test covariates of all genes by estimates over standard errors (Wald)."""
    genes, spec = effect_fits(analysis, law, show=show)
    return UsageTask(covariate_tests.wald_of_contrasts, "wald", analysis, law, show).run(spec, genes, contrasts)


def effect_fits(analysis: UsageAnalysis, law: Law, *, show: bool) -> tuple[list[FittedGene], ModelSpec]:
    """Genes fitted with all covariates, as Wald tests and effects need them, and their model."""
    genes = analysis.test_fit(analysis.model_type, with_design=True, show=show)
    device = None if law.spectra is None else "cpu"
    return genes, analysis.test_spec(analysis.model_type, with_design=True, device=device)


def batches_under(analysis: UsageAnalysis, law: Law) -> list[list[int]]:
    """Genes that tests work on together."""
    prepared, out = analysis.prepared, []
    for batch in prepared.batches(TEST_BATCH, group=True):
        n_logits = analysis.options.likelihood.n_predictors(prepared.counts[batch[0]].shape[1])
        size = law.genes_at_once(prepared.n_spots, n_logits)
        out += [batch[start : start + size] for start in range(0, len(batch), size)]
    return out


@dataclass(frozen=True)
class UsageTask:
    """A test to make of all genes: the function of a batch, what it is called, and the law that it is held to."""

    of_batch: Callable[..., list[Tensor]]
    name: str
    analysis: UsageAnalysis
    law: Law
    show: bool

    def run(self, spec: ModelSpec, genes: Sequence[Any], wanted: Sequence[Any]) -> GeneTests:
        """The tests that are ``wanted`` at fits of all genes, one or several a gene, batch by batch."""
        analysis, prepared = self.analysis, self.analysis.prepared
        batches = batches_under(analysis, self.law)
        calls = [
            (analysis.counts(some), spec, [genes[gene] for gene in some], prepared.design, wanted, self.law)
            for some in batches
        ]
        found = run_batches(self.of_batch, calls, description=self.name, show=self.show)
        tests = GeneTests.gather(batches, found, (analysis.n_genes, len(wanted)))
        fits = [gene if isinstance(gene, tuple) else (gene,) for gene in genes]
        reasons = reasons_of(tests.pvalue, prepared.counts, rank=tests.rank, fits=fits, from_residuals=self.law.robust)
        return replace(tests, reason=reasons)


def _by_nuisance(task: UsageTask, terms: Sequence[Term], fits: Callable[[list[Term]], Sequence[Any]]) -> GeneTests:
    """Tests of terms with the same nuisance together, with the model of the nuisance, at their ``fits``."""
    tests = GeneTests.blank((task.analysis.n_genes, len(terms)))
    for some in same_nuisance(terms):
        group = [terms[t] for t in some]
        found = task.run(task.analysis.spec_with(group[0].nuisance), fits(group), group)
        for whole, part in zip(vars(tests).values(), vars(found).values(), strict=True):
            whole[:, some] = part
    return tests
