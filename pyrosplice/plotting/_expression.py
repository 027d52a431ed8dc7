"""Figures of expression fits: dispersions over the mean, curves over a covariate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyrosplice.plotting._style import DIVERGING, GRAY, OKABE_ITO, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]


def dispersion(
    mean: Array, gene_wise: Array, *, trend: Array | None = None, shrunk: Array | None = None, ax: Axes | None = None
) -> Axes:
    """Draw dispersions against the mean: each gene's own, the trend, and the shrunken ones; all ``(G,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.plotting import dispersion
    >>> mean = np.random.default_rng(0).gamma(2, 20, 100)
    >>> axes = dispersion(mean, 0.1 + 1 / mean, trend=0.12 + 1 / mean)
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['gene-wise', 'trend']
    """
    ax = new_axes(ax, figsize=(5.0, 3.8))
    ax.scatter(mean, gene_wise, s=9, color=GRAY, label="gene-wise", linewidths=0)
    if shrunk is not None:
        ax.scatter(mean, shrunk, s=9, color=OKABE_ITO[0], label="shrunken", linewidths=0)
    if trend is not None:
        order = np.argsort(mean)
        ax.plot(mean[order], trend[order], color=OKABE_ITO[1], linewidth=2, label="trend")
    ax.set(xscale="log", yscale="log", xlabel="mean", ylabel="dispersion")
    ax.legend(frameon=False)
    return ax


def heatmap(covariate: Array, curves: Array, genes: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Draw each gene's curve ``(N, g)`` over the covariate ``(N,)``, standardised.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.plotting import heatmap
    >>> time = np.linspace(0, 1, 50)
    >>> axes = heatmap(time, np.column_stack([np.sin(6 * time), time]), ["wave", "rise"])
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['wave', 'rise']
    """
    ax = new_axes(ax, figsize=(5.6, 0.28 * len(genes) + 1.2))
    order = np.argsort(covariate)
    values = curves[order]
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1.0)
    limit = float(np.abs(values).max()) or 1.0
    image = ax.imshow(
        values.T, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest"
    )  # white is the gene's mean
    ax.set_yticks(range(len(genes)), list(genes))
    ticks = np.linspace(0, len(order) - 1, 5).astype(int)
    ax.set_xticks(ticks, [f"{covariate[order][t]:.3g}" for t in ticks])
    ax.figure.colorbar(image, ax=ax, label="standardised log mean")
    return ax
