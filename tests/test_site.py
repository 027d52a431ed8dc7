"""The site's reference has every public name, its gallery every figure; links that lead nowhere are found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import pages_of_text
from tests.test_public_surface import MODULES, ROOMS
from tools import check_links

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NOT_PYTHON = re.compile(r"^(?::.*|!(?:.*\\\n)*.*)\n", re.MULTILINE)  # options of a cell; what a shell runs
CELL = re.compile(r"```\{code-cell\}[^\n]*\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def api_pages():
    pytest.importorskip("sphinx", reason="the reference's pages are written by Sphinx")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import api_pages as module  # noqa: PLC0415 (an extension of the site, beside its pages)
    finally:
        sys.path.pop(0)
    return module


def full(room: str, name: str) -> str:
    return ".".join(part for part in ("pyrosplice", room, name) if part)


def test_every_public_name_has_a_page(api_pages):
    pages = api_pages.pages()
    rooms = {f"{full(room, '')}.rst" for room in (*ROOMS, *MODULES)}
    names = {full(room, name) for room, names in ROOMS.items() for name in names if name != "__version__"}
    assert rooms | {f"names/{name}.rst" for name in names} <= pages.keys()
    for name in names:
        room = pages[f"{name.rpartition('.')[0]}.rst"]
        assert f"   names/{name}\n" in room and f"   {name.rpartition('.')[2]}\n" in room, name


def test_names_of_the_namespaces_of_scripts_have_pages_too(api_pages):
    pages = api_pages.pages()
    for name in ("fit.model", "test.wald", "stats.t_test_raw", "utils.design_matrix"):
        assert f"names/pyrosplice.api.{name}.rst" in pages, name


def test_a_class_lists_its_methods_and_names_the_page_of_a_public_base(api_pages):
    pages = api_pages.pages()
    usage = pages["names/pyrosplice.SplisosmGLMM.rst"]
    for method in ("setup_data", "fit", "test_differential_usage", "get_effects", "save"):
        assert re.search(rf":members:.*\b{method}\b", usage), method
    assert "pyrosplice.likelihoods.Likelihood" in pages["names/pyrosplice.likelihoods.Poisson.rst"]
    mixture = pages["names/pyrosplice.GaussianMixture.rst"]
    assert "set_score_request" not in mixture  # scikit-learn's own


def test_attributes_that_share_a_description_have_an_entry_each(api_pages):
    text = "A class.\n\nAttributes\n----------\nx, y : float\n    Position.\n\nz\n    Height.\n\nNotes\n-----\na, b"
    split = "A class.\n\nAttributes\n----------\nx : float\n    Position.\n\ny : float\n    Position.\n\n"
    assert api_pages.split_attributes(text.split("\n")) == (split + "z\n    Height.\n\nNotes\n-----\na, b").split("\n")
    for plain in ("One line.", "", "Parameters\n----------\na, b\n    Both."):
        assert api_pages.split_attributes(plain.split("\n")) == plain.split("\n")
    for last in ("Attributes\n----------\na, b", "Attributes\n----------"):
        expected = last.replace("a, b", "a\nb")
        assert api_pages.split_attributes(last.split("\n")) == expected.split("\n")


def test_a_name_that_is_gone_has_no_page(api_pages, tmp_path):
    app = type("App", (), {"srcdir": tmp_path})
    (tmp_path / "api" / "names").mkdir(parents=True)
    (tmp_path / "api" / "index.md").touch()
    gone = tmp_path / "api" / "names" / "pyrosplice.gone.rst"
    gone.touch()
    api_pages.write(app)
    kept = tmp_path / "api" / "names" / "pyrosplice.fit_gmm.rst"
    assert not gone.exists() and kept.exists() and (tmp_path / "api" / "index.md").exists()
    before = kept.stat().st_mtime_ns
    api_pages.write(app)
    assert kept.stat().st_mtime_ns == before  # what is the same is not read again


def test_the_gallery_draws_every_figure():
    cells = "\n".join(CELL.findall((DOCS / "gallery.md").read_text(encoding="utf-8")))
    functions = {name for name in ROOMS["plotting"] if name.islower()}  # what they return is no figure
    assert {name for name in functions if f"plotting.{name}(" not in cells} == set()


@pytest.mark.parametrize(
    "name", [name for name in pages_of_text() if "{code-cell}" in (ROOT / name).read_text("utf-8")]
)
def test_a_page_with_cells_says_that_it_is_a_notebook(name):
    """Without these lines its cells would be shown and not run."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "CONTRIBUTING.md":  # says how it is done
        return
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n")
    assert CELL.findall(text)
    for cell in CELL.findall(text):
        compile(NOT_PYTHON.sub("", cell), name, "exec")


