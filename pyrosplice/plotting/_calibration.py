"""Ranks of simulation-based calibration against what uniform ranks look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrosplice._hypothesis.uniform_bands import rank_band
from pyrosplice.errors import InvalidArgumentError, check_share
from pyrosplice.plotting._style import GRAY, OKABE_ITO, ink, legend_name, new_axes, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rank_ecdf(ranks: pd.DataFrame, *, n_draws: int, confidence: float = 0.99, ax: Axes | None = None) -> Axes:
    """Draw the ranks' distribution minus the uniform one, with the exact band that a uniform line stays in.

    A line above zero on the left and below on the right (the truth is too often at the ends) says that posteriors are
    too narrow; the other way round, too wide; above or below everywhere, shifted.

    Parameters
    ----------
    ranks
        One column a quantity, one row a simulation: ranks of the truth among its draws, 0 to ``n_draws``. Missing ones
        are left out. Quantities that leave the band are coloured and named, the others are grey.
    n_draws
        Draws of each simulation.
    confidence
        Confidence of the band, for each quantity.
    ax
        Axes to draw on.

    Raises
    ------
    InvalidArgumentError
        No ranks, ranks outside 0 to ``n_draws``, or ``confidence`` not between 0 and 1.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import rank_ecdf
    >>> ax = rank_ecdf(pd.DataFrame({"sigma": range(100)}), n_draws=99)
    >>> ax.get_ylabel()
    'distribution − uniform'
    """
    check_share("confidence", confidence)
    seen = {name: ranks[name].dropna().to_numpy() for name in ranks}
    if not seen or not all(len(values) for values in seen.values()):
        raise InvalidArgumentError("ranks: expected one of every quantity at least, found none.")
    if any(values.min() < 0 or values.max() > n_draws for values in seen.values()):
        raise InvalidArgumentError(f"ranks: expected 0 to n_draws = {n_draws}.")
    ax = new_axes(ax, figsize=(4.6, 3.4))
    points, outside = np.arange(1, n_draws + 1), 0
    place = np.concatenate([[0.0], points / (n_draws + 1), [1.0]])
    for name, values in seen.items():
        below = np.searchsorted(np.sort(values), points, side="left")
        low, high = rank_band(len(values), n_draws + 1, confidence)
        line = np.concatenate([[0.0], below / len(values) - place[1:-1], [0.0]])
        if ((below < low) | (below > high)).any():
            color = OKABE_ITO[outside % len(OKABE_ITO)]
            ax.plot(place, line, color=color, linewidth=1.6, label=legend_name(name), zorder=3)
            outside += 1
        else:
            ax.plot(place, line, color=GRAY, linewidth=1.0, zorder=2)
    for size in sorted({len(values) for values in seen.values()}):
        low, high = rank_band(size, n_draws + 1, confidence)
        least, most = (np.concatenate([[0.0], edge / size - place[1:-1], [0.0]]) for edge in (low, high))
        band = ax.fill_between(place, least, most, color=GRAY, alpha=0.25, linewidth=0, zorder=0)
    band.set_label(f"{percent(confidence)} band of uniform ranks")
    ax.axhline(0, color=ink(), linewidth=0.8, zorder=1)
    ax.set_xlim(0, 1)
    ax.set_xlabel("rank of the truth among the draws, as a share")
    ax.set_ylabel("distribution − uniform")
    title = "colored: outside of the band" if outside else None
    ax.legend(title=title, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
    return ax
