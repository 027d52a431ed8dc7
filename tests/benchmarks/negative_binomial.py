"""Negative-binomial GLM: this library beside its peers, on the same data in one run.

    python tests/benchmarks/negative_binomial.py --peers-python /path/to/venv/bin/python

Peers (pydeseq2, statsmodels) run in an interpreter of their own, on fewer genes where they are slow, and are reported
in seconds per 1,000 genes. Without ``--peers-python`` only this library runs. On a busy machine give ``--threads 1``:
OpenMP's barriers wait for cores that others hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SHARED = Path(os.environ.get("PYROSPLICE_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def simulated(n: int, g: int, *, seed: int, low: float = 0.1, high: float = 10.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    cell = np.arange(n)
    design = np.column_stack([np.ones(n), cell % 2, cell // 2 % 3 == 1, cell // 2 % 3 == 2]).astype(float)
    size = rng.lognormal(0, 0.3, n)
    mean, disp = np.exp(rng.uniform(np.log(low), np.log(high), g)), np.exp(rng.uniform(np.log(0.1), np.log(2), g))
    rows = [rng.poisson(rng.gamma(1 / disp, mean * disp * size[i : i + 1000, None])) for i in range(0, n, 1000)]
    return {"counts": np.concatenate(rows).astype(np.float32), "design": design, "size_factors": size}


def continuous(n: int, g: int, n_columns: int, *, size_factors: bool, seed: int) -> dict:
    """Sparse counts, about one in ten not zero, of cells with a factor and ``n_columns`` continuous covariates."""
    import scipy.sparse as sp

    rng = np.random.default_rng(seed)
    design = np.column_stack([np.ones(n), rng.integers(0, 2, n), rng.normal(size=(n, n_columns))])
    size = rng.lognormal(0, 0.3, n) if size_factors else np.ones(n)
    slopes, disp = rng.normal(0, 0.3, (g, n_columns + 1)), np.exp(rng.uniform(np.log(0.05), np.log(2), g))
    mean, columns = rng.uniform(0.02, 0.2, g), []
    for k in range(g):
        mu = mean[k] * np.exp(design[:, 1:] @ slopes[k]) * size
        columns.append(sp.csc_matrix(rng.poisson(rng.gamma(1 / disp[k], mu * disp[k]))[:, None].astype(np.float32)))
    return {"counts": sp.hstack(columns).tocsr(), "design": design, "size_factors": size}


def ours(data: dict, *, repeats: int = 3, sparse: bool = False) -> dict:
    import scipy.sparse as sp

    from pyrosplice._expression.count_matrix import CountMatrix
    from pyrosplice._expression.engine.gene_fits import fit_glm
    from pyrosplice._expression.engine.row_source import Design, RowSource
    from pyrosplice.likelihoods import NegativeBinomial

    x, n = data["design"].astype(float), len(data["design"])
    counts = sp.csr_matrix(data["counts"]) if sparse else data["counts"]
    wall, cpu, base = [], [], resident()
    with Peak() as peak:
        for _ in range(repeats):
            t, c = time.perf_counter(), time.process_time()
            design = Design(x, np.ones((n, 1)), np.log(data["size_factors"]), np.zeros(n))
            fit = fit_glm(RowSource(CountMatrix(counts), design, NegativeBinomial()))
            wall.append(time.perf_counter() - t)
            cpu.append(time.process_time() - c)
    return {
        "wall": min(wall),
        "cpu": min(cpu),
        "peak_mb": (peak.peak - base) / 2**20,
        "ll": fit.log_likelihood,
        "codes": np.bincount(fit.code, minlength=5).tolist(),
    }


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """Largest resident memory while it is open."""

    def __enter__(self) -> Peak:
        self.peak, self.open = resident(), True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.open:
            self.peak = max(self.peak, resident())
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self.open = False
        self.thread.join()


def peer_statsmodels(data: dict, genes: np.ndarray) -> dict:
    import warnings

    import statsmodels.api as sm

    ll, start = [], time.perf_counter()
    for k in genes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = sm.NegativeBinomial(data["counts"][:, k], data["design"], offset=np.log(data["size_factors"]))
            try:
                ll.append(float(model.fit(disp=0, maxiter=200).llf))
            except (np.linalg.LinAlgError, ValueError):
                ll.append(float("nan"))
    return {"wall": time.perf_counter() - start, "ll": ll}


def peer_pydeseq2(data: dict, genes: np.ndarray) -> dict:
    """Gene-wise dispersions and coefficients: what a fit of the GLM is in pydeseq2."""
    import warnings

    import pandas as pd
    from pydeseq2.dds import DeseqDataSet
    from scipy.stats import nbinom

    names = [f"s{i}" for i in range(len(data["design"]))]
    counts = pd.DataFrame(data["counts"][:, genes].astype(int), index=names)
    counts.columns = [f"g{k}" for k in genes]
    design = pd.DataFrame(data["design"], index=names, columns=[f"x{i}" for i in range(data["design"].shape[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dds = DeseqDataSet(counts=counts, metadata=design, design=design, quiet=True, n_cpus=os.cpu_count())
        dds.obs["size_factors"] = data["size_factors"]
        dds.layers["normed_counts"] = dds.X / data["size_factors"][:, None]
        start = time.perf_counter()
        dds.fit_genewise_dispersions()
        dds.var["dispersions"] = dds.var["genewise_dispersions"]
        dds.fit_LFC()
        wall = time.perf_counter() - start
    beta, disp = dds.varm["LFC"].to_numpy(), dds.var["dispersions"].to_numpy()
    mean = np.exp(data["design"] @ beta.T) * data["size_factors"][:, None]
    ll = nbinom.logpmf(counts.to_numpy(), 1 / disp, 1 / (1 + mean * disp)).sum(0)
    return {"wall": wall, "ll": ll.tolist()}


PEERS = {"pydeseq2": peer_pydeseq2, "statsmodels": peer_statsmodels}


def run_peer(python: str, name: str, data: dict, genes: np.ndarray) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, genes=genes, **data)
        command = [python, __file__, "--peer", name, "--data", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def load(name: str) -> dict | None:
    path = SHARED / "gold" / "nb" / f"{name}.npz"
    if not path.exists():
        return None
    z = np.load(path)
    return {k: z[k] for k in ("counts", "design", "size_factors")}


def compare(label: str, data: dict, python: str | None, n_peer: dict[str, int]) -> None:
    mine, g = ours(data), data["counts"].shape[1]
    line = (
        f"| {label} | pyrosplice | {g} | {mine['wall']:.3f} | {mine['wall'] / g * 1000:.3f} | {mine['cpu']:.3f} | 1 | |"
    )
    print(line, flush=True)
    for name in PEERS if python else ():
        genes = np.sort(np.random.default_rng(0).choice(g, min(n_peer[name], g), replace=False))
        found = run_peer(python, name, data, genes)
        if "error" in found:
            print(f"| {label} | {name} | failed: {found['error'][:80]} | | | | | |", flush=True)
            continue
        each = found["wall"] / len(genes) * 1000
        short = np.mean(np.asarray(found["ll"]) < mine["ll"][genes] - 1)
        ratio = f"{each / (mine['wall'] / g * 1000):.0f}× slower"
        print(
            f"| {label} | {name} | {len(genes)} | {found['wall']:.3f} | {each:.3f} | | {ratio} | {short:.1%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python")
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--data")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of this library; peers use theirs")
    parser.add_argument("--large", action="store_true", help="also 5,000 genes × 50,000 cells, sparse and dense")
    args = parser.parse_args()
    if args.peer:
        z = np.load(args.data)
        data = {k: z[k] for k in ("counts", "design", "size_factors")}
        print(json.dumps(PEERS[args.peer](data, z["genes"])))
        return
    import torch

    torch.set_num_threads(args.threads)
    print(f"{args.threads} thread(s), load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| data | fit by | genes | wall s | s / 1,000 genes | cpu s | beside ours | > 1 log-lik. unit short |")
    print("|---|---|---|---|---|---|---|---|")
    sim = load("sim") or simulated(2000, 1000, seed=20240501)
    compare("2,000 cells × 4 coef.", sim, args.peers_python, {"pydeseq2": 200, "statsmodels": 60})
    pasilla = load("pasilla")
    if pasilla is not None:
        compare("pasilla, 7 samples × 3 coef.", pasilla, args.peers_python, {"pydeseq2": 2000, "statsmodels": 200})
    compare("20,000 cells × 4 coef.", simulated(20_000, 1000, seed=1), None, {})
    for n_columns in (1, 3):
        for size_factors in (False, True):
            data = continuous(50_000, 160, n_columns, size_factors=size_factors, seed=3)
            mine = ours(data, repeats=3, sparse=True)
            label = f"50,000 cells, {n_columns} continuous{', size factors' if size_factors else ''}"
            times = f"{mine['wall']:.3f} | {mine['wall'] / 0.16:.3f} | {mine['cpu']:.3f}"
            print(f"| {label} | pyrosplice | 160 | {times} | {mine['cpu'] / 0.16:.2f} ms a gene | |", flush=True)
    if args.large:
        data = simulated(50_000, 5000, seed=2, low=0.01, high=0.2)
        density = float((data["counts"] > 0).mean())
        for sparse in (True, False):
            mine = ours(data, repeats=2, sparse=sparse)
            kind = f"50,000 cells, {density:.1%} non-zero, {'CSR' if sparse else 'dense'}"
            times = f"{mine['wall']:.2f} | {mine['wall'] / 5:.3f} | {mine['cpu']:.2f}"
            print(f"| {kind} | pyrosplice | 5000 | {times} | +{mine['peak_mb']:.0f} MB | |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
