"""Mixtures whose components all patients share, with weights of their own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._mixture.em.loop import why_ended
from pyrosplice._mixture.em.many import Fit, best_components, log_joint_of_cells
from pyrosplice._mixture.em.one_fit import MixtureForm
from pyrosplice._mixture.em.shared import SharedFit, fit_shared
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import MixturePrior
from pyrosplice._mixture.patients.patient_options import GMMOptions
from pyrosplice._mixture.patients.points import PatientCells
from pyrosplice._mixture.patients.schema import FittedMixtures
from pyrosplice._mixture.patients.selection import Curves, Split, mean_and_se
from pyrosplice._mixture.patients.steps import (
    ROBUST_FACTOR,
    candidates,
    chosen_prior,
    fit_sets,
    singular_components,
    split_cells,
)
from pyrosplice.errors import InvalidArgumentError, RefusedModelError


@dataclass(frozen=True)
class _Cells:
    """Cells of all patients: values ``(N, D)``, patients ``(N,)``, and how many each counts as ``(N,)`` or None."""

    values: Tensor
    groups: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, patients: Sequence[PatientCells]) -> _Cells:
        sizes = torch.tensor([len(p.cells) for p in patients])
        weights = [p.weights for p in patients if p.weights is not None]
        groups = torch.repeat_interleave(torch.arange(len(patients)), sizes)
        return cls(torch.cat([p.cells for p in patients]), groups, torch.cat(weights) if weights else None)

    def take(self, rows: NDArray[np.int64]) -> _Cells:
        return _Cells(self.values[rows], self.groups[rows], None if self.weights is None else self.weights[rows])

    def total(self) -> float:
        return float(len(self.values) if self.weights is None else self.weights.sum())


def fit_shared_components(patients: Sequence[PatientCells], options: GMMOptions) -> FittedMixtures:
    """Fit one set of components to all cells, with weights of each patient estimated inside EM."""
    _require_followed(options)
    every = _Cells.of(patients)
    components = candidates([PatientCells("all patients", every.values, np.arange(0))], options)
    splits = _shared_splits(patients, options)
    curves, chosen = None, components[0]
    whole = len(components) == 1
    if not whole:
        judged = [_fit_one_shared(every.take(s.train), components, options) for s in splits]
        curves = _shared_curves(every, splits, judged)
        chosen = best_components(dict(zip(components, curves.scores(options.metric)[0], strict=True)))
        whole = options.refit == "full" or options.n_folds is not None
    if whole:
        used = np.arange(len(every.values))
        fit = _fit_one_shared(every, [chosen], options)[chosen]
    else:
        used, fit = splits[0].train, judged[0][chosen]
    plain = Fit(fit.parameters, fit.log_likelihood, 0.0, fit.n_iter, fit.converged, fit.singular, chosen)
    bad = singular_components(plain, every.values, options.added)
    if bad and options.singularity_handling == "strict":
        raise InvalidArgumentError(f"singularity_handling: shared components {bad} have singular covariances.")
    if bad and options.singularity_handling == "robust":
        warnings.warn(f"Shared components {bad} are singular; fitted again with 100 eps.", stacklevel=3)
        more = replace(options, eps=ROBUST_FACTOR * options.eps)
        fit = _fit_one_shared(every.take(used), [chosen], more)[chosen]
    if fit.singular:
        raise InvalidArgumentError(
            f"eps: a covariance of the shared components is singular, or too small against the spread of the data, at "
            f"{options.eps}; give a larger value, fewer components or a prior."
        )
    return FittedMixtures(
        patients=tuple(patients),
        mixtures=(fit.parameters,),
        weights=tuple(fit.group_weights),
        n_fitted=(len(used),),
        reasons=(why_ended(converged=fit.converged, singular=fit.singular),),
        shared=True,
        curves=curves,
        chosen=(chosen,),
        n_train=(len(splits[0].train),),
    )


def _require_followed(options: GMMOptions) -> None:
    """Raise where shared components, or the patients' weights of them, would not follow a prior."""
    if options.not_conjugate:
        raise RefusedModelError(
            f"priors: shared components are fitted by EM, which has no closed form for {options.not_conjugate}; give "
            "conjugate ones, or component_sharing='sample_specific'."
        )
    by_site, prior = options.prior if isinstance(options.prior, Mapping) else {}, options.prior
    if by_site.get("weights") is not None or (isinstance(prior, MixturePrior) and prior.concentration != 1):
        raise RefusedModelError(
            "priors['weights']: with shared components every patient has weights of its own, which are estimated "
            "without a prior; leave it out, or give component_sharing='sample_specific'."
        )


