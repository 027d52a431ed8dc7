"""``fit_gmm``: a Gaussian mixture for every patient, or one whose weights differ between patients."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyrosplice._mixture.em.many import Fit, best_components
from pyrosplice._mixture.em.pooled_prior import prior_of_mixtures
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType, MixturePrior, MixturePriors
from pyrosplice._mixture.patients.patient_options import (
    EPS,
    GMMOptions,
    Handling,
    Metric,
    Refit,
    Sharing,
    candidate_numbers,
    priors_of_patients,
)
from pyrosplice._mixture.patients.points import PatientCells
from pyrosplice._mixture.patients.schema import FittedMixtures, schema_of, store
from pyrosplice._mixture.patients.selection import Curves, Split, curves_of, warn_of_edges
from pyrosplice._mixture.patients.shared_components import fit_shared_components
from pyrosplice._mixture.patients.steps import (
    ROBUST_FACTOR,
    candidates,
    fit_sets,
    singular_components,
    split_cells,
)
from pyrosplice._mixture.patients.stored_mixtures import check_stored
from pyrosplice._mixture.patients.triplets import AnnData_TripletDataset, TripletDataset
from pyrosplice.errors import InvalidArgumentError, own_options_only

logger = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", bound=TripletDataset)


@own_options_only
def fit_gmm(  # noqa: PLR0913 (a documented interface)
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
    eps: float = EPS,
    singularity_handling: Handling = "guarded",
    gmm_key: str | None = None,
    verbose: bool = True,
    prior: MixturePrior | Literal["pooled"] | None = None,
    n_folds: int | None = None,
    random_state: int = 0,
    priors: MixturePriors | Literal["pooled"] = None,
) -> AnyDataset:
    """Fit a Gaussian mixture to the cells of every patient, all patients × candidates × restarts as one program.

    A patient's result depends neither on the order of the cells nor on the other patients (but through a pooled
    prior, or shared components).

    Parameters
    ----------
    dataset
        :class:`~pyrosplice._mixture.patients.triplets.TripletDataset` or ``AnnData_TripletDataset``; all cells are
        fitted.
    component_sharing
        ``"sample_specific"`` (default): a mixture for each patient. ``"global"``: shared components, weights of
        each patient estimated inside EM. ``"auto"``: global for data sets with identical supports, whose points
        count as the patients weight them; ``"sample_specific"`` is not possible there.
    k_comps
        Number of components; several are selected from, None from 1..8 as far as the cells allow.
    k_selection_metric
        ``"aic"`` (default, as documented), ``"bic"`` or ``"heldout_nll"``. AIC takes too many components where there
        are few cells (below): give ``n_folds=5``, or ``"bic"`` with ``prior="pooled"`` from 200 cells a patient.
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
        Key of ``uns``, for an AnnData only; ``gmm_<use_rep or X>`` when None.
    verbose
        Show progress, log each patient.
    prior
        A :class:`~pyrosplice._mixture.mixture_prior.MixturePrior`, conjugate ``priors`` in numbers, or ``"pooled"``.
    n_folds
        Select by cross-validation with so many folds instead of one split; the best is then fitted to all cells.
    random_state
        Seed of splits and restarts.
    priors
        Priors of each patient's mixture, as those of :class:`~pyrosplice.GaussianMixture`: None (maximum likelihood),
        Pyro distributions by site, ``"weak"`` of the patient's cells, or ``"pooled"``: an inverse-Wishart prior learned
        from all patients, for patients with few cells. A Dirichlet of one number is one of any number of components.
        With priors of ``covariances``, and with those that EM has no closed form for, ``eps`` is not added.

    Notes
    -----
    Options without effect:

    =============================  ============================================================================
    Where                          Without effect
    =============================  ============================================================================
    one number in ``k_comps``      ``k_selection_metric``, ``refit``, ``train_size``, ``n_folds``: all cells are fitted
    ``n_folds`` given              ``k_selection_metric`` (held-out likelihood decides), ``refit``, ``train_size``
    =============================  ============================================================================

    Patients with three components of 18, 18 and 24 or 60, 60 and 80 cells, four standard deviations apart in two
    dimensions, candidates 1..6 (20 patients, two seeds; how many were given three, and the mean number):

    =============================================  ============  ============
    chosen by                                      60 cells      200 cells
    =============================================  ============  ============
    ``"aic"`` (default)                            1, 3; 4.7     14, 12; 3.8
    ``"bic"``                                      4, 4; 2.1     7, 11; 2.4
    ``"bic"``, ``prior="pooled"``                  0, 1; 1.6     20, 20; 3.0
    ``"heldout_nll"``, ``prior="pooled"``          14, 9; 3.3    12, 16; 3.5
    ``n_folds=5``                                  11, 9; 2.6    19, 20; 3.0
    ``n_folds=5``, ``prior="pooled"``              10, 11; 3.7   16, 17; 3.3
    =============================================  ============  ============

    A number at the edge of the candidates is told by one warning, and by ``at_edge_by_distribution`` in the selection.

    ``uns[gmm_key]["selection"]`` has ``scores`` (lists by name, one entry a candidate), the same for each patient in
    ``scores_by_distribution``, and ``best_k_by_distribution``; these are keyed by the patients' names, in which "/",
    which no h5ad file takes, stands as "%2F". ``uns[gmm_key]["distribution_reasons"]`` has how each patient's fit
    ended, a :class:`~pyrosplice.reasons.Reason`: "converged", "max_epochs" after ``max_iter`` iterations, "few_cells".

    Returns
    -------
    The same data set with components as ``supports``, ``covariances`` and ``weights``, and ``gmm``, all that is
    known of the fit (:func:`~pyrosplice._mixture.patients.selection.selection_table` reads it). An AnnData also has
    ``uns[gmm_key]``, hard labels ``obs[gmm_key + "_comp"]`` and responsibilities ``obsm[gmm_key + "_resp"]``.

    Raises
    ------
    InvalidArgumentError
        An option is impossible; a patient has NaN, or fewer cells than components; ``"strict"`` and a singular
        covariance. An unknown ``k_selection_metric`` is also a NotImplementedError.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import TripletDataset, fit_gmm
    >>> rng = np.random.default_rng(0)
    >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
    >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
    >>> _ = fit_gmm(dataset, k_comps=2, max_iter=50, verbose=False)
    >>> dataset.supports[0].shape, dataset.covariances[0].shape  # two components of two features a patient
    (torch.Size([2, 2]), torch.Size([2, 2, 2]))
    """
    _check_data_set(dataset, gmm_key)
    options = GMMOptions(
        component_sharing=component_sharing,
        k_comps=candidate_numbers(k_comps),
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
        prior=priors_of_patients(prior, priors, eps, covariance_type),
        n_folds=n_folds,
        random_state=random_state,
    )
    patients = [_in_canonical_order(p) for p in dataset.patients()]
    shared = component_sharing == "global" or (component_sharing == "auto" and dataset.identical_points)
    if not shared and any(p.weights is not None for p in patients):
        raise InvalidArgumentError(
            "component_sharing: patients that differ by the weights of shared points have no cells of their own; "
            "use 'global' or 'auto'."
        )
    fitted = fit_shared_components(patients, options) if shared else _fit_each(patients, options)
    if fitted.curves is not None:
        names = ["all patients"] if shared else [p.name for p in patients]
        warn_of_edges(fitted.curves, fitted.chosen, names, stacklevel=4)
    representation = (isinstance(dataset, AnnData_TripletDataset) and dataset.use_rep) or "X"
    schema = schema_of(fitted, options, representation)
    if isinstance(dataset, AnnData_TripletDataset):
        store(dataset, fitted, schema, gmm_key or f"gmm_{representation}")
    dataset.attach(*fitted.padded(), schema, identical_supports=shared)
    if verbose:
        for patient, mixture, reason in zip(patients, fitted.mixtures, fitted.reasons, strict=False):
            told = patient.name, mixture.n_components, len(patient.cells), reason
            logger.info("%s: %d components, %d cells, %s", *told)
    return dataset


def _check_data_set(dataset: object, gmm_key: object) -> None:
    """Raise unless these are patients' cells, and mixtures can be stored under this name."""
    if not isinstance(dataset, TripletDataset):
        raise InvalidArgumentError(
            f"dataset: expected a TripletDataset or AnnData_TripletDataset, found {type(dataset).__name__}; make one: "
            "AnnData_TripletDataset(adata, patient_col=..., label_col=..., use_rep=...) of an AnnData, or "
            "TripletDataset(list_of_arrays, labels_of_patients) of arrays (GaussianMixture fits one matrix)."
        )
    if gmm_key is None:
        if isinstance(dataset, AnnData_TripletDataset):
            check_stored(dataset.adata, f"gmm_{dataset.use_rep or 'X'}")
        return
    if not isinstance(dataset, AnnData_TripletDataset):
        raise InvalidArgumentError("gmm_key: this data set has no AnnData to store mixtures in; leave it out.")
    if not (isinstance(gmm_key, str) and gmm_key.strip() and "/" not in gmm_key):
        raise InvalidArgumentError(f"gmm_key: expected text without '/', which no h5ad file takes, found {gmm_key!r}.")
    check_stored(dataset.adata, gmm_key)


