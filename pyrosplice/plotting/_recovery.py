"""Estimates against the truth that simulated them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting._style import MANY, MARKERS, OKABE_ITO, groups, ink, new_axes, require_columns, verbatim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LEVELS = 8  # up to so many true values the estimates of each are spread sideways and get a median


def estimate_vs_truth(
    table: pd.DataFrame,
    *,
    estimate: str = "estimate",
    truth: str = "truth",
    by: str | None = None,
    name: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw estimates against the truth with the identity line, bias and root mean squared error.

    Where the truth takes at most eight values, points of one value are spread sideways so that they can be seen,
    and a black bar marks their median.

    Parameters
    ----------
    table
        One row an estimate. Rows with a missing estimate or truth are left out.
    estimate, truth
        Columns of the table.
    by
        Column that colours the points, at most seven values.
    name
        What is estimated ("θ", "effect"), for the axes' labels.
    ax
        Axes to draw on; new ones by default.

    Returns
    -------
    Axes
        One collection a group, the identity line first among the lines.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or no row has both an estimate and a truth.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import estimate_vs_truth
    >>> ax = estimate_vs_truth(pd.DataFrame({"truth": [0.0, 1.0], "estimate": [0.1, 0.9]}), name="θ")
    >>> ax.get_title()
    'n = 2, bias +0.000, RMSE 0.100'
    """
    require_columns(table, estimate, truth)
    split = groups(table, by)
    shown = table.dropna(subset=[estimate, truth])
    if len(shown) == 0:
        raise InvalidArgumentError(f"table: no row has both {estimate!r} and {truth!r}.")
    ax = new_axes(ax, figsize=(4.4, 4.2))
    levels = np.unique(shown[truth])
    gaps = np.diff(levels) if len(levels) > 1 else np.array([np.ptp(shown[estimate])])
    width = 0.5 * gaps.min() if len(levels) <= MAX_LEVELS else 0.0
    for (group_name, group), color, marker in zip(split, OKABE_ITO, MARKERS, strict=False):
        points = group.dropna(subset=[estimate, truth])
        x = points[truth].to_numpy(dtype=np.float64) + width * _spread(len(points))
        look: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "alpha": 0.8,
            "linewidth": 0,
            "rasterized": len(points) > MANY,
        }
        ax.scatter(x, points[estimate], s=16, label=group_name, **look)
    ends = [min(shown[truth].min(), shown[estimate].min()), max(shown[truth].max(), shown[estimate].max())]
    ax.plot(ends, ends, color=ink(), linewidth=1, zorder=0)
    if width > 0:
        medians = shown.groupby(truth)[estimate].median()
        ax.hlines(medians, medians.index - 0.6 * width, medians.index + 0.6 * width, color=ink(), linewidth=2.5)
        ax.set_xticks(levels)
    error = (shown[estimate] - shown[truth]).to_numpy(dtype=np.float64)
    ax.set_title(f"n = {error.size:,}, bias {error.mean():+.3f}, RMSE {np.sqrt((error**2).mean()):.3f}", fontsize=10)
    ax.set_xlabel(f"true {name or verbatim(truth)}" + (" (spread sideways; bars: medians)" if width > 0 else ""))
    ax.set_ylabel(f"estimated {name or verbatim(estimate)}")
    if by is not None:
        ax.legend(title=verbatim(by), frameon=False)
    return ax


def _spread(size: int) -> np.ndarray:
    """Points of a low-discrepancy sequence in [−½, ½): even sideways spread without randomness."""
    return (np.arange(size) * 0.6180339887498949) % 1.0 - 0.5
