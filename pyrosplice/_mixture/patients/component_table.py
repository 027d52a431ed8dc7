"""The mixtures of patients as one tidy table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError


def mixture_table(gmm: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate the mixtures of patients, a row a patient, component and feature.

    Parameters
    ----------
    gmm
        ``dataset.gmm`` after ``fit_gmm``, or ``adata.uns[gmm_key]``.

    Returns
    -------
    DataFrame
        ``patient``, ``component`` (from 0, as the labels in ``obs``), ``feature`` (its number in the representation),
        ``weight``, ``mean``, ``sd`` and ``fit_ended``. Components that a patient has not are left out; shared ones
        stand once a patient, with its weights.

    Raises
    ------
    InvalidArgumentError
        Something else.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import TripletDataset, fit_gmm, mixture_table
    >>> cells = list(np.random.default_rng(0).normal(size=(2, 30, 2)))
    >>> fitted = fit_gmm(TripletDataset(cells, [0, 1]), k_comps=1, verbose=False)
    >>> mixture_table(fitted.gmm)[["component", "feature", "weight"]].values.tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    if not isinstance(gmm, Mapping) or "weight_inference" not in gmm:
        raise InvalidArgumentError("gmm: expected dataset.gmm after fit_gmm, or adata.uns[gmm_key].")
    names = [str(name) for name in gmm["weight_inference"]["distribution_ids"]]
    means, covariances = (np.asarray(gmm["model"][name], dtype=np.float64) for name in ("mu", "var"))
    weights, kept = np.asarray(gmm["distribution_weights"]), np.asarray(gmm["distribution_n_components"])
    parts = []
    for p, name in enumerate(names):
        own, k = min(p, len(means) - 1), int(kept[p])  # one mixture where components are shared
        d = means.shape[2]
        parts.append(
            pd.DataFrame(
                {
                    "patient": name,
                    "component": np.repeat(np.arange(k), d),
                    "feature": np.tile(np.arange(d), k),
                    "weight": np.repeat(weights[p, :k], d),
                    "mean": means[own, :k].ravel(),
                    "sd": np.sqrt(covariances[own, :k].diagonal(axis1=1, axis2=2)).ravel(),
                    "fit_ended": str(gmm["distribution_reasons"][p]),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
