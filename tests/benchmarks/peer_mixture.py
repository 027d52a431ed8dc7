"""Time the documented mixture systems on data from an .npz file. Runs in its own interpreter, called by mixture.py.

Input: ``x_<case>``, ``means_<case>`` and ``kind_<case>`` for every case; ``cohort_<size>`` (patients, cells, features)
and ``held_<size>`` like it for every size. Output, JSON: ``torchgmm`` (ms an iteration of every case), ``fit_gmm`` (for
every size: seconds for all fits, chosen numbers of components, mean held-out negative log likelihood).
"""

import json
import logging
import sys
import time
import warnings

import numpy as np
import torch


def torchgmm_ms(x, means, kind):
    from torchgmm.bayes import GaussianMixture

    def seconds(epochs):
        trainer = {"max_epochs": epochs, "enable_progress_bar": False, "accelerator": "cpu"}
        model = GaussianMixture(
            len(means), covariance_type=kind, init_means=means, convergence_tolerance=-1.0, trainer_params=trainer
        )
        start = time.perf_counter()
        model.fit(data)
        return time.perf_counter() - start, model.num_iter_

    data = torch.tensor(x, dtype=torch.float32)
    means = torch.tensor(means, dtype=torch.float32)
    seconds(2)
    runs = [(seconds(4), seconds(16)) for _ in range(3)]
    (short, few), (long, many) = (min(run) for run in zip(*runs, strict=True))
    return 1e3 * (long - short) / (many - few)


def ggml_fits(cohort, held_out, candidates):
    from ggml_ot.data.generic import TripletDataset
    from ggml_ot.gmm import fit_gmm

    data = TripletDataset(list(cohort), [i % 2 for i in range(len(cohort))])
    start = time.perf_counter()
    fit_gmm(
        data,
        component_sharing="sample_specific",
        k_comps=candidates,
        k_selection_metric="heldout_nll",
        refit="full",
        verbose=False,
    )
    seconds = time.perf_counter() - start
    weights, means, covariances = (np.asarray(t, dtype=float) for t in (data.weights, data.supports, data.covariances))
    return {
        "seconds": seconds,
        "chosen": [int((w > 0).sum()) for w in weights],
        "nll": float(np.mean([_nll(*parts) for parts in zip(held_out, weights, means, covariances, strict=True)])),
    }


def _nll(x, weights, means, covariances):
    used = weights > 0
    normal = torch.distributions.MultivariateNormal(torch.tensor(means[used]), torch.tensor(covariances[used]))
    joint = normal.log_prob(torch.tensor(x)[:, None]) + torch.tensor(weights[used] / weights[used].sum()).log()
    return -float(joint.logsumexp(1).mean())


def main(source, target):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    data = np.load(source)
    names = sorted(key[2:] for key in data if key.startswith("x_"))
    sizes = sorted(key[7:] for key in data if key.startswith("cohort_"))
    out = {
        "torchgmm": {n: torchgmm_ms(data[f"x_{n}"], data[f"means_{n}"], str(data[f"kind_{n}"])) for n in names},
        "fit_gmm": {n: ggml_fits(data[f"cohort_{n}"], data[f"held_{n}"], list(range(2, 9))) for n in sizes},
    }
    with open(target, "w") as file:
        json.dump(out, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
