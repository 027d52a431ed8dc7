"""Mixtures against their peers: time of an EM iteration, memory, and hundreds of fits of patients.

    python -m tests.benchmarks.mixture [--peers PYTHON] [--part speed|memory|patients] [--quick]

``PYTHON`` is an interpreter with torchgmm and ggml-ot installed. Prints three tables. The documented pycave (3.1 and
later) does not install on Python 3.11; torchgmm is a maintained fork of it.

Times of an iteration are differences of a long and a short run, each the least of some repeats. "Products alone" are
the two products of an iteration as plain ``torch.bmm`` on the same features. The patients are simulated with a seed
that nothing was tuned on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.mixture import GaussianMixture as ScikitLearn
from threadpoolctl import threadpool_limits

from pyrosplice._mixture.em.loop import EMOptions, block_size, run_em
from pyrosplice._mixture.em.one_fit import MixtureForm, Problem
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.sufficient_statistics import coefficients
from pyrosplice._mixture.em_estimator import GaussianMixture
from pyrosplice._mixture.patients.fit_gmm import fit_gmm
from pyrosplice._mixture.patients.triplets import TripletDataset

CASES = {
    "full_100k_10_10": ("full", 100_000, 10, 10),
    "diag_100k_10_10": ("diag", 100_000, 10, 10),
    "tied_100k_10_10": ("tied", 100_000, 10, 10),
    "spherical_100k_10_10": ("spherical", 100_000, 10, 10),
    "diag_1M_10_10": ("diag", 1_000_000, 10, 10),
    "full_10k_50_20": ("full", 10_000, 50, 20),
}
CANDIDATES = list(range(2, 9))
REPEATS = 3
COHORT_SEED = 20261120


def clouds(n, dim, k, seed=0):
    rng = np.random.default_rng(seed)
    means = 2.0 * rng.normal(size=(k, dim))
    return means[rng.integers(k, size=n)] + rng.normal(size=(n, dim)), means + 0.3 * rng.normal(size=(k, dim))


def cohort(n_patients, n_cells, dim, seed=COHORT_SEED):
    """Patients with 2 to 8 components each: cells to fit, as many again to judge, numbers of components."""
    rng = np.random.default_rng(seed)
    cells, truth = [], []
    for _ in range(n_patients):
        k = int(rng.integers(2, 9))
        means, roots = 2.0 * rng.normal(size=(k, dim)), np.eye(dim) + 0.3 * rng.normal(size=(k, dim, dim))
        labels = rng.choice(k, 2 * n_cells, p=rng.dirichlet(np.full(k, 5.0)))
        cells.append(means[labels] + np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(2 * n_cells, dim))))
        truth.append(k)
    both = np.stack(cells)
    return both[:, :n_cells], both[:, n_cells:], np.array(truth)


def ms_an_iteration(run, few=3, many=13):
    """From the difference of a long and a short run, so that set-up costs cancel; each the least of some repeats."""
    run(1)
    marks = {few: [], many: []}
    for _ in range(REPEATS):
        for iterations, seconds in marks.items():
            start = time.perf_counter()
            run(iterations)
            seconds.append(time.perf_counter() - start)
    return 1e3 * (min(marks[many]) - min(marks[few])) / (many - few)


def ours(x, means, kind, dtype):
    """Milliseconds of an iteration, and of its matrix products alone."""
    rows = RowBlocks.from_tensor(torch.tensor(x, dtype=dtype), size=block_size(x.shape[1], kind))
    problem = Problem.of(rows, MixtureForm(kind))
    centered = (torch.tensor(means) - problem.standardization.shift)[None, None]
    start = problem.start(centered, torch.ones(1, 1, len(means), dtype=torch.bool))
    table = coefficients(start)[0][0].to(dtype)

    def products(iterations):
        for _ in range(iterations):
            for features, _ in problem.starter.features():
                used = features[:, : table.shape[-1]]
                torch.bmm(torch.bmm(table, used), used.mT)

    def fit(n):
        run_em(problem.expectation, start, problem.penalty, EMOptions(max_iter=n, tolerance=-1.0))

    return ms_an_iteration(fit), ms_an_iteration(products)


def scikit_learn_ms(x, means, kind):
    def run(n):
        eye = np.eye(x.shape[1])
        precisions = {"full": np.stack([eye] * len(means)), "tied": eye, "diag": np.ones_like(means)}
        ScikitLearn(
            len(means),
            covariance_type=kind,
            max_iter=n,
            tol=0.0,
            means_init=means,
            weights_init=np.full(len(means), 1 / len(means)),
            precisions_init=precisions.get(kind, np.ones(len(means))),
            init_params="random_from_data",
            random_state=0,
        ).fit(x)

    return ms_an_iteration(run, 2, 6)


def speed(cases, peer):
    rows = []
    for name, (kind, n, dim, k) in cases.items():
        x, means = clouds(n, dim, k)
        theirs = scikit_learn_ms(x, means, kind)
        double, products = ours(x, means, kind, torch.float64)
        single, _ = ours(x, means, kind, torch.float32)
        torchgmm = peer.get(name, np.nan)
        rows.append(
            {
                "case": name,
                "scikit-learn": theirs,
                "torchgmm (f32)": torchgmm,
                "pyrosplice": double,
                "pyrosplice f32": single,
                "products alone": products,
                "× scikit-learn": theirs / double,
                "× torchgmm": torchgmm / single,
                "/ products": double / products,
            }
        )
    return pd.DataFrame(rows).set_index("case").round(2)


def peak_memory(n=1_000_000, dim=10):
    """MB above the data at the peak of a fit, in a process of its own."""
    code = f"from tests.benchmarks.mixture import _memory; _memory({n}, {dim})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _memory(n, dim):
    x = np.random.default_rng(0).normal(size=(n, dim))
    GaussianMixture(2, trainer_params={"max_epochs": 1}).fit(x[:1000])
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    GaussianMixture(10, covariance_type="diag", random_state=0, trainer_params={"max_epochs": 5}).fit(x)
    print(_status("VmHWM") - before)


def _status(name):
    """A figure of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def our_fits(cells, held_out, prior=None):
    dataset = TripletDataset(list(cells), [i % 2 for i in range(len(cells))])
    start = time.perf_counter()
    fit_gmm(dataset, k_comps=CANDIDATES, k_selection_metric="heldout_nll", refit="full", prior=prior, verbose=False)
    seconds = time.perf_counter() - start
    nll = []
    for x, weights, means, covariances in zip(
        held_out, dataset.weights, dataset.supports, dataset.covariances, strict=True
    ):
        used = weights > 0
        normal = torch.distributions.MultivariateNormal(means[used], covariances[used])
        nll.append(-float((normal.log_prob(torch.tensor(x)[:, None]) + weights[used].log()).logsumexp(1).mean()))
    return seconds, np.mean(nll), dataset.gmm["distribution_n_components"]


