"""The steps that mixtures of single patients and shared mixtures have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrosplice._mixture.component_order import in_order_of
from pyrosplice._mixture.em.many import Fit, fit_many
from pyrosplice._mixture.em.one_fit import MixtureForm
from pyrosplice._mixture.em.pooled_prior import pooled_prior
from pyrosplice._mixture.gaussian_mixture import MixtureParameters, gaussian_mixture
from pyrosplice._mixture.mixture_prior import MixturePriors, SitePriors, closed_priors, has_covariances
from pyrosplice._mixture.own_mixture import PARTS, followed_from, in_words
from pyrosplice._mixture.patients.patient_options import GMMOptions
from pyrosplice._mixture.patients.points import PatientCells
from pyrosplice._mixture.patients.selection import Split, split_folds, split_once
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.guides._own_fit import log_density_of, observed_density

MOST_COMPONENTS = 8
ROBUST_FACTOR = 100.0


def candidates(patients: Sequence[PatientCells], options: GMMOptions) -> list[int]:
    """Candidate numbers of components; an error where a patient has too few cells, or priors are of other shapes."""
    given = options.k_comps
    share = 1.0 if given is not None and len(given) == 1 else options.train_size
    if options.n_folds is not None and share < 1:
        share = 1 - 1 / options.n_folds
    smallest = min(patients, key=lambda p: len(p.cells))
    n_train, dim = round(share * len(smallest.cells)), smallest.cells.shape[1]
    if given is None:
        given = list(range(1, max(1, min(MOST_COMPONENTS, n_train // (dim + 1))) + 1))
    for k in given:
        if options.prior != "pooled":
            closed_priors(options.prior, k, dim, options.covariance_type)  # raises for shapes
    if n_train < max(given):
        raise InvalidArgumentError(
            f"k_comps: {max(given)} components, but patient {smallest.name!r} has {n_train} cells to fit; "
            "give fewer components or leave the patient out."
        )
    return given


def split_cells(n_cells: int, options: GMMOptions) -> list[Split]:
    """The cells of one patient to fit candidates to and to judge them by."""
    if options.n_folds is not None:
        return split_folds(n_cells, options.n_folds, options.random_state)
    return split_once(n_cells, options.train_size, options.random_state)


def chosen_prior(sets: Sequence[Tensor], components: Sequence[int], options: GMMOptions) -> MixturePriors:
    """The prior that was asked for; a pooled one is learned from ``sets``."""
    if options.prior != "pooled":
        return options.prior
    return pooled_prior(
        sets,
        components,
        covariance_type=options.covariance_type,
        regularization=options.eps,
        options=options.em,
        seed=options.random_state,
    )


def fit_sets(sets: Sequence[Tensor], components: Sequence[int], options: GMMOptions) -> list[dict[int, Fit]]:
    """Fit every data set with every number of components in one program; alone for priors without a closed form."""
    prior = chosen_prior(sets, components, options)
    lacking = options.not_conjugate
    closed = {k: v for k, v in prior.items() if k not in lacking} if isinstance(prior, Mapping) else prior
    form = MixtureForm(options.covariance_type, closed, 0.0 if has_covariances(closed) else options.eps)
    seed = options.random_state
    fits = fit_many(sets, components, form, n_init=options.n_init, options=options.em, seed=seed)
    if not lacking:
        return fits
    return [
        {k: _followed(fit, cells, options) for k, fit in own.items()} for own, cells in zip(fits, sets, strict=True)
    ]


def _followed(fit: Fit, cells: Tensor, options: GMMOptions) -> Fit:
    """The mode under priors that have no closed form, from EM's fit without them."""
    kind, k = options.covariance_type, fit.parameters.n_components
    priors: Any = options.prior
    program = partial(gaussian_mixture, n_components=k, covariance_type=kind, priors=priors)
    known = SitePriors.of(priors, k, cells.shape[1], kind)
    start, name = in_order_of(known, fit.parameters), f"a mixture with {in_words(options.not_conjugate)}"
    own = followed_from(start, program, name, cells)
    total = float(observed_density(own.guide.density, own.values))
    return Fit(
        MixtureParameters(**{part: own.values[part] for part in PARTS}, covariance_type=kind),
        total,
        float(log_density_of(own.guide.density, own.values)) / len(cells),
        int(own.guide.optimum.evaluations.max()),
        bool(own.guide.converged.all()),
        singular=False,
        distinct=fit.distinct,
    )


def singular_components(fit: Fit, cells: Tensor, eps: float) -> list[int]:
    """Components without cells, or whose covariance less ``eps`` has an eigenvalue of 0 relative to the data's."""
    p = fit.parameters
    smallest = torch.linalg.eigvalsh(p.covariance_matrices()).amin(-1) - eps
    limit = 1e-8 * float(cells.var(0, correction=0).mean())
    bad = (smallest <= max(limit, 1e-12 * eps)) | (p.weights <= 0)
    if fit.singular or fit.distinct < p.n_components:
        bad |= torch.ones_like(bad)
    return [int(i) for i in bad.nonzero()[:, 0]]
