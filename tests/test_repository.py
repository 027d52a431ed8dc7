"""What the repository holds, and what its tests are called."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = {
    ".ci",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "docs",
    "pyproject.toml",
    "pyrosplice",
    "tests",
    "tools",
    "tutorials",
}


def test_nothing_but_the_project_is_tracked():
    """A file that a run leaves behind is easily committed with what was meant."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout")
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs git: {error}")
    names = [name for name in listed.split("\0") if name]
    assert {name.split("/")[0] for name in names} - ENTRIES == set()
    assert [name for name in names if name.startswith("tutorials/") and not name.endswith(".ipynb")] == []


def test_two_workers_collect_the_same_tests_in_the_same_order(request):
    """Addresses and the order of sets differ between processes; pytest-xdist then refuses to run anything."""
    items = request.session.items
    assert [item.nodeid for item in items if re.search(r"\bat 0x[0-9a-f]+", item.nodeid)] == []
    marks = [(item.nodeid, mark) for item in items for mark in item.iter_markers("parametrize")]
    given = [(name, value) for name, mark in marks for value in (*mark.args, *mark.kwargs.values())]
    assert [name for name, value in given if isinstance(value, set | frozenset)] == []


def test_docstrings_begin_with_a_phrase_and_the_formatter_lays_out_every_line():
    """A first sentence that leans on a name ("Of each gene") is none to a reader of the table of contents."""
    leaning = re.compile(
        r'\s*r?"""(Of|The same|As|That|Those|By|At|From|For|In|With|Without|Its|It|To) |\s+r?"""(``|:)'
    )
    files = sorted((ROOT / "pyrosplice").rglob("*.py"))
    lines = [(path.name, line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert [found for found in lines if leaning.match(found[1]) or "fmt: skip" in found[1]] == []
