"""Size of the effect against its evidence, with the strongest genes named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting.style import BLACK, GREY, OKABE_ITO, checked_pvalues, new_axes, require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_POINTS = 9.0  # font size of the gene names; lines of names are 1.3 times as far apart


def volcano(
    table: pd.DataFrame,
    *,
    effect: str = "effect",
    pvalue: str = "pvalue",
    pvalue_adj: str = "pvalue_adj",
    label: str = "gene",
    alpha: float = 0.05,
    n_labels: int = 8,
    effect_name: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Effect against :math:`-\log_{10} p`, one point a gene, the ``n_labels`` smallest significant p-values named.

    Parameters
    ----------
    table
        One row a gene (and covariate: select one covariate first).
    effect, pvalue, pvalue_adj, label
        Columns: signed effect, p-value, p-value adjusted for multiple testing, name to print. Rows with a missing
        effect or p-value are left out.
    alpha
        A point is coloured when its adjusted p-value is at most ``alpha``.
    n_labels
        How many points to name at most; only coloured ones are named.
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
        A column is missing, a p-value is outside [0, 1], or ``alpha`` is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise InvalidArgumentError(f"alpha: expected a number between 0 and 1, found {alpha!r}.")
    require_columns(table, effect, label)
    checked_pvalues(table, pvalue_adj)
    height = -np.log10(np.maximum(checked_pvalues(table, pvalue), np.finfo(np.float64).tiny))
    shown = table.assign(_height=height).dropna(subset=[effect, "_height"])
    found = shown[pvalue_adj] <= alpha
    ax = new_axes(ax, figsize=(5.6, 4.4))
    for name, rows, colour in (
        ("not significant", ~found, GREY),
        ("lower", found & (shown[effect] < 0), OKABE_ITO[0]),
        ("higher", found & (shown[effect] >= 0), OKABE_ITO[1]),
    ):
        points = shown[rows]
        ax.scatter(points[effect], points["_height"], s=18, color=colour, linewidth=0, label=f"{name}: {len(points):,}")
    ax.axvline(0, color=BLACK, linewidth=0.6, zorder=0)
    if found.any():
        ax.axhline(shown.loc[found, "_height"].min(), color=BLACK, linewidth=0.6, linestyle="--", zorder=0)
    ax.margins(x=0.22, y=0.1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(effect_name or effect)
    ax.set_ylabel("$-\\log_{10}\\,p$")
    ax.legend(title=f"adjusted p ≤ {alpha:g}", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    _name_points(ax, shown[found].nlargest(n_labels, "_height"), effect, label)
    return ax


def _name_points(ax: Axes, points: pd.DataFrame, effect: str, label: str) -> None:
    """Write each name outwards of its point, moved down where it would cover the name above it."""
    ax.figure.canvas.figure.draw_without_rendering()  # settles the layout that the distances are measured in
    line = LABEL_POINTS * 1.3 * ax.figure.dpi / 72
    for outwards, side in ((-1, points[points[effect] < 0]), (1, points[points[effect] >= 0])):
        ceiling = np.inf
        for _, row in side.sort_values("_height", ascending=False).iterrows():
            y = ax.transData.transform((row[effect], row["_height"]))[1]
            ceiling = min(ceiling - line, y)
            ax.annotate(
                str(row[label]),
                (row[effect], row["_height"]),
                xytext=(outwards * 9, (ceiling - y) * 72 / ax.figure.dpi),
                textcoords="offset points",
                ha="left" if outwards > 0 else "right",
                va="center",
                fontsize=LABEL_POINTS,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
            )
