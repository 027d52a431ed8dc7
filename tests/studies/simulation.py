"""Layouts and counts for the studies, as arrays."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice.spatial.car import CarCovariance
from pyrosplice.spatial.graph import knn_graph

RESULTS = Path(__file__).parent / "results"


def grid(side: int) -> CarCovariance:
    """CAR covariance (ρ = 0.99) of a side × side grid with four neighbours."""
    path = sp.diags([np.ones(side - 1)] * 2, [-1, 1])
    return CarCovariance(sp.kron(path, sp.eye(side)) + sp.kron(sp.eye(side), path))


def scattered(n_spots: int, seed: int = 0) -> CarCovariance:
    """CAR covariance of spots thrown at random on a square, linked to their four nearest."""
    return CarCovariance(
        knn_graph(np.random.default_rng(seed).uniform(size=(n_spots, 2)), k_neighbors=4, graph="union")
    )


def olfactory_bulb(path: Path) -> CarCovariance:
    """CAR covariance of the spots of the mouse olfactory bulb slide at ``path``."""
    import anndata

    return CarCovariance(knn_graph(anndata.read_h5ad(path).obsm["spatial"], k_neighbors=4, graph="union"))


def simulate_counts(
    covariance: CarCovariance,
    *,
    n_genes: int,
    depth: float | np.ndarray,
    sigma: float,
    theta: float,
    seed: int,
    n_isos: int = 3,
    bias: np.ndarray | None = None,
    effect: np.ndarray | None = None,
) -> Tensor:
    """Counts ``(genes, N, K)``; ``depth`` may be ``(N,)``, ``effect`` ``(N, Q)`` is added to the logits."""
    rng = np.random.default_rng(seed)
    n, q = covariance.n_spots, n_isos - 1
    generator = torch.Generator().manual_seed(seed)
    fields = covariance.sample(n_genes * q, generator).reshape(n_genes, q, n).transpose(1, 2).numpy() if theta else 0.0
    noise = rng.standard_normal((n_genes, n, q))
    eta = sigma * (np.sqrt(theta) * fields + np.sqrt(1 - theta) * noise)
    eta = eta + (0 if bias is None else bias) + (0 if effect is None else effect)
    odds = np.exp(np.concatenate([eta, np.zeros((n_genes, n, 1))], -1))
    totals = rng.poisson(np.broadcast_to(depth, (n_genes, n)))
    return torch.from_numpy(rng.multinomial(totals, odds / odds.sum(-1, keepdims=True)).astype(np.float64))


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
