"""Size and power of the score test of spatially variable genes of counts.

    python -m tests.studies.sv_expression size  [--genes 1000] [--only "grid 144"] [--seed 0]
    python -m tests.studies.sv_expression power [--genes 400] [--only field] [--seed 0]

Every gene is a draw of its own; sizes of the spots are one draw a cell, given to the fit. Size: null genes of every
mean, noise and spread of sizes; columns have the share of p-values below each level, over all that have one. Power:
patterns of log means beside rivals on the same counts (sv_rivals.py), "none" first, which shows who is calibrated.
Tables go to tests/studies/results/sv_expression_size.csv and _power.csv.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice import ExpressionGLM
from pyrosplice.data import spatial_patterns
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import commit, places, save_row
from tests.studies.sv_rivals import RIVALS
from tests.studies.sv_score import LEVELS

Array = NDArray[np.float64]
MEANS = (0.05, 0.3, 2.0, 20.0)
NOISES = ("poisson", "nb 10", "nb 1", "nb 0.3", "zeros", "lognormal")
FEW = 5  # counts of a gene, on average, at which so few genes have a p-value that more are drawn
KEY = ["layout", "mean", "noise", "spread", "with"]
REPEATED = [*KEY, "draw"]  # of --seed, so that a cell drawn again stands beside what it was


class Cell(NamedTuple):
    """One setting: places, mean count, noise, standard deviation of log sizes, and what else there is."""

    layout: str
    mean: float
    noise: str
    spread: float
    extra: str = ""


def cells() -> Iterator[Cell]:
    for layout in ("scattered 60", "grid 144"):
        for mean, noise, spread in product(MEANS, NOISES, (0.0, 0.7, 1.5)):
            yield Cell(layout, mean, noise, spread)
    for extra, mean, spread in product(("covariate", "spatial sizes", "sections"), MEANS, (0.7, 1.5)):
        yield Cell("grid 144", mean, "nb 1", spread, extra)
    for layout, noises in (("grid 1600", ("nb 1",)), ("grid 4900", ("nb 1", "zeros"))):
        for mean, noise, spread in product(MEANS, noises, (0.0, 1.5)):
            yield Cell(layout, mean, noise, spread)
    for mean in (0.05, 0.3, 2.0):
        yield Cell("scattered 20000", mean, "nb 1", 1.0)


def places_of(layout: str) -> Array:
    kind, number = layout.split()
    if kind == "grid":
        return places(round(float(number) ** 0.5))
    return np.random.default_rng(3).uniform(size=(int(number), 2))


def noisy(mean: Array, noise: str, rng: np.random.Generator) -> Array:
    """Counts ``(N, G)`` of these means; zero inflation (half, beside NB of dispersion .5) is beyond them."""
    kind, *number = noise.split()
    if kind == "nb":
        mean = mean * rng.gamma(float(number[0]), 1 / float(number[0]), mean.shape)
    if kind == "zeros":
        mean = mean * rng.gamma(2.0, 0.5, mean.shape) * (rng.random(mean.shape) < 0.5)
    if kind == "lognormal":
        mean = mean * np.exp(rng.standard_normal(mean.shape) - 0.5)
    return rng.poisson(mean).astype(float)


def smooth(points: Array, n: int, seed: int) -> Array:
    """Draws ``(N, n)`` of a CAR field on these places, of mean 0 and variance 1 each."""
    field = CarCovariance(knn_graph(points, k_neighbors=4, graph="connected"))
    drawn = field.sample(n, torch.Generator().manual_seed(seed)).numpy().T
    return (drawn - drawn.mean(0)) / drawn.std(0)


def null_pvalues(cell: Cell, n_genes: int, seed: int) -> Array:
    """P-values ``(G,)`` of null genes; covariates and sections have effects, which the model knows."""
    rng, points = np.random.default_rng(seed), places_of(cell.layout)
    obs = pd.DataFrame(index=[f"s{i}" for i in range(len(points))])
    spread = smooth(points, 1, seed)[:, 0] if cell.extra == "spatial sizes" else rng.standard_normal(len(points))
    obs["size"] = np.exp(cell.spread * spread - cell.spread**2 / 2)
    effect, formula, options = np.zeros((len(points), 1)), "~ 1", {}
    if cell.extra == "covariate":
        obs["x"] = smooth(points, 1, seed + 1)[:, 0]
        effect, formula = 0.7 * obs[["x"]].to_numpy(), "~ 1 + x"
    if cell.extra == "sections":
        sections = (points[:, 0] > np.median(points[:, 0])) * 2 + (points[:, 1] > np.median(points[:, 1]))
        obs["section"] = [f"section {k}" for k in sections]
        effect, formula, options = rng.standard_normal(4)[sections, None], "~ 1 + section", {"section_key": "section"}
    mean = cell.mean * obs[["size"]].to_numpy() * np.exp(effect)
    counts = noisy(np.broadcast_to(mean, (len(points), n_genes)), cell.noise, rng)
    adata = ad.AnnData(counts, obs=obs, obsm={"spatial": points})
    glm = ExpressionGLM(formula, as_numeric=["x"] if "x" in obs else ()).fit(adata, size_factors="size")
    return glm.test_spatial_variability(**options)["pvalue"].to_numpy()


def size_table(n_genes: int, only: str, salt: int, at: str) -> None:
    for cell in cells():
        if only not in " ".join(map(str, cell)):
            continue
        seed = zlib.crc32(f"{cell} {salt}".encode()) % 2**31
        drawn = n_genes if cell.mean * len(places_of(cell.layout)) > FEW else 8 * n_genes
        pvalue = null_pvalues(cell, drawn, seed)
        pvalue = pvalue[np.isfinite(pvalue)]
        row = dict(zip(KEY, cell, strict=True)) | {"with": cell.extra or "-", "draw": salt, "tested": len(pvalue)}
        row |= {f"size {level:g}": (pvalue < level).mean() if len(pvalue) else np.nan for level in LEVELS}
        save_row("sv_expression_size", row | {"genes": drawn, "seed": seed, "commit": at}, REPEATED)
        print(row, flush=True)


SHAPES = ("none", "field", "domains", "gradient", "hot-spot")
EFFECTS = {0.3: 0.6, 2.0: 0.3, 10.0: 0.25}  # of each mean, so that power is neither 0 nor 1
SIDES = {16: 1.0, 32: 0.45}  # and what multiplies them on grids of so many spots a side


def patterned(shape: str, mean: float, side: int, n_genes: int, seed: int) -> tuple[ad.AnnData, Array]:
    """Genes with a pattern in the log mean, NB of dispersion .5, sizes log-normal of sd .5, on a grid."""
    rng, points = np.random.default_rng(seed), places(side)
    size = np.exp(0.5 * rng.standard_normal(len(points)) - 0.125)
    log_mean = np.zeros((len(points), n_genes))
    if shape != "none":
        pattern = spatial_patterns(points, shape, n_genes=n_genes, seed=seed, n_logits=1)[..., 0]
        log_mean = SIDES[side] * EFFECTS[mean] * pattern.T
    counts = noisy(mean * size[:, None] * np.exp(log_mean), "nb 2", rng)
    obs = pd.DataFrame({"size": size}, index=[f"s{i}" for i in range(len(points))])
    return ad.AnnData(counts, obs=obs, obsm={"spatial": points}), size


def power_table(n_genes: int, only: str, salt: int, at: str) -> None:
    for side, shape, mean in product(SIDES, SHAPES, EFFECTS):
        if only not in f"{side} {shape} {mean}":
            continue
        seed = zlib.crc32(f"power {side} {shape} {mean} {salt}".encode()) % 2**31
        adata, size = patterned(shape, mean, side, n_genes, seed)
        glm = ExpressionGLM("~ 1").fit(adata, size_factors="size")
        points, graph = adata.obsm["spatial"], knn_graph(adata.obsm["spatial"], k_neighbors=6, graph="union")
        pvalues = {"ours": glm.test_spatial_variability()["pvalue"].to_numpy()}
        pvalues |= {name: rival(adata.X, size, points, graph) for name, rival in RIVALS.items()}
        row: dict[str, object] = {"shape": shape, "mean": mean, "side": side}
        for name, pvalue in pvalues.items():
            rejected = pvalue < 0.05
            row[name] = rejected.mean()
            if name != "ours":
                difference = rejected.astype(float) - (pvalues["ours"] < 0.05)
                row[f"SE of difference, {name}"] = difference.std(ddof=1) / n_genes**0.5
        row |= {f"{name} at 0.001": (pvalue < 0.001).mean() for name, pvalue in pvalues.items()}
        save_row("sv_expression_power", row | {"genes": n_genes, "seed": seed, "commit": at}, ["shape", "mean", "side"])
        print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["size", "power"])
    parser.add_argument("--genes", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only settings whose description holds this")
    given = parser.parse_args()
    if given.study == "size":
        size_table(given.genes or 1_000, given.only, given.seed, commit())
    else:
        power_table(given.genes or 400, given.only, given.seed, commit())
