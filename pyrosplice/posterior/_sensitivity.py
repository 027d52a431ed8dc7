r"""How much the prior says, and whether the data agree: power-scaling of prior and likelihood.

Kallioinen, Paananen, Bürkner and Vehtari (2024, Statistics and Computing 34:57). The prior, or the likelihood, is
raised to the power α by weighting draws with :math:`p^{\alpha - 1}`. Sensitivity is the cumulative Jensen–Shannon
distance of the weighted from the unweighted posterior per doubling of α, with their threshold of 0.05: what a normal
posterior has whose mean moves by a quarter of its sd, or whose sd changes by a quarter.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import xarray as xr

from pyrosplice.posterior._diagnostics import observed_name, require
from pyrosplice.posterior._genes import by_unit, entries_of, units_of
from pyrosplice.posterior._sampling import smoothed

SENSITIVE = ("beta", "sigma", "theta", "location", "scale", "weights", "means")
ALPHAS = (0.8, 1.25)
THRESHOLD = 0.05  # cumulative Jensen–Shannon distance, per doubling
RELEVANT = 0.3  # posterior sds that a mean moves, per doubling


def prior_sensitivity(tree: xr.DataTree, *, sites: tuple[str, ...] = SENSITIVE) -> pd.DataFrame:
    """Measure how much each entry of a site depends on the prior and on the data, and say what that means.

    Parameters
    ----------
    tree
        Tree with groups ``log_prior`` and ``log_likelihood``.
    sites
        Variables of the group ``posterior``; those that it does not have are left out.

    Returns
    -------
    DataFrame
        ``gene``, ``site``, ``entry``; ``prior`` and ``likelihood``: sensitivities, the numbers of ArviZ's
        ``psense_summary``; ``prior_shift`` and ``likelihood_shift``: by how many posterior sds the mean moves when the
        power doubles; and ``diagnosis``:

        *data speak*: the sensitivity to the prior is below 0.05. Otherwise *strong prior or weak likelihood*, if that
        to the likelihood is, and else *prior-data conflict*. Of a conflict it is said by how much the prior moves the
        mean; where that is less than 0.3 posterior sds, *mean hardly moves* goes before (our addition to the paper's
        diagnoses): what hangs on the prior then is the spread.

    Raises
    ------
    NoResultsError
        A tree without one of the two groups.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import prior_sensitivity
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> tree = model.posterior(num_samples=500, groups=("log_prior", "log_likelihood"), seed=0)
    >>> prior_sensitivity(tree, sites=("beta",))["diagnosis"].unique().tolist()
    ['data speak']
    """
    require(tree, "log_prior")
    require(tree, "log_likelihood")
    powers = {
        "prior": by_unit(tree["log_prior"]["lp"]),
        "likelihood": by_unit(tree["log_likelihood"][observed_name(tree)]).sum(-1),
    }
    weights = {name: _weights(value.reshape(-1, value.shape[-1])) for name, value in powers.items()}
    rows = []
    for site in (name for name in sites if name in tree["posterior"] and tree["posterior"][name].size):
        values = by_unit(tree["posterior"][site])
        values = values.reshape(values.shape[0] * values.shape[1], values.shape[2], -1)
        for position, gene in enumerate(units_of(tree)):
            for entry in entries_of(values[:, position]):
                draws, row = values[:, position, entry], {"gene": gene, "site": site, "entry": entry}
                found = {name: [one[:, position] for one in pair] for name, pair in weights.items()}
                row |= {name: _distance_per_doubling(draws, pair) for name, pair in found.items()}
                row |= {f"{name}_shift": _shift_per_doubling(draws, pair) for name, pair in found.items()}
                rows.append(row | {"diagnosis": _diagnosis(row["prior"], row["likelihood"], row["prior_shift"])})
    return pd.DataFrame(rows)


def _weights(log_density: np.ndarray) -> list[np.ndarray]:
    """Normalised weights (S, G) of the draws at each power."""
    logs = (smoothed(torch.from_numpy((alpha - 1) * log_density)) for alpha in ALPHAS)
    return [torch.softmax(one, 0).numpy() for one in logs]


def _distance_per_doubling(draws: np.ndarray, weights: list[np.ndarray]) -> float:
    order = np.argsort(draws)
    steps = np.diff(draws[order])
    if not steps.sum() > 1e-12 * max(1.0, np.abs(draws).max()):
        return 0.0
    found = [
        max(_distance(steps, one[order]), _distance(steps[::-1], one[order][::-1])) / abs(np.log2(alpha))
        for one, alpha in zip(weights, ALPHAS, strict=True)
    ]
    return float(np.mean(found))


def _distance(steps: np.ndarray, weights: np.ndarray) -> float:
    """Cumulative Jensen–Shannon distance of weighted from unweighted sorted draws, ``steps`` apart."""
    p, q = np.arange(1, len(weights)) / len(weights), np.cumsum(weights)[:-1]
    middle = np.log2((p + q) / 2)
    divergence = (p * (np.log2(p) - middle) + q * (np.log2(np.maximum(q, 1e-300)) - middle)) @ steps
    return float(max(divergence / ((p + q) @ steps), 0.0) ** 0.5)


def _shift_per_doubling(draws: np.ndarray, weights: list[np.ndarray]) -> float:
    low, high = (one @ draws for one in weights)
    return float((high - low) / np.log2(ALPHAS[1] / ALPHAS[0]) / max(draws.std(), 1e-12))


def _diagnosis(prior: float, likelihood: float, shift: float) -> str:
    if prior < THRESHOLD:
        return "data speak"
    if likelihood < THRESHOLD:  # whatever the mean does: scaled, a prior that says all stays where it is
        return "strong prior or weak likelihood"
    if abs(shift) < RELEVANT:
        return f"mean hardly moves ({abs(shift):.2f} sd); prior-data conflict"
    return f"prior-data conflict: the prior moves the mean by {abs(shift):.2f} sd"
