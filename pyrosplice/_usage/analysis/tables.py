"""Data, fits and results of an analysis as tables: one row a gene, an isoform, or a gene and covariate."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrosplice._hypothesis.test_table import TestTable
from pyrosplice._usage.analysis.fits import Analyzed
from pyrosplice._usage.analysis.group_effects import standard_deviations
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice._usage.reading.summary import feature_summary
from pyrosplice.errors import NoResultsError, check_option

TRAINING = ("converged", "best_loss", "best_epoch", "fitting_time_s", "n_iter")
TESTS = {"sv": "test_spatial_variability", "du": "test_differential_usage"}


class Preparing(Protocol):
    """An analysis that has no data yet, or has."""

    _prepared: Prepared | None


def n_isos_per_gene(self: Preparing) -> list[int]:
    """Number of isoforms of each gene after filtering."""
    return [] if self._prepared is None else self._prepared.data.n_isos


def extract_feature_summary(
    self: Analyzed, level: Literal["gene", "isoform"] = "gene", print_progress: bool = True
) -> pd.DataFrame:
    """Tabulate summary statistics of the filtered counts, one row a gene or an isoform; computed once.

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

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.extract_feature_summary("gene", print_progress=False)[["n_isos", "pct_bin_on"]]
            n_isos  pct_bin_on
    gene
    gene_1       3    0.984375
    gene_2       3    0.984375
    gene_3       3    0.984375
    """
    prepared = self.analysis.prepared
    check_option("level", level, ("gene", "isoform"))
    if level not in prepared.summaries:
        prepared.summaries[level] = feature_summary(prepared.data, level=level, print_progress=print_progress)
    return prepared.summaries[level]


def get_training_summary(self: Analyzed) -> pd.DataFrame:
    """Tabulate how each gene's fit went, indexed by gene name.

    ``model_type``, ``converged``, ``best_loss`` (nats), ``best_epoch``, ``fitting_time_s``, and also ``n_iter`` and
    ``reason``. With random effects of groups the standard deviation of each too, ``"1 | section: sd(1)"``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.fit(print_progress=False)
    >>> model.get_training_summary()[["model_type", "converged", "reason"]]
           model_type  converged     reason
    gene
    gene_1        glm       True  converged
    gene_2        glm       True  converged
    gene_3        glm       True  converged
    """
    analysis = self.analysis
    kind = analysis.model_type
    rows = [
        {"model_type": kind, **{name: getattr(gene, name) for name in TRAINING}, "reason": gene.reason.value}
        for gene in analysis.fit.genes
    ]
    table = pd.DataFrame(rows, index=pd.Index(analysis.prepared.gene_names, name="gene"))
    return table.join(standard_deviations(analysis)) if analysis.prepared.listed is not None else table


def get_fitted_ratios_anndata(self: Analyzed, layer_name: str = "fitted_ratios") -> AnnData:
    """Copy ``filtered_adata`` with the fitted usage of every isoform at every spot as a dense layer.

    Columns are those of ``filtered_adata.var``; the isoforms of a gene sum to one.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.fit(print_progress=False)
    >>> usage = model.get_fitted_ratios_anndata().to_df("fitted_ratios")
    >>> usage.shape, usage.loc[:, model.filtered_adata.var["gene_symbol"] == "gene_1"].sum(1).round(6).unique()
    ((64, 9), array([1.]))
    """
    analysis = self.analysis
    analysis.shipped_only("get_fitted_ratios_anndata")
    fit, prepared = analysis.fit, analysis.prepared
    design = prepared.design_tensor if fit.with_design else None
    ratios = np.empty(prepared.data.adata.shape)
    for columns, gene in zip(prepared.data.columns, fit.genes, strict=True):
        likelihood = analysis.options.likelihood.bind(gene.values)
        eta = gene.linear_predictor(prepared.n_spots, design) + gene.group_predictor(prepared.groups)
        ratios[:, columns] = likelihood.expected(eta).numpy()
    adata = prepared.data.adata.copy()
    adata.layers[layer_name] = ratios
    return adata


class Summarized(Analyzed, Protocol):
    """An analysis with the summary that tables of results are merged with."""

    def extract_feature_summary(self, level: Literal["gene", "isoform"], print_progress: bool) -> pd.DataFrame:
        """Tabulate summary statistics, one row a gene."""


def get_formatted_test_results(
    self: Summarized, test_type: Literal["sv", "du"], with_gene_summary: bool = False
) -> pd.DataFrame:
    """Tabulate the results of the last test.

    Parameters
    ----------
    test_type
        ``"sv"``: one row a gene, ``gene``, ``statistic``, ``pvalue``, ``pvalue_adj`` and ``reason``: "" or why there
        is no p-value, a word of :class:`~pyrosplice.reasons.Reason`. ``"du"``: one row a gene and covariate
        (covariates within genes), with ``covariate``; of the averaged law ``posterior_df`` and ``reliable`` too; beside
        random effects of groups ``df``, ``unit`` and ``n_units``.
    with_gene_summary
        Add the columns of ``extract_feature_summary("gene")``.

    Raises
    ------
    InvalidArgumentError
        Another ``test_type``, or no results yet.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM()
    >>> model.setup_data(simulate_isoforms(n_spots=100, n_genes=2, theta=[0.0, 1.0], sigma=2.0, seed=0))
    >>> model.fit(print_progress=False)
    >>> model.test_spatial_variability(method="score", print_progress=False)
    >>> model.get_formatted_test_results("sv").set_index("gene")["pvalue_adj"] < 0.05
    gene
    gene_1    False
    gene_2     True
    Name: pvalue_adj, dtype: bool
    >>> model.get_formatted_test_results("du")
    Traceback (most recent call last):
        ...
    pyrosplice.errors.NoResultsError: test_type='du': there are no results yet; call test_differential_usage() first.
    """
    check_option("test_type", test_type, TESTS)
    results = self.analysis.results.get(test_type)
    if not results:
        raise NoResultsError(f"test_type={test_type!r}: there are no results yet; call {TESTS[test_type]}() first.")
    table = test_table(results).to_frame()
    if not with_gene_summary:
        return table
    summary = self.extract_feature_summary("gene", print_progress=False)
    return table.merge(summary, left_on="gene", right_index=True, how="left")


def test_table(results: dict[str, Any]) -> TestTable:
    """What a test of usage found: a row a gene, or a gene and covariate (covariates within genes)."""
    genes, covariates = results["gene"], results.get("covariate")
    labels = {"gene": genes}
    if covariates is not None:
        labels = {"gene": np.repeat(genes, len(covariates)), "covariate": np.tile(covariates, len(genes))}
    found = {name: np.ravel(results[name]) for name in ("statistic", "pvalue", "pvalue_adj")}
    more: dict[str, Any] = {n: np.ravel(results[n]) for n in ("posterior_df", "reliable") if n in results}
    if "n_units" in results:
        more |= {name: np.ravel(results[name]) for name in ("df", "unit", "n_units")}
    return TestTable(labels=labels, **found, why=np.ravel(np.asarray(results["reason"], dtype=object)), more=more)
