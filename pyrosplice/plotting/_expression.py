"""Figures of expression fits: dispersions over the mean, curves over a covariate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting._style import DIVERGING, GRAY, MANY, OKABE_ITO, counted, name_inches, new_axes, verbatim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]


def dispersion(
    mean: Array, gene_wise: Array, *, trend: Array | None = None, shrunk: Array | None = None, ax: Axes | None = None
) -> Axes:
    """Draw dispersions against the mean: each gene's own, the trend, and the shrunken ones; all ``(G,)``.

    Genes whose mean or dispersion is missing, infinite or not positive have no place on the logarithmic axes: the
    legend counts what is drawn, and what is not.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.plotting import dispersion
    >>> ax = dispersion(np.array([1.0, 5.0]), np.array([0.2, 0.0]))
    >>> ax.get_legend().get_texts()[0].get_text()
    'gene-wise: 1 (1 missing)'
    """
    ax = new_axes(ax, figsize=(5.0, 3.8))
    mean = np.asarray(mean, dtype=np.float64)
    for name, values, color in (("gene-wise", gene_wise, GRAY), ("shrunken", shrunk, OKABE_ITO[0])):
        if values is not None:
            drawn = _positive(mean, values)
            label = counted(name, int(drawn.sum()), int((~drawn).sum()))
            look: dict[str, Any] = {"s": 9, "color": color, "linewidths": 0, "rasterized": len(mean) > MANY}
            ax.scatter(mean[drawn], np.asarray(values)[drawn], label=label, **look)
    if trend is not None:
        order = np.argsort(mean)
        order = order[_positive(mean, trend)[order]]
        ax.plot(mean[order], np.asarray(trend)[order], color=OKABE_ITO[1], linewidth=2, label="trend")
    ax.set(xscale="log", yscale="log", xlabel="mean", ylabel="dispersion")
    ax.legend(frameon=False)
    return ax


def _positive(mean: Array, values: Array) -> NDArray[np.bool_]:
    """Which genes have a place on two logarithmic axes."""
    return np.isfinite(mean) & (mean > 0) & np.isfinite(values) & (np.asarray(values) > 0)


def heatmap(
    covariate: Array, curves: Array, genes: Sequence[str], *, name: str = "covariate", ax: Axes | None = None
) -> Axes:
    """Draw each gene's curve over the covariate, standardized: red is above the gene's own mean, blue below.

    Parameters
    ----------
    covariate
        ``(N,)``, in any order; cells are drawn in that of the covariate, evenly spaced.
    curves
        ``(N, g)``, log means. Missing values stay blank.
    genes
        Names of the ``g`` genes.
    name
        Name of the covariate, for the axis.
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    InvalidArgumentError
        The three do not fit each other, or are empty.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.plotting import heatmap
    >>> ax = heatmap(np.array([0.0, 1.0]), np.array([[1.0], [3.0]]), ["A"], name="age")
    >>> ax.images[0].get_array().tolist()
    [[-1.0, 1.0]]
    """
    covariate, curves = np.asarray(covariate, dtype=np.float64), np.asarray(curves, dtype=np.float64)
    if curves.shape != (len(covariate), len(genes)) or not curves.size:
        raise InvalidArgumentError(
            f"curves: expected shape ({len(covariate)}, {len(genes)}), of cells and genes, at least one of each, "
            f"found {curves.shape}."
        )
    labels = [verbatim(gene) for gene in genes]
    ax = new_axes(ax, figsize=(4.8 + name_inches(labels, 10), 0.28 * len(genes) + 1.4))
    order = np.argsort(covariate)
    values = curves[order]
    known = np.isfinite(values)
    values = np.where(known, values, np.nan)
    size = np.maximum(known.sum(0), 1)
    values = values - np.where(known, values, 0.0).sum(0) / size
    spread = np.sqrt((np.where(known, values, 0.0) ** 2).sum(0) / size)
    values = values / np.where(spread > 0, spread, 1.0)
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = ax.imshow(
        values.T, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest"
    )  # white is the gene's mean
    ax.set_yticks(range(len(genes)), labels)
    ticks = np.unique(np.linspace(0, len(order) - 1, 5).astype(int))
    ax.set_xticks(ticks, [f"{covariate[order][t]:.3g}" for t in ticks])
    ax.set_xlabel(f"{verbatim(name)} (cells in its order)")
    ax.figure.colorbar(image, ax=ax, label="standardized log mean")
    return ax
