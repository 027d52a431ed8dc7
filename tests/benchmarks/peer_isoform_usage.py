"""Fit the documented system to data from an .npz file. Runs in its own interpreter, called by isoform_usage.py;
splisosm 1.1.1 or 1.2.0.

Input: ``counts_<size>`` (genes, spots, isoforms) and ``corr_<size>`` (spots, spots) for every size, and ``jobs``, a
JSON list of ``{"name", "size", "n_genes", "at_once", "method", "var_fix_sigma", "max_epochs"}``, ``at_once`` genes in a
batch. Output, for every job: ``<name>_seconds`` and ``_cpu`` of each batch, ``_epochs``, ``_converged``, ``_objective``
and the fitted parameters.
"""

import json
import sys
import time
import warnings

import numpy as np
import torch

try:
    from splisosm.glmm import MultinomGLMM
except ImportError:  # before 1.2.0
    from splisosm.model import MultinomGLMM

PARAMETERS = ("beta", "bias_eta", "nu", "sigma", "theta_logit")


def fit_batch(counts, corr, job):
    configs = None if job["max_epochs"] is None else {"max_epochs": job["max_epochs"]}
    model = MultinomGLMM(fitting_method=job["method"], var_fix_sigma=job["var_fix_sigma"], fitting_configs=configs)
    start, cpu_start = time.perf_counter(), time.process_time()
    model.setup_data(counts, corr_sp=corr)
    model.fit(quiet=True, random_seed=0)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    found = {name: getattr(model, name).detach().numpy() for name in PARAMETERS}
    with torch.no_grad():
        objective = model().numpy()
    logger = model.logger
    return {
        "seconds": np.array([seconds]),
        "cpu": np.array([cpu]),
        "epochs": np.array([len(logger.loss_history)]),
        "converged": np.asarray(logger.convergence).reshape(-1),
        "objective": objective,
    } | found


def main(source, target):
    warnings.simplefilter("ignore")
    data = np.load(source)
    jobs = json.loads(str(data["jobs"]))
    warm_up = jobs[0] | {"max_epochs": 1}
    results = {}
    for position, job in enumerate([warm_up, *jobs]):
        counts = torch.tensor(data[f"counts_{job['size']}"], dtype=torch.float32)
        corr = torch.tensor(data[f"corr_{job['size']}"], dtype=torch.float32)
        starts = range(0, job["n_genes"] if position else 1, job["at_once"])
        fits = [fit_batch(counts[start : start + job["at_once"]], corr, job) for start in starts]
        if position:
            results |= {f"{job['name']}_{key}": np.concatenate([fit[key] for fit in fits]) for key in fits[0]}
    np.savez(target, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
