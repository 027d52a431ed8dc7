"""The demo: the job of isoform usage on a tissue simulated from the model, so that estimates stand beside the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from anndata import AnnData

from pyrosplice._jobs.job_progress import Steps
from pyrosplice._jobs.results_folder import Conclusion, ResultsFolder
from pyrosplice._jobs.usage_figures import run_usage
from pyrosplice._jobs.usage_job import ISOFORM_EFFECT, UsageOptions
from pyrosplice.data import simulate_isoforms

SIMULATED_COVARIATES = ("smooth", "iid")


@dataclass(frozen=True, kw_only=True)
class DemoOptions(UsageOptions):
    """Size of the simulated tissue, beside how to fit it; with ``data``, the job of isoform usage and nothing else."""

    n_spots: int = 576
    n_genes: int = 80


def run_demo(options: DemoOptions, folder: ResultsFolder, steps: Steps) -> Conclusion:
    """Simulate, unless a file is given, and run the job of isoform usage."""
    if options.data is not None:
        return run_usage(options, folder, steps)
    adata = simulated_tissue(n_spots=options.n_spots, n_genes=options.n_genes, seed=options.seed)
    return run_usage(replace(options, covariates=SIMULATED_COVARIATES), folder, steps, adata)


def simulated_tissue(*, n_spots: int, n_genes: int, seed: int) -> AnnData:
    """Simulate tissue of known truth: θ cycles through 0, .3, .7, 1, σ through .5, .7, 1; half follow "smooth".

    Two covariates: "smooth" in space, and "iid", noise that moves no gene.
    """
    rng = np.random.default_rng(seed)
    theta = np.resize([0.0, 0.3, 0.7, 1.0], n_genes)
    follows = np.arange(n_genes) // 4 % 2 == 1
    sigma = np.resize(np.repeat([0.5, 0.7, 1.0], 8), n_genes)
    beta = np.zeros((n_genes, 2, 2))
    beta[follows, 0] = rng.choice([-0.5, 0.5], size=(int(follows.sum()), 2))
    adata = simulate_isoforms(
        n_spots=n_spots,
        n_genes=n_genes,
        sigma=sigma,
        theta=theta,
        beta=beta,
        covariates=SIMULATED_COVARIATES,
        seed=seed,
        isoform_effect=ISOFORM_EFFECT,
    )
    adata.var["gene_symbol"] = adata.var["gene_symbol"].astype("category")  # as in a file
    return adata
