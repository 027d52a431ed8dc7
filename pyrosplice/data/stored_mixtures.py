"""Mixtures of patients as they are kept in ``uns`` of an AnnData, read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError

WeightsSource = Literal["auto", "stored", "components"]


def stored_table(adata: anndata.AnnData, key: str) -> Mapping[str, Any]:
    """The table of mixtures at ``uns[key]``; an error where there is none."""
    stored = adata.uns.get(key)
    if not isinstance(stored, Mapping) or "model" not in stored or "weight_inference" not in stored:
        raise InvalidArgumentError(
            f"gmm_key: expected a key of uns {sorted(adata.uns)} with mixtures of fit_gmm, found {key!r}."
        )
    return stored


def left_out_of(adata: anndata.AnnData, key: str, rows: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Patients that the stored fit left out: no mixture, and no hard label in ``obs`` of any of their cells.

    Raises
    ------
    InvalidArgumentError
        A patient without a mixture that the fit did not know.
    """
    ids = _ids(stored_table(adata, key))
    absent = [name for name in rows if name not in ids]
    column = f"{key}_comp"
    labels = None if column not in adata.obs else pd.to_numeric(adata.obs[column], errors="coerce").to_numpy(float)
    unknown = [name for name in absent if labels is None or not bool((labels[rows[name]] == -1).all())]
    if unknown:
        raise InvalidArgumentError(f"gmm_key: uns[{key!r}] has no mixture of patients {unknown}; fit again.")
    return absent


def stored_mixtures(
    adata: anndata.AnnData,
    key: str,
    rows: Mapping[str, NDArray[np.int64]],
    *,
    source: WeightsSource,
    n_samples: int | None,
    seed: int,
) -> tuple[Any, Any, Any, bool]:
    """Supports, covariances, weights, and whether they are shared, of patients (and their rows) in ``uns[key]``."""
    stored = stored_table(adata, key)
    ids = _ids(stored)
    order = [ids.index(name) for name in rows]
    means, covariances = np.asarray(stored["model"]["mu"]), np.asarray(stored["model"]["var"])
    shared = str(stored["component_sharing"]) == "global"
    every = stored.get("distribution_weights")
    if source == "stored" and every is None:
        raise InvalidArgumentError(
            f"gmm_weights_source: 'stored', but uns[{key!r}]['distribution_weights'] is None; use 'components', the "
            "shares of the hard labels."
        )
    if source == "components" or every is None:
        weights = _shares_of_labels(adata, key, list(rows.values()), means.shape[1])
    else:
        weights = np.asarray(every, dtype=np.float64)[order]
    pick = [0] * len(order) if shared else order
    if n_samples is None:
        return (means[0], covariances[0], weights, True) if shared else (means[pick], covariances[pick], weights, False)
    points = []
    for p, own in zip(pick, weights, strict=True):
        rng = np.random.default_rng(seed)
        component = rng.choice(len(own), n_samples, p=own / own.sum())
        points.append(np.stack([rng.multivariate_normal(means[p, c], covariances[p, c]) for c in component]))
    return points, None, None, False


def _ids(stored: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in stored["weight_inference"]["distribution_ids"]]


def _shares_of_labels(
    adata: anndata.AnnData, key: str, rows: Sequence[NDArray[np.int64]], n_components: int
) -> NDArray[np.float64]:
    """Share of each component among the hard labels of a patient's cells, ``(P, K)``."""
    column = f"{key}_comp"
    if column not in adata.obs:
        raise InvalidArgumentError(
            f"gmm_weights_source: shares of hard labels need obs[{column!r}], which is not there; fit again."
        )
    labels = pd.to_numeric(adata.obs[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    used = np.concatenate(rows)
    if not np.isin(labels[used], np.arange(n_components)).all():
        raise InvalidArgumentError(
            f"gmm_weights_source: obs[{column!r}]: expected a component 0..{n_components - 1} for every cell of the "
            "patients, found others; fit again."
        )
    return np.array([np.bincount(labels[r].astype(int), minlength=n_components) / len(r) for r in rows])
