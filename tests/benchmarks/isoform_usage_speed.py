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
OUR_GENES = 32  # in a batch of ours where the peer gets a few of them


@dataclass(frozen=True)
class PeerJob:
    """What the documented system is asked to fit, ``at_once`` genes in a batch; ``max_epochs`` None is its default."""

    name: str
    size: int
    n_genes: int
    at_once: int
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
    before = _peak_gb()
    model, seconds = timed_fit(counts, covariance, "marginal_newton", var_fix_sigma=False)
    return {
        "spots": n_spots,
        "genes": n_genes,
        "seconds a gene": seconds.wall,
        "CPU seconds a gene": seconds.cpu,
        "largest gradient norm": float(model.gradient_norm.max()),
        "converged": float(model.logger.converged.double().mean()),
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


def beside_the_peer(python: Path, *, n_genes: int, max_epochs: int | None) -> pd.DataFrame:
    """Marginal fits of ``n_genes`` genes of 256 spots, and of one gene of 1,024, beside ours on the same counts.

    The peer takes genes singly (its default) and, at 256 spots, in one batch. Ours fits ``OUR_GENES`` in a batch that
    begins with the same genes.
    """
    data = {size: simulated(size, OUR_GENES) for size in (256, 1024)}
    jobs = [
        PeerJob(f"{method}_{size}_{at_once}", size, genes, at_once, method, False, max_epochs)
        for size, genes, at_once in ((256, n_genes, 1), (256, n_genes, n_genes), (1024, 1, 1))
        for method in ("marginal_newton", "marginal_gd")
    ]
    found = run_peer(python, jobs, data)
    fits = {size: timed_fit(*data[size], "marginal_newton", var_fix_sigma=False) for size in data}
    rows = []
    for job in jobs:
        ours, our_time = fits[job.size]
        theirs = log_density_at(found, job, data[job.size][0][: job.n_genes], data[job.size][1])
        peer_time, epochs = peer_seconds(found, job), float(found[f"{job.name}_epochs"].mean())
        rows.append(
            {
                "spots": job.size,
                "peer method": job.method,
                "peer genes at once": job.at_once,
                "peer epochs": epochs,
                "peer s a gene": peer_time.wall,
                "ours s a gene": our_time.wall,
                "times faster": peer_time.wall / our_time.wall,
                "times less CPU": peer_time.cpu / our_time.cpu,
                "log marginal, ours − peer": float((ours().detach()[: job.n_genes] - theirs).mean()),
            }
        )
    return pd.DataFrame(rows)


def peer_seconds(found: dict, job: PeerJob) -> Seconds:
    """The peer's time a gene."""
    return Seconds(*(float(found[f"{job.name}_{clock}"].sum()) / job.n_genes for clock in ("seconds", "cpu")))


@dataclass(frozen=True)
class Seconds:
    """Wall-clock and processor seconds of one gene; the second is steadier on a machine with other work to do."""

    wall: float
    cpu: float


def timed_fit(
    counts: torch.Tensor, covariance: CarCovariance, method: str, *, var_fix_sigma: bool
) -> tuple[MultinomGLMM, Seconds]:
    """A fit with the defaults of ``method`` and its time a gene, setup included."""
    _warm_up()
    model = MultinomGLMM(fitting_method=method, var_fix_sigma=var_fix_sigma)
    start, cpu_start = time.perf_counter(), time.process_time()
    model.setup_data(counts, corr_sp=covariance)
    model.fit(quiet=True)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return model, Seconds(wall / len(counts), cpu / len(counts))


def log_density_at(found: dict, job: PeerJob, counts: torch.Tensor, covariance: CarCovariance) -> torch.Tensor:
    """Our float64 objective (joint or marginal, as of ``job``) at the peer's parameters: (genes,)."""
    model = MultinomGLMM(fitting_method=job.method, var_fix_sigma=job.var_fix_sigma)
    model.setup_data(counts, corr_sp=covariance)
    names = ("bias_eta", "nu", "sigma", "theta_logit")
    model.update_params_from_dict({name: torch.from_numpy(found[f"{job.name}_{name}"]).double() for name in names})
    return model().detach()


def joint_modes(python: Path | None, *, sizes: dict[int, int]) -> pd.DataFrame:
    """Joint modes with σ fixed (the documented default): time a gene and the joint log density that is reached.

    ``sizes``: genes, in one batch, by number of spots; the peer also takes a few of them singly, its default. Densities
    are means over the genes that a row is about, under our float64 density at either system's parameters.
    """
    data = {spots: simulated(spots, genes) for spots, genes in sizes.items()}
    jobs = [
        PeerJob(f"joint_{spots}_{at_once}", spots, genes, at_once, "joint_gd", True, None)
        for spots, all_genes in sizes.items()
        for genes, at_once in ((all_genes, all_genes), (min(all_genes, 4), 1))
    ]
    found = run_peer(python, jobs, data) if python is not None else {}
    rows = []
    for spots, (counts, covariance) in data.items():
        for method in ("joint_gd", "joint_newton"):
            model, seconds = timed_fit(counts, covariance, method, var_fix_sigma=True)
            rows.append((spots, "ours", method, len(counts), seconds.wall, seconds.cpu, model().detach()))
        for job in jobs if found else ():
            if job.size == spots:
                density = log_density_at(found, job, counts[: job.n_genes], covariance)
                seconds = peer_seconds(found, job)
                rows.append((spots, "peer", job.method, job.at_once, seconds.wall, seconds.cpu, density))
    names = ["spots", "system", "method", "genes at once", "s a gene", "CPU s a gene", "joint log density"]
    return pd.DataFrame([(*row[:-1], float(row[-1].mean())) for row in rows], columns=names)
