"""Posteriors, predictive checks and calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting.style import BLACK, GREY, MARKERS, OKABE_ITO, SEQUENTIAL, new_axes, require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def effect_table(tree: Any, *, site: str = "beta", probability: float = 0.9) -> pd.DataFrame:
    """Mean and interval of every entry of a site, one row each, for :func:`effect_forest`.

    ``gene``, ``label`` (``covariate: logit or isoform``), ``mean``, ``low``, ``high``; central intervals.
    """
    array = tree["posterior"][site]
    edge = (1 - probability) / 2
    table = {
        "mean": array.mean(("chain", "draw")),
        "low": array.quantile(edge, ("chain", "draw")).drop_vars("quantile"),
        "high": array.quantile(1 - edge, ("chain", "draw")).drop_vars("quantile"),
    }
    frame = pd.concat({name: value.to_series() for name, value in table.items()}, axis=1).reset_index()
    dims = [dim for dim in array.dims if dim not in ("chain", "draw", "gene")]
    frame["label"] = frame[dims].astype(str).agg(": ".join, axis=1) if dims else site
    return frame[["gene", "label", "mean", "low", "high"]]


def effect_forest(table: pd.DataFrame, *, name: str = "effect", ax: Axes | None = None) -> Axes:
    """Interval of each effect, grouped by gene; those that do not cover zero are filled.

    Parameters
    ----------
    table
        Columns ``gene``, ``label``, ``mean``, ``low``, ``high``; at most 60 rows (:func:`effect_table` makes it).
    name
        What is drawn, for the axis.
    ax
        Axes to draw on.
    """
    require_columns(table, "gene", "label", "mean", "low", "high")
    if len(table) > 60:
        raise InvalidArgumentError(f"table: expected at most 60 rows to be legible, found {len(table)}; choose genes.")
    ax = new_axes(ax, figsize=(5.2, 0.26 * len(table) + 1.0))
    labels = list(dict.fromkeys(table["label"]))
    place, ticks = 0.0, []
    for gene, rows in table.groupby("gene", sort=False):
        for row in rows.itertuples():
            which = labels.index(row.label) % len(OKABE_ITO)
            sure = row.low > 0 or row.high < 0
            ax.plot([row.low, row.high], [place, place], color=OKABE_ITO[which], linewidth=1.6)
            face = OKABE_ITO[which] if sure else "white"
            ax.plot(row.mean, place, MARKERS[which], color=OKABE_ITO[which], markerfacecolor=face, markersize=5)
            ticks.append((place, f"{gene}  {row.label}"))
            place -= 1
        place -= 0.6
    ax.axvline(0, color=BLACK, linewidth=0.8, zorder=0)
    ax.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=8)
    ax.set_xlabel(f"{name} (mean and interval)")
    return ax


def variance_grid(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Posterior density of (σ, θ) of one gene as highest-density regions, with the nodes that it was computed at.

    Parameters
    ----------
    table
        Columns ``sigma``, ``theta``, ``log_density``: a full grid (:func:`pyrosplice.posterior.grid_table` makes it).
    ax
        Axes to draw on.
    """
    require_columns(table, "sigma", "theta", "log_density")
    ax = new_axes(ax, figsize=(4.6, 3.8))
    wide = table.pivot(index="theta", columns="sigma", values="log_density")
    levels = np.array([-4.6, -3.0, -1.4, -0.5, 0.0])  # nats below the top: 99, 95, 75, 40 % in two dimensions
    shown = wide.to_numpy() - np.nanmax(wide.to_numpy())
    filled = ax.contourf(wide.columns, wide.index, shown, levels=levels, cmap=SEQUENTIAL)
    ax.plot(table["sigma"], table["theta"], ".", color=GREY, markersize=2.5)
    bar = ax.figure.colorbar(filled, ax=ax, ticks=levels[:-1])
    bar.ax.set_yticklabels(["99 %", "95 %", "75 %", "40 %"])
    kept = table[table["log_density"] > table["log_density"].max() - 6]
    ax.set_xlim(kept["sigma"].min() * 0.9, kept["sigma"].max() * 1.05)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("σ")
    ax.set_ylabel("θ, spatial share")
    return ax


