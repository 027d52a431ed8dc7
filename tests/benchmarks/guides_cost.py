"""Processor seconds of one marginal fit by the estimator, by the guide's sparse engine, and by the guide's generic way.

    python -m tests.benchmarks.guides_cost [--spots 64 256 1024 4096] [--repeats 3] [--generic-up-to 64]

8 genes of three isoforms, one covariate, σ and θ free; the least of a few repeats, and ratios to the estimator in the
same run. All three have the same Pyro model, and their objectives are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyrosplice import MultinomGLMM
from pyrosplice.glmm import MultinomialGLMM
from pyrosplice.guides import AutoMarginalLaplace
from tests.studies.simulation import grid, simulate_counts

GENES = 8


def fastest(task: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Least processor seconds, and what came out."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        objective = task()
        spent.append(time.process_time() - start)
    return min(spent), objective


def compare(side: int, repeats: int, generic: bool) -> list[object]:
    """One row of the table."""
    space = grid(side)
    counts = simulate_counts(space, n_genes=GENES, depth=5, sigma=0.7, theta=0.7, seed=0)
    design = torch.randn(side**2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def estimator() -> Tensor:
        model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
        model.setup_data(counts, space, design)
        model.fit(quiet=True)
        return model().detach()

    def guide(path: str) -> Tensor:
        model = MultinomialGLMM(counts, design, space)
        return AutoMarginalLaplace(model, marginalize=["nu"]).fit(path=path).objective

    base, wanted = fastest(estimator, repeats)
    row: list[object] = [side**2, base]
    for path in ("engine", "generic") if generic else ("engine",):
        spent, found = fastest(lambda path=path: guide(path), repeats if path == "engine" else 1)
        row += [spent, spent / base, float((found - wanted).abs().max())]
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=[64, 256, 1024, 4096], help="squares of whole numbers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--generic-up-to", type=int, default=64, help="most spots at which the generic way is timed")
    given = parser.parse_args()
    compare(4, 1, generic=False)  # compiles
    titles = ("spots", "estimator s", "engine s", "ratio", "difference", "generic s", "ratio", "difference")
    print("| " + " | ".join(titles) + " |\n|" + " --- |" * len(titles))
    for spots in given.spots:
        row = compare(round(spots**0.5), given.repeats, generic=spots <= given.generic_up_to)
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in row]
        print("| " + " | ".join([*cells, *[""] * (len(titles) - len(cells))]) + " |", flush=True)
