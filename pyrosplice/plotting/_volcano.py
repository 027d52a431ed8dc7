"""Size of the effect against its evidence (volcano) and against the mean (MA), with the genes that matter named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyrosplice._hypothesis.fdr import adjust_jointly
from pyrosplice.errors import InvalidArgumentError, check_integer, check_number, check_share
from pyrosplice.plotting._point_names import name_points
from pyrosplice.plotting._style import (
    GRAY,
    MANY,
    OKABE_ITO,
    checked_pvalues,
    ink,
    new_axes,
    number_column,
    pyplot,
    require_columns,
    verbatim,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

COLORS = {"not significant": GRAY, "lower": OKABE_ITO[0], "higher": OKABE_ITO[1]}
SMALLEST = float(np.nextafter(0, 1))
BEYOND = 1.12  # where what has no place on an axis (infinite effects, p = 0) is drawn, in largest values


def volcano(  # noqa: PLR0913 (what a figure shows, all by keyword)
    table: pd.DataFrame,
    *,
    effect: str = "effect",
    pvalue: str = "pvalue",
    pvalue_adj: str = "pvalue_adj",
    label: str = "gene",
    alpha: float = 0.05,
    min_effect: float = 0.0,
    names: Sequence[str] | None = None,
    n_labels: int = 8,
    floor: float | None = None,
    effect_name: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw effects against :math:`-\log_{10} p`, a point a gene, the ``n_labels`` smallest significant p named.

    Parameters
    ----------
    table
        One row a gene (and covariate: select one covariate first).
    effect, pvalue, pvalue_adj, label
        Columns: signed effect, p-value, p-value adjusted for multiple testing, name to print. Rows with a missing
        effect or p-value are left out, and counted below the figure. ``pvalue`` may be the adjusted one too: the axis
        then says so.
    alpha, min_effect
        A point is coloured when its adjusted p-value is at most ``alpha`` and its effect, either way, at least
        ``min_effect``.
    names
        Genes to name; by default the strongest coloured ones.
    n_labels
        How many coloured points to name at most where ``names`` is not given.
    floor
        Smaller p-values are drawn there, as triangles. By default only p-values of zero, which have no logarithm, are:
        above all others.
    effect_name
        Label of the horizontal axis, the column's name by default.
    ax
        Axes to draw on; new ones by default.

    Returns
    -------
    Axes
        Collections "not significant", "lower", "higher", then those of p-values below the floor and of infinite effects
        (drawn beyond all others), where there are any; one text a named gene.

    Raises
    ------
    InvalidArgumentError
        A column is missing, a p-value is outside [0, 1], ``alpha`` or ``floor`` is not between 0 and 1, or a gene of
        ``names`` is not in the table.

    Notes
    -----
    The dashed line is the cut at ``alpha``. Over adjusted p-values it is at ``alpha``. Over raw ones it is where the
    adjusted p-value passes ``alpha``: at Benjamini and Hochberg's :math:`\alpha k / m`, with k of m tests found, where
    the table's p-values are adjusted by them; at the largest significant p where they are adjusted otherwise, or along
    with tests that are not in the table. There is none where nothing is found, or where no one raw p-value parts the
    significant from the others (p-values that were adjusted by groups, say), which the title then says. With
    ``min_effect``, dotted lines are at plus and minus it. Names are placed by adjustText where it is installed.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import volcano
    >>> pvalues = {"pvalue": [1e-4, 0.4], "pvalue_adj": [2e-4, 0.4]}
    >>> ax = volcano(pd.DataFrame({"gene": ["A", "B"], "effect": [1.0, -0.2], **pvalues}))
    >>> ax.get_legend().get_title().get_text()
    'colored: adjusted p ≤ 0.05 (dashed)'
    """
    shown = _judged(table, effect, pvalue_adj, label, alpha, min_effect)
    p, adjusted = checked_pvalues(shown, pvalue), checked_pvalues(shown, pvalue_adj)
    height, least = _heights(p, floor)
    shown, left_out = _placed(shown.assign(_y=height, _p=p, _below=p < least), effect, "_x", ["_y"])
    ax = new_axes(ax, figsize=(5.6, 4.6))
    _draw(ax, shown)
    _beyond(ax, shown[shown["_below"]], "^", "p = 0" if floor is None else f"p < {floor:g}")
    _beyond(ax, shown[shown[effect] == -np.inf], "<", "effect −∞")
    _beyond(ax, shown[shown[effect] == np.inf], ">", "effect ∞")
    ax.axvline(0, color=ink(), linewidth=0.6, zorder=0)
    cut = alpha if pvalue == pvalue_adj else _cut(p, adjusted, alpha)
    if cut:
        ax.axhline(-np.log10(max(cut, least)), color=ink(), linewidth=0.6, linestyle="--", zorder=0)
    ax.margins(x=0.26, y=0.1)
    _effect_lines(ax.axvline, min_effect)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(effect_name or verbatim(effect))
    ax.set_ylabel("$-\\log_{10}$ adjusted $p$" if pvalue == pvalue_adj else "$-\\log_{10}\\,p$")
    words = " (no one p parts them)" if cut is None else " (dashed)" if cut else ""
    _legend(ax, _title(alpha, words, min_effect, left_out))
    _name(ax, shown, "_p", names, n_labels, label)
    return ax


