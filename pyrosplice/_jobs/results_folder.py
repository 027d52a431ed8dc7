"""The folder that a job writes: tables, figures, ``index.html``, and ``run.json``, which says how to run it again."""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from pyrosplice._io.atomic import as_path, write_whole
from pyrosplice._report import ReportSection, report_page
from pyrosplice.errors import InvalidArgumentError

PAGE, RECORD = "index.html", "run.json"
ANNOTATED, RATIOS = ANNDATA_FILES = "annotated.h5ad", "fitted_ratios.h5ad"  # what else could be read again
VERSIONS = ("pyrosplice", "torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "matplotlib")
MOST_LETTERS = (
    80  # of a name of a file: with the folder's, far below the 260 of Windows and the 255 bytes of ext4 and APFS
)
REQUIRED_FOR = {"matplotlib": ("drawing", "plot", "--no-figures"), "pyarrow": ("--parquet", "parquet", "no --parquet")}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where a job writes to, and what besides tables and the page.

    Attributes
    ----------
    out
        The folder; made if it is missing.
    force
        Write although the folder holds something; files of an earlier run are replaced, others are left.
    figures, parquet, write_h5ad
        Whether to draw, to write tables as parquet beside csv, and the data with the results in it.
    quiet
        No progress on standard error.
    """

    out: Path
    force: bool = False
    figures: bool = True
    parquet: bool = False
    write_h5ad: bool = False
    quiet: bool = False


class ResultsFolder:
    """A folder that is checked before any work, written at its end, and complete once ``run.json`` is in it."""

    def __init__(self, options: OutputOptions) -> None:
        self.options, self.files = options, dict[str, str]()
        self.place = as_path(options.out)
        self._made, self._cleared = not self.place.exists(), False

    def open(self) -> None:
        """Make the folder, and see that it may be written.

        Raises
        ------
        InvalidArgumentError
            It holds something and ``force`` is not given; it is a file, or cannot be written.
        """
        _check_packages(self.options)
        if self.place.exists() and not self.place.is_dir():
            raise InvalidArgumentError(f"--out: expected a folder, found the file {str(self.place)!r}.")
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            inside = sorted(path.name for path in self.place.iterdir() if not path.name.startswith("."))
            with tempfile.TemporaryFile(dir=self.place):
                pass
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(
                f"--out: {str(self.place)!r} cannot be written ({error}); name another."
            ) from error
        if inside and not self.options.force:
            shown = ", ".join([*inside[:3], *["…"][: len(inside) > 3]])
            raise InvalidArgumentError(
                f"--out: {str(self.place)!r} holds something already ({shown}); "
                "name another folder, or give --force to replace what an earlier run wrote there."
            )

    def keep_input(self, data: Path | None) -> None:
        """Raise where the file that is read would be replaced, or is a folder that would be written into.

        Raises
        ------
        InvalidArgumentError
            It is one of what an earlier run wrote here, has a name that a job writes, or has this folder in it.
        """
        if data is None or not data.exists():
            return
        source, place = data.resolve(), self.place.resolve()
        if source == place or source in place.parents:
            raise InvalidArgumentError(f"--out: {str(self.place)!r} is in the data that are read; name another folder.")
        if source.parent == place and source.name in {*ANNDATA_FILES, *_listed_files(place / RECORD)}:
            raise InvalidArgumentError(
                f"--out: {str(self.place)!r} has the data that are read, {source.name!r}, which this run would "
                "replace; name another folder."
            )

    def discard(self) -> None:
        """Take the folder away again where this run made it and wrote nothing."""
        if self._made:
            with suppress(OSError):  # not empty
                self.place.rmdir()

    def path(self, name: str, what: str) -> Path:
        """Where a file of that name goes; ``what`` says on the page what it holds."""
        if not self._cleared:
            self._clear()
        self.files[name] = what
        return self.place / name

    def write(self, name: str, data: bytes, what: str) -> None:
        """Write a whole file."""
        write_whole(self.path(name, what), data)

    def write_table(self, name: str, table: pd.DataFrame, what: str) -> str:
        """Write a table as csv (UTF-8, one header row), and as parquet where asked for; the name of the csv file."""
        self.write(f"{name}.csv", table.to_csv(index=False, lineterminator="\n").encode(), what)
        if self.options.parquet:
            table.to_parquet(self.path(f"{name}.parquet", what), index=False)
        return f"{name}.csv"

    def write_pictures(self, pictures: Mapping[str, tuple[bytes, bytes | None]]) -> None:
        """Write the light pictures as PNG files; the page has both in it."""
        for name, file in file_names(pictures).items():
            self.write(f"{file}.png", pictures[name][0], "a figure of this page")

    def write_anndata(self, adata: AnnData, name: str, what: str) -> None:
        """Write an AnnData as h5ad."""
        adata.write_h5ad(self.path(name, what))

    def _clear(self) -> None:
        """Take away what an earlier run says that it wrote, so that no file of it stands among the new ones."""
        self._cleared = True
        for name in _listed_files(self.place / RECORD):
            with suppress(FileNotFoundError):
                (self.place / name).unlink()


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What a job has to say at its end: the page's title, what was found, its sections, and what to remember."""

    title: str
    lead: str
    sections: Sequence[ReportSection]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What was asked for, when and where, so that it can be asked for again."""

    job: str
    arguments: tuple[str, ...]
    options: Any
    started: datetime
    warnings: Sequence[str]

    def to_json(self, settings: Mapping[str, Any], files: Iterable[str]) -> bytes:
        """Write the record: command, options as given or by default, what was read of the data, versions, warnings."""
        said = {
            "command": command_text(self.arguments),
            "arguments": list(self.arguments),
            "job": self.job,
            "options": asdict(self.options),
            "settings": dict(settings),
            "versions": {name: _version(name) for name in VERSIONS} | {"python": platform.python_version()},
            "platform": platform.platform(),
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self.started).total_seconds(), 1),
            "warnings": list(self.warnings),
            "files": [*files, RECORD],
        }
        return (json.dumps(said, indent=2, ensure_ascii=False, default=str) + "\n").encode()


def finish(folder: ResultsFolder, record: RunRecord, conclusion: Conclusion) -> None:
    """Write the page and, last, the record."""
    sections = list(conclusion.sections)
    if record.warnings:
        text = " ".join(f"{number}. {said}" for number, said in enumerate(record.warnings, 1))
        sections.append(ReportSection(title="Warnings", text=text))
    seed = getattr(record.options, "seed", None)
    seeded = "no random numbers" if seed is None else f"seed {seed}"
    foot = f"pyrosplice {_version('pyrosplice')}; {seeded}; made by: {command_text(record.arguments)}"
    files = folder.files | {RECORD: "options, versions and warnings of this run, and the command that repeats it"}
    lead = conclusion.lead + (f"\nWarnings: {len(record.warnings)}, at the end." if record.warnings else "")
    page = report_page(conclusion.title, lead, sections, files=files, foot=foot)
    folder.write(PAGE, page.encode(), "this page")
    folder.write(RECORD, record.to_json(conclusion.settings, folder.files), files[RECORD])


def command_text(arguments: Sequence[str]) -> str:
    """Write a command as the shell of this system takes it."""
    words = ["pyrosplice", *arguments]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Find a name of a file for each name that people gave, none of which another system refuses or takes for the same.

    Letters and digits of any script stay, all else becomes ``_``; long names are cut, and what then differs by nothing
    but case, which Windows and macOS do not see, is numbered. Give them a word in front: Windows takes no ``con.csv``.

    Examples
    --------
    >>> from pyrosplice._jobs.results_folder import file_names
    >>> file_names(["age", "Age", "dose (µM)", "a/b", "a:b"])
    {'age': 'age', 'Age': 'Age_2', 'dose (µM)': 'dose_μM_', 'a/b': 'a_b', 'a:b': 'a_b_2'}
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", name))[:MOST_LETTERS] or "_"
        number, free = 1, stem
        while free.casefold() in taken:
            number += 1
            free = f"{stem}_{number}"
        taken.add(free.casefold())
        chosen[name] = free
    return chosen


def fingerprint(path: Path) -> dict[str, Any]:
    """Describe an input file, so that a record says which one it was; of a folder (zarr) its place alone."""
    about: dict[str, Any] = {"path": str(path.resolve())}
    if path.is_file():
        with path.open("rb") as file:
            about |= {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}
    return about


def _check_packages(options: OutputOptions) -> None:
    """Raise, before any work, where a package that the output needs is not installed."""
    for package, needed in (("matplotlib", options.figures), ("pyarrow", options.parquet)):
        if needed and _version(package) is None:
            what, extra, otherwise = REQUIRED_FOR[package]
            raise InvalidArgumentError(
                f"{what}: needs {package}; pip install 'pyrosplice[{extra}]', or give {otherwise}."
            )


def _listed_files(record: Path) -> list[str]:
    """Names of the files that an earlier run's record lists, plain ones of its own folder only."""
    try:
        names = json.loads(record.read_text(encoding="utf-8"))["files"]
        return [name for name in names if isinstance(name, str) and Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
