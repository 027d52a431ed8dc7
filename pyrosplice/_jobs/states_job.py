"""The job of cell states: a Gaussian mixture for every patient, how many components, and how patients differ."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrosplice import AnnData_TripletDataset, fit_gmm, mixture_table, patient_distances, plotting, selection_table
from pyrosplice._jobs.input_file import MATRIX, check_column, read_cell_file
from pyrosplice._jobs.job_progress import Steps
from pyrosplice._jobs.results_folder import ANNOTATED, Conclusion, ResultsFolder, fingerprint
from pyrosplice._report import ReportFigure, ReportSection, ReportTable, pictured, themed_png
from pyrosplice.errors import InvalidArgumentError, listed
from pyrosplice.reasons import OPTIMA, Reason

REPRESENTATION = "X_pca"  # fitted where the file has it and nothing else is asked for
MOST_FEATURES = 50  # of X without being asked for: full covariances of more are no description of a few hundred cells
MOST_PICTURES = 6  # patients that are drawn
FOLDS = 5  # of cross-validation between numbers of components; see fit_gmm for what was measured
KEY = "states"  # of uns, obs and obsm in annotated.h5ad
ALL, ALL_KEY = "all", f"{KEY}_patient"  # the one patient where no column of patients is given


@dataclass(frozen=True, kw_only=True)
class StatesOptions:
    """What to read of the data, and which mixtures to fit.

    Attributes
    ----------
    data
        The file.
    components
        Numbers of components; more than one is chosen from.
    patient_key, label_key, missing
        Columns of obs: patient of each cell (None: one mixture of all), group of each patient; cells without a label.
    use_rep
        Key of obsm, or ``X``; None for ``X_pca``, else an ``X`` of few features.
    sharing, covariance, select, folds, prior, max_iter, restarts, seed
        As ``component_sharing``, ``covariance_type``, ``k_selection_metric``, ``n_folds``, ``priors``, ``max_iter``,
        ``n_init`` and ``random_state`` of ``fit_gmm``.
    """

    data: Path
    components: tuple[int, ...]
    patient_key: str | None = None
    label_key: str | None = None
    use_rep: str | None = None
    missing: Literal["raise", "drop"] = "raise"
    sharing: Literal["sample_specific", "global"] = "sample_specific"
    covariance: Literal["full", "diag", "tied", "spherical"] = "full"
    select: Literal["aic", "bic", "heldout_nll"] | None = None
    folds: int | None = None
    prior: Literal["none", "pooled", "weak"] = "none"
    max_iter: int = 100
    restarts: int = 1
    seed: int = 0


@dataclass(frozen=True)
class States:
    """The fitted data set and its tables; None where there is nothing to choose from, or one patient alone."""

    dataset: AnnData_TripletDataset
    adata: AnnData
    patients: pd.Series
    components: pd.DataFrame
    cells: pd.DataFrame
    selection: pd.DataFrame | None = None
    distances: pd.DataFrame | None = None


def run_states(options: StatesOptions, folder: ResultsFolder, steps: Steps) -> Conclusion:
    """Read, fit, compare, draw and write."""
    with steps.step("reading"):
        adata = read_cell_file(options.data)
        adata, patients = patients_of(adata, options)
        use_rep = representation_given(adata, options.use_rep)
    with steps.step("fitting"):
        dataset = fit_states(adata, patients, use_rep, options, verbose=steps.show)
    with steps.step("comparing"):
        states = _tabulate(dataset, adata, patients, options)
    with steps.step("drawing"):
        pictures = _draw(states, options) if folder.options.figures else {}
    with steps.step("writing"):
        names = _write(states, folder)
        folder.write_pictures(pictures)
    settings = {
        "data": fingerprint(options.data),
        "representation": use_rep or MATRIX,
        "n_cells": adata.n_obs,
        "n_components": {name: int(k) for name, k in _numbers(states).items()},
    }
    return Conclusion(
        title=f"Cell states: {options.data.name}",
        lead=_lead(states, use_rep),
        sections=_sections(states, options, pictures, names),
        settings=settings,
    )


def patients_of(adata: AnnData, options: StatesOptions) -> tuple[AnnData, pd.Series]:
    """Find the patient of every cell, and leave out cells without one where that is asked for."""
    for option, column in (("--patient-key", options.patient_key), ("--label-key", options.label_key)):
        if column is not None:
            check_column(adata.obs, option, column)
    if options.patient_key is None:
        if options.label_key is not None:
            raise InvalidArgumentError("--label-key: is of patients; give --patient-key too.")
        return adata, pd.Series(ALL, index=adata.obs_names)
    columns = [name for name in (options.patient_key, options.label_key) if name is not None]
    labelled = adata.obs[columns].notna().all(axis=1).to_numpy()
    lost = int((~labelled).sum())
    if lost and options.missing == "raise":
        raise InvalidArgumentError(
            f"--patient-key, --label-key: {lost} of {adata.n_obs} cells have no label in {' or '.join(columns)}; give "
            "--missing drop to leave them out."
        )
    if lost == adata.n_obs:
        raise InvalidArgumentError(f"--patient-key: no cell has a label in {' and '.join(columns)}.")
    if lost:
        warnings.warn(
            f"{lost} of {adata.n_obs} cells have no label in {' or '.join(columns)} and are left out.", stacklevel=2
        )
        adata = adata[labelled].copy()
    return adata, adata.obs[options.patient_key].astype(str)


def representation_given(adata: AnnData, given: str | None) -> str | None:
    """Which features to fit, a key of ``obsm`` or None for ``X``."""
    if given is None:
        if REPRESENTATION in adata.obsm:
            return REPRESENTATION
        if adata.n_vars > MOST_FEATURES:
            raise InvalidArgumentError(
                f"--use-rep: the file has no obsm[{REPRESENTATION!r}], and X has {adata.n_vars} features; expected "
                f"one of {listed(adata.obsm)}, or X to fit it as it is."
            )
        return None
    if given in adata.obsm:
        return given
    if given != MATRIX:
        raise InvalidArgumentError(f"--use-rep: expected one of {listed([*adata.obsm, MATRIX])}, found {given!r}.")
    return None


def fit_states(
    adata: AnnData, patients: pd.Series, use_rep: str | None, options: StatesOptions, *, verbose: bool
) -> AnnData_TripletDataset:
    """Fit the mixtures; results are in the data set and, under ``states``, in the AnnData."""
    several = len(options.components) > 1
    if not several and (options.select is not None or options.folds is not None):
        raise InvalidArgumentError(
            "--select, --folds: choose between numbers of components; give several, --components 1-8."
        )
    if options.select is not None and options.folds is not None:
        raise InvalidArgumentError("--select, --folds: expected one of the two; folds choose by held-out likelihood.")
    if options.patient_key is None:
        if ALL_KEY in adata.obs:
            raise InvalidArgumentError(f"--patient-key: give it, or take the column {ALL_KEY!r} out of obs.")
        adata.obs[ALL_KEY] = patients
    column = options.patient_key or ALL_KEY
    # all cells are fitted, whatever n_cells is: no patient is left out for having few
    labels = options.label_key or column
    dataset = AnnData_TripletDataset(adata, column, labels, n_cells=1, use_rep=use_rep, seed=options.seed)
    chosen: dict[str, object] = {}
    if several:
        folds = (options.folds or FOLDS) if options.select is None else None
        chosen = {"n_folds": folds} if folds else {"k_selection_metric": options.select, "refit": "full"}
    return fit_gmm(
        dataset,
        k_comps=list(options.components),
        component_sharing=options.sharing,
        covariance_type=options.covariance,
        priors=None if options.prior == "none" else options.prior,
        max_iter=options.max_iter,
        n_init=options.restarts,
        random_state=options.seed,
        gmm_key=KEY,
        verbose=verbose,
        **chosen,  # type: ignore[arg-type]
    )


def _tabulate(dataset: AnnData_TripletDataset, adata: AnnData, patients: pd.Series, options: StatesOptions) -> States:
    responsibilities = np.asarray(adata.obsm[f"{KEY}_resp"])
    cells = pd.DataFrame(
        {
            "cell": adata.obs_names,
            "patient": patients.to_numpy(),
            "component": np.asarray(adata.obs[f"{KEY}_comp"]),
            "responsibility": responsibilities.max(1),
        }
    )
    distances = None
    if len(dataset.names) > 1:
        if find_spec("ot") is None:
            warnings.warn(
                "Distances between patients need POT (pip install 'pyrosplice[transport]') and are left out.",
                stacklevel=2,
            )
        else:
            distances = patient_distances(dataset)
    selection = selection_table(dataset.gmm) if len(options.components) > 1 else None
    return States(dataset, adata, patients, mixture_table(dataset.gmm), cells, selection, distances)


def _draw(states: States, options: StatesOptions) -> dict[str, tuple[bytes, bytes]]:
    """Draw the cells and components of the first patients, the choice of a number, and distances."""
    figures = {}
    dataset = states.dataset
    if states.selection is not None:
        figures["selection"] = partial(
            plotting.criterion_curve, states.selection, criterion=options.select or "heldout_nll"
        )
    features = dataset.representation()
    if features.shape[1] > 1:
        for place, name in enumerate(dataset.names[:MOST_PICTURES]):
            means, covariances, weights = _mixture(dataset, place)
            own = features[(states.patients == name).to_numpy()]
            figures[f"components_{name}"] = partial(
                plotting.mixture_components, own, weights, means, covariances, title=name
            )
    if states.distances is not None:
        figures["distances"] = partial(plotting.patient_distance_map, states.distances)
    return {name: themed_png(draw) for name, draw in figures.items()}


def _mixture(dataset: AnnData_TripletDataset, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, covariances and weights of a patient's mixture, without components that it does not have."""
    weights = np.asarray(dataset.weights[place])
    shared = dataset.identical_supports
    means = np.asarray(dataset.supports if shared else dataset.supports[place])
    covariances = np.asarray(dataset.covariances if shared else dataset.covariances[place])
    has = weights > 0
    return means[has], covariances[has], weights[has]


