"""Isoform usage in tissue, end to end: :class:`SplisosmGLMM` takes an AnnData to models, tests and tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any, Literal, Self

import torch
from anndata import AnnData

from pyrosplice._modes import works_in_any_mode
from pyrosplice._overrides import refuse_properties
from pyrosplice._representation import Described
from pyrosplice._usage.analysis import (
    cross_validation,
    differential_usage,
    effects,
    fits,
    group_effects,
    information_criteria,
    isoform_tests,
    overview,
    own_calibration,
    posterior_draws,
    prediction,
    storage,
    tables,
    usage_components,
    variability,
)
from pyrosplice._usage.analysis.data_options import DataOptions
from pyrosplice._usage.analysis.description import analysis_rows
from pyrosplice._usage.analysis.fits import Results, UsageAnalysis
from pyrosplice._usage.analysis.options import MAPPINGS, AnalysisOptions, check_logits, snapshot
from pyrosplice._usage.analysis.prepare import Covariance, Prepared, prepare
from pyrosplice._usage.records import UsageFit
from pyrosplice.effects._effect import Effect
from pyrosplice.effects._effect_list import read_effects
from pyrosplice.effects._field import Field, Independent
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.errors import NotReadyError
from pyrosplice.guides._own_model import Program
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.priors._named import Priors, check_priors
from pyrosplice.spatial._connectivities import DOCUMENTED_NEIGHBORS
from pyrosplice.spatial._graph import Graph


@works_in_any_mode
class SplisosmGLMM(Described):
    r"""Multinomial GLM and spatial GLMM of every gene of an AnnData, with tests of variability and differential usage.

    .. math::
        y_i \sim \operatorname{Multinomial}(n_i, \operatorname{softmax}[\eta_i, 0]), \quad
        \eta = X \beta + 1 b' + \nu, \quad \nu_k \sim N(0, \sigma^2 (\theta V + (1 - \theta) I))

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
        Keep σ at its start in the fit; tests estimate it by marginal likelihood.
    var_prior_model, var_prior_model_params
        Prior of the variance, in fits and tests of usage: ``"none"``, ``"gamma"`` (on σ; alpha 2, beta 0.3),
        ``"inv_gamma"`` (on σ²; 3, 0.5).
    init_ratio
        Start of ν: ``"uniform"`` (0) or ``"observed"``.
    fitting_method
        ``"joint_gd"``, ``"joint_newton"``, ``"marginal_gd"`` or ``"marginal_newton"``. The GLM takes ``"iwls"``,
        ``"newton"`` or ``"gd"``, and reads any of the GLMM's names as ``"iwls"``.
    fitting_configs
        ``lr``, ``optim``, ``tol``, ``max_epochs``, ``patience``, ``update_nu_every_k``; 500 epochs when None.
    k_neighbors
        Neighbours of the k-NN graph; not used with ``adj_key``. One that is given beats squidpy's graph, see there.
    rho
        ρ of the CAR covariance, in [0, 1).
    approx_rank
        Leave out for automatic (the exact sparse covariance on the CPU; on accelerators exact up to 5,000 spots, then
        ``ceil(4 √N)`` eigenpairs); None for exact; or the number of leading eigenpairs.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    graph
        Edges of the k-NN graph: ``"mutual"`` (documented, by default; falls into pieces on irregular layouts, with a
        warning), ``"union"`` or ``"connected"``. See :func:`~pyrosplice.spatial._graph.knn_graph`.
    likelihood
        Density of a spot's counts, a :class:`~pyrosplice.likelihoods._contract.Likelihood`; multinomial if None. Its
        free hyper-parameters are estimated for each gene.
    priors
        Pyro distributions by site (``beta``, ``bias_eta``, ``sigma``, ``theta_logit``, hyper-parameters); ``"weak"``
        for :func:`~pyrosplice.priors.weak_priors` of the tissue given to ``setup_data``; flat if None. Fits, tests of
        usage and posteriors honour them; the likelihood ratio of space leaves them out, with a warning. ``"weak"``
        gives separated genes, whose group lacks an isoform, finite effects and tests, which reject 2 to 5 % of null
        genes at .05 (tests/studies/separation.py).
    isoform_effect
        Covariance of the random effect between the logits of a spot: ``"independent"`` (default, as documented: a fit
        depends on which isoform is last) or ``"symmetric"``, with which their order makes no difference, priors of
        one's own aside; see :class:`~pyrosplice.MultinomGLMM`. For the GLM it says what ``"weak"`` priors are of.
    model
        A Pyro model of your own, as for :class:`~pyrosplice.MultinomGLM` and :class:`~pyrosplice.MultinomGLMM`, fitted
        to every gene by :meth:`fit`. ``get_gene_model`` has its sites and guide; tests, effects and posteriors rest on
        fits of the shipped model and are refused.

    Attributes
    ----------
    adata : AnnData or None
        What was given to ``setup_data``; None before, and after ``load``.
    n_spots, n_genes, n_factors, gene_names, covariate_names
        After filtering; 0 and none before ``setup_data``.
    sp_kernel : CarCovariance, IdentityCovariance or None
        Spatial covariance of ``"glmm-full"``, ``"glmm-null"`` and ``"glm"``.
    analysis : UsageAnalysis
        Options, data, fits and results in one, as the functions of :mod:`pyrosplice._usage.analysis` take them.

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

    def __init__(  # noqa: PLR0913 (a documented interface)
        self,
        model_type: Literal["glmm-full", "glmm-null", "glm"] = "glmm-full",
        share_variance: bool = True,
        var_fix_sigma: bool = True,
        var_prior_model: str = "none",
        var_prior_model_params: dict[str, float] | None = None,
        init_ratio: str = "uniform",
        fitting_method: str = "joint_gd",
        fitting_configs: dict[str, Any] | None = None,
        k_neighbors: int = DOCUMENTED_NEIGHBORS,
        rho: float = 0.99,
        approx_rank: int | str | None = "auto",
        device: str = "cpu",
        *,
        graph: Graph | None = None,
        likelihood: Likelihood | None = None,
        priors: Priors = None,
        isoform_effect: IsoformEffect = "independent",
        model: Program | None = None,
    ) -> None:
        self.model_type, self.device, self.isoform_effect = model_type, str(device), isoform_effect
        self.share_variance, self.var_fix_sigma, self.init_ratio = share_variance, var_fix_sigma, init_ratio
        self.var_prior_model, self.var_prior_model_params = var_prior_model, deepcopy(var_prior_model_params)
        self.fitting_method, self.fitting_configs = fitting_method, deepcopy(fitting_configs)
        self.k_neighbors, self.rho, self.approx_rank, self.graph = k_neighbors, rho, approx_rank, graph
        self.likelihood = Multinomial() if likelihood is None else likelihood
        self.priors: dict[str, Any] = dict(priors) if isinstance(priors, Mapping) else {}
        self.model, self._priors_name = model, None
        replace(self._given, priors=priors).check()
        self._priors_name = check_priors(priors)
        self.adata: AnnData | None = None
        self._read: UsageAnalysis | None = None

    def setup_data(  # noqa: PLR0913 (a documented interface)
        self,
        adata: AnnData,
        *,
        spatial_key: str | Sequence[str] = "spatial",
        adj_key: str | None = None,
        layer: str | None = "counts",
        group_iso_by: str = "gene_symbol",
        gene_names: str | None = None,
        group_gene_by_n_iso: bool = False,
        design_mtx: object = None,
        covariate_names: Sequence[str] | None = None,
        min_counts: float = 10,
        min_bin_pct: float = 0.0,
        min_component_size: int = 1,
        covariance: object = None,
        section_key: str | None = None,
        missing: Literal["raise", "drop"] = "raise",
        effects: Effect | Field | Independent | Sequence[Effect | Field | Independent] = (),
    ) -> None:
        """Read counts, covariates and space. Forgets earlier fits and tests; if it fails, nothing has changed.

        Filters in this order: spots without a label (if ``missing="drop"``); spots in components smaller than
        ``min_component_size``; isoforms; genes with fewer than two isoforms left. Tables are paired with the spots by
        name, see ``design_mtx``. ``filtered_adata`` is a copy in memory, whatever ``adata`` is.

        Parameters
        ----------
        adata
            Spots × isoforms: in memory, a view, backed or lazy.
        spatial_key
            Coordinates in ``obsm``, an array, a sparse matrix or a table of numbers, or columns of ``obs`` such as
            ``("x", "y")``; not read by ``"glm"`` and ``"glmm-null"`` unless ``min_component_size`` > 1.
        adj_key
            Adjacency in ``obsp`` to use instead, weights as given, averaged with its transpose. *Differs from* the
            documented interface: squidpy's ``obsp["spatial_connectivities"]`` is used so unless ``k_neighbors``,
            ``graph`` or another ``spatial_key`` are given. The model's representation says which graph it has.
        layer
            Counts in ``layers``, whole numbers in any container (dense, sparse, Dask, on disk); None for ``X``.
        group_iso_by, gene_names
            Columns of ``var``: the gene of each isoform (others are left out, with a warning), and display names.
        group_gene_by_n_iso
            Sort genes by isoform count before batching; without, only neighbours of one count share a batch.
        design_mtx
            Covariates: array, tensor, sparse matrix or DataFrame ``(N, P)``, column(s) of ``obs``, or a formula such as
            ``"~ region + log(total)"`` (names that are no words in backticks). What is no number (text, booleans,
            categoricals, dates) becomes one covariate a level. A table that has the spots' names, in whatever order
            and type, is paired by them; one that has none of them by position; one that has some is refused.
            *Differs from* the documented interface: a constant covariate, which there is warned about, is refused: it
            has no effect to estimate or test. They are what :meth:`test_differential_usage` tests, and
            :meth:`test_spatial_variability` adjusts for them. A formula may have lme4's random terms,
            ``"~ condition + (1 | section)"``, ``(1 + age | donor)``, ``(1 | donor/sample)``; groups are units of tests
            then. Fitted beside the type's own effect, with covariance ``isoform_effect``, by restricted likelihood they
            need ``fitting_method="marginal_newton"``, ``var_fix_sigma=False`` and no priors.
        covariate_names
            P names to use instead of the columns' own.
        min_counts, min_bin_pct
            Least total of an isoform; least fraction (above 1: percent) of spots in which it is seen.
        min_component_size
            Spots in smaller components of the graph, and levels that only they have, are left out, with a warning.
        covariance
            Spatial covariance of the spots to use instead of the graph's CAR: a
            :class:`~pyrosplice.spatial._covariance.SpatialCovariance` or any object with ``precision`` or ``dense()``.
        section_key
            Column of ``obs`` that says which section (slide, sample) a spot is of. Sections share b, β, σ and θ; the
            graph has edges within sections only (those of ``adj_key`` between sections are left out, with a warning
            that counts them), so that their fields are independent and their coordinates may overlap. Put
            ``(1 | section)`` or the section among the covariates too, or their differences are spatial variability.
        missing
            Spots that lack a label or number in ``design_mtx`` or ``section_key`` (None, NaN, NA, blank text):
            ``"raise"`` refuses, ``"drop"`` leaves them out, with a warning, as if they were not in ``adata``.
        effects
            Random effects (:mod:`pyrosplice.effects`) beside the type's and the formula's: ``Groups``, your own; for
            ``"glmm-full"`` a ``Field`` in the place of its own, ``by="tumour"`` or ``rho="estimate"`` too. Options
            and tests are those of random terms. Factors of the design then have their first level as reference.

        Raises
        ------
        InvalidArgumentError
            Bad input; also something in ``adata`` that ``save`` could not write (an object in ``uns`` or a column).

        Examples
        --------
        >>> from pyrosplice import SplisosmGLMM
        >>> from pyrosplice.data import simulate_isoforms
        >>> adata = simulate_isoforms(n_spots=64, n_genes=3, covariates=("iid",), seed=0)
        >>> model = SplisosmGLMM()
        >>> model.setup_data(adata, design_mtx="~ iid", group_gene_by_n_iso=True)
        >>> model.n_genes, model.n_spots, model.covariate_names
        (3, 64, ['iid'])
        >>> model.setup_data(adata, design_mtx="age")
        Traceback (most recent call last):
            ...
        pyrosplice.errors.InvalidArgumentError: design_mtx: expected columns of adata.obs, which has ['iid'];
        found ['age']. A formula begins with '~'.
        """
        (given := self._given).check()
        read = (spatial_key, adj_key, layer, group_iso_by, gene_names, group_gene_by_n_iso, design_mtx, covariate_names)
        kept = (min_counts, min_bin_pct, min_component_size, covariance, section_key, missing, read_effects(effects))
        prepared = prepare(adata, DataOptions(given, *read, *kept))
        if self.model_type != "glm" or prepared.listed is not None:
            check_logits(self.isoform_effect, self.likelihood, prepared.counts)
        if self._priors_name is not None:
            self.priors = given.named_priors(self._priors_name, prepared.covariance)
        UsageAnalysis(given, prepared).check_groups()
        self.adata = adata
        self.hold(prepared)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        refuse_properties(cls, SplisosmGLMM, read=("analysis", "_prepared", "_given"))

    # methods that stand in the file of their subject
    fit = fits.fit
    get_fitted_models = fits.get_fitted_models
    get_gene_model = fits.get_gene_model
    extract_feature_summary = tables.extract_feature_summary
    get_training_summary = tables.get_training_summary
    get_fitted_ratios_anndata = tables.get_fitted_ratios_anndata
    get_formatted_test_results = tables.get_formatted_test_results
    test_spatial_variability = variability.test_spatial_variability
    test_differential_usage = differential_usage.test_differential_usage
    covariate_modes = differential_usage.covariate_modes
    get_effects = effects.get_effects
    test_isoforms = isoform_tests.test_isoforms
    to_frame, results_table = overview.coefficient_frame, overview.results_table
    top_table, write = overview.top_usage, overview.write_usage
    aic, bic = information_criteria.usage_aic, information_criteria.usage_bic
    variance_components = group_effects.usage_variances
    random_effects = group_effects.usage_levels
    units = group_effects.covariate_units
    test_component = usage_components.test_usage_component
    fitted_field = usage_components.usage_field
    posterior = posterior_draws.posterior
    predict = prediction.predict
    cross_validate = cross_validation.cross_validate
    check_calibration = own_calibration.check_calibration
    _like = own_calibration.analysis_like
    save = storage.save

    @classmethod
    def load(  # noqa: PLR0913 (what a file cannot hold)
        cls,
        path: str | os.PathLike[str],
        map_location: str | None = None,
        *,
        likelihood: Likelihood | None = None,
        priors: Mapping[str, Any] | None = None,
        covariance: object = None,
        model: Program | None = None,
        effects: Effect | Field | Sequence[Effect | Field] = (),
    ) -> Self:
        """Read what ``save`` wrote.

        Parameters
        ----------
        path
            The file.
        map_location
            Device to compute on from now on, e.g. ``"cpu"``; the one it was saved with by default.
        likelihood, priors, covariance, model, effects
            Objects of your own classes that it was saved with; a file holds no code. Shipped and Pyro's come back.

        Raises
        ------
        ModelFileError
            A file that is truncated, foreign, of another kind, or written by a newer version.

        Examples
        --------
        >>> import tempfile
        >>> from pyrosplice import SplisosmGLMM
        >>> from pyrosplice.data import simulate_isoforms
        >>> model = SplisosmGLMM("glm")
        >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
        >>> model.fit(print_progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/usage.safetensors")
        ...     again = SplisosmGLMM.load(f"{folder}/usage.safetensors")
        >>> bool((again.get_training_summary()["best_loss"] == model.get_training_summary()["best_loss"]).all())
        True
        """
        given = {"likelihood": likelihood, "priors": priors, "covariance": covariance, "effects": effects}
        return storage.loaded_analysis(cls, path, map_location, {**given, "model": model})

    @property
    def n_spots(self) -> int:
        """Number of spots after filtering; 0 before ``setup_data``."""
        return 0 if self._prepared is None else self._prepared.n_spots

    @property
    def n_genes(self) -> int:
        """Number of genes after filtering."""
        return len(self.gene_names)

    @property
    def n_factors(self) -> int:
        """Number of covariates; 0 without a design."""
        return len(self.covariate_names)

    @property
    def gene_names(self) -> list[str]:
        """Display names of the genes, in order of first appearance."""
        return [] if self._prepared is None else list(self._prepared.gene_names)

    @property
    def covariate_names(self) -> list[str]:
        """Names of the covariates."""
        return [] if self._prepared is None else list(self._prepared.covariate_names)

    n_isos_per_gene = property(tables.n_isos_per_gene)

    @property
    def design_mtx(self) -> torch.Tensor | None:
        """Covariates ``(n_spots, n_factors)``, float64; None without a design."""
        return None if self._prepared is None else self._prepared.design_tensor

    @property
    def sp_kernel(self) -> Covariance | None:
        """Spatial covariance; None for ``"glm"`` and before ``setup_data``."""
        return None if self._prepared is None else self._prepared.covariance

    @property
    def filtered_adata(self) -> AnnData:
        """The filtered copy of the data, spots × isoforms; raises :class:`NotReadyError` before ``setup_data``."""
        return self.analysis.prepared.data.adata

    @property
    def analysis(self) -> UsageAnalysis:
        """Options, data, fits and results as they are now, which is what all that reads an analysis takes."""
        if self._read is None:
            raise NotReadyError("There are no data yet: call setup_data(adata) first.")
        self._read.options.check_unchanged(self._given)
        return self._read

    @property
    def _prepared(self) -> Prepared | None:
        return None if self._read is None else self._read.prepared

    @property
    def _given(self) -> AnalysisOptions:
        options = {option.name: getattr(self, option.name) for option in fields(AnalysisOptions) if option.init}
        return AnalysisOptions(**options | {"priors": self.priors or self._priors_name})

    def __copy__(self) -> Self:
        twin, read = object.__new__(type(self)), self._read
        own = {option: snapshot(getattr(self, option)) for option in MAPPINGS}
        vars(twin).update(vars(self), **own, _read=None if read is None else read.twin())
        return twin

    def hold(self, prepared: Prepared, fitted: UsageFit | None = None, results: Results | None = None) -> None:
        """Take data, fits and results that were made elsewhere, in place of earlier ones.

        Examples
        --------
        >>> from pyrosplice import SplisosmGLMM
        >>> from pyrosplice.data import simulate_isoforms
        >>> model, other = SplisosmGLMM("glm"), SplisosmGLMM("glm")
        >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
        >>> other.hold(model.analysis.prepared)  # data that are prepared once
        >>> other.gene_names
        ['gene_1', 'gene_2', 'gene_3']
        """
        self._read = UsageAnalysis(self._given, prepared, fitted, results=results or {})

    def _rows(self) -> dict[str, str]:
        return analysis_rows(self._given, self._read)

    def _title(self) -> str:
        return f"{type(self).__name__}(model_type={self.model_type!r}, device={self.device!r})"
