"""How fast isoform usage is, and beside it the documented system in its own interpreter, on the same counts."""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyrosplice import MultinomGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.spatial.car import CarCovariance

PEER_SCRIPT = Path(__file__).with_name("peer_isoform_usage.py")
GRADIENT_GOAL = 1e-3  # nats


@dataclass(frozen=True)
class PeerJob:
    """One thing that the documented system is asked to fit; ``max_epochs`` None is its own default."""

    name: str
    size: int
    n_genes: int
    method: str
    var_fix_sigma: bool
    max_epochs: int | None


def simulated(n_spots: int, n_genes: int, seed: int = 0) -> tuple[torch.Tensor, CarCovariance]:
    """Counts (genes, spots, 3) on a grid with 4 neighbours, 5 counts a spot, σ = 0.7, θ = 0.7; the covariance."""
    adata = simulate_isoforms(n_spots=n_spots, n_genes=n_genes, seed=seed)
    counts = adata.layers["counts"].toarray().reshape(n_spots, n_genes, -1).transpose(1, 0, 2)
    return torch.tensor(counts, dtype=torch.float64), CarCovariance(adata.obsp["connectivities"])


def marginal_fit(n_spots: int, n_genes: int) -> dict[str, float]:
    """Time one batch: σ, θ and b of every gene by the marginal likelihood. Runs in a fresh process."""
    counts, covariance = simulated(n_spots, n_genes)
    _warm_up()
    before = _peak_gb()
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    start = time.perf_counter()
    model.setup_data(counts, corr_sp=covariance)
    model.fit(quiet=True)
    seconds = time.perf_counter() - start
    return {
        "spots": n_spots,
        "genes": n_genes,
        "seconds a gene": seconds / n_genes,
        "largest |gradient|": float(model.gradient_norm.max()),
        "converged": float(np.mean(np.asarray(model.converged))),
        "peak memory, GB": _peak_gb(),
        "before the fit, GB": before,
    }


def _warm_up() -> None:
    """Load the compiled kernels once: they are compiled on the first use after installation and kept."""
    counts, covariance = simulated(64, 2)
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(counts, corr_sp=covariance)
    model.fit(quiet=True)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_fresh_process(function, *arguments):
    """Run where nothing earlier adds to the peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def marginal_speed(sizes: dict[int, int]) -> pd.DataFrame:
    """One row a number of spots (``sizes``: genes by number of spots), with the growth exponent to the row above."""
    table = pd.DataFrame([in_fresh_process(marginal_fit, spots, genes) for spots, genes in sizes.items()])
    growth = np.diff(np.log(table["seconds a gene"])) / np.diff(np.log(table["spots"]))
    return table.assign(**{"growth exponent": np.concatenate([[np.nan], growth])})


def run_peer(python: Path, jobs: list[PeerJob], data: dict[int, tuple[torch.Tensor, CarCovariance]]) -> dict:
    """Fit ``jobs`` with the documented system under the interpreter ``python``; its arrays by name."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        arrays = {f"counts_{size}": counts.numpy() for size, (counts, _) in data.items()}
        arrays |= {f"corr_{size}": covariance.dense().numpy() for size, (_, covariance) in data.items()}
        np.savez(source, jobs=json.dumps([asdict(job) for job in jobs]), **arrays)
        subprocess.run([python, PEER_SCRIPT, source, target], check=True)
        return dict(np.load(target))


def beside_the_peer(python: Path, *, n_genes: int, epochs: int) -> pd.DataFrame:
    """Marginal fits of 256 spots to the end, and the time of one epoch at 1,024, against ours on the same counts."""
    data = {256: simulated(256, n_genes), 1024: simulated(1024, 1)}
    jobs = [
        PeerJob("newton_256", 256, n_genes, "marginal_newton", False, None),
        PeerJob("gd_256", 256, n_genes, "marginal_gd", False, None),
        PeerJob("newton_1024", 1024, 1, "marginal_newton", False, epochs),
        PeerJob("gd_1024", 1024, 1, "marginal_gd", False, epochs),
    ]
    found = run_peer(python, jobs, data)
    rows = []
    for job in jobs:
        counts, covariance = data[job.size]
        ours, seconds = timed_fit(counts[: job.n_genes], covariance, "marginal_newton", var_fix_sigma=False)
        peer_seconds, peer_epochs = found[f"{job.name}_seconds"].mean(), found[f"{job.name}_epochs"].mean()
        theirs = log_density_at(found, job, counts[: job.n_genes], covariance)
        rows.append(
            {
                "spots": job.size,
                "peer method": job.method,
                "peer epochs": peer_epochs,
                "peer s a gene": peer_seconds,
                "peer s an epoch": peer_seconds / peer_epochs,
                "ours s a gene": seconds / job.n_genes,
                "ours faster": peer_seconds / (seconds / job.n_genes),
                "log marginal, ours − peer": float((ours().detach() - theirs).mean()),
            }
        )
    return pd.DataFrame(rows)


def timed_fit(counts, covariance, method: str, *, var_fix_sigma: bool) -> tuple[MultinomGLMM, float]:
    """A fit with the defaults of ``method`` and its seconds, setup included."""
    _warm_up()
    model = MultinomGLMM(fitting_method=method, var_fix_sigma=var_fix_sigma)
    start = time.perf_counter()
    model.setup_data(counts, corr_sp=covariance)
    model.fit(quiet=True)
    return model, time.perf_counter() - start


def log_density_at(found: dict, job: PeerJob, counts: torch.Tensor, covariance: CarCovariance) -> torch.Tensor:
    """Our float64 objective (joint or marginal, as of ``job``) at the peer's parameters: (genes,)."""
    model = MultinomGLMM(fitting_method=job.method, var_fix_sigma=job.var_fix_sigma)
    model.setup_data(counts, corr_sp=covariance)
    names = ("bias_eta", "nu", "sigma", "theta_logit")
    model.update_params_from_dict({name: torch.from_numpy(found[f"{job.name}_{name}"]).double() for name in names})
    return model().detach()


def joint_modes(python: Path | None, *, sizes: dict[int, int]) -> pd.DataFrame:
    """Joint modes with σ fixed (the documented default): seconds a gene and the joint log density that is reached."""
    data = {spots: simulated(spots, genes) for spots, genes in sizes.items()}
    jobs = [PeerJob(f"joint_{spots}", spots, genes, "joint_gd", True, None) for spots, genes in sizes.items()]
    found = run_peer(python, jobs, data) if python is not None else None
    rows = []
    for job in jobs:
        counts, covariance = data[job.size]
        rows_of_size = []
        for method in ("joint_gd", "joint_newton"):
            model, seconds = timed_fit(counts, covariance, method, var_fix_sigma=True)
            rows_of_size.append(("ours", method, seconds / job.n_genes, model().detach()))
        if found is not None:
            density = log_density_at(found, job, counts, covariance)
            rows_of_size.append(("peer", job.method, float(found[f"{job.name}_seconds"].mean()), density))
        rows += [
            {
                "spots": job.size,
                "system": system,
                "method": method,
                "s a gene": seconds,
                "joint log density": float(density.mean()),
            }
            for system, method, seconds, density in rows_of_size
        ]
    return pd.DataFrame(rows)
