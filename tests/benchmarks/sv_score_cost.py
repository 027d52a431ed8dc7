"""Seconds that the variance-component score test takes, kernel and null fits included; the peak memory of the process.

python -m tests.benchmarks.sv_score_cost
"""

from __future__ import annotations

import resource
import time

import torch

from pyrosplice.hypothesis.spatial_kernel import spatial_kernel
from pyrosplice.hypothesis.variance_component import variance_component_test
from tests.studies.simulation import grid, simulate_counts

CASES = ((16, 1000, False), (32, 1000, False), (32, 1000, True), (70, 300, False), (100, 300, False))


def main() -> None:
    warm = grid(8)
    variance_component_test(
        simulate_counts(warm, n_genes=2, depth=5, sigma=0.0, theta=0.0, seed=0), spatial_kernel(warm)
    )
    print("| spots | genes | covariates | kernel s | test s | CPU s | peak GB |\n|---|---|---|---|---|---|---|")
    for side, n_genes, adjusted in CASES:
        covariance = grid(side)
        counts = simulate_counts(covariance, n_genes=n_genes, depth=5, sigma=0.7, theta=0.0, seed=0)
        design = torch.randn(side**2, 2, dtype=torch.float64) if adjusted else None
        start, cpu = time.perf_counter(), time.process_time()
        kernel = spatial_kernel(covariance)
        ready = time.perf_counter()
        variance_component_test(counts, kernel, design=design)
        done, cpu = time.perf_counter(), time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = [side**2, n_genes, 2 if adjusted else 0]
        row += [f"{value:.2f}" for value in (ready - start, done - ready, cpu, peak)]
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
