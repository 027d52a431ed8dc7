"""One page that explains pictures and tables: one HTML file, without a network, light or dark as its reader is."""

from __future__ import annotations

import base64
import io
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError, check_integer

DOTS_PER_INCH = 144  # of pictures, which are shown at two thirds of it: sharp on dense screens
SHOWN_PER_INCH = 96  # pixels of a page are defined so
LIGHT_PAPER, DARK_PAPER = "#ffffff", "#14171a"
STYLE = f"""
:root {{ color-scheme: light dark; --paper: {LIGHT_PAPER}; --ink: #1b1f23; --soft: #59636e; --line: #d5dae0; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: {DARK_PAPER}; --ink: #e6e9ec; --soft: #a3adb8; --line: #3a424a; }}
}}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }}
main {{ max-width: 60rem; margin: 0 auto; padding: 1.5rem; }}
h1, h2 {{ line-height: 1.25; }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }}
p, li, figcaption {{ max-width: 46rem; }}
a {{ color: inherit; }}
figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; height: auto; }}
.table {{ overflow-x: auto; margin: 0.6rem 0; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 0.2rem 0.9rem 0.2rem 0; border-bottom: 1px solid var(--line); }}
.number {{ text-align: right; }}
footer {{ margin-top: 3rem; color: var(--soft); font-size: 0.9rem; }}
"""


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A picture, what it shows for those who cannot see it (``alt``), and what to conclude from it (``text``).

    ``light`` and ``dark`` are PNG files of the same picture (:func:`themed_png` draws both); without ``dark`` the light
    one is shown on dark pages too.
    """

    light: bytes
    dark: bytes | None = None
    alt: str
    text: str

    def to_html(self) -> str:
        """Write the picture, embedded, with its caption."""
        width, height = (round(size * SHOWN_PER_INCH / DOTS_PER_INCH) for size in png_size(self.light))
        image = f'<img src="{_embedded(self.light)}" alt="{escape(self.alt)}" width="{width}" height="{height}">'
        if self.dark is not None:
            source = f'<source media="(prefers-color-scheme: dark)" srcset="{_embedded(self.dark)}">'
            image = f"<picture>{source}{image}</picture>"
        return f"<figure>{image}<figcaption>{escape(self.text)}</figcaption></figure>"


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """The first ``n_rows`` rows of a table, what they say, and the file with all of them, if there is one."""

    frame: pd.DataFrame
    text: str
    n_rows: int = 10
    file: str | None = None

    def to_html(self) -> str:
        """Write the rows with what they say above them; numbers with three significant digits."""
        shown = self.frame.head(check_integer("n_rows", self.n_rows))
        numeric = [
            pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in shown.dtypes
        ]
        heads = "".join(
            f'<th scope="col"{_aligned(right)}>{escape(str(name))}</th>'
            for name, right in zip(shown.columns, numeric, strict=True)
        )
        rows = "".join(
            f"<tr>{''.join(f'<td{_aligned(n)}>{cell_text(v)}</td>' for v, n in zip(row, numeric, strict=True))}</tr>\n"
            for row in shown.itertuples(index=False, name=None)
        )
        left = f" Shown: {len(shown):,} of {len(self.frame):,} rows." if len(shown) < len(self.frame) else ""
        link = f' All columns and rows: <a href="{quote(self.file)}">{escape(self.file)}</a>.' if self.file else ""
        caption = f"<figcaption>{escape(self.text)}{left}{link}</figcaption>"
        body = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table>"
        return f'<figure>{caption}<div class="table">{body}</div></figure>'


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """A title, a paragraph, and pictures and tables in their order."""

    title: str
    text: str
    parts: Sequence[ReportFigure | ReportTable] = ()


def report_page(
    title: str, lead: str, sections: Sequence[ReportSection], *, files: Mapping[str, str] | None = None, foot: str = ""
) -> str:
    """Write a page as HTML: title, what was found (``lead``), sections, a list of ``files`` with what they hold.

    Examples
    --------
    >>> from pyrosplice._report import ReportSection, report_page
    >>> page = report_page("Usage & space", "Nothing was found.", [ReportSection(title="Space", text="None.")])
    >>> "<h1>Usage &amp; space</h1>" in page
    True
    """
    if not sections:
        raise InvalidArgumentError("sections: expected one at least, found none.")
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(lead)}</p>"]
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>' for number, section in enumerate(sections)
    )
    body.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
    for number, section in enumerate(sections):
        parts = "\n".join(part.to_html() for part in section.parts)
        head = f"<h2>{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>"
        body.append(f'<section id="section-{number}">\n{head}\n{parts}\n</section>')
    if files:
        rows = "".join(
            f'<li><a href="{quote(name)}">{escape(name)}</a>: {escape(what)}</li>' for name, what in files.items()
        )
        body.append(f'<section id="files">\n<h2>Files beside this page</h2>\n<ul>{rows}</ul>\n</section>')
    body.append(f"<footer><p>{escape(foot)}</p></footer>" if foot else "")
    head = (
        f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    inner = "\n".join(filter(None, body))
    start = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
    return f"{start}<body>\n<main>\n{inner}\n</main>\n</body>\n</html>\n"


def pictured(
    pictures: Mapping[str, tuple[bytes, bytes | None]], name: str, alt: str, text: str
) -> list[ReportFigure | ReportTable]:
    """List the picture of that name, light and dark, if there is one."""
    if name not in pictures:
        return []
    light, dark = pictures[name]
    return [ReportFigure(light=light, dark=dark, alt=alt, text=text)]


def themed_png(draw: Callable[[], Any]) -> tuple[bytes, bytes]:
    """Draw a figure for light and for dark pages, as PNG; ``draw`` returns matplotlib axes, in the style in use."""
    import matplotlib.pyplot as plt

    pictures = []
    for style, paper in (("default", LIGHT_PAPER), ("dark_background", DARK_PAPER)):
        with plt.style.context(
            [style, {"figure.facecolor": paper, "axes.facecolor": paper, "savefig.facecolor": paper}]
        ):
            axes = draw()
            figure = np.ravel(axes)[0].figure.canvas.figure
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
            plt.close(figure)
        pictures.append(stream.getvalue())
    return pictures[0], pictures[1]


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels that a PNG file says that it has."""
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise InvalidArgumentError(f"light: expected the bytes of a PNG file, found {png[:8]!r}.")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def cell_text(value: object) -> str:
    """Write a value of a table: three significant digits, whole numbers whole, a dash where it is missing."""
    if (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float | np.floating) and np.isnan(value))
    ):
        return '<span title="missing">–</span>'
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    return escape(f"{value:.3g}" if isinstance(value, numbers.Real) else str(value))


def write_page(path: Path, page: str) -> Path:
    """Write the page, in UTF-8 whatever the machine's own encoding is."""
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _aligned(right: bool) -> str:
    return ' class="number"' if right else ""


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