def _shared_splits(patients: Sequence[PatientCells], options: GMMOptions) -> list[Split]:
    """Split every patient on its own, and put the parts together."""
    own = [split_cells(len(p.cells), options) for p in patients]
    starts = np.concatenate([[0], np.cumsum([len(p.cells) for p in patients])])
    return [
        Split(
            np.concatenate([s[f].train + a for s, a in zip(own, starts, strict=False)]),
            np.concatenate([s[f].held_out + a for s, a in zip(own, starts, strict=False)]),
        )
        for f in range(len(own[0]))
    ]


def _fit_one_shared(training: _Cells, components: Sequence[int], options: GMMOptions) -> dict[int, SharedFit]:
    prior = chosen_prior([training.values], components, options)
    (starts,) = fit_sets([training.values], components, replace(options, prior=prior))
    form = MixtureForm(options.covariance_type, prior, options.added)
    quiet, cells = replace(options.em, progress=False), (training.values, training.groups)
    return {k: fit_shared(*cells, fit.parameters, form, quiet, training.weights) for k, fit in starts.items()}


def _shared_curves(every: _Cells, splits: Sequence[Split], judged: Sequence[dict[int, SharedFit]]) -> Curves:
    components = tuple(judged[0])
    n_groups = int(every.groups.max()) + 1
    sizes = [every.take(s.train).total() for s in splits]
    held_out = every.take(np.concatenate([s.held_out for s in splits]))
    weights = None if held_out.weights is None else held_out.weights.numpy()
    rows = np.full((5, len(components)), np.nan)
    for c, k in enumerate(components):
        free = [f[k].parameters.n_free() + (n_groups - 1) * (k - 1) for f in judged]
        fits = [(f[k], p, n) for f, p, n in zip(judged, free, sizes, strict=True)]
        rows[0, c] = np.mean([2 * p - 2 * f.log_likelihood for f, p, _ in fits])
        rows[1, c] = np.mean([p * np.log(n) - 2 * f.log_likelihood for f, p, n in fits])
        rows[2, c] = np.mean([-f.log_likelihood / n for f, _, n in fits])
        parts = [(f[k], every.take(s.held_out)) for f, s in zip(judged, splits, strict=True)]
        nll = [shared_nll(fit, part.values, part.groups) for fit, part in parts if len(part.values)]
        if len(nll) == len(parts):
            rows[3, c], rows[4, c] = mean_and_se(torch.cat(nll).numpy(), weights)
    return Curves(components, *rows[:, None])


def shared_nll(fit: SharedFit, cells: Tensor, groups: Tensor) -> Tensor:
    """Negative log likelihood ``(N,)`` of cells of given groups under shared components."""
    return -shared_log_joint(fit.parameters, fit.group_weights[groups], cells).logsumexp(1)


def shared_log_joint(components: MixtureParameters, weights: Tensor, cells: Tensor) -> Tensor:
    """Log joint densities ``(N, M)`` with weights ``(N, M)`` of their own for each cell."""
    even = replace(components, weights=torch.full_like(components.weights, 1 / components.n_components))
    ((joint,),) = log_joint_of_cells([cells], [[even]])
    return joint - even.weights.log() + weights.clamp_min(1e-300).log()
