"""The tensors and the table in which fitted mixtures of patients are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrosplice._mixture.em.many import log_joint_of_cells
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.patients.patient_options import GMMOptions
from pyrosplice._mixture.patients.points import PatientCells
from pyrosplice._mixture.patients.selection import Curves
from pyrosplice._mixture.patients.triplets import AnnData_TripletDataset
from pyrosplice.guides._own_model import SHIPPED_ENGINE
from pyrosplice.priors._prior_tables import describe
from pyrosplice.reasons import Reason


@dataclass(frozen=True)
class FittedMixtures:
    """Mixtures of P patients, or one whose components they share.

    Attributes
    ----------
    patients
        Whose they are.
    mixtures
        One a patient, or one.
    weights
        Weights of each patient.
    n_fitted, n_train
        Cells that the kept mixtures, and the candidates, were fitted to.
    reasons
        How the fits of the kept mixtures ended.
    shared
        Whether components are shared.
    curves
        Criteria, when there was something to select.
    chosen
        Numbers of components.
    """

    patients: tuple[PatientCells, ...]
    mixtures: tuple[MixtureParameters, ...]
    weights: tuple[Tensor, ...]
    n_fitted: tuple[int, ...]
    reasons: tuple[Reason, ...]
    shared: bool
    curves: Curves | None
    chosen: tuple[int, ...]
    n_train: tuple[int, ...]

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means, covariances and weights for a data set: ``(P, K, D)`` … , or ``(K, D)`` … and ``(P, K)`` if shared."""
        means, covariances, weights = self.model()
        if self.shared:
            return means[0], covariances[0], torch.stack(self.weights)
        return means, covariances, weights

    def model(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means ``(B, K, D)``, covariances ``(B, K, D, D)``, weights ``(B, K)``; B = 1 if shared; zero-padded."""
        widest = max(m.n_components for m in self.mixtures)
        dim = self.mixtures[0].means.shape[1]
        means = torch.zeros(len(self.mixtures), widest, dim, dtype=torch.float64)
        covariances, weights = torch.zeros(*means.shape, dim, dtype=torch.float64), torch.zeros_like(means[..., 0])
        for b, mixture in enumerate(self.mixtures):
            k = mixture.n_components
            means[b, :k], weights[b, :k] = mixture.means, mixture.weights
            covariances[b, :k] = mixture.covariance_matrices()
        return means, covariances, weights

    def distribution_weights(self) -> Tensor:
        """Weights of each patient ``(P, K)``, zero-padded."""
        return torch.stack(self.weights) if self.shared else self.model()[2]

    def responsibilities(self) -> list[Tensor]:
        """Share of each component in each patient's cells, in the order of ``patients[p].cells``: ``(N_p, M_p)``."""
        mixtures = self.mixtures * len(self.patients) if self.shared else self.mixtures
        own = [[replace(m, weights=w)] for m, w in zip(mixtures, self.weights, strict=True)]
        joints = log_joint_of_cells([p.cells for p in self.patients], own)
        return [joint.softmax(1) for (joint,) in joints]


def store(dataset: AnnData_TripletDataset, fitted: FittedMixtures, schema: dict[str, Any], key: str) -> None:
    """Write ``uns[key]``, ``obs[key + "_comp"]`` (−1 for cells of patients left out) and ``obsm[key + "_resp"]``."""
    adata = dataset.adata
    labels = np.full(adata.n_obs, -1)
    resp = np.zeros((adata.n_obs, fitted.distribution_weights().shape[1]))
    for patient, own in zip(fitted.patients, fitted.responsibilities(), strict=True):
        resp[patient.rows, : own.shape[1]] = own.numpy()
        labels[patient.rows] = own.argmax(1).numpy()
    adata.obs[f"{key}_comp"] = labels
    adata.obsm[f"{key}_resp"] = resp
    adata.uns[key] = schema
    dataset.gmm_key = key


def schema_of(fitted: FittedMixtures, options: GMMOptions, representation: str) -> dict[str, Any]:
    """Everything that is known of the fit, as plain values and arrays that an h5ad file can hold."""
    means, covariances, weights = (t.numpy() for t in fitted.model())
    every = fitted.distribution_weights().numpy()
    copies = len(fitted.patients) if fitted.shared else 1
    counts, reasons = list(fitted.chosen) * copies, [reason.value for reason in fitted.reasons] * copies
    return {
        "component_sharing": "global" if fitted.shared else "sample_specific",
        "use_rep": representation,
        "covariance_type": options.covariance_type,
        "n_components": means.shape[1],
        "distribution_n_components": np.array(counts),
        "distribution_reasons": np.array(reasons, dtype=object),
        "fit_params": {
            "max_iter": options.max_iter,
            "tol": options.tol,
            "n_init": options.n_init,
            "eps": options.eps,
            "singularity_handling": options.singularity_handling,
            **_priors(options),
        },
        "selection": _selection(fitted, options),
        "backend": "pyrosplice",
        "model_family": "gaussian_mixture",
        "representation_space": representation,
        "backend_metadata": {"fit_indices_count": int(sum(fitted.n_fitted)), "refit": _refit(fitted, options)},
        "model": {"mu": means, "var": covariances, "pi": weights},
        "distribution_weights": every,
        "weight_inference": {
            "weights_fit_scope": "inside_em",
            "weights_source": "stored",
            "distribution_ids": np.array([p.name for p in fitted.patients], dtype=object),
        },
    }


def _priors(options: GMMOptions) -> dict[str, Any]:
    """Priors by site in words and how they were followed, where they were given so."""
    given = options.prior
    if not isinstance(given, Mapping):
        return {"priors": "weak", "engine": SHIPPED_ENGINE} if given == "weak" else {}
    words = {site: describe(prior) for site, prior in given.items() if prior is not None}
    return {"priors": words, "engine": "AutoNewtonMAP" if options.not_conjugate else SHIPPED_ENGINE}


def _refit(fitted: FittedMixtures, options: GMMOptions) -> str:
    """What the kept mixtures were fitted to: "full" for all cells, also where nothing was selected."""
    return "full" if fitted.curves is None or options.n_folds is not None else options.refit


def _selection(fitted: FittedMixtures, options: GMMOptions) -> dict[str, Any] | None:
    curves = fitted.curves
    if curves is None:
        return None
    scores = curves.scores(options.metric)
    columns = [_columns(curves, options.metric, p, fitted) for p in range(len(scores))]
    names = [key_of(patient.name) for patient in fitted.patients]
    every = len(names) if fitted.shared else 1
    return {
        "metric": options.metric,
        "score_name": "validation_nll" if options.metric == "heldout_nll" else options.metric,
        "k_comps": list(curves.components),
        "best_k": int(curves.components[int(scores.mean(0).argmin())]),
        "scores": {name: np.mean([own[name] for own in columns], 0).tolist() for name in columns[0]}
        | {"k": list(curves.components)},
        "selection_cells_count": int(sum(fitted.n_train)),
        "refit": _refit(fitted, options),
        "train_frac": options.train_size if options.n_folds is None else 1 - 1 / options.n_folds,
        "val_frac": 1 - options.train_size if options.n_folds is None else 1 / options.n_folds,
        "best_k_by_distribution": dict(zip(names, list(fitted.chosen) * every, strict=True)),
        "at_edge_by_distribution": dict(zip(names, curves.at_edge(fitted.chosen) * every, strict=True)),
        "scores_by_distribution": dict(zip(names, columns * every, strict=True)),
        "curves": {name: getattr(curves, name) for name in ("aic", "bic", "train_nll", "heldout_nll", "heldout_se")},
    }


def _columns(curves: Curves, metric: str, p: int, fitted: FittedMixtures) -> dict[str, list[Any]]:
    """The criteria of one distribution by name, one entry a candidate."""
    n_candidates = len(curves.components)
    parts = fitted.patients if fitted.shared else fitted.patients[p : p + 1]
    n_train = fitted.n_train[p]
    held_out = {
        "validation_nll": curves.heldout_nll[p].tolist(),
        "nll_gap": (curves.heldout_nll[p] - curves.train_nll[p]).tolist(),
        "n_val_cells": [sum(len(part.cells) for part in parts) - n_train] * n_candidates,
    }
    return {
        "k": list(curves.components),
        "score": curves.scores(metric)[p].tolist(),
        "aic": curves.aic[p].tolist(),
        "bic": curves.bic[p].tolist(),
        "train_nll": curves.train_nll[p].tolist(),
        "n_train_cells": [n_train] * n_candidates,
        **(held_out if metric == "heldout_nll" else {}),
    }


def key_of(name: str) -> str:
    """A patient's name as a key that an h5ad file can hold: itself, but "/" as "%2F" and dots alone as "%2E"."""
    if "/" in name or "%2" in name:
        return name.replace("%", "%25").replace("/", "%2F")
    return name if name.strip(".") else name.replace(".", "%2E")
