"""Size of Wald, ratio and score tests beside donors where these are hard: one donor dominates, or counts are few.

    python -m tests.studies.effects_methods [--genes 1500] [--only "3 v 3"]

Negative-binomial counts of dispersion .5, no effect of the condition, donors log-normal with the standard deviation in
the setting's name. "one dominates": 360 cells of one of 12 donors, one of each other, mean 2. "few counts": about 100
cells a donor, means of .005 to .1 (.003 to .06 with 12 donors), so that one condition of many genes has no count;
``separated`` is their share, ``separated and at 0.05`` that of those among all genes that are found. Genes have three
counts or more. The table goes to tests/studies/results/effects_methods.csv.
"""

from __future__ import annotations

import argparse
import zlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice import ExpressionGLM
from pyrosplice.reasons import Reason
from tests.studies.effects_size import DISPERSION, LEVELS
from tests.studies.simulation import commit, save_row

Array = NDArray[np.float64]
FEWEST = 3  # counts of a gene
N_LAYOUTS = 5
METHODS = ("wald", "lrt", "score")
ONE = (360, *[1] * 11)
SETTINGS: dict[str, tuple[tuple[int, ...] | int, float, tuple[float, float]]] = {
    "one dominates, 0.4": (ONE, 0.4, (2.0, 2.0)),
    "one dominates, 0.8": (ONE, 0.8, (2.0, 2.0)),
    "3 v 3, few counts, 0": (6, 0.0, (0.005, 0.1)),
    "3 v 3, few counts, 0.4": (6, 0.4, (0.005, 0.1)),
    "3 v 3, few counts, 0.8": (6, 0.8, (0.005, 0.1)),
    "4 v 4, few counts, 0.4": (8, 0.4, (0.005, 0.1)),
    "6 v 6, few counts, 0.3": (12, 0.3, (0.003, 0.06)),
    "6 v 6, few counts, 0.8": (12, 0.8, (0.003, 0.06)),
}


def sample(name: str, n_genes: int, rng: np.random.Generator) -> tuple[pd.DataFrame, Array]:
    """Cells, and counts ``(N, G)`` of genes that have enough."""
    sizes, sd, mean = SETTINGS[name]
    if isinstance(sizes, int):
        sizes = tuple(np.maximum(4, rng.poisson(100 * rng.gamma(4, 0.25, sizes))).tolist())
    donor = np.repeat(np.arange(len(sizes)), sizes)
    eta = rng.uniform(*np.log(mean), n_genes) + rng.normal(0, sd, (len(sizes), n_genes))[donor]
    counts = rng.poisson(np.exp(eta) * rng.gamma(1 / DISPERSION, DISPERSION, eta.shape)).astype(float)
    cells = pd.DataFrame({"donor": donor.astype(str), "condition": np.where(donor % 2, "b", "a")})
    return cells, counts[:, counts.sum(0) >= FEWEST]


def pvalues(name: str, n_genes: int, seed: int) -> tuple[dict[str, Array], NDArray[np.bool_]]:
    """P-values by method, and which genes are separated, of several layouts."""
    parts: dict[str, list[Array]] = {method: [] for method in METHODS}
    separated = []
    for layout in range(N_LAYOUTS):
        cells, counts = sample(name, n_genes // N_LAYOUTS, np.random.default_rng((seed, layout)))
        glm = ExpressionGLM("~ condition + (1 | donor)").fit(counts, sample_description=cells)
        for method in METHODS:
            parts[method].append(glm.test(factor="condition", method=method).pval)
        separated.append(glm.results.reason == Reason.SEPARATED.value)
    return {method: np.concatenate(values) for method, values in parts.items()}, np.concatenate(separated)


def main(n_genes: int, only: str) -> None:
    at = commit()
    for name in SETTINGS:
        if only not in name:
            continue
        seed = zlib.crc32(name.encode())
        found, separated = pvalues(name, n_genes, seed)
        for method, pvalue in found.items():
            row: dict[str, object] = {"setting": name, "method": method, "genes": len(pvalue)}
            row |= {"tested": int(np.isfinite(pvalue).sum()), "separated": separated.mean()}
            row |= {f"at {level:g}": (pvalue[np.isfinite(pvalue)] < level).mean() for level in LEVELS}
            row |= {f"separated and at {level:g}": (separated & (pvalue < level)).mean() for level in LEVELS}
            save_row("effects_methods", row | {"seed": seed, "commit": at}, ["setting", "method"])
            print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=1500)
    parser.add_argument("--only", default="", help="only settings whose name holds this")
    given = parser.parse_args()
    main(given.genes, given.only)
