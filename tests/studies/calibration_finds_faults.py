"""Does ``check_calibration`` find tests that are known to be wrong, when it is pointed at them?

    python -m tests.studies.calibration_finds_faults [--genes 1000] [--only coverage]
    PACKAGE=/path/to/an/older/checkout python -m tests.studies.calibration_finds_faults

Layouts and genes on which a test of commit b785ba5 was far from its size: genes in few of the spots, the section of two
sections, a gradient where usage has domains. Genes are drawn by ``check_calibration`` of this package; with ``PACKAGE``
the tests of the package in that folder are run on them, in a process of its own. Rows with the exact 99 % interval, the
seed, the commit, and the commit of the package go to tests/studies/results/calibration_finds_faults.csv.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from anndata import AnnData

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.testing import Domains
from tests.studies.simulation import commit, save_row

QUIET = {"print_progress": False}
THEIRS = """
import pickle, sys, warnings
from pyrosplice import SplisosmGLMM
warnings.simplefilter("ignore")
source, target = sys.argv[1:]
with open(source, "rb") as file:
    adata, options, setup, calls = pickle.load(file)
model = SplisosmGLMM(**options)
model.setup_data(adata, **setup)
found = []
for method, fit, ask in calls:
    if fit is not None:
        model.fit(print_progress=False, batch_size=32, **fit)
    found.append(getattr(model, method)(return_results=True, print_progress=False, **ask)["pvalue"])
with open(target, "wb") as file:
    pickle.dump(found, file)
"""


class Elsewhere(SplisosmGLMM):
    """Tests of another checkout of the package on the genes of this one."""

    package: str = ""

    def test_spatial_variability(self, method="llr", **options):
        results = super().test_spatial_variability(method=method, **options)
        pvalue = self._theirs("test_spatial_variability", None, {"method": method})
        return {**results, "pvalue": pvalue, "reason": np.where(np.isnan(pvalue), "not_finite", "")}

    def test_differential_usage(self, method="score", **options):
        results = super().test_differential_usage(method=method, **options)
        pvalue = self._theirs("test_differential_usage", {"with_design_mtx": method == "wald"}, {"method": method})
        given = ~np.isnan(pvalue)  # they call none of theirs unreliable
        return {**results, "pvalue": pvalue, "reason": np.where(given, "", "not_finite"), "reliable": given}

    def _theirs(self, method: str, fit: dict | None, ask: dict) -> np.ndarray:
        prepared = self._prepared
        adata = self.filtered_adata.copy()
        symbols = np.empty(adata.n_vars, dtype=object)
        for name, columns in zip(self.gene_names, prepared.data.columns, strict=True):
            symbols[columns] = name
        adata.var["gene_symbol"] = symbols.astype(str)
        adata.obsp["graph"], adata.layers["counts"] = prepared.covariance.adjacency, adata.X
        setup = {"adj_key": "graph", "layer": "counts", "min_counts": 0, "group_gene_by_n_iso": True}
        if prepared.design is not None:
            setup |= {"design_mtx": prepared.design.values, "covariate_names": list(prepared.design.names)}
        options = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in", Path(folder) / "out"
            source.write_bytes(pickle.dumps((adata, options, setup, [(method, fit, ask)])))
            environment = os.environ | {"PYTHONPATH": self.package}
            subprocess.run(
                [sys.executable, "-c", THEIRS, str(source), str(target)], check=True, cwd=folder, env=environment
            )
            return np.asarray(pickle.loads(target.read_bytes())[0])


def few_covered_spots() -> AnnData:
    """Genes that are seen in 20 or 30 of 576 spots, five molecules each."""
    adata = simulate_isoforms(n_spots=576, n_genes=12, n_isoforms=3, depth=0.0, seed=1)
    rng = np.random.default_rng(1)
    counts = np.zeros((576, 36))
    for gene in range(12):
        places = rng.choice(576, 20 if gene % 2 else 30, replace=False)
        counts[places, 3 * gene : 3 * gene + 3] = rng.multinomial(5, [0.5, 0.3, 0.2], len(places))
    adata.layers["counts"] = counts
    return adata


def two_sections() -> AnnData:
    """Two sections of 12 × 12 spots, depth 2, σ = θ = .8."""
    side = np.stack(np.divmod(np.arange(144), 12), 1).astype(float)
    layout = np.concatenate([side, side + np.array([1000.0, 0.0])])
    adata = simulate_isoforms(layout=layout, n_genes=12, n_isoforms=2, depth=2.0, sigma=0.8, theta=0.8, seed=2)
    adata.obs["section"], adata.obs["in_b"] = np.repeat(["a", "b"], 144), np.repeat([0.0, 1.0], 144)
    return adata


def gradient() -> AnnData:
    """A tissue with a covariate that rises from side to side."""
    adata = simulate_isoforms(n_spots=256, n_genes=12, n_isoforms=2, depth=5.0, sigma=0.8, theta=0.8, seed=3)
    adata.obs["gradient"] = adata.obsm["spatial"][:, 0] / 15.0
    return adata


CASES = {
    "coverage": (few_covered_spots, {}, {"test": "sv"}),
    "section": (
        two_sections,
        {"section_key": "section", "design_mtx": "in_b"},
        {"test": "du", "method": ("score", "wald")},
    ),
    "gradient": (gradient, {"design_mtx": "gradient"}, {"test": "du", "method": ("score", "wald")}),
    "domains": (
        gradient,
        {"design_mtx": "gradient"},
        {"test": "du", "method": ("score", "wald"), "truth": Domains(6, sd=1.0)},
    ),
}


def main(n_genes: int, only: str | None, package: str | None) -> None:
    where = commit()
    theirs = where
    if package:
        call = ["git", "-C", package, "rev-parse", "--short", "HEAD"]
        theirs = subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    for name, (made, setup, asked) in CASES.items():
        if only not in (None, name):
            continue
        began = time.process_time()
        model = (Elsewhere if package else SplisosmGLMM)(fitting_method="marginal_newton", var_fix_sigma=False)
        model.package = package
        model.setup_data(made(), **setup)
        model.fit(batch_size=32, **QUIET)
        check = model.check_calibration(n_genes=n_genes, seed=5, **asked, **QUIET)
        print(name, theirs, check, sep="\n", flush=True)
        for row in check.table.to_dict("records"):
            row = {
                "case": name,
                "package": theirs,
                **row,
                "seed": 5,
                "CPU s": time.process_time() - began,
                "commit": where,
            }
            save_row("calibration_finds_faults", row, ["case", "package", "test", "covariate", "level"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--only", choices=list(CASES))
    given = parser.parse_args()
    main(given.genes, given.only, os.environ.get("PACKAGE"))
