"""Mixtures of patients that an AnnData keeps, as supports, covariances and weights of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError, check_known

WeightsSource = Literal["auto", "stored", "components"]
Rows = Mapping[str, NDArray[np.int64]]


def mixtures_in(adata: anndata.AnnData, key: str) -> Mapping[str, Any]:
    """What ``fit_gmm`` wrote to ``uns[key]``."""
    if not isinstance(adata, anndata.AnnData):
        raise InvalidArgumentError(f"adata: expected an AnnData, found {type(adata).__name__}.")
    check_known("gmm_key", key, sorted(adata.uns), "a key of uns")
    stored = adata.uns[key]
    needed = ("model", "weight_inference", "component_sharing")
    lacking = [name for name in needed if not isinstance(stored, Mapping) or name not in stored]
    if lacking:
        raise InvalidArgumentError(f"gmm_key: uns[{key!r}] is no mixture that fit_gmm stored; it lacks {lacking}.")
    return stored


def check_stored(adata: anndata.AnnData, key: str) -> None:
    """Raise where the places of mixtures hold something else than earlier mixtures, before any work is done."""
    if key in adata.uns:
        mixtures_in(adata, key)
        return
    places = {
        f"obs[{key + '_comp'!r}]": f"{key}_comp" in adata.obs,
        f"obsm[{key + '_resp'!r}]": f"{key}_resp" in adata.obsm,
    }
    taken = [place for place, there in places.items() if there]
    if taken:
        raise InvalidArgumentError(
            f"gmm_key: adata has {taken} already, and no mixtures in uns[{key!r}]; delete these, or choose another key."
        )


def patients_left_out(adata: anndata.AnnData, key: str, rows: Rows) -> list[str]:
    """Patients that the fit left out: no mixture of theirs is stored, and none of their cells has a component."""
    known = _patients(mixtures_in(adata, key))
    column = f"{key}_comp"
    if column not in adata.obs:
        return []
    labels = adata.obs[column].to_numpy()
    return [name for name, own in rows.items() if name not in known and bool((labels[own] == -1).all())]


def stored_mixtures(
    adata: anndata.AnnData, key: str, rows: Rows, *, n_samples: int | None, source: WeightsSource, seed: int
) -> tuple[Any, Any, Any, bool]:
    """Supports, covariances, weights, and whether they are shared, of patients with given rows, from ``uns[key]``.

    With ``n_samples`` the supports are so many points drawn from each mixture, without covariances and weights.
    """
    stored = mixtures_in(adata, key)
    ids = _patients(stored)
    unknown = sorted(set(rows) - set(ids))
    if unknown:
        raise InvalidArgumentError(f"gmm_key: uns[{key!r}] has no mixture of patients {unknown}; fit again.")
    order = [ids.index(name) for name in rows]
    means, covariances = np.asarray(stored["model"]["mu"]), np.asarray(stored["model"]["var"])
    shared = stored["component_sharing"] == "global"
    kept = stored.get("distribution_weights")
    if source == "stored" and kept is None:
        raise InvalidArgumentError(
            f"gmm_weights_source: 'stored', but uns[{key!r}]['distribution_weights'] is None; give 'components' for "
            "the shares of the hard labels in obs, or fit again."
        )
    hard = source == "components" or kept is None
    weights = _shares(adata, key, rows, means.shape[1]) if hard else np.asarray(kept)[order]
    pick = [0] * len(order) if shared else order
    if n_samples is None:
        return (means[0], covariances[0], weights, True) if shared else (means[pick], covariances[pick], weights, False)
    points = []
    for p, own in zip(pick, weights, strict=True):
        rng = np.random.default_rng(seed)
        component = rng.choice(len(own), n_samples, p=own / own.sum())
        draws = [rng.multivariate_normal(means[p, c], covariances[p, c]) for c in component]
        points.append(np.stack(draws))
    return points, None, None, False


def _patients(stored: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in stored["weight_inference"]["distribution_ids"]]


def _shares(adata: anndata.AnnData, key: str, rows: Rows, n_components: int) -> NDArray[np.float64]:
    """Shares of the components among each patient's cells, by the hard labels of ``obs``, ``(P, K)``."""
    column = f"{key}_comp"
    if column not in adata.obs:
        raise InvalidArgumentError(
            f"gmm_weights_source: obs has no hard labels {column!r} to take shares of, and 'stored' weights are the "
            "other source; fit again."
        )
    values = adata.obs[column]
    values = values.astype(object) if isinstance(values.dtype, pd.CategoricalDtype) else values
    labels = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    shares = np.empty((len(rows), n_components))
    for p, (name, own) in enumerate(rows.items()):
        wrong = ~np.isin(labels[own], np.arange(n_components))
        if wrong.any():
            found = adata.obs[column].iloc[own[wrong.argmax()]]
            raise InvalidArgumentError(
                f"gmm_weights_source: obs[{column!r}] says {found!r} for a cell of patient {name!r}; expected a "
                f"component 0 to {n_components - 1} for each of its cells. Fit again."
            )
        shares[p] = np.bincount(labels[own].astype(int), minlength=n_components) / len(own)
    return shares
