"""Laplace's posterior beside that of NUTS, gene by gene, with a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from pyro.ops.stats import effective_sample_size, split_gelman_rubin

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._importance import RELIABLE
from pyrosplice.posterior._chains import INDEPENDENT
from pyrosplice.posterior._difference import Difference, counted, mean_difference, sd_difference
from pyrosplice.posterior._genes import by_unit, entries_of, units_of

CONVERGED = 1.05  # R̂ of the reference
FEWEST_DRAWS = 8  # a chain, for R̂ and the effective number of draws


def compare_posteriors(
    approximate: xr.DataTree, reference: xr.DataTree, *, sites: Sequence[str] = ("beta", "bias_eta", "sigma", "theta")
) -> pd.DataFrame:
    """Compare two posteriors: means, sds, a distance and a verdict, one row a gene, site and entry.

    Parameters
    ----------
    approximate, reference
        Posteriors of the same genes (or mixture), for example ``method="laplace"`` and ``method="nuts"``.
    sites
        Variables of the group ``posterior``.

    Returns
    -------
    DataFrame
        ``gene``, ``site``, ``entry``, ``mean``, ``sd``, ``mean_reference``, ``sd_reference``, ``shift`` (of the mean,
        in reference sds), ``sd_ratio``, both with their Monte Carlo standard errors ``shift_error`` and
        ``sd_ratio_error`` (from the effective draws of both posteriors), ``distance`` (Wasserstein-1 in reference
        sds), ``ess_reference`` and ``r_hat_reference`` (effective draws and split R̂), ``pareto_k`` of the
        approximation, ``verdict`` and ``more_draws``.

        The verdict begins with one of three outcomes. *agrees*: the sizes of ``shift`` and of ``sd_ratio − 1`` plus
        two standard errors are within 0.15. *differs*: one of them less two standard errors is not. *cannot tell*:
        the draws are too few to say, and ``more_draws`` of the reference would do if the difference stays as it is (0
        for other outcomes).

    Raises
    ------
    InvalidArgumentError
        Different genes; fewer than 8 draws a chain (of all, where they are independent).

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import compare_posteriors
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> reference = model.posterior(num_samples=500, seed=1)  # method="nuts" in earnest
    >>> table = compare_posteriors(model.posterior(num_samples=500, seed=0), reference, sites=["beta"])
    >>> table[["gene", "site", "entry"]]
       gene  site  entry
    0     0  beta      0
    1     0  beta      1
    2     1  beta      0
    3     1  beta      1
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
            for entry in entries_of(theirs):
                row = _row(ours[..., entry], theirs[..., entry], k_hat)
                rows.append({"gene": gene, "site": site, "entry": entry, **row})
    return pd.DataFrame(rows)


def _flat(tree: xr.DataTree, site: str, gene: int) -> np.ndarray:
    values = by_unit(tree["posterior"][site])[:, :, gene]
    values = values.reshape(*values.shape[:2], -1)
    # which chain an independent draw is in says nothing, and short chains know less of the effective number
    return values.reshape(1, -1, values.shape[2]) if tree.attrs.get("method") in INDEPENDENT else values


def _row(ours: np.ndarray, theirs: np.ndarray, k_hat: float) -> dict[str, object]:
    here, there = _Summary.of(ours), _Summary.of(theirs)
    row = {
        "mean": here.mean,
        "sd": here.sd,
        "mean_reference": there.mean,
        "sd_reference": there.sd,
        "ess_reference": there.ess,
        "r_hat_reference": there.r_hat,
        "pareto_k": k_hat,
    }
    if not there.sd > 0:
        return {**row, "verdict": "not compared: one value in all draws of the reference"}
    scale = here.sd / there.sd
    shift = mean_difference((here.mean - there.mean) / there.sd, (scale * here.ess**-0.5, there.ess**-0.5))
    width = sd_difference(scale - 1, (scale * here.width_error, scale * there.width_error))
    draws = (here.n_draws, there.n_draws)
    verdict, more = _verdict((shift, width), draws, k_hat, there.r_hat)
    levels = np.linspace(0.005, 0.995, 100)
    distance = np.abs(np.quantile(ours, levels) - np.quantile(theirs, levels)).mean() / there.sd
    return {
        **row,
        "shift": shift.value,
        "shift_error": shift.total_error,
        "sd_ratio": scale,
        "sd_ratio_error": width.total_error,
        "distance": float(distance),
        "more_draws": more,
        "verdict": verdict,
    }


@dataclass(frozen=True)
class _Summary:
    """Summary of draws (C, S) of a number: mean, sd, effective draws, split R̂, Monte Carlo error of the sd.

    Draws that do not vary are known without error.
    """

    mean: float
    sd: float
    ess: float
    r_hat: float
    width_error: float
    n_draws: int

    @classmethod
    def of(cls, draws: np.ndarray) -> _Summary:
        if draws.shape[1] < FEWEST_DRAWS:
            found = f"expected {FEWEST_DRAWS} draws a chain or more, found {draws.shape[1]}"
            raise InvalidArgumentError(f"approximate, reference: {found}.")
        mean, sd = float(draws.mean()), float(draws.std())
        if not sd > 1e-12 * max(abs(mean), 1.0):
            return cls(mean, 0.0, math.inf, 1.0, 0.0, draws.size)
        squares = ((draws - mean) / sd) ** 2
        chains, spread = torch.from_numpy(draws.copy()), torch.from_numpy(squares)
        ess, ess_squares = (float(effective_sample_size(x, 0, 1)) for x in (chains, spread))
        r_hat = float(split_gelman_rubin(chains, 0, 1))
        return cls(mean, sd, ess, r_hat, 0.5 * float(squares.std()) * ess_squares**-0.5, draws.size)


def _verdict(
    differences: tuple[Difference, ...], draws: tuple[int, int], k_hat: float, r_hat: float
) -> tuple[str, float]:
    """Say in words whether two posteriors agree, and how many more reference draws it takes (0 if it stands)."""
    differing = [one for one in differences if one.outcome == "differs"]
    unclear = [one for one in differences if one.outcome == "cannot tell"]
    more = 0.0
    if r_hat > CONVERGED:
        more = float(draws[1])
        words = (
            f"cannot tell: the reference has not converged (R̂ = {r_hat:.2f}), {counted(more)} more NUTS draws needed"
        )
    elif differing:
        words = "differs: " + ", ".join(one.words for one in differing)
    elif unclear:
        needed = [one.more_draws(draws) for one in unclear]
        own, more = max(n for n, _ in needed), max(n for _, n in needed)
        words = "cannot tell: " + ", ".join(one.words for one in unclear)
        words += f"; {counted(more)} more NUTS draws needed" + (f" and {counted(own)} more of these" if own else "")
    else:
        words = "agrees"
    if k_hat > RELIABLE:
        words += f"; k̂ = {k_hat:.2f}: do not trust these draws, use nuts"
    return words, more
