"""Size and power of the score test of space where the truth is no field of its model, and where few spots are covered.

    python -m tests.studies.sv_shapes [--genes 2000] [--seed 1] [--only covered] [--peer /path/to/python]

Three isoforms, over-dispersed by i.i.d. noise (σ = .5) in the logits beside the pattern. Size and power on genes of
their own, beside the peer package's HSIC-IR on the same counts and graph. The table goes to
tests/studies/results/sv_shapes.csv; a gene that a method gives no p-value counts as not rejected. Its rows were drawn
by a simulator of the script's own, of the same truths but for their domains, whose borders were straight.
"""

from __future__ import annotations

import argparse
import zlib
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom

from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice.data import simulate_counts, simulate_totals, spatial_patterns
from tests.studies.simulation import commit, grid, places, save_row
from tests.studies.sv_score import LEVELS, peer_pvalues, rejections

SIGMA = 0.5
KEY = ["group", "truth", "side", "covered", "depth", "effect", "peer"]


class Cell(NamedTuple):
    """A truth, its size (root mean square over spots and logits), and which spots it is seen in; ``depth`` is the mean
    of a Poisson number of molecules where all are covered, else each covered spot has as many.
    """

    group: str
    truth: str
    effect: float
    side: int = 16
    depth: int = 4
    covered: int = 256


SHAPES = tuple(
    Cell("shapes", truth, effect)
    for truth in ("domains", "gradient", "hot-spot", "stripes", "ring")
    for effect in (0.3, 0.4)
)
COVERED = tuple(
    Cell("covered", truth, effect, side, depth, covered)
    for side in (24, 16)
    for covered, depth in ((40, 5), (100, 3))
    for truth, effect in (("field", 1.2), ("domains", 0.6), ("gradient", 0.6))
)


def simulate(cell: Cell, n_genes: int, seed: int) -> torch.Tensor:
    """Counts ``(genes, spots, 3)``."""
    space, effect = grid(cell.side), None
    seen = {"covered": cell.covered, "exact": True} if cell.covered < cell.side**2 else {}
    totals = simulate_totals(space, n_genes=n_genes, depth=cell.depth, seed=seed, **seen)
    if cell.effect:
        effect = cell.effect * spatial_patterns(places(cell.side), cell.truth, n_genes=n_genes, seed=seed)
    return simulate_counts(space, n_genes=n_genes, totals=totals, sigma=SIGMA, theta=0.0, effect=effect, seed=seed)


def nulls(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """Every layout and coverage once, without a pattern."""
    return tuple(dict.fromkeys(cell._replace(truth="none", effect=0.0) for cell in cells))


def table(cells: tuple[Cell, ...], n_genes: int, salt: int, peer: str | None, at: str) -> None:
    for cell in (*nulls(cells), *cells):
        seed = zlib.crc32(f"{cell} {salt}".encode()) % 2**31
        counts, covariance = simulate(cell, n_genes, seed), grid(cell.side)
        ours = variance_component_test(counts, spatial_kernel(covariance)).pvalue.numpy()
        found = peer_pvalues(peer, covariance, {"x": counts}) if peer else {"version": "none"}
        row = {**cell._asdict(), "genes": n_genes, "tested": int(np.isfinite(ours).sum())}
        row |= rejections(ours, found.get("x"))
        if cell.truth == "none":  # what a size may be at most
            row |= {f"99 % {level:g}": binom.ppf(0.995, n_genes, level) / n_genes for level in LEVELS[:2]}
        save_row("sv_shapes", row | {"peer": str(found["version"]), "seed": seed, "commit": at}, KEY)
        print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["shapes", "covered"])
    parser.add_argument("--peer", help="interpreter that has the peer package: its HSIC-IR is put beside")
    given = parser.parse_args()
    for group, cells in (("shapes", SHAPES), ("covered", COVERED)):
        if given.only in (None, group):
            table(cells, given.genes, given.seed, given.peer, commit())
