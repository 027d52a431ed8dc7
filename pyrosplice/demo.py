"""The main job from file to figures: ``python -m pyrosplice.demo --output demo [--data tissue.h5ad]``.

Without ``--data`` a tissue is simulated from the model, so that the report can set estimates beside the truth. Reads
isoform counts with coordinates, fits the spatial mixed model to every gene by its marginal likelihood, tests spatial
variability (SV) and differential usage (DU), and leaves tables, figures and ``index.html``, which explains them, in the
output folder. A file without
coordinates is fitted by the model without a random effect (GLM) and tested for differential usage only.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

from pyrosplice import MultinomGLMM, SplisosmGLMM, __version__, plotting
from pyrosplice._report import report_page, themed_png, write_page
from pyrosplice._usage_report import ALPHA, SYMBOLS, Picture, UsageReport
from pyrosplice.data import simulate_isoforms
from pyrosplice.effects._isoform_effect import IsoformEffect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("pyrosplice.demo")

N_MAPS = 2  # genes whose usage is drawn in space
MAX_COVARIATES = 6  # covariates in figures and report: those with the most discoveries
SIMULATED_COVARIATES = ("smooth", "iid")
ISOFORM_EFFECT: IsoformEffect = "symmetric"  # nothing depends on which isoform of a gene comes last


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    output: Path
    data: Path | None = None
    layer: str = "counts"
    group_iso_by: str = "gene_symbol"
    spatial_key: str = "spatial"
    covariates: tuple[str, ...] = ()
    n_spots: int = 576
    n_genes: int = 80
    batch_size: int = 32
    n_jobs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Analysis:
    """Fitted model and tables; a table is None where the data do not allow it.

    Attributes
    ----------
    model
        Fitted without covariates, as the score tests need.
    genes
        One row a gene: summaries, convergence, estimated σ and θ.
    spatial, differential
        Tests, as ``get_formatted_test_results`` gives them.
    effects
        Effects from a second fit, with the covariates: :func:`effect_table`.
    truth
        Tables of estimate and truth by what is estimated (simulated tissue only).
    """

    model: SplisosmGLMM
    genes: pd.DataFrame
    spatial: pd.DataFrame | None = None
    differential: pd.DataFrame | None = None
    effects: pd.DataFrame | None = None
    truth: dict[str, pd.DataFrame] = field(default_factory=dict)


def simulated_tissue(*, n_spots: int, n_genes: int, seed: int) -> AnnData:
    """Simulate tissue of known truth: θ cycles through 0, .3, .7, 1, σ through .5, .7, 1; half follow "smooth".

    Two covariates: "smooth" in space, and "iid", noise that moves no gene.
    """
    rng = np.random.default_rng(seed)
    theta = np.resize([0.0, 0.3, 0.7, 1.0], n_genes)
    follows = np.arange(n_genes) // 4 % 2 == 1
    sigma = np.resize(np.repeat([0.5, 0.7, 1.0], 8), n_genes)
    beta = np.zeros((n_genes, 2, 2))
    beta[follows, 0] = rng.choice([-0.5, 0.5], size=(int(follows.sum()), 2))
    adata = simulate_isoforms(
        n_spots=n_spots,
        n_genes=n_genes,
        sigma=sigma,
        theta=theta,
        beta=beta,
        covariates=SIMULATED_COVARIATES,
        seed=seed,
        isoform_effect=ISOFORM_EFFECT,
    )
    adata.var["gene_symbol"] = adata.var["gene_symbol"].astype("category")  # as in a file
    return adata


def analyze(adata: AnnData, options: Options) -> Analysis:
    """Fit, test, and estimate effects."""
    model = _fitted(adata, options, with_design_mtx=False)
    spatial = differential = effects = None
    truth = {}
    if model.model_type == "glmm-full":
        model.test_spatial_variability(method="score", print_progress=False)
        spatial = model.get_formatted_test_results("sv")
    if options.covariates:
        model.test_differential_usage(method="score", print_progress=False)
        differential = model.get_formatted_test_results("du")
        complete = _fitted(adata, options, with_design_mtx=True)
        effects = effect_table(complete, options.group_iso_by)
        truth = beside_truth(adata, gene_table(complete), effects) if "truth" in adata.uns else {}
    return Analysis(model, gene_table(model), spatial, differential, effects, truth)


def _fitted(adata: AnnData, options: Options, *, with_design_mtx: bool) -> SplisosmGLMM:
    model = SplisosmGLMM(
        model_type="glmm-full" if options.spatial_key in adata.obsm else "glm",
        fitting_method="marginal_newton",
        var_fix_sigma=False,
        isoform_effect=ISOFORM_EFFECT,
    )
    model.setup_data(
        adata,
        spatial_key=options.spatial_key,
        layer=options.layer,
        group_iso_by=options.group_iso_by,
        group_gene_by_n_iso=True,
        design_mtx=list(options.covariates) or None,
    )
    start = time.perf_counter()
    model.fit(
        n_jobs=options.n_jobs,
        batch_size=options.batch_size,
        with_design_mtx=with_design_mtx,
        print_progress=False,
        random_seed=options.seed,
    )
    covariates = f"with {model.n_factors} covariates" if with_design_mtx else "without covariates"
    log.info(
        "%s: %d genes on %d spots fitted %s in %.1f s",
        model.model_type,
        model.n_genes,
        model.n_spots,
        covariates,
        time.perf_counter() - start,
    )
    return model


def gene_table(model: SplisosmGLMM) -> pd.DataFrame:
    """Tabulate genes with how their fits went and the estimated σ and θ (shared by the isoforms), one row a gene."""
    table = model.extract_feature_summary(level="gene", print_progress=False).join(model.get_training_summary())
    mixed = [fit for fit in model.get_fitted_models() if isinstance(fit, MultinomGLMM)]
    if mixed:
        table["sigma"] = [float(fit.var_total()[0, 0]) ** 0.5 for fit in mixed]
        table["theta"] = [float(fit.var_sp_prop()[0, 0]) for fit in mixed]
    return table.rename_axis("gene").reset_index()


def effect_table(model: SplisosmGLMM, group_iso_by: str) -> pd.DataFrame:
    """Tabulate effects β of covariates on the log-odds of each isoform against the gene's last one (whose β is 0)."""
    var = model.filtered_adata.var
    parts = []
    for gene, fit in zip(model.gene_names, model.get_fitted_models(), strict=True):
        isoforms = var.index[var[group_iso_by] == gene]
        effect = np.pad(fit.beta.detach().cpu().numpy()[0], ((0, 0), (0, 1)))  # (P, K)
        parts.append(
            pd.DataFrame(
                {
                    "gene": gene,
                    "covariate": np.repeat(model.covariate_names, len(isoforms)),
                    "isoform": np.tile(isoforms, len(effect)),
                    "effect": effect.ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def strongest_effect(effects: pd.DataFrame) -> pd.DataFrame:
    """Find for each gene and covariate the isoform that moves most.

    Effects are centred over the isoforms of the gene, which frees them from the choice of the reference isoform.
    """
    keys = ["gene", "covariate"]
    centered = effects.assign(effect=effects["effect"] - effects.groupby(keys)["effect"].transform("mean"))
    largest = centered["effect"].abs().groupby([centered[key] for key in keys], sort=False).idxmax()
    return centered.loc[largest].reset_index(drop=True)


def discoveries(differential: pd.DataFrame) -> pd.Series:
    """Count the genes found with each covariate, most first."""
    found = differential["pvalue_adj"] <= ALPHA
    return found.groupby(differential["covariate"], sort=False).sum().sort_values(ascending=False, kind="stable")


def beside_truth(adata: AnnData, genes: pd.DataFrame, effects: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Put estimates, from the fit with covariates, beside the truth of θ, σ and effects in a simulated tissue."""
    truth = adata.uns["truth"].loc[genes["gene"]]
    tables = {
        name: pd.DataFrame({"gene": genes["gene"], "estimate": genes[name], "truth": truth[name].to_numpy()})
        for name in ("theta", "sigma")
    }
    true = [adata.var.loc[row.isoform, f"beta_{row.covariate}"] for row in effects.itertuples()]
    table = effects.rename(columns={"effect": "estimate"}).assign(truth=true)
    tables["effect"] = table[table.duplicated(["gene", "covariate"], keep="last")]  # not the reference isoform
    return tables


def write_tables(analysis: Analysis, folder: Path) -> list[Path]:
    """Write every table as CSV, the fitted usage ratios as h5ad, and the fitted model."""
    tables = {
        "genes": analysis.genes,
        "spatial_variability": analysis.spatial,
        "differential_usage": analysis.differential,
        "effects": analysis.effects,
    } | {f"recovered_{name}": table for name, table in analysis.truth.items()}
    written = []
    for name, table in tables.items():
        if table is not None:
            written.append(folder / f"{name}.csv")
            table.to_csv(written[-1], index=False)
    written += [folder / "fitted_ratios.h5ad", folder / "model.pyrosplice"]
    analysis.model.get_fitted_ratios_anndata().write_h5ad(written[-2])
    analysis.model.save(str(written[-1]))
    return written


def draw_figures(analysis: Analysis, options: Options) -> dict[str, Picture]:
    """Draw QQ plots, a volcano for each covariate, maps of the clearest genes, estimates and truth; light and dark."""
    figures: dict[str, Callable[[], Axes | np.ndarray]] = {}
    if analysis.spatial is not None:
        figures["spatial_variability_qq"] = partial(plotting.qq, analysis.spatial)
        figures |= _maps(analysis, options)
    if analysis.differential is not None:
        joined = _with_effects(analysis)
        shown = joined[joined["covariate"].isin(discoveries(joined).index[:MAX_COVARIATES])]
        figures["differential_usage_qq"] = partial(plotting.qq, shown, by="covariate")
        for covariate, table in shown.groupby("covariate", sort=False):
            effect_name = f"log-odds per unit of {covariate}"
            figures[f"volcano_{covariate}"] = partial(plotting.volcano, table, effect_name=effect_name)
    for name, table in analysis.truth.items():
        by = "covariate" if "covariate" in table else None
        figures[f"recovered_{name}"] = partial(plotting.estimate_vs_truth, table, by=by, name=SYMBOLS[name])
    return {name: themed_png(draw) for name, draw in figures.items()}


def _with_effects(analysis: Analysis) -> pd.DataFrame:
    """Tests of covariates beside the effect of the isoform that moves most."""
    assert analysis.differential is not None and analysis.effects is not None
    return analysis.differential.merge(strongest_effect(analysis.effects), on=["gene", "covariate"])


def _maps(analysis: Analysis, options: Options) -> dict[str, Callable[[], Axes | np.ndarray]]:
    """Usage maps of the genes with the smallest p-values for spatial variability."""
    adata = analysis.model.get_fitted_ratios_anndata()
    maps: dict[str, Callable[[], Axes | np.ndarray]] = {}
    for gene in analysis.spatial.nsmallest(N_MAPS, "pvalue")["gene"]:  # type: ignore[union-attr]
        isoforms = list(adata.var_names[adata.var[options.group_iso_by] == gene])
        table = plotting.usage_table(adata, isoforms, counts_layer=options.layer, spatial_key=options.spatial_key)
        maps[f"usage_{gene}"] = partial(plotting.usage_map, table, title=gene)
    return maps


def write_figures(pictures: Mapping[str, Picture], folder: Path) -> list[Path]:
    """Write the light pictures as PNG files."""
    written = []
    for name, (light, _) in pictures.items():
        written.append(folder / (re.sub(r"\W+", "_", name) + ".png"))
        written[-1].write_bytes(light)
    return written


def write_index(analysis: Analysis, pictures: Mapping[str, Picture], options: Options) -> Path:
    """Write ``index.html``, which shows and explains the tables and figures; it needs no other file to be read."""
    kind = "simulated tissue" if options.data is None else options.data.name
    explained = UsageReport(
        genes=analysis.genes,
        n_spots=analysis.model.n_spots,
        spatial=analysis.spatial,
        differential=None if analysis.differential is None else _with_effects(analysis),
        truth=analysis.truth,
        pictures=pictures,
    )
    files = {
        "model.pyrosplice": "the fitted model; SplisosmGLMM.load reads it",
        "fitted_ratios.h5ad": "fitted usage of every isoform in every spot, an AnnData",
    }
    foot = f"pyrosplice {__version__}, python -m pyrosplice.demo; seed {options.seed}."
    title = f"Isoform usage in space: {kind}"
    page = report_page(title, report(analysis), explained.sections(), files=files, foot=foot)
    return write_page(options.output / "index.html", page)


def report(analysis: Analysis) -> str:
    """Say what was found, in a few lines."""
    genes = analysis.genes
    lines = [f"{len(genes)} genes, {int(genes['converged'].sum())} converged."]
    if analysis.spatial is not None:
        found = int((analysis.spatial["pvalue_adj"] <= ALPHA).sum())
        lines.append(f"Spatial variability (score test): {found} genes at an adjusted p-value of at most {ALPHA}.")
    if analysis.differential is not None:
        found_by = discoveries(analysis.differential)
        lines += [
            f"Differential usage with {covariate} (score test): {found} genes."
            for covariate, found in found_by[:MAX_COVARIATES].items()
        ]
        if len(found_by) > MAX_COVARIATES:
            lines.append(f"{len(found_by) - MAX_COVARIATES} more covariates: see differential_usage.csv.")
    for name, table in analysis.truth.items():
        error = table["estimate"] - table["truth"]
        lines.append(
            f"Estimated against true {SYMBOLS[name]}: bias {error.mean():+.3f}, RMSE {(error**2).mean() ** 0.5:.3f}."
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m pyrosplice.demo", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for tables and figures; made if missing")
    add("--data", type=Path, help=".h5ad with isoform counts; a simulated tissue by default")
    add("--layer", default=Options.layer, help="layer with the counts (default: %(default)s)")
    add("--group-iso-by", default=Options.group_iso_by, help="column of var with the gene (default: %(default)s)")
    add("--spatial-key", default=Options.spatial_key, help="coordinates in obsm (default: %(default)s)")
    add("--covariates", nargs="+", default=[], help="columns of obs to test for differential usage")
    add("--n-spots", type=int, default=Options.n_spots, help="size of the simulated tissue (default: %(default)s)")
    add("--n-genes", type=int, default=Options.n_genes, help="simulated genes (default: %(default)s)")
    add("--batch-size", type=int, default=Options.batch_size, help="genes fitted together (default: %(default)s)")
    add("--n-jobs", type=int, default=Options.n_jobs, help="processes (default: %(default)s)")
    add("--seed", type=int, default=Options.seed, help="of the simulation (default: %(default)s)")
    found = parser.parse_args(arguments)
    if found.data is not None and not found.data.is_file():
        parser.error(f"--data: no such file: {found.data}")
    return Options(**{**vars(found), "covariates": tuple(found.covariates)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo; the report goes to standard output through the log."""
    options = parse(arguments)
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    start = time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.data is None:
        adata = simulated_tissue(n_spots=options.n_spots, n_genes=options.n_genes, seed=options.seed)
        options = replace(options, covariates=SIMULATED_COVARIATES)
    else:
        adata = anndata.read_h5ad(options.data)
    analysis = analyze(adata, options)
    pictures = draw_figures(analysis, options)
    written = [*write_tables(analysis, options.output), *write_figures(pictures, options.output)]
    written.append(write_index(analysis, pictures, options))
    log.info("%s", report(analysis))
    log.info("%d files in %s after %.0f s:", len(written), options.output, time.perf_counter() - start)
    for path in written:
        log.info("  %s", path.name)


if __name__ == "__main__":
    main()
