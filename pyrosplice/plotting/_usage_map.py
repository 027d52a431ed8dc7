"""Maps of isoform usage: raw ratios above fitted ones, and how sure these are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from pyrosplice.errors import InvalidArgumentError, check_integer, check_number, check_option, check_switches
from pyrosplice.plotting._style import GRAY, MANY, SEQUENTIAL, UNCERTAINTY, on_paper, pyplot, require_columns, wrapped
from pyrosplice.plotting._tissue import TissueImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure, SubFigure

PANEL = 2.3  # inches, width and height of one map
TITLE_POINTS, PANEL_POINTS = 12.0, 9.0  # font sizes of the figure's title and of the isoforms' names
Limits = tuple[float, float]


def usage_map(  # noqa: PLR0913 (what a figure shows, all by keyword)
    table: pd.DataFrame,
    *,
    x: str = "x",
    y: str = "y",
    isoform: str = "isoform",
    raw: str = "raw",
    fitted: str = "fitted",
    sd: str = "sd",
    library: str = "library",
    limits: tuple[float, float] | None = None,
    scale: Literal["isoform", "gene"] = "isoform",
    n_columns: int = 6,
    y_down: bool = True,
    tissue: TissueImage | Mapping[object, TissueImage] | None = None,
    spot_diameter: float | None = None,
    crop: tuple[float, float, float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> np.ndarray:
    """Draw maps of one gene: a column an isoform; raw usage ratios, fitted ones in the same colours, and how sure.

    Parameters
    ----------
    table
        One row an isoform and spot (:func:`usage_table` or :func:`posterior_usage_table` makes it).
    x, y, isoform, raw, fitted
        Columns of the table. Spots without a raw ratio (gene not seen) are small and grey in the upper row.
    sd
        Column of posterior standard deviations of the usage, drawn in a third row if the table has it; from zero, on
        one scale for all isoforms.
    library
        Column with the library of each spot, if the table has it; libraries follow each other downwards.
    limits
        Colour scale of all raw and fitted maps, whatever ``scale`` is. Values beyond it get the end colours, which the
        arrows of the colour bar say.
    scale
        By ``"isoform"``, each has its own scale, the range of its fitted ratios (raw ones beyond it are common at low
        counts); with ``"gene"``, all isoforms share one, the range of all fitted ratios, so that they can be compared.
    n_columns
        Isoforms next to each other; further ones follow below.
    y_down
        Draw y downwards, as in images, by squidpy and by scanpy; False for upwards.
    tissue
        Picture below the spots (:func:`tissue_image`), of libraries a mapping from their names.
    spot_diameter
        In units of the coordinates; by default that of the picture, or else the median distance to the nearest spot.
    crop
        ``(left, right, top, bottom)`` in units of the coordinates, top the smaller y; by default what has spots.
    title
        Title of the figure, for example the gene.
    ax
        Axes of a grid (``plt.subplots``), whose place the maps take; a new figure by default.

    Returns
    -------
    ndarray of Axes
        Shape (rows, columns): for the first ``n_columns`` isoforms of the first library raw in the first row, fitted in
        the second, with ``sd`` the third; then further isoforms, then further libraries. Unused ones are not visible.

    Raises
    ------
    InvalidArgumentError
        A column is missing, an isoform has a spot without coordinates, an option is out of range, or ``tissue`` lacks
        a library.

    Notes
    -----
    Spots are drawn to scale: they stay as large as they are whatever the size of the figure, and grow when one zooms.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.plotting import usage_map
    >>> spots = pd.DataFrame({"x": [0, 1, 0, 1], "y": 0, "isoform": list("aabb"), "raw": [1.0, 0.0, 0.0, 1.0]})
    >>> usage_map(spots.assign(fitted=[0.7, 0.4, 0.3, 0.6]), scale="gene", title="a gene").shape
    (2, 2)
    """
    require_columns(table, x, y, isoform, raw, fitted)
    check_option("scale", scale, ("isoform", "gene"))
    check_switches(y_down=y_down)
    values = [raw, fitted, *([sd] if sd in table else [])]
    look = _Look(
        y_down=y_down,
        crop=_checked_crop(crop),
        spot_diameter=_checked_diameter(spot_diameter),
        tissue=_pictures(table, library, tissue),
    )
    panels = _panels(table, isoform, library, check_integer("n_columns", n_columns))
    shape = (len(values) * (panels[-1].block + 1), max(panel.column for panel in panels) + 1)
    one = scale == "gene" or limits is not None
    scales = _scales(table, (isoform, fitted, sd), limits, one=scale == "gene")
    canvas = _canvas(ax, shape, bars_beside=one or sd in table, title=title)
    axes = canvas.subplots(*shape, squeeze=False)
    for unused in axes.ravel():
        unused.set_visible(False)  # until it has a map
    for panel in panels:
        column = axes[panel.block * len(values) : (panel.block + 1) * len(values), panel.column]
        _draw_panel(column, panel, panel.spots[[x, y, *values]], scales, look)
        if not one:
            _bar(canvas, column[:2], panel.spots[[raw, fitted]], beside=False)
    if one:
        used = [row for row in range(shape[0]) if row % len(values) < 2]
        _bar(canvas, _visible(axes[used]), table[[raw, fitted]], beside=True)
    if sd in table:
        _bar(canvas, _visible(axes[2::3]), table[[sd]], beside=True, name="posterior sd of usage")
    return axes


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How every map of a figure is drawn: which way up, how much of it, how large its spots, what is below them."""

    y_down: bool
    crop: tuple[float, float, float, float] | None
    spot_diameter: float | None
    tissue: Mapping[object, TissueImage]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """The spots of one isoform in one library, and the place of their maps."""

    block: int
    column: int
    isoform: object
    library: object
    spots: pd.DataFrame
    title: str


