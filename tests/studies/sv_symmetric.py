"""Size of both tests of space where the random effect, of the genes and of the model, is symmetric between isoforms.

    python -m tests.studies.sv_symmetric [--genes 1000]

``isoform_effect="symmetric"``: no isoform is special. A 16 × 16 grid, three and four isoforms, one and five molecules a
spot, nothing spatial: without a random effect, and with one of independent spots (σ = .7 for each isoform on the scale
of the softmax). Table with seeds and commit: tests/studies/results/sv_symmetric.csv.
"""

from __future__ import annotations

import argparse
import time
import zlib
from itertools import product

import numpy as np
import torch

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from tests.studies.simulation import commit, save_row
from tests.studies.sv_score import size_row

NULLS = {"no effect": 0.0, "over-dispersion": 0.7}  # σ
CELLS = tuple(product(NULLS, (3, 4), (1, 5)))  # null, isoforms, depth
TESTS = ("score", "llr")
QUIET = {"print_progress": False}


def pvalues(*, null: str, n_isos: int, depth: float, n_genes: int, n_spots: int, seed: int) -> dict[str, np.ndarray]:
    """P-values of each test ``(genes,)``."""
    adata = simulate_isoforms(
        n_spots=n_spots,
        n_genes=n_genes,
        n_isoforms=n_isos,
        depth=depth,
        sigma=NULLS[null],
        theta=0.0,
        seed=seed,
        isoform_effect="symmetric",
    )
    model = SplisosmGLMM(isoform_effect="symmetric", fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, min_counts=1)
    model.fit(batch_size=32, from_null=True, **QUIET)
    return {test: model.test_spatial_variability(test, return_results=True, **QUIET)["pvalue"] for test in TESTS}


def main(n_genes: int) -> None:
    at = commit()
    for null, n_isos, depth in CELLS:
        seed, began = zlib.crc32(f"symmetric {null} {n_isos} {depth}".encode()) % 2**31, time.process_time()
        found = pvalues(null=null, n_isos=n_isos, depth=depth, n_genes=n_genes, n_spots=256, seed=seed)
        for test, pvalue in found.items():
            row = {"null": null, "isoforms": n_isos, "depth": depth, "test": test, **size_row(torch.tensor(pvalue))}
            row |= {"CPU s": round(time.process_time() - began), "seed": seed, "commit": at}
            save_row("sv_symmetric", row, ["null", "isoforms", "depth", "test"])
            print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=1000)
    main(parser.parse_args().genes)
