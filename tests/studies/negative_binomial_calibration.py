"""How often each test of a null effect rejects: negative-binomial counts, by samples, dispersion and mean.

    python -m tests.studies.negative_binomial_calibration --genes 2000 --output calibration.csv

Cells: {7, 20, 200, 2000 samples} × dispersion {0.1, 1} × mean {0.5, 5, 50}: Wald, likelihood ratio and quasi-likelihood
F at 5 % and 1 %; then 6 donors of 100 cells with donor effects: naive Wald, bias-reduced sandwich, random intercept.
The table beside this script was drawn by a simulator of its own, of the same truths with other random numbers.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from pyrosplice import ExpressionGLM
from pyrosplice.data import simulate_expression

SAMPLES, DISPERSIONS, MEANS = (7, 20, 200, 2000), (0.1, 1.0), (0.5, 5.0, 50.0)
LEVELS = (0.05, 0.01)


def null_cells(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Samples in two groups, of unequal sizes."""
    return pd.DataFrame({"group": np.where(np.arange(n) % 2, "b", "a"), "size": rng.lognormal(0, 0.2, n)})


def donor_cells(donors: int = 6, per: int = 100) -> pd.DataFrame:
    """Cells of donors, each in one of two groups."""
    donor = np.repeat(np.arange(donors), per)
    return pd.DataFrame({"group": np.where(donor % 2, "b", "a"), "donor": [f"d{d}" for d in donor]})


def rejections(adata: ad.AnnData, methods: tuple[str, ...], **options: object) -> list[dict]:
    size = {"size_factors": "size"} if "size" in adata.obs else {}
    glm = ExpressionGLM("~1+group").fit(adata, **size)
    rows = []
    for method in methods:
        donors = {"donors": "donor"} if method in ("cluster", "glmm") else {}
        pval = glm.test(factor="group", method=method, **donors).pval
        tested = np.isfinite(pval)
        rates = {f"at {level:.0%}": float((pval[tested] < level).mean()) for level in LEVELS}
        rows.append({**options, "method": method, "tested": int(tested.sum()), **rates})
    return rows


def run(genes: int, seed: int, samples: tuple[int, ...] = SAMPLES) -> pd.DataFrame:
    rng, rows = np.random.default_rng(seed), []
    for n, disp, mean in product(samples, DISPERSIONS, MEANS):
        adata = simulate_expression(
            null_cells(n, rng),
            n_genes=genes,
            mean=mean,
            dispersion=disp,
            size_factors="size",
            seed=int(rng.integers(2**31)),
        )
        rows += rejections(adata, ("wald", "lrt", "ql"), samples=n, dispersion=disp, mean=mean, tau=0.0)
    for mean, tau in product((0.5, 5.0), (0.2, 0.5)):
        adata = simulate_expression(
            donor_cells(),
            n_genes=genes,
            mean=mean * np.exp(-(tau**2) / 2),
            dispersion=0.5,
            donors="donor",
            donor_sd=tau,
            seed=int(rng.integers(2**31)),
        )
        rows += rejections(adata, ("wald", "cluster", "glmm"), samples=600, dispersion=0.5, mean=mean, tau=tau)
    return pd.DataFrame(rows)


def main(description: str | None, study: Callable[[int, int], pd.DataFrame]) -> None:
    """Run a study of (genes, seed) as the command line asks, and keep its table with seed and commit."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    start = time.perf_counter()
    table = study(args.genes, args.seed)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    table["genes"], table["seed"], table["commit"] = args.genes, args.seed, commit.strip()
    table.to_csv(args.output, index=False, float_format="%.4f")
    print(table.to_string(index=False), f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(__doc__, run)
