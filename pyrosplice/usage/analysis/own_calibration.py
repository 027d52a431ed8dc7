"""The part of :class:`~pyrosplice.SplisosmGLMM` that asks whether its tests hold on the data at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrosplice.errors import UnreliableWarning
from pyrosplice.modes import works_in_any_mode
from pyrosplice.spatial.domains import Domains
from pyrosplice.spatial.graph import knn_graph
from pyrosplice.tables.containers import as_dense
from pyrosplice.tables.names import by_name
from pyrosplice.usage.analysis.calibration_check import CalibrationCheck
from pyrosplice.usage.analysis.calibration_request import Asked, Request, read_request
from pyrosplice.usage.analysis.data_and_fits import TEST_BATCH
from pyrosplice.usage.analysis.null_genes import Space, Truth, graph_of, observed_isoforms
from pyrosplice.usage.analysis.posterior_draws import UsagePosterior
from pyrosplice.usage.gene_tests.terms import same_nuisance, terms_of
from pyrosplice.usage.records import check_jobs

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


@works_in_any_mode
class UsageCalibration(UsagePosterior):
    """Checks of calibration on the data at hand; see :class:`~pyrosplice.SplisosmGLMM`."""

    def check_calibration(
        self,
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
        r"""How often do the tests reject true null hypotheses on tissue, depths and genes like mine?

        Draws genes of which is known what is true, on the spots, graph, covariates and priors of this model, and tests
        them as :meth:`test_spatial_variability` and :meth:`test_differential_usage` do: by these very methods, on fits
        of a model like this one, which itself stays as it is. Each new gene is like one of the fitted genes: it has its
        number of isoforms and, spot for spot, its number of molecules, so that places and depth are those of the data;
        its usage is drawn from that gene's fit, and its counts from the likelihood. Each own gene is as often taken
        as the others. Isoforms of which no molecule is drawn are left out, as ``setup_data`` does.

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
            Of the tests: ``"score"``, ``"llr"``; ``"score"``, ``"wald"``, ``"lrt"``; or several, on the same genes.
        effect
            Measure power at this effect too, on genes that are otherwise the same. ``"sv"``: standard deviation
            (logits) of the spatial effect. ``"du"``: log odds of the first isoform against the last for a unit of the
            covariate, one covariate at a time (of a factor tested jointly: its second level against the others).
        confidence
            Of the exact intervals and of the figure's band.
        seed
            Of everything random, beside ``random_seed`` among the options. The same seed gives the same numbers,
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
        fit = self._ready_fit()
        asked = Asked(test, n_genes, truth, method, effect, confidence, seed, print_progress, options)
        request = read_request(asked, self._ready(), self.model_type)
        n_jobs = fit.n_jobs if n_jobs is None else check_jobs(n_jobs, self.device)
        self.likelihood.require("sample")
        self._try_options(request)
        own = copy(self)  # which keeps the fits that the truth is taken from
        own._test_fits, own._fitted = dict(self._test_fits), replace(fit, n_jobs=n_jobs)
        parts: list[pd.DataFrame] = []
        lost: dict[int, str] = {}
        for kind in request.methods:
            for draw in own._calibration_draws(kind, request, show=print_progress):
                lost |= draw.truth.left_out
                parts += own._calibration_pvalues(kind, draw, request, n_jobs, show=print_progress)
        names = self._ready().gene_names
        return CalibrationCheck(
            pvalues=pd.concat(parts, ignore_index=True)[COLUMNS],
            settings={"truth": request.truth, "n_genes": request.n_genes, "seed": request.seed, **request.options},
            left_out={names[gene]: lost[gene] for gene in sorted(lost)},
            confidence=request.confidence,
        )

    def _calibration_pvalues(
        self, kind: str, draw: Draw, request: Request, n_jobs: int, *, show: bool
    ) -> Iterator[pd.DataFrame]:
        """Draw genes and test them, as many at a time as memory allows."""
        prepared = self._ready()
        sources = draw.truth.sources(request.n_genes, request.seed)
        for chunk in _chunks(len(sources), prepared.counts, f"check {kind}", show=show):
            counts = draw.truth.counts(sources[chunk], (request.seed, int(chunk[0])))
            twin = self._with_counts([observed_isoforms(table, self.likelihood) for table in counts])
            about = {"gene": chunk, "source": [prepared.gene_names[gene] for gene in sources[chunk]]}
            about["n_isoforms"] = twin.n_isos_per_gene
            for name in request.methods[kind]:
                results = twin._calibration_test(kind, name, request.options, n_jobs)
                yield _rows(results, f"{kind.upper()} {name}", draw, about)

    def _try_options(self, request: Request) -> None:
        """Run what is asked for on the first gene, so that what cannot be asked is refused before any work."""
        first = self._with_counts([observed_isoforms(self._ready().counts[0], self.likelihood)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for kind, methods in request.methods.items():
                for name in methods:
                    first._calibration_test(kind, name, request.options, 1)

    def _with_counts(self, counts: Sequence[Tensor]) -> Self:
        """A model like this one of other genes, not fitted."""
        twin = copy(self)
        twin.adata, twin._prepared = None, self._ready().of_counts(counts)
        twin._forget()
        if self.model_type != "glm" and (not self.fitting_method.startswith("marginal") or self.var_fix_sigma):
            # tests rest on fits of their own then, and those of ``fit`` need no time
            twin.fitting_configs = {**(self.fitting_configs or {}), "max_epochs": 0}
        return twin

    def _calibration_test(self, kind: str, method: str, options: Mapping[str, Any], n_jobs: int) -> dict[str, Any]:
        """Results of the public test, after the fit that it needs."""
        settings: dict[str, Any] = {"n_jobs": n_jobs, "batch_size": TEST_BATCH, "print_progress": False}
        if kind == "sv":
            if method == "llr" and (self._fitted is None or self._fitted.null is None) and self.model_type != "glm":
                self.fit(from_null=True, **settings)
            found = self.test_spatial_variability(method=method, n_jobs=n_jobs, **QUIET, **options)  # type: ignore[arg-type]
        else:
            with_design = method == "wald"
            if self._ready().design is not None and (self._fitted is None or self._fitted.with_design != with_design):
                self.fit(with_design_mtx=with_design, **settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnreliableWarning)  # the check counts them
                found = self.test_differential_usage(method=method, **QUIET, **options)  # type: ignore[arg-type]
        if found is None:
            raise AssertionError("results were asked for")
        return found

    def _calibration_draws(self, kind: str, request: Request, *, show: bool) -> list[Draw]:
        """What to draw: the null hypothesis, and at an effect where there is one."""
        prepared, domains = self._ready(), request.domains
        graph = None if domains is None else self._domain_graph(domains)
        spatial = self.model_type == "glmm-full"
        space = Space(prepared.solver(None, "cpu") if spatial else None, graph, domains)
        totals = [table.sum(-1) for table in prepared.counts]
        if kind == "sv":
            adjust = request.truth == "fitted" and prepared.design is not None
            adjust = adjust and request.options.get("adjust_for_design", True)
            null = self._test_fit("glmm-null", with_design=adjust, print_progress=show)
            truth = Truth(null, totals, prepared.design_tensor if adjust else None, self.likelihood, space)
            first = Draw(truth)
            if domains is not None:
                full = self._test_fit("glmm-full", with_design=False, print_progress=show)
                first = Draw(replace(truth, genes=full, spatial_sd=domains.sd), "power", np.nan)
            if request.effect is None:
                return [first]
            return [first, Draw(replace(truth, spatial_sd=float(request.effect)), "power", float(request.effect))]
        return list(self._covariate_draws(request, totals, space, show=show))

    def _covariate_draws(
        self, request: Request, totals: Sequence[Tensor], space: Space, *, show: bool
    ) -> Iterator[Draw]:
        design, domains = self._ready().design, request.domains
        if design is None:
            raise AssertionError("the options were tried")
        terms = (
            []
            if request.options.get("contrasts") is not None
            else terms_of(design, request.options.get("by", "covariate"))
        )
        groups = [(terms[some[0]].nuisance, some) for some in same_nuisance(terms)]
        groups = groups if request.truth == "fitted" else [((), list(range(len(terms))))]
        sd = None if domains is None else domains.sd
        for nuisance, some in groups:
            beside = torch.from_numpy(design.only(nuisance).values) if nuisance else None
            genes = self._fit_with(tuple(nuisance), show=show)
            truth = Truth(genes, totals, beside, self.likelihood, space, sd)
            yield Draw(truth, asked=tuple(some) if terms else None)
            if request.effect is None:
                continue
            for t in some:
                shift = request.effect * torch.from_numpy(design.values[:, terms[t].columns[0]])
                yield Draw(replace(truth, shift=shift), "power", float(request.effect), (t,))

    def _domain_graph(self, domains: Domains) -> Any:
        prepared = self._ready()
        if domains.spatial_key is None:
            return graph_of(prepared.covariance)
        adata = prepared.data.adata
        name = f"adata.obsm[{domains.spatial_key!r}]"
        coords = as_dense(by_name(adata.obsm[domains.spatial_key], adata.obs_names, name, what="spot"), name)
        return knn_graph(coords, k_neighbors=self.k_neighbors, graph="connected")


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
