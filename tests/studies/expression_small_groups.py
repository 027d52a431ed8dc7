"""How often tests of expression reject null genes where donors are unequal, a group is small, or zeros abound.

    python -m tests.studies.expression_small_groups --genes 2000 --output expression_small_groups.csv

Donors of 10 to 200 cells: 6, 12 and 24, balanced and 3 against 9, equal and unequal, standard deviations 0 to 0.5;
500 cells against 20; groups of which half and more of the cells are zeros beyond the noise. The rows of
commit 9f3470b in the table beside this script were drawn by a simulator of its own, of the same truths.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from pyrosplice import ExpressionGLM
from pyrosplice.data import simulate_expression
from tests.studies.negative_binomial_calibration import main

LEVELS = (0.05, 0.01, 0.001)
RISING = np.rint(np.geomspace(10, 200, 12)).astype(int)
DONORS = {
    "6 equal": (np.full(6, 100), np.arange(6) % 2),
    "6 unequal": (np.array([10, 200, 40, 90, 150, 20]), np.arange(6) % 2),
    "12 equal": (np.full(12, 60), np.arange(12) % 2),
    "12 unequal": (RISING, np.arange(12) % 4 // 2),
    "12 equal, 3 v 9": (np.full(12, 60), np.arange(12) < 3),
    "12 unequal, 3 v 9": (RISING[[0, 6, 11, 1, 2, 3, 4, 5, 7, 8, 9, 10]], np.arange(12) < 3),
    "24 unequal": (np.rint(np.geomspace(10, 200, 24)).astype(int), np.arange(24) % 4 // 2),
}
Group = tuple[int, int, float, float, float]  # cells of each group, mean, dispersion, share of zeros
GROUPS = (
    (500, 20, 0.2, 0.5, 0.0),
    (500, 20, 0.2, 2.0, 0.0),
    (500, 20, 1.0, 0.5, 0.0),
    (200, 200, 5.0, 0.2, 0.5),
    (200, 200, 20.0, 0.2, 0.7),
    (60, 60, 20.0, 0.2, 0.7),
)


def row(test: object, **cell: object) -> dict:
    tested = np.isfinite(test.pval)
    rates = {f"at {level:.1%}": float((test.pval[tested] < level).mean()) for level in LEVELS}
    return {**cell, "tested": int(tested.sum()), **rates}


def donors(genes: int, seed: int, layouts: Mapping[str, tuple[np.ndarray, np.ndarray]] = DONORS) -> list[dict]:
    rows = []
    for (name, (sizes, group)), mean, tau in product(layouts.items(), (0.2, 5.0), (0.0, 0.2, 0.5)):
        donor = np.repeat(np.arange(len(sizes)), sizes)
        cells = pd.DataFrame({"group": np.asarray(group)[donor].astype(str), "donor": donor.astype(str)})
        adata = simulate_expression(
            cells,
            n_genes=genes,
            mean=mean,
            dispersion=0.5,
            donors="donor",
            donor_sd=tau,
            seed=1000 * seed + len(rows),
        )
        glm = ExpressionGLM("~1+group").fit(adata)
        for method in ("cluster", "glmm"):
            test = glm.test(factor="group", method=method, donors="donor")
            rows.append(row(test, layout=name, mean=mean, dispersion=0.5, tau=tau, zeros=0.0, method=method))
    return rows


def groups(genes: int, seed: int, cells: Sequence[Group] = GROUPS) -> list[dict]:
    rows = []
    for first, second, mean, dispersion, zeros in cells:
        adata = simulate_expression(
            pd.DataFrame({"group": ["a"] * first + ["b"] * second}),
            n_genes=genes,
            mean=mean,
            dispersion=dispersion,
            zeros=zeros,
            seed=1000 * seed + 500 + len(rows),
        )
        glm = ExpressionGLM("~1+group").fit(adata)
        for method in ("wald", "lrt", "score", "robust", "ql"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the zeros are meant
                test = glm.test(factor="group", method=method)
            name = f"{first} v {second} cells"
            rows.append(row(test, layout=name, mean=mean, dispersion=dispersion, tau=0.0, zeros=zeros, method=method))
    return rows


def run(genes: int, seed: int) -> pd.DataFrame:
    return pd.DataFrame(donors(genes, seed) + groups(genes, seed))


if __name__ == "__main__":
    main(__doc__, run)
