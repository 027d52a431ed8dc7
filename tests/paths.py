"""Where shared data and gold results lie, if they do."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("PYROSPLICE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(*parts: str) -> Path:
    """Path of a shared file; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs shared data: {'/'.join(parts)}")
    return path
