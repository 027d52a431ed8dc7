"""What the README says about isoform usage, measured: ``python -m tests.benchmarks.isoform_usage``.

Prints markdown tables. Sections: ``speed`` (marginal fits by number of spots), ``peer`` (the documented system beside
ours, needs ``--peer-python``), ``joint`` (joint modes), ``accuracy`` (gold results; needs the shared folder),
``recovery`` (simulated truth). ``--quick`` is a reduced run of all of them.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import pandas as pd
import torch

from tests.benchmarks import isoform_usage_gold as gold
from tests.benchmarks import isoform_usage_speed as speed
from tests.paths import SHARED
from tests.studies import isoform_usage_recovery as recovery

SECTIONS = ("speed", "peer", "joint", "accuracy", "recovery")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment with splisosm 1.2.0, or 1.1.1")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for section in options.sections:
        globals()[f"print_{section}"](options)


def print_table(title: str, table: pd.DataFrame) -> None:
    """A markdown table without further packages."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(table.columns) + " |")
    print("|" + " --- |" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(_cell(value) for value in row) + " |", flush=True)


def _cell(value) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value != value:
        return ""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def print_speed(options: argparse.Namespace) -> None:
    sizes = {256: 64, 1024: 32} if options.quick else {256: 128, 1024: 64, 4096: 32, 10_000: 16}
    print_table("Marginal fit, σ, θ and b free, 3 isoforms, 5 counts a spot", speed.marginal_speed(sizes))


def print_peer(options: argparse.Namespace) -> None:
    if options.peer_python is None:
        print("\n(peer: left out, no --peer-python)")
        return
    n_genes, max_epochs = (2, 3) if options.quick else (8, None)
    table = speed.beside_the_peer(options.peer_python, n_genes=n_genes, max_epochs=max_epochs)
    print_table("Marginal fit beside the documented system, same counts, same run", table)


def print_joint(options: argparse.Namespace) -> None:
    sizes = {256: 8} if options.quick else {256: 32, 1024: 32}
    print_table("Joint mode, σ fixed", speed.joint_modes(options.peer_python, sizes=sizes))


def print_accuracy(options: argparse.Namespace) -> None:
    folder = SHARED / "gold"
    if not folder.exists():
        print("\n(accuracy: left out, no gold results; set PYROSPLICE_SHARED)")
        return
    print_table("Laplace log marginal likelihood at fixed parameters", gold.laplace_points(folder))
    print_table("Marginal fits, 256 spots on a grid", gold.grid_fits(folder))
    families = gold.family_fits(folder)
    columns = ["ours − TMB", "ours − own θ = 0"]
    print_table(
        "Marginal fits of 30 paralog families, 260 spots: the least over families",
        families.groupby("depth")[columns].min().reset_index().assign(fits=families.groupby("depth").size().to_numpy()),
    )
    print_table("GLM against the Newton-polished maximum", gold.glm_fits(folder))


def print_recovery(options: argparse.Namespace) -> None:
    genes, spots = (20, 256) if options.quick else (200, 1024)
    table = recovery.summary(recovery.estimates(n_genes=genes, n_spots=spots, depth=5.0, seed=0))
    print_table(f"Recovery: {genes} simulated genes, {spots} spots, 5 counts a spot, σ = 0.7", table)


if __name__ == "__main__":
    main()
