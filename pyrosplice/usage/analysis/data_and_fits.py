"""The part of :class:`~pyrosplice.SplisosmGLMM` that holds data and fits: options, ``setup_data``, ``fit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, get_args

import torch
from anndata import AnnData

from pyrosplice.devices import as_device
from pyrosplice.effects.isoform_effect import IsoformEffect
from pyrosplice.errors import (
    InvalidArgumentError,
    NotReadyError,
    RefusedModelError,
    check_option,
    check_switches,
    is_whole,
    listed,
)
from pyrosplice.guides.own_model import Program, name_of
from pyrosplice.likelihoods.contract import Likelihood, Multinomial
from pyrosplice.modes import works_in_any_mode
from pyrosplice.priors.named import Priors, check_priors, named_priors
from pyrosplice.priors.sites import SITES
from pyrosplice.reasons import Reason
from pyrosplice.spatial.car import IdentityCovariance
from pyrosplice.spatial.graph import Graph
from pyrosplice.usage.analysis.options import EFFECT, OPTIONS, check_logits
from pyrosplice.usage.analysis.prepare import Covariance, DataOptions, Prepared, SpatialOptions, prepare
from pyrosplice.usage.glmm import MultinomGLMM
from pyrosplice.usage.own_usage import require_plain
from pyrosplice.usage.records import MODELS, FitPlan, FittedGene, ModelSpec, UsageFit, check_jobs, fit_genes

APPROX_RANK_AUTO = "auto"
GLM_METHODS = ("iwls", "newton", "gd")
TEST_BATCH = 32  # genes at a time in fits that only tests need
# fits that another search would not better
SETTLED = (Reason.CONVERGED, Reason.SEPARATED, Reason.NO_COUNTS, Reason.ALL_OR_NOTHING)


@works_in_any_mode
class UsageModels:
    """Data and fitted models of every gene; see :class:`~pyrosplice.SplisosmGLMM`, which documents the arguments."""

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
        k_neighbors: int = 4,
        rho: float = 0.99,
        approx_rank: int | str | None = APPROX_RANK_AUTO,
        device: str = "cpu",
        *,
        graph: Graph = "mutual",
        likelihood: Likelihood | None = None,
        priors: Priors = None,
        isoform_effect: IsoformEffect = "independent",
        model: Program | None = None,
    ) -> None:
        check_option("model_type", model_type, MODELS)
        check_option("isoform_effect", isoform_effect, get_args(IsoformEffect))
        as_device(device)  # raises where there is none
        self._space = SpatialOptions(k_neighbors=k_neighbors, graph=graph, rho=rho, approx_rank=approx_rank)
        self.model_type, self.device, self.isoform_effect = model_type, str(device), isoform_effect
        self.share_variance, self.var_fix_sigma, self.init_ratio = share_variance, var_fix_sigma, init_ratio
        self.var_prior_model, self.var_prior_model_params = var_prior_model, deepcopy(var_prior_model_params)
        self.fitting_method, self.fitting_configs = fitting_method, deepcopy(fitting_configs)
        self.k_neighbors, self.rho, self.approx_rank, self.graph = k_neighbors, rho, approx_rank, graph
        self.likelihood = Multinomial() if likelihood is None else likelihood
        self.priors: dict[str, Any] = dict(priors) if isinstance(priors, Mapping) else {}
        self.model = model
        MODELS[model_type](**self._model_options(priors=priors))  # raises where an option is wrong
        if model_type == "glm":  # which takes those of a GLMM too, for compatibility
            method = "joint_gd" if fitting_method in GLM_METHODS else fitting_method
            MultinomGLMM(**{name: getattr(self, name) for name in EFFECT}, fitting_method=method)
        self._priors_name = check_priors(priors)
        self.adata: AnnData | None = None
        self._prepared: Prepared | None = None
        self._fitted: UsageFit | None = None
        self._test_fits: dict[tuple[Any, ...], list[FittedGene]] = {}
        self._sv_test_results: dict[str, Any] = {}
        self._du_test_results: dict[str, Any] = {}

    def setup_data(  # noqa: PLR0913 (a documented interface)
        self,
        adata: AnnData,
        *,
        spatial_key: str = "spatial",
        adj_key: str | None = None,
        layer: str | None = "counts",
        group_iso_by: str = "gene_symbol",
        gene_names: str | None = None,
        group_gene_by_n_iso: bool = False,
        design_mtx: Any = None,
        covariate_names: Sequence[str] | None = None,
        min_counts: float = 10,
        min_bin_pct: float = 0.0,
        min_component_size: int = 1,
        covariance: Any = None,
        section_key: str | None = None,
        missing: Literal["raise", "drop"] = "raise",
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
            Coordinates in ``obsm``, an array, a sparse matrix or a table of numbers; not read by ``"glm"`` and
            ``"glmm-null"`` unless ``min_component_size`` > 1.
        adj_key
            Adjacency in ``obsp`` to use instead, weights as given, averaged with its transpose.
        layer
            Counts in ``layers``, whole numbers in any container (dense, sparse, nullable, Dask, on disk); None for
            ``X``.
        group_iso_by, gene_names
            Columns of ``var``: the gene of each isoform (those without, or with a blank name, are left out with a
            warning), and display names (those of ``group_iso_by`` by default).
        group_gene_by_n_iso
            Sort genes by isoform count before batching, so that batches are as full as ``batch_size`` says. Without,
            only neighbouring genes with the same count share a batch.
        design_mtx
            Covariates: array, tensor, sparse matrix or DataFrame ``(N, P)``, column(s) of ``obs``, or a formula such as
            ``"~ region + log(total)"`` (names that are no words in backticks). What is no number (text, booleans,
            categoricals, dates) becomes one covariate a level. A table that has the spots' names, in whatever order
            and type, is paired by them; one that has none of them by position; one that has some is refused.
            *Differs from* the documented interface: a constant covariate, which there is warned about, is refused: it
            has no effect to estimate or test. They are what :meth:`test_differential_usage` tests, and
            :meth:`test_spatial_variability` adjusts for them.
        covariate_names
            P names to use instead of the columns' own.
        min_counts, min_bin_pct
            Least total of an isoform; least fraction (above 1: percent) of spots in which it is seen.
        min_component_size
            Spots in smaller components of the graph are left out, with a warning; so are the levels of covariates
            that only they have.
        covariance
            Spatial covariance of the spots to use instead of the graph's CAR: a
            :class:`~pyrosplice.spatial.covariance.SpatialCovariance` or any object with ``precision`` or ``dense()``.
        section_key
            Column of ``obs`` that says which section (slide, sample) a spot is of. Sections share b, β, σ and θ; the
            graph has edges within sections only (those of ``adj_key`` between sections are left out, with a warning
            that counts them), so that their random effects are independent and their coordinates may overlap. Put the
            section among the covariates too (no other call has to know), or differences between sections count as
            spatial variability.
        missing
            What to do with spots that lack a label or number in ``design_mtx`` or ``section_key`` (None, NaN, NA, blank
            text): ``"raise"`` refuses, ``"drop"`` leaves them out of everything, with a warning, as if they were not
            in ``adata``.

        Raises
        ------
        InvalidArgumentError
            Bad input, naming the argument, what was found and what was expected; also something in ``adata`` that
            ``save`` could not write (an object in ``uns`` or in a column).
        """
        options = DataOptions(
            model_type=self.model_type,
            space=self._space,
            spatial_key=spatial_key,
            adj_key=adj_key,
            layer=layer,
            group_iso_by=group_iso_by,
            gene_names=gene_names,
            group_gene_by_n_iso=group_gene_by_n_iso,
            design_mtx=design_mtx,
            covariate_names=covariate_names,
            min_counts=min_counts,
            min_bin_pct=min_bin_pct,
            min_component_size=min_component_size,
            covariance=covariance,
            section_key=section_key,
            missing=missing,
            n_isos=self.likelihood.n_categories,
        )
        prepared = prepare(adata, options)
        if self.model_type != "glm":
            check_logits(self.isoform_effect, self.likelihood, prepared.counts)
        if self._priors_name is not None:
            own = SITES if self.model_type != "glm" else SITES[:2]
            space = prepared.covariance if self.model_type == "glmm-full" else None
            self.priors = named_priors(
                self._priors_name, (*own, *self.likelihood.free), covariance=space, likelihood=self.likelihood,
                isoform_effect=self.isoform_effect,
            )  # fmt: skip
        self.adata, self._prepared = adata, prepared
        self._forget()

    def fit(
        self,
        n_jobs: int = 1,
        batch_size: int = 1,
        quiet: bool = True,
        print_progress: bool = True,
        with_design_mtx: bool = False,
        from_null: bool = False,
        refit_null: bool = True,
        random_seed: int | None = None,
    ) -> None:
        """Fit every gene. Forgets earlier tests; if it fails, the earlier fit is still there.

        Parameters
        ----------
        n_jobs
            Processes; 1 on accelerators (with a warning).
        batch_size
            Genes per batch, all of one isoform count.
        quiet, print_progress
            No logs; a progress bar.
        with_design_mtx
            Estimate covariate effects (for the Wald test and :meth:`get_effects`); without, the fit is the null of the
            score test. The tests of space adjust for the covariates after either.
        from_null
            For ``"glmm-full"``: fit the model without spatial variance too, which ``method="llr"`` needs.
        refit_null
            Accepted for compatibility: fits do not depend on where they start, so another would be the same.
        random_seed
            Passed to the models.
        """
        prepared = self._ready()
        check_switches(
            quiet=quiet,
            print_progress=print_progress,
            with_design_mtx=with_design_mtx,
            from_null=from_null,
            refit_null=refit_null,
        )
        if with_design_mtx and prepared.design is None:
            raise InvalidArgumentError("with_design_mtx=True: expected a design; setup_data was called without one.")
        if self.model is not None and with_design_mtx:
            require_plain(prepared.design, name_of(self.model))
        if not is_whole(batch_size, 1):
            raise InvalidArgumentError(f"batch_size: expected a whole number ≥ 1, found {batch_size!r}.")
        if not (random_seed is None or is_whole(random_seed, 0)):
            raise InvalidArgumentError(f"random_seed: expected None or a whole number ≥ 0, found {random_seed!r}.")
        n_jobs = check_jobs(n_jobs, self.device)
        both = from_null and self.model_type == "glmm-full"
        plan = FitPlan(
            full=self._spec(self.model_type, with_design=with_design_mtx),
            null=self._spec("glmm-null", with_design=with_design_mtx) if both else None,
            random_seed=random_seed,
            quiet=quiet,
        )
        genes, null = fit_genes(
            plan,
            prepared.counts,
            prepared.batches(int(batch_size)),
            n_jobs=n_jobs,
            print_progress=print_progress,
        )
        self._forget()
        self._fitted = UsageFit(genes, null, with_design_mtx, n_jobs)

    @property
    def n_spots(self) -> int:
        """Number of spots after filtering; 0 before ``setup_data``."""
        return 0 if self._prepared is None else self._prepared.n_spots

    @property
    def n_genes(self) -> int:
        """Number of genes after filtering; 0 before ``setup_data``."""
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

    @property
    def n_isos_per_gene(self) -> list[int]:
        """Number of isoforms of each gene after filtering."""
        return [] if self._prepared is None else self._prepared.data.n_isos

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
        """The filtered copy of the data, spots × isoforms. Raises :class:`NotReadyError` before ``setup_data``."""
        return self._ready().data.adata

    def get_fitted_models(self) -> list[Any]:
        """Models of all genes, rebuilt at every call from the stored fits; changing them changes nothing here.

        Those of a model of your own are fitted again, to have its ``sites`` and ``guide``.
        """
        fit, prepared = self._ready_fit(), self._ready()
        spec = self._spec(self.model_type, with_design=fit.with_design)
        pairs = zip(prepared.counts, fit.genes, strict=True)
        return [spec.rebuild(counts.unsqueeze(0), [gene]) for counts, gene in pairs]

    def get_gene_model(self, gene_name: str) -> Any:
        """Model of one gene, with all that such a model has. For draws of many genes see :meth:`posterior`.

        Raises KeyError for a name that is not in ``gene_names``.
        """
        fit, prepared = self._ready_fit(), self._ready()
        gene = self._position(gene_name)
        spec = self._spec(self.model_type, with_design=fit.with_design)
        return spec.rebuild(prepared.counts[gene].unsqueeze(0), [fit.genes[gene]])

    def _position(self, gene_name: str) -> int:
        names = self._ready().gene_names
        if gene_name not in names:
            near = listed(names, near=str(gene_name))
            raise KeyError(f"gene_name: {gene_name!r} is not one of the {self.n_genes} genes in gene_names: {near}.")
        return names.index(gene_name)

    def _shipped_only(self, what: str) -> None:
        """Raise for what rests on other fits than those of a model of one's own."""
        if self.model is not None:
            raise RefusedModelError(
                f"{what}: it rests on fits of the shipped model, and this analysis is of {name_of(self.model)}, whose "
                "sites, guide, objective and vcov() are those of get_gene_model(name)."
            )

    def _ready(self) -> Prepared:
        if self._prepared is None:
            raise NotReadyError("There are no data yet: call setup_data(adata) first.")
        return self._prepared

    def _ready_fit(self) -> UsageFit:
        self._ready()
        if self._fitted is None:
            raise NotReadyError("The models are not fitted yet: call fit() first.")
        return self._fitted

    def _forget(self) -> None:
        """Drop fits and test results of earlier data."""
        self._fitted = None
        self._test_fits, self._sv_test_results, self._du_test_results = {}, {}, {}

    def _options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: deepcopy(getattr(self, name)) for name in OPTIONS}

    def _model_options(self, **changed: Any) -> dict[str, Any]:
        """Constructor arguments of the model of one batch."""
        configs = {"max_epochs": 500} if self.fitting_configs is None else deepcopy(self.fitting_configs)
        own: dict[str, Any] = {"likelihood": self.likelihood, "priors": self.priors, "model": self.model}
        if self.model_type == "glm":
            method = self.fitting_method if self.fitting_method in GLM_METHODS else "iwls"
            return {"fitting_method": method, "fitting_configs": configs, **own, **changed}
        options = {name: getattr(self, name) for name in EFFECT}
        return options | {"fitting_method": self.fitting_method, "fitting_configs": configs} | own | changed

    def _test_spec(
        self, model_type: str, *, with_design: bool, priors: bool = True, device: str | None = None
    ) -> ModelSpec:
        """The model that tests rest on: a GLMM's at its marginal optimum with σ estimated, with priors or without."""
        tolerance = {name: value for name, value in (self.fitting_configs or {}).items() if name == "tol"}
        changed: dict[str, Any] = {"fitting_configs": tolerance or None, "fitting_method": "iwls"}
        if model_type != "glm":
            changed |= {"fitting_method": "marginal_newton", "var_fix_sigma": False}
            changed |= {} if priors else {"var_prior_model": "none", "var_prior_model_params": None}
        changed |= {} if priors else {"priors": None}
        return self._spec(model_type, with_design=with_design, device=device, **changed)

    def _test_fit(
        self, model_type: str, *, with_design: bool, print_progress: bool, priors: bool = True
    ) -> list[FittedGene]:
        """Genes at the optimum that tests rest on.

        The user's own fits where they are that and have settled; the others are fitted here, once.
        """
        key = (model_type, with_design, priors)
        if key in self._test_fits:
            return self._test_fits[key]
        fit, prepared = self._ready_fit(), self._ready()
        marginal = self.fitting_method.startswith("marginal") and not self.var_fix_sigma
        without = not self.priors and self.var_prior_model == "none"
        usable = (model_type == "glm" or marginal) and with_design == fit.with_design and (priors or without)
        own = fit.genes if model_type == self.model_type else fit.null
        kept = [gene if gene.reason in SETTLED else None for gene in own] if usable and own else [None] * self.n_genes
        batches = [[gene for gene in some if kept[gene] is None] for some in prepared.batches(TEST_BATCH, group=True)]
        fitted, _ = fit_genes(
            FitPlan(full=self._test_spec(model_type, with_design=with_design, priors=priors)),
            prepared.counts,
            [some for some in batches if some],
            n_jobs=fit.n_jobs,
            description=f"marginal {model_type}",
            print_progress=print_progress,
        )
        self._test_fits[key] = [new if old is None else old for new, old in zip(fitted, kept, strict=True)]
        return self._test_fits[key]

    def _spec(self, model_type: str, *, with_design: bool, device: str | None = None, **changed: Any) -> ModelSpec:
        """How to make models, here or on another ``device``; ``changed`` constructor arguments go before the user's."""
        device = device or self.device
        design = self._ready().design if with_design else None
        spatial = self._spatial_arguments(model_type, device)
        return ModelSpec(model_type, self._model_options(**changed), spatial, design, device)

    def _spatial_arguments(self, model_type: str, device: str) -> dict[str, Any]:
        """The covariance as ``setup_data`` of a model takes it; its factor is analysed once for all genes."""
        prepared = self._ready()
        if model_type == "glm":
            return {}
        if model_type == "glmm-null":
            return {"corr_sp": IdentityCovariance(prepared.n_spots)}
        return {"corr_sp": prepared.solver(self._space.rank(prepared.n_spots, self.device), device)}