TripletDataset.fit_gmm = fit_gmm  # bound here, since data sets know no estimators


def _in_canonical_order(patient: PatientCells) -> PatientCells:
    """Cells sorted by their features, so that nothing depends on their order in the table."""
    if not bool(patient.cells.isfinite().all()):
        raise InvalidArgumentError(
            f"dataset: patient {patient.name!r} has NaN or infinite values; remove those cells "
            "(GaussianMixture takes them with missing='marginalize')."
        )
    order = np.lexsort(patient.cells.numpy().T[::-1])
    weights = None if patient.weights is None else patient.weights[torch.from_numpy(order)]
    return PatientCells(patient.name, patient.cells[torch.from_numpy(order)], patient.rows[order], weights)


# ---- a mixture for each patient ---------------------------------------------------------------------------------


def _fit_each(patients: Sequence[PatientCells], options: GMMOptions) -> FittedMixtures:
    components = candidates(patients, options)
    cells = [p.cells for p in patients]
    curves, splits = None, [split_cells(len(x), options) for x in cells]
    if len(components) == 1:
        chosen, sets = components * len(patients), cells
        fits = [own[k] for own, k in zip(fit_sets(sets, components, options), chosen, strict=True)]
    else:
        per_fold, curves = _judge(cells, splits, components, options)
        chosen = [best_components(dict(zip(components, s, strict=True))) for s in curves.scores(options.metric)]
        if options.refit == "full" or options.n_folds is not None:
            sets = cells
            fits = _fit_chosen(
                cells, [folds[0][k].parameters for folds, k in zip(per_fold, chosen, strict=True)], options
            )
        else:
            sets = [x[own[0].train] for x, own in zip(cells, splits, strict=True)]
            fits = [folds[0][k] for folds, k in zip(per_fold, chosen, strict=True)]
    fits = [_handled(p.name, x, f, options) for p, x, f in zip(patients, sets, fits, strict=True)]
    return FittedMixtures(
        patients=tuple(patients),
        mixtures=tuple(f.parameters for f in fits),
        weights=tuple(f.parameters.weights for f in fits),
        n_fitted=tuple(len(x) for x in sets),
        reasons=tuple(f.reason for f in fits),
        shared=False,
        curves=curves,
        chosen=tuple(chosen),
        n_train=tuple(len(s[0].train) for s in splits),
    )


