"""An analysis of isoform usage as its tests and tables see it, and the fits that they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from joblib import effective_n_jobs
from torch import Tensor

from pyrosplice._hypothesis.coefficients.working_model import Spectra
from pyrosplice._usage.analysis.options import AnalysisOptions
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.grouped.grouped_methods import take_records
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice._usage.own_usage import require_plain
from pyrosplice._usage.records import FitPlan, ModelSpec, UsageFit, check_jobs, fit_genes
from pyrosplice.errors import (
    InvalidArgumentError,
    NotReadyError,
    RefusedModelError,
    check_switches,
    is_whole,
    listed,
)
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.glmm._marginal import genes_at_once
from pyrosplice.guides._own_model import name_of
from pyrosplice.reasons import Reason
from pyrosplice.spatial.car import IdentityCovariance

Results = dict[str, dict[str, Any]]  # of the last test, by its kind
TEST_BATCH = 32  # genes at a time in fits that only tests need
# fits that another search would not better
SETTLED = (Reason.CONVERGED, Reason.SEPARATED, Reason.NO_COUNTS, Reason.ALL_OR_NOTHING)


@dataclass(frozen=True)
class UsageAnalysis:
    """Options, data, fits and results of an analysis of all genes.

    Attributes
    ----------
    options
        Options of the models.
    prepared
        What ``setup_data`` made.
    fitted
        What ``fit`` made; None before.
    test_fits
        Fits that only tests needed, by model: found once, and added here.
    results
        Results of the last test of each kind, ``"sv"`` and ``"du"``; tests put theirs here.
    """

    options: AnalysisOptions
    prepared: Prepared
    fitted: UsageFit | None = None
    test_fits: dict[tuple[Any, ...], list[FittedGene]] = field(default_factory=dict)
    results: Results = field(default_factory=dict)

    def twin(self) -> UsageAnalysis:
        """Copy with results of its own: what is tested of one is not the other's."""
        results = {test: dict(found) for test, found in self.results.items()}
        return replace(self, test_fits=dict(self.test_fits), results=results)

    @property
    def fit(self) -> UsageFit:
        """What ``fit`` made; raises before."""
        if self.fitted is None:
            raise NotReadyError("The models are not fitted yet: call fit() first.")
        return self.fitted

    @property
    def model_type(self) -> str:
        """Name of the model: ``"glmm-full"``, ``"glmm-null"`` or ``"glm"``."""
        return self.options.model_type

    @property
    def n_genes(self) -> int:
        """Number G of genes."""
        return len(self.prepared.counts)

    def shipped_only(self, what: str) -> None:
        """Raise for what rests on other fits than those of a model of one's own."""
        model = self.options.model
        if model is not None:
            raise RefusedModelError(
                f"{what}: it rests on fits of the shipped model, and this analysis is of {name_of(model)}, whose "
                "sites, guide, objective and vcov() are those of get_gene_model(name)."
            )

    def without_groups(self, what: str, instead: str = "") -> None:
        """Raise for what rests on fits without a list of random effects."""
        if self.prepared.listed is not None:
            raise RefusedModelError(
                f"{what}: it is worked out for fits without random effects of groups, and this analysis has "
                f"{self.prepared.listed}.{f' {instead}' if instead else ''}"
            )

    def check_groups(self) -> None:
        """Raise where the engine has no way for the list of random effects."""
        if self.prepared.listed is not None:
            self.grouped_spec(with_design=True).check(self.counts([0]))

    def grouped_spec(self, *, with_design: bool) -> GroupedSpec:
        """The model with a list of random effects that fits and tests rest on."""
        prepared, options = self.prepared, self.options
        design = prepared.design if with_design else None
        return GroupedSpec(prepared.n_spots, design, self.effects, options.likelihood, options.isoform_effect)

    @property
    def effects(self) -> BoundEffects:
        """The list of random effects, those of the model's type among them."""
        kind, prepared = self.model_type, self.prepared
        listed = prepared.listed
        if listed is None:
            raise AssertionError("a list of random effects is asked for where there is none")
        if kind == "glmm-full" and listed.space is None:
            listed = replace(listed, space=prepared.solver(None, "cpu"), sections=prepared.sections)
        return replace(listed, noise=listed.noise or kind != "glm")

    def position(self, gene_name: str) -> int:
        """Where a gene is among ``gene_names``; KeyError for another name."""
        names = self.prepared.gene_names
        if gene_name not in names:
            near = listed(names, near=str(gene_name))
            raise KeyError(f"gene_name: {gene_name!r} is not one of the {self.n_genes} genes in gene_names: {near}.")
        return names.index(gene_name)

    def counts(self, genes: Sequence[int]) -> Tensor:
        """Counts of genes with the same number of isoforms, ``(B, N, K)``."""
        return torch.stack([self.prepared.counts[gene] for gene in genes])

    def jobs(self, n_jobs: int | None) -> int:
        """Number of processes: as asked, or that of ``fit``."""
        if n_jobs is None:
            return 1 if self.fitted is None else self.fitted.n_jobs
        return check_jobs(n_jobs, self.options.device)

    def spectra(self) -> Spectra:
        """Steeper spectra of the spatial covariance."""
        return self.prepared.spectra(self.options.rank(self.prepared.n_spots))

    def spec(self, model_type: str, *, with_design: bool, device: str | None = None, **changed: Any) -> ModelSpec:
        """How to make models, here or on another ``device``; ``changed`` constructor arguments go before the user's."""
        device = device or self.options.device
        design = self.prepared.design if with_design else None
        spatial = self._spatial_arguments(model_type, device)
        return ModelSpec(model_type, self.options.model_options(**changed), spatial, design, device)

    def _spatial_arguments(self, model_type: str, device: str) -> dict[str, Any]:
        """The covariance as ``setup_data`` of a model takes it; its factor is analysed once for all genes."""
        if model_type == "glm":
            return {}
        if model_type == "glmm-null":
            return {"corr_sp": IdentityCovariance(self.prepared.n_spots)}
        return {"corr_sp": self.prepared.solver(self.options.rank(self.prepared.n_spots), device)}

    def rebuilt(self, gene: int) -> MultinomGLM:
        """Rebuild the fitted model of one gene, with all that such a model has."""
        if self.prepared.listed is not None:
            own: dict[str, Any] = {"likelihood": self.options.likelihood, "isoform_effect": self.options.isoform_effect}
            model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, **own)
            listed = self.grouped_spec(with_design=self.fit.with_design)
            take_records(model, self.counts([gene]), listed, [self.fit.genes[gene]])
            return model
        spec = self.spec(self.model_type, with_design=self.fit.with_design)
        return spec.rebuild(self.counts([gene]), [self.fit.genes[gene]])

    def test_spec(
        self, model_type: str, *, with_design: bool, priors: bool = True, device: str | None = None
    ) -> ModelSpec:
        """The model that tests rest on: a GLMM's at its marginal optimum with σ estimated, with priors or without."""
        changed = self.options.test_options(model_type, priors=priors)
        return self.spec(model_type, with_design=with_design, device=device, **changed)

    def test_fit(self, model_type: str, *, with_design: bool, show: bool, priors: bool = True) -> list[FittedGene]:
        """Genes at the optimum that tests rest on.

        The user's own fits where they are that and have settled; the others are fitted here, once.
        """
        key, fit, options = (model_type, with_design, priors), self.fit, self.options
        if key not in self.test_fits:
            usable = options.is_marginal and with_design == fit.with_design
            own = fit.genes if model_type == self.model_type else fit.null
            kept: list[FittedGene | None] = [None] * self.n_genes
            if own and usable and (priors or not options.has_priors):
                kept = [gene if gene.reason in SETTLED else None for gene in own]
            spec = self.test_spec(model_type, with_design=with_design, priors=priors)
            new = self._new_fits(spec, kept, description=f"marginal {model_type}", show=show)
            self.test_fits[key] = [here if old is None else old for here, old in zip(new, kept, strict=True)]
        return self.test_fits[key]

    def spec_with(self, columns: tuple[int, ...], *, device: str = "cpu") -> ModelSpec:
        """The tested model with some of the covariates."""
        design = self.prepared.design
        if design is None:
            raise AssertionError("columns are those of a design")
        spec = self.test_spec(self.model_type, with_design=False, device=device)
        return spec.with_design(design.only(columns) if columns else None)

    def fit_with(self, columns: tuple[int, ...], *, show: bool) -> list[FittedGene]:
        """Genes fitted with some of the covariates: the present fits where they are with these, else new ones, once."""
        design, with_design = self.prepared.design, self.fit.with_design
        present = tuple(design.estimable) if design is not None and with_design else ()
        if columns == present:
            genes = self.test_fit(self.model_type, with_design=with_design, show=show)
            return self.test_spec(self.model_type, with_design=with_design).estimable(genes)
        if columns not in self.test_fits:
            spec, none = self.spec_with(columns, device=self.options.device), [None] * self.n_genes
            self.test_fits[columns] = self._new_fits(spec, none, description=f"{len(columns)} covariate(s)", show=show)
        return self.test_fits[columns]

    def listed_fits(self, spec: GroupedSpec, key: tuple[Any, ...], *, show: bool) -> list[FittedGene]:
        """Genes fitted with another model with a list of random effects, once by ``key``."""
        if key not in self.test_fits:
            batches = self.prepared.batches(TEST_BATCH, group=True)
            options: dict[str, Any] = {"n_jobs": self.fit.n_jobs, "print_progress": show}
            fitted, _ = fit_genes(FitPlan(spec), self.prepared.counts, batches, description=str(key[-1]), **options)
            self.test_fits[key] = fitted
        return self.test_fits[key]

    def _new_fits(
        self, spec: ModelSpec, kept: Sequence[FittedGene | None], *, description: str, show: bool
    ) -> list[FittedGene]:
        """Fits of the genes of which none is kept; None for the others."""
        batches = self.prepared.batches(TEST_BATCH, group=True)
        fitted, _ = fit_genes(
            FitPlan(full=spec),
            self.prepared.counts,
            [some for batch in batches if (some := [gene for gene in batch if kept[gene] is None])],
            n_jobs=self.fit.n_jobs,
            description=description,
            print_progress=show,
        )
        return fitted


