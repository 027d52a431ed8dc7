"""What the figures share: the optional import, colours for all readers, names as they are, table checks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

#: Okabe and Ito's palette (jfly.uni-koeln.de/color), the order in which groups get their colours.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: What is not significant, expected, or of single genes: seen on white and on black.
GRAY = "#9A9A9A"
#: Sequential and perceptually uniform, readable without red–green vision and in grey.
SEQUENTIAL = "viridis"
#: Standard deviations, told apart at a glance from what they belong to.
UNCERTAINTY = "cividis"
#: Two-sided, blue to red through white.
DIVERGING = "RdBu_r"
MANY = 3000  # points from which on they are drawn smaller, and as pixels in vector files
CHARACTER = 0.62  # width of a usual character of the default font, as a share of its size


def new_axes(ax: Axes | None, *, figsize: tuple[float, float]) -> Axes:
    """Return ``ax``, or the axes of a new figure of ``figsize`` inches with the upper and right frame taken away."""
    if ax is not None:
        return ax
    _, ax = pyplot().subplots(figsize=figsize, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def pyplot():  # type: ignore[no-untyped-def]
    """Import ``matplotlib.pyplot``, or say how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("pyrosplice.plotting needs matplotlib: pip install 'pyrosplice[plot]'.") from error
    return plt


def ink() -> str:
    """Colour of lines and text that belong to no group: that of the text in the style in use, so never the paper's."""
    return str(pyplot().rcParams["text.color"])


def on_paper(colors: str) -> Colormap:
    """Colours from dark to bright by name, without the darkest fifth where the paper is dark, so that it is seen."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    full = pyplot().get_cmap(colors)
    if sum(to_rgb(ink())) < 1.5:
        return full
    return LinearSegmentedColormap.from_list(f"{colors} on dark", full(np.linspace(0.2, 1, 256)), N=256)


def name_inches(names: Iterable[object], points: float) -> float:
    """Width in inches that the longest line of ``names`` needs at a font size of ``points``."""
    lines = [line for name in names for line in str(name).split("\n")]
    return max(map(len, lines), default=0) * CHARACTER * points / 72


def wrapped(name: object, inches: float, points: float) -> str:
    """Break a name into lines of at most ``inches``, within words where these are longer; nothing is left out."""
    width = max(int(inches * 72 / points / CHARACTER), 8)
    lines = [textwrap.wrap(line, width) or [""] for line in verbatim(name).split("\n")]
    return "\n".join(part for line in lines for part in line)


def verbatim(name: object) -> str:
    """Text that is drawn as it is: a dollar begins no formula."""
    return str(name).replace("$", r"\$")


def percent(share: float) -> str:
    """Name a share as it is said: ``90 %``, ``99.5 %``."""
    return f"{100 * share:.6g} %"


def require_columns(table: pd.DataFrame, *columns: str) -> None:
    """Raise :class:`InvalidArgumentError` unless ``table`` is one, and has rows and every one of ``columns``, once."""
    if not isinstance(table, pd.DataFrame):
        raise InvalidArgumentError(f"table: expected a DataFrame, found {type(table).__name__}.")
    twice = [column for column in columns if list(table.columns).count(column) > 1]
    if twice:
        raise InvalidArgumentError(f"table: expected the columns {twice} once, found several of that name.")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InvalidArgumentError(f"table: expected the columns {missing}, found {list(table.columns)}.")
    if len(table) == 0:
        raise InvalidArgumentError("table: expected at least one row, found none.")


def number_column(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64, NaN where it is missing; what is no number raises."""
    require_columns(table, column)
    try:
        return table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"table[{column!r}]: expected numbers, found others ({error}).") from error


def checked_pvalues(table: pd.DataFrame, column: str) -> np.ndarray:
    """P-values as float64; a missing one (NaN) stays missing, one outside [0, 1] raises."""
    values = number_column(table, column)
    outside = (values < 0) | (values > 1)
    if outside.any():
        raise InvalidArgumentError(
            f"table[{column!r}]: expected p-values in [0, 1], found {values[outside][0]!r} in row {outside.argmax()}."
        )
    if np.isnan(values).all():
        raise InvalidArgumentError(f"table[{column!r}]: expected p-values, found only missing ones.")
    return values


def groups(table: pd.DataFrame, by: str | None) -> list[tuple[str | None, pd.DataFrame]]:
    """Split ``table`` by the values of column ``by`` in order of appearance; one unnamed group without it."""
    if by is None:
        return [(None, table)]
    require_columns(table, by)
    split: list[tuple[str | None, pd.DataFrame]] = [
        (legend_name(name), group) for name, group in table.groupby(by, sort=False, observed=True)
    ]
    if len(split) > len(OKABE_ITO):
        raise InvalidArgumentError(
            f"by: expected a column with at most {len(OKABE_ITO)} values (one colour each), "
            f"found {len(split)} in {by!r}."
        )
    return split


def legend_name(name: object) -> str:
    """Name of a group for the legend, which else leaves out what begins with an underscore."""
    text = verbatim(name)
    return f"\u200b{text}" if text.startswith("_") else text


def counted(name: str | None, shown: int, missing: int) -> str:
    """Legend entry: the name, how many points are shown, how many had no value."""
    text = f"{shown:,}" if name is None else f"{name}: {shown:,}"
    return text + (f" ({missing:,} missing)" if missing else "")
