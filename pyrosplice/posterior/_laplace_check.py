r"""Where Laplace's draws are off, by their own importance weights: no sampler is run.

The log weights of the draws x would make them exact. With W the normalised, Pareto-smoothed weights, a mean is off by

.. math::
    \delta = \frac{1}{S} \sum_s x_s - \sum_s W_s x_s, \qquad
    \operatorname{se}^2(\delta) = \sum_s \Big[ \tfrac{1}{S} (x_s - \bar x) - W_s (x_s - \bar x_W) \Big]^2

(delta method), and so is a variance, with the squared distance from the weighted mean in the place of x.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._importance import RELIABLE
from pyrosplice.posterior._difference import SURE, Difference, counted, mean_difference, sd_difference
from pyrosplice.posterior._genes import by_unit, entries_of, units_of
from pyrosplice.posterior._sampling import smoothed

DERIVED = ("nu", "theta_logit", "sigma2", "usage", "effect_on_usage", "log2_effect", "dispersion")  # not checked
SHOWN = 3  # entries that a verdict names


def laplace_shifts(tree: xr.DataTree, *, sites: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure how far Laplace's means and sds are off, by the draws' own weights; one row a gene, site and entry.

    Parameters
    ----------
    tree
        Tree of ``posterior(method="laplace")``.
    sites
        Variables of the group ``posterior``; by default coefficients and hyper-parameters. What was plugged in, and so
        does not vary, has no row.

    Returns
    -------
    DataFrame
        ``gene``, ``site``, ``entry``, ``shift`` (Laplace's mean less the weighted one, in weighted sds), ``sd_ratio``
        (Laplace's sd over the weighted one), their standard errors ``shift_error`` and ``sd_ratio_error``, and
        ``pareto_k`` of the gene's draws: above 0.7 the weights are too uneven for any of it.

    Raises
    ------
    InvalidArgumentError
        Draws of another method.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import laplace_shifts
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> laplace_shifts(model.posterior(num_samples=500, seed=0), sites=["beta"])[["gene", "site", "entry"]]
       gene  site  entry
    0     0  beta      0
    1     0  beta      1
    2     1  beta      0
    3     1  beta      1
    """
    if tree.attrs["method"] != "laplace":
        raise InvalidArgumentError(f"tree: expected draws of method='laplace', found {tree.attrs['method']!r}.")
    stats, posterior = tree["sample_stats"], tree["posterior"]
    log_weights = torch.from_numpy(by_unit(stats["log_weight"]).copy()).flatten(0, 1)
    weights, k_hat = torch.softmax(smoothed(log_weights), 0).numpy(), by_unit(stats["pareto_k"])[0, 0]
    rows = []
    for site in sites or [str(name) for name in posterior.data_vars if name not in DERIVED]:
        values = by_unit(posterior[site])
        values = values.reshape(values.shape[0] * values.shape[1], values.shape[2], -1)
        for position, gene in enumerate(units_of(tree)):
            for entry in entries_of(values[:, position]):
                found = _shift(values[:, position, entry], weights[:, position])
                if found is not None:
                    rows.append({"gene": gene, "site": site, "entry": entry, **found, "pareto_k": k_hat[position]})
    return pd.DataFrame(rows)


def laplace_check(tree: xr.DataTree, *, sites: Sequence[str] | None = None) -> pd.DataFrame:
    """Say whether Laplace's draws can be used for a gene, by :func:`laplace_shifts`; one row a gene.

    Returns
    -------
    DataFrame
        Index ``gene``: ``pareto_k``, ``largest_shift`` (of a mean, in sds), ``largest_sd_error`` (relative) and
        ``verdict``. *off*: k̂ is above 0.7, or a mean or sd is off by more than 0.15 (and two standard errors).
        *fine*: none is, two standard errors added. *cannot tell*: more draws are needed. It is a screen, generous with
        *off*; for the genes that matter, NUTS and :func:`~pyrosplice.posterior.compare_posteriors` decide.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import laplace_check
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> laplace_check(model.posterior(num_samples=500, seed=0))["verdict"].tolist()
    ['fine', 'fine']
    """
    shifts = laplace_shifts(tree, sites=sites)
    n_draws = math.prod(tree["sample_stats"].sizes[dim] for dim in ("chain", "draw"))
    rows = []
    for gene, table in shifts.groupby("gene", sort=False):
        rows.append(
            {
                "gene": gene,
                "pareto_k": table["pareto_k"].iloc[0],
                "largest_shift": table["shift"].abs().max(),
                "largest_sd_error": (table["sd_ratio"] - 1).abs().max(),
                "verdict": _verdict(table, n_draws),
            }
        )
    return pd.DataFrame(rows).set_index("gene")


def _shift(draws: np.ndarray, weights: np.ndarray) -> dict[str, float] | None:
    """Shift of the draws (S,) of a number by normalised weights (S,); None where the draws do not differ."""
    mean, exact = draws.mean(), weights @ draws
    squares = (draws - exact) ** 2
    if not draws.std() > 1e-12 * max(abs(mean), 1.0):
        return None
    sd, variance = (weights @ squares) ** 0.5, draws.var()
    ratio = variance**0.5 / sd
    away = (draws - mean) / len(draws) - weights * (draws - exact)
    log_variance = ((draws - mean) ** 2 / variance - 1) / len(draws) - weights * (squares / sd**2 - 1)
    return {
        "shift": float((mean - exact) / sd),
        "shift_error": float((away @ away) ** 0.5 / sd),
        "sd_ratio": float(ratio),
        "sd_ratio_error": float(0.5 * ratio * (log_variance @ log_variance) ** 0.5),
    }


def _verdict(table: pd.DataFrame, n_draws: int) -> str:
    k_hat = float(table["pareto_k"].iloc[0])
    if np.isnan(k_hat):
        return "cannot tell: too few draws for k̂"
    if k_hat > RELIABLE:
        return f"off: k̂ = {k_hat:.2f}; use nuts"
    found = [pair for row in table.to_dict("records") for pair in _differences(row)]
    off = [(where, one) for where, one in found if abs(one.value) > max(one.tolerance, SURE * one.total_error)]
    if off:
        worst = sorted(off, key=lambda pair: -abs(pair[1].value))
        words = ", ".join(f"{where} {one.words}" for where, one in worst[:SHOWN])
        return f"off: {words}{f' and {len(off) - SHOWN} more' if len(off) > SHOWN else ''}; use importance or nuts"
    unclear = [one for _, one in found if one.outcome != "agrees"]
    if unclear:
        more = max(one.more_draws((n_draws, 0))[0] for one in unclear)
        return f"cannot tell: {counted(more)} more draws needed"
    return "fine"


def _differences(row: Mapping[Hashable, Any]) -> list[tuple[str, Difference]]:
    where = f"{row['site']}[{row['entry']}]"
    shift = mean_difference(row["shift"], (row["shift_error"], 0.0))
    return [(where, shift), (where, sd_difference(row["sd_ratio"] - 1, (row["sd_ratio_error"], 0.0)))]
