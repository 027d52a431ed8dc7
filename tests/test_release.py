"""What a release says of itself: one version, a citation that readers of the format take, one first cell."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import pyrosplice
from tools import readme_cell

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
# of the schema of CFF 1.2.0; `make release` has cffconvert check the whole of it
REQUIRED = {"authors", "cff-version", "message", "title"}
KNOWN = REQUIRED | {
    "abstract",
    "commit",
    "contact",
    "date-released",
    "doi",
    "identifiers",
    "keywords",
    "license",
    "license-url",
    "preferred-citation",
    "references",
    "repository",
    "repository-artifact",
    "repository-code",
    "type",
    "url",
    "version",
}


def test_there_is_one_version():
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changelog is not None
    assert {PROJECT["version"], pyrosplice.__version__, CITATION["version"], changelog[1]} == {PROJECT["version"]}


def test_the_citation_has_what_its_format_wants():
    assert CITATION.keys() >= REQUIRED and CITATION.keys() <= KNOWN
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert CITATION["authors"] and all(
        author.keys() & {"name", "family-names", "alias"} for author in CITATION["authors"]
    )
    code, *_ = PROJECT["license"].split(" AND ")  # the others are of the sets of counts in the package
    assert CITATION["license"] == code
    assert CITATION["repository-code"] == PROJECT["urls"]["Repository"]
    assert all(isinstance(word, str) for word in CITATION["keywords"])
    assert len(set(CITATION["keywords"])) == len(CITATION["keywords"])


def test_all_files_of_a_release_are_there():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in (*listed, PROJECT["readme"]) if not (ROOT / name).exists()] == []
    assert [pattern for pattern in PROJECT["license-files"] if not list(ROOT.glob(pattern))] == []


def test_the_first_cell_is_that_of_the_readme(tmp_path):
    cell = readme_cell.first_cell(ROOT / "README.md")
    assert "SplisosmGLMM" in cell and "```" not in cell
    (tmp_path / "page.md").write_text("# no cell\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="no Python cell"):
        readme_cell.first_cell(tmp_path / "page.md")


def test_a_release_that_runs_the_checkout_fails(tmp_path, monkeypatch, capsys):
    """A cell that imports the checkout's own package says nothing of the wheel."""
    (tmp_path / "README.md").write_text("```python\nimport pyrosplice\n```\n", encoding="utf-8")
    assert readme_cell.main([str(tmp_path)]) == 0
    assert f"pyrosplice {pyrosplice.__version__}" in capsys.readouterr().out
    (tmp_path / "pyrosplice").symlink_to(Path(pyrosplice.__file__).parent)
    assert readme_cell.main([str(tmp_path)]) == 1