def _fit_chosen(cells: Sequence[Tensor], judged: Sequence[MixtureParameters], options: GMMOptions) -> list[Fit]:
    """Fit every patient's cells with as many components as its judged mixture has, equal numbers together.

    A pooled prior is learned from the judged mixtures and all cells.
    """
    prior = options.prior
    if prior == "pooled":
        kind = options.covariance_type
        prior = prior_of_mixtures(cells, judged, covariance_type=kind, regularization=options.eps)
    chosen = [mixture.n_components for mixture in judged]
    fits: dict[int, Fit] = {}
    for k in sorted(set(chosen)):
        own = [p for p, c in enumerate(chosen) if c == k]
        found = fit_sets([cells[p] for p in own], [k], replace(options, prior=prior))
        fits |= {p: fit[k] for p, fit in zip(own, found, strict=True)}
    return [fits[p] for p in range(len(cells))]


def _judge(
    cells: Sequence[Tensor], splits: Sequence[Sequence[Split]], components: Sequence[int], options: GMMOptions
) -> tuple[list[list[dict[int, Fit]]], Curves]:
    """Fit every candidate to every patient's training cells, and work out its criteria."""
    training = [x[split.train] for x, own in zip(cells, splits, strict=True) for split in own]
    flat = fit_sets(training, components, options)
    n_folds = len(splits[0])
    per_fold = [flat[i : i + n_folds] for i in range(0, len(flat), n_folds)]
    held_out = [[x[s.held_out] for s in own] for x, own in zip(cells, splits, strict=True)]
    curves = curves_of(per_fold, held_out, [[len(s.train) for s in own] for own in splits])
    if options.metric == "heldout_nll" and bool(np.isnan(curves.heldout_nll).any()):
        raise InvalidArgumentError("train_size: a patient has no cell left to judge candidates by; give a smaller one.")
    return per_fold, curves


def _handled(name: str, cells: Tensor, fit: Fit, options: GMMOptions) -> Fit:
    """Apply ``singularity_handling`` to one fit."""
    bad = singular_components(fit, cells, options.added)
    if not bad:
        return fit
    found = f"patient {name!r}: components {bad} of {fit.parameters.n_components} have singular covariances"
    advice = "fewer components, covariance_type='diag', prior='pooled' or a larger eps"
    if options.singularity_handling == "strict" or (fit.singular and options.singularity_handling == "guarded"):
        raise InvalidArgumentError(f"singularity_handling: {found}; try {advice}.")
    if options.singularity_handling == "guarded":
        logger.info("%s; eps=%g was added.", found, options.added)
        return fit
    eps = ROBUST_FACTOR * options.eps
    warnings.warn(f"{found}; fitted again with eps={eps:g}. Try {advice}.", stacklevel=4)
    kept = None if options.prior == "pooled" else options.prior
    again = fit_sets([cells], [fit.parameters.n_components], replace(options, eps=eps, prior=kept, verbose=False))
    refitted = again[0][fit.parameters.n_components]
    if refitted.singular:
        raise InvalidArgumentError(f"singularity_handling: {found}, with eps={eps:g} too; try {advice}.")
    return refitted