def _write(states: States, folder: ResultsFolder) -> dict[str, str]:
    names = {
        "components": folder.write_table("components", states.components, "a row a patient and component"),
        "cells": folder.write_table("cells", states.cells, "a row a cell: its component, and how sure that is"),
    }
    if states.selection is not None:
        names["selection"] = folder.write_table("selection", states.selection, "criteria by number of components")
    if states.distances is not None:
        table = states.distances.rename_axis("patient").reset_index()
        names["distances"] = folder.write_table("distances", table, "mixture-Wasserstein distances between patients")
    if folder.options.write_h5ad:
        said = f"the data with the mixtures in uns[{KEY!r}], obs[{KEY + '_comp'!r}] and obsm[{KEY + '_resp'!r}]"
        folder.write_anndata(states.adata, ANNOTATED, said)
    return names


def _numbers(states: States) -> dict[str, int]:
    """Number of components of each patient."""
    weights = np.asarray(states.dataset.weights)
    return dict(zip(states.dataset.names, (weights > 0).sum(1), strict=True))


def _lead(states: States, use_rep: str | None) -> str:
    numbers = _numbers(states)
    told = ", ".join(f"{name}: {k}" for name, k in list(numbers.items())[:20])
    left = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    what = f"obsm[{use_rep!r}]" if use_rep else "X"
    who = f"of {len(numbers)} patients" if len(numbers) > 1 else f"of {next(iter(numbers))}"
    return f"{len(states.cells)} cells {who}, by {what}.\nComponents: {told}{left}.\n{_ended(states)}"


