"""The job of expression: which genes answer to a condition, and, with coordinates, which vary in space."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyrosplice import ExpressionGLM, plotting, spatially_variable_genes
from pyrosplice._jobs.input_file import (
    check_column,
    check_coordinates,
    check_names_once,
    check_used,
    columns_used,
    layer_of,
    read_cell_file,
)
from pyrosplice._jobs.job_progress import Steps
from pyrosplice._jobs.results_folder import ANNOTATED, Conclusion, ResultsFolder, file_names, fingerprint
from pyrosplice._report import ReportFigure, ReportSection, ReportTable, pictured, themed_png
from pyrosplice._tables.coordinates import SpatialKey
from pyrosplice._usage_report import ALPHA
from pyrosplice.api import utils
from pyrosplice.errors import InvalidArgumentError, listed

TOTAL, NONE = "total", "none"  # what --size-factors takes beside a column

SHOWN = ("gene", "symbol", "log2fc", "lower", "upper", "statistic", "pvalue", "pvalue_adj", "reason")
SPACE_SHOWN = ("gene", "symbol", "mean", "coverage", "statistic", "pvalue", "pvalue_adj", "reason")


@dataclass(frozen=True, kw_only=True)
class ExpressionOptions:
    """What to read of the data, the model, and what to test.

    Attributes
    ----------
    data
        The file.
    formula, scale_formula, as_numeric, reference
        Formulas of the mean and of the dispersion; columns that are numbers; reference level by column.
    tests, method, donors, lfc_threshold
        Factors to test, by which method, with which units, against which log2 fold change.
    noise_model, size_factors, layer, missing, device
        As for ``fit.model``; size factors are a column, ``total`` or ``none``.
    gene_key
        Column of var with symbols, for tables and figures.
    spatial_key, section_key
        Coordinates, None for no test in space; section of each spot.
    """

    data: Path
    formula: str
    tests: tuple[str, ...]
    scale_formula: str = "~ 1"
    as_numeric: tuple[str, ...] = ()
    reference: dict[str, str] = field(default_factory=dict)
    method: str = "wald"
    donors: str | None = None
    lfc_threshold: float = 0.0
    noise_model: str = "nb"
    size_factors: str = TOTAL
    layer: str | None = None
    gene_key: str | None = None
    spatial_key: SpatialKey | None = None
    section_key: str | None = None
    missing: Literal["raise", "drop"] = "raise"
    device: str = "cpu"


@dataclass(frozen=True)
class Tables:
    """The fitted model and its tables: ``tests`` by factor; None where nothing of the kind was asked for."""

    model: ExpressionGLM
    layer: str | None
    genes: pd.DataFrame
    coefficients: pd.DataFrame
    tests: dict[str, pd.DataFrame]
    variances: pd.DataFrame | None = None
    space: pd.DataFrame | None = None


def run_expression(options: ExpressionOptions, folder: ResultsFolder, steps: Steps) -> Conclusion:
    """Read, fit, test, draw and write."""
    with steps.step("reading"):
        adata = read_cell_file(options.data)
        layer = layer_of(adata, options.layer)
        _check(adata, options)
        if folder.options.write_h5ad:
            check_names_once(adata.obs_names, "cells")
        for column, level in options.reference.items():
            adata.obs[column] = with_reference(adata.obs[column], column, level)
    with steps.step("fitting"):
        model = fit_expression(adata, layer, options)
    with steps.step("testing"):
        tables = _tabulate(model, adata, layer, options)
    with steps.step("drawing"):
        pictures = _draw(tables) if folder.options.figures else {}
    with steps.step("writing"):
        names = _write(tables, adata, folder)
        folder.write_pictures(pictures)
    sections = _sections(tables, options, pictures, names)
    settings = {
        "data": fingerprint(options.data),
        "counts": "X" if layer is None else f"layers[{layer!r}]",
        "coefficients": list(model.coefficient_names),
        "n_cells": adata.n_obs,
        "n_genes": adata.n_vars,
    }
    return Conclusion(
        title=f"Expression: {options.data.name}", lead=_lead(tables), sections=sections, settings=settings
    )


def _check(adata: AnnData, options: ExpressionOptions) -> None:
    """Check that the data have what the options name, before anything is fitted."""
    check_names_once(adata.var_names, "genes")
    formulas = {"--formula": options.formula, "--scale-formula": options.scale_formula}
    used = [name for option, formula in formulas.items() for name in columns_used(adata.obs, option, formula)]
    check_used(adata.obs, "--as-numeric", options.as_numeric, used, "the formulas")
    labels = [name for name in used if name not in options.as_numeric]
    check_used(adata.obs, "--reference", options.reference, labels, "labels in the formulas")
    named: dict[str, str | None] = {"--donors": options.donors, "--section-key": options.section_key}
    if options.size_factors not in (TOTAL, NONE):
        named["--size-factors"] = options.size_factors
    for option, name in named.items():
        if name is not None:
            check_column(adata.obs, option, name)
    if options.gene_key is not None:
        check_column(adata.var, "--gene-key", options.gene_key, "var")
    if options.spatial_key is not None:
        check_coordinates(adata, options.spatial_key)
    elif options.section_key is not None:
        raise InvalidArgumentError("--section-key: sections are of coordinates; give --spatial-key too.")


def with_reference(labels: pd.Series, column: str, level: str) -> pd.Series:
    """Put a level first among a column's categories: coefficients of the others are against it."""
    categories = labels.astype("category")
    names = {str(category): category for category in categories.cat.categories}
    if level not in names:
        raise InvalidArgumentError(
            f"--reference: expected a level of {column!r}, {listed(names, near=level)}, found {level!r}."
        )
    others = [category for category in categories.cat.categories if category != names[level]]
    return categories.cat.reorder_categories([names[level], *others])


