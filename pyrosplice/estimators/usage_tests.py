"""The part of :class:`~pyrosplice.SplisosmGLMM` that tests hypotheses: spatial variability and differential usage."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, NoResultsError, check_option, check_switches
from pyrosplice.estimators import covariate_tests, gene_tests, variability_ratio
from pyrosplice.estimators.covariate_tests import By, Contrast, Term, Variance, contrasts_of, same_nuisance, terms_of
from pyrosplice.estimators.fitted import FitPlan, FittedGene, ModelSpec, check_jobs, fit_genes
from pyrosplice.estimators.gene_tests import GeneTests, PermutationNull, run_batches
from pyrosplice.estimators.missing_results import reasons_of
from pyrosplice.estimators.prepare import Prepared
from pyrosplice.estimators.usage_models import TEST_BATCH, UsageModels
from pyrosplice.estimators.usage_options import check_usage_options, permutation_null_of, variability_settings
from pyrosplice.estimators.variability_ratio import FittedPair
from pyrosplice.hypothesis.fdr import adjust_pvalues
from pyrosplice.hypothesis.spatial_kernel import spatial_kernel
from pyrosplice.modes import works_in_any_mode

SCORE_BATCH = 256  # genes at a time in score tests, which fit nothing


@works_in_any_mode
class UsageTests(UsageModels):
    """Tests on the models of every gene; see :class:`~pyrosplice.SplisosmGLMM`."""

    def test_spatial_variability(
        self,
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
            (:mod:`pyrosplice.hypothesis.ratio_null`), or ``"boundary"``, the limit
            ½χ²₀ + ½χ²₁ (one θ; binomial weights for more), under which p-values are several times too large.

        Returns
        -------
        dict or None
            ``gene``, ``statistic``, ``pvalue``, ``pvalue_adj`` (Benjamini–Hochberg), ``method``, ``df``,
            ``use_perm_null``, and ``reason``: "" or why there is no p-value, among
            :data:`~pyrosplice.estimators.missing_results.TEST_REASONS`; where asked for, ``statistic_se`` and
            ``pareto_k``, ``(G,)`` (above 0.7 not reliable).

        Raises
        ------
        InvalidArgumentError
            Another method; a model type without space; ``"llr"`` without a null fit; options that exclude each other.
        NotReadyError
            Before ``setup_data``, or ``fit`` for ``"llr"``.
        """
        prepared = self._ready()
        check_option("method", method, ("llr", "score"))
        if self.model_type != "glmm-full":
            raise NoResultsError(
                f"model_type={self.model_type!r} has no space; expected 'glmm-full' to test spatial variability."
            )
        settings = variability_settings(method, use_perm_null, importance, n_bootstrap, kwargs)
        check_switches(adjust_for_design=adjust_for_design)
        null = permutation_null_of(n_perms_per_gene, settings, use_perm_null)
        adjust, reliability = adjust_for_design and prepared.design is not None, dict[str, Any]()
        if method == "score":
            tests = self._variability_score(null, adjust, n_jobs=settings["n_jobs"], show=print_progress)
        else:
            tests, reliability = self._variability_ratio(settings, null, adjust, show=print_progress)
        results = {
            "gene": self.gene_names,
            "statistic": tests.statistic,
            "pvalue": tests.pvalue,
            "pvalue_adj": adjust_pvalues(tests.pvalue),
            "method": method,
            "df": self._n_components(),
            "use_perm_null": use_perm_null,
            "reason": reasons_of(tests.pvalue, prepared.counts).tolist(),
            **reliability,
        }
        if return_results:
            return results
        self._sv_test_results = results
        return None

    def test_differential_usage(
        self,
        method: Literal["score", "wald", "lrt"] = "score",
        print_progress: bool = True,
        return_results: bool = False,
        *,
        by: By = "covariate",
        contrasts: Any = None,
        variance: Variance = "robust",
    ) -> dict[str, Any] | None:
        """Test every gene and covariate for an effect on usage (β = 0 in all logits).

        With ``model_type="glm"`` the association is unconditional. With a GLMM it is conditional on the random effect,
        whose variances are those of the *marginal* optimum with σ estimated: the user's fit if it is that, else found
        here, once. Priors are honoured: the optimum is that of the posterior density, a ratio that of its maxima with
        the tested coefficients free and zero, and the variance of an estimate has what they add. P-values do *not* hold
        for a covariate of one or two waves over the tissue where usage follows domains (a gradient: 23 to 27 % of null
        genes at 5 %, tests/studies/calibration_finds_faults.py); ask ``check_calibration("du", truth="domains")``.

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
            Of the score, and so of estimates. ``"robust"`` (default): from the residuals
            (:mod:`pyrosplice.hypothesis.dispersion`). With a random effect, the model's with the dispersion that they
            have between the logits, which one variance for all logits does not give. In a GLM, with the excess variance
            that counts have where usage varies between spots, more in deep spots than in shallow ones. P-values are
            then not of χ² but of an F law on the residuals' degrees of freedom ν (Hotelling's for one column, McKeon's
            for more), NaN for genes whose spots leave none. Likelihood ratios are multiplied by the quotient of the
            Wald statistics with this variance and with the model's (Chandler & Bate 2007, Biometrika 94:167); where a
            coefficient is at infinity ("separated"), whose ratio rejects most null genes, they are the score statistic.
            ``"model"``: as the model says, and χ²; for counts that are known to follow it, and after a GLMM a little
            liberal at few counts a spot.

        Returns
        -------
        dict or None
            ``gene`` (G), ``covariate`` (T: covariates, factors or contrasts), ``statistic``, ``pvalue``, ``pvalue_adj``
            (Benjamini–Hochberg over the genes of a covariate), ``df``, ``(G, T)`` each, ``method``, ``by`` and
            ``variance``. A gene need not have counts wherever a covariate varies: what its spots identify is tested,
            with its own ``df``. ``reason``, G lists of T: "" or why there is no p-value, among
            :data:`~pyrosplice.estimators.missing_results.TEST_REASONS`.

        Raises
        ------
        InvalidArgumentError
            Another method; no design; a fit that is with covariates where it should be without, or the other way round;
            contrasts that cannot be tested, or for another method; another ``by`` or ``variance``.
        NotReadyError
            Before ``setup_data`` or ``fit``.
        """
        prepared = self._ready()
        check_usage_options(self.covariate_names, method=method, by=by, variance=variance)
        robust = variance == "robust"
        if prepared.design is None:
            raise NoResultsError("design_mtx: expected covariates to test; setup_data was called without a design.")
        fit = self._ready_fit()
        if method != "lrt" and fit.with_design != (method == "wald"):
            raise NoResultsError(
                f"method={method!r}: expected models fitted with with_design_mtx={method == 'wald'}, found "
                f"{fit.with_design}. Fit again, or use method={'wald' if fit.with_design else 'score'!r} or 'lrt'."
            )
        if contrasts is not None and method != "wald":
            raise InvalidArgumentError(f"contrasts: expected method='wald' with them, found method={method!r}.")
        if method == "wald":
            rows = contrasts_of(prepared.design, by, contrasts)
            names = [contrast.name for contrast in rows]
            tests = self._usage_wald(rows, robust, show=print_progress)
        else:
            terms = terms_of(prepared.design, by)
            names = [term.name for term in terms]
            test = self._usage_score if method == "score" else self._usage_ratio
            tests = test(terms, robust, show=print_progress)
        results = {
            "gene": self.gene_names,
            "covariate": names,
            "statistic": tests.statistic,
            "pvalue": tests.pvalue,
            "pvalue_adj": adjust_pvalues(tests.pvalue),
            "df": tests.rank.astype(np.int64) * (np.array(self.n_isos_per_gene)[:, None] - 1),
            "reason": tests.reason.tolist(),
            "method": method,
            "by": "contrast" if contrasts is not None else by,
            "variance": variance,
        }
        if return_results:
            return results
        self._du_test_results = results
        return None

    def _variability_score(
        self, null: PermutationNull | None, adjust: bool, *, n_jobs: int | None, show: bool
    ) -> GeneTests:
        prepared = self._ready()
        kernel = spatial_kernel(prepared.covariance)
        design = prepared.design_tensor if adjust else None
        batches = prepared.batches(SCORE_BATCH, group=True)
        calls = [(self._counts(prepared, genes), kernel, design, genes, null) for genes in batches]
        found = run_batches(
            gene_tests.variability_score, calls, description="score", n_jobs=self._jobs(n_jobs), show=show
        )
        return GeneTests.gather(batches, found, (self.n_genes,))

    def _variability_ratio(
        self, settings: dict[str, Any], null: PermutationNull | None, adjust: bool, *, show: bool
    ) -> tuple[GeneTests, dict[str, Any]]:
        """Likelihood-ratio tests and what else there is to report of them."""
        task: Callable[..., Any]
        options: tuple[Any, ...]
        if null is not None:
            task, options = variability_ratio.permuted_ratio, (null,)
        elif settings["n_bootstrap"] is not None:
            task, options = variability_ratio.bootstrapped_ratio, (settings["n_bootstrap"], settings["random_seed"])
        else:
            finite = settings["null_law"] == "finite-sample"
            kernel = spatial_kernel(self._ready().covariance, damping=0.0) if finite else None
            task, options = variability_ratio.laplace_ratio, (kernel,)
            if settings["importance"]:
                task, options = (
                    variability_ratio.corrected_ratio,
                    (kernel, settings["n_draws"], settings["random_seed"]),
                )
        pairs = self._fitted_pairs(adjust, show=show)
        calls = [(pair, *options) for pair in pairs]
        found: list[Any] = run_batches(task, calls, description="llr", n_jobs=self._jobs(settings["n_jobs"]), show=show)
        batches = [pair.genes for pair in pairs]
        tests = GeneTests.gather(batches, [one[:2] for one in found], (self.n_genes,))
        if not settings["importance"]:
            return tests, {}
        more = GeneTests.gather(batches, [one[2:] for one in found], (self.n_genes,))
        return tests, {"statistic_se": more.statistic, "pareto_k": more.pvalue}

    def _fitted_pairs(self, adjust: bool, *, show: bool) -> list[FittedPair]:
        """Both models of every gene, in batches."""
        prepared, fit, kinds = self._ready(), self._ready_fit(), ("glmm-full", "glmm-null")
        if fit.null is None:
            raise NoResultsError("method='llr': expected null models too; call fit(from_null=True) first.")
        if self.priors or self.var_prior_model != "none":
            warnings.warn("method='llr': the priors are left out, it compares maxima of the likelihood.", stacklevel=4)
        spec, null_spec = (self._test_spec(kind, with_design=adjust, priors=False) for kind in kinds)
        full, null = (self._test_fit(kind, with_design=adjust, priors=False, print_progress=show) for kind in kinds)
        batches = prepared.batches(TEST_BATCH, group=True)
        return [
            FittedPair(b, self._counts(prepared, b), spec, null_spec, [full[i] for i in b], [null[i] for i in b])
            for b in batches
        ]

    def _usage_score(self, terms: Sequence[Term], robust: bool, *, show: bool) -> GeneTests:
        def fits(group: list[Term]) -> Sequence[Any]:
            return self._fit_with(group[0].nuisance, show=show)

        task = covariate_tests.score_of_terms
        return self._tests_by_nuisance(task, terms, fits, robust, description="score", show=show)

    def _usage_wald(self, contrasts: Sequence[Contrast], robust: bool, *, show: bool) -> GeneTests:
        genes = self._test_fit(self.model_type, with_design=True, print_progress=show)
        spec = self._test_spec(self.model_type, with_design=True)
        task = covariate_tests.wald_of_contrasts
        return self._linearised_tests(task, spec, genes, contrasts, robust, description="wald", show=show)

    def _linearised_tests(
        self,
        task: Callable[..., list[Tensor]],
        spec: ModelSpec,
        genes: Sequence[Any],
        wanted: Sequence[Any],
        robust: bool,
        *,
        description: str,
        show: bool,
    ) -> GeneTests:
        """``task`` for ``wanted`` at fits of all genes, one or several a gene, batch by batch."""
        prepared = self._ready()
        batches = prepared.batches(TEST_BATCH, group=True)
        calls = [
            (self._counts(prepared, some), spec, [genes[gene] for gene in some], prepared.design, wanted, robust)
            for some in batches
        ]
        found = run_batches(task, calls, description=description, show=show)
        tests = GeneTests.gather(batches, found, (self.n_genes, len(wanted)))
        fits = [gene if isinstance(gene, tuple) else (gene,) for gene in genes]
        reasons = reasons_of(tests.pvalue, prepared.counts, rank=tests.rank, fits=fits, from_residuals=robust)
        return replace(tests, reason=reasons)

    def _usage_ratio(self, terms: Sequence[Term], robust: bool, *, show: bool) -> GeneTests:
        fits: dict[tuple[int, ...], list[FittedGene]] = {}
        for columns in dict.fromkeys(columns for term in terms for columns in (term.full, term.nuisance)):
            fits[columns] = self._fit_with(columns, show=show)

        def own(group: list[Term]) -> Sequence[Any]:
            return list(zip(fits[group[0].nuisance], *(fits[term.full] for term in group), strict=True))

        task = covariate_tests.ratio_of_terms
        return self._tests_by_nuisance(task, terms, own, robust, description="lrt", show=show)

    def _tests_by_nuisance(
        self,
        task: Callable[..., list[Tensor]],
        terms: Sequence[Term],
        fits: Callable[[list[Term]], Sequence[Any]],
        robust: bool,
        *,
        description: str,
        show: bool,
    ) -> GeneTests:
        """``task`` for terms with the same nuisance together, with the model of the nuisance, at their ``fits``."""
        tests = GeneTests.blank((self.n_genes, len(terms)))
        for some in same_nuisance(terms):
            group = [terms[t] for t in some]
            spec = self._spec_with(group[0].nuisance)
            found = self._linearised_tests(task, spec, fits(group), group, robust, description=description, show=show)
            for whole, part in zip(vars(tests).values(), vars(found).values(), strict=True):
                whole[:, some] = part
        return tests

    def _spec_with(self, columns: tuple[int, ...], *, device: str = "cpu") -> ModelSpec:
        """The tested model with some of the covariates."""
        design = self._ready().design
        if design is None:
            raise AssertionError("columns are those of a design")
        spec = self._test_spec(self.model_type, with_design=False, device=device)
        return spec.with_design(design.only(columns) if columns else None)

    def _fit_with(self, columns: tuple[int, ...], *, show: bool) -> list[FittedGene]:
        """Genes fitted with some of the covariates: the present fits where they are with these, else new ones, once."""
        prepared, fit = self._ready(), self._ready_fit()
        present = tuple(prepared.design.estimable) if prepared.design is not None and fit.with_design else ()
        if columns == present:
            genes = self._test_fit(self.model_type, with_design=fit.with_design, print_progress=show)
            return self._test_spec(self.model_type, with_design=fit.with_design).estimable(genes)
        if columns not in self._test_fits:
            self._test_fits[columns], _ = fit_genes(
                FitPlan(full=self._spec_with(columns, device=self.device)),
                prepared.counts,
                prepared.batches(TEST_BATCH, group=True),
                n_jobs=fit.n_jobs,
                description=f"{len(columns)} covariate(s)",
                print_progress=show,
            )
        return self._test_fits[columns]

    def _n_components(self) -> int | np.ndarray:
        """Variance components tested: one, or with ``share_variance=False`` one a logit, ``(G,)``."""
        return 1 if self.share_variance else np.array(self.n_isos_per_gene) - 1

    def _jobs(self, n_jobs: int | None) -> int:
        if n_jobs is None:
            return 1 if self._fitted is None else self._fitted.n_jobs
        return check_jobs(n_jobs, self.device)

    @staticmethod
    def _counts(prepared: Prepared, genes: list[int]) -> Tensor:
        return torch.stack([prepared.counts[gene] for gene in genes])
