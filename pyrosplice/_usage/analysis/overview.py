"""An analysis of usage at a glance: one table of space, usage and effects, its first rows, and all in an AnnData."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._results.annotations import Annotations, storable_table
from pyrosplice._results.layouts import GeneSymbols, top_rows, with_symbols
from pyrosplice._usage.analysis.effects import get_effects
from pyrosplice._usage.analysis.fits import Analyzed, UsageAnalysis
from pyrosplice._usage.analysis.tables import (
    TESTS,
    Summarized,
    get_fitted_ratios_anndata,
    get_formatted_test_results,
    get_training_summary,
    test_table,
)
from pyrosplice.errors import InvalidArgumentError, NoResultsError, check_known, check_option, check_switches
from pyrosplice.reasons import Reason


def results_table(self: Analyzed, *, gene_symbols: GeneSymbols = None) -> pd.DataFrame:
    """Combine fits, tests of space and usage, and effects in one table, a row a gene.

    Columns are there as far as the analysis has come: ``gene``, ``n_isoforms``, ``fit_ended``; of a GLMM ``sigma`` and
    ``theta`` (of several logits their means; of a joint fit θ means nothing, and is left out); of
    ``test_spatial_variability`` ``space_statistic``, ``space_pvalue``, ``space_pvalue_adj`` and ``space_reason``; of
    ``test_differential_usage``, for each covariate, ``usage_pvalue[covariate]``, ``usage_pvalue_adj[…]`` and
    ``usage_reason[…]``; of a fit with covariates, the isoform whose share each moves most, ``isoform[covariate]``, and
    by how many percentage points, ``usage_points[…]`` with ``usage_points_lower[…]`` and ``usage_points_upper[…]``.

    Parameters
    ----------
    gene_symbols
        Symbols by gene, a Series or mapping: a column ``symbol``. Display names are ``gene_names`` of ``setup_data``.

    Raises
    ------
    NotReadyError
        Before ``setup_data`` or ``fit``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # the first gene follows the covariate
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> model.test_differential_usage(method="wald", print_progress=False)
    >>> model.results_table()[["gene", "n_isoforms", "fit_ended"]]
         gene  n_isoforms  fit_ended
    0  gene_1           3  converged
    1  gene_2           3  converged
    """
    analysis = self.analysis
    genes, prepared = analysis.fit.genes, analysis.prepared
    table = pd.DataFrame({"gene": prepared.gene_names, "n_isoforms": prepared.data.n_isos})
    table["fit_ended"] = [gene.reason.value for gene in genes]
    if "sigma" in genes[0].values:
        table["sigma"] = [float(gene.values["sigma"].mean()) for gene in genes]
        if analysis.model_type == "glmm-full" and analysis.options.fitting_method.startswith("marginal"):
            table["theta"] = [float(torch.sigmoid(gene.values["theta_logit"]).mean()) for gene in genes]
    table = pd.concat([table, *_tested(analysis), *_effects(self)], axis=1)
    return with_symbols(table, gene_symbols)


def _tested(analysis: UsageAnalysis) -> list[pd.DataFrame]:
    """Results of the last tests, a row a gene."""
    out = []
    if analysis.results.get("sv"):
        frame = test_table(analysis.results["sv"]).to_frame()
        out.append(frame[["statistic", "pvalue", "pvalue_adj", "reason"]].add_prefix("space_"))
    if analysis.results.get("du"):
        frame, of = test_table(analysis.results["du"]).to_frame(), len(analysis.results["du"]["covariate"])
        for t, name in enumerate(analysis.results["du"]["covariate"]):
            own = frame.iloc[t::of].reset_index(drop=True)[["pvalue", "pvalue_adj", "reason"]]
            out.append(own.set_axis([f"usage_{column}[{name}]" for column in own], axis=1))
    return out


def _effects(self: Analyzed) -> list[pd.DataFrame]:
    """The largest effect of each covariate on a share, a row a gene."""
    analysis = self.analysis
    if not analysis.fit.with_design or analysis.options.model is not None or not _of_shares(analysis):
        return []
    effects, out = get_effects(self), []
    names = pd.Index(analysis.prepared.gene_names)
    kept = ["isoform", "usage_points", "usage_points_lower", "usage_points_upper"]
    for covariate, own in effects.groupby("covariate", sort=False):
        size = own["usage_points"].abs().fillna(-1.0)
        largest = own.loc[size.groupby(own["gene"]).idxmax()].set_index("gene").loc[names, kept].reset_index(drop=True)
        largest["isoform"] = largest["isoform"].where(largest["usage_points"].notna(), "")
        out.append(largest.set_axis([f"{column}[{covariate}]" for column in kept], axis=1))
    return out


def _of_shares(analysis: UsageAnalysis) -> bool:
    """Whether the likelihood is of shares of isoforms, which effects are of."""
    return analysis.options.likelihood.n_categories[1] != 1


def top_usage(  # noqa: PLR0913 (which rows, by keyword)
    self: Summarized,
    n: int | None = 10,
    *,
    test: Literal["sv", "du"] | None = None,
    covariate: str | None = None,
    sort_by: str = "pvalue",
    alpha: float | None = None,
    gene_symbols: GeneSymbols = None,
) -> pd.DataFrame:
    """Tabulate the first genes of the last test: :meth:`get_formatted_test_results`, sorted and cut, with summaries.

    Parameters
    ----------
    n
        How many rows; None for all.
    test
        ``"sv"`` or ``"du"``; may be left out where one of them has been made.
    covariate
        One of the covariates that were tested; all by default.
    sort_by
        A column of numbers; ``"statistic"`` by size downwards, others upwards, missing values last.
    alpha
        Keep rows with ``pvalue_adj`` of at most this.
    gene_symbols
        Symbols by gene, a Series or mapping.

    Raises
    ------
    NotReadyError
        No test yet.
    InvalidArgumentError
        Both tests have been made and ``test`` says neither; another column or covariate.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # the first gene follows the covariate
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> model.test_differential_usage(method="wald", print_progress=False)
    >>> model.top_table(1)[["gene", "covariate"]]
         gene covariate
    0  gene_1       iid
    """
    kinds: tuple[Literal["sv", "du"], ...] = ("sv", "du")
    made = [name for name in kinds if self.analysis.results.get(name)]
    if test is None and len(made) > 1:
        raise InvalidArgumentError(f"test: expected one of {made}, as both have been made.")
    if test is None and not made:
        raise NoResultsError(f"test: there are no results yet; call one of {list(TESTS.values())} first.")
    chosen = made[0] if test is None else test
    check_option("test", chosen, TESTS)
    table = get_formatted_test_results(self, chosen, with_gene_summary=True)
    if covariate is not None:
        if chosen == "sv":
            raise InvalidArgumentError("covariate: tests of space have none; leave it out, or give test='du'.")
        check_known("covariate", covariate, list(dict.fromkeys(table["covariate"])), "one of")
        table = table[table["covariate"] == covariate]
    return top_rows(with_symbols(table, gene_symbols), n=n, sort_by=sort_by, alpha=alpha)


def coefficient_frame(self: Analyzed, *, gene_symbols: GeneSymbols = None) -> pd.DataFrame:
    """Tabulate the fitted coefficients, a row a gene, coefficient and isoform.

    ``gene``, ``coefficient`` (``"intercept"`` or a covariate), ``isoform``, ``against`` (the last isoform, which log
    odds are against), ``effect``, ``reason`` and ``fit_ended``. Standard errors, and effects without a
    reference: :meth:`get_effects`.

    Parameters
    ----------
    gene_symbols
        Symbols by gene, a Series or mapping.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # the first gene follows the covariate
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> table = model.to_frame()
    >>> table.loc[table["gene"] == "gene_1", ["coefficient", "isoform", "against"]]
      coefficient       isoform       against
    0   intercept  gene_1_iso_1  gene_1_iso_3
    1   intercept  gene_1_iso_2  gene_1_iso_3
    2         iid  gene_1_iso_1  gene_1_iso_3
    3         iid  gene_1_iso_2  gene_1_iso_3
    """
    analysis = self.analysis
    analysis.shipped_only("to_frame")
    prepared, parts = analysis.prepared, []
    names = ["intercept", *(prepared.covariate_names if analysis.fit.with_design else ())]
    for g, gene in enumerate(analysis.fit.genes):
        isoforms, q = prepared.isoform_names(g), gene.n_logits
        labels = isoforms[:-1] if q == len(isoforms) - 1 else [isoforms[k] if q > 1 else "" for k in range(q)]
        value = gene.values["bias_eta"][None]
        value = torch.cat([value, gene.values["beta"]]) if analysis.fit.with_design else value
        parts.append(
            TestTable(
                labels={
                    "gene": np.repeat(prepared.gene_names[g], value.numel()),
                    "coefficient": np.repeat(names, q),
                    "isoform": np.tile(labels, len(names)),
                    "against": np.repeat(isoforms[-1], value.numel()),
                },
                effect=value.numpy(),
                why=np.repeat(unless_ended([gene.reason.value], Reason.NOT_IDENTIFIED.value), value.numel()),
                more={"fit_ended": np.repeat(gene.reason.value, value.numel())},
            ).to_frame()
        )
    return with_symbols(pd.concat(parts, ignore_index=True), gene_symbols)


def write_usage(self: Summarized, adata: AnnData, key_added: str = "usage", *, layers: bool = True) -> pd.DataFrame:
    """Write the analysis to an AnnData, spots and isoforms paired by name.

    ``layers[<key>_fitted]``: fitted usage of every isoform at every spot, and ``layers[<key>_field]``: the spots'
    random effect on the log odds of each isoform against the mean of all, both NaN for isoforms and spots that were
    filtered out. ``var[<key>_gene]`` and, of the isoform's gene, ``[<key>_fit_ended]``, and of the tests that were
    made ``[<key>_space_pvalue]``, ``[<key>_space_pvalue_adj]``, ``[<key>_space_reason]``. ``uns[key]``: ``genes``
    (:meth:`results_table`), ``training``, ``space`` and ``differential_usage`` (tables of tests) and ``effects``. In
    names of columns "/" stands as "%2F". Survives h5ad and zarr files.

    Parameters
    ----------
    adata
        Has all spots and isoforms that were analysed, in any order: what was given to ``setup_data``, for one.
    key_added
        Key of ``uns``, and prefix of the others.
    layers
        Whether to write layers, spots × isoforms numbers each.

    Returns
    -------
    DataFrame
        What was written: ``part``, ``key``, ``missing``.

    Raises
    ------
    InvalidArgumentError
        A view; spots or isoforms that are not in ``adata``; a key that is not of an earlier analysis.
    NotReadyError
        Before ``setup_data`` or ``fit``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # the first gene follows the covariate
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> model.test_differential_usage(method="wald", print_progress=False)
    >>> _ = model.write(adata)
    >>> adata.layers["usage_fitted"].shape, adata.uns["usage"]["genes"].shape[0]
    ((100, 6), 2)
    """
    check_switches(layers=layers)
    analysis = self.analysis
    analysis.shipped_only("write")
    prepared, table = analysis.prepared, results_table(self)
    fitted = get_fitted_ratios_anndata(self) if layers else prepared.data.adata
    matrices = {"fitted": fitted.layers["fitted_ratios"]} if layers else {}
    if layers and "nu" in analysis.fit.genes[0].values and _of_shares(analysis):
        matrices["field"] = _fields(analysis)
    gene = np.full(fitted.n_vars, -1)
    for g, columns in enumerate(prepared.data.columns):
        gene[columns] = g
    of_genes = {"gene": "gene", "fit_ended": "fit_ended"}
    of_genes |= {name: name for name in ("space_pvalue", "space_pvalue_adj", "space_reason") if name in table}
    tables = {"genes": table, "training": get_training_summary(self)}
    for name, test in (("space", "sv"), ("differential_usage", "du")):
        if analysis.results.get(test):
            tables[name] = test_table(analysis.results[test]).to_frame()
    if analysis.fit.with_design and _of_shares(analysis):
        tables["effects"] = get_effects(self)
    options = ("model_type", "fitting_method", "isoform_effect", "share_variance", "var_fix_sigma")
    return Annotations(
        kind="SplisosmGLMM",
        cells=fitted.obs_names,
        genes=fitted.var_names,
        var={name: table[column].to_numpy()[gene] for name, column in of_genes.items()},
        layers=matrices,
        uns={name: storable_table(one) for name, one in tables.items()},
        settings={name: getattr(analysis.options, name) for name in options}
        | {"likelihood": analysis.options.likelihood.name, "covariates": list(prepared.covariate_names)},
    ).write(adata, key_added)


def _fields(analysis: UsageAnalysis) -> np.ndarray:
    """Random effect of the spots on the log odds of every isoform against the mean of its gene's ``(N, ΣK)``."""
    data = analysis.prepared.data
    out = np.full(data.adata.shape, np.nan)
    for columns, gene in zip(data.columns, analysis.fit.genes, strict=True):
        logits = gene.values["nu"]
        whole = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)
        out[:, columns] = (whole - whole.mean(1, keepdim=True)).numpy()
    return out
