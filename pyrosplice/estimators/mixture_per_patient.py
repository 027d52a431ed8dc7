"""``fit_gmm``: a Gaussian mixture for every patient, or one whose weights differ between patients."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from pyrosplice.data.triplets import AnnData_TripletDataset, PatientCells, TripletDataset
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.estimators.mixture_schema import FittedMixtures, store
from pyrosplice.estimators.mixture_selection import Curves, Split, curves_of, mean_and_se, split_folds, split_once
from pyrosplice.inference.em import EMOptions
from pyrosplice.inference.em_batch import Fit, best_components, fit_many, log_joint_of_cells
from pyrosplice.inference.em_pooled import pooled_prior
from pyrosplice.inference.em_shared import SharedFit, fit_shared
from pyrosplice.models.gaussian_mixture import COVARIANCE_TYPES, CovarianceType, MixtureParameters, MixturePrior

logger = logging.getLogger(__name__)

Sharing = Literal["global", "sample_specific", "auto"]
Metric = Literal["bic", "aic", "heldout_nll"]
Refit = Literal["full", "none"]
Handling = Literal["guarded", "robust", "strict"]
AnyDataset = TypeVar("AnyDataset", bound=TripletDataset)

MOST_COMPONENTS = 8
ROBUST_FACTOR = 100.0


class UnknownMetricError(InvalidArgumentError, NotImplementedError):
    """``k_selection_metric`` is not one that this library has."""


@dataclass(frozen=True, kw_only=True)
class GMMOptions:
    """The options of :func:`fit_gmm`, checked."""

    component_sharing: Sharing
    k_comps: int | Sequence[int] | None
    k_selection_metric: Metric
    refit: Refit
    covariance_type: CovarianceType
    train_size: float
    max_iter: int
    tol: float
    n_init: int
    eps: float
    singularity_handling: Handling
    verbose: bool
    prior: MixturePrior | Literal["pooled"] | None
    n_folds: int | None
    random_state: int

    def __post_init__(self) -> None:
        if self.k_selection_metric not in get_args(Metric):
            raise UnknownMetricError(
                f"k_selection_metric: expected one of {get_args(Metric)}, found {self.k_selection_metric!r}."
            )
        check_option("component_sharing", self.component_sharing, get_args(Sharing))
        check_option("refit", self.refit, get_args(Refit))
        check_option("covariance_type", self.covariance_type, COVARIANCE_TYPES)
        check_option("singularity_handling", self.singularity_handling, get_args(Handling))
        if not (isinstance(self.prior, MixturePrior) or self.prior in (None, "pooled")):
            raise InvalidArgumentError(f"prior: expected None, 'pooled' or a MixturePrior, found {self.prior!r}.")
        if not 0 < self.train_size < 1:
            raise InvalidArgumentError(f"train_size: expected a number between 0 and 1, found {self.train_size}.")
        for name, least in (("max_iter", 1), ("n_init", 1), ("tol", 0), ("eps", 0)):
            if not getattr(self, name) >= least:
                raise InvalidArgumentError(f"{name}: expected at least {least}, found {getattr(self, name)}.")
        if self.n_folds is not None and self.n_folds < 2:
            raise InvalidArgumentError(f"n_folds: expected at least 2, found {self.n_folds}.")
        for k in self.candidates or ():
            if not isinstance(k, (int, np.integer)) or k < 1:
                raise InvalidArgumentError(f"k_comps: expected positive integers, found {k!r}.")

    @property
    def candidates(self) -> list[int] | None:
        """Candidate numbers of components, ascending; None for the default range."""
        if self.k_comps is None:
            return None
        if isinstance(self.k_comps, (int, np.integer)):
            return [int(self.k_comps)]
        if len(self.k_comps) == 0:
            raise InvalidArgumentError("k_comps: expected at least one number of components, found none.")
        return sorted(set(self.k_comps))

    @property
    def em(self) -> EMOptions:
        """The options of EM."""
        return EMOptions(max_iter=self.max_iter, tolerance=self.tol, progress=self.verbose)


def fit_gmm(
    dataset: AnyDataset,
    *,
    component_sharing: Sharing = "sample_specific",
    k_comps: int | Sequence[int] | None = None,
    k_selection_metric: Metric = "aic",
    refit: Refit = "none",
    covariance_type: CovarianceType = "full",
    train_size: float = 0.5,
    max_iter: int = 100,
    tol: float = 1e-3,
    n_init: int = 1,
    eps: float = 1e-4,
    singularity_handling: Handling = "guarded",
    gmm_key: str | None = None,
    verbose: bool = True,
    prior: MixturePrior | Literal["pooled"] | None = None,
    n_folds: int | None = None,
    random_state: int = 0,
) -> AnyDataset:
    """Fit a Gaussian mixture to the cells of every patient, all patients × candidates × restarts as one program.

    A patient's result depends neither on the order of the cells nor on the other patients (but through a pooled
    prior, or shared components).

    Parameters
    ----------
    dataset
        :class:`~pyrosplice.data.triplets.TripletDataset` or ``AnnData_TripletDataset``; all cells are fitted.
    component_sharing
        ``"sample_specific"`` (default): a mixture for each patient. ``"global"``: shared components, weights of
        each patient estimated inside EM. ``"auto"``: global for data sets with identical supports.
    k_comps
        Number of components; several are selected from, None from 1..8 as far as the cells allow.
    k_selection_metric
        ``"aic"`` (default), ``"bic"`` or ``"heldout_nll"``.
    refit
        After selection: ``"none"`` keeps the fit to the training cells (the documented default), ``"full"`` fits
        all cells again, which is the better choice.
    covariance_type
        ``"full"`` (default), ``"diag"``, ``"tied"`` or ``"spherical"``.
    train_size
        Share of each patient's cells that candidates are fitted to.
    max_iter, tol
        Most EM iterations; change of the log likelihood per cell at which EM stops.
    n_init
        Restarts from k-means++ seeds.
    eps
        Added to the variances, squared units of the data.
    singularity_handling
        A component whose covariance is singular before ``eps`` is added: ``"guarded"`` (default) goes on,
        ``"robust"`` fits that patient again with 100 ``eps`` and warns, ``"strict"`` raises.
    gmm_key
        Key of ``uns`` (AnnData); ``gmm_<use_rep or X>`` when None.
    verbose
        Show progress, log each patient.
    prior
        None (maximum likelihood), a :class:`~pyrosplice.models.gaussian_mixture.MixturePrior`, or ``"pooled"``: an
        inverse-Wishart prior learned from all patients, for patients with few cells.
    n_folds
        Select by cross-validation with so many folds instead of one split; the best is then fitted to all cells.
    random_state
        Seed of splits and restarts.

    Returns
    -------
    The same data set with components as ``supports``, ``covariances`` and ``weights``; an AnnData also has
    ``uns[gmm_key]``, hard labels ``obs[gmm_key + "_comp"]`` and responsibilities ``obsm[gmm_key + "_resp"]``.

    Raises
    ------
    InvalidArgumentError
        An option is impossible; a patient has NaN, or fewer cells than components; ``"strict"`` and a singular
        covariance. An unknown ``k_selection_metric`` is also a NotImplementedError.
    """
    options = GMMOptions(
        component_sharing=component_sharing,
        k_comps=k_comps,
        k_selection_metric=k_selection_metric,
        refit=refit,
        covariance_type=covariance_type,
        train_size=train_size,
        max_iter=max_iter,
        tol=tol,
        n_init=n_init,
        eps=eps,
        singularity_handling=singularity_handling,
        verbose=verbose,
        prior=prior,
        n_folds=n_folds,
        random_state=random_state,
    )
    patients = [_in_canonical_order(p) for p in dataset.patients()]
    shared = component_sharing == "global" or (component_sharing == "auto" and dataset.identical_supports)
    fitted = _fit_shared_components(patients, options) if shared else _fit_each(patients, options)
    if isinstance(dataset, AnnData_TripletDataset):
        store(dataset, fitted, options, gmm_key or f"gmm_{dataset.use_rep or 'X'}")
    dataset.attach(*fitted.padded(), identical_supports=shared)
    if verbose:
        for patient, mixture in zip(patients, fitted.mixtures, strict=False):
            logger.info("%s: %d components, %d cells", patient.name, mixture.n_components, len(patient.cells))
    return dataset


def _in_canonical_order(patient: PatientCells) -> PatientCells:
    """Cells sorted by their features, so that nothing depends on their order in the table."""
    if not bool(patient.cells.isfinite().all()):
        raise InvalidArgumentError(f"dataset: patient {patient.name!r} has NaN or infinite values; remove those cells.")
    order = np.lexsort(patient.cells.numpy().T[::-1])
    return PatientCells(patient.name, patient.cells[torch.from_numpy(order)], patient.rows[order])


def _candidates(patients: Sequence[PatientCells], options: GMMOptions) -> list[int]:
    """Candidate numbers of components; an error where a patient has too few cells for them."""
    given = options.candidates
    share = 1.0 if given is not None and len(given) == 1 else options.train_size
    if options.n_folds is not None and share < 1:
        share = 1 - 1 / options.n_folds
    smallest = min(patients, key=lambda p: len(p.cells))
    n_train = round(share * len(smallest.cells))
    if given is None:
        dim = smallest.cells.shape[1]
        return list(range(1, max(1, min(MOST_COMPONENTS, n_train // (dim + 1))) + 1))
    if n_train < max(given):
        raise InvalidArgumentError(
            f"k_comps: {max(given)} components, but patient {smallest.name!r} has {n_train} cells to fit; "
            "give fewer components or leave the patient out."
        )
    return given


def _splits(n_cells: int, options: GMMOptions) -> list[Split]:
    if options.n_folds is not None:
        return split_folds(n_cells, options.n_folds, options.random_state)
    return split_once(n_cells, options.train_size, options.random_state)


def _prior(sets: Sequence[Tensor], components: Sequence[int], options: GMMOptions) -> MixturePrior | None:
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


def _fit_sets(sets: Sequence[Tensor], components: Sequence[int], options: GMMOptions) -> list[dict[int, Fit]]:
    return fit_many(
        sets,
        components,
        covariance_type=options.covariance_type,
        n_init=options.n_init,
        prior=_prior(sets, components, options),
        regularization=options.eps,
        options=options.em,
        seed=options.random_state,
    )


# ---- a mixture for each patient ---------------------------------------------------------------------------------


def _fit_each(patients: Sequence[PatientCells], options: GMMOptions) -> FittedMixtures:
    components = _candidates(patients, options)
    cells = [p.cells for p in patients]
    curves, splits = None, [_splits(len(x), options) for x in cells]
    if len(components) == 1:
        chosen, sets = components * len(patients), cells
        fits = [own[k] for own, k in zip(_fit_sets(sets, components, options), chosen, strict=True)]
    else:
        per_fold, curves = _judge(cells, splits, components, options)
        chosen = [best_components(dict(zip(components, s, strict=True))) for s in curves.scores(_metric(options))]
        if options.refit == "full" or options.n_folds is not None:
            sets = cells
            every = _fit_sets(sets, sorted(set(chosen)), options)
            fits = [own[k] for own, k in zip(every, chosen, strict=True)]
        else:
            sets = [x[own[0].train] for x, own in zip(cells, splits, strict=True)]
            fits = [folds[0][k] for folds, k in zip(per_fold, chosen, strict=True)]
    fits = [_handled(p.name, x, f, options) for p, x, f in zip(patients, sets, fits, strict=True)]
    return FittedMixtures(
        patients=tuple(patients),
        mixtures=tuple(f.parameters for f in fits),
        weights=tuple(f.parameters.weights for f in fits),
        n_fitted=tuple(len(x) for x in sets),
        shared=False,
        curves=curves,
        chosen=tuple(chosen),
        n_train=tuple(len(s[0].train) for s in splits),
    )


def _judge(
    cells: Sequence[Tensor], splits: Sequence[Sequence[Split]], components: Sequence[int], options: GMMOptions
) -> tuple[list[list[dict[int, Fit]]], Curves]:
    """Every candidate fitted to every patient's training cells, and its criteria."""
    training = [x[split.train] for x, own in zip(cells, splits, strict=True) for split in own]
    flat = _fit_sets(training, components, options)
    n_folds = len(splits[0])
    per_fold = [flat[i : i + n_folds] for i in range(0, len(flat), n_folds)]
    held_out = [[x[s.held_out] for s in own] for x, own in zip(cells, splits, strict=True)]
    curves = curves_of(per_fold, held_out, [[len(s.train) for s in own] for own in splits])
    if _metric(options) == "heldout_nll" and bool(np.isnan(curves.heldout_nll).any()):
        raise InvalidArgumentError("train_size: a patient has no cell left to judge candidates by; give a smaller one.")
    return per_fold, curves


