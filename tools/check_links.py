"""Whether every link of a built site leads somewhere, without a network.

    python tools/check_links.py docs/_build/html

Follows each ``href`` and ``src`` of each page: a file that is not there, an anchor that its page lacks, an address
outside that is not one (``https:`` or ``mailto:``), and whatever a page would fetch from another place to be shown are
printed, and the exit status is then 1. Addresses outside are not asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# what a browser fetches by itself, by tag and attribute; a link of these kinds is only a link
FETCHED = {("img", "src"), ("script", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"), ("audio", "src")}
LINKS_TO_FETCH = {"stylesheet", "preload", "icon", "modulepreload"}
ADDRESSES = {"href", "src"}


class Page(HTMLParser):
    """Anchors of a page, and what it links to and fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the identifiers and addresses of an element."""
        given = dict(attrs)
        self.anchors |= {
            value for name in ("id", "name") if (value := given.get(name)) and (name == "id" or tag == "a")
        }
        fetched = tag == "link" and bool(LINKS_TO_FETCH & set((given.get("rel") or "").split()))
        for name in ADDRESSES & given.keys():
            self.links.append((given[name] or "", fetched or (tag, name) in FETCHED))


def faults(folder: Path) -> Iterator[str]:
    """What is wrong with the links of all pages below a folder, a line each; ``_static`` has templates, no pages."""
    paths = (path for path in sorted(folder.resolve().rglob("*.html")) if "_static" not in path.parts)
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    if not pages:
        yield f"{folder}: no page"
    for path, page in pages.items():
        for address, fetched in dict.fromkeys(page.links):
            wrong = fault(path, address, fetched, pages)
            if wrong:
                yield f"{path.relative_to(folder.resolve())}: {address}: {wrong}"


def fault(page: Path, address: str, fetched: bool, pages: dict[Path, Page]) -> str | None:
    """What is wrong with one address on a page, if anything."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        return str(error)
    if parts.scheme == "data" or (parts.scheme == "mailto" and "@" in parts.path):
        return None
    if parts.scheme or parts.netloc:
        return fault_outside(address, fetched)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "no such anchor"
    return None


def fault_outside(address: str, fetched: bool) -> str | None:
    """What is wrong with an address of another place."""
    parts = urlsplit(address)
    if fetched:
        return "fetched from another place"
    if parts.scheme not in ("https", "http") or "." not in parts.netloc or any(letter.isspace() for letter in address):
        return "not an address"
    return None


def main(arguments: list[str]) -> int:
    """Print what is wrong, and how many pages were looked at; 1 where anything is."""
    folder = Path(arguments[0])
    found = list(faults(folder))
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(list(folder.rglob('*.html')))} pages, {len(found)} faults")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
