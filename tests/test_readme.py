"""What the README, the page for contributors and the site show runs as it stands, and what they name is there."""

import re
from pathlib import Path

import matplotlib
import pytest

from tests.paths import pages_of_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = pages_of_text()
# cells that a page shows with their outputs ({code-cell}) are run when the site is built
CELLS = [
    pytest.param(name, cell, id=f"{name} {i}")
    for name in PAGES
    for i, cell in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL))
]


def test_there_is_a_first_cell():
    assert any(name == "README.md" and "SplisosmGLMM" in cell for name, cell in (own.values for own in CELLS))


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_cell_runs(name, cell):
    matplotlib.use("Agg")
    exec(compile(cell, name, "exec"), {})


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_names_is_there(name):
    named = r"`((?:pyrosplice|tests|tools|docs|tutorials)/[\w/.]*)`"
    paths = re.findall(named, (ROOT / name).read_text(encoding="utf-8"))
    built = re.compile(r"docs/_build\b")
    assert [path for path in paths if not (ROOT / path).exists() and not built.match(path)] == []


def test_the_glossary_and_contributors_are_told_where_things_are():
    for name in ("CONTRIBUTING.md", "docs/glossary.md"):
        assert re.search(r"`(?:pyrosplice|tests|tools)/[\w/.]*`", (ROOT / name).read_text(encoding="utf-8")), name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_pages_that_are_read_in_the_repository_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_contributors_are_told_of_every_room():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "pyrosplice").iterdir() if (path / "__init__.py").exists()}
    assert rooms <= {name.rstrip("/") for name in re.findall(r"`(\w+/)`", page)}
