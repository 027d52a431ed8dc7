"""Size of every test where usage varies more than the multinomial's, by likelihood: Dirichlet-multinomial counts.

    python -m tests.studies.overdispersion [--genes 500] [--model glm]

A 16 × 16 grid, ten counts a spot on average, concentration 5, nothing spatial, and no effect of three covariates: a
smooth one, an independent one, and one that goes with the spots' depth (the log of it, with noise). Depth is log-normal
between the spots, its log of standard deviation ``spread``. Table with seeds and commit:
tests/studies/results/overdispersion.csv; its rows were drawn by a simulator of the script's own, of the same truth with
other random numbers.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from anndata import AnnData
from scipy.stats import binom

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.likelihoods import BetaBinomial, DirichletMultinomial, Likelihood
from tests.studies.simulation import commit, save_row

CONCENTRATION, DEPTH = 5.0, 10.0
COVARIATES = ["smooth", "iid", "depth"]
QUIET = {"print_progress": False}
CASES: tuple[tuple[str, int, type[Likelihood] | None, float], ...] = (
    ("glm", 3, None, 0.0),
    ("glm", 3, None, 0.5),
    ("glm", 3, None, 1.0),
    ("glm", 3, DirichletMultinomial, 0.5),
    ("glm", 2, BetaBinomial, 0.5),
    ("glmm-full", 3, None, 0.5),
    ("glmm-full", 3, DirichletMultinomial, 0.5),
    ("glmm-full", 2, BetaBinomial, 0.5),
)


def overdispersed(*, n_genes: int, n_isos: int, n_spots: int, seed: int, spread: float = 0.0) -> AnnData:
    """Dirichlet-multinomial counts of equal expected usage on a grid."""
    noise, other = np.random.default_rng(seed).standard_normal((2, n_spots))
    adata = simulate_isoforms(
        n_spots=n_spots,
        n_genes=n_genes,
        n_isoforms=n_isos,
        covariates=tuple(COVARIATES[:2]),
        depth=DEPTH,
        sigma=0.0,
        intercept_scale=0.0,
        likelihood=DirichletMultinomial(CONCENTRATION),
        seed=seed,
        size_factors=np.exp(spread * noise - spread**2 / 2),
    )
    adata.obs["depth"] = noise + 0.5 * other
    return adata


def fitted(adata: AnnData, model_type: str, likelihood: Likelihood | None, *, with_design: bool) -> SplisosmGLMM:
    options = {} if model_type == "glm" else {"fitting_method": "marginal_newton", "var_fix_sigma": False}
    model = SplisosmGLMM(model_type, likelihood=likelihood, **options)
    model.setup_data(adata, design_mtx=COVARIATES)
    spatial = model_type == "glmm-full" and not with_design
    model.fit(batch_size=32, with_design_mtx=with_design, from_null=spatial, **QUIET)
    return model


def pvalues(adata: AnnData, model_type: str, likelihood: Likelihood | None) -> dict[str, np.ndarray]:
    """By test: of covariates ``(genes, 3)``, of space ``(genes,)``."""
    null = fitted(adata, model_type, likelihood, with_design=False)
    full = fitted(adata, model_type, likelihood, with_design=True)
    ask, found = {"return_results": True, **QUIET}, {}
    law = None if model_type == "glm" else "plugin"  # the variance alone is looked at
    for name, model in (("score", null), ("lrt", null), ("wald", full)):
        found[name] = model.test_differential_usage(name, law=law, **ask)["pvalue"]
    for name, model in (("score", null), ("wald", full)):
        pvalue = model.test_differential_usage(name, variance="model", law=law, **ask)["pvalue"]
        found[f"{name}, variance of the model"] = pvalue
    if model_type == "glmm-full":
        found |= {f"space {name}": null.test_spatial_variability(name, **ask)["pvalue"] for name in ("score", "llr")}
    return found


def main(n_genes: int, only: str | None) -> None:
    at = commit()
    for model_type, n_isos, kind, spread in CASES:
        if only not in (None, model_type):
            continue
        adata = overdispersed(n_genes=n_genes, n_isos=n_isos, n_spots=256, seed=n_isos, spread=spread)
        began = time.process_time()
        likelihood = None if kind is None else kind()
        name = "multinomial" if likelihood is None else likelihood.name
        for test, pvalue in pvalues(adata, model_type, likelihood).items():
            columns = {"": pvalue} if pvalue.ndim == 1 else dict(zip(COVARIATES, pvalue.T, strict=True))
            for covariate, column in columns.items():
                row = {"model": model_type, "likelihood": name, "isoforms": n_isos, "spread": spread}
                row |= {"test": test, "covariate": covariate or "none", "genes": int(np.isfinite(column).sum())}
                for level in (0.05, 0.01):
                    rejected = int((column < level).sum())
                    low, high = binom.ppf([0.005, 0.995], row["genes"], level)
                    row |= {f"size {level:g}": rejected / row["genes"], f"inside {level:g}": low <= rejected <= high}
                row |= {"CPU s": time.process_time() - began, "seed": n_isos, "commit": at}
                save_row("overdispersion", row, ["model", "likelihood", "isoforms", "spread", "test", "covariate"])
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--model", choices=["glm", "glmm-full"], help="only the rows of this model")
    given = parser.parse_args()
    main(given.genes, given.model)
