"""Size of the effect against its evidence (volcano) and against the mean (MA), with the genes that matter named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError, check_share
from pyrosplice.plotting._style import BLACK, GRAY, OKABE_ITO, checked_pvalues, new_axes, require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

LABEL_POINTS = 9.0  # font size of the gene names
LEVELS = 8  # how many lines of names up and down are tried to find a free place
SMALLEST = float(np.finfo(np.float64).tiny)


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
    floor: float = SMALLEST,
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
        effect or p-value are left out. ``pvalue`` may be the adjusted one too: the axis then says so.
    alpha, min_effect
        A point is coloured when its adjusted p-value is at most ``alpha`` and its effect, either way, at least
        ``min_effect``.
    names
        Genes to name; by default the strongest coloured ones.
    n_labels
        How many coloured points to name at most where ``names`` is not given.
    floor
        Smaller p-values are drawn there, as triangles.
    effect_name
        Label of the horizontal axis, the column's name by default.
    ax
        Axes to draw on; new ones by default.

    Returns
    -------
    Axes
        Collections "not significant", "lower", "higher", and one annotation a named gene.

    Raises
    ------
    InvalidArgumentError
        A column is missing, a p-value is outside [0, 1], ``alpha`` or ``floor`` is not between 0 and 1, or a gene of
        ``names`` is not in the table.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice.plotting import volcano
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame({"gene": [f"gene_{g}" for g in range(50)], "effect": rng.normal(size=50)})
    >>> table["pvalue"], table["mean"] = rng.uniform(size=50), rng.gamma(2, 5, 50)
    >>> table["pvalue_adj"] = 1.0
    >>> table.loc[0, ["effect", "pvalue", "pvalue_adj"]] = [3.0, 1e-8, 1e-6]
    >>> axes = volcano(table)
    >>> [text.get_text() for text in axes.texts]
    ['gene_0']
    """
    check_share("floor", floor)
    shown = _sorted(table, effect, pvalue_adj, label, alpha, min_effect)
    p = checked_pvalues(shown, pvalue)
    shown = shown.assign(_x=shown[effect], _y=-np.log10(np.maximum(p, floor))).dropna(subset=["_x", "_y"])
    ax = new_axes(ax, figsize=(5.6, 4.4))
    _draw(ax, shown)
    below = shown[shown[pvalue] < floor]
    if floor > SMALLEST and len(below):
        colors = [OKABE_ITO[0] if row == "lower" else OKABE_ITO[1] if row == "higher" else GRAY for row in below.group]
        ax.scatter(below["_x"], below["_y"], s=26, marker="^", color=colors, linewidth=0, label=f"p < {floor:g}")
    ax.axvline(0, color=BLACK, linewidth=0.6, zorder=0)
    found = shown[shown["group"] != "not significant"]
    if len(found):
        ax.axhline(found["_y"].min(), color=BLACK, linewidth=0.6, linestyle="--", zorder=0)
    ax.margins(x=0.26, y=0.1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(effect_name or effect)
    ax.set_ylabel("$-\\log_{10}$ adjusted $p$" if pvalue == pvalue_adj else "$-\\log_{10}\\,p$")
    _legend(ax, alpha)
    _name_points(ax, shown, _named(shown, found.nlargest(n_labels, "_y"), names, label), label)
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

    Genes whose mean is zero have no place on the axis and are left out; everything else as there.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice.plotting import ma
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame({"gene": [f"gene_{g}" for g in range(50)], "effect": rng.normal(size=50)})
    >>> table["pvalue"], table["mean"] = rng.uniform(size=50), rng.gamma(2, 5, 50)
    >>> table["pvalue_adj"] = 1.0
    >>> table.loc[0, ["effect", "pvalue", "pvalue_adj"]] = [3.0, 1e-8, 1e-6]
    >>> axes = ma(table)
    >>> axes.get_xscale(), [text.get_text() for text in axes.texts]
    ('log', ['gene_0'])
    """
    require_columns(table, mean)
    shown = _sorted(table, effect, pvalue_adj, label, alpha, min_effect)
    shown = shown.assign(_x=shown[mean], _y=shown[effect])
    shown = shown[shown["_x"] > 0].dropna(subset=["_x", "_y"])
    ax = new_axes(ax, figsize=(5.6, 4.4))
    _draw(ax, shown)
    ax.axhline(0, color=BLACK, linewidth=0.6, zorder=0)
    ax.set_xscale("log")
    ax.margins(x=0.08, y=0.1)
    ax.set_xlabel(mean)
    ax.set_ylabel(effect_name or effect)
    _legend(ax, alpha)
    found = shown[shown["group"] != "not significant"]
    _name_points(ax, shown, _named(shown, found.nsmallest(n_labels, pvalue_adj), names, label), label)
    return ax


def _sorted(
    table: pd.DataFrame, effect: str, pvalue_adj: str, label: str, alpha: float, min_effect: float
) -> pd.DataFrame:
    """The table with a column ``group``."""
    check_share("alpha", alpha)
    require_columns(table, effect, label)
    found = (checked_pvalues(table, pvalue_adj) <= alpha) & (table[effect].abs() >= min_effect)
    return table.assign(group=np.where(found, np.where(table[effect] < 0, "lower", "higher"), "not significant"))


def _draw(ax: Axes, shown: pd.DataFrame) -> None:
    size = 18.0 if len(shown) <= 3000 else 9.0
    for name, color in (("not significant", GRAY), ("lower", OKABE_ITO[0]), ("higher", OKABE_ITO[1])):
        points = shown[shown["group"] == name]
        ax.scatter(points["_x"], points["_y"], s=size, color=color, linewidth=0, label=f"{name}: {len(points):,}")


def _legend(ax: Axes, alpha: float) -> None:
    ax.legend(
        title=f"adjusted p ≤ {alpha:g}",
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=3,
        columnspacing=1.2,
        handletextpad=0.2,
    )


def _named(shown: pd.DataFrame, strongest: pd.DataFrame, names: Sequence[str] | None, label: str) -> pd.DataFrame:
    if names is None:
        return strongest
    unknown = [name for name in names if name not in set(shown[label])]
    if unknown:
        raise InvalidArgumentError(f"genes to name: not among those drawn: {unknown}.")
    return shown[shown[label].isin(names)]


def _name_points(ax: Axes, shown: pd.DataFrame, points: pd.DataFrame, label: str) -> None:
    """Write each name beside its point, away from the middle, where it covers no other name nor, if it can, a point."""
    ax.figure.canvas.figure.draw_without_rendering()  # settles the layout that the distances are measured in
    middle = ax.transAxes.transform((0.5, 0.5))[0]
    pixels = ax.transData.transform(shown[["_x", "_y"]].to_numpy(dtype=np.float64))
    taken: list[Bbox] = []
    for row in points.sort_values("_y", ascending=False).to_dict("records"):
        at = (row["_x"], row["_y"])
        outwards = 1 if ax.transData.transform(at)[0] >= middle else -1
        note = ax.annotate(
            str(row[label]),
            at,
            xytext=(outwards * 9, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_POINTS,
            arrowprops={"arrowstyle": "-", "color": GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )
        taken.append(_free_place(ax, note, outwards, taken, pixels))


def _free_place(ax: Axes, note: Annotation, outwards: int, taken: list[Bbox], points: np.ndarray) -> Bbox:
    """Move the annotation to the best place in the axes; its box there.

    Best is free of names and points, then free of names, then the first of all: near first, outwards before inwards.
    """
    line = LABEL_POINTS * 1.3
    levels = sorted(range(-LEVELS, LEVELS + 1), key=lambda level: (abs(level), level))
    places = [(side * 9, level * line) for side in (outwards, -outwards) for level in levels]
    without_names = None
    for place in places:
        box = _moved(note, place)
        inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
        if not inside or any(box.overlaps(other) for other in taken):
            continue
        if not ((points > box.min) & (points < box.max)).all(1).any():
            return box
        without_names = without_names or place
    return _moved(note, without_names or places[0])


def _moved(note: Annotation, place: tuple[float, float]) -> Bbox:
    from matplotlib.text import Text

    note.set_position(place)
    note.set_horizontalalignment("left" if place[0] > 0 else "right")
    note.get_window_extent()  # moves the text; with its line to the point, which may cross others
    return Text.get_window_extent(note)
