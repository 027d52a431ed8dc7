"""Mixtures in pictures: criteria against the number of components, components as ellipses, distances of patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting._style import (
    GRAY,
    MANY,
    OKABE_ITO,
    SEQUENTIAL,
    ink,
    name_inches,
    new_axes,
    require_columns,
    verbatim,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CRITERIA = {"aic": "AIC", "bic": "BIC", "heldout_nll": "held-out negative log likelihood per cell"}


def criterion_curve(table: pd.DataFrame, *, criterion: str = "heldout_nll", ax: Axes | None = None) -> Axes:
    """Draw a criterion against the number of components: each patient above its best, and the mean ± its error.

    The error is that of the mean over patients; for one patient, that over held-out cells.

    Parameters
    ----------
    table
        Table of :func:`~pyrosplice._mixture.patients.selection.selection_table`.
    criterion
        ``"aic"``, ``"bic"`` or ``"heldout_nll"``.
    ax
        Axes to draw on; new ones by default.

    Returns
    -------
    Axes
        One thin line a patient, one with error bars for the mean, below it how many patients have their best there;
        for one patient the curve alone.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import TripletDataset, fit_gmm, selection_table
    >>> from pyrosplice.plotting import criterion_curve
    >>> rng = np.random.default_rng(0)
    >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
    >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
    >>> _ = fit_gmm(dataset, k_comps=[1, 2, 3, 4], k_selection_metric="bic", verbose=False)
    >>> axes = criterion_curve(selection_table(dataset.gmm), criterion="bic")
    >>> "components" in axes.get_xlabel()
    True
    """
    if criterion not in CRITERIA:
        raise InvalidArgumentError(f"criterion: expected one of {sorted(CRITERIA)}, found {criterion!r}.")
    require_columns(table, "patient", "n_components", "heldout_se", criterion)
    curves = table.pivot(index="patient", columns="n_components", values=criterion)
    excess = curves.sub(curves.min(axis=1), axis=0)
    ax = new_axes(ax, figsize=(4.8, 3.6))
    candidates = excess.columns.to_numpy()
    if len(excess) > 1:
        ax.plot(candidates, excess.to_numpy().T, color=GRAY, linewidth=0.6, alpha=0.7)
        error = excess.std(ddof=1).to_numpy() / np.sqrt(len(excess))
    else:
        error = table["heldout_se"].to_numpy() if criterion == "heldout_nll" else np.zeros(len(candidates))
    ax.errorbar(
        candidates,
        excess.mean().to_numpy(),
        yerr=error,
        color=OKABE_ITO[0],
        marker="o",
        markersize=4,
        capsize=3,
        label="mean ± s.e.",
    )
    counts = excess.idxmin(axis=1).value_counts() if len(excess) > 1 else pd.Series(dtype=int)
    for k, count in counts.items():
        ax.annotate(f"{count}", (float(k), 0), xytext=(0, -14), textcoords="offset points", ha="center")
    ax.set_xticks(candidates)
    ax.margins(y=0.12)
    ax.set_xlabel("components" + ("\n(below the curve: patients best described by it)" if len(counts) else ""))
    ax.set_ylabel(f"{CRITERIA[criterion]}\nabove the patient's best")
    ax.legend(frameon=False)
    return ax


def mixture_components(  # noqa: PLR0913 (a documented interface)
    cells: ArrayLike,
    weights: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    *,
    features: Sequence[int] = (0, 1),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw cells and components of a mixture in two of the features; ellipses hold 50 and 90 % of a component.

    Parameters
    ----------
    cells
        ``(N, D)``.
    weights, means, covariances
        ``(M,)``, ``(M, D)`` and ``(M, D, D)``; components of weight 0 are left out.
    features
        Which two features.
    title
        Title of the axes.
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    InvalidArgumentError
        ``covariances`` is not one matrix a component.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import GaussianMixture
    >>> from pyrosplice.plotting import mixture_components
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
    >>> model = GaussianMixture(2, random_state=0).fit(x).model_
    >>> covariances = model.parameters_of().covariance_matrices()
    >>> axes = mixture_components(x, model.component_probs, model.means, covariances, title="two states")
    >>> axes.get_title()
    'two states'
    """
    from matplotlib.patches import Ellipse

    i, j = features
    x, covariances = np.asarray(cells), np.asarray(covariances)
    if covariances.ndim != 3 or covariances.shape[1] != covariances.shape[2]:
        raise InvalidArgumentError(
            f"covariances: expected one matrix a component, (M, D, D), found {covariances.shape}; of other covariance "
            "types, parameters_of().covariance_matrices() makes them."
        )
    ax = new_axes(ax, figsize=(4.2, 4.0))
    ax.scatter(x[:, i], x[:, j], s=4, color=GRAY, alpha=0.5, linewidths=0, rasterized=len(x) > MANY)
    parts = zip(np.asarray(weights), np.asarray(means), covariances, strict=True)
    for number, (weight, mean, covariance) in enumerate(parts):
        if weight <= 0:
            continue
        values, vectors = np.linalg.eigh(covariance[np.ix_([i, j], [i, j])])
        angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))
        color = OKABE_ITO[number % len(OKABE_ITO)]
        for share in (0.5, 0.9):
            height, width = 2 * np.sqrt(-2 * np.log(1 - share) * np.maximum(values, 0))
            center = (float(mean[i]), float(mean[j]))
            style = "-" if share == 0.5 else "--"
            look: dict[str, Any] = {"fill": False, "color": color, "linewidth": 1.4, "linestyle": style}
            ax.add_patch(Ellipse(center, width, height, angle=angle, **look))
        paper = {"boxstyle": "round,pad=0.15", "facecolor": ax.get_facecolor(), "edgecolor": color, "linewidth": 0.6}
        ax.annotate(f"{weight:.2f}", center, ha="center", va="center", fontsize=8, bbox=paper)
    ax.set_xlabel(f"feature {i + 1}")
    ax.set_ylabel(f"feature {j + 1}")
    _key(ax)
    if title is not None:
        ax.set_title(wrapped(title, 4.0, 12), pad=24)
    return ax


