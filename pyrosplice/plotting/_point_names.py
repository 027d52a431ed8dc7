"""Names beside points, where they cover neither each other nor, if they can, a point."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrosplice.plotting._style import GRAY, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation, Text
    from matplotlib.transforms import Bbox

LABEL_POINTS = 9.0  # font size of the names
LABEL_INCHES = 1.8  # longer names are broken into lines
LEVELS = 8  # how many lines of names up and down are tried to find a free place
ITERATIONS = 200  # of adjustText, a tenth of a second for eight names
NEAREST = 300  # points that adjustText keeps free, those nearest to the names


def name_points(ax: Axes, points: np.ndarray, at: np.ndarray, names: Sequence[object]) -> None:
    """Write ``names`` (n) beside their points ``at`` (n, 2), clear of all ``points`` (m, 2) where there is room.

    By adjustText where it is installed and leaves no name on another or outside; else by a search of places on either
    side of the point, in lines up and down.
    """
    if len(names) == 0:
        return
    ax.figure.canvas.figure.draw_without_rendering()  # settles the layout that the distances are measured in
    lines = [wrapped(name, LABEL_INCHES, LABEL_POINTS) for name in names]
    if not _adjusted(ax, points, at, lines):
        _searched(ax, points, at, lines)


def _adjusted(ax: Axes, points: np.ndarray, at: np.ndarray, names: Sequence[str]) -> bool:
    """Name the points by adjustText; False, with nothing drawn, where it is missing or finds no good places."""
    try:
        from adjustText import adjust_text
    except ImportError:
        return False
    pixels, ours = ax.transData.transform(points), ax.transData.transform(at)
    distance = np.min([np.abs(pixels - place).max(1) for place in ours], axis=0)
    near = points[np.argsort(distance, kind="stable")[:NEAREST]]
    look: dict[str, Any] = {"fontsize": LABEL_POINTS, "path_effects": _halo(ax)}
    texts = [ax.text(x, y, name, **look) for (x, y), name in zip(at, names, strict=True)]
    line: dict[str, Any] = {"arrowstyle": "-", "color": GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
    _, lines = adjust_text(texts, x=near[:, 0], y=near[:, 1], ax=ax, iter_lim=ITERATIONS, arrowprops=line)
    boxes = [text.get_window_extent() for text in texts]
    if all(_inside(ax, box) for box in boxes) and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)):
        return True
    for artist in [*texts, *lines]:
        artist.remove()
    return False


def _halo(ax: Axes) -> list[Any]:
    """A rim in the colour of the paper, so that names can be read over points."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground=ax.get_facecolor())]


def _searched(ax: Axes, points: np.ndarray, at: np.ndarray, names: Sequence[str]) -> None:
    """Name the points from the top down, each away from the middle, in the first free place."""
    middle = ax.transAxes.transform((0.5, 0.5))[0]
    pixels = ax.transData.transform(points)
    taken: list[Bbox] = []
    for which in np.argsort(-at[:, 1], kind="stable"):
        outwards = 1 if ax.transData.transform(at[which])[0] >= middle else -1
        note = ax.annotate(
            names[which],
            at[which],
            xytext=(outwards * 9, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_POINTS,
            path_effects=_halo(ax),
            arrowprops={"arrowstyle": "-", "color": GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )
        taken.append(_free_place(ax, note, outwards, taken, pixels))


def _free_place(ax: Axes, note: Annotation, outwards: int, taken: list[Bbox], points: np.ndarray) -> Bbox:
    """Move the annotation to the best place in the axes; its box there.

    Best is free of names and points, then free of names, then inside: near first, outwards before inwards.
    """
    line = LABEL_POINTS * 1.3
    levels = sorted(range(-LEVELS, LEVELS + 1), key=lambda level: (abs(level), level))
    places = [(side * 9, level * line) for side in (outwards, -outwards) for level in levels]
    without_names = inside = None
    for place in places:
        box = _moved(note, place)
        if not _inside(ax, box):
            continue
        inside = inside or place
        if any(box.overlaps(other) for other in taken):
            continue
        if not ((points > box.min) & (points < box.max)).all(1).any():
            return box
        without_names = without_names or place
    return _moved(note, without_names or inside or places[0])


def _inside(ax: Axes, box: Bbox) -> bool:
    frame = ax.bbox
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)


def _moved(note: Annotation, place: tuple[float, float]) -> Bbox:
    note.set_position(place)
    note.set_horizontalalignment("left" if place[0] > 0 else "right")
    note.get_window_extent()  # moves the text; with its line to the point, which may cross others
    return text_box(note)


def text_box(text: Text) -> Bbox:
    """Box of a text alone, without the line of an annotation to its point."""
    from matplotlib.text import Text

    return Text.get_window_extent(text)
