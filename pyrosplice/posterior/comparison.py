"""Laplace's posterior beside that of NUTS, gene by gene, with a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from pyro.ops.stats import effective_sample_size, split_gelman_rubin

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.inference.importance import RELIABLE
from pyrosplice.posterior.diagnostics import by_unit, units_of

MEAN_TOLERANCE = 0.15  # NUTS sds
SD_TOLERANCE = 0.15  # relative
CONVERGED = 1.05  # R̂ of the reference
FEWEST_DRAWS = 8  # a chain, for R̂ and the effective number of draws


def compare_posteriors(
    approximate: xr.DataTree, reference: xr.DataTree, *, sites: Sequence[str] = ("beta", "bias_eta", "sigma", "theta")
) -> pd.DataFrame:
    """One row a gene, site and entry: means, sds, a distance and a verdict.

    Parameters
    ----------
    approximate, reference
        Posteriors of the same genes (or mixture), for example ``method="laplace"`` and ``method="nuts"``.
    sites
        Variables of the group ``posterior``.

    Returns
    -------
    DataFrame
        ``gene``, ``site``, ``entry``, ``mean``, ``sd``, ``mean_reference``, ``sd_reference``, ``shift`` (in reference
        sds), ``sd_ratio``, ``distance`` (Wasserstein-1 in reference sds), ``ess_reference`` and ``r_hat_reference``
        (effective draws and split R̂), ``monte_carlo`` (error of the shift, from ``ess_reference``), ``pareto_k`` of the
        approximation and ``verdict``.

    Raises
    ------
    InvalidArgumentError
        Different genes.
    """
    genes = units_of(approximate)
    if not np.array_equal(genes, units_of(reference)):
        raise InvalidArgumentError("approximate, reference: expected posteriors of the same genes.")
    statistics = approximate["sample_stats"]
    rows = []
    for position, gene in enumerate(genes):
        k_hat = float(by_unit(statistics["pareto_k"])[0, 0, position]) if "pareto_k" in statistics else np.nan
        for site in sites:
            ours, theirs = (_flat(tree, site, position) for tree in (approximate, reference))
            for entry in range(ours.shape[-1]):
                row = _row(ours[..., entry], theirs[..., entry], k_hat)
                rows.append({"gene": gene, "site": site, "entry": entry, **row})
    return pd.DataFrame(rows)


def _flat(tree: xr.DataTree, site: str, gene: int) -> np.ndarray:
    values = by_unit(tree["posterior"][site])[:, :, gene]
    return values.reshape(*values.shape[:2], -1)


def _row(ours: np.ndarray, theirs: np.ndarray, k_hat: float) -> dict[str, object]:
    mean, sd = float(ours.mean()), float(ours.std())
    mean_reference, sd_reference = float(theirs.mean()), float(theirs.std())
    shift, ratio = (mean - mean_reference) / sd_reference, sd / sd_reference
    ess, r_hat = _convergence(theirs)
    error = ess**-0.5
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
        "ess_reference": ess,
        "r_hat_reference": r_hat,
        "monte_carlo": error,
        "pareto_k": k_hat,
        "verdict": _verdict(shift, ratio, error, k_hat, r_hat),
    }


def _convergence(draws: np.ndarray) -> tuple[float, float]:
    """Effective number of draws (C, S), and split R̂."""
    if draws.shape[1] < FEWEST_DRAWS or not draws.std() > 0:
        return float("nan"), float("nan")
    chains = torch.from_numpy(draws.copy())
    return float(effective_sample_size(chains, 0, 1)), float(split_gelman_rubin(chains, 0, 1))


def _verdict(shift: float, ratio: float, error: float, k_hat: float, r_hat: float) -> str:
    if abs(shift) <= MEAN_TOLERANCE + 2 * error and abs(ratio - 1) <= SD_TOLERANCE:
        words = "agrees"
    else:
        parts = []
        if abs(shift) > MEAN_TOLERANCE + 2 * error:
            parts.append(f"mean {abs(shift):.2f} sd too {'high' if shift > 0 else 'low'}")
        if abs(ratio - 1) > SD_TOLERANCE:
            parts.append(f"sd {abs(ratio - 1):.0%} too {'wide' if ratio > 1 else 'narrow'}")
        words = ", ".join(parts)
    if r_hat > CONVERGED:
        words += f"; the reference itself has not converged (R̂ = {r_hat:.2f}): give it more draws"
    if k_hat > RELIABLE:
        words += f"; k̂ = {k_hat:.2f}: do not trust these draws, use nuts"
    return words