def _key(ax: Axes) -> None:
    """Say above the axes what the ellipses hold."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=ink(), linestyle=style) for style in ("-", "--")]
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}
    ax.legend(lines, ["50 % of a component", "90 %"], frameon=False, fontsize=8, **place)


def patient_distance_map(distances: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw distances between patients as a heat map, ordered by average-linkage clustering.

    Parameters
    ----------
    distances
        Symmetric table from :func:`~pyrosplice._mixture.patients.distances.patient_distances`.
    ax
        Axes to draw on; new ones by default.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import TripletDataset, fit_gmm, patient_distances
    >>> from pyrosplice.plotting import patient_distance_map
    >>> rng = np.random.default_rng(0)
    >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
    >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
    >>> _ = fit_gmm(dataset, k_comps=2, verbose=False)
    >>> axes = patient_distance_map(patient_distances(dataset))
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['3', '2', '0', '1']
    """
    values = distances.to_numpy(dtype=np.float64)
    if values.shape[0] != values.shape[1] or not np.allclose(values, values.T):
        raise InvalidArgumentError(f"distances: expected a symmetric table, found shape {values.shape}.")
    order = np.arange(len(values))
    if len(values) > 2:
        order = leaves_list(linkage(squareform(values, checks=False), "average", optimal_ordering=True))
    names = [verbatim(distances.index[i]) for i in order]
    size, room = max(3.0, 0.16 * len(names)), name_inches(names, 10)
    ax = new_axes(ax, figsize=(size + room + 1.2, size + room))
    image = ax.imshow(values[np.ix_(order, order)], cmap=SEQUENTIAL)
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.figure.colorbar(image, ax=ax, label="mixture Wasserstein distance")
    return ax
