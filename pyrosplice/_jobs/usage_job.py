"""The job of isoform usage: which genes use their isoforms differently in space, or with covariates.

Fits the spatial mixed model to every gene by its marginal likelihood, tests spatial variability (SV) and differential
usage (DU) by the score, and estimates effects in a second fit, with the covariates. Data without coordinates are fitted
by the model without a random effect (GLM) and tested for differential usage only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrosplice import MultinomGLMM, SplisosmGLMM
from pyrosplice._jobs.input_file import (
    as_labels,
    check_column,
    check_coordinates,
    check_used,
    columns_used,
    layer_of,
)
from pyrosplice._tables.coordinates import SpatialKey, has_coordinates
from pyrosplice._usage_report import ALPHA, SYMBOLS
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError

MAX_COVARIATES = 6  # covariates in figures and report: those with the most discoveries
SPATIAL_KEY = "spatial"  # read where the file has it and nothing else is asked for
ISOFORM_EFFECT: IsoformEffect = "symmetric"  # nothing depends on which isoform of a gene comes last


@dataclass(frozen=True, kw_only=True)
class UsageOptions:
    """What to read of the data, and how to fit them.

    Attributes
    ----------
    data
        The file; None for a simulated tissue.
    layer, gene_key
        Counts of isoforms, None for ``counts`` or else ``X``; column of var with the gene of each isoform.
    spatial_key, section_key, space
        Coordinates, None for ``spatial`` where it is there; section of each spot; False fits no spatial effect.
    covariates, formula, as_label
        What usage may follow: columns of obs, or a formula; columns of numbers that are labels.
    missing
        What to do with spots without a label.
    batch_size, jobs, seed, device
        Genes fitted together, processes, seed of what is random, device.
    """

    data: Path | None = None
    layer: str | None = None
    gene_key: str = "gene_symbol"
    spatial_key: SpatialKey | None = None
    section_key: str | None = None
    space: bool = True
    covariates: tuple[str, ...] = ()
    formula: str | None = None
    as_label: tuple[str, ...] = ()
    missing: Literal["raise", "drop"] = "raise"
    batch_size: int | Literal["auto"] = 32
    jobs: int = 1
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class UsageInput:
    """The data with what the options come to in them: layer, coordinates (None: there are none), design."""

    adata: AnnData
    layer: str | None
    spatial_key: SpatialKey | None
    design: str | list[str] | None


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
    points
        The same as percentage points of usage, with intervals: ``get_effects``.
    truth
        Tables of estimate and truth by what is estimated (simulated tissue only).
    """

    model: SplisosmGLMM
    genes: pd.DataFrame
    spatial: pd.DataFrame | None = None
    differential: pd.DataFrame | None = None
    effects: pd.DataFrame | None = None
    points: pd.DataFrame | None = None
    truth: dict[str, pd.DataFrame] = field(default_factory=dict)


def usage_input(adata: AnnData, options: UsageOptions) -> UsageInput:
    """Check that the data have what the options name, before anything is fitted.

    Raises
    ------
    InvalidArgumentError
        A layer, column or coordinates are missing, or there is nothing to test.
    """
    check_column(adata.var, "--gene-key", options.gene_key, "var")
    for name in options.covariates:
        check_column(adata.obs, "--covariate", name)
    if options.section_key is not None:
        check_column(adata.obs, "--section-key", options.section_key)
    if options.covariates and options.formula is not None:
        raise InvalidArgumentError("--covariate, --formula: expected one of the two; the formula has the covariates.")
    used = list(options.covariates)
    if options.formula is not None:
        used = columns_used(adata.obs, "--formula", options.formula, groups=True)
    check_used(adata.obs, "--as-label", options.as_label, used, "--covariate or --formula")
    key = _coordinates(adata, options)
    design = options.formula if options.formula is not None else (list(options.covariates) or None)
    if key is None and design is None:
        raise InvalidArgumentError(
            f"There is nothing to test: no coordinates (looked for obsm[{SPATIAL_KEY!r}]) and no covariate. Give "
            "--covariate, --formula or --spatial-key."
        )
    if key is None and options.section_key is not None:
        raise InvalidArgumentError(
            "--section-key: sections are of coordinates, and there are none; give --spatial-key."
        )
    return UsageInput(as_labels(adata, options.as_label, "--as-label"), layer_of(adata, options.layer), key, design)


