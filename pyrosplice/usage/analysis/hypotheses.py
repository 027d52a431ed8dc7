"""The part of :class:`~pyrosplice.SplisosmGLMM` that tests hypotheses: spatial variability and differential usage."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrosplice.errors import NoResultsError, check_option, check_switches
from pyrosplice.hypothesis.fdr import adjust_pvalues
from pyrosplice.hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice.modes import works_in_any_mode
from pyrosplice.usage.analysis.data_and_fits import TEST_BATCH, UsageModels
from pyrosplice.usage.analysis.options import check_of_isoforms, permutation_null_of, variability_settings
from pyrosplice.usage.analysis.prepare import Prepared
from pyrosplice.usage.gene_tests import linearized as gene_tests
from pyrosplice.usage.gene_tests import variability_ratio
from pyrosplice.usage.gene_tests.linearized import GeneTests, PermutationNull, run_batches
from pyrosplice.usage.gene_tests.missing_results import reasons_of
from pyrosplice.usage.gene_tests.variability_ratio import FittedPair
from pyrosplice.usage.records import check_jobs

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
            (:mod:`pyrosplice.hypothesis.variance.ratio_null`), or ``"boundary"``, the limit
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
        """
        self._shipped_only("test_spatial_variability")
        prepared = self._ready()
        check_option("method", method, ("llr", "score"))
        if self.model_type != "glmm-full":
            raise NoResultsError(
                f"model_type={self.model_type!r} has no space; expected 'glmm-full' to test spatial variability."
            )
        if method == "score":
            check_of_isoforms(self.likelihood, "method='score' takes a spot's total as given; use method='llr'")
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