def scikit_learn_fits(cells, held_out):
    start, nll, chosen = time.perf_counter(), [], []
    with threadpool_limits(1):
        for x, other in zip(cells, held_out, strict=True):
            order = np.random.default_rng(0).permutation(len(x))
            train, judge = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
            fits = {k: ScikitLearn(k, reg_covar=1e-4, random_state=0).fit(train).score(judge) for k in CANDIDATES}
            best = max(fits, key=fits.get)
            chosen.append(best)
            nll.append(-ScikitLearn(best, reg_covar=1e-4, random_state=0).fit(x).score(other))
    return time.perf_counter() - start, np.mean(nll), np.array(chosen)


def patients(sizes, peer):
    rows = []
    for n_patients, n_cells in sizes:
        cells, held_out, truth = cohort(n_patients, n_cells, 10)
        found = {"pyrosplice": our_fits(cells, held_out), "scikit-learn, 1 thread": scikit_learn_fits(cells, held_out)}
        found["pyrosplice, pooled prior"] = our_fits(cells, held_out, "pooled")
        if str(n_cells) in peer:
            own = peer[str(n_cells)]
            found["ggml-ot fit_gmm"] = own["seconds"], own["nll"], np.array(own["chosen"])
        for name, (seconds, nll, chosen) in found.items():
            rows.append(
                {
                    "patients": n_patients,
                    "cells": n_cells,
                    "system": name,
                    "seconds": round(seconds, 2),
                    "held-out log likelihood": round(-nll, 3),
                    "right k": round(float((chosen == truth).mean()), 2),
                }
            )
    return pd.DataFrame(rows)


def ask_peers(python, arrays):
    """What peer_mixture.py finds for ``arrays``; its messages are shown only if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.json")
        np.savez(source, **arrays)
        script = Path(__file__).with_name("peer_mixture.py")
        done = subprocess.run([python, str(script), str(source), str(target)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(target.read_text())


def peer_speed(python, cases):
    arrays = {}
    for name, (kind, n, dim, k) in cases.items():
        arrays[f"x_{name}"], arrays[f"means_{name}"] = clouds(n, dim, k)
        arrays[f"kind_{name}"] = np.array(kind)
    return ask_peers(python, arrays)["torchgmm"]


def peer_patients(python, sizes):
    arrays = {}
    for n_patients, n_cells in sizes:
        arrays[f"cohort_{n_cells}"], arrays[f"held_{n_cells}"], _ = cohort(n_patients, n_cells, 10)
    return ask_peers(python, arrays)["fit_gmm"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="interpreter with torchgmm and ggml-ot")
    parser.add_argument("--part", choices=("speed", "memory", "patients"), help="one table alone")
    parser.add_argument("--quick", action="store_true", help="small cases, to see that it runs")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases, sizes = CASES, [(100, 500), (40, 250), (40, 120), (40, 60)]
    if options.quick:
        cases, sizes = {"full_5k_4_3": ("full", 5_000, 4, 3)}, [(6, 120)]
    print(f"threads: {torch.get_num_threads()}")
    if options.part in (None, "speed"):
        print("\nms an EM iteration")
        print(speed(cases, peer_speed(options.peers, cases) if options.peers else {}).to_string())
    if options.part in (None, "memory") and not options.quick:
        print(f"\npeak memory of diag 1M × 10, k 10, above its 76 MB of data: {peak_memory():.0f} MB")
    if options.part in (None, "patients"):
        print(
            f"\npatients × cells × 10 features, k = {CANDIDATES[0]}..{CANDIDATES[-1]}, then the chosen k on all cells"
        )
        print(patients(sizes, peer_patients(options.peers, sizes) if options.peers else {}).to_string(index=False))


if __name__ == "__main__":
    main()
