"""Layouts and counts for the studies, as arrays."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from pyrosplice.data import simulate_counts
from pyrosplice.spatial.car import CarCovariance
from pyrosplice.spatial.graph import knn_graph

__all__ = ["RESULTS", "commit", "grid", "olfactory_bulb", "save_row", "scattered", "shapes", "simulate_counts"]
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
    return CarCovariance(knn_graph(anndata.read_h5ad(path).obsm["spatial"], k_neighbors=4, graph="union"))


def shapes(shape: str, side: int, n_genes: int, seed: int) -> np.ndarray:
    """Patterns ``(genes, spots, 2)`` for two logits on a grid, each gene's of its own place and direction, of mean 0
    and mean square 1 over spots and logits: the same size of effect in every shape, so that shapes alone differ.

    ``domains``: six regions nearest to random seeds, a normal level each and logit. ``gradient``: along a random
    direction. ``hot-spot``: a disc of a radius of .2 sides. ``stripes``: two levels, .2 sides each. ``ring``: between
    radii of .2 and .3 sides. ``field``: two draws of the CAR field (ρ = .99).
    """
    rng = np.random.default_rng(seed)
    if shape == "field":
        generator = torch.Generator().manual_seed(seed)
        pattern = grid(side).sample(2 * n_genes, generator).numpy().reshape(n_genes, 2, -1).transpose(0, 2, 1)
        return _standard(pattern)
    place = (np.stack(np.divmod(np.arange(side**2), side), 1) + 0.5) / side
    if shape == "domains":
        seeds, level = rng.uniform(size=(n_genes, 6, 1, 2)), rng.standard_normal((n_genes, 6, 2))
        nearest = np.square(place - seeds).sum(-1).argmin(1)
        return _standard(np.take_along_axis(level, nearest[..., None], 1))
    angle, phase = rng.uniform(0, 2 * np.pi, (2, n_genes, 1))
    along = np.cos(angle) * place[:, 0] + np.sin(angle) * place[:, 1]
    distance = np.sqrt(np.square(place - rng.uniform(0.2, 0.8, (n_genes, 1, 2))).sum(-1))
    pattern = {
        "gradient": along,
        "hot-spot": distance < 0.2,
        "stripes": np.sin(2 * np.pi * along / 0.4 + phase) > 0,
        "ring": (distance > 0.2) & (distance < 0.3),
    }[shape]
    return _standard(pattern[..., None] * rng.standard_normal((n_genes, 1, 2)))


def _standard(pattern: np.ndarray) -> np.ndarray:
    pattern = pattern - pattern.mean(1, keepdims=True)
    return pattern / np.sqrt(np.square(pattern).mean((1, 2), keepdims=True))


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
