"""Small data sets of the reference fits: a table of cells, counts of three genes a model, the models in R's words.

    python -m tests.glmm.arrow.reference.simulate && Rscript tests/glmm/arrow/reference/fit.R

Both are needed only where a model is added; the tables and R's results (``fits.json``) are part of the repository.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
N_GENES, N_DONORS, N_BATCHES = 3, 10, 5
SEED = 17
DISPERSION = 0.4
SLOPE, CROSSED = "(1 + x | donor)", "(1 | donor) + (1 | batch)"
NOISE = "(1 | donor) + (1 | cell)"


@dataclass(frozen=True)
class Model:
    """What R fits, and what its counts are drawn with."""

    name: str
    family: str  # nbinom2, poisson, binomial, gaussian
    fixed: str
    random: str
    truth: dict[str, float]  # sd of the intercepts and slopes that the counts are drawn with
    mean: float = 1.5


MODELS = (
    Model("nb_intercept", "nbinom2", "condition + x", "(1 | donor)", {"donor": 0.5}),
    Model("nb_slope", "nbinom2", "condition + x", SLOPE, {"donor": 0.5, "donor:x": 0.4}),
    Model("nb_slope_of_condition", "nbinom2", "condition", "(1 + condition | donor)", {"donor": 0.4, "sample": 0.5}),
    Model("nb_diagonal", "nbinom2", "condition + x", "diag(1 + x | donor)", {"donor": 0.5, "donor:x": 0.4}),
    Model("nb_nested", "nbinom2", "condition", "(1 | donor/batch)", {"donor": 0.4, "donor:batch": 0.6}),
    Model("nb_crossed", "nbinom2", "condition + x", CROSSED, {"donor": 0.5, "batch": 0.4}),
    Model("nb_two_slopes", "nbinom2", "x", f"{SLOPE} + (1 | batch)", {"donor:x": 0.4, "donor": 0.5, "batch": 0.4}),
    Model("nb_factors", "nbinom2", "condition * layer + x", "(1 | donor)", {"donor": 0.5}, 4.0),
    Model("nb_no_effect", "nbinom2", "condition + x", "(1 | donor)", {"donor": 0.0}),
    Model("poisson_slope", "poisson", "condition + x", SLOPE, {"donor": 0.5, "donor:x": 0.4}),
    Model("poisson_no_effect", "poisson", "condition + x", "(1 | donor)", {"donor": 0.0}),
    Model("binomial_slope", "binomial", "condition + x", SLOPE, {"donor": 0.6, "donor:x": 0.4}),
    Model("binomial_crossed", "binomial", "condition", CROSSED, {"donor": 0.6, "batch": 0.4}),
    Model("gaussian_intercept", "gaussian", "condition + x", "(1 | donor)", {"donor": 0.6}),
    Model("gaussian_slope", "gaussian", "condition + x", SLOPE, {"donor": 0.6, "donor:x": 0.5}),
    Model("gaussian_crossed", "gaussian", "condition * layer", CROSSED, {"donor": 0.6, "batch": 0.5}),
    Model("gaussian_no_effect", "gaussian", "condition + x", "(1 | donor)", {"donor": 0.0}),
    Model("poisson_noise", "poisson", "condition + x", NOISE, {"donor": 0.5, "cell": 0.6}),
    Model("binomial_noise", "binomial", "condition + x", NOISE, {"donor": 0.6, "cell": 0.8}),
)
WITH_OFFSET = ("nbinom2", "poisson")


def cells(rng: np.random.Generator) -> pd.DataFrame:
    """Cells of unequal donors, with a condition within them, batches that cross them and a layer of three."""
    donor = np.repeat(np.arange(N_DONORS), rng.integers(12, 32, N_DONORS))
    n = len(donor)
    condition = rng.uniform(size=n) < rng.uniform(0.3, 0.7, N_DONORS)[donor]
    return pd.DataFrame(
        {
            "donor": [f"d{k}" for k in donor],
            "batch": [f"b{k}" for k in rng.integers(0, N_BATCHES, n)],
            "condition": np.where(condition, "drug", "control"),
            "layer": np.array(["L1", "L2", "L3"])[rng.integers(0, 3, n)],
            "x": rng.normal(size=n).round(3),
            "log_size": rng.normal(0, 0.3, n).round(3),
            "trials": rng.integers(1, 9, n),
            "cell": [f"c{k}" for k in range(n)],
        }
    )


def predictor(model: Model, table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Linear predictor of a gene, offset included; fixed effects of .3 of whatever the model names."""
    eta = np.log(model.mean) if model.family in WITH_OFFSET else 0.2
    eta = eta + 0.3 * (table["condition"] == "drug").to_numpy()
    if "x" in model.fixed.split(" + "):
        eta = eta + 0.3 * table["x"].to_numpy()
    if model.family in WITH_OFFSET:
        eta = eta + table["log_size"].to_numpy()
    for effect, sd in model.truth.items():
        eta = eta + effect_of(effect, table, rng, sd)
    return eta


def effect_of(effect: str, table: pd.DataFrame, rng: np.random.Generator, sd: float) -> np.ndarray:
    """An effect of groups; the levels of a sample are those of donor and condition."""
    by, *rest = effect.split(":")
    key = table["donor"] + table["condition"] if by == "sample" else table[by]
    if rest == ["batch"]:
        key = key + table["batch"]
    codes = pd.factorize(key)[0]
    effect_by_cell = sd * rng.normal(size=codes.max() + 1)[codes]
    return effect_by_cell * table["x"].to_numpy() if rest == ["x"] else effect_by_cell


def observed(model: Model, table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Counts of a gene (successes of ``trials`` for the binomial), or real numbers; without an effect, these have equal
    means of all donors, so that no more than zero can be estimated.
    """
    eta, trials = predictor(model, table, rng), table["trials"].to_numpy()
    if model.family == "gaussian":
        y = eta + rng.normal(0, 0.8, len(eta))
        return (y if any(model.truth.values()) else y - pd.Series(y).groupby(table["donor"]).transform("mean")).round(4)
    if model.family == "binomial":
        return rng.binomial(trials, 1 / (1 + np.exp(-eta)))
    size = 1 / DISPERSION
    return rng.poisson(np.exp(eta) * (rng.gamma(size, 1 / size, len(eta)) if model.family == "nbinom2" else 1))


def main() -> None:
    rng = np.random.default_rng(SEED)
    table = cells(rng)
    counts = {f"{model.name}.{gene}": observed(model, table, rng) for model in MODELS for gene in range(N_GENES)}
    table.to_csv(HERE / "cells.csv", index=False)
    pd.DataFrame(counts).to_csv(HERE / "counts.csv", index=False)
    keep = ("name", "family", "fixed", "random")
    described = [{key: asdict(model)[key] for key in keep} | {"genes": N_GENES} for model in MODELS]
    (HERE / "models.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