def batches_alike(analysis: UsageAnalysis, spec: GroupedSpec, genes: Sequence[FittedGene]) -> list[list[int]]:
    """Positions of genes by batch, one isoform count and one field each."""
    out = []
    for batch in analysis.prepared.batches(TEST_BATCH, group=True):
        out += [[batch[k] for k in places] for places in spec.alike([genes[g] for g in batch])]
    return out


class Analyzed(Protocol):
    """A :class:`~pyrosplice.SplisosmGLMM`, as its methods that stand in a file of their own see it."""

    @property
    def analysis(self) -> UsageAnalysis:
        """What there is to read; raises before ``setup_data``."""


class Holder(Analyzed, Protocol):
    """A :class:`~pyrosplice.SplisosmGLMM` as methods that change its data and fits see it."""

    def __init__(self, **options: Any) -> None: ...

    def hold(self, prepared: Prepared, fitted: UsageFit | None, results: Results | None = None) -> None:
        """Take data, fits and results in place of earlier ones."""


def fit(  # noqa: PLR0913 (a documented interface)
    self: Holder,
    n_jobs: int = 1,
    batch_size: int | Literal["auto"] = 1,
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
        Genes per batch, all of one isoform count. ``"auto"`` takes as many as memory allows, at most 32, sorted by
        isoform count whatever ``setup_data`` was told, a share for every process. One gene at a time, the documented
        default, costs 6 to 10 times the processor seconds of ``"auto"`` (``"joint_gd"``, ``"joint_newton"``,
        ``"marginal_newton"``; 24 genes, 256 spots, 3 isoforms), and ends at the same estimates to 3e-5.
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

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0), group_gene_by_n_iso=True)
    >>> model.fit(batch_size=3, print_progress=False)  # genes of equal numbers of isoforms are fitted together
    >>> model.get_training_summary()["reason"].tolist()
    ['converged', 'converged', 'converged']
    """
    analysis = self.analysis
    check_switches(quiet=quiet, print_progress=print_progress, from_null=from_null, refit_null=refit_null)
    check_switches(with_design_mtx=with_design_mtx)
    prepared, kind, model = analysis.prepared, analysis.model_type, analysis.options.model
    if with_design_mtx and prepared.design is None:
        raise InvalidArgumentError("with_design_mtx=True: expected a design; setup_data was called without one.")
    if model is not None and with_design_mtx:
        require_plain(prepared.design, name_of(model))
    auto = isinstance(batch_size, str) and batch_size == "auto"
    if not (auto or is_whole(batch_size, 1)):
        raise InvalidArgumentError(f"batch_size: expected a whole number ≥ 1 or 'auto', found {batch_size!r}.")
    if not (random_seed is None or is_whole(random_seed, 0)):
        raise InvalidArgumentError(f"random_seed: expected None or a whole number ≥ 0, found {random_seed!r}.")
    n_jobs, both = check_jobs(n_jobs, analysis.options.device), from_null and kind == "glmm-full"
    if from_null:
        analysis.without_groups("from_null", "Leave it out; test_spatial_variability('score') needs no fit.")
    grouped = prepared.listed is not None
    full = (analysis.grouped_spec if grouped else partial(analysis.spec, kind))(with_design=with_design_mtx)
    null_spec = analysis.spec("glmm-null", with_design=with_design_mtx) if both else None
    plan = FitPlan(full, null_spec, random_seed=random_seed, quiet=quiet)
    size = _auto_batch(prepared, n_jobs) if auto else int(batch_size)
    batches = prepared.batches(size, group=True if auto else None)
    genes, null = fit_genes(plan, prepared.counts, batches, n_jobs=n_jobs, print_progress=print_progress)
    self.hold(prepared, UsageFit(genes, null, with_design_mtx, n_jobs))


def _auto_batch(prepared: Prepared, n_jobs: int) -> int:
    """Genes a batch that fit in memory together, and leave every process its share."""
    share = -(-len(prepared.counts) // effective_n_jobs(n_jobs))
    return min(genes_at_once(prepared.n_spots, max(prepared.data.n_isos) - 1, 0), TEST_BATCH, share)


def get_fitted_models(self: Analyzed) -> list[MultinomGLM]:
    """Rebuild the models of all genes from the stored fits, at every call; changing them changes nothing here.

    Those of a model of your own are fitted again, to have its ``sites`` and ``guide``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.fit(print_progress=False)
    >>> [fit.bias_eta.shape for fit in model.get_fitted_models()]
    [torch.Size([1, 2]), torch.Size([1, 2]), torch.Size([1, 2])]
    """
    analysis = self.analysis
    return [analysis.rebuilt(gene) for gene in range(len(analysis.fit.genes))]


def get_gene_model(self: Analyzed, gene_name: str) -> MultinomGLM:
    """Rebuild the model of one gene, with all that such a model has. For many genes' draws see :meth:`posterior`.

    Raises KeyError for a name that is not in ``gene_names``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.fit(print_progress=False)
    >>> model.get_gene_model("gene_2").get_isoform_ratio().shape  # genes, spots, isoforms
    torch.Size([1, 64, 3])
    """
    return self.analysis.rebuilt(self.analysis.position(gene_name))