def _metric(options: GMMOptions) -> str:
    return "heldout_nll" if options.n_folds is not None else options.k_selection_metric


def _handled(name: str, cells: Tensor, fit: Fit, options: GMMOptions) -> Fit:
    """Apply ``singularity_handling`` to one fit."""
    bad = _singular_components(fit, cells, options.eps)
    if not bad:
        return fit
    found = f"patient {name!r}: components {bad} of {fit.parameters.n_components} have singular covariances"
    advice = "fewer components, covariance_type='diag', prior='pooled' or a larger eps"
    if options.singularity_handling == "strict" or (fit.singular and options.eps == 0):
        raise InvalidArgumentError(f"singularity_handling: {found}; try {advice}.")
    if options.singularity_handling == "guarded":
        logger.info("%s; eps=%g was added.", found, options.eps)
        return fit
    eps = ROBUST_FACTOR * options.eps
    warnings.warn(f"{found}; fitted again with eps={eps:g}. Try {advice}.", stacklevel=4)
    again = _fit_sets([cells], [fit.parameters.n_components], replace(options, eps=eps, prior=None, verbose=False))
    return again[0][fit.parameters.n_components]


def _singular_components(fit: Fit, cells: Tensor, eps: float) -> list[int]:
    """Components without cells, or whose covariance less ``eps`` has an eigenvalue of 0 relative to the data's."""
    p = fit.parameters
    smallest = torch.linalg.eigvalsh(p.covariance_matrices()).amin(-1) - eps
    limit = 1e-8 * float(cells.var(0, correction=0).mean())
    bad = (smallest <= max(limit, 1e-12 * eps)) | (p.weights <= 0)
    if fit.singular or fit.distinct < p.n_components:
        bad |= torch.ones_like(bad)
    return [int(i) for i in bad.nonzero()[:, 0]]