def _coordinates(adata: AnnData, options: UsageOptions) -> SpatialKey | None:
    """Where the coordinates are; None where there are none, or the model is to have no spatial effect."""
    if not options.space:
        if options.spatial_key is not None:
            raise InvalidArgumentError("--spatial-key, --no-space: expected one of the two.")
        return None
    if options.spatial_key is not None:
        check_coordinates(adata, options.spatial_key)
        return options.spatial_key
    return SPATIAL_KEY if has_coordinates(SPATIAL_KEY, adata.obsm, adata.obs) else None


def analyze(read: UsageInput, options: UsageOptions, *, progress: bool = False) -> Analysis:
    """Fit, test, and estimate effects."""
    model = _prepared(read, options)
    _fit(model, options, with_design_mtx=False, progress=progress)
    spatial = differential = effects = points = None
    truth = {}
    if model.model_type == "glmm-full":
        model.test_spatial_variability(method="score", print_progress=progress)
        spatial = model.get_formatted_test_results("sv")
    if read.design is not None:
        model.test_differential_usage(method="score", print_progress=progress)
        differential = model.get_formatted_test_results("du")
        complete = _prepared(read, options)
        _fit(complete, options, with_design_mtx=True, progress=progress)
        effects, points = effect_table(complete, options.gene_key), complete.get_effects()
        truth = beside_truth(read.adata, gene_table(complete), effects) if options.data is None else {}
    return Analysis(model, gene_table(model), spatial, differential, effects, points, truth)


def _prepared(read: UsageInput, options: UsageOptions) -> SplisosmGLMM:
    model = SplisosmGLMM(
        model_type="glm" if read.spatial_key is None else "glmm-full",
        fitting_method="marginal_newton",
        var_fix_sigma=False,
        isoform_effect=ISOFORM_EFFECT,
        device=options.device,
    )
    model.setup_data(
        read.adata,
        spatial_key=SPATIAL_KEY if read.spatial_key is None else read.spatial_key,
        layer=read.layer,
        group_iso_by=options.gene_key,
        group_gene_by_n_iso=True,
        design_mtx=read.design,
        section_key=options.section_key,
        missing=options.missing,
    )
    return model


def _fit(model: SplisosmGLMM, options: UsageOptions, *, with_design_mtx: bool, progress: bool) -> None:
    model.fit(
        n_jobs=options.jobs,
        batch_size=options.batch_size,
        with_design_mtx=with_design_mtx,
        print_progress=progress,
        random_seed=options.seed,
    )


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
        isoforms = isoforms_of(var, group_iso_by, gene)
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


def isoforms_of(var: pd.DataFrame, group_iso_by: str, gene: str) -> pd.Index:
    """Names of the isoforms of a gene, whose name is the text of what the column has (numbers, categories)."""
    return var.index[var[group_iso_by].astype(str) == gene]


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


def with_effects(analysis: Analysis) -> pd.DataFrame:
    """Tests of covariates beside the effect of the isoform that moves most."""
    if analysis.differential is None or analysis.effects is None:
        raise InvalidArgumentError("analysis: expected one with covariates.")
    return analysis.differential.merge(strongest_effect(analysis.effects), on=["gene", "covariate"])


def usage_summary(analysis: Analysis) -> str:
    """Say what was found, in a few lines."""
    genes = analysis.genes
    lines = [f"{len(genes)} genes, {int(genes['converged'].sum())} converged."]
    if analysis.spatial is not None:
        found = int((analysis.spatial["pvalue_adj"] <= ALPHA).sum())
        lines.append(f"Spatial variability (score test): {found} genes at an adjusted p-value of at most {ALPHA}.")
    else:
        lines.append("Without coordinates: no spatial effect was fitted, and spatial variability was not tested.")
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
