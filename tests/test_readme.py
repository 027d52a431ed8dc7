"""What the README and the page for contributors show runs as it stands."""

import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[1]
CELLS = [
    pytest.param(name, cell, id=f"{name} {i}")
    for name in ("README.md", "CONTRIBUTING.md")
    for i, cell in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL))
]


def test_there_is_a_first_cell():
    assert any("SplisosmGLMM" in cell for _, cell in (own.values for own in CELLS))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_cell_runs(name, cell):
    matplotlib.use("Agg")
    exec(compile(cell, name, "exec"), {})


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/glossary.md"])
def test_every_file_that_a_page_names_is_there(name):
    paths = re.findall(r"`((?:pyrosplice|tests|tools)/[\w/.]*)`", (ROOT / name).read_text(encoding="utf-8"))
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []


def test_contributors_are_told_of_every_room():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "pyrosplice").iterdir() if (path / "__init__.py").exists()}
    assert rooms <= {name.rstrip("/") for name in re.findall(r"`(\w+/)`", page)}