def size_factors_of(adata: AnnData, layer: str | None, given: str) -> NDArray[np.float64] | str | None:
    """Size factors as ``fit.model`` takes them: total counts over their mean, None, or a column."""
    if given == NONE:
        return None
    return utils.normed_sum(adata, layer=layer) if given == TOTAL else given


def fit_expression(adata: AnnData, layer: str | None, options: ExpressionOptions) -> ExpressionGLM:
    """Fit every gene."""
    model = ExpressionGLM(
        options.formula, options.scale_formula, as_numeric=options.as_numeric, noise_model=options.noise_model
    )
    return model.fit(
        adata,
        layer=layer,
        size_factors=size_factors_of(adata, layer, options.size_factors),
        missing=options.missing,
        device=options.device,
    )


def _tabulate(model: ExpressionGLM, adata: AnnData, layer: str | None, options: ExpressionOptions) -> Tables:
    symbols = None if options.gene_key is None else adata.var[options.gene_key].astype(str)
    tests = {}
    for factor in options.tests:
        test = model.test(
            factor=factor, method=options.method, donors=options.donors, lfc_threshold=options.lfc_threshold
        )
        tests[factor] = _with_symbols(test.to_frame(), symbols)
    mixed = model.estimator is not None and model.estimator.input_data.effects is not None
    return Tables(
        model=model,
        layer=layer,
        genes=_with_symbols(_genes(model), symbols),
        coefficients=_with_symbols(model.summary(), symbols),
        tests=tests,
        variances=model.variance_components() if mixed else None,
        space=None if options.spatial_key is None else _with_symbols(_in_space(model, adata, layer, options), symbols),
    )


def _genes(model: ExpressionGLM) -> pd.DataFrame:
    """A row a gene: mean count, and how its fit ended."""
    ended = model.summary().drop_duplicates("gene")[["gene", "fit_ended"]].reset_index(drop=True)
    if model.estimator is not None:
        ended.insert(1, "mean", model.estimator.gene_means)
    return ended


def _in_space(model: ExpressionGLM, adata: AnnData, layer: str | None, options: ExpressionOptions) -> pd.DataFrame:
    """Test the cells that were fitted, with their size factors as they were."""
    sizes = size_factors_of(adata, layer, options.size_factors)
    used = None if model.estimator is None else model.estimator.input_data.cells.used
    if used is not None:
        adata = adata[used].copy()
        sizes = sizes if sizes is None or isinstance(sizes, str) else sizes[used]
    table = spatially_variable_genes(
        adata,
        layer=layer,
        formula=options.formula,
        as_numeric=options.as_numeric,
        size_factors=sizes,
        spatial_key=options.spatial_key or "spatial",
        section_key=options.section_key,
        likelihood=options.noise_model,
    )
    return table.rename_axis("gene").reset_index()


def _with_symbols(table: pd.DataFrame, symbols: pd.Series | None) -> pd.DataFrame:
    """A column of symbols after that of genes."""
    if symbols is None or "gene" not in table:
        return table
    table = table.copy()
    table.insert(table.columns.get_loc("gene") + 1, "symbol", table["gene"].map(symbols))
    return table


def _draw(tables: Tables) -> dict[str, tuple[bytes, bytes]]:
    """Draw for each factor a volcano and p-values against uniform ones, and those of space."""
    figures = {}
    for factor, table in tables.tests.items():
        label = "symbol" if "symbol" in table else "gene"
        own = [name for name in tables.model.coefficient_names if name.startswith(f"{factor}[")]
        of = own[0] if len(own) == 1 else factor  # the level, and so against which, where there is one
        figures[f"volcano_{factor}"] = partial(
            plotting.volcano, table, effect="log2fc", label=label, effect_name=f"log2 fold change, {of}"
        )
        figures[f"qq_{factor}"] = partial(plotting.qq, table)
    if tables.space is not None:
        figures["spatial_variability_qq"] = partial(plotting.qq, tables.space)
    return {name: themed_png(draw) for name, draw in figures.items()}


