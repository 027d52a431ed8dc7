"""Seconds that the score tests take: of space, kernel and null fits included, beside the peer package's HSIC-IR; of
covariates, beside the marginal null fits that they need. The least of a few repeats, and the process's peak memory.

    python -m tests.benchmarks.sv_score_cost [--peer /path/to/python] [--repeats 3] [--only space]

Wall-clock and processor seconds; on a busy machine only the latter mean anything.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from anndata import AnnData

from pyrosplice import SplisosmGLMM
from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice.data import simulate_isoforms
from tests.studies.simulation import grid, simulate_counts
from tests.studies.sv_score import peer_pvalues

SPACE = ((16, 1000, 0), (32, 1000, 0), (32, 1000, 2), (70, 300, 0), (100, 300, 0), (314, 64, 0))
"""Side of a grid, genes, covariates."""
PEER_SPOTS = 5_000  # the most that the peer is timed at: it takes minutes there
USAGE = ((256, 64, 1), (256, 64, 5), (1024, 32, 1), (1024, 32, 5), (10_000, 8, 1))  # spots, genes, covariates
LAWS = ("plugin", "averaged")
QUIET = {"print_progress": False}


def seconds(task: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least wall-clock and processor seconds."""
    wall, cpu = math.inf, math.inf
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        task()
        wall, cpu = min(wall, time.perf_counter() - start), min(cpu, time.process_time() - cpu_start)
    return wall, cpu


def score_of_space(side: int, n_genes: int, n_covariates: int, repeats: int, peer: str | None) -> list[object]:
    covariance = grid(side)
    counts = simulate_counts(covariance, n_genes=n_genes, depth=5, sigma=0.7, theta=0.0, seed=0)
    design = torch.randn(side**2, n_covariates, dtype=torch.float64) if n_covariates else None

    def test() -> None:
        variance_component_test(counts, spatial_kernel(grid(side)), design=design)

    row = [side**2, n_genes, n_covariates, *seconds(test, repeats)]
    row.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    theirs = [math.nan, math.nan]
    if peer and not n_covariates and side**2 <= PEER_SPOTS:
        found = [peer_pvalues(peer, covariance, {"x": counts})["x_seconds"] for _ in range(repeats)]
        theirs = np.min(found, 0).tolist()
    return row + theirs


def score_of_covariates(n_spots: int, n_genes: int, n_covariates: int, law: str, repeats: int) -> list[object]:
    """Seconds of the null fits by themselves, one with the other covariates for each, of these with the tests, and how
    many times the former the latter are.
    """
    adata = simulate_isoforms(n_spots=n_spots, n_genes=n_genes, depth=5, sigma=0.7, theta=0.7, seed=0)
    design = np.random.default_rng(0).normal(size=(n_spots, n_covariates))
    beside = [np.delete(design, j, 1) for j in range(n_covariates)] if n_covariates > 1 else [design]
    nulls = [usage_model(adata, columns) for columns in beside]
    fits = seconds(
        lambda: [model.fit(batch_size=32, with_design_mtx=n_covariates > 1, **QUIET) for model in nulls], repeats
    )
    model = usage_model(adata, design)
    model.fit(batch_size=32, **QUIET)

    def test() -> None:
        if n_covariates == 1:  # at the fit that the user has made
            model.fit(batch_size=32, **QUIET)
        model.test_differential_usage("score", law=law, **QUIET)

    tests = seconds(test, repeats)
    return [n_spots, n_genes, n_covariates, law, *fits, *tests, tests[1] / fits[1]]


def usage_model(adata: AnnData, design: np.ndarray) -> SplisosmGLMM:
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, design_mtx=design, group_gene_by_n_iso=True)
    return model


def table(columns: list[str], rows: list[list[object]]) -> str:
    cells = [[f"{x:.2f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *cells])


def main(peer: str | None, repeats: int, only: str | None) -> None:
    if only != "usage":
        score_of_space(8, 2, 0, 1, None)  # compiles
        score_of_space(50, 2, 0, 1, None)
        columns = ["spots", "genes", "covariates", "score s", "CPU s", "peak GB", "HSIC-IR s", "HSIC-IR CPU s"]
        print(table(columns, [score_of_space(*case, repeats, peer) for case in SPACE]), end="\n\n", flush=True)
    if only != "space":
        score_of_covariates(64, 2, 1, "averaged", 1)
        columns = [
            "spots",
            "genes",
            "covariates",
            "law",
            "null fits s",
            "CPU s",
            "with tests s",
            "CPU s",
            "with / fits",
        ]
        print(table(columns, [score_of_covariates(*case, law, repeats) for case in USAGE for law in LAWS]), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="interpreter that has the peer package")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["space", "usage"], help="one of the two tables")
    given = parser.parse_args()
    main(given.peer, given.repeats, given.only)