def _ended(states: States) -> str:
    """How the fits ended: those that did not converge by patient and why."""
    names = ["all patients"] if states.dataset.identical_supports else states.dataset.names
    reasons = dict(zip(names, map(Reason, states.dataset.gmm["distribution_reasons"]), strict=False))
    others = {name: reason for name, reason in reasons.items() if reason not in OPTIMA}
    if not others:
        return "All fits converged."
    causes = {reason: [name for name, one in others.items() if one == reason] for reason in others.values()}
    told = [f"{listed(names)} ({reason}: {reason.text})" for reason, names in causes.items()]
    mend = " Give --max-iter more, or --prior weak." if Reason.MAX_EPOCHS in causes else ""
    mend += " Give fewer --components, or --prior pooled." if Reason.FEW_CELLS in causes else ""
    return f"{len(others)} of {len(reasons)} fits did not converge: {'; '.join(told)}.{mend}"


def _sections(
    states: States, options: StatesOptions, pictures: dict[str, tuple[bytes, bytes]], names: dict[str, str]
) -> list[ReportSection]:
    shared = (
        "components shared by all patients, weights of their own" if options.sharing == "global" else "a mixture each"
    )
    text = (
        f"Gaussian mixtures, {shared}; covariances: {options.covariance}; priors: {options.prior}. A "
        "component is a state: where its cells lie (means), how they spread (covariances), and the share of a "
        "patient's cells in it (weight)."
    )
    parts: list[ReportFigure | ReportTable] = [
        ReportTable(
            frame=states.components, text="Components, a row a patient and component.", file=names["components"]
        )
    ]
    for name in states.dataset.names:
        parts += pictured(
            pictures,
            f"components_{name}",
            f"Cells of {name} in the first two features, with the components as ellipses.",
            f"{name}: cells in the first two features; an ellipse holds 50 or 90 % of a component.",
        )
    said = "Cells: their likeliest component, and its probability; near 1 it is certain."
    parts.append(ReportTable(frame=states.cells, text=said, file=names["cells"]))
    sections = [ReportSection(title="Which states are there?", text=text, parts=parts)]
    return [*sections, *_choice(states, options, pictures, names), *_distances(states, pictures, names)]


