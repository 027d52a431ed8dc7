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


def beside_the_peer(python: Path, *, n_genes: int, epochs: int) -> pd.DataFrame:
    """Marginal fits of 256 spots to the end, and ``epochs`` of them at 1,024, against our whole fit of the same counts.

    The peer takes its genes one by one (its marginal modes are no faster in batches), ours a batch of ``OUR_GENES``
    that begins with the same genes.
    """
    data = {256: simulated(256, OUR_GENES), 1024: simulated(1024, OUR_GENES)}
    jobs = [
        PeerJob("newton_256", 256, n_genes, "marginal_newton", False, None),
        PeerJob("gd_256", 256, n_genes, "marginal_gd", False, None),
        PeerJob("newton_1024", 1024, 1, "marginal_newton", False, epochs),
        PeerJob("gd_1024", 1024, 1, "marginal_gd", False, epochs),
    ]
    found = run_peer(python, jobs, data)
    fits = {size: timed_fit(*data[size], "marginal_newton", var_fix_sigma=False) for size in data}
    rows = []
    for job in jobs:
        ours, time_a_gene = fits[job.size]
        theirs = log_density_at(found, job, data[job.size][0][: job.n_genes], data[job.size][1])
        peer = Seconds(float(found[f"{job.name}_seconds"].mean()), float(found[f"{job.name}_cpu"].mean()))
        n_epochs = float(found[f"{job.name}_epochs"].mean())
        rows.append(
            {
                "spots": job.size,
                "peer method": job.method,
                "peer epochs": n_epochs,
                "peer finished": bool(found[f"{job.name}_converged"].all()),
                "peer s a gene": peer.wall,
                "peer s an epoch": peer.wall / n_epochs,
                "ours s a gene": time_a_gene.wall,
                "times faster": peer.wall / time_a_gene.wall,
                "times less CPU": peer.cpu / time_a_gene.cpu,
                "log marginal, ours − peer": float((ours().detach()[: job.n_genes] - theirs).mean()),
            }
        )
    return pd.DataFrame(rows)


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

    Densities are means over the genes that the peer is given (``sizes``: genes by number of spots), under our float64
    density at either system's parameters.
    """
    data = {spots: simulated(spots, OUR_GENES) for spots in sizes}
    jobs = [PeerJob(f"joint_{spots}", spots, genes, "joint_gd", True, None) for spots, genes in sizes.items()]
    found = run_peer(python, jobs, data) if python is not None else None
    rows = []
    for job in jobs:
        counts, covariance = data[job.size]
        for method in ("joint_gd", "joint_newton"):
            model, seconds = timed_fit(counts, covariance, method, var_fix_sigma=True)
            rows.append((job.size, "ours", method, seconds.wall, seconds.cpu, model().detach()[: job.n_genes]))
        if found is not None:
            density = log_density_at(found, job, counts[: job.n_genes], covariance)
            wall, cpu = (float(found[f"{job.name}_{key}"].mean()) for key in ("seconds", "cpu"))
            rows.append((job.size, "peer", job.method, wall, cpu, density))
    names = ["spots", "system", "method", "s a gene", "CPU s a gene", "joint log density"]
    return pd.DataFrame([(*row[:-1], float(row[-1].mean())) for row in rows], columns=names)