# ---- components shared by all patients --------------------------------------------------------------------------


def _fit_shared_components(patients: Sequence[PatientCells], options: GMMOptions) -> FittedMixtures:
    every = PatientCells("all patients", torch.cat([p.cells for p in patients]), np.arange(0))
    groups = torch.repeat_interleave(torch.arange(len(patients)), torch.tensor([len(p.cells) for p in patients]))
    components = _candidates([every], options)
    splits = _shared_splits(patients, options)
    curves, chosen = None, components[0]
    whole = len(components) == 1
    if not whole:
        judged = [_fit_one_shared(every.cells, groups, s, components, options) for s in splits]
        curves = _shared_curves(every.cells, groups, splits, judged)
        chosen = best_components(dict(zip(components, curves.scores(_metric(options))[0], strict=True)))
        whole = options.refit == "full" or options.n_folds is not None
    if whole:
        used = np.arange(len(every.cells))
        fit = _fit_one_shared(every.cells, groups, Split(used, used[:0]), [chosen], options)[chosen]
    else:
        used, fit = splits[0].train, judged[0][chosen]
    plain = Fit(fit.parameters, fit.log_likelihood, 0.0, fit.n_iter, fit.converged, fit.singular, chosen)
    bad = _singular_components(plain, every.cells, options.eps)
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
    own = [_splits(len(p.cells), options) for p in patients]
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
    prior = _prior([training], components, options)
    (starts,) = _fit_sets([training], components, replace(options, prior=prior))
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
