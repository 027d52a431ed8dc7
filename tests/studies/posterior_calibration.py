"""Simulation-based calibration of the isoform GLMM's posterior, hyper-parameters integrated over.

    python -m tests.studies.posterior_calibration [n_simulations] [depth] [method]

Parameters are drawn from the prior, counts from the model, posterior draws from the fit; the rank of each true value
among its draws is uniform if the posterior is right (Talts et al. 2018). Writes
``results/posterior_calibration_<depth>_<method>.csv``: χ² p-values of uniformity in 20 bins.
"""

import sys
import time

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from scipy.stats import chisquare
from torch import Tensor

from pyrosplice import MultinomGLMM
from pyrosplice.likelihoods import Likelihood, Multinomial
from pyrosplice.models.distributions import EigenCovariance, SpatialEffect
from pyrosplice.models.penalised_complexity import weak_priors
from tests.studies.simulation import RESULTS, commit, grid

SPACE = grid(8)
N_DRAWS, BINS, BATCH = 99, 20, 50


def priors(likelihood: Likelihood | None = None) -> dict:
    """Weak priors, with intercepts that keep every isoform in sight."""
    return {**weak_priors(SPACE, likelihood), "bias_eta": dist.Normal(torch.tensor(0.0).double(), torch.tensor(1.0))}


def simulate(
    n_genes: int, *, depth: float, seed: int, fixed: dict | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Counts ``(G, 64, 3)``, design ``(64, 1)`` and the values of the sites that drew them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        design = torch.randn(64, 1, dtype=torch.float64)
        shapes = {"beta": (n_genes, 1, 2), "bias_eta": (n_genes, 2), "sigma": (n_genes, 1), "theta_logit": (n_genes, 1)}
        truth = {name: priors()[name].expand(shape).sample().double() for name, shape in shapes.items()}
        for name, value in (fixed or {}).items():
            truth[name] = torch.as_tensor(value, dtype=torch.float64).expand(shapes[name])
        covariance = EigenCovariance.from_dense(SPACE.dense())
        truth["nu"] = SpatialEffect(covariance, truth["sigma"], truth["theta_logit"], 2).rsample()
        eta = design @ truth["beta"] + truth["bias_eta"].unsqueeze(1) + truth["nu"]
        totals = (
            torch.poisson(torch.full((n_genes, 64), float(depth), dtype=torch.float64))
            if depth < 5
            else (torch.full((n_genes, 64), float(depth), dtype=torch.float64))
        )
        counts = Multinomial().sample(totals, eta)
    return counts, design, truth


def ranks(n_simulations: int, *, depth: float, method: str, seed: int = 0) -> pd.DataFrame:
    """Rank of the truth among the draws (0 to 99), one row a simulation."""
    counts, design, truth = simulate(n_simulations, depth=depth, seed=seed)
    rows = []
    for genes in torch.arange(n_simulations).split(BATCH):
        model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, priors=priors())
        model.setup_data(counts[genes], SPACE, design)
        model.fit()
        tree = model.posterior(num_samples=N_DRAWS, method=method, hyper="integrate", groups=(), seed=int(genes[0]))
        found = {}
        for site in ("beta", "bias_eta", "sigma", "theta_logit"):
            draws = torch.from_numpy(tree["posterior"][site].values[0]).flatten(2)
            below = (draws < truth[site][genes].flatten(1)).sum(0)
            found |= {f"{site}_{entry}": below[:, entry].numpy() for entry in range(below.shape[1])}
        found["pareto_k"] = tree["sample_stats"].pareto_k.values[0, 0]
        rows.append(pd.DataFrame(found))
        print(len(rows) * BATCH, flush=True)
    return pd.concat(rows, ignore_index=True)


def uniformity(table: pd.DataFrame) -> pd.Series:
    """χ² p-value of each column of ranks."""
    edges = np.linspace(0, N_DRAWS + 1, BINS + 1)
    columns = [name for name in table if name != "pareto_k"]
    return pd.Series({name: chisquare(np.histogram(table[name], edges)[0]).pvalue for name in columns})


def main(n_simulations: int = 500, depth: float = 20.0, method: str = "laplace") -> None:
    began = time.perf_counter()
    table = ranks(n_simulations, depth=depth, method=method)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"posterior_calibration_{depth:g}_{method}.csv"
    summary = uniformity(table).rename("chi2_p").to_frame().assign(simulations=n_simulations, commit=commit())
    summary.assign(mean_rank=table.mean() / N_DRAWS).to_csv(path, float_format="%.4g")
    print(uniformity(table).to_string())
    print(table.describe().to_string(), f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, float, str), sys.argv[1:], strict=False)))
