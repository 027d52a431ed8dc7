"""Bias of σ² at two counts a spot: Laplace's marginal optimum, and :meth:`MultinomGLMM.refine` from there.

    python -m tests.studies.importance_bias [--genes 100]

Data sets on a 16 × 16 grid with σ² = 1. Table with seeds and commit: tests/studies/results/importance_bias.csv.
"""

from __future__ import annotations

import argparse
import time
import zlib

import torch
from torch import Tensor

from pyrosplice import MultinomGLMM
from pyrosplice.glmm._importance import RELIABLE
from tests.studies.simulation import commit, grid, save_row, simulate_counts

CELLS = ((2, 0.0), (2, 0.5), (2, 0.9), (3, 0.0), (3, 0.5), (3, 0.9))  # isoforms, θ
DEPTH = 2.0
_BATCH = 50


def estimates(
    *, n_genes: int, n_isos: int, theta: float, seed: int, side: int = 16, n_draws: int = 400
) -> dict[str, Tensor]:
    """``laplace`` and ``refined``: σ², θ of each gene ``(G, 2)``; ``converged`` and ``pareto_k`` of the latter."""
    covariance = grid(side)
    counts = simulate_counts(covariance, n_genes=n_genes, depth=DEPTH, sigma=1.0, theta=theta, seed=seed, n_isos=n_isos)
    parts: list[list[Tensor]] = []
    for some in counts.split(_BATCH):
        model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
        model.setup_data(some, corr_sp=covariance)
        model.fit(quiet=True)
        laplace = torch.cat([model.var_total(), model.var_sp_prop()], 1).detach()
        pareto_k = model.refine(n_draws).pareto_k
        refined = torch.cat([model.var_total(), model.var_sp_prop()], 1).detach()
        done = torch.tensor([reason != "not_refined" for reason in model.logger.reason])
        parts.append([laplace, refined, done, pareto_k])
    whole = (torch.cat(part) for part in zip(*parts, strict=True))
    return dict(zip(("laplace", "refined", "converged", "pareto_k"), whole, strict=True))


def bias_row(found: dict[str, Tensor]) -> dict[str, float]:
    """Biases of σ² over all data sets (those that could not be refined with Laplace's estimate), and of θ."""
    row: dict[str, float] = {"genes": len(found["laplace"])}
    for name in ("laplace", "refined"):
        sigma2, theta = found[name].unbind(1)
        row[f"{name} bias"] = float(sigma2.mean()) - 1
        row[f"{name} SE"] = float(sigma2.std() / len(sigma2) ** 0.5)
        row[f"{name} median"] = float(sigma2.median())
        row[f"{name} theta"] = float(theta.mean())
    row["share of Laplace's bias"] = abs(row["refined bias"] / row["laplace bias"])
    row["not refined"] = int((~found["converged"]).sum())
    row["k above 0.7"] = int((found["pareto_k"] > RELIABLE).sum())
    return row


def main(n_genes: int, n_draws: int) -> None:
    at = commit()
    for n_isos, theta in CELLS:
        seed, began = zlib.crc32(f"importance {n_isos} {theta}".encode()) % 2**31, time.process_time()
        found = estimates(n_genes=n_genes, n_isos=n_isos, theta=theta, seed=seed, n_draws=n_draws)
        row = {"isoforms": n_isos, "theta": theta, "depth": DEPTH, "draws": n_draws, **bias_row(found)}
        row |= {"CPU s": time.process_time() - began, "seed": seed, "commit": at}
        save_row("importance_bias", row, ["isoforms", "theta", "depth", "draws"])
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--draws", type=int, default=400)
    given = parser.parse_args()
    main(given.genes, given.draws)
