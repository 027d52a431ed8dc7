"""Layouts of the studies, and where their tables go; genes are drawn by the simulators of the library."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrosplice.data import simulate_counts
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance

__all__ = ["RESULTS", "commit", "grid", "olfactory_bulb", "places", "save_row", "scattered", "simulate_counts"]
RESULTS = Path(__file__).parent / "results"


def grid(side: int) -> CarCovariance:
    """CAR covariance (ρ = 0.99) of a side × side grid with four neighbours."""
    path = sp.diags([np.ones(side - 1)] * 2, [-1, 1])
    return CarCovariance(sp.kron(path, sp.eye(side)) + sp.kron(sp.eye(side), path))


def places(side: int) -> np.ndarray:
    """Coordinates ``(N, 2)`` of the spots of :func:`grid`."""
    return np.stack(np.divmod(np.arange(side**2), side), 1).astype(float)


def scattered(n_spots: int, seed: int = 0) -> CarCovariance:
    """CAR covariance of spots thrown at random on a square, linked to their four nearest."""
    return CarCovariance(
        knn_graph(np.random.default_rng(seed).uniform(size=(n_spots, 2)), k_neighbors=4, graph="union")
    )


def olfactory_bulb(path: Path) -> CarCovariance:
    """CAR covariance of the spots of the mouse olfactory bulb slide at ``path``."""
    return CarCovariance(knn_graph(anndata.read_h5ad(path).obsm["spatial"], k_neighbors=4, graph="union"))


def save_row(name: str, row: dict[str, object], key: Sequence[str]) -> None:
    """Put a row into a table of results, in the place of an older one with the same key."""
    RESULTS.mkdir(exist_ok=True)
    path, table = RESULTS / f"{name}.csv", pd.DataFrame([row])
    if path.exists():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(list(key), keep="last")
    table.to_csv(path, index=False, float_format="%.5g")


def commit() -> str:
    """The commit that the study ran on, marked if its code was changed since; tables of results do not count."""
    head = _git("rev-parse", "--short", "HEAD")
    code = ["pyrosplice", "tests", ":(exclude)tests/studies/results"]
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no", "--", *code) else head


def _git(*arguments: str) -> str:
    root = RESULTS.parents[2]
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=root).stdout.strip()
