"""Whether the tests hold on the data at hand: on genes like a person's own, of which is known what is true."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrosplice._tables.coordinates import read_coordinates, spatial_key_of
from pyrosplice._usage.analysis.calibration_check import CalibrationCheck
from pyrosplice._usage.analysis.calibration_request import Request, domains_of, methods_of
from pyrosplice._usage.analysis.fits import TEST_BATCH, Analyzed, UsageAnalysis
from pyrosplice._usage.analysis.null_genes import Space, Truth, graph_of, observed_isoforms
from pyrosplice._usage.analysis.options import AnalysisOptions
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.gene_tests.terms import same_nuisance, terms_of
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice.errors import UnreliableWarning, check_switches
from pyrosplice.spatial._domains import Domains
from pyrosplice.spatial._graph import knn_graph

COLUMNS = [
    "test",
    "covariate",
    "rate",
    "effect",
    "gene",
    "source",
    "n_isoforms",
    "statistic",
    "pvalue",
    "reason",
    "reliable",
]
CHUNK = 2.0e8  # bytes of counts that are held at a time
QUIET: dict[str, Any] = {"return_results": True, "print_progress": False}


@dataclass(frozen=True)
class Draw:
    """Genes of one kind: what is true of them, which tests are asked of them, and what their rejections are."""

    truth: Truth
    rate: Literal["size", "power"] = "size"
    effect: float = 0.0
    asked: tuple[int, ...] | None = None


def check_calibration(  # noqa: PLR0913 (a documented interface)
    self: Testable,
    test: Literal["sv", "du"] | None = None,
    n_genes: int = 1000,
    truth: Literal["null", "fitted", "domains"] | Domains = "null",
    *,
    method: str | Sequence[str] = "score",
    effect: float | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    n_jobs: int | None = None,
    print_progress: bool = True,
    **options: Any,
) -> CalibrationCheck:
    r"""Measure how often the tests reject true null hypotheses on tissue, depths and genes like yours.

    Draws genes of which is known what is true, on the spots, graph, covariates and priors of this model, and tests
    them as :meth:`test_spatial_variability` and :meth:`test_differential_usage` do: by these very methods, on fits
    of a model like this one, which itself stays as it is. Each new gene is like one of the fitted genes: it has its
    number of isoforms and, spot for spot, its number of molecules, so that places and depth are those of the data;
    its usage is drawn from that gene's fit, and its counts from the likelihood. Each own gene is as often taken
    as the others. Isoforms of which no molecule is drawn are left out, as ``setup_data`` does.

    With random effects of groups or ``effects=`` levels, fields and effects of spots are drawn anew for every gene, as
    variable as its fit says; ``truth="domains"`` and an ``effect`` of ``"sv"`` are refused then.

    It measures the tests where usage is as the model (or ``truth``) says. That usage really is so, no simulation
    can show; ``truth="domains"`` is a look beyond the model.

    Parameters
    ----------
    test
        ``"sv"`` (spatial variability) or ``"du"`` (differential usage); both, where the model has both, if None.
    n_genes
        New genes for each rate; 1,000 tell a size of .05 from .07.
    truth
        ``"null"``: usage varies as each gene's fit without covariates says, and the null hypothesis is true: no
        spatial variance (``"sv"``: intercepts, σ and hyper-parameters of the fit without it), or no effect of any
        covariate beside the fitted random effect (``"du"``).
        ``"fitted"``: the same, with all that the test adjusts for as it was fitted: the effects of the
        covariates for ``"sv"``; for ``"du"`` those of the other covariates, one covariate tested after the other.
        ``"domains"`` or :class:`~pyrosplice.testing.Domains`: usage jumps between random domains of the tissue, as
        variable as the fitted spatial effect, and no covariate has an effect: size of tests of covariates
        where the random effect is not what the model says. For ``"sv"`` the rejections are power, not size.
    method
        Methods of the tests: ``"score"``, ``"llr"``; ``"score"``, ``"wald"``, ``"lrt"``; or several, on the same genes.
    effect
        Measure power at this effect too, on genes that are otherwise the same. ``"sv"``: standard deviation
        (logits) of the spatial effect. ``"du"``: log odds of the first isoform against the last for a unit of the
        covariate, one covariate at a time (of a factor tested jointly: its second level against the others).
    confidence
        Confidence of the exact intervals and of the figure's band.
    seed
        Seed of everything random, beside ``random_seed`` among the options. The same seed gives the same numbers,
        whatever ``n_jobs``.
    n_jobs
        Processes; those of ``fit`` if None.
    print_progress
        Progress bars.
    **options
        Options of the test method: ``variance``, ``by``, ``contrasts``, ``adjust_for_design``, ``null_law``, ….

    Returns
    -------
    CalibrationCheck
        ``print`` it for sentences; ``table``, ``pvalues``, ``reasons``, ``plot()``.

    Raises
    ------
    NotReadyError
        Before ``setup_data`` or ``fit``.
    InvalidArgumentError
        Options that do not exist or exclude each other, tried on one gene before any work; a likelihood that
        cannot ``sample``; no gene to draw from; domains without a graph or variance.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM()
    >>> model.setup_data(simulate_isoforms(n_spots=100, n_genes=5))
    >>> model.fit(print_progress=False)
    >>> check = model.check_calibration("sv", n_genes=200, print_progress=False)
    >>> check.table["level"].tolist()
    [0.05, 0.01, 0.001]
    """
    analysis = self.analysis
    analysis.shipped_only("check_calibration")
    fit = analysis.fit
    check_switches(print_progress=print_progress)
    about = (analysis.prepared, analysis.model_type)
    methods, domains = methods_of(test, method, *about), domains_of(truth, *about)
    if domains is not None:
        analysis.without_groups("truth='domains'", "Use truth='null' or 'fitted'.")
    name = "domains" if isinstance(truth, Domains) else truth
    request = Request(methods, name, domains, n_genes, effect, confidence, seed, deepcopy(options))
    n_jobs = analysis.jobs(n_jobs)
    analysis.options.likelihood.require("sample")
    if effect is not None and "sv" in methods:
        analysis.without_groups("effect of test='sv'", "Leave effect out.")
    check = Simulation(self._like, request, n_jobs, print_progress)
    check.try_options(analysis)
    # a copy, so that this one keeps the fits that it has, and has no others
    own = replace(analysis, fitted=replace(fit, n_jobs=n_jobs), test_fits=dict(analysis.test_fits))
    parts: list[pd.DataFrame] = []
    lost: dict[int, str] = {}
    for kind in request.methods:
        for draw in check.draws(own, kind):
            lost |= draw.truth.left_out
            parts += check.pvalues(own, kind, draw)
    names = analysis.prepared.gene_names
    return CalibrationCheck(
        pvalues=pd.concat(parts, ignore_index=True)[COLUMNS],
        settings={"truth": request.truth, "n_genes": request.n_genes, "seed": request.seed, **request.options},
        left_out={names[gene]: lost[gene] for gene in sorted(lost)},
        confidence=request.confidence,
    )


def analysis_like(self: Likeable, counts: Sequence[Tensor]) -> Testable:
    """An analysis like this one of other genes, ``(N, K)`` each; not fitted."""
    twin = copy(self)  # with results of its own
    if not self._given.is_marginal:  # tests rest on fits of their own then, and those of ``fit`` need no time
        twin.fitting_configs = {**(self.fitting_configs or {}), "max_epochs": 0}
    twin.adata = None
    twin.hold(self.analysis.prepared.of_counts(counts))
    return twin


class Testable(Analyzed, Protocol):
    """An analysis whose tests are checked: by its own methods, on one like it of other genes."""

    def _like(self, counts: Sequence[Tensor]) -> Testable:
        """An analysis like this one of other genes, ``(N, K)`` each; not fitted."""

    def fit(self, *args: Any, **options: Any) -> None:
        """Fit every gene."""

    def test_spatial_variability(self, *args: Any, **options: Any) -> dict[str, Any] | None:
        """Test space."""

    def test_differential_usage(self, *args: Any, **options: Any) -> dict[str, Any] | None:
        """Test covariates."""


class Likeable(Testable, Protocol):
    """An analysis that others are made like."""

    adata: object
    fitting_configs: Any

    @property
    def _given(self) -> AnalysisOptions: ...

    def hold(self, prepared: Prepared) -> None:
        """Take data in place of earlier ones."""


@dataclass(frozen=True)
class Simulation:
    """Genes of which is known what is true, and their tests.

    Attributes
    ----------
    like
        Makes an analysis like the person's of other genes.
    request
        What is asked for.
    n_jobs, show
        Processes of the tests; progress bars.
    """

    like: Callable[[Sequence[Tensor]], Testable]
    request: Request
    n_jobs: int
    show: bool

    def try_options(self, analysis: UsageAnalysis) -> None:
        """Run what is asked for on the first gene, so that what cannot be asked is refused before any work."""
        first = self.like([observed_isoforms(analysis.prepared.counts[0], analysis.options.likelihood)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for kind, methods in self.request.methods.items():
                for name in methods:
                    _test(first, kind, name, self.request.options, 1)

    def pvalues(self, analysis: UsageAnalysis, kind: str, draw: Draw) -> Iterator[pd.DataFrame]:
        """Draw genes and test them, as many at a time as memory allows."""
        prepared, request, likelihood = analysis.prepared, self.request, analysis.options.likelihood
        sources = draw.truth.sources(request.n_genes, request.seed)
        for chunk in _chunks(len(sources), prepared.counts, f"check {kind}", show=self.show):
            counts = draw.truth.counts(sources[chunk], (request.seed, int(chunk[0])))
            twin = self.like([observed_isoforms(table, likelihood) for table in counts])
            about = {"gene": chunk, "source": [prepared.gene_names[gene] for gene in sources[chunk]]}
            about["n_isoforms"] = twin.analysis.prepared.data.n_isos
            for name in request.methods[kind]:
                results = _test(twin, kind, name, request.options, self.n_jobs)
                yield _rows(results, f"{kind.upper()} {name}", draw, about)

    def draws(self, analysis: UsageAnalysis, kind: str) -> Iterator[Draw]:
        """What to draw: the null hypothesis, and at an effect where there is one."""
        prepared, domains = analysis.prepared, self.request.domains
        graph = None if domains is None else _domain_graph(analysis, domains)
        spatial = analysis.model_type == "glmm-full"
        space = Space(prepared.solver(None, "cpu") if spatial else None, graph, domains)
        return (self._spatial_draws if kind == "sv" else self._covariate_draws)(analysis, space)

    def _spatial_draws(self, analysis: UsageAnalysis, space: Space) -> Iterator[Draw]:
        prepared, request = analysis.prepared, self.request
        adjust = request.truth == "fitted" and prepared.design is not None
        adjust = adjust and request.options.get("adjust_for_design", True)
        design, listed = prepared.design_tensor if adjust else None, None
        if prepared.listed is None:
            null = analysis.test_fit("glmm-null", with_design=adjust, show=self.show)
        else:
            spec = analysis.grouped_spec(with_design=adjust).without_space
            null, listed = analysis.listed_fits(spec, ("listed", adjust, "no space"), show=self.show), spec
        truth = Truth(null, _totals(prepared), design, analysis.options.likelihood, space, listed=_of(listed, prepared))
        if request.domains is None:
            yield Draw(truth)
        else:
            full = analysis.test_fit("glmm-full", with_design=False, show=self.show)
            yield Draw(replace(truth, genes=full, spatial_sd=request.domains.sd), "power", np.nan)
        if request.effect is not None:
            yield Draw(replace(truth, spatial_sd=float(request.effect)), "power", float(request.effect))

    def _covariate_draws(self, analysis: UsageAnalysis, space: Space) -> Iterator[Draw]:
        design, request = analysis.prepared.design, self.request
        if design is None:
            raise AssertionError("the options were tried")
        contrasts, by = request.options.get("contrasts"), request.options.get("by", "covariate")
        terms = [] if contrasts is not None else terms_of(design, by)
        groups = [(terms[some[0]].nuisance, some) for some in same_nuisance(terms)]
        groups = groups if request.truth == "fitted" else [((), list(range(len(terms))))]
        sd = None if request.domains is None else request.domains.sd
        for nuisance, some in groups:
            beside = torch.from_numpy(design.only(nuisance).values) if nuisance else None
            genes, listed = self._null_fits(analysis, tuple(nuisance))
            about = _totals(analysis.prepared), beside, analysis.options.likelihood, space, sd
            truth = Truth(genes, *about, listed=_of(listed, analysis.prepared))
            yield Draw(truth, asked=tuple(some) if terms else None)
            if request.effect is None:
                continue
            for t in some:
                shift = request.effect * torch.from_numpy(design.values[:, terms[t].columns[0]])
                yield Draw(replace(truth, shift=shift), "power", float(request.effect), (t,))

    def _null_fits(
        self, analysis: UsageAnalysis, columns: tuple[int, ...]
    ) -> tuple[Sequence[FittedGene], GroupedSpec | None]:
        """Genes fitted with some of the covariates, and their model where it has a list of effects."""
        design = analysis.prepared.design
        if analysis.prepared.listed is None or design is None:
            return analysis.fit_with(columns, show=self.show), None
        spec = analysis.grouped_spec(with_design=False).with_design(design.only(columns) if columns else None)
        key = ("listed", columns, f"{len(columns)} covariate(s)")
        return analysis.listed_fits(spec, key, show=self.show), spec


def _of(spec: GroupedSpec | None, prepared: Prepared) -> tuple[GroupedSpec, list[Tensor]] | None:
    return None if spec is None else (spec, prepared.counts)


def _totals(prepared: Prepared) -> list[Tensor]:
    return [table.sum(-1) for table in prepared.counts]


def _test(twin: Testable, kind: str, method: str, options: Mapping[str, Any], n_jobs: int) -> dict[str, Any]:
    """Results of the public test, after the fit that it needs."""
    settings: dict[str, Any] = {"n_jobs": n_jobs, "batch_size": TEST_BATCH, "print_progress": False}
    analysis = twin.analysis
    if kind == "sv":
        if (
            method == "llr"
            and (analysis.fitted is None or analysis.fitted.null is None)
            and analysis.model_type != "glm"
        ):
            twin.fit(from_null=True, **settings)
        found = twin.test_spatial_variability(method=method, n_jobs=n_jobs, **QUIET, **options)
    else:
        with_design = method == "wald"
        fitted = analysis.fitted is not None and analysis.fitted.with_design == with_design
        if analysis.prepared.design is not None and not fitted:
            twin.fit(with_design_mtx=with_design, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableWarning)  # the check counts them
            found = twin.test_differential_usage(method=method, **QUIET, **options)
    if found is None:
        raise AssertionError("results were asked for")
    return found


def _domain_graph(analysis: UsageAnalysis, domains: Domains) -> sp.csr_matrix | None:
    prepared = analysis.prepared
    if domains.spatial_key is None:
        return graph_of(prepared.covariance)
    adata = prepared.data.adata
    coords = read_coordinates(spatial_key_of(domains.spatial_key), adata.obsm, adata.obs)
    return knn_graph(coords, k_neighbors=analysis.options.k_neighbors, graph="connected")


def _chunks(n_genes: int, counts: Sequence[Tensor], description: str, *, show: bool) -> Iterator[NDArray[np.intp]]:
    """Numbers of new genes, as many at a time as memory allows, whatever the number of processes."""
    size = max(1, int(CHUNK // max(8 * table.numel() for table in counts)))
    with tqdm(total=n_genes, desc=description, unit="gene", disable=not show) as bar:
        for start in range(0, n_genes, size):
            chunk = np.arange(start, min(start + size, n_genes))
            yield chunk
            bar.update(len(chunk))


def _rows(results: Mapping[str, Any], test: str, draw: Draw, about: Mapping[str, Any]) -> pd.DataFrame:
    """Results of a test as one row a gene and covariate."""
    names = results.get("covariate", [""])
    shape = len(about["gene"]), len(names)
    values = {name: np.asarray(results[name]).reshape(shape) for name in ("statistic", "pvalue", "reason")}
    values["reliable"] = np.asarray(results.get("reliable", np.isfinite(values["pvalue"]))).reshape(shape)
    parts = [
        pd.DataFrame({**about, **{name: value[:, t] for name, value in values.items()}}).assign(covariate=names[t])
        for t in (range(len(names)) if draw.asked is None else draw.asked)
    ]
    return pd.concat(parts).assign(test=test, rate=draw.rate, effect=draw.effect)
