"""Posteriors, predictive checks and calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.interpolate import RectBivariateSpline
from scipy.special import expit
from scipy.stats import binom

from pyrosplice.errors import InvalidArgumentError, check_share
from pyrosplice.plotting._style import (
    GRAY,
    MARKERS,
    OKABE_ITO,
    SEQUENTIAL,
    ink,
    name_inches,
    new_axes,
    percent,
    require_columns,
    verbatim,
)
from pyrosplice.posterior._genes import names_by_gene, one_gene, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 60
NEAR = 1e-8  # nats; closer to the best than this is not shown


def effect_table(tree: xr.DataTree, *, site: str = "beta", probability: float = 0.9) -> pd.DataFrame:
    """Tabulate mean and interval of every entry of a site, one row each, for :func:`effect_forest`.

    ``gene``, ``label``, ``mean``, ``lower``, ``upper``, and the ``probability`` of these central intervals. A label is
    the covariate and the isoform; for effects on logits, the isoform and the reference that its odds are against
    (``age: iso1 vs iso3``).

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.plotting import effect_table
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> effect_table(model.posterior(num_samples=200, seed=0))[["gene", "label"]]
       gene                        label
    0     0  covariate 0: isoform 0 vs 2
    1     0  covariate 0: isoform 1 vs 2
    2     1  covariate 0: isoform 0 vs 2
    3     1  covariate 0: isoform 1 vs 2
    """
    check_share("probability", probability)
    if names_by_gene(tree):
        parts = (one_gene(tree, gene) for gene in units_of(tree))
        return pd.concat([effect_table(p, site=site, probability=probability) for p in parts], ignore_index=True)
    array = tree["posterior"].to_dataset()[site]
    edge = (1 - probability) / 2
    table = {
        "mean": array.mean(("chain", "draw")),
        "lower": array.quantile(edge, ("chain", "draw")).drop_vars("quantile"),
        "upper": array.quantile(1 - edge, ("chain", "draw")).drop_vars("quantile"),
    }
    frame = pd.concat({name: value.to_series() for name, value in table.items()}, axis=1).reset_index()
    if "gene" not in frame:
        frame["gene"] = units_of(tree)[0]
    frame["label"] = _labels(
        tree, frame, [str(dim) for dim in array.dims if dim not in ("chain", "draw", "gene")], site
    )
    return frame[["gene", "label", "mean", "lower", "upper"]].assign(probability=probability)


def _labels(tree: xr.DataTree, frame: pd.DataFrame, dims: list[str], site: str) -> list[str] | str:
    words = {dim: [_worded(dim, value) for value in frame[dim]] for dim in dims}
    if "logit" in dims:
        isoforms = [str(name) for name in tree["observed_data"].to_dataset()["isoform"].values]
        if len(isoforms) == 1:  # a count, not a composition
            del words["logit"]
        else:
            prefix = "isoform " if all(map(str.isdigit, isoforms)) else ""
            words["logit"] = [f"{prefix}{isoforms[int(q)]} vs {isoforms[-1]}" for q in frame["logit"]]
    return [": ".join(parts) for parts in zip(*words.values(), strict=True)] if words else site


def _worded(dim: str, value: object) -> str:
    """A coordinate that is only a number, with what it counts."""
    return f"{dim} {value}" if isinstance(value, int | np.integer) else str(value)


def effect_forest(
    table: pd.DataFrame, *, name: str = "effect", probability: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the interval of each effect, grouped by gene; those that do not cover zero are filled.

    Parameters
    ----------
    table
        Columns ``gene``, ``label``, ``mean``, ``lower``, ``upper``; at most 60 rows (:func:`effect_table` makes it).
    name
        What is drawn, for the axis.
    probability
        What the intervals hold, for the axis; by default the table's column ``probability``, where it has one.
    ax
        Axes to draw on.

    Raises
    ------
    InvalidArgumentError
        A column is missing, there are more rows than can be read, or intervals of several probabilities.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import effect_forest
    >>> row = {"gene": "A", "label": "age", "mean": 0.5, "lower": 0.1, "upper": 0.9, "probability": 0.9}
    >>> effect_forest(pd.DataFrame([row])).get_xlabel()
    'effect (mean and 90 % interval)'
    """
    require_columns(table, "gene", "label", "mean", "lower", "upper")
    _require_legible(table)
    level = _level(table, probability)
    names = [f"{_worded('gene', row.gene)}    {row.label}" for row in table.itertuples()]
    ax = new_axes(ax, figsize=(3.6 + name_inches(names, 8), 0.26 * len(table) + 1.0))
    table = table.reset_index(drop=True)
    labels = list(dict.fromkeys(table["label"]))
    place, ticks = 0.0, []
    for gene, rows in table.groupby("gene", sort=False):
        for row in rows.itertuples():
            which = labels.index(row.label) % len(OKABE_ITO)
            sure = row.lower > 0 or row.upper < 0
            ax.plot([row.lower, row.upper], [place, place], color=OKABE_ITO[which], linewidth=1.6)
            face = OKABE_ITO[which] if sure else ax.get_facecolor()
            ax.plot(row.mean, place, MARKERS[which], color=OKABE_ITO[which], markerfacecolor=face, markersize=5)
            ticks.append((place, row.label if row.Index > rows.index[0] else f"{_worded('gene', gene)}    {row.label}"))
            place -= 1
        place -= 0.6
    ax.axvline(0, color=ink(), linewidth=0.8, zorder=0)
    ax.set_yticks([tick for tick, _ in ticks], [verbatim(label) for _, label in ticks], fontsize=8)
    ax.set_xlabel(f"{name} (mean and {level}interval)")
    return ax


