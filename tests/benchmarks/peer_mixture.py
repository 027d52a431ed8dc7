"""Time the documented mixture systems on data from an .npz file. Runs in its own interpreter, called by mixture.py.

Input: ``x_<case>``, ``means_<case>`` and ``kind_<case>`` for every case; ``cohort`` (patients, cells, features) and
``held_out`` like it. Output, JSON: ``torchgmm`` (ms an iteration of every case), ``fit_gmm`` (seconds for all fits,
chosen numbers of components, mean held-out negative log likelihood). A system that is not installed is left out.
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
    pairs = [(seconds(4), seconds(14)) for _ in range(3)]
    return min(1e3 * (long - short) / (b - a) for (short, a), (long, b) in pairs)


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
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    data = np.load(source)
    out = {}
    try:
        names = sorted(key[2:] for key in data if key.startswith("x_"))
        out["torchgmm"] = {n: torchgmm_ms(data[f"x_{n}"], data[f"means_{n}"], str(data[f"kind_{n}"])) for n in names}
    except ImportError as error:
        out["torchgmm_missing"] = str(error)
    try:
        out["fit_gmm"] = ggml_fits(data["cohort"], data["held_out"], list(range(2, 9)))
    except ImportError as error:
        out["fit_gmm_missing"] = str(error)
    with open(target, "w") as file:
        json.dump(out, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
