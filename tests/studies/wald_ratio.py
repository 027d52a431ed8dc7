"""Size of the Wald and likelihood-ratio tests of usage beside the score test's, after a GLMM, without any effect.

    python -m tests.studies.wald_ratio [--genes 400]

A 16 × 16 grid, five counts a spot, three isoforms, a smooth and an independent covariate. Table with seed and commit:
tests/studies/results/wald_ratio.csv.
"""

from __future__ import annotations

import argparse

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from tests.studies.glmm_tests import NULLS
from tests.studies.simulation import commit, save_row

COVARIATES = ("smooth", "iid")
SEED = 5
QUIET = {"print_progress": False}


def main(n_genes: int) -> None:
    at = commit()
    for null, (sigma, theta) in NULLS.items():
        adata = simulate_isoforms(
            n_spots=256, n_genes=n_genes, covariates=COVARIATES, depth=5.0, sigma=sigma, theta=theta, seed=SEED
        )
        model = SplisosmGLMM("glmm-full", fitting_method="marginal_newton", var_fix_sigma=False)
        model.setup_data(adata, design_mtx=list(COVARIATES))
        for method in ("score", "lrt", "wald"):
            if method != "lrt":  # which goes on from the score test's fit
                model.fit(batch_size=32, with_design_mtx=method == "wald", **QUIET)
            found = model.test_differential_usage(method, return_results=True, **QUIET)
            for name, pvalue in zip(COVARIATES, found["pvalue"].T, strict=True):
                row = {"null": null, "test": method, "covariate": name, "genes": n_genes}
                row |= {f"size {level:g}": float((pvalue < level).mean()) for level in (0.05, 0.01)}
                save_row("wald_ratio", row | {"seed": SEED, "commit": at}, ["null", "test", "covariate"])
                print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=400)
    main(parser.parse_args().genes)
