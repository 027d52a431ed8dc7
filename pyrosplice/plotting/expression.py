"""Figures of expression tests and fits: volcano, MA, dispersion, curves over a covariate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
HIT, OTHER = "#c0392b", "#9aa5b1"


def volcano(
    table: pd.DataFrame, *, alpha: float = 0.05, min_fc: float = 1.0, corrected_pval: bool = True,
    highlight_ids: Sequence[str] = (), log10_p_threshold: float = -30.0, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """−log₁₀ p (or q) against the log₂ fold change.

    Parameters
    ----------
    table
        A test's ``summary()``.
    alpha, min_fc
        Genes below this q-value (p-value) with at least this fold change, either way, are coloured.
    highlight_ids
        Genes to name.
    log10_p_threshold
        Smaller p-values are drawn there.
    """
    ax = _axes(ax)
    p = table["qval" if corrected_pval else "pval"].to_numpy(dtype=float)
    with np.errstate(divide="ignore"):
        height = -np.maximum(np.log10(p), log10_p_threshold)
    lfc = table["log2fc"].to_numpy(dtype=float)
    hit = (p <= alpha) & (np.abs(lfc) >= np.log2(min_fc))
    _scatter(ax, lfc, height, hit)
    _name(ax, table["gene"], lfc, height, highlight_ids)
    ax.set(xlabel="log₂ fold change", ylabel=f"−log₁₀ {'q' if corrected_pval else 'p'}-value")
    return ax


def ma(
    table: pd.DataFrame, *, alpha: float = 0.05, min_fc: float = 1.0, corrected_pval: bool = True,
    highlight_ids: Sequence[str] = (), ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Log₂ fold change against the mean; coloured by q-value, or p-value where ``corrected_pval`` is False."""
    ax = _axes(ax)
    p = table["qval" if corrected_pval else "pval"].to_numpy(dtype=float)
    lfc, mean = table["log2fc"].to_numpy(dtype=float), table["mean"].to_numpy(dtype=float)
    shown = mean > 0
    hit = (p <= alpha) & (np.abs(lfc) >= np.log2(min_fc))
    _scatter(ax, mean[shown], lfc[shown], hit[shown])
    _name(ax, table["gene"], mean, lfc, highlight_ids)
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.set(xscale="log", xlabel="mean", ylabel="log₂ fold change")
    return ax


def dispersion(
    mean: Array, gene_wise: Array, *, trend: Array | None = None, shrunk: Array | None = None, ax: Axes | None = None
) -> Axes:
    """Dispersions against the mean: each gene's own, the trend, and the shrunken ones; all ``(G,)``."""
    ax = _axes(ax)
    ax.scatter(mean, gene_wise, s=6, color=OTHER, label="gene-wise", linewidths=0)
    if shrunk is not None:
        ax.scatter(mean, shrunk, s=6, color="#2e86c1", label="shrunken", linewidths=0)
    if trend is not None:
        order = np.argsort(mean)
        ax.plot(mean[order], trend[order], color=HIT, label="trend")
    ax.set(xscale="log", yscale="log", xlabel="mean", ylabel="dispersion")
    ax.legend(frameon=False)
    return ax


def heatmap(covariate: Array, curves: Array, genes: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Each gene's curve ``(N, g)`` over the covariate ``(N,)``, standardised."""
    ax = _axes(ax)
    order = np.argsort(covariate)
    values = curves[order]
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1.0)
    image = ax.imshow(values.T, aspect="auto", cmap="RdBu_r", interpolation="nearest")
    ax.set_yticks(range(len(genes)), list(genes))
    ticks = np.linspace(0, len(order) - 1, 5).astype(int)
    ax.set_xticks(ticks, [f"{covariate[order][t]:.3g}" for t in ticks])
    ax.figure.colorbar(image, ax=ax, label="standardised log mean")
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots()[1] if ax is None else ax


def _scatter(ax: Axes, x: Array, y: Array, hit: NDArray[np.bool_]) -> None:
    ax.scatter(x[~hit], y[~hit], s=6, color=OTHER, linewidths=0)
    ax.scatter(x[hit], y[hit], s=8, color=HIT, linewidths=0)


def _name(ax: Axes, genes: Any, x: Array, y: Array, chosen: Sequence[str]) -> None:
    names = list(genes)
    for gene in chosen:
        if gene not in names:
            raise InvalidArgumentError(f"highlight_ids: {gene!r} is not a gene of the table.")
        i = names.index(gene)
        ax.annotate(gene, (x[i], y[i]), xytext=(3, 3), textcoords="offset points", fontsize=8)
