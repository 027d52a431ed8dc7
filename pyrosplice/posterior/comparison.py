"""Laplace's posterior beside that of NUTS, gene by gene, with a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from pyrosplice.errors import InvalidArgumentError

MEAN_TOLERANCE = 0.15  # NUTS sds
SD_TOLERANCE = 0.15  # relative
RELIABLE = 0.7


def compare_posteriors(
    approximate: xr.DataTree, reference: xr.DataTree, *, sites: Sequence[str] = ("beta", "bias_eta", "sigma", "theta")
) -> pd.DataFrame:
    """One row a gene, site and entry: means, sds, a distance and a verdict.

    Parameters
    ----------
    approximate, reference
        Posteriors of the same genes, for example ``method="laplace"`` and ``method="nuts"``.
    sites
        Variables of the group ``posterior``.

    Returns
    -------
    DataFrame
        ``gene``, ``site``, ``entry``, ``mean``, ``sd``, ``mean_reference``, ``sd_reference``, ``shift`` (in reference
        sds), ``sd_ratio``, ``distance`` (Wasserstein-1 in reference sds), ``monte_carlo`` (error of the shift from the
        reference's effective draws, by batch means), ``pareto_k`` of the approximation and ``verdict``.

    Raises
    ------
    InvalidArgumentError
        Different genes.
    """
    genes = approximate["posterior"].gene.values
    if not np.array_equal(genes, reference["posterior"].gene.values):
        raise InvalidArgumentError("approximate, reference: expected posteriors of the same genes.")
    statistics = approximate["sample_stats"]
    rows = []
    for position, gene in enumerate(genes):
        k_hat = float(np.asarray(statistics["pareto_k"])[0, 0, position]) if "pareto_k" in statistics else np.nan
        for site in sites:
            ours, theirs = (_flat(tree, site, position) for tree in (approximate, reference))
            for entry in range(ours.shape[-1]):
                row = _row(ours[..., entry], theirs[..., entry], k_hat)
                rows.append({"gene": gene, "site": site, "entry": entry, **row})
    return pd.DataFrame(rows)


def _flat(tree: xr.DataTree, site: str, gene: int) -> np.ndarray:
    values = np.asarray(tree["posterior"][site].isel(gene=gene))
    return values.reshape(*values.shape[:2], -1)


def _row(ours: np.ndarray, theirs: np.ndarray, k_hat: float) -> dict[str, object]:
    mean, sd = float(ours.mean()), float(ours.std())
    mean_reference, sd_reference = float(theirs.mean()), float(theirs.std())
    shift, ratio = (mean - mean_reference) / sd_reference, sd / sd_reference
    error = float(np.sqrt(_batch_variance(theirs)) / sd_reference)
    levels = np.linspace(0.005, 0.995, 100)
    distance = np.abs(np.quantile(ours, levels) - np.quantile(theirs, levels)).mean() / sd_reference
    return {
        "mean": mean,
        "sd": sd,
        "mean_reference": mean_reference,
        "sd_reference": sd_reference,
        "shift": shift,
        "sd_ratio": ratio,
        "distance": float(distance),
        "monte_carlo": error,
        "pareto_k": k_hat,
        "verdict": _verdict(shift, ratio, error, k_hat),
    }


def _batch_variance(draws: np.ndarray, n_batches: int = 20) -> float:
    """Variance of the mean of all draws (C, S), from the means of consecutive batches."""
    size = draws.shape[1] * draws.shape[0] // n_batches
    if size == 0:
        return float(draws.var() / draws.size)
    means = draws.reshape(-1)[: size * n_batches].reshape(n_batches, size).mean(1)
    return float(means.var(ddof=1) / n_batches)


def _verdict(shift: float, ratio: float, error: float, k_hat: float) -> str:
    if abs(shift) <= MEAN_TOLERANCE + 2 * error and abs(ratio - 1) <= SD_TOLERANCE:
        words = "agrees"
    else:
        parts = []
        if abs(shift) > MEAN_TOLERANCE + 2 * error:
            parts.append(f"mean {abs(shift):.2f} sd too {'high' if shift > 0 else 'low'}")
        if abs(ratio - 1) > SD_TOLERANCE:
            parts.append(f"sd {abs(ratio - 1):.0%} too {'wide' if ratio > 1 else 'narrow'}")
        words = ", ".join(parts)
    if k_hat > RELIABLE:
        words += f"; k̂ = {k_hat:.2f}: do not trust these draws, use nuts"
    return words