def _choice(
    states: States, options: StatesOptions, pictures: dict[str, tuple[bytes, bytes]], names: dict[str, str]
) -> list[ReportSection]:
    """How the number of components was chosen, where there was something to choose from."""
    if states.selection is None:
        return []
    by = {"aic": "Akaike's criterion", "bic": "the Bayesian information criterion", "heldout_nll": "half of the cells"}
    how = by[options.select] if options.select else f"{options.folds or FOLDS}-fold cross-validation"
    parts = pictured(
        pictures,
        "selection",
        "The criterion against the number of components, a curve a patient.",
        "Lower is better. A curve that is flat from some number on says that more components describe nothing more.",
    )
    table = ReportTable(frame=states.selection, text="Criteria, a row a patient and number.", file=names["selection"])
    text = f"Chosen by {how}, {'for all patients together' if options.sharing == 'global' else 'for each patient'}."
    return [ReportSection(title="How many components?", text=text, parts=[*parts, table])]


def _distances(states: States, pictures: dict[str, tuple[bytes, bytes]], names: dict[str, str]) -> list[ReportSection]:
    """How patients differ, where there are several."""
    if states.distances is None:
        return []
    parts = pictured(
        pictures,
        "distances",
        "Heat map of the distances between patients.",
        "Dark pairs are alike; patients are ordered so that alike ones stand together.",
    )
    frame = states.distances.rename_axis("patient").reset_index()
    table = ReportTable(frame=frame, text="Distances.", file=names["distances"])
    text = "Mixture-Wasserstein distance: how far one patient's states would have to move to be the other's."
    return [ReportSection(title="How do patients differ?", text=text, parts=[*parts, table])]
