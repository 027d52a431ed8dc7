"""Does the marginal fit get back what simulated the counts? Bias and RMSE of σ, θ and β.

``python -m tests.studies.isoform_usage_recovery --output recovery.csv`` writes the table with its seed and commit.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyrosplice import MultinomGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.spatial.car import CarCovariance

THETAS = (0.0, 0.3, 0.7, 1.0)
SIGMA = 0.7
BETA = (0.4, -0.3)


def estimates(*, n_genes: int, n_spots: int, depth: float, seed: int) -> pd.DataFrame:
    """One row an estimate: ``parameter``, ``estimate``, ``truth``, ``theta`` (true), ``gene``.

    ``n_genes`` genes in equal shares of θ ∈ {0, 0.3, 0.7, 1}; σ = 0.7; an independent covariate with effects
    0.4 and −0.3 on the two logits; both variance parameters shared by the logits.
    """
    theta = np.resize(THETAS, n_genes)
    beta = np.broadcast_to(np.array(BETA), (n_genes, 1, 2))
    adata = simulate_isoforms(
        n_spots=n_spots,
        n_genes=n_genes,
        depth=depth,
        sigma=SIGMA,
        theta=theta,
        covariates=("iid",),
        beta=beta,
        seed=seed,
    )
    counts = adata.layers["counts"].toarray().reshape(n_spots, n_genes, -1).transpose(1, 0, 2)
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(
        torch.tensor(counts, dtype=torch.float64),
        corr_sp=CarCovariance(adata.obsp["connectivities"]),
        design_mtx=torch.tensor(adata.obs[["iid"]].to_numpy()),
    )
    model.fit(quiet=True)
    found = {
        "sigma": (model.var_total().detach().sqrt()[:, 0], np.full(n_genes, SIGMA)),
        "theta": (model.var_sp_prop().detach()[:, 0], theta),
        "beta1": (model.beta.detach()[:, 0, 0], beta[:, 0, 0]),
        "beta2": (model.beta.detach()[:, 0, 1], beta[:, 0, 1]),
    }
    parts = [
        pd.DataFrame(
            {"parameter": name, "estimate": estimate, "truth": truth, "theta": theta, "gene": np.arange(n_genes)}
        )
        for name, (estimate, truth) in found.items()
    ]
    return pd.concat(parts, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and median bias, RMSE and standard error of the mean bias, by parameter and true θ, and over all θ."""
    table = table.assign(error=table["estimate"] - table["truth"])
    everything = table.assign(theta="all")
    cells = pd.concat([table.astype({"theta": str}), everything]).groupby(["parameter", "theta"], sort=False)["error"]
    return pd.DataFrame(
        {
            "genes": cells.size(),
            "mean bias": cells.mean(),
            "median bias": cells.median(),
            "RMSE": cells.apply(lambda error: float(np.sqrt(np.mean(error**2)))),
            "SE of the mean": cells.sem(),
        }
    ).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--spots", type=int, default=1024)
    parser.add_argument("--depth", type=float, default=5.0, help="mean count of a gene per spot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="csv file; standard output only by default")
    options = parser.parse_args()
    table = summary(estimates(n_genes=options.genes, n_spots=options.spots, depth=options.depth, seed=options.seed))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    table = table.assign(spots=options.spots, depth=options.depth, seed=options.seed, commit=commit.stdout.strip())
    print(table.round(4).to_string(index=False))
    if options.output is not None:
        table.to_csv(options.output, index=False)


if __name__ == "__main__":
    main()
