"""Where shared data and gold results lie, if they do, and the pages for people."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("PYROSPLICE_SHARED", ROOT.parent / "shared"))


def pages_of_text() -> tuple[str, ...]:
    """Names of all Markdown pages that people wrote, from the top of the checkout."""
    inside = (path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*.md")))
    written = (path.as_posix() for path in inside if "_build" not in path.parts)
    return ("README.md", "CONTRIBUTING.md", *written)


def shared(*parts: str) -> Path:
    """Path of a shared file; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs shared data: {'/'.join(parts)}")
    return path
