"""Simulation-based calibration of posteriors, hyper-parameters integrated over, for every family.

    python -m tests.studies.posterior_calibration FAMILY [--simulations 500] [--seed 0] [--method laplace]

Parameters are drawn from the prior, counts from the model, posterior draws from the fit; the rank of each true value
among its draws is uniform if the posterior is right (Talts et al. 2018). Isoform models: 36 spots on a grid, one
covariate, weak priors, 50 molecules a spot or an exposure of 20, with and without the random effect. Then the
expression GLM (60 cells) and mixtures (40 cells, by Gibbs). Puts rows into ``results/posterior_calibration.csv``: χ²
p-value of uniformity in 20 bins of each site and entry, mean rank, and the share of simulations with k̂ above 0.7. Rows
of expression and mixtures were drawn by simulators of the script's own, of the same truths with other random numbers.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosplice import ExpressionGLM, GaussianMixture, GaussianMixtureModel
from pyrosplice._mixture.gaussian_mixture import MixtureParameters, mixture_sites
from pyrosplice._mixture.mixture_prior import MixturePrior
from pyrosplice.data import simulate_expression
from pyrosplice.likelihoods import (
    BetaBinomial,
    Binomial,
    DirichletMultinomial,
    Likelihood,
    Multinomial,
    NegativeBinomial,
    Poisson,
)
from pyrosplice.priors._penalized_complexity import weak_priors
from pyrosplice.spatial.car import CarCovariance
from pyrosplice.testing import calibrate
from pyrosplice.testing._rank_statistics import chi2_pvalue
from tests.studies.simulation import commit, grid, save_row

SIDE, DEPTH, EXPOSURE = 6, 50.0, 20.0
N_DRAWS, BINS, BATCH = 99, 20, 50
SWEEPS = 100  # of Gibbs before the one draw of each chain
SITES = ("beta", "bias_eta", "sigma", "theta_logit")


@dataclass(frozen=True)
class Family:
    """What is calibrated: a likelihood, its number of isoforms, and whether there is a spatial random effect."""

    likelihood: Likelihood
    n_isos: int = 3
    mixed: bool = True


def _exposure() -> Tensor:
    return torch.full((SIDE**2,), EXPOSURE, dtype=torch.float64)


FAMILIES = {
    "multinomial": Family(Multinomial()),
    "dirichlet-multinomial": Family(DirichletMultinomial()),
    "binomial": Family(Binomial(), 2),
    "beta-binomial": Family(BetaBinomial(), 2),
    "poisson": Family(Poisson(_exposure()), 1),
    "negative-binomial": Family(NegativeBinomial(exposure=_exposure()), 1),
    "glm-multinomial": Family(Multinomial(), mixed=False),
    "glm-dirichlet-multinomial": Family(DirichletMultinomial(), mixed=False),
    "glm-negative-binomial": Family(NegativeBinomial(exposure=_exposure()), 1, mixed=False),
}


def priors(space: CarCovariance, family: Family) -> dict:
    """Weak priors, with intercepts that keep every isoform in sight."""
    whole = weak_priors(space, family.likelihood)
    whole["bias_eta"] = dist.Normal(torch.tensor(0.0).double(), torch.tensor(1.0))
    return {name: prior for name, prior in whole.items() if family.mixed or name not in ("sigma", "theta_logit")}


def ranks(family: Family, n_simulations: int, *, method: str, seed: int, side: int = SIDE) -> pd.DataFrame:
    """Rank of the truth among the draws (0 to 99), one row a simulation, and k̂."""
    space = grid(side)
    found = calibrate(
        family.likelihood,
        priors(space, family),
        (side**2, family.n_isos),
        totals=DEPTH if family.likelihood.conditional else None,
        design=1,
        covariance=space if family.mixed else None,
        n_simulations=n_simulations,
        n_draws=N_DRAWS,
        method=method,
        seed=seed,
        batch_size=BATCH,
        print_progress=False,
    )
    scalar = (*SITES, *family.likelihood.free)
    return found.ranks.rename(columns={name: f"{name}_0" for name in scalar}).assign(pareto_k=found.pareto_k)


def expression_ranks(n_simulations: int, *, method: str, seed: int, n_cells: int = 60) -> pd.DataFrame:
    """Ranks for the expression GLM: two groups of cells, means about 3, dispersions about 0.4."""
    rng = np.random.default_rng(seed)
    group = np.arange(n_cells) % 2
    location, scale = rng.normal([1.0, 0.0], [1.0, 0.5], (n_simulations, 2)), rng.normal(1.0, 1.0, n_simulations)
    mean = np.exp(location[:, 0] + group[:, None] * location[:, 1])
    cells = pd.DataFrame({"group": group.astype(str)})
    adata = simulate_expression(
        cells, n_genes=n_simulations, mean=mean, dispersion=np.exp(-scale), seed=int(rng.integers(2**31))
    )
    glm = ExpressionGLM("~1+group").fit(adata)
    own = {
        "location": dist.Normal(torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 0.5]).double()),
        "scale": dist.Normal(torch.tensor(1.0).double(), torch.tensor(1.0).double()),
    }
    tree = glm.posterior(num_samples=N_DRAWS, method=method, priors=own, groups=(), seed=seed)
    draws = tree["posterior"]
    found = {f"location_{k}": (draws.location.values[..., k] < location[:, k]).sum((0, 1)) for k in range(2)}
    found["scale_0"] = (draws.scale.values[..., 0] < scale).sum((0, 1))
    return pd.DataFrame({**found, "pareto_k": tree["sample_stats"].pareto_k.values[0, 0]})


def mixture_ranks(n_simulations: int, *, seed: int, n_cells: int = 40) -> pd.DataFrame:
    """Ranks for a mixture of two in two dimensions, by Gibbs: quantities that do not depend on labels."""
    eye = torch.eye(2, dtype=torch.float64)
    prior = MixturePrior(
        concentration=2.0, mean=eye[0] * 0, mean_strength=0.1, covariance_dof=6.0, covariance_scale=3.0 * eye
    )
    rows = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for simulation in range(n_simulations):
            weights, means, covariances = mixture_sites(eye[:1], 2, "full", prior)
            mixture = MixtureParameters(weights, means, covariances, "full")
            cells = GaussianMixtureModel.from_parameters(mixture, torch.float64).sample(n_cells)
            model = GaussianMixture(2, covariance_type="full", prior=prior, random_state=0).fit(cells)
            drawn = model.posterior(
                cells, num_samples=1, num_chains=N_DRAWS, warmup_steps=SWEEPS, groups=(), seed=simulation
            )["posterior"]
            sites = [torch.from_numpy(drawn[name].values[:, 0].copy()) for name in ("weights", "means", "covariances")]
            truth = _label_free(weights, means, covariances)
            draws = _label_free(*sites)
            rows.append({name: int((draws[name] < value).sum()) for name, value in truth.items()})
    return pd.DataFrame(rows).assign(pareto_k=np.nan)


def _label_free(weights: Tensor, means: Tensor, covariances: Tensor) -> dict[str, Tensor]:
    """Largest weight, mean of all cells along each feature, total variance within components."""
    center = (weights.unsqueeze(-1) * means).sum(-2)
    within = (weights * torch.diagonal(covariances, dim1=-2, dim2=-1).sum(-1)).sum(-1)
    return {"largest_weight": weights.amax(-1), "mean_0": center[..., 0], "mean_1": center[..., 1], "within": within}


def simulated_ranks(family: str, n_simulations: int, *, method: str, seed: int) -> pd.DataFrame:
    """Ranks of any family by its name."""
    if family == "expression":
        return expression_ranks(n_simulations, method=method, seed=seed)
    if family == "mixture":
        return mixture_ranks(n_simulations, seed=seed)
    return ranks(FAMILIES[family], n_simulations, method=method, seed=seed)


def uniformity(table: pd.DataFrame, *, bins: int = BINS) -> pd.Series:
    """χ² p-value of each column of ranks."""
    columns = [name for name in table if name != "pareto_k"]
    return pd.Series({name: chi2_pvalue(table[name].to_numpy().astype(int), N_DRAWS, bins=bins) for name in columns})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=(*FAMILIES, "expression", "mixture"))
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=("laplace", "importance"), default="laplace")
    given = parser.parse_args()
    began, clock = time.perf_counter(), time.process_time()
    table = simulated_ranks(given.family, given.simulations, method=given.method, seed=given.seed)
    unreliable = float((table["pareto_k"] > 0.7).mean())
    method = "gibbs" if given.family == "mixture" else given.method
    about = {"family": given.family, "method": method, "simulations": given.simulations, "seed": given.seed}
    for entry, p in uniformity(table).items():
        row = {**about, "entry": entry, "chi2_p": p, "mean_rank": table[entry].mean() / N_DRAWS}
        save_row(
            "posterior_calibration",
            {**row, "unreliable": unreliable, "commit": commit()},
            ("family", "method", "simulations", "seed", "entry"),
        )
        print(row)
    print(f"k̂ > 0.7: {unreliable:.1%}; {time.perf_counter() - began:.0f} s, CPU {time.process_time() - clock:.0f} s")


if __name__ == "__main__":
    main()
