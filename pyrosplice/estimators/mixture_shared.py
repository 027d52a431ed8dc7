"""Mixtures whose components all patients share, with weights of their own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyrosplice.data.triplets import PatientCells
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.estimators.mixture_options import GMMOptions
from pyrosplice.estimators.mixture_schema import FittedMixtures
from pyrosplice.estimators.mixture_selection import Curves, Split, mean_and_se
from pyrosplice.estimators.mixture_steps import (
    ROBUST_FACTOR,
    candidates,
    chosen_prior,
    fit_sets,
    singular_components,
    split_cells,
)
from pyrosplice.inference.em_batch import Fit, best_components, log_joint_of_cells
from pyrosplice.inference.em_shared import SharedFit, fit_shared
from pyrosplice.models.gaussian_mixture import MixtureParameters


def fit_shared_components(patients: Sequence[PatientCells], options: GMMOptions) -> FittedMixtures:
    """One set of components for all cells, weights of each patient estimated inside EM."""
    every = PatientCells("all patients", torch.cat([p.cells for p in patients]), np.arange(0))
    groups = torch.repeat_interleave(torch.arange(len(patients)), torch.tensor([len(p.cells) for p in patients]))
    components = candidates([every], options)
    splits = _shared_splits(patients, options)
    curves, chosen = None, components[0]
    whole = len(components) == 1
    if not whole:
        judged = [_fit_one_shared(every.cells, groups, s, components, options) for s in splits]
        curves = _shared_curves(every.cells, groups, splits, judged)
        chosen = best_components(dict(zip(components, curves.scores(options.metric)[0], strict=True)))
        whole = options.refit == "full" or options.n_folds is not None
    if whole:
        used = np.arange(len(every.cells))
        fit = _fit_one_shared(every.cells, groups, Split(used, used[:0]), [chosen], options)[chosen]
    else:
        used, fit = splits[0].train, judged[0][chosen]
    plain = Fit(fit.parameters, fit.log_likelihood, 0.0, fit.n_iter, fit.converged, fit.singular, chosen)
    bad = singular_components(plain, every.cells, options.eps)
    if bad and options.singularity_handling == "strict":
        raise InvalidArgumentError(f"singularity_handling: shared components {bad} have singular covariances.")
    if bad and options.singularity_handling == "robust":
        warnings.warn(f"Shared components {bad} are singular; fitted again with 100 eps.", stacklevel=3)
        more = replace(options, eps=ROBUST_FACTOR * options.eps)
        fit = _fit_one_shared(every.cells, groups, Split(used, used[:0]), [chosen], more)[chosen]
    return FittedMixtures(
        patients=tuple(patients),
        mixtures=(fit.parameters,),
        weights=tuple(fit.group_weights),
        n_fitted=(len(used),),
        shared=True,
        curves=curves,
        chosen=(chosen,),
        n_train=(len(splits[0].train),),
    )


def _shared_splits(patients: Sequence[PatientCells], options: GMMOptions) -> list[Split]:
    """Every patient split on its own, the parts put together."""
    own = [split_cells(len(p.cells), options) for p in patients]
    starts = np.concatenate([[0], np.cumsum([len(p.cells) for p in patients])])
    return [
        Split(
            np.concatenate([s[f].train + a for s, a in zip(own, starts, strict=False)]),
            np.concatenate([s[f].held_out + a for s, a in zip(own, starts, strict=False)]),
        )
        for f in range(len(own[0]))
    ]


def _fit_one_shared(
    cells: Tensor, groups: Tensor, split: Split, components: Sequence[int], options: GMMOptions
) -> dict[int, SharedFit]:
    training = cells[split.train]
    prior = chosen_prior([training], components, options)
    (starts,) = fit_sets([training], components, replace(options, prior=prior))
    return {
        k: fit_shared(
            training,
            groups[split.train],
            fit.parameters,
            prior=prior,
            regularization=options.eps,
            options=replace(options.em, progress=False),
        )
        for k, fit in starts.items()
    }


def _shared_curves(
    cells: Tensor, groups: Tensor, splits: Sequence[Split], judged: Sequence[dict[int, SharedFit]]
) -> Curves:
    components = tuple(judged[0])
    n_groups = int(groups.max()) + 1
    rows = np.full((5, len(components)), np.nan)
    for c, k in enumerate(components):
        free = [f[k].parameters.n_free() + (n_groups - 1) * (k - 1) for f in judged]
        fits = [(f[k], p, len(s.train)) for f, p, s in zip(judged, free, splits, strict=True)]
        rows[0, c] = np.mean([2 * p - 2 * f.log_likelihood for f, p, _ in fits])
        rows[1, c] = np.mean([p * np.log(n) - 2 * f.log_likelihood for f, p, n in fits])
        rows[2, c] = np.mean([-f.log_likelihood / n for f, _, n in fits])
        nll = [shared_nll(f[k], cells[s.held_out], groups[s.held_out]) for f, s in zip(judged, splits, strict=True)]
        if all(len(x) for x in nll):
            rows[3, c], rows[4, c] = mean_and_se(torch.cat(nll).numpy())
    return Curves(components, *rows[:, None])


def shared_nll(fit: SharedFit, cells: Tensor, groups: Tensor) -> Tensor:
    """Negative log likelihood ``(N,)`` of cells of given groups under shared components."""
    return -shared_log_joint(fit.parameters, fit.group_weights[groups], cells).logsumexp(1)


def shared_log_joint(components: MixtureParameters, weights: Tensor, cells: Tensor) -> Tensor:
    """Log joint densities ``(N, M)`` with weights ``(N, M)`` of their own for each cell."""
    even = replace(components, weights=torch.full_like(components.weights, 1 / components.n_components))
    ((joint,),) = log_joint_of_cells([cells], [[even]])
    return joint - even.weights.log() + weights.clamp_min(1e-300).log()
