"""The part of :class:`~pyrosplice.SplisosmGLMM` that tests covariates for differential usage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, NoResultsError
from pyrosplice.hypothesis.coefficients.surrogates import Surrogates
from pyrosplice.hypothesis.coefficients.working_model import Spectra
from pyrosplice.hypothesis.fdr import adjust_pvalues
from pyrosplice.modes import works_in_any_mode
from pyrosplice.usage.analysis.data_and_fits import TEST_BATCH
from pyrosplice.usage.analysis.hypotheses import UsageTests
from pyrosplice.usage.analysis.options import check_usage_options, law_name, surrogate_settings
from pyrosplice.usage.gene_tests import covariate_tests
from pyrosplice.usage.gene_tests.covariate_law import Law
from pyrosplice.usage.gene_tests.linearized import GeneTests, run_batches
from pyrosplice.usage.gene_tests.missing_results import reasons_of
from pyrosplice.usage.gene_tests.reliability import (
    between_sections,
    refused,
    reliable,
    shares_of_genes,
    unequal_field,
    warn_of_few_modes,
)
from pyrosplice.usage.gene_tests.terms import (
    By,
    Contrast,
    Term,
    TestLaw,
    Variance,
    contrasts_of,
    same_nuisance,
    terms_of,
)
from pyrosplice.usage.records import FitPlan, FittedGene, ModelSpec, fit_genes


@works_in_any_mode
class DifferentialUsage(UsageTests):
    """Tests of covariates on the models of every gene; see :class:`~pyrosplice.SplisosmGLMM`."""

    def test_differential_usage(
        self,
        method: Literal["score", "wald", "lrt"] = "score",
        print_progress: bool = True,
        return_results: bool = False,
        *,
        by: By = "covariate",
        contrasts: Any = None,
        variance: Variance | None = None,
        law: TestLaw | None = None,
        n_surrogates: int | None = None,
        random_seed: int | None = None,
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
            Of the score, and so of estimates. ``"robust"`` (default, but for surrogates): from the residuals
            (:mod:`pyrosplice.hypothesis.coefficients.residual_variance`). With a random effect, the model's with the
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
            (:mod:`pyrosplice.hypothesis.coefficients.restricted_posterior`); p-values are of an F law whose degrees of
            freedom are the residuals', ``posterior_df`` and four a mode of the covariate together (harmonically: a
            covariate of few modes meets few patterns of a field that may have edges). Where σ or θ have a prior it is
            that, else a half-normal of standard deviation 1.5 for each part. The steeper ones are of the spots'
            positions (:func:`~pyrosplice.spatial.graph.wide_graph`), as a graph in pieces knows of no waves over the
            tissue; where graph or covariance were given, of these. ``"plugin"`` (default with ``"glmm-null"``, for
            which there is no other): at the estimates, as if they were known; right where usage follows the model and
            the covariate varies like noise, and faster; no reliability is told. None for ``"glm"``.
            ``"surrogates"``, for ``method="score"``, a check beside the default that takes no model of usage for
            right: the statistic at the averaged covariance among those of covariates redrawn with the same energy at
            every scale (:mod:`pyrosplice.hypothesis.coefficients.surrogates`); up to 4,000 spots.
        n_surrogates, random_seed
            For ``law="surrogates"``: how many (default 999, least 19; the smallest p-value is one over one more), and
            their seed (default 0). The same surrogates serve all genes.

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
            :class:`~pyrosplice.reasons.Reason`.

        Raises
        ------
        InvalidArgumentError
            Another method; no design; a fit that is with covariates where it should be without, or the other way round;
            contrasts that cannot be tested, or for another method; another ``by``, ``variance`` or ``law``; options
            that exclude each other.
        NotReadyError
            Before ``setup_data`` or ``fit``.
        """
        self._shipped_only("test_differential_usage")
        prepared = self._ready()
        drawn = {"n_surrogates": n_surrogates, "random_seed": random_seed}
        redrawn = surrogate_settings(law, method, variance, drawn)
        variance = variance or ("model" if redrawn else "robust")
        check_usage_options(self.covariate_names, method=method, by=by, variance=variance, law=law or "averaged")
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
        covariance = law_name(law, variance, self.model_type)
        held_to = self._law(covariance, variance)
        if redrawn:
            held_to = replace(held_to, surrogates=Surrogates(prepared.patterns(), *redrawn.values()))
        wanted: Sequence[Any] = (
            contrasts_of(prepared.design, by, contrasts) if method == "wald" else terms_of(prepared.design, by)
        )
        names, tested = [one.name for one in wanted], [one.columns for one in wanted]
        _check_unequal(variance, method, names, tested)
        kinds: dict[str, Callable[..., GeneTests]] = {"score": self._usage_score, "lrt": self._usage_ratio}
        test = kinds.get(method, self._usage_wald)
        tests = test(wanted, held_to, show=print_progress)
        if held_to.spectra is not None:
            modes = np.array([self._modes(columns) for columns in tested])
            tests = refused(tests, prepared, tested, modes, of_posterior=not redrawn)
            warn_of_few_modes(tests, names, modes, stacklevel=3)
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
            "law": covariance,
        }
        if held_to.spectra is not None:
            known = {"posterior_df": tests.posterior_df, "unequal_field": unequal_field(tests)}
            results |= {**known, "reliable": reliable(tests, modes)}
        if return_results:
            return results
        self._du_test_results = results
        return None

    def covariate_modes(self) -> pd.DataFrame:
        """How much a tissue can say of each covariate: a look before the tests.

        A covariate that varies like one wave over the tissue meets a field that does so too, once: whatever the number
        of spots, there is one replicate. After a fit, for every gene, the posterior of the field's variances tells with
        how many degrees of freedom the variance of the covariate's effect is known
        (:mod:`pyrosplice.hypothesis.coefficients.restricted_posterior`).

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
        """
        self._shipped_only("covariate_modes")
        prepared = self._ready()
        if prepared.design is None or self.model_type != "glmm-full":
            raise NoResultsError("covariate_modes: expected covariates and model_type='glmm-full'.")
        terms = terms_of(prepared.design, "covariate")
        table = pd.DataFrame({"covariate": [t.name for t in terms], "modes": [self._modes(t.columns) for t in terms]})
        df = np.full((1, len(terms)), np.nan)
        if self._fitted is not None:
            df = self._usage_score(terms, self._law("averaged", "robust"), show=False).posterior_df
        closed = np.array([between_sections(prepared, term.columns) for term in terms])
        return shares_of_genes(table, df, closed)

    def _modes(self, columns: Sequence[int]) -> float:
        """Over how many patterns of space the covariates are spread."""
        design = self._ready().design
        if design is None:
            raise AssertionError("tests of covariates have a design")
        return self._spectra().effective_modes(torch.from_numpy(design.values[:, list(columns)]))

    def _law(self, covariance: str | None, variance: Variance) -> Law:
        """What tests are held to."""
        spectra = self._spectra() if covariance in ("averaged", "surrogates") else None
        return Law(robust=variance != "model", spectra=spectra, unequal=variance == "het")

    def _spectra(self) -> Spectra:
        """Steeper spectra of the spatial covariance."""
        prepared = self._ready()
        return prepared.spectra(self._space.rank(prepared.n_spots, self.device))

    def _usage_score(self, terms: Sequence[Term], law: Law, *, show: bool) -> GeneTests:
        def fits(group: list[Term]) -> Sequence[Any]:
            return self._fit_with(group[0].nuisance, show=show)

        task = covariate_tests.score_of_terms
        return self._tests_by_nuisance(task, terms, fits, law, description="score", show=show)

    def _usage_wald(self, contrasts: Sequence[Contrast], law: Law, *, show: bool) -> GeneTests:
        genes = self._test_fit(self.model_type, with_design=True, print_progress=show)
        spec = self._test_spec(self.model_type, with_design=True, device=None if law.spectra is None else "cpu")
        task = covariate_tests.wald_of_contrasts
        return self._linearised_tests(task, spec, genes, contrasts, law, description="wald", show=show)

    def _linearised_tests(
        self,
        task: Callable[..., list[Tensor]],
        spec: ModelSpec,
        genes: Sequence[Any],
        wanted: Sequence[Any],
        law: Law,
        *,
        description: str,
        show: bool,
    ) -> GeneTests:
        """``task`` for ``wanted`` at fits of all genes, one or several a gene, batch by batch."""
        prepared = self._ready()
        batches = self._test_batches(law)
        calls = [
            (self._counts(prepared, some), spec, [genes[gene] for gene in some], prepared.design, wanted, law)
            for some in batches
        ]
        found = run_batches(task, calls, description=description, show=show)
        tests = GeneTests.gather(batches, found, (self.n_genes, len(wanted)))
        fits = [gene if isinstance(gene, tuple) else (gene,) for gene in genes]
        reasons = reasons_of(tests.pvalue, prepared.counts, rank=tests.rank, fits=fits, from_residuals=law.robust)
        return replace(tests, reason=reasons)

    def _test_batches(self, law: Law) -> list[list[int]]:
        """Genes that tests work on together."""
        prepared, out = self._ready(), []
        for batch in prepared.batches(TEST_BATCH, group=True):
            n_logits = self.likelihood.n_predictors(prepared.counts[batch[0]].shape[1])
            size = law.genes_at_once(prepared.n_spots, n_logits)
            out += [batch[start : start + size] for start in range(0, len(batch), size)]
        return out

    def _usage_ratio(self, terms: Sequence[Term], law: Law, *, show: bool) -> GeneTests:
        fits: dict[tuple[int, ...], list[FittedGene]] = {}
        for columns in dict.fromkeys(columns for term in terms for columns in (term.full, term.nuisance)):
            fits[columns] = self._fit_with(columns, show=show)

        def own(group: list[Term]) -> Sequence[Any]:
            return list(zip(fits[group[0].nuisance], *(fits[term.full] for term in group), strict=True))

        task = covariate_tests.ratio_of_terms
        return self._tests_by_nuisance(task, terms, own, law, description="lrt", show=show)

    def _tests_by_nuisance(
        self,
        task: Callable[..., list[Tensor]],
        terms: Sequence[Term],
        fits: Callable[[list[Term]], Sequence[Any]],
        law: Law,
        *,
        description: str,
        show: bool,
    ) -> GeneTests:
        """``task`` for terms with the same nuisance together, with the model of the nuisance, at their ``fits``."""
        tests = GeneTests.blank((self.n_genes, len(terms)))
        for some in same_nuisance(terms):
            group = [terms[t] for t in some]
            spec = self._spec_with(group[0].nuisance)
            found = self._linearised_tests(task, spec, fits(group), group, law, description=description, show=show)
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


def _check_unequal(variance: str, method: str, names: Sequence[str], tested: Sequence[Sequence[int]]) -> None:
    """Raise where the variance of the field is to depend on what is not one covariate."""
    if variance != "het":
        return
    if method == "lrt":
        raise InvalidArgumentError("variance='het': expected method='score' or 'wald' with it, found 'lrt'.")
    joint = [name for name, columns in zip(names, tested, strict=True) if len(columns) != 1]
    if joint:
        raise InvalidArgumentError(
            f"variance='het': {joint[0]!r} is of several covariates, and the field's variance can depend on one; "
            "expected by='covariate' without contrasts."
        )
