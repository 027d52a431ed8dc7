"""Tests of spatial variability of isoform usage, gene by gene."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice._usage.analysis.fits import TEST_BATCH, Analyzed, UsageAnalysis
from pyrosplice._usage.analysis.options import VariabilityOptions, check_of_isoforms
from pyrosplice._usage.gene_tests import linearized as gene_tests
from pyrosplice._usage.gene_tests import variability_ratio
from pyrosplice._usage.gene_tests.linearized import GeneTests, run_batches
from pyrosplice._usage.gene_tests.missing_results import reasons_of
from pyrosplice._usage.gene_tests.variability_ratio import FittedPair
from pyrosplice.effects._effect_list import field_of
from pyrosplice.effects._level_columns import columns_with_levels
from pyrosplice.errors import InvalidArgumentError, NoResultsError, check_option

SCORE_BATCH = 256  # genes at a time in score tests, which fit nothing
MORE = ("random_seed", "early_stop", "n_jobs", "n_draws", "null_law")  # options of the keywords


def test_spatial_variability(  # noqa: PLR0913 (a documented interface)
    self: Analyzed,
    method: Literal["llr", "score"] = "llr",
    use_perm_null: bool = False,
    return_results: bool = False,
    print_progress: bool = True,
    n_perms_per_gene: int | None = None,
    *,
    importance: bool = False,
    n_bootstrap: int | None = None,
    adjust_for_design: bool = True,
    **kwargs: Any,
) -> dict[str, Any] | None:
    """Test every gene for spatial variability of its usage (θ = 0), beside the covariates if there are any.

    Random effects of groups have a coefficient for every level in the score test, so that nothing of them is left in
    what is tested; other methods are refused beside them.

    *Differs from* the documented interface, which leaves the covariates out after a fit without them: what they
    explain, differences between sections for one, then counts as spatial variability.

    Parameters
    ----------
    method
        ``"score"``: variance-component score test (recommended: right size at every depth; needs no fit, no prior).
        ``"llr"``: likelihood ratio of the models with and without spatial variance, each at its own *marginal*
        optimum with σ estimated. Where the fit is of another kind (joint, σ fixed, with a prior), these optima are
        found here, once; the fits themselves stay as they are. Needs ``fit(from_null=True)``. Depends on which
        isoform is the last, unless ``isoform_effect="symmetric"``. Priors are left out (with a warning): the null
        law is that of maxima of the likelihood.
    use_perm_null
        P-values from permutations of the spots, gene by gene; otherwise from the statistic's own null law: for the
        score exact moments of its permutations over the spots with counts, for ``"llr"`` see ``null_law``.
    return_results
        Return the results instead of keeping them.
    print_progress
        Progress bars.
    n_perms_per_gene
        Permutations per gene; 20 by default, so that no p-value is below 1/21.
    importance
        For ``"llr"``: both marginal likelihoods and their optima by importance sampling instead of Laplace's
        method, see :meth:`MultinomGLMM.refine`; for low depth. Adds ``statistic_se`` and ``pareto_k``.
    n_bootstrap
        For ``"llr"``: p-values from this many data sets a gene drawn from its null fit, both models fitted to
        each; (1 + number of ratios not below the observed one) / (n_bootstrap + 1).
    adjust_for_design
        Adjust for the covariates that ``setup_data`` was given, whatever the fit was made with. False: test for all
        variability in space, theirs included.
    **kwargs
        ``random_seed`` (0) of permutations, bootstrap and importance sampling; ``n_draws`` (400) of the latter;
        ``early_stop`` (number of permuted statistics above the observed one after which a gene is given up; None);
        ``n_jobs`` (that of ``fit``); ``null_law`` of ``"llr"``: ``"finite-sample"`` (default), simulated from each
        gene's linearised null model, given its estimate of σ, with 4,096 draws that are the same every time
        (:mod:`pyrosplice._hypothesis.variance.ratio_null`), or ``"boundary"``, the limit
        ½χ²₀ + ½χ²₁ (one θ; binomial weights for more), under which p-values are several times too large.

    Returns
    -------
    dict or None
        ``gene``, ``statistic``, ``pvalue``, ``pvalue_adj`` (Benjamini–Hochberg), ``method``, ``df``,
        ``use_perm_null``, and ``reason``: "" or why there is no p-value, among
        :class:`~pyrosplice.reasons.Reason`; where asked for, ``statistic_se`` and
        ``pareto_k``, ``(G,)`` (above 0.7 not reliable).

    Raises
    ------
    InvalidArgumentError
        Another method; a model type without space; ``"llr"`` without a null fit; options that exclude each other.
    NotReadyError
        Before ``setup_data``, or ``fit`` for ``"llr"``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM()
    >>> model.setup_data(simulate_isoforms(n_spots=100, n_genes=2, theta=[0.0, 1.0], sigma=2.0, seed=0))
    >>> model.fit(print_progress=False)
    >>> model.test_spatial_variability(method="score", print_progress=False)
    >>> results = model.get_formatted_test_results("sv").set_index("gene")
    >>> results["pvalue"] < 0.01  # the usage of the second gene is a field
    gene
    gene_1    False
    gene_2     True
    Name: pvalue, dtype: bool
    """
    analysis = self.analysis
    analysis.shipped_only("test_spatial_variability")
    for name in kwargs:
        check_option("test_spatial_variability(...)", name, MORE)
    options = VariabilityOptions(
        method=method,
        use_perm_null=use_perm_null,
        n_perms_per_gene=n_perms_per_gene,
        importance=importance,
        n_bootstrap=n_bootstrap,
        adjust_for_design=adjust_for_design,
        **kwargs,
    )
    if analysis.model_type != "glmm-full":
        raise NoResultsError(
            f"model_type={analysis.model_type!r} has no space; expected 'glmm-full' to test spatial variability."
        )
    if method == "score":
        _check_score(analysis)
    if n_perms_per_gene is not None and not use_perm_null:
        warnings.warn("n_perms_per_gene: nothing is permuted without use_perm_null=True.", stacklevel=3)
    test = variability_score_tests if method == "score" else variability_ratio_tests
    tests, reliability = test(analysis, options, show=print_progress)
    results = {
        "gene": list(analysis.prepared.gene_names),
        "statistic": tests.statistic,
        "pvalue": tests.pvalue,
        "pvalue_adj": adjust_pvalues(tests.pvalue),
        "method": method,
        "df": 1 if analysis.options.share_variance else np.array(analysis.prepared.data.n_isos) - 1,
        "use_perm_null": use_perm_null,
        "reason": reasons_of(tests.pvalue, analysis.prepared.counts).tolist(),
        **reliability,
    }
    if return_results:
        return results
    analysis.results["sv"] = results
    return None


def _check_score(analysis: UsageAnalysis) -> None:
    """Raise where residuals do not tell of the field: random totals, a field that multiplies a column."""
    listed = analysis.prepared.listed
    field = None if listed is None else field_of(listed.given)
    if field is not None and field.by is not None:
        raise InvalidArgumentError(
            f"method: 'score' tests a field of all spots, and {field!r} multiplies a column; use "
            "test_component('space')."
        )
    what = "method='score' takes a spot's total as given; use method='llr'"
    check_of_isoforms(analysis.options.likelihood, what)


def variability_score_tests(
    analysis: UsageAnalysis, options: VariabilityOptions, *, show: bool
) -> tuple[GeneTests, dict[str, NDArray[np.float64]]]:
    """Variance-component score tests of all genes, of which there is no more to report."""
    prepared = analysis.prepared
    kernel, design = spatial_kernel(prepared.covariance), _adjusted(analysis, options)
    batches = prepared.batches(SCORE_BATCH, group=True)
    null = options.permutations
    calls = [(analysis.counts(genes), kernel, design, genes, null) for genes in batches]
    jobs = analysis.jobs(options.n_jobs)
    found = run_batches(gene_tests.variability_score, calls, description="score", n_jobs=jobs, show=show)
    return GeneTests.gather(batches, found, (analysis.n_genes,)), {}


def variability_ratio_tests(
    analysis: UsageAnalysis, options: VariabilityOptions, *, show: bool
) -> tuple[GeneTests, dict[str, NDArray[np.float64]]]:
    """Likelihood-ratio tests of all genes, and what else there is to report of them."""
    analysis.without_groups(
        "method='llr'", "Use test_component('space'), or method='score', which adjusts for every level of groups."
    )
    task, more = _ratio_task(analysis, options)
    pairs = _fitted_pairs(analysis, with_design=_adjusted(analysis, options) is not None, show=show)
    calls = [(pair, *more) for pair in pairs]
    jobs = analysis.jobs(options.n_jobs)
    found: list[Any] = run_batches(task, calls, description="llr", n_jobs=jobs, show=show)
    batches = [pair.genes for pair in pairs]
    tests = GeneTests.gather(batches, [each[:2] for each in found], (analysis.n_genes,))
    if not options.importance:
        return tests, {}
    errors = GeneTests.gather(batches, [each[2:] for each in found], (analysis.n_genes,))
    return tests, {"statistic_se": errors.statistic, "pareto_k": errors.pvalue}


def _adjusted(analysis: UsageAnalysis, options: VariabilityOptions) -> Tensor | None:
    """Covariates that tests adjust for, and every level of groups, so that nothing of these is left in the test."""
    design, groups = analysis.prepared.design_tensor if options.adjust_for_design else None, analysis.prepared.groups
    if not groups:
        return design
    ones = np.ones((analysis.prepared.n_spots, 1))
    fixed = ones if design is None else np.concatenate([ones, design.numpy()], 1)
    return torch.from_numpy(columns_with_levels(fixed, groups, "spots")[:, 1:])


def _ratio_task(analysis: UsageAnalysis, options: VariabilityOptions) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What is done with each batch, and with which arguments."""
    null = options.permutations
    if null is not None:
        return variability_ratio.permuted_ratio, (null,)
    if options.n_bootstrap is not None:
        return variability_ratio.bootstrapped_ratio, (options.n_bootstrap, options.random_seed)
    finite = options.null_law != "boundary"
    kernel = spatial_kernel(analysis.prepared.covariance, damping=0.0) if finite else None
    if options.importance:
        return variability_ratio.corrected_ratio, (kernel, *options.sampling)
    return variability_ratio.laplace_ratio, (kernel,)


def _fitted_pairs(analysis: UsageAnalysis, *, with_design: bool, show: bool) -> list[FittedPair]:
    """Fit both models of every gene, in batches."""
    kinds = ("glmm-full", "glmm-null")
    if analysis.fit.null is None:
        raise NoResultsError("method='llr': expected null models too; call fit(from_null=True) first.")
    if analysis.options.has_priors:
        warnings.warn("method='llr': the priors are left out, it compares maxima of the likelihood.", stacklevel=5)
    spec, null_spec = (analysis.test_spec(kind, with_design=with_design, priors=False) for kind in kinds)
    full, null = (analysis.test_fit(kind, with_design=with_design, priors=False, show=show) for kind in kinds)
    batches = analysis.prepared.batches(TEST_BATCH, group=True)
    return [
        FittedPair(b, analysis.counts(b), spec, null_spec, [full[i] for i in b], [null[i] for i in b]) for b in batches
    ]
