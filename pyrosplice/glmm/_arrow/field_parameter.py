r"""A number that a field depends on, estimated for each gene by the profile of its (restricted) likelihood.

At every value all else is estimated again. The first values are those of a grid; then steps are halved around each
gene's best one until the parabola through it and its neighbours promises less than a tolerance in nats. Halved steps
are shared: genes whose best values are the same are fitted together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice.effects._field_family import FieldFamily
from pyrosplice.glmm._arrow.effects_fit import EffectsFit, joined_fits
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
PROMISE = 0.005  # nats: a hundredth of what a standard error away costs
LEAST_HALVINGS = 2  # before parabolas are trusted: near no dependence a profile is lopsided between steps of 1
MOST_HALVINGS = 6  # steps of 1/64 of the grid's: only a profile that is no parabola anywhere comes here
FLAT = 1e-3  # nats: a profile that varies by less says nothing


@dataclass(frozen=True)
class FieldParameterFit:
    """Estimates at each gene's best value of the field's number.

    Attributes
    ----------
    fit
        All other estimates, given it.
    coordinate : (G,)
        Where in the family's coordinate.
    flat : (G,)
        Whether the likelihood says nothing about it: no field, or no estimates at all. It is the default then.
    at_end : (G,)
        Whether it is an end of the family's range.
    """

    fit: EffectsFit
    coordinate: Array
    flat: NDArray[np.bool_]
    at_end: NDArray[np.bool_]


def genes_of(problem: EffectsProblem, genes: Rows) -> EffectsProblem:
    """The problem of some of the genes."""
    offset = problem.offset
    own = offset if offset is None or np.ndim(offset) == 1 else offset[genes]
    return replace(problem, counts=problem.counts[torch.from_numpy(genes)], offset=own)


def fit_field_parameter(
    problem: EffectsProblem, family: FieldFamily, *, default: float, tolerance: float = PROMISE
) -> FieldParameterFit:
    """Fit every gene with its own value of what the field depends on, by the restricted likelihood.

    Parameters
    ----------
    problem
        What is fitted; of its field, ``space_by`` counts.
    family
        The fields.
    default
        Coordinate, in the family's range, of genes that say nothing about it.
    tolerance
        What a further step may promise, in nats, by a parabola.
    """
    every, end = np.arange(len(problem.counts)), float(len(family.grid) - 1)
    profile = _Profile(len(every), end, lambda at, genes: _log_likelihood(problem, family, float(family.at(at)), genes))
    for at in range(len(family.grid)):
        profile.evaluate(float(at), every)
    values = np.stack([profile.values[at] for at in range(len(family.grid))])
    flat = ~(values.max(0) - np.where(np.isneginf(values), np.inf, values).min(0) > FLAT)
    step, open_ = 1.0, every[~flat]
    for halving in range(MOST_HALVINGS):
        if halving >= LEAST_HALVINGS:
            open_ = open_[profile.promise(open_, step) > tolerance]
        step /= 2
        best = profile.best[open_]
        for at in np.unique(np.concatenate([best - step, best + step])):
            if 0.0 <= at <= end:
                profile.evaluate(float(at), open_[np.abs(best - at) == step])
    coordinate = np.where(flat, default, family.at(profile.best))
    places = [np.flatnonzero(coordinate == at) for at in np.unique(coordinate)]
    fits = [fit_effects(_at(problem, family, float(coordinate[rows[0]]), rows)) for rows in places]
    at_end = ~flat & np.isin(profile.best, [0.0, end])
    values = np.where(flat, np.nan, [family.value(at) for at in coordinate.tolist()])
    fit = replace(
        joined_fits(fits, places),
        space_values=torch.from_numpy(values[:, None]),
        space_names=(family.name,),
        space_range=(family.value(family.grid[0]), family.value(family.grid[-1])),
    )
    return FieldParameterFit(fit, coordinate, flat, at_end)


def _at(problem: EffectsProblem, family: FieldFamily, at: float, genes: Rows) -> EffectsProblem:
    return replace(genes_of(problem, genes), space=family.solver(at))


def _log_likelihood(problem: EffectsProblem, family: FieldFamily, at: float, genes: Rows) -> Array:
    """Restricted log likelihood of some genes, −∞ of those without estimates there."""
    found = fit_effects(_at(problem, family, at, genes)).log_likelihood.numpy()
    return np.where(np.isnan(found), -np.inf, found)


class _Profile:
    """Profile log likelihoods (G,) by place, in steps of the grid from its start; NaN of genes not evaluated there."""

    def __init__(self, n_genes: int, end: float, log_likelihood: Callable[[float, Rows], Array]):
        self._log_likelihood, self._end = log_likelihood, end
        self.values: dict[float, Array] = {}
        self.best, self._highest = np.full(n_genes, np.nan), np.full(n_genes, -np.inf)

    def evaluate(self, at: float, genes: Rows) -> None:
        """Evaluate some genes."""
        if not len(genes):
            return
        known = self.values.setdefault(at, np.full(len(self.best), np.nan))
        known[genes] = self._log_likelihood(at, genes)
        higher = genes[known[genes] > self._highest[genes]]
        self.best[higher], self._highest[higher] = at, known[higher]

    def promise(self, genes: Rows, step: float) -> Array:
        """What lies above the best value by the parabola through it and two neighbours ``step`` apart, (g,)."""
        best = self.best[genes]
        middle = np.clip(best, step, self._end - step)
        low, mid, high = (self._known(genes, middle + k * step) for k in (-1, 0, 1))
        slope, bend = 0.5 * (high - low), 2 * mid - high - low
        with np.errstate(invalid="ignore", divide="ignore"):
            away = np.where(bend > 0, slope / bend, np.sign(slope))
            peak = mid + slope * np.clip(away, -1, 1) - 0.5 * bend * np.clip(away, -1, 1) ** 2
        unknown = ~np.isfinite(peak)  # no estimates beside the best value: go on
        return np.where(unknown, np.inf, peak - self._highest[genes])

    def _known(self, genes: Rows, at: Array) -> Array:
        return np.array([self.values[where][gene] for where, gene in zip(at.tolist(), genes, strict=True)])