def _level(table: pd.DataFrame, probability: float | None) -> str:
    """What the intervals hold, in words; "" where nobody says."""
    if probability is None and "probability" not in table:
        return ""
    levels = [check_share("probability", probability)] if probability is not None else list(set(table["probability"]))
    if len(levels) > 1:
        raise InvalidArgumentError(f"table['probability']: expected intervals of one probability, found {levels}.")
    return f"{percent(levels[0])} "


def variance_grid(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    r"""Draw the posterior of (σ, θ) of one gene as highest-density regions, with the nodes it was computed at.

    The nodes are equally spaced in (log σ, logit θ); between them the log density is interpolated by cubic splines, as
    for the posterior draws. The regions are those of the density of (σ, θ), the axes of the picture, so that areas can
    be compared by eye; a cross marks its highest node.

    Parameters
    ----------
    table
        Columns ``sigma``, ``theta``, ``log_density`` (of log σ and logit θ): a full grid, as
        :func:`pyrosplice.posterior.grid_table` makes it.
    ax
        Axes to draw on.

    Returns
    -------
    Axes
        Filled regions that hold 50, 80, 95 and 99 % of the mass, the nodes (first line) and the highest (second).

    Raises
    ------
    InvalidArgumentError
        A column is missing, or the table is not a full grid of at least 4 × 4 nodes.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> from pyrosplice.data import simulate_counts
    >>> from pyrosplice.plotting import variance_grid
    >>> from pyrosplice.posterior import grid_table
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))))
    >>> counts = simulate_counts(covariance, n_genes=2, depth=10, sigma=0.7, theta=0.5, seed=0)
    >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, priors="weak")
    >>> model.setup_data(counts, corr_sp=covariance)
    >>> model.fit(quiet=True)
    >>> axes = variance_grid(grid_table(model, 0))
    >>> axes.get_xlabel()
    'σ'
    """
    require_columns(table, "sigma", "theta", "log_density")
    wide = table.pivot(index="theta", columns="sigma", values="log_density")
    if min(wide.shape) < 4 or wide.isna().to_numpy().any():
        raise InvalidArgumentError(f"table: expected a full grid of at least 4 × 4 nodes, found {wide.shape}.")
    log_sigma, logit = np.log(wide.columns.to_numpy()), _logit(wide.index.to_numpy())
    fine = [np.linspace(axis[0], axis[-1], 241) for axis in (logit, log_sigma)]
    smooth = RectBivariateSpline(logit, log_sigma, wide.to_numpy())(*fine)
    theta, sigma = expit(fine[0]), np.exp(fine[1])
    density = smooth - fine[1] - np.log(theta * (1 - theta))[:, None]
    mass = np.exp(smooth - smooth.max())
    levels = _region_levels(density, mass / mass.sum(), [0.99, 0.95, 0.8, 0.5])
    ax = new_axes(ax, figsize=(4.6, 3.8))
    filled = ax.contourf(sigma, theta, density, levels=[*levels, density.max() + 1e-9], colors=_shades(len(levels)))
    ax.plot(table["sigma"], table["theta"], ".", color=ink(), markersize=2.5)
    nodes = table["log_density"] - np.log(table["sigma"] * table["theta"] * (1 - table["theta"]))
    best = table.loc[nodes.idxmax()]
    ax.plot(best["sigma"], best["theta"], "x", color="white", markersize=7, markeredgewidth=2, clip_on=False)
    bar = ax.figure.colorbar(filled, ax=ax, ticks=levels, spacing="uniform", label="holds of the posterior mass")
    bar.ax.set_yticklabels(["99 %", "95 %", "80 %", "50 %"])
    inside = sigma[(density >= levels[0]).any(0)]
    ax.set_xlim(max(inside.min() - 0.1 * np.ptp(inside), 0.0), inside.max() + 0.1 * np.ptp(inside))
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("σ")
    ax.set_ylabel("θ, spatial share")
    return ax


def _logit(share: np.ndarray) -> np.ndarray:
    return np.log(share) - np.log1p(-share)


def _region_levels(density: np.ndarray, mass: np.ndarray, shares: list[float]) -> np.ndarray:
    """Density above which each share of the mass lies."""
    order = np.argsort(-density, axis=None)
    held = np.cumsum(mass.ravel()[order])
    return density.ravel()[order][np.minimum(np.searchsorted(held, shares), held.size - 1)]


def _shades(n: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps[SEQUENTIAL](share) for share in np.linspace(0.9, 0.25, n)]


def rootogram(observed: np.ndarray, drawn: np.ndarray, *, most: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw how often each count occurs: observed bars hung from the predicted curve (a hanging rootogram).

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

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.plotting import rootogram
    >>> rng = np.random.default_rng(0)
    >>> observed, drawn = rng.negative_binomial(1, 0.3, 200), rng.poisson(2.3, (50, 200))  # Poisson has too few zeros
    >>> axes = rootogram(observed, drawn)
    >>> axes.get_xlabel()
    'count'
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
    ax.axhspan(-1, 1, color=GRAY, alpha=0.25, linewidth=0, zorder=0, label="bars end here if it fits")
    ax.axhline(0, color=ink(), linewidth=0.8)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("count")
    ax.set_ylabel("√ frequency")
    ax.legend(frameon=False, fontsize=8)
    return ax


def rank_histogram(ranks: np.ndarray, *, n_draws: int, bins: int = 20, name: str = "", ax: Axes | None = None) -> Axes:
    """Draw ranks of true values among posterior draws, with the 99 % band of a uniform histogram.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.plotting import rank_histogram
    >>> axes = rank_histogram(np.random.default_rng(0).integers(0, 101, 500), n_draws=100, name="σ")
    >>> "σ" in axes.get_xlabel()
    True
    """
    ax = new_axes(ax, figsize=(3.4, 2.4))
    counts, _ = np.histogram(ranks, np.linspace(0, n_draws + 1, bins + 1))
    low, high = binom.ppf([0.005, 0.995], len(ranks), 1 / bins)
    ax.axhspan(low, high, color=GRAY, alpha=0.35, linewidth=0, label="99 % band of uniform ranks")
    ax.bar((np.arange(bins) + 0.5) / bins, counts, width=0.9 / bins, color=OKABE_ITO[0])
    ax.axhline(len(ranks) / bins, color=ink(), linewidth=0.8)
    ax.set_ylim(top=1.3 * max(high, counts.max()))  # room for the legend
    ax.set_xlabel(f"rank of the truth{f', {name}' if name else ''}")
    ax.set_ylabel("simulations")
    ax.legend(frameon=False, fontsize=8)
    return ax


def convergence_traces(losses: np.ndarray, *, converged: np.ndarray | None = None, ax: Axes | None = None) -> Axes:
    """Draw the objective above each gene's best, by iteration; genes that did not converge dashed and on top.

    A line ends, with a dot, where its gene came within ``1e-8`` of its best.

    Parameters
    ----------
    losses
        ``(iterations, genes)``, as ``model.logger.loss_history``.
    converged
        ``(genes,)``.
    ax
        Axes to draw on.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.plotting import convergence_traces
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> axes = convergence_traces(model.logger.loss_history)
    >>> axes.get_xlabel()
    'iteration'
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise InvalidArgumentError(f"losses: expected (iterations, genes), found shape {values.shape}.")
    good = np.ones(values.shape[1], dtype=bool) if converged is None else np.asarray(converged, dtype=bool)
    ax = new_axes(ax, figsize=(5.0, 3.2))
    gap = np.maximum(values - np.nanmin(values, 0), NEAR)
    for gene in range(values.shape[1]):
        line = gap[: int((gap[:, gene] <= NEAR).argmax()) + 1, gene]
        style: dict[str, Any] = {"color": OKABE_ITO[0], "alpha": 0.6, "linewidth": 0.9}
        if not good[gene]:
            style = {"color": OKABE_ITO[1], "linestyle": "--", "zorder": 3}
        ax.plot(line, marker="o", markevery=[-1], markersize=3, **style)
    ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("iteration")
    ax.set_ylabel("nats above the best")
    ax.set_title(f"{int(good.sum())} of {len(good)} genes converged", fontsize=10)
    return ax


def predictive_intervals(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what was observed against what the model predicts, a row a gene and statistic.

    Statistics have different units, so every row is drawn on a scale of its own: 0 is the predicted mean, ±1 the ends
    of the predictive 90 % interval on either side. Observed values outside of it are filled.

    Parameters
    ----------
    table
        Table of :func:`pyrosplice.posterior.predictive_check`: columns ``gene``, ``statistic``, ``observed``, ``mean``,
        ``lower``, ``upper``; at most 60 rows.
    ax
        Axes to draw on.

    Returns
    -------
    Axes
        A collection of the intervals, then one a statistic: position of the observed value, row. Values beyond ±4 are
        drawn there, with an arrow outwards.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.plotting import predictive_intervals
    >>> from pyrosplice.posterior import predictive_check
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> tree = model.posterior(num_samples=200, groups=("posterior_predictive",), seed=0)
    >>> axes = predictive_intervals(predictive_check(tree))
    >>> len(axes.get_yticklabels())  # a row a gene and statistic
    6
    """
    require_columns(table, "gene", "statistic", "observed", "mean", "lower", "upper")
    _require_legible(table)
    names = list(dict.fromkeys(table["statistic"]))
    words = [f"{_worded('gene', row.gene)}    {row.statistic}" for row in table.itertuples()]
    ax = new_axes(ax, figsize=(3.8 + name_inches(words, 8), 0.22 * len(table) + 1.2))
    table = table.sort_values("gene", key=lambda genes: pd.factorize(genes)[0], kind="stable")
    gap = table["observed"] - table["mean"]
    width = np.where(gap < 0, table["mean"] - table["lower"], table["upper"] - table["mean"])
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.where(gap == 0, 0.0, gap / width)
    row = -np.arange(len(table)) - 0.6 * pd.factorize(table["gene"])[0]
    ax.hlines(row, -1, 1, color=GRAY, linewidth=5, alpha=0.35)
    for number, name in enumerate(names):
        which = (table["statistic"] == name).to_numpy()
        color, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
        face = [color if outside else ax.get_facecolor() for outside in np.abs(place[which]) > 1]
        inside = np.clip(place[which], -4, 4)
        ax.scatter(inside, row[which], s=30, marker=marker, facecolors=face, edgecolors=color, zorder=3)
        for beyond, y in zip(place[which], row[which], strict=True):
            if abs(beyond) > 4:
                tip = (np.sign(beyond) * 4.5, y)
                ax.annotate("", tip, (np.sign(beyond) * 4, y), arrowprops={"arrowstyle": "->", "color": color})
    first = ~table["gene"].duplicated()
    labels = [
        f"{_worded('gene', gene)}    {name}" if head else name
        for gene, name, head in zip(table["gene"], table["statistic"], first, strict=True)
    ]
    ax.set_yticks(row, [verbatim(label) for label in labels], fontsize=8)
    ax.axvline(0, color=ink(), linewidth=0.8, zorder=0)
    ax.set_xlim(-4.6, 4.6)
    ax.set_xticks([-4, -2, -1, 0, 1, 2, 4])
    ax.set_xlabel("observed; 0 is predicted, ±1 ends of the 90 % interval")
    return ax


def _require_legible(table: pd.DataFrame) -> None:
    if len(table) > MOST_ROWS:
        raise InvalidArgumentError(
            f"table: expected at most {MOST_ROWS} rows to be legible, found {len(table)}; choose genes."
        )