def ma(  # noqa: PLR0913 (what a figure shows, all by keyword)
    table: pd.DataFrame,
    *,
    effect: str = "effect",
    mean: str = "mean",
    pvalue_adj: str = "pvalue_adj",
    label: str = "gene",
    alpha: float = 0.05,
    min_effect: float = 0.0,
    names: Sequence[str] | None = None,
    n_labels: int = 8,
    effect_name: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw effects against the gene's mean on a logarithmic axis; coloured and named as in :func:`volcano`.

    Genes whose mean is zero, or missing, have no place on the axis and are left out, and counted below the figure;
    everything else as there.

    Raises
    ------
    InvalidArgumentError
        As of :func:`volcano`; a negative mean, as data that were centered or scaled have.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import ma
    >>> columns = {"effect": [1.0, -0.2], "mean": [8.0, 0.5], "pvalue_adj": [2e-4, 0.4]}
    >>> ax = ma(pd.DataFrame({"gene": ["A", "B"], **columns}))
    >>> ax.get_xscale()
    'log'
    """
    require_columns(table, mean)
    shown = _judged(table, effect, pvalue_adj, label, alpha, min_effect)
    place = _means(table, mean)
    shown, left_out = _placed(shown.assign(_x=np.where(place > 0, place, np.nan)), effect, "_y", ["_x"])
    ax = new_axes(ax, figsize=(5.6, 4.6))
    ax.set_xscale("log")
    _draw(ax, shown)
    _beyond(ax, shown[shown[effect] == -np.inf], "v", "effect −∞")
    _beyond(ax, shown[shown[effect] == np.inf], "^", "effect ∞")
    ax.axhline(0, color=ink(), linewidth=0.6, zorder=0)
    ax.margins(x=0.08, y=0.1)
    _effect_lines(ax.axhline, min_effect)
    ax.set_xlabel(verbatim(mean))
    ax.set_ylabel(effect_name or verbatim(effect))
    _legend(ax, _title(alpha, "", min_effect, left_out))
    _name(ax, shown, pvalue_adj, names, n_labels, label)
    return ax


def _means(table: pd.DataFrame, column: str) -> np.ndarray:
    """Means, which have a logarithm or are none; a negative one raises."""
    values = number_column(table, column)
    below = np.flatnonzero(values < 0)
    if len(below):
        raise InvalidArgumentError(
            f"table[{column!r}]: expected means of at least 0, since their axis is logarithmic, found "
            f"{values[below[0]]:g} in row {below[0]} and {len(below)} negative ones in all; are these data centered or "
            "scaled? Draw plotting.volcano, or name a column of means of counts with mean=."
        )
    return values


def _judged(
    table: pd.DataFrame, effect: str, pvalue_adj: str, label: str, alpha: float, min_effect: float
) -> pd.DataFrame:
    """The table with a column ``group``."""
    check_share("alpha", alpha)
    check_number("min_effect", min_effect)
    require_columns(table, effect, label)
    size = number_column(table, effect)
    found = (checked_pvalues(table, pvalue_adj) <= alpha) & (np.abs(size) >= min_effect)
    return table.assign(group=np.where(found, np.where(size < 0, "lower", "higher"), "not significant"))


def _heights(p: np.ndarray, floor: float | None) -> tuple[np.ndarray, float]:
    """Where p-values stand, those below the floor (or zero) at one height, and the smallest that stands at its own."""
    if floor is not None:
        least = check_share("floor", floor)
        return -np.log10(np.maximum(p, least)), least
    height = -np.log10(np.where(p > 0, p, np.nan))
    return np.where(p == 0, BEYOND * np.nanmax(height, initial=1.0), height), SMALLEST


def _placed(shown: pd.DataFrame, effect: str, axis: str, others: list[str]) -> tuple[pd.DataFrame, int]:
    """Rows that have a place, infinite effects beyond all others on ``axis``, and how many have none."""
    value = number_column(shown, effect)
    finite = np.abs(value[np.isfinite(value)])
    edge = BEYOND * float(finite.max(initial=0.0) or 1.0)
    shown = shown.assign(**{axis: np.clip(value, -edge, edge)})
    kept = shown.dropna(subset=[axis, *others])
    return kept, len(shown) - len(kept)


def _cut(p: np.ndarray, adjusted: np.ndarray, alpha: float) -> float | None:
    """Raw p-value where the adjusted one passes ``alpha``; 0 where none is below, None where no one parts them."""
    tested = ~np.isnan(p) & ~np.isnan(adjusted)
    found = tested & (adjusted <= alpha)
    if not found.any():
        return 0.0
    last, first = float(p[found].max()), float(p[tested & ~found].min(initial=np.inf))
    if last >= first:
        return None
    by_rank = np.allclose(adjust_jointly(p[tested]), adjusted[tested], rtol=1e-6, atol=0)
    return float(alpha * found.sum() / tested.sum()) if by_rank else last


def _draw(ax: Axes, shown: pd.DataFrame) -> None:
    many = len(shown) > MANY
    for name, color in COLORS.items():
        points = shown[shown["group"] == name]
        ax.scatter(
            points["_x"],
            points["_y"],
            s=9.0 if many else 18.0,
            color=color,
            linewidth=0,
            label=f"{name}: {len(points):,}",
            rasterized=many,
        )


def _beyond(ax: Axes, rows: pd.DataFrame, marker: str, name: str) -> None:
    """Mark points that are drawn where the axis ends."""
    if len(rows):
        colors = [COLORS[group] for group in rows["group"]]
        label = f"{name}: {len(rows):,}"
        ax.scatter(rows["_x"], rows["_y"], s=34, marker=marker, color=colors, linewidth=0, label=label)


def _effect_lines(draw: Callable[..., object], min_effect: float) -> None:
    for at in (-min_effect, min_effect) if min_effect > 0 else ():
        draw(at, color=ink(), linewidth=0.6, linestyle=":", zorder=0)


def _title(alpha: float, drawn: str, min_effect: float, left_out: int) -> str:
    """Say what is coloured, which lines say so, and how many rows have no place."""
    title = f"colored: adjusted p ≤ {alpha:g}{drawn}"
    title += f", effect at least {min_effect:.3g} (dotted)" if min_effect > 0 else ""
    return title + (f"\nleft out, without an effect or a place: {left_out:,}" if left_out else "")


def _legend(ax: Axes, title: str) -> None:
    """Below the horizontal axis and its name, so that a title has the place above the figure."""
    from matplotlib.transforms import ScaledTranslation

    ticks, name = ax.xaxis.get_major_ticks()[0], ax.xaxis.label
    height = _points(ticks.label1) + _points(name) * (name.get_text().count("\n") + 1)
    gaps = sum(pyplot().rcParams[f"xtick.major.{part}"] for part in ("size", "pad")) + ax.xaxis.labelpad + 5
    below = ScaledTranslation(0, -(height + gaps) / 72, ax.figure.dpi_scale_trans)
    options: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 3, "frameon": False}
    options |= {"bbox_transform": ax.transAxes + below, "borderaxespad": 0.0}
    legend = ax.legend(title=title, fontsize=9, columnspacing=1.2, handletextpad=0.2, **options)
    legend.get_title().set_multialignment("center")


def _points(text: Text) -> float:
    """Height of a line of text."""
    return 1.3 * float(text.get_fontsize())


def _name(ax: Axes, shown: pd.DataFrame, order: str, names: Sequence[str] | None, n_labels: int, label: str) -> None:
    """Name the points of ``names``, or else the coloured ones that are first by the column ``order``."""
    most = check_integer("n_labels", n_labels, least=0)
    points = shown[shown["group"] != "not significant"].sort_values(order, kind="stable").head(most)
    if names is not None:
        asked = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in asked if name not in set(shown[label])]
        if unknown:
            raise InvalidArgumentError(f"genes to name: not among those drawn: {unknown}.")
        points = shown[shown[label].isin(asked)]
    every, at = (rows[["_x", "_y"]].to_numpy(dtype=np.float64) for rows in (shown, points))
    name_points(ax, every, at, list(points[label]))
