"""Tests of a group that may lack a rare isoform: which answer separated genes should get.

    python -m tests.studies.separation [--genes 2000]

A quarter of 144 spots is a group; no gene differs between group and rest. The third isoform is rare, so that the group
often has none of it: the coefficient is then at infinity. Sizes over all genes and over the separated ones of the tests
with flat priors, with ``priors="weak"``, and, for a GLM by closed form, with Firth's penalty (for two groups: half a
count more a cell). Table with seed and commit: tests/studies/results/separation.csv; its rows were drawn by a simulator
of the script's own, of the same truth with other random numbers.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from tests.studies.simulation import commit, save_row

N_SPOTS, N_GROUP = 144, 36
USAGE = (0.5, 0.03, 0.47)
NOISES = {"multinomial": 0.0, "noisy": 0.7}  # standard deviation of the logits of a spot
SEED = 21
QUIET = {"print_progress": False}


def tissue(n_genes: int, noise: float, *, depth: float = 3.0, seed: int = SEED) -> ad.AnnData:
    """Genes of three isoforms, a rare one last but one, and a group that makes no difference."""
    adata = simulate_isoforms(
        n_spots=N_SPOTS,
        n_genes=n_genes,
        depth=depth,
        sigma=noise / np.sqrt(2),
        theta=0.0,
        usage=USAGE,
        intercept_scale=0.0,
        seed=seed,
        isoform_effect="symmetric",
    )
    adata.obs["group"] = (np.arange(N_SPOTS) < N_GROUP).astype(float)
    return adata


def counts_of(adata: ad.AnnData) -> NDArray[np.float64]:
    """Counts ``(spots, genes, 3)``."""
    return adata.layers["counts"].toarray().reshape(N_SPOTS, -1, 3).astype(float)


def is_separated(adata: ad.AnnData) -> NDArray[np.bool_]:
    """Genes with an isoform that the group has none of, or the rest; one that is never seen is left out of a gene."""
    counts = counts_of(adata)
    return ((counts[:N_GROUP].sum(0) == 0) != (counts[N_GROUP:].sum(0) == 0)).any(-1)


def pvalues(adata: ad.AnnData, model_type: str, priors: str | None) -> dict[str, NDArray[np.float64]]:
    """By test and variance; missing ones are NaN."""
    found, law = {}, None if model_type == "glm" else "plugin"  # coefficients at infinity alone are looked at
    for with_design in (False, True):
        model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False, priors=priors)
        model.setup_data(adata, design_mtx="group", min_counts=1)
        model.fit(batch_size=64, with_design_mtx=with_design, **QUIET)
        for method in ("wald",) if with_design else ("score", "lrt"):
            for variance in ("robust", "model"):
                ask = {"variance": variance, "law": law, "return_results": True, **QUIET}
                test = model.test_differential_usage(method, **ask)
                found[f"{method} {variance}"] = test["pvalue"][:, 0]
    return found


def firth(adata: ad.AnnData) -> dict[str, NDArray[np.float64]]:
    """Wald and ratio tests of two groups with Jeffreys' prior on the coefficients: half a count in every cell."""
    counts = counts_of(adata)
    cells = np.stack([counts[:N_GROUP].sum(0), counts[N_GROUP:].sum(0)], 1) + 0.5
    wald, ratio = [], []
    for table in cells:
        difference = np.subtract(*[np.log(n[:-1] / n[-1]) for n in table])
        covariance = sum(np.diag(1 / n[:-1]) + 1 / n[-1] for n in table)
        wald.append(difference @ np.linalg.solve(covariance, difference))
        apart = (table * np.log(table / table.sum(1, keepdims=True))).sum()
        pooled = table.sum(0)
        ratio.append(2 * (apart - (pooled * np.log(pooled / pooled.sum())).sum()))
    return {"wald firth": stats.chi2.sf(wald, 2), "lrt firth": stats.chi2.sf(ratio, 2)}


def sizes(found: NDArray[np.float64], separated: NDArray[np.bool_]) -> dict[str, float]:
    """Shares below .05 and .01 of all genes and below .05 of separated ones, and share without p-value."""
    return {
        "all .05": float((found < 0.05).mean()),
        "all .01": float((found < 0.01).mean()),
        "separated .05": float((found[separated] < 0.05).mean()),
        "missing": float(np.isnan(found).mean()),
    }


def main(n_genes: int) -> None:
    at = commit()
    for noise, size in NOISES.items():
        adata = tissue(n_genes, size)
        separated = is_separated(adata)
        results = {("glm", "firth"): firth(adata)}
        for model_type in ("glm", "glmm-null"):
            for priors in (None, "weak"):
                results[model_type, priors or "flat"] = pvalues(adata, model_type, priors)
        for (model_type, priors), tests in results.items():
            for test, found in tests.items():
                row = {"noise": noise, "model": model_type, "priors": priors, "test": test, "genes": n_genes}
                row |= {"separated": float(separated.mean()), **sizes(found, separated), "seed": SEED, "commit": at}
                save_row("separation", row, ["noise", "model", "priors", "test"])
                print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=2000)
    main(parser.parse_args().genes)
