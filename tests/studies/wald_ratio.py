"""Size of the Wald and likelihood-ratio tests of usage beside the score test's, after a GLMM, without any effect.

    python -m tests.studies.wald_ratio [--genes 1000] [--law averaged]

A 16 × 16 grid, three isoforms, a smooth, an independent and a binary covariate. Table with seed and commit:
tests/studies/results/wald_ratio.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from tests.studies.glmm_tests import NULLS
from tests.studies.simulation import commit, save_row
from tests.studies.sv_score import DEPTHS

COVARIATES = ("smooth", "iid", "binary")
LAWS = ("averaged", "plugin")
TESTS = (("score", "robust"), ("lrt", "robust"), ("wald", "robust"), ("wald", "model"))
SEED = 15
QUIET = {"print_progress": False}


def main(n_genes: int, laws: Sequence[str]) -> None:
    at = commit()
    for depth in DEPTHS:
        for null, (sigma, theta) in NULLS.items():
            adata = simulate_isoforms(
                n_spots=256, n_genes=n_genes, covariates=COVARIATES, depth=depth, sigma=sigma, theta=theta, seed=SEED
            )
            model = SplisosmGLMM("glmm-full", fitting_method="marginal_newton", var_fix_sigma=False)
            model.setup_data(adata, design_mtx=list(COVARIATES))
            fitted = None
            for method, variance in TESTS:
                if fitted is None or method == "wald" != fitted:  # "lrt" goes on from the score test's fit
                    model.fit(batch_size=32, with_design_mtx=method == "wald", **QUIET)
                fitted = method
                for law in laws:
                    ask = {"variance": variance, "law": law, "return_results": True, **QUIET}
                    found = model.test_differential_usage(method, **ask)
                    row = {"null": null, "depth": depth, "test": method, "variance": variance, "law": law}
                    row["genes"] = n_genes
                    for name, pvalue in zip(COVARIATES, found["pvalue"].T, strict=True):
                        tested = pvalue[np.isfinite(pvalue)]
                        row |= {f"{name} {level:g}": float((tested < level).mean()) for level in (0.05, 0.01)}
                    key = ["null", "depth", "test", "variance", "law"]
                    save_row("wald_ratio", row | {"seed": SEED, "commit": at}, key)
                    print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--law", choices=LAWS, nargs="+", default=LAWS)
    given = parser.parse_args()
    main(given.genes, given.law)
