"""Size of the score test of space where few spots, or few molecules, inform about a gene.

    python -m tests.studies.sv_coverage [--genes 2000] [--seed 0] [--only covered]

Every gene has places, totals and usage of its own. A cell is right when its rejections do not exceed the exact binomial
99 % interval. The table goes to tests/studies/results/sv_coverage.csv; its rows were drawn by a simulator of the
script's own, of the same truths with other random numbers.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import SpatialKernel, spatial_kernel
from pyrosplice.data import simulate_counts, simulate_totals
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import commit, grid, save_row
from tests.studies.sv_score import size_row

USAGE = {2: (0.6, 0.4), 3: (0.5, 0.3, 0.2), 6: (0.35, 0.25, 0.15, 0.1, 0.1, 0.05)}


class Cell(NamedTuple):
    """One setting: how many spots are covered (None: by chance), how deep, how uneven."""

    layout: str
    n_isos: int = 3
    covered: int | None = None
    each: int = 5
    molecules: int | None = None
    depth: float = 0.0
    spread: float = 0.0
    spatial: bool = False
    covariates: int = 0
    sigma: float = 0.0


def cells() -> Iterator[tuple[str, Cell]]:
    for n in (3, 5, 8, 10, 20, 30, 34, 40, 50, 70, 100, 576):
        yield "covered", Cell("grid 24", covered=n)
    for n in (5, 10, 30, 100):
        yield "covered", Cell("grid 50", covered=n)
    for n in (8, 15, 33, 60):
        yield "covered", Cell("grid 24", n_isos=2, covered=n, each=1)
    for side in (16, 24, 32, 50):
        for molecules in (30, 40, 60, 150):
            yield "molecules", Cell(f"grid {side}", molecules=molecules)
    for spread in (0.0, 1.0, 1.5):
        for spatial in (False, True):
            for molecules, isos in ((40, 2), (80, 6), (320, 3)):
                yield "uneven", Cell("grid 16", isos, molecules=molecules, spread=spread, spatial=spatial)
    yield "uneven", Cell("grid 8", 6, molecules=80, spread=1.5)
    yield "uneven", Cell("grid 16", depth=1.0, spread=1.5, sigma=1.0)
    for graph in ("mutual", "connected"):
        for depth in (0.3, 1.0, 5.0):
            for isos in (2, 3, 6):
                for spread in (0.0, 1.5):
                    yield "sixty", Cell(f"sixty {graph}", isos, depth=depth, spread=spread)
    for covered in (10, 20, 60, None):
        for covariates in (1, 4):
            yield "covariates", Cell("grid 12", covered=covered, depth=1.0, covariates=covariates)
    yield "covariates", Cell("sixty mutual", depth=5.0, covariates=4)


@cache
def layout(name: str) -> tuple[CarCovariance, SpatialKernel]:
    kind, what = name.split()
    if kind == "grid":
        covariance = grid(int(what))
    else:
        places = np.random.default_rng(3).uniform(size=(60, 2))
        covariance = CarCovariance(knn_graph(places, k_neighbors=4, graph=what))  # type: ignore[arg-type]
    return covariance, spatial_kernel(covariance)


def totals_of(cell: Cell, covariance: CarCovariance, n_genes: int, seed: int) -> torch.Tensor:
    options = {"n_genes": n_genes, "seed": seed}
    if cell.covered is not None:
        return simulate_totals(covariance, depth=cell.each, covered=cell.covered, exact=True, **options)
    how_many = {"depth": cell.depth} if cell.molecules is None else {"molecules": cell.molecules}
    return simulate_totals(covariance, spread=cell.spread, theta=float(cell.spatial), **how_many, **options)


def pvalues(cell: Cell, n_genes: int, seed: int) -> torch.Tensor:
    covariance, kernel = layout(cell.layout)
    usage, design, effect = np.array(USAGE[cell.n_isos]), None, None
    if cell.covariates:
        design = covariance.sample(cell.covariates, torch.Generator().manual_seed(seed)).T.contiguous()
        effect = 0.7 * design.numpy()[:, :1] * (np.arange(cell.n_isos - 1) == 0)
    counts = simulate_counts(
        covariance,
        n_genes=n_genes,
        totals=totals_of(cell, covariance, n_genes, seed),
        sigma=cell.sigma,
        theta=0.0,
        seed=seed,
        n_isos=cell.n_isos,
        bias=np.log(usage[:-1] / usage[-1]),
        effect=effect,
        isoform_effect="symmetric",
    )
    return variance_component_test(counts, kernel, design=design).pvalue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one group of cells")
    given = parser.parse_args()
    at = commit()
    for group, cell in cells():
        if given.only in (None, group):
            name = " ".join(
                f"{k}={v}"
                for k, v in cell._asdict().items()
                if v not in (None, 0, 0.0, False) and (k != "each" or cell.covered)
            )
            seed = zlib.crc32(f"{name} {given.seed}".encode()) % 2**31
            row = {
                "group": group,
                "cell": name,
                **size_row(pvalues(cell, given.genes, seed)),
                "seed": seed,
                "commit": at,
            }
            save_row("sv_coverage", row, ["group", "cell"])
            print(row, flush=True)


if __name__ == "__main__":
    main()