def test_no_page_is_a_stub():
    for name in pages_of_text():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"\b(TODO|TBD|coming soon|to be written)\b", text, re.IGNORECASE), name


PAGE = '<html><body><h1 id="top">x</h1>{}</body></html>'


@pytest.mark.parametrize(
    ("element", "wrong"),
    [
        ('<a href="other.html">', None),
        ('<a href="other.html#top">', None),
        ('<a href="#top">', None),
        ('<a href="sub/">', None),
        ('<a href="two%20words.html#%CE%B8">', None),
        ('<a href="other.html?digest=1">', None),
        ('<a href="https://example.org/a#b">', None),
        ('<a href="mailto:a@example.org">', None),
        ('<img src="data:image/png;base64,AAAA">', None),
        ('<a href="gone.html">', "no such file"),
        ('<a href="other.html#gone">', "no such anchor"),
        ('<a href="#gone">', "no such anchor"),
        ('<img src="gone.png">', "no such file"),
        ('<a href="https://exa mple.org">', "not an address"),
        ('<a href="http://nowhere">', "not an address"),
        ('<a href="javascript:alert(1)">', "not an address"),
        ('<script src="https://cdn.example.org/a.js">', "fetched from another place"),
        ('<link rel="stylesheet" href="https://cdn.example.org/a.css">', "fetched from another place"),
        ('<img src="//example.org/a.png">', "fetched from another place"),
    ],
)
def test_links_that_lead_nowhere_are_found(tmp_path, element, wrong):
    (tmp_path / "sub").mkdir()
    for name in ("other.html", "sub/index.html"):
        (tmp_path / name).write_text(PAGE.format(""), encoding="utf-8")
    (tmp_path / "two words.html").write_text(PAGE.format('<p id="θ">'), encoding="utf-8")
    (tmp_path / "page.html").write_text(PAGE.format(element), encoding="utf-8")
    faults = list(check_links.faults(tmp_path))
    assert len(faults) == (wrong is not None) and all(fault.endswith(wrong) for fault in faults), faults


def test_a_folder_without_pages_is_a_fault(tmp_path):
    assert list(check_links.faults(tmp_path)) == [f"{tmp_path}: no page"]
    assert check_links.main([str(tmp_path)]) == 1


@pytest.mark.slow
def test_the_picture_of_the_first_page_is_drawn_by_its_script(tmp_path):
    script, picture = ROOT / "tools" / "draw_overview.py", tmp_path / "overview.png"
    subprocess.run([sys.executable, str(script), str(picture)], check=True, cwd=tmp_path)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert (DOCS / "_static" / "overview.png").stat().st_size < 200_000


def test_a_command_of_the_shell_may_go_on_in_the_next_line(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    shell_lines = pytest.importorskip("shell_lines")
    tokens = [(str(kind), text) for kind, text in shell_lines.ShellLines().get_tokens("!a \\\n    --b c\nd = 1\n")]
    assert not [text for kind, text in tokens if "Error" in kind]
    assert ("Token.Name", "d") in tokens and "".join(text for _, text in tokens) == "!a \\\n    --b c\nd = 1\n"
