"""Laplace (hyper-parameters integrated over) against NUTS on the same Pyro model.

    python -m tests.studies.laplace_nuts [n_genes] [depth] [first_gene]

Simulated genes, N = 64 on a grid, three isoforms, one covariate; weak priors. Writes one row a gene, site and entry to
``results/laplace_nuts_<depth>_<first>.csv`` as genes finish, and prints a summary.
"""

import sys
import time

import pandas as pd
import torch

from pyrosplice import MultinomGLMM
from pyrosplice.models.penalised_complexity import weak_priors
from pyrosplice.posterior.comparison import compare_posteriors
from pyrosplice.posterior.nuts import NutsOptions
from tests.studies.posterior_calibration import SPACE, simulate
from tests.studies.simulation import RESULTS

NUTS = NutsOptions(warmup_steps=200)
N_DRAWS = 400


def fitted(n_genes: int, depth: float, seed: int = 1) -> MultinomGLMM:
    """Genes with σ = 0.7, θ = 0.7 and β = (0.5, −0.3), fitted by Laplace's marginal likelihood."""
    truth = {"sigma": 0.7, "theta_logit": 0.85, "beta": torch.tensor([[0.5, -0.3]], dtype=torch.float64)}
    counts, design, _ = simulate(n_genes, depth=depth, seed=seed, fixed=truth)
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, priors=weak_priors(SPACE))
    model.setup_data(counts, SPACE, design)
    model.fit()
    return model


def compare(model: MultinomGLMM, gene: int, *, n_draws: int = N_DRAWS, options: NutsOptions = NUTS) -> pd.DataFrame:
    """Both posteriors of one gene."""
    few = {"groups": (), "genes": [gene]}
    began = time.perf_counter()
    ours = model.posterior(num_samples=1000, hyper="integrate", **few)
    middle = time.perf_counter()
    theirs = model.posterior(num_samples=n_draws, method="nuts", nuts_options=options, **few)
    table = compare_posteriors(ours, theirs)
    seconds = {"seconds": middle - began, "seconds_nuts": time.perf_counter() - middle}
    return table.assign(divergent=int(theirs["sample_stats"].diverging.sum()), **seconds)


def main(n_genes: int = 20, depth: float = 20.0, first: int = 0) -> None:
    model, tables = fitted(n_genes, depth), []
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"laplace_nuts_{depth:g}_{first}.csv"
    for gene in range(first, n_genes):
        tables.append(compare(model, gene))
        pd.concat(tables).to_csv(path, index=False, float_format="%.4g")
        print(gene, tables[-1][["site", "shift", "sd_ratio", "pareto_k", "verdict"]].to_string(), flush=True)
    whole = pd.concat(tables)
    print(whole.groupby("site")[["shift", "sd_ratio", "distance"]].describe().T.to_string())


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, float, int), sys.argv[1:], strict=False)))
