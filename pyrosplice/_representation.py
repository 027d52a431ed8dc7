"""What an estimator says about itself, as text and as HTML: a title and rows, which each family makes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

FDR = 0.05


class Described:
    """Shows itself as text and as HTML; override ``_rows``, and ``_title`` where the class's name says too little."""

    def _title(self) -> str:
        return type(self).__name__

    def _rows(self) -> dict[str, str]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(self._title(), self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._title(), self._rows())


def as_text(title: str, rows: Mapping[str, str]) -> str:
    """Title and one line a row."""
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def as_html(title: str, rows: Mapping[str, str]) -> str:
    """Lay out a description as a small table, in the colours of the page that it is on."""
    cell = "text-align:left;vertical-align:top;padding:1px 12px 1px 0"
    body = "".join(
        f"<tr><th style='{cell};white-space:nowrap'>{escape(name)}</th><td style='{cell}'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<div><b>{escape(title)}</b><table>{body}</table></div>"
