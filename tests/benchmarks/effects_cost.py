"""Processor milliseconds a gene of models with a list of effects, beside glmmTMB on a few of the same genes.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.effects_cost [--peer Rscript] [--repeats 3] [--only donors]

A fit is all that a person waits for: sorting the cells, merging equal rows, the search and its summaries. The least of
a few repeats; ``df`` is Satterthwaite's degrees of freedom of one coefficient, on top. glmmTMB fits the same restricted
likelihood; it has no field on a graph.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.data import simulate_counts
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import EffectsFit, fit_effects
from pyrosplice.glmm._arrow.satterthwaite import covariance_law
from pyrosplice.likelihoods import Multinomial, NegativeBinomial
from pyrosplice.spatial._sections import section_graph
from pyrosplice.spatial.car import CarCovariance
from tests.glmm.arrow.reference.blocks import group_block

Result = TypeVar("Result")
COLUMNS = [
    "observations",
    "groups",
    "fixed",
    "random",
    "ms",
    "df ms",
    "target",
    "ended well",
    "glmmTMB ms",
    "nats off it",
]
N_GENES_PEER = 2
PEER = """
suppressMessages(library(glmmTMB)); d <- read.csv("{csv}")
d$donor <- factor(d$donor); d$batch <- factor(d$batch)
for (y in grep("^y", names(d), value = TRUE)) {{
  f <- as.formula(paste(y, "~ {fixed} +", "{random}"))
  s <- system.time(m <- suppressWarnings(glmmTMB(f, family = nbinom2, data = d, REML = TRUE)))
  cat(sum(s[1:2]), format(-m$fit$objective, digits = 12), "\\n")
}}
"""


@dataclass(frozen=True)
class Donors:
    """Counts of single cells of many donors, a condition between or within them."""

    n_cells: int
    random: str
    target: float
    n_donors: int = 40
    continuous: bool = True
    within: bool = False
    n_genes: int = 64

    @property
    def fixed(self) -> str:
        return "condition + x" if self.continuous else "condition"

    def table(self, rng: np.random.Generator) -> pd.DataFrame:
        donor = rng.integers(0, self.n_donors, self.n_cells)
        condition = rng.integers(0, 2, self.n_cells) if self.within else donor % 2
        batch, x = rng.integers(0, 4, self.n_cells), rng.normal(size=self.n_cells)
        return pd.DataFrame({"donor": donor, "batch": batch, "condition": condition, "x": x})

    def counts(self, table: pd.DataFrame, rng: np.random.Generator) -> NDArray[np.float64]:
        """Genes of mean .05 to .5, dispersion .5, donors' sd .2."""
        mean = rng.uniform(0.05, 0.5, self.n_genes)[:, None]
        donor = rng.normal(0, 0.2, (self.n_genes, self.n_donors))[:, table["donor"]]
        return rng.poisson(mean * np.exp(donor) * rng.gamma(2, 0.5, donor.shape)).astype(float)

    def problem(self, table: pd.DataFrame, counts: NDArray[np.float64]) -> EffectsProblem:
        one = np.ones(len(table))
        condition, x = table["condition"].to_numpy(float), table["x"].to_numpy()
        slope = np.column_stack([one, condition]) if "condition" in self.random else None
        groups = [group_block("donor", table["donor"], slope)]
        if "batch" in self.random:
            groups.append(group_block("batch", table["batch"]))
        design = np.column_stack([one, condition, x] if self.continuous else [one, condition])
        return EffectsProblem(torch.as_tensor(counts)[..., None], design, NegativeBinomial(), groups=tuple(groups))


CELLS = (
    Donors(10_000, "(1 | donor)", 1.5, continuous=False),
    Donors(10_000, "(1 | donor)", 6.0),
    Donors(10_000, "(1 + condition | donor)", 10.0, within=True),
    Donors(10_000, "(1 | donor) + (1 | batch)", 15.0),
    Donors(40_000, "(1 | donor)", 20.0),
    Donors(10_000, "(1 | donor)", math.nan, n_donors=400),
)
SPATIAL = (("expression", 80.0), ("usage", 120.0))
N_SECTIONS, SIDE, N_GENES_SPATIAL = 4, 32, 16