def rootogram(observed: np.ndarray, drawn: np.ndarray, *, most: int | None = None, ax: Axes | None = None) -> Axes:
    """Hanging rootogram: how often each count occurs, observed bars hung from the predicted curve.

    Parameters
    ----------
    observed
        Counts, any shape.
    drawn
        Predictive draws, draws first.
    most
        Largest count shown; the 99.5 % quantile of what was observed by default.
    ax
        Axes to draw on.

    Notes
    -----
    Square roots make the scatter of all bars about ½: a bar that ends beyond the band's ±1 is a misfit.
    """
    most = int(np.quantile(observed, 0.995)) if most is None else most
    bins = np.arange(most + 2) - 0.5
    seen = np.histogram(observed, bins)[0]
    each = np.array([np.histogram(draw, bins)[0] for draw in drawn.reshape(len(drawn), -1)])
    expected = np.sqrt(each.mean(0))
    low, high = np.sqrt(np.quantile(each, (0.05, 0.95), axis=0))
    ax = new_axes(ax, figsize=(5.2, 3.4))
    counts = np.arange(most + 1)
    bottom = expected - np.sqrt(seen)
    ax.bar(counts, np.sqrt(seen), bottom=bottom, width=0.85, color=OKABE_ITO[5], label="observed, hung")
    ax.fill_between(counts, low, high, color=OKABE_ITO[1], alpha=0.3, linewidth=0, label="90 % of draws")
    ax.plot(counts, expected, color=OKABE_ITO[1], marker="o", markersize=3, linewidth=1.2, label="predicted")
    ax.axhspan(-1, 1, color=GREY, alpha=0.2, linewidth=0, zorder=0)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.set_xlabel("count")
    ax.set_ylabel("√ frequency")
    ax.legend(frameon=False, fontsize=8)
    return ax


def rank_histogram(ranks: np.ndarray, *, n_draws: int, bins: int = 20, name: str = "", ax: Axes | None = None) -> Axes:
    """Ranks of true values among posterior draws, with the 99 % band of a uniform histogram."""
    ax = new_axes(ax, figsize=(3.4, 2.4))
    counts, _ = np.histogram(ranks, np.linspace(0, n_draws + 1, bins + 1))
    low, high = binom.ppf([0.005, 0.995], len(ranks), 1 / bins)
    ax.axhspan(low, high, color=GREY, alpha=0.35, linewidth=0)
    ax.bar((np.arange(bins) + 0.5) / bins, counts, width=0.9 / bins, color=OKABE_ITO[0])
    ax.axhline(len(ranks) / bins, color=BLACK, linewidth=0.8)
    ax.set_xlabel(f"rank of the truth{f', {name}' if name else ''}")
    ax.set_ylabel("simulations")
    return ax


def convergence_traces(losses: np.ndarray, *, converged: np.ndarray | None = None, ax: Axes | None = None) -> Axes:
    """Objective above each gene's best, by iteration; genes that did not converge are drawn dashed and on top.

    Parameters
    ----------
    losses
        ``(iterations, genes)``, as ``model.logger.loss_history``.
    converged
        ``(genes,)``.
    ax
        Axes to draw on.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise InvalidArgumentError(f"losses: expected (iterations, genes), found shape {values.shape}.")
    good = np.ones(values.shape[1], dtype=bool) if converged is None else np.asarray(converged, dtype=bool)
    ax = new_axes(ax, figsize=(5.0, 3.2))
    gap = np.maximum(values - np.nanmin(values, 0), 1e-10)
    for gene in range(values.shape[1]):
        if good[gene]:
            ax.plot(gap[:, gene], color=OKABE_ITO[0], alpha=0.5, linewidth=0.9)
        else:
            ax.plot(gap[:, gene], color=OKABE_ITO[1], linestyle="--", zorder=3)
    ax.set_yscale("log")
    ax.set_xlabel("iteration")
    ax.set_ylabel("nats above the best")
    ax.set_title(f"{int(good.sum())} of {len(good)} genes converged", fontsize=10)
    return ax
