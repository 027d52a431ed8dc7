"""Are the p-values what they claim? Quantile–quantile plot and histogram against the uniform distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from pyrosplice._hypothesis.uniform_bands import order_band
from pyrosplice.errors import check_integer, check_option, check_share
from pyrosplice.plotting._style import (
    GRAY,
    MANY,
    MARKERS,
    OKABE_ITO,
    checked_pvalues,
    counted,
    groups,
    ink,
    new_axes,
    number_column,
    percent,
    verbatim,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection


def qq(
    table: pd.DataFrame,
    *,
    pvalue: str = "pvalue",
    by: str | None = None,
    confidence: float = 0.95,
    band: Literal["pointwise", "simultaneous"] = "pointwise",
    ax: Axes | None = None,
) -> Axes:
    r"""Draw observed against expected :math:`-\log_{10} p`, with the band in which uniform p-values lie.

    The i-th smallest of n uniform p-values is Beta(i, n − i + 1) distributed: the plot shows it at the expected
    :math:`-\log_{10} i/(n+1)`, and the band is the central ``confidence`` interval of that Beta, point by point; or,
    by an exact calculation, the wider one that all n points stay in together with that chance.

    Parameters
    ----------
    table
        One row a test.
    pvalue
        Column of p-values in [0, 1]. Missing ones are left out and counted in the legend.
    by
        Column that splits the tests into curves, at most seven (for example the covariate, or the truth).
    confidence
        Coverage of the band, between 0 and 1.
    band
        ``"pointwise"``, or ``"simultaneous"`` (2 seconds for 1,000 tests, in proportion for more).
    ax
        Axes to draw on; new ones by default.

    Returns
    -------
    Axes
        One line of points a group, one band for every group size.

    Raises
    ------
    InvalidArgumentError
        A column is missing, a p-value is outside [0, 1], or ``confidence`` is not between 0 and 1;
        another ``band``.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import qq
    >>> ax = qq(pd.DataFrame({"pvalue": [0.2, 0.6, None]}))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['2 (1 missing)', '95 % band, pointwise']
    """
    check_option("band", band, ("pointwise", "simultaneous"))
    check_share("confidence", confidence)
    checked_pvalues(table, pvalue)
    split = groups(table, by)
    ax = new_axes(ax, figsize=(4.6, 4.2))
    sizes = set()
    for (name, group), color, marker in zip(split, OKABE_ITO, MARKERS, strict=False):
        values = number_column(group, pvalue)
        seen = np.sort(values[~np.isnan(values)])
        sizes.add(seen.size)
        ax.plot(
            -np.log10(expected_quantiles(seen.size)),
            -np.log10(np.maximum(seen, np.finfo(np.float64).tiny)),
            linestyle="none",
            marker=marker,
            markersize=4,
            markeredgewidth=0,
            rasterized=seen.size > MANY,
            color=color,
            label=counted(name, seen.size, values.size - seen.size),
        )
    for size in sorted(sizes - {0}):
        filled = _uniform_band(ax, size, confidence, simultaneous=band == "simultaneous")
    filled.set_label(f"{percent(confidence)} band, {band}")
    ax.set_xlabel("expected $-\\log_{10}\\,p$")
    ax.set_ylabel("observed $-\\log_{10}\\,p$")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.legend(title=f"tests by {verbatim(by)}" if by else "tests", frameon=False)
    return ax


def expected_quantiles(size: int) -> np.ndarray:
    """Means of the order statistics of ``size`` uniform p-values, ``i / (size + 1)``, smallest first."""
    return np.arange(1, size + 1) / (size + 1)


def _uniform_band(ax: Axes, size: int, confidence: float, *, simultaneous: bool) -> PolyCollection:
    lower, upper = order_band(size, confidence, simultaneous=simultaneous)
    expected = -np.log10(expected_quantiles(size))
    ax.plot([0, expected[0]], [0, expected[0]], color=ink(), linewidth=1, zorder=1)
    look: dict[str, Any] = {"color": GRAY, "alpha": 0.3, "linewidth": 0, "zorder": 0}
    return ax.fill_between(expected, -np.log10(upper), -np.log10(lower), **look)


def pvalue_histogram(table: pd.DataFrame, *, pvalue: str = "pvalue", n_bins: int = 20, ax: Axes | None = None) -> Axes:
    """Draw p-values on [0, 1] with the line of equal counts: flat when nothing is there, a peak at 0 when.

    A peak at 1 or a slope upwards says that the test is conservative, a hump in the middle that its null
    distribution is wrong.

    Parameters
    ----------
    table
        One row a test.
    pvalue
        Column of p-values in [0, 1]. Missing ones are left out and counted in the legend.
    n_bins
        Number of bins of equal width.
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    InvalidArgumentError
        The column is missing, a p-value is outside [0, 1], or ``n_bins`` is below one.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import pvalue_histogram
    >>> ax = pvalue_histogram(pd.DataFrame({"pvalue": [0.01, 0.6]}), n_bins=2)
    >>> [int(bar.get_height()) for bar in ax.patches]
    [1, 1]
    """
    check_integer("n_bins", n_bins)
    values = checked_pvalues(table, pvalue)
    seen = values[~np.isnan(values)]
    ax = new_axes(ax, figsize=(4.6, 3.4))
    ax.hist(
        seen,
        bins=n_bins,
        range=(0, 1),
        color=OKABE_ITO[0],
        edgecolor=ax.get_facecolor(),
        linewidth=0.8,
        label=counted("tests", seen.size, values.size - seen.size),
    )
    ax.axhline(seen.size / n_bins, color=ink(), linewidth=1, linestyle="--", label="expected when nothing is there")
    ax.set_xlim(0, 1)
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the legend
    ax.set_xlabel("p-value")
    ax.set_ylabel("tests")
    ax.legend(frameon=False)
    return ax
