"""Laplace (hyper-parameters integrated over) against NUTS on the same Pyro model.

    python -m tests.studies.laplace_nuts [--depth 20] [--genes 20] [--first 0]

Simulated genes, N = 64 on a grid, three isoforms, one covariate; weak priors; 8,000 Laplace draws beside two chains of
NUTS. Writes one row a gene, site and entry to ``results/laplace_nuts_<depth>.csv`` as genes finish, and prints how many
agree, differ and are undecided. The tables there were drawn by a simulator of the script's own, of the same truth with
other random numbers.
"""

import argparse
import time
from functools import partial

import numpy as np
import pandas as pd

from pyrosplice import MultinomGLMM
from pyrosplice.data import simulate_counts, simulate_totals
from pyrosplice.posterior import compare_posteriors
from pyrosplice.posterior._nuts import NutsOptions
from tests.studies.posterior_calibration import FAMILIES, priors
from tests.studies.simulation import RESULTS, commit, grid

NUTS = NutsOptions(warmup_steps=150, num_chains=2)
N_DRAWS, N_LAPLACE, SIDE, SEED = 500, 8000, 8, 1
FAMILY, BETA = FAMILIES["multinomial"], (0.5, -0.3)


def model_of(n_genes: int, depth: float, *, seed: int = SEED) -> MultinomGLMM:
    """Genes with σ = θ = .7 and β = (.5, −.3), fitted by Laplace's marginal likelihood; five molecules a spot and more
    are as many at every spot, fewer are Poisson.
    """
    space, rng = grid(SIDE), np.random.default_rng(seed)
    design, bias = rng.standard_normal((SIDE**2, 1)), rng.standard_normal((n_genes, len(BETA)))
    seed_of_genes = int(rng.integers(2**31))  # so that their noise is not the covariate
    counts = simulate_counts(
        space,
        n_genes=n_genes,
        sigma=0.7,
        theta=0.7,
        bias=bias,
        effect=design * BETA,
        seed=seed_of_genes,
        totals=simulate_totals(space, n_genes=n_genes, depth=depth, exact=depth >= 5, seed=seed_of_genes),
    )
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, priors=priors(space, FAMILY))
    model.setup_data(counts, space, design)
    model.fit()
    return model


def compare(model: MultinomGLMM, gene: int, *, n_draws: int = N_DRAWS, options: NutsOptions = NUTS) -> pd.DataFrame:
    """Both posteriors of one gene."""
    few = {"groups": (), "genes": [gene]}
    began = time.perf_counter()
    ours = model.posterior(num_samples=N_LAPLACE, hyper="integrate", **few)
    middle = time.perf_counter()
    theirs = model.posterior(num_samples=n_draws, method="nuts", nuts_options=options, **few)
    table = compare_posteriors(ours, theirs)
    seconds = {"seconds": middle - began, "seconds_nuts": time.perf_counter() - middle}
    return table.assign(divergent=int(theirs["sample_stats"].diverging.sum()), **seconds)


def _count(outcomes: pd.Series, *, name: str) -> int:
    return int(outcomes.eq(name).sum())


def report(table: pd.DataFrame) -> None:
    """Print, a site, the largest differences, how many agree, differ or are undecided, and NUTS's own convergence."""
    outcomes = table.assign(outcome=table["verdict"].str.extract("^(agrees|differs|cannot tell)")[0])
    by_site = outcomes.assign(size=table["shift"].abs()).groupby("site")
    summary = by_site.agg(
        entries=("gene", "size"),
        **{name: ("outcome", partial(_count, name=name)) for name in ("agrees", "differs", "cannot tell")},
        mean_shift=("shift", "mean"),
        largest_shift=("size", "max"),
        least_sd_ratio=("sd_ratio", "min"),
        largest_sd_ratio=("sd_ratio", "max"),
        least_ess=("ess_reference", "min"),
        largest_r_hat=("r_hat_reference", "max"),
    )
    print(summary.round(3).to_string())
    genes = table.drop_duplicates("gene")
    print(
        f"{len(genes)} genes; k̂ > 0.7 in {int((genes['pareto_k'] > 0.7).sum())}; {genes['divergent'].sum()} divergent"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=float, default=20.0)
    parser.add_argument("--genes", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first gene, to go on where a run stopped")
    given = parser.parse_args()
    model = model_of(given.genes, given.depth)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"laplace_nuts_{given.depth:g}.csv"
    tables = [pd.read_csv(path).query(f"gene < {given.first}")] if given.first else []
    for gene in range(given.first, given.genes):
        tables.append(compare(model, gene).assign(seed=SEED, commit=commit()))
        pd.concat(tables).to_csv(path, index=False, float_format="%.4g")
        print(tables[-1][["gene", "site", "shift", "sd_ratio", "ess_reference", "pareto_k", "verdict"]].to_string())
    report(pd.concat(tables))


if __name__ == "__main__":
    main()