def spatial_problem(kind: str) -> EffectsProblem:
    """Four sections of 1,024 spots, a condition between them: counts of genes, or of their three isoforms."""
    rng = np.random.default_rng(0)
    places = np.tile(np.stack(np.divmod(np.arange(SIDE**2), SIDE), 1).astype(float), (N_SECTIONS, 1))
    section = np.repeat(np.arange(N_SECTIONS), SIDE**2)
    covariance = CarCovariance(section_graph(places, section, k_neighbors=4), rho=0.99)
    between = rng.normal(0, 0.3, (N_GENES_SPATIAL, N_SECTIONS))[:, section]
    if kind == "usage":
        ask = {"n_genes": N_GENES_SPATIAL, "depth": 5.0, "sigma": 0.5, "theta": 1.0, "seed": 0}
        counts = simulate_counts(covariance, effect=between[..., None].repeat(2, -1), **ask)
    else:
        field = covariance.sample(N_GENES_SPATIAL, torch.Generator().manual_seed(0)).numpy()
        mean = 2.0 * np.exp(between + 0.5 * field)
        counts = torch.as_tensor(rng.poisson(mean * rng.gamma(3, 1 / 3, mean.shape)).astype(float))[..., None]
    return EffectsProblem(
        counts.double(),
        np.column_stack([np.ones(len(section)), section % 2]),
        Multinomial() if kind == "usage" else NegativeBinomial(),
        groups=(group_block("section", section),),
        space=SparseSolver(covariance.precision),
    )


def cost(problem: EffectsProblem, repeats: int) -> tuple[float, float, EffectsFit]:
    """Processor milliseconds a gene of a fit and of its degrees of freedom."""
    per_gene = 1e3 / len(problem.counts)
    fits, fit = timed(lambda: fit_effects(problem), repeats)
    condition = torch.eye(fit.coefficients[0].numel(), dtype=torch.float64)[fit.coefficients.shape[2], None]
    laws, _ = timed(lambda: covariance_law(problem, fit).df(condition), repeats)
    return per_gene * fits, per_gene * laws, fit


def timed(task: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    least = math.inf
    for _ in range(repeats):
        start = time.process_time()
        found = task()
        least = min(least, time.process_time() - start)
    return least, found


def peer_cost(rscript: str, case: Donors, table: pd.DataFrame, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Milliseconds and log-likelihoods of the first genes in glmmTMB, ``(genes, 2)``."""
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "cells.csv"
        genes = {f"y{g}": counts[g] for g in range(N_GENES_PEER)}
        table.assign(**genes).to_csv(csv, index=False)
        script = PEER.format(csv=csv, fixed=case.fixed, random=case.random)
        done = subprocess.run([rscript, "-e", script], capture_output=True, text=True, check=True)
    found = np.array([line.split() for line in done.stdout.splitlines()], float)
    return found * [1e3, 1.0]


def shown(row: list[object]) -> None:
    cells = [f"{x:.3g}" if isinstance(x, float) else str(x).replace("|", r"\|") for x in row]
    print("| " + " | ".join(cells) + " |", flush=True)


def main(rscript: str | None, repeats: int, only: str | None) -> None:
    shown(COLUMNS)
    shown(["---"] * len(COLUMNS))
    for case in CELLS if only != "space" else ():
        rng = np.random.default_rng(0)
        table = case.table(rng)
        counts = case.counts(table, rng)
        problem = case.problem(table, counts)
        fit_effects(case.problem(table, counts[:2]))  # compiles
        fits, laws, fit = cost(problem, repeats)
        peer = peer_cost(rscript, case, table, counts) if rscript else np.full((N_GENES_PEER, 2), math.nan)
        off = float(np.abs(fit.log_likelihood[:N_GENES_PEER].numpy() - peer[:, 1]).max())
        row = [case.n_cells, case.n_donors, case.fixed, case.random, fits, laws, case.target, ended_well(fit)]
        shown([*row, float(peer[:, 0].mean()), off])
    for kind, target in SPATIAL if only != "donors" else ():
        problem = spatial_problem(kind)
        fits, laws, fit = cost(problem, repeats)
        row = [f"{N_SECTIONS} x {SIDE**2} spots, {kind}", N_SECTIONS, "condition", "(1 | section) + field"]
        shown([*row, fits, laws, target, ended_well(fit), math.nan, math.nan])


def ended_well(fit: EffectsFit) -> float:
    """Share of genes."""
    return float(np.isin([str(reason) for reason in fit.reason], ["converged", "boundary"]).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="Rscript of an R that has glmmTMB", nargs="?", const="Rscript")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["donors", "space"], help="one half of the table")
    given = parser.parse_args()
    main(given.peer, given.repeats, given.only)
