"""Size of the tests of variance components of expression: genes whose effect is absent, all else as it is.

    python -m tests.studies.variance_components [--genes 2000] [--seed 0] [--only "(1 | donor)"]

Counts are negative binomial with dispersion 0.3. ``unequal``: donors' numbers of cells are log-normal with log sd 0.7.
In tests of slopes donors differ by a standard deviation of 0.4, and half of each donor's cells are of either condition.
The table goes to tests/studies/results/variance_components.csv.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd

from pyrosplice import ExpressionGLM
from pyrosplice.effects import Field, Independent
from tests.studies.simulation import commit, places, save_row

DISPERSION, DONOR_SD, CELLS_A_DONOR, SIDE = 0.3, 0.4, 30, 16


class Cell(NamedTuple):
    """One setting: the test, the groups or spots, the mean count, and what differs from the plain case."""

    test: str
    n_donors: int
    mean: float
    unequal: bool = False
    noise: str = "nb"


def cells() -> Iterator[Cell]:
    for test in ("(1 | donor)", "(0 + x | donor)", "(0 + x | donor) apart"):
        for n_donors in (6, 12, 40):
            for mean in (0.5, 5.0):
                yield Cell(test, n_donors, mean)
        yield Cell(test, 6, 1.0, unequal=True)
        yield Cell(test, 12, 1.0, unequal=True)
    yield Cell("(1 + x | donor)", 12, 2.0)
    for mean, noise in ((0.5, "poisson"), (5.0, "poisson"), (5.0, "nb")):
        yield Cell("cell", 12, mean, noise=noise)
    for test in ("space", "space by x", "space beside donors", "score of space by x", "score of space by z"):
        for mean in (0.05, 0.5, 5.0, 20.0):
            yield Cell(test, 4 if "donors" in test else 0, mean)
        yield Cell(test, 4 if "donors" in test else 0, 2.0, noise="poisson")
    for test in ("space", "space by x", "score of space by x"):
        for mean in (0.05, 0.5, 5.0):
            yield Cell(f"{test}, 1024 spots", 0, mean)
    yield Cell("space beside donors, 1024 spots", 4, 0.5)
    yield Cell("space, 2304 spots", 0, 0.5)


def side_of(test: str) -> int:
    """Spots a side of the grid of a test."""
    named = test.partition(", ")[2]
    return round(int(named.split()[0]) ** 0.5) if named else SIDE


def sample(cell: Cell, n_genes: int, rng: np.random.Generator) -> anndata.AnnData:
    """Counts of genes without the effect that is tested."""
    in_space = "space" in cell.test
    side = side_of(cell.test)
    n = side**2 if in_space else cell.n_donors * CELLS_A_DONOR
    donor = np.arange(n) % max(cell.n_donors, 1)
    if cell.unequal:
        share = np.exp(rng.normal(0, 0.7, cell.n_donors))
        donor[2 * cell.n_donors :] = rng.choice(cell.n_donors, n - 2 * cell.n_donors, p=share / share.sum())
    x = (np.argsort(np.argsort(donor * n + np.arange(n))) % 2).astype(float)  # alternates within donors
    eta = np.full((n_genes, n), np.log(cell.mean)) + 0.2 * x
    if "(0 + x" in cell.test or "beside" in cell.test or cell.test == "cell":
        eta += DONOR_SD * rng.normal(size=(n_genes, max(cell.n_donors, 1)))[:, donor] * (cell.n_donors > 0)
    rate = np.exp(eta)
    if cell.noise == "nb":
        rate = rate * rng.gamma(1 / DISPERSION, DISPERSION, eta.shape)
    cells_ = [f"c{k}" for k in range(n)]
    table = pd.DataFrame({"x": x, "z": rng.normal(size=n), "donor": [f"d{k}" for k in donor]}, index=cells_)
    obsm = {"spatial": places(side)} if in_space else None
    return anndata.AnnData(rng.poisson(rate).T.astype(float), obs=table, obsm=obsm)


def tested(cell: Cell, data: anndata.AnnData) -> pd.DataFrame:
    """The table of the test."""
    formula, space, part = {
        "(1 + x | donor)": ("~ x + (1 + x | donor)", None, "(1 + x | donor)"),
        "cell": ("~ x + (1 | donor)", None, "cell"),
        "score of space by x": ("~ x", Field(k_neighbors=4, by="x"), ""),
        "score of space by z": ("~ x + z", Field(k_neighbors=4, by="z"), ""),
        "(1 | donor)": ("~ x + (1 | donor)", None, "(1 | donor)"),
        "(0 + x | donor)": ("~ x + (1 + x | donor)", None, "(0 + x | donor)"),
        "(0 + x | donor) apart": ("~ x + (1 | donor) + (0 + x | donor)", None, "(0 + x | donor)"),
        "space": ("~ x", Field(k_neighbors=4), "space"),
        "space by x": ("~ x", Field(k_neighbors=4, by="x"), "space"),
        "space beside donors": ("~ x + (1 | donor)", Field(k_neighbors=4), "space"),
    }[cell.test.partition(", ")[0]]
    effects = (Independent(),) if part == "cell" else ()
    glm = ExpressionGLM(formula, as_numeric=["x", "z"], likelihood=cell.noise, space=space, effects=effects).fit(data)
    return glm.test_component(part) if part else glm.test_spatial_variability("score").assign(law="permutations")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=None)
    given = parser.parse_args()
    for cell in cells():
        if given.only not in (None, cell.test):
            continue
        seed = zlib.crc32(repr((cell, given.seed)).encode())
        data = sample(cell, given.genes, np.random.default_rng(seed))
        start = time.process_time()
        table = tested(cell, data)
        pvalue = table["pvalue"].to_numpy()[np.isfinite(table["pvalue"])]
        rates = {f"rejected_{level}": (pvalue <= level).mean() for level in (0.05, 0.01, 0.001)}
        row = {**cell._asdict(), **rates, "zero": (pvalue == 1).mean(), "n_genes": len(pvalue), "law": table["law"][0]}
        row |= {"ms_a_gene": 1e3 * (time.process_time() - start) / given.genes, "seed": given.seed, "commit": commit()}
        save_row("variance_components", row, [*cell._fields, "law"])
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)


if __name__ == "__main__":
    main()
