"""What the README shows runs as it stands."""

import re
from pathlib import Path

import matplotlib
import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
CELLS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_is_a_first_cell():
    assert any("SplisosmGLMM" in cell for cell in CELLS)


@pytest.mark.parametrize("cell", CELLS)
def test_cell_runs(cell):
    matplotlib.use("Agg")
    exec(compile(cell, "README.md", "exec"), {})