def _write(tables: Tables, adata: AnnData, folder: ResultsFolder) -> dict[str, str]:
    """Write every table and the model; names of the tables' files, by what they are of."""
    names = {
        "genes": folder.write_table("genes", tables.genes, "a row a gene: mean count, how its fit ended"),
        "coefficients": folder.write_table(
            "coefficients", tables.coefficients, "a row a gene and coefficient, natural logs"
        ),
    }
    for factor, file in file_names(tables.tests).items():
        names[f"test of {factor}"] = folder.write_table(
            f"test_{file}", tables.tests[factor], f"test of {factor}, a row a gene"
        )
    if tables.variances is not None:
        said = "standard deviations of random effects, a row a gene and effect"
        names["variances"] = folder.write_table("variance_components", tables.variances, said)
    if tables.space is not None:
        names["space"] = folder.write_table("spatial_variability", tables.space, "score test in space, a row a gene")
    tables.model.save(folder.path("model.pyrosplice", "the fitted model; ExpressionGLM.load reads it"))
    if folder.options.write_h5ad:
        tables.model.write(adata)
        folder.write_anndata(adata, ANNOTATED, "the data with the fit in it, as ExpressionGLM.write does")
    return names


def _lead(tables: Tables) -> str:
    ended = tables.genes["fit_ended"].eq("converged").sum()
    lines = [f"{len(tables.genes)} genes, {int(ended)} converged."]
    for factor, table in tables.tests.items():
        lines.append(f"Test of {factor}: {_found(table)} genes at an adjusted p-value of at most {ALPHA:g}.")
    if tables.space is not None:
        lines.append(f"Spatial variability (score test): {_found(tables.space)} genes.")
    return "\n".join(lines)


def _found(table: pd.DataFrame) -> int:
    return int((table["pvalue_adj"] <= ALPHA).sum())


def _sections(
    tables: Tables, options: ExpressionOptions, pictures: dict[str, tuple[bytes, bytes]], names: dict[str, str]
) -> list[ReportSection]:
    sections = [_fit_section(tables, options, names)]
    for factor, table in tables.tests.items():
        parts: list[ReportFigure | ReportTable] = [
            *pictured(pictures, f"volcano_{factor}", f"Volcano plot for {factor}.", _of_volcano(factor, tables.model)),
            *pictured(pictures, f"qq_{factor}", f"Quantile-quantile plot of the p-values for {factor}.", OF_QQ),
            _top(table, SHOWN, f"Test of {factor}, smallest p-values first", names[f"test of {factor}"]),
        ]
        against = f", against |log2fc| of at most {options.lfc_threshold:g}" if options.lfc_threshold else ""
        units = sorted(set(table["unit"])) if "unit" in table else []
        text = (
            f"Method {options.method}{against}. {_found(table)} of {int(table['pvalue_adj'].notna().sum())} genes are "
        )
        text += f"found at an adjusted p-value of at most {ALPHA:g} (Benjamini-Hochberg)."
        text += f" Units of the test: {', '.join(map(str, units))}." if units else ""
        sections.append(ReportSection(title=f"Which genes answer to {factor}?", text=text, parts=parts))
    if tables.space is not None:
        said = "The score test asks whether neighbouring spots are more alike than any two, beyond the formula."
        parts = [
            *pictured(pictures, "spatial_variability_qq", "Quantile-quantile plot of p-values in space.", OF_QQ),
            _top(tables.space, SPACE_SHOWN, "Tests of spatial variability, smallest p-values first", names["space"]),
        ]
        sections.append(ReportSection(title="Which genes vary in space?", text=said, parts=parts))
    return sections


OF_QQ = (
    "Each point is a gene: its p-value against the one expected in its place if no gene answered. Points within the "
    "gray band are what chance gives; a curve above it all along its length says that p-values are too small."
)


def _of_volcano(factor: str, model: ExpressionGLM) -> str:
    levels = sum(name.startswith(f"{factor}[") for name in model.coefficient_names)
    several = f" The factor has {levels} coefficients; the effect drawn is the largest of them." if levels > 1 else ""
    return f"Each point is a gene: log2 fold change of {factor} against the evidence for it.{several}"


def _fit_section(tables: Tables, options: ExpressionOptions, names: dict[str, str]) -> ReportSection:
    sizes = {TOTAL: "total counts over their mean", NONE: "none"}.get(options.size_factors, options.size_factors)
    text = (
        f"Every gene's counts follow {options.formula} on the log scale (noise: {options.noise_model}; dispersion: "
        f"{options.scale_formula}; size factors: {sizes}). Coefficients: {', '.join(tables.model.coefficient_names)}."
    )
    parts = [ReportTable(frame=tables.genes, text="Fits, a row a gene.", file=names["genes"])]
    if tables.variances is not None:
        said = "Standard deviations of the random effects, on the natural-log scale."
        parts.append(ReportTable(frame=tables.variances, text=said, file=names["variances"]))
    return ReportSection(title="What was fitted", text=text, parts=parts)


def _top(table: pd.DataFrame, columns: tuple[str, ...], text: str, file: str) -> ReportTable:
    shown = table.sort_values("pvalue", kind="stable")[[name for name in columns if name in table]]
    if "reason" in shown and not shown["reason"].fillna("").astype(bool).any():
        shown = shown.drop(columns="reason")
    return ReportTable(frame=shown, text=f"{text}.", file=file)
