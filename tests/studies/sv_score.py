"""Size and power of the variance-component score test of spatial variability.

    python -m tests.studies.sv_score size  [--genes 10000]
    python -m tests.studies.sv_score power [--genes 500] [--peer /path/to/python]

Tables go to tests/studies/results/. A size cell is right when its rejections lie in the exact binomial 99 % interval.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import SpatialKernel, spatial_kernel
from pyrosplice.spatial.car import CarCovariance
from tests.paths import SHARED
from tests.studies.simulation import commit, grid, olfactory_bulb, save_row, simulate_counts

DEPTHS = (1, 5, 20)
LEVELS = (0.05, 0.01, 0.001)
SIGNALS = ((0.7, 0.7), (0.4, 0.7), (0.7, 0.3), (0.4, 0.3))
_BATCH = 1_000


def layouts() -> dict[str, CarCovariance]:
    found = {"grid 16x16": grid(16), "grid 32x32": grid(32)}
    slide = SHARED / "data" / "mob_rep11_families.h5ad"
    return found | ({"olfactory bulb": olfactory_bulb(slide)} if slide.exists() else {})


def nulls(covariance: CarCovariance) -> Iterator[tuple[str, dict]]:
    """The two nulls of the plan, then what usually breaks such a test."""
    n = covariance.n_spots
    smooth = covariance.sample(1, torch.Generator().manual_seed(7))[0].numpy()
    smooth = (smooth - smooth.mean()) / smooth.std()
    noise = np.random.default_rng(7).gamma(2.0, 0.5, n)
    iid = {"sigma": 0.7}
    yield "no effect", {"sigma": 0.0}
    yield "over-dispersion", iid
    yield "over-dispersion, spatial totals", iid | {"factor": np.exp(0.7 * smooth)}
    yield "over-dispersion, uneven totals", iid | {"factor": noise}
    yield "over-dispersion, two isoforms", iid | {"n_isos": 2}
    yield "over-dispersion, six isoforms", iid | {"n_isos": 6}
    yield "over-dispersion, usage .83 .15 .02", iid | {"bias": np.log([0.83 / 0.02, 0.15 / 0.02])}
    yield "over-dispersion, usage .98 .02", iid | {"n_isos": 2, "bias": np.log([0.98 / 0.02])}
    effect = np.stack([0.8 * smooth, -0.4 * smooth], 1)
    yield "over-dispersion, smooth covariate", iid | {"effect": effect, "design": torch.from_numpy(smooth)[:, None]}


def null_pvalues(
    covariance: CarCovariance, kernel: SpatialKernel, null: dict, *, depth: float, n_genes: int, seed: int
) -> Tensor:
    options = dict(null)
    design, factor = options.pop("design", None), options.pop("factor", 1.0)
    parts = []
    for batch, size in enumerate(np.diff([*range(0, n_genes, _BATCH), n_genes])):
        counts = simulate_counts(
            covariance, n_genes=int(size), depth=depth * factor, theta=0.0, seed=seed + batch, **options
        )
        parts.append(variance_component_test(counts, kernel, design=design).pvalue)
    return torch.cat(parts)


def size_row(pvalue: Tensor) -> dict[str, float]:
    tested = pvalue[~torch.isnan(pvalue)]
    row: dict[str, float] = {"genes": len(tested)}
    for level in LEVELS:
        rejected = int((tested < level).sum())
        low, high = binom.ppf([0.005, 0.995], len(tested), level)
        row[f"size {level:g}"] = rejected / len(tested)
        row[f"inside {level:g}"] = bool(low <= rejected <= high)
    return row


def size_table(n_genes: int, damping: float, only: str | None, at: str, repeat: int, most: int | None) -> None:
    """All nulls or ``most``; a ``repeat`` above 0 has the first two of them, genes of its own, and another file."""
    salt, name_of_table = (f" {repeat}", "sv_score_size_repeat") if repeat else ("", "sv_score_size")
    for layout, covariance in layouts().items():
        if only and only not in layout:
            continue
        kernel = spatial_kernel(covariance, damping=damping)
        for name, null in islice(nulls(covariance), 2 if repeat else most):
            for depth in DEPTHS:
                seed = zlib.crc32(f"{layout} {name} {depth}{salt}".encode()) % 2**31
                pvalue = null_pvalues(covariance, kernel, null, depth=depth, n_genes=n_genes, seed=seed)
                row = {"layout": layout, "null": name, "depth": depth, **size_row(pvalue), "seed": seed}
                row |= {"damping": damping, "commit": at} | ({"repeat": repeat} if repeat else {})
                save_row(name_of_table, row, ["layout", "null", "depth", *(["repeat"] if repeat else [])])
                print(row, flush=True)


def power_table(n_genes: int, damping: float, only: str | None, at: str, peer: str | None) -> None:
    for layout, covariance in layouts().items():
        if only and only not in layout:
            continue
        kernel = spatial_kernel(covariance, damping=damping)
        cells = [(sigma, theta, depth) for sigma, theta in SIGNALS for depth in DEPTHS]
        counts = {
            f"{s}_{t}_{d}": simulate_counts(covariance, n_genes=n_genes, depth=d, sigma=s, theta=t, seed=1)
            for s, t, d in cells
        }
        theirs = peer_pvalues(peer, covariance, counts) if peer else {}
        version = {"peer": str(theirs["version"])} if peer else {}
        for (sigma, theta, depth), (cell, gene) in zip(cells, counts.items(), strict=True):
            row = {"layout": layout, "sigma": sigma, "theta": theta, "depth": depth, "seed": 1}
            ours = variance_component_test(gene, kernel).pvalue.numpy()
            row |= rejections(ours, theirs.get(cell))
            key = ["layout", "sigma", "theta", "depth"]
            save_row("sv_score_power", row | version | {"damping": damping, "commit": at}, key)
            print(row, flush=True)


def rejections(ours: np.ndarray, theirs: np.ndarray | None) -> dict[str, float]:
    """Share of genes below each level by our test and the peer's, and how sure their difference is."""
    row: dict[str, float] = {}
    for level in LEVELS[:2]:
        row[f"power {level:g}"] = (ours < level).mean()
        if theirs is not None:
            row[f"HSIC-IR {level:g}"] = (theirs < level).mean()
            difference = (ours < level).astype(float) - (theirs < level)
            row[f"SE of difference {level:g}"] = difference.std(ddof=1) / len(difference) ** 0.5
    return row


def peer_pvalues(python: str, covariance: CarCovariance, counts: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """HSIC-IR on the same genes and graph, by the interpreter that has the peer package."""
    graph = covariance.adjacency
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        arrays = {f"counts_{cell}": value.numpy() for cell, value in counts.items()}
        np.savez(source, data=graph.data, indices=graph.indices, indptr=graph.indptr, **arrays)
        script = Path(__file__).with_name("peer_hsic.py")
        subprocess.run([python, str(script), str(source), str(target)], check=True)
        return dict(np.load(target))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["size", "power"])
    parser.add_argument("--genes", type=int)
    parser.add_argument("--damping", type=float, default=0.1)
    parser.add_argument("--repeat", type=int, default=0, help="size with other genes, of the first two nulls")
    parser.add_argument("--nulls", type=int, help="size of the first so many nulls")
    parser.add_argument("--layout", help="only layouts whose name holds this")
    parser.add_argument("--peer", help="interpreter that has the peer package: its HSIC-IR is put beside")
    given = parser.parse_args()
    if given.study == "size":
        size_table(given.genes or 10_000, given.damping, given.layout, commit(), given.repeat, given.nulls)
    else:
        power_table(given.genes or 500, given.damping, given.layout, commit(), given.peer)
