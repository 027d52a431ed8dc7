"""Figures, tables and the page of an analysis of isoform usage, written to a folder of results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pyrosplice import plotting
from pyrosplice._jobs.input_file import read_cell_file
from pyrosplice._jobs.job_progress import Steps
from pyrosplice._jobs.results_folder import ANNOTATED, RATIOS, Conclusion, ResultsFolder, fingerprint
from pyrosplice._jobs.usage_job import (
    MAX_COVARIATES,
    Analysis,
    UsageInput,
    UsageOptions,
    analyze,
    discoveries,
    isoforms_of,
    usage_input,
    usage_summary,
    with_effects,
)
from pyrosplice._report import themed_png
from pyrosplice._usage_report import SYMBOLS, Picture, UsageReport
from pyrosplice.errors import InvalidArgumentError

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

N_MAPS = 2  # genes whose usage is drawn in space
USAGE_TABLES = {
    "genes": "a row a gene: depth, how its fit ended, estimated σ and θ",
    "spatial_variability": "score test of each gene: does usage vary in space",
    "differential_usage": "score test of each gene and covariate: does usage follow it",
    "effects": "log odds of each isoform against the last one of its gene, a unit of a covariate",
    "usage_points": "the same as percentage points of usage, with 95 % intervals",
}
Drawing = Callable[[], "Axes | np.ndarray"]


def run_usage(options: UsageOptions, folder: ResultsFolder, steps: Steps, adata: AnnData | None = None) -> Conclusion:
    """Read, fit, test, draw and write; ``adata`` in the place of the file (a simulated tissue)."""
    with steps.step("reading"):
        if adata is None:
            if options.data is None:
                raise InvalidArgumentError("data: expected a file.")
            adata = read_cell_file(options.data)
        read = usage_input(adata, options)
    with steps.step("fitting and testing"):
        analysis = analyze(read, options, progress=steps.show)
    with steps.step("drawing"):
        pictures = _draw(analysis, read, options) if folder.options.figures else {}
    with steps.step("writing"):
        write_usage_files(analysis, read, folder)
        folder.write_pictures(pictures)
    return _conclude(analysis, read, options, pictures)


def _conclude(analysis: Analysis, read: UsageInput, options: UsageOptions, pictures: dict[str, Picture]) -> Conclusion:
    kind = "simulated tissue" if options.data is None else options.data.name
    explained = UsageReport(
        genes=analysis.genes,
        n_spots=analysis.model.n_spots,
        spatial=analysis.spatial,
        differential=None if analysis.differential is None else with_effects(analysis),
        truth=analysis.truth,
        pictures=pictures,
    )
    settings = {
        "data": None if options.data is None else fingerprint(options.data),
        "counts": "X" if read.layer is None else f"layers[{read.layer!r}]",
        "coordinates": read.spatial_key,
        "model_type": analysis.model.model_type,
        "covariates": list(analysis.model.covariate_names),
        "n_spots": analysis.model.n_spots,
        "n_genes": analysis.model.n_genes,
        "n_genes_of_file": read.adata.var[options.gene_key].nunique(),
    }
    title = f"Isoform usage{'' if read.spatial_key is None else ' in space'}: {kind}"
    return Conclusion(
        title=title,
        lead=f"{_kept(analysis, read, options)}\n{usage_summary(analysis)}",
        sections=explained.sections(),
        settings=settings,
    )


def _kept(analysis: Analysis, read: UsageInput, options: UsageOptions) -> str:
    """Say what was not fitted: genes whose usage has nothing to choose from."""
    every = read.adata.var[options.gene_key].nunique()
    lost = every - analysis.model.n_genes
    if not lost:
        return f"All {every} genes have two isoforms or more."
    return f"{lost} of {every} genes have fewer than two isoforms of at least 10 molecules, and were left out."


def write_usage_files(analysis: Analysis, read: UsageInput, folder: ResultsFolder) -> None:
    """Write every table, the fitted usage ratios, the fitted model and, where asked for, the data with all results."""
    tables = {
        "genes": analysis.genes,
        "spatial_variability": analysis.spatial,
        "differential_usage": analysis.differential,
        "effects": analysis.effects,
        "usage_points": analysis.points,
    }
    for name, table in tables.items():
        if table is not None:
            folder.write_table(name, table, USAGE_TABLES[name])
    for name, table in analysis.truth.items():
        folder.write_table(f"recovered_{name}", table, f"estimated {SYMBOLS[name]} beside the truth")
    ratios = "fitted usage of every isoform in every spot, an AnnData"
    folder.write_anndata(analysis.model.get_fitted_ratios_anndata(), RATIOS, ratios)
    analysis.model.save(folder.path("model.pyrosplice", "the fitted model; SplisosmGLMM.load reads it"))
    if folder.options.write_h5ad:
        analysis.model.write(read.adata)
        folder.write_anndata(read.adata, ANNOTATED, "the data with fits and tests in it, SplisosmGLMM.write")


def _draw(analysis: Analysis, read: UsageInput, options: UsageOptions) -> dict[str, Picture]:
    """Draw QQ plots, a volcano for each covariate, maps of the clearest genes, estimates and truth; light and dark."""
    figures: dict[str, Drawing] = {}
    if analysis.spatial is not None:
        figures["spatial_variability_qq"] = partial(plotting.qq, analysis.spatial)
        figures |= _maps(analysis, read, options)
    if analysis.differential is not None:
        joined = with_effects(analysis)
        shown = joined[joined["covariate"].isin(discoveries(joined).index[:MAX_COVARIATES])]
        figures["differential_usage_qq"] = partial(plotting.qq, shown, by="covariate")
        for covariate, table in shown.groupby("covariate", sort=False):
            effect_name = f"log-odds per unit of {covariate}"
            figures[f"volcano_{covariate}"] = partial(plotting.volcano, table, effect_name=effect_name)
    for name, table in analysis.truth.items():
        by = "covariate" if "covariate" in table else None
        figures[f"recovered_{name}"] = partial(plotting.estimate_vs_truth, table, by=by, name=SYMBOLS[name])
    return {name: themed_png(draw) for name, draw in figures.items()}


def _maps(analysis: Analysis, read: UsageInput, options: UsageOptions) -> dict[str, Drawing]:
    """Usage maps of the genes with the smallest p-values for spatial variability."""
    adata = analysis.model.get_fitted_ratios_anndata()
    maps: dict[str, Drawing] = {}
    for gene in analysis.spatial.nsmallest(N_MAPS, "pvalue")["gene"]:  # type: ignore[union-attr]
        isoforms = list(isoforms_of(adata.var, options.gene_key, gene))
        table = plotting.usage_table(
            adata,
            isoforms,
            counts_layer=read.layer or "counts",
            spatial_key=read.spatial_key or "spatial",
            library_key=options.section_key,
        )
        maps[f"usage_{gene}"] = partial(plotting.usage_map, table, title=gene)
    return maps
