"""Nothing in the package is for one operating system alone, or depends on the machine's encoding."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyrosplice._jobs.results_folder import command_text
from pyrosplice.posterior._memory import as_bytes

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "pyrosplice").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "posix", "syslog", "crypt"}
POSIX_CALLS = {"sysconf", "fork", "forkpty", "getuid", "geteuid", "mkfifo", "sched_getaffinity", "getloadavg", "killpg"}
GUARDED = "win32"  # a file that imports such a module looks at sys.platform first, as _io/atomic.py does


def unportable(source: str) -> list[str]:
    """Uses that another system refuses, or that read text in the machine's own encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name in POSIX_MODULES and GUARDED not in source]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            found += [f"os.{node.attr}"] if node.attr in POSIX_CALLS else []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if node.value.startswith(("/tmp", "/proc", "/dev/")) else []
        if isinstance(node, ast.Call):
            found += _texts(node)
    return found


def _texts(call: ast.Call) -> list[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    binary = any("b" in mode and len(mode) <= 3 for mode in modes)
    is_os = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in ("os", "tarfile", "Image")
    texts = name in ("read_text", "write_text") or (
        name == "open" and not binary and not is_os and (call.args or given)
    )
    return [f"{name} without encoding"] if texts and "encoding" not in given else []


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_asks_for_nothing_that_another_system_lacks(file):
    assert unportable(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["import fcntl", "import os\nos.sysconf('a')", "open('a')", "p.read_text()", "x = '/tmp/a'", "p.open('w')"],
)
def test_the_search_finds_what_it_is_for(source):
    assert len(unportable(source)) == 1


@pytest.mark.parametrize(
    "source", ["open('a', 'rb')", "p.open('xb')", "p.read_text(encoding='utf-8')", "folder.open()"]
)
def test_the_search_lets_the_rest_be(source):
    assert unportable(source) == []


def test_no_two_files_of_the_repository_differ_by_case_alone():
    names = [path.relative_to(ROOT).as_posix().casefold() for path in FILES]
    assert len(names) == len(set(names))


def test_half_of_the_memory_is_a_number_without_posix(monkeypatch):
    monkeypatch.delattr("os.sysconf", raising=False)
    assert as_bytes(None) > 1e8


def test_commands_are_written_for_the_shell_at_hand(monkeypatch):
    words = ("usage", "a b.h5ad", "--out", "o")
    assert command_text(words) == "pyrosplice usage 'a b.h5ad' --out o"
    monkeypatch.setattr("pyrosplice._jobs.results_folder.sys", SimpleNamespace(platform="win32"))
    assert command_text(words) == 'pyrosplice usage "a b.h5ad" --out o'