def _panels(table: pd.DataFrame, isoform: str, library: str, n_columns: int) -> list[_Panel]:
    """Isoforms in rows of ``n_columns``, libraries below each other."""
    names = list(dict.fromkeys(table[isoform]))
    libraries = list(dict.fromkeys(table[library])) if library in table else [None]
    depth, panels = -(-len(names) // n_columns), []
    for above, part in enumerate(libraries):
        of_library = table if library not in table else table[table[library] == part]
        for number, name in enumerate(names):
            spots = of_library[of_library[isoform] == name]
            if len(spots) == 0:
                raise InvalidArgumentError(
                    f"table: expected isoform {name!r} in every library, found none in {part!r}."
                )
            title = str(name) if len(libraries) == 1 else f"{part}: {name}"
            place = {"block": above * depth + number // n_columns, "column": number % n_columns}
            panels.append(_Panel(**place, isoform=name, library=part, spots=spots, title=title))
    return panels


def _canvas(ax: Axes | None, shape: tuple[int, int], *, bars_beside: bool, title: str | None) -> Figure | SubFigure:
    """A new figure, or the place of ``ax`` in its own."""
    width, height = PANEL * shape[1] + 0.4 + bars_beside, (PANEL + 0.35) * shape[0] + 0.3
    if ax is None:
        canvas = pyplot().figure(figsize=(width, height), layout="constrained")
    else:
        place = ax.get_subplotspec()
        if place is None:
            raise InvalidArgumentError(
                "ax: expected axes of a grid, as plt.subplots makes them, found axes by position."
            )
        canvas, width = ax.figure.add_subfigure(place), ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi
        ax.remove()
    if title is not None:
        canvas.suptitle(wrapped(title, width, TITLE_POINTS), fontsize=TITLE_POINTS)
    return canvas


def _draw_panel(
    axes: np.ndarray, panel: _Panel, spots: pd.DataFrame, scales: Mapping[object, Limits], look: _Look
) -> None:
    """Draw the maps of one isoform from the columns x, y, raw, fitted, and sd where there is one."""
    place = spots.iloc[:, :2].to_numpy(dtype=np.float64)
    if not np.isfinite(place).all():
        raise InvalidArgumentError(f"table: expected coordinates of every spot, found missing ones ({panel.title}).")
    picture = look.tissue.get(panel.library)
    diameter = look.spot_diameter or (picture.spot_diameter if picture is not None else None) or _spacing(place)
    for number, ax in enumerate(axes):
        ax.set_visible(True)
        _frame(ax, place, diameter, look, picture)
        limits = scales[panel.isoform] if number < 2 else scales[None]
        _draw_spots(ax, place, spots.iloc[:, number + 2], limits, diameter, UNCERTAINTY if number == 2 else SEQUENTIAL)
    axes[0].set_title(wrapped(panel.title, PANEL, PANEL_POINTS), fontsize=PANEL_POINTS)
    if panel.column == 0:
        rows = ("raw" if spots.iloc[:, 2].notna().all() else "raw\n(small: no counts)", "fitted", "posterior sd")
        for ax, name in zip(axes, rows, strict=False):
            ax.set_ylabel(name, fontsize=PANEL_POINTS)


def _frame(ax: Axes, place: np.ndarray, diameter: float, look: _Look, picture: TissueImage | None) -> None:
    """Set up axes in which a unit is as long in both directions, with the picture below."""
    if picture is not None:
        white = 255 if np.issubdtype(picture.pixels.dtype, np.integer) else 1  # not its own range: gray stays gray
        ax.imshow(picture.pixels, cmap="gray", vmin=0, vmax=white, extent=picture.extent, alpha=picture.alpha, zorder=0)
    low, high = place.min(0) - diameter, place.max(0) + diameter
    left, right, top, bottom = look.crop or (low[0], high[0], low[1], high[1])
    ax.set_xlim(left, right)
    ax.set_ylim(*((bottom, top) if look.y_down else (top, bottom)))
    ax.set_aspect("equal", adjustable="box")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _draw_spots(
    ax: Axes, place: np.ndarray, values: pd.Series, limits: Limits, diameter: float, colors: str
) -> EllipseCollection:
    """Spots that have a value in its colour, the others small and grey."""
    seen = values.notna().to_numpy()
    options: dict[str, Any] = {"linewidth": 0, "rasterized": len(place) > MANY}
    ax.add_collection(_circles(ax, place[~seen], diameter / 3, facecolor=GRAY, alpha=0.5, **options), autolim=False)
    image = _circles(
        ax, place[seen], diameter, array=values[seen].to_numpy(dtype=np.float64), cmap=on_paper(colors), **options
    )
    image.set_clim(*limits)
    ax.add_collection(image, autolim=False)
    return image


def _circles(ax: Axes, place: np.ndarray, diameter: float, **options: Any) -> EllipseCollection:
    from matplotlib.collections import EllipseCollection

    size = np.full(max(len(place), 1), diameter)
    return EllipseCollection(size, size, 0 * size, units="xy", offsets=place, offset_transform=ax.transData, **options)


def _bar(
    canvas: Figure | SubFigure, axes: np.ndarray, values: pd.DataFrame, *, beside: bool, name: str = "usage"
) -> None:
    """Draw the colour bar of some maps, with arrows where values lie beyond it."""
    image = axes[-1].collections[1]
    low, high = image.get_clim()
    below, above = bool((values < low).any(axis=None)), bool((values > high).any(axis=None))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
    look: dict[str, Any] = (
        {"location": "right", "shrink": 0.7, "aspect": 25} if beside else {"location": "bottom", "shrink": 0.85}
    )
    canvas.colorbar(image, ax=list(axes), extend=extend, label=name, **look)


def _visible(axes: np.ndarray) -> np.ndarray:
    return np.array([ax for ax in axes.ravel() if ax.get_visible()], dtype=object)


def _scales(
    table: pd.DataFrame, columns: tuple[str, str, str], limits: Limits | None, *, one: bool
) -> dict[object, Limits]:
    """Colour scale of every isoform, and, under None, that of the standard deviations."""
    isoform, fitted, sd = columns
    if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
        raise InvalidArgumentError(f"limits: expected (low, high) with low < high, found {limits!r}.")
    values = table[fitted].to_numpy(dtype=np.float64)
    shared = limits or (_range(values) if one else None)
    scales: dict[object, Limits] = {
        name: shared or _range(values[(table[isoform] == name).to_numpy()]) for name in dict.fromkeys(table[isoform])
    }
    widest = float(np.nanmax(table[sd].to_numpy(dtype=np.float64), initial=0.0)) if sd in table else 0.0
    return scales | {None: (0.0, widest or 1.0)}


def _range(values: np.ndarray) -> Limits:
    seen = values[np.isfinite(values)]
    if not seen.size:
        return 0.0, 1.0
    middle, half = (seen.min() + seen.max()) / 2, max(np.ptp(seen) / 2, 0.025)  # a flat map is shown flat
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)


def _spacing(place: np.ndarray) -> float:
    """Usual distance between neighbouring spots; of spots that are all in one place, one unit."""
    distinct = np.unique(place, axis=0)
    if len(distinct) < 2:
        return 1.0
    return float(np.median(cKDTree(distinct).query(distinct, k=2)[0][:, 1]))


def _checked_crop(crop: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
    if crop is not None and not (len(crop) == 4 and crop[0] < crop[1] and crop[2] < crop[3]):
        raise InvalidArgumentError(
            f"crop: expected (left, right, top, bottom) with left < right and top < bottom, found {crop!r}."
        )
    return crop


def _checked_diameter(spot_diameter: float | None) -> float | None:
    if spot_diameter is not None and not check_number("spot_diameter", spot_diameter):
        raise InvalidArgumentError("spot_diameter: expected a positive number, found 0.")
    return spot_diameter


def _pictures(
    table: pd.DataFrame, library: str, tissue: TissueImage | Mapping[object, TissueImage] | None
) -> Mapping[object, TissueImage]:
    """Pictures by library, under None where the table has no libraries."""
    libraries = list(dict.fromkeys(table[library])) if library in table else [None]
    if tissue is None:
        return {}
    if isinstance(tissue, TissueImage):
        if len(libraries) > 1:
            raise InvalidArgumentError(f"tissue: expected a mapping with a picture for each of {libraries}, found one.")
        return {libraries[0]: tissue}
    missing = [part for part in libraries if part not in tissue]
    if missing:
        raise InvalidArgumentError(f"tissue: expected a picture for each of {libraries}, found none for {missing}.")
    return tissue
