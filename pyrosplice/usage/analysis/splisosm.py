"""Isoform usage in tissue, end to end: :class:`SplisosmGLMM` takes an AnnData to models, tests and tables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrosplice.errors import InvalidArgumentError, NoResultsError, check_option
from pyrosplice.guides.own_model import Program, name_of, takes
from pyrosplice.io.archive import Archive, check_arguments, damage_named
from pyrosplice.io.codec import check_keys
from pyrosplice.io.older import usage_1
from pyrosplice.likelihoods.contract import Likelihood
from pyrosplice.modes import works_in_any_mode
from pyrosplice.representation import Described
from pyrosplice.usage.analysis import description as usage_rows
from pyrosplice.usage.analysis import extensions, storage, tables
from pyrosplice.usage.analysis.own_calibration import UsageCalibration
from pyrosplice.usage.reading.summary import feature_summary

CLASSES = ("likelihood", "priors")  # arguments that may be objects of a person's own


@works_in_any_mode
class SplisosmGLMM(UsageCalibration, Described):
    r"""Multinomial GLM and spatial GLMM of every gene of an AnnData, with tests of variability and differential usage.

    .. math::
        y_i \sim \operatorname{Multinomial}(n_i, \operatorname{softmax}[\eta_i, 0]), \quad
        \eta = X \beta + 1 b' + \nu, \quad \nu_k \sim N(0, \sigma^2 (\theta V + (1 - \theta) I))

    The documented random effect is independent between the logits, and so depends on which isoform of a gene comes
    last. With ``isoform_effect="symmetric"`` nothing does.

    V is the CAR covariance of the spots' neighbour graph. See :class:`~pyrosplice.MultinomGLMM` for the model of one
    batch of genes. The joint modes are kept for compatibility: their θ means nothing (it runs to 1 whatever the data).
    Use a marginal mode with ``var_fix_sigma=False`` for estimates; tests do so by themselves.

    Parameters
    ----------
    model_type
        ``"glmm-full"`` (spatial random effect), ``"glmm-null"`` (independent random effect) or ``"glm"`` (none; no
        coordinates needed).
    share_variance
        One (σ, θ) for all logits of a gene, or one each.
    var_fix_sigma
        Keep σ at its start in the fit. Tests estimate it by marginal likelihood regardless.
    var_prior_model, var_prior_model_params
        Prior of the variance, in fits and tests of usage: ``"none"``, ``"gamma"`` (on σ; alpha 2, beta 0.3),
        ``"inv_gamma"`` (on σ²; 3, 0.5).
    init_ratio
        Start of ν: ``"uniform"`` (0) or ``"observed"``.
    fitting_method
        ``"joint_gd"``, ``"joint_newton"``, ``"marginal_gd"`` or ``"marginal_newton"``. The GLM takes ``"iwls"``,
        ``"newton"`` or ``"gd"``, and reads any of the GLMM's names as ``"iwls"``.
    fitting_configs
        ``lr``, ``optim``, ``tol``, ``max_epochs``, ``patience``, ``update_nu_every_k``; 500 epochs when None. Copied,
        never changed.
    k_neighbors
        Neighbours of the k-NN graph; not used with ``adj_key``.
    rho
        ρ of the CAR covariance, in [0, 1).
    approx_rank
        Leave out for automatic (the exact sparse covariance on the CPU; on accelerators exact up to 5,000 spots, then
        ``ceil(4 √N)`` eigenpairs); None for exact; or the number of leading eigenpairs.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    graph
        Which edges of the k-NN graph: ``"mutual"`` (documented; falls into pieces on irregular layouts, with a
        warning), ``"union"`` or ``"connected"``. See :func:`~pyrosplice.spatial.graph.knn_graph`.

    likelihood
        Density of a spot's counts, a :class:`~pyrosplice.likelihoods.contract.Likelihood`; multinomial if None. Its
        free hyper-parameters are estimated for each gene.
    priors
        Pyro distributions by site (``beta``, ``bias_eta``, ``sigma``, ``theta_logit``, hyper-parameters); ``"weak"``
        for :func:`~pyrosplice.priors.weak_priors` of the tissue given to ``setup_data``; flat if None. Fits, tests of
        usage and posteriors honour them; the likelihood ratio of space leaves them out, with a warning. ``"weak"``
        gives separated genes, whose group lacks an isoform, finite effects and tests, which reject 2 to 5 % of null
        genes at .05 (tests/studies/separation.py).
    isoform_effect
        Covariance of the random effect between the logits of a spot: ``"independent"`` (default, as documented) or
        ``"symmetric"``, I + 11': an effect of each isoform on the scale of the softmax, independent with variance σ².
        Then the order of the isoforms makes no difference to fits, tests and posteriors, priors of one's own aside.
        Needs ``share_variance`` and a likelihood of K − 1 logits. See :class:`~pyrosplice.MultinomGLMM`. The GLM has no
        random effect; of it this says only what ``"weak"`` priors are of.
    model
        A Pyro model of your own, as for :class:`~pyrosplice.MultinomGLM` and :class:`~pyrosplice.MultinomGLMM`, fitted
        to every gene by :meth:`fit`. ``get_gene_model`` has its sites and guide; tests, effects and posteriors rest on
        fits of the shipped model and are refused.

    Attributes
    ----------
    adata : AnnData or None
        What was given to ``setup_data``; None before, and after ``load``.
    n_spots, n_genes, n_factors : int
        After filtering; 0 before ``setup_data``.
    gene_names, covariate_names : list of str
        Display names.
    sp_kernel : CarCovariance, IdentityCovariance or None
        Spatial covariance of ``"glmm-full"``, ``"glmm-null"`` and ``"glm"``.

    Raises
    ------
    InvalidArgumentError
        An option that does not exist or a number out of range (also a ValueError and an AssertionError).

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> adata = simulate_isoforms(n_spots=100, n_genes=3, covariates=("iid",), seed=0)
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(adata, design_mtx="iid", group_gene_by_n_iso=True)
    >>> model.fit(batch_size=20, print_progress=False)
    >>> model.test_spatial_variability(method="score", print_progress=False)
    >>> list(model.get_formatted_test_results("sv").columns)
    ['gene', 'statistic', 'pvalue', 'pvalue_adj', 'reason']
    """

    def extract_feature_summary(
        self, level: Literal["gene", "isoform"] = "gene", print_progress: bool = True
    ) -> pd.DataFrame:
        """Summary statistics of the filtered counts, one row a gene or an isoform; computed once.

        Every call returns the same table: copy it before changing it.

        Gene: ``n_isos``, ``perplexity``, ``pct_bin_on``, ``count_avg``, ``count_std``. Isoform: the columns of ``var``
        and ``pct_bin_on``, ``count_total``, ``count_avg``, ``count_std``, ``ratio_total``, ``ratio_avg``,
        ``ratio_std``. See :func:`~pyrosplice.data.feature_summary`.

        Raises
        ------
        NotReadyError
            Before ``setup_data``.
        InvalidArgumentError
            Another ``level``.
        """
        prepared = self._ready()
        check_option("level", level, ("gene", "isoform"))
        if level not in prepared.summaries:
            prepared.summaries[level] = feature_summary(prepared.data, level=level, print_progress=print_progress)
        return prepared.summaries[level]

    def get_training_summary(self) -> pd.DataFrame:
        """How each gene's fit went, indexed by gene name.

        ``model_type``, ``converged``, ``best_loss`` (nats), ``best_epoch``, ``fitting_time_s``, and also ``n_iter`` and
        ``reason``.
        """
        return tables.training_table(self.model_type, self.gene_names, self._ready_fit().genes)

    def get_fitted_ratios_anndata(self, layer_name: str = "fitted_ratios") -> AnnData:
        """Copy of ``filtered_adata`` with the fitted usage of every isoform at every spot as a dense layer.

        Columns are those of ``filtered_adata.var``; the isoforms of a gene sum to one.
        """
        self._shipped_only("get_fitted_ratios_anndata")
        fit, prepared = self._ready_fit(), self._ready()
        design = prepared.design_tensor if fit.with_design else None
        ratios = np.empty(prepared.data.adata.shape)
        for columns, gene in zip(prepared.data.columns, fit.genes, strict=True):
            likelihood = self.likelihood.bind(gene.values)
            ratios[:, columns] = likelihood.expected(gene.linear_predictor(prepared.n_spots, design)).numpy()
        adata = prepared.data.adata.copy()
        adata.layers[layer_name] = ratios
        return adata

    def get_formatted_test_results(
        self, test_type: Literal["sv", "du"], with_gene_summary: bool = False
    ) -> pd.DataFrame:
        """Results of the last test as a table.

        Parameters
        ----------
        test_type
            ``"sv"``: one row a gene, ``gene``, ``statistic``, ``pvalue``, ``pvalue_adj`` and ``reason``: "" or why
            there is no p-value, a word of :class:`~pyrosplice.reasons.Reason`. ``"du"``: one row a gene and covariate
            (covariates within genes), with ``covariate``; of the averaged law ``posterior_df`` and ``reliable`` too.
        with_gene_summary
            Add the columns of ``extract_feature_summary("gene")``.

        Raises
        ------
        InvalidArgumentError
            Another ``test_type``, or no results yet.
        """
        check_option("test_type", test_type, ("sv", "du"))
        self._ready()
        results = self._sv_test_results if test_type == "sv" else self._du_test_results
        if not results:
            test = "test_spatial_variability" if test_type == "sv" else "test_differential_usage"
            raise NoResultsError(f"test_type={test_type!r}: there are no results yet; call {test}() first.")
        table = tables.test_table(results).to_frame()
        if not with_gene_summary:
            return table
        return table.merge(
            self.extract_feature_summary("gene", print_progress=False), left_on="gene", right_index=True, how="left"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write options, filtered data, fits and results to one file (safetensors; no pickle), in place of an old one.

        The AnnData that was given is not saved, only ``filtered_adata``, with columns and ``uns`` of any type: what a
        file cannot hold is refused by ``setup_data``.
        """
        prepared, options = self._ready(), self._options()
        check_arguments(type(self), {*options, *CLASSES, *(["model"] if takes(type(self), "model") else [])})
        saved = storage.SavedUsage(
            options,
            storage.saved_data_of(prepared),
            extensions.pack(self.likelihood, self.priors, prepared.covariance, self.model),
            self._fitted,
            self._sv_test_results,
            self._du_test_results,
        )
        Archive.of(type(self).__name__, saved).save(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        map_location: str | None = None,
        *,
        likelihood: Likelihood | None = None,
        priors: Mapping[str, Any] | None = None,
        covariance: Any = None,
        model: Program | None = None,
    ) -> SplisosmGLMM:
        """Read what ``save`` wrote.

        Parameters
        ----------
        path
            The file.
        map_location
            Device to compute on from now on, e.g. ``"cpu"``; the one it was saved with by default.
        likelihood, priors, covariance, model
            Those of your own classes that it was saved with; a file holds no code. Shipped ones come back by
            themselves, and Pyro's distributions too.

        Raises
        ------
        ModelFileError
            A file that is truncated, foreign, of another kind, or written by a newer version.
        """
        archive = Archive.load(path, cls.__name__, {1: usage_1})
        given, name = (map_location, likelihood, priors, covariance, model), os.fspath(path)
        with damage_named(repr(name), keep=(InvalidArgumentError,) if any(x is not None for x in given) else ()):
            saved = archive.to(storage.SavedUsage)
            own = extensions.unpack(saved.extensions, likelihood, priors, covariance, path=name)
            own |= extensions.own_model(saved.extensions, model, path=name)
            device = {} if map_location is None else {"device": str(map_location)}
            analysis = cls(**saved.options | device, **own)
            check_keys(saved.options, analysis._options(), "options")
            analysis._prepared, analysis._fitted = storage.prepared_of(saved, covariance), saved.fit
            analysis._sv_test_results, analysis._du_test_results = saved.sv, saved.du
            return analysis

    def _rows(self) -> dict[str, str]:
        fit = self._fitted
        return {
            **usage_rows.describe_data(self._prepared),
            "model": self._describe_model() if self.model is None else name_of(self.model),
            "fit": usage_rows.describe_fit(
                None if fit is None else fit.genes,
                with_design=fit is not None and fit.with_design,
                with_null=fit is not None and fit.null is not None,
            ),
            "sv test": usage_rows.describe_test(self._sv_test_results),
            "du test": usage_rows.describe_test(self._du_test_results),
        }

    def _describe_model(self) -> str:
        options = self._model_options()
        if self.model_type == "glm":
            priors = usage_rows.describe_priors(self.priors, self._priors_name)
            return f"{self.likelihood.name} GLM by {options['fitting_method']}, {priors}"
        prior = (
            self.var_prior_model
            if self.var_prior_model == "none"
            else (f"{self.var_prior_model}{self.var_prior_model_params or ''}")
        )
        variance = "one variance" if self.share_variance else "a variance each logit"
        variance = "a variance of every isoform alike" if self.isoform_effect == "symmetric" else variance
        sigma = "sigma kept at its start" if self.var_fix_sigma else "sigma free"
        priors = usage_rows.describe_priors(self.priors, self._priors_name)
        if "sigma" not in self.priors and self._priors_name is None:  # else there is no other
            priors += f", variance prior {prior}"
        return f"{self.likelihood.name} GLMM by {self.fitting_method}, {variance}, {sigma}, {priors}"

    def _title(self) -> str:
        return f"{type(self).__name__}(model_type={self.model_type!r}, device={self.device!r})"
