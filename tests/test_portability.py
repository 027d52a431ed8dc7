"""Nothing in the package is for one operating system alone, or depends on the machine's encoding."""

import ast
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyrosplice._jobs.results_folder import command_text
from pyrosplice.posterior._memory import as_bytes

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "pyrosplice").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "posix", "syslog", "crypt"}
POSIX_CALLS = {"sysconf", "fork", "forkpty", "getuid", "geteuid", "mkfifo", "sched_getaffinity", "getloadavg", "killpg"}
POSIX_CALLS |= {
    "uname",
    "statvfs",
    "nice",
    "wait",
    "setsid",
    "chown",
    "fchmod",
    "getpgid",
    "register_at_fork",
    "O_DIRECTORY",
}
UNLIKE = {"rename", "link", "symlink"}  # what there is everywhere and does not do the same: replace does
WINDOWS_SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
POSIX_SIGNALS = {name for name in dir(signal) if name.startswith("SIG")} - WINDOWS_SIGNALS - {"SIG_DFL", "SIG_IGN"}
POSIX_SIGNALS |= {"alarm", "setitimer", "pause", "pthread_kill", "sigwait"}


def unportable(source: str) -> list[str]:
    """Uses that another system refuses, or that read text in the machine's own encoding."""
    found = []
    tree = ast.parse(source)
    guarded = {inner for node in ast.walk(tree) if _asks_for_system(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name in POSIX_MODULES and node not in guarded]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            whose, name = node.value.id, node.attr
            found += [f"os.{name}"] if whose == "os" and name in POSIX_CALLS | UNLIKE else []
            found += [f"signal.{name}"] if whose == "signal" and name in POSIX_SIGNALS else []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if node.value.startswith(("/tmp", "/proc", "/dev/", "/var/", "/usr/")) else []
        if isinstance(node, ast.Call):
            found += _texts(node) + _processes(node)
    return found


def _asks_for_system(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "sys.platform" in ast.unparse(node.test)


def _processes(call: ast.Call) -> list[str]:
    """Ways to start processes that Windows and macOS lack, or do otherwise."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    words = [arg.value for arg in [*call.args, *(k.value for k in call.keywords)] if isinstance(arg, ast.Constant)]
    by_fork = name in ("get_context", "set_start_method") and {"fork", "forkserver"} & set(words)
    shell = any(k.arg in ("preexec_fn", "start_new_session", "shell") for k in call.keywords)
    return [name] if by_fork or shell else []


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
    [
        "import fcntl",
        "if sys.platform == 'win32':\n    pass\nimport fcntl",
        "import os\nos.sysconf('a')",
        "os.rename(a, b)",
        "signal.signal(signal.SIGALRM, f)",
        "signal.alarm(3)",
        "multiprocessing.get_context('fork')",
        "get_context(method='forkserver')",
        "subprocess.run(words, shell=True)",
        "open('a')",
        "p.read_text()",
        "x = '/tmp/a'",
        "x = f'/dev/shm/{name}'",
        "p.open('w')",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert len(unportable(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "open('a', 'rb')",
        "p.open('xb')",
        "p.read_text(encoding='utf-8')",
        "folder.open()",
        "if sys.platform != 'win32':\n    import fcntl",
        "os.replace(a, b)",
        "signal.signal(signal.SIGTERM, f)",
        "get_context('spawn')",
    ],
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


def test_files_are_written_read_and_kept_whole_where_there_are_no_locks_and_folders_do_not_open(tmp_path, monkeypatch):
    """What Windows does of it: no fcntl, and folders are no files."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    opened = os.open

    def without_folders(path, *options, **named):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options, **named)

    monkeypatch.setattr(os, "open", without_folders)
    spec = importlib.util.spec_from_file_location("atomic_elsewhere", ROOT / "pyrosplice" / "_io" / "atomic.py")
    atomic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(atomic)
    with atomic.locked(tmp_path), atomic.locked(tmp_path, shared=True):
        for content in (b"first", b"second"):
            atomic.write_whole(tmp_path / "new folder" / "a.bin", content)
            assert atomic.read_whole(tmp_path / "new folder" / "a.bin") == content
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.bin"]


def test_without_make_the_two_commands_are_those_that_make_runs():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    for target, command in (("demo", "pyrosplice demo --out demo"), ("test", "pytest -n 2")):
        recipe = makefile.split(f"\n{target}: ")[1].split("\n\n")[0]
        assert f"python -m {command}" in readme and f"python -m {command}" in recipe
    assert '-m "not slow"' in readme.split("pytest -n 2")[1].splitlines()[0]
