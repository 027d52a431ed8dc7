"""Seconds and memory of posterior draws of a batch of genes by the Laplace guide.

python -m tests.benchmarks.posterior_draws [n_genes ...]
"""

import resource
import sys
import time

import torch

from pyrosplice import MultinomGLMM
from pyrosplice.posterior._draw_options import DrawOptions
from pyrosplice.posterior._sampling import sample_posterior
from tests.studies.simulation import grid, simulate_counts


def main(sizes: list[int]) -> None:
    space = grid(16)
    print(f"{'genes':>6} {'draws':>6} {'seconds':>8} {'ms a gene':>10} {'peak GB':>8}")
    for n_genes in sizes:
        counts = simulate_counts(space, n_genes=n_genes, depth=5.0, sigma=0.7, theta=0.7, seed=0)
        model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
        model.setup_data(counts, space)
        model.update_params_from_dict(
            {"sigma": torch.full((n_genes, 1), 0.7), "theta_logit": torch.full((n_genes, 1), 0.8)}
        )
        sample_posterior(model.posterior_problem(), DrawOptions(num_samples=1), torch.arange(8))  # compiles
        began, cpu = time.perf_counter(), time.process_time()
        sample_posterior(model.posterior_problem(), DrawOptions(num_samples=100), torch.arange(n_genes))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{n_genes:6d} {100:6d} {seconds:8.1f} {1e3 * seconds / n_genes:10.1f} {peak:8.2f}  (CPU {cpu:.1f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main([int(value) for value in sys.argv[1:]] or [125, 250, 500, 1000])
