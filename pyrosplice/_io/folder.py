"""Several files in one folder that are one thing: all of a save is there, or nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from pyrosplice._io.archive import Archive, damage_named
from pyrosplice._io.atomic import PREFIX, locked, read_whole, write_whole
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NoModelFileError

UNFINISHED = f"{PREFIX}save"  # all parts of a save in one file: what makes it one step
KIND = "save"
Upgrade = Callable[[str, dict[str, Archive], dict[str, bytes]], dict[str, Archive]]


@dataclass(frozen=True)
class Folder:
    """Files of known names in a folder; others that a person has there stay as they are.

    A save is first written as one file, and its parts are then put in their places. Whoever reads in between, or after
    a crash in between, reads that one file.

    Attributes
    ----------
    place
        The folder.
    names
        Every file that it may have, relative to it.
    """

    place: Path
    names: tuple[str, ...]

    def write(self, parts: Mapping[str, Archive], *, absent: Collection[str] = ()) -> None:
        """Write files, and take away the ``absent`` ones, as one step.

        Raises
        ------
        InvalidArgumentError
            A file is where the folder should be.
        OSError
            The system refuses; what stood there is as it was.
        """
        if self.place.exists() and not self.place.is_dir():
            raise InvalidArgumentError(f"path: expected a directory, found the file {str(self.place)!r}.")
        new = not self.place.exists()
        self.place.mkdir(parents=True, exist_ok=True)
        save = Archive(KIND, {"absent": list(absent)}, {name: _as_tensor(part, name) for name, part in parts.items()})
        try:
            with locked(self.place):
                with suppress(ModelFileError):  # a damaged one is replaced
                    self._finish()
                save.save(self.place / UNFINISHED)
                with suppress(OSError):  # it is saved: what is not in its place yet is read from the one file
                    self._finish()
        except BaseException:
            if new:
                with suppress(OSError):
                    self.place.rmdir()
            raise

    def read(self, kind: str, older: Upgrade, names: Collection[str]) -> dict[str, Archive]:
        """Read those of the named files that are there, of one and the same save, every part verified.

        Parameters
        ----------
        kind
            Whose they must be.
        older
            How to read files that do not say so: makes today's archives of them, given the bytes too.
        names
            Which files.

        Raises
        ------
        NoModelFileError
            No such folder.
        ModelFileError
            A file that is truncated, damaged, of another program, kind or version; says which.
        """
        found, parts = {name: data for name, data in self._read().items() if name in names}, {}
        for name, data in found.items():
            with damage_named(self.named(name)):
                read = Archive.of_json if _is_json(name) else Archive.of_bytes
                parts[name] = read(data, self.named(name))
        if any(not part.kind for part in parts.values()):
            with damage_named(repr(str(self.place))):
                parts = older(kind, parts, found)
        return {name: part.checked(self.named(name), kind) for name, part in parts.items()}

    def named(self, name: str) -> str:
        """A file's whole name, for messages."""
        return repr(str(self.place / name))

    def missing(self, name: str) -> NoModelFileError:
        """The error of a file that is not there."""
        return NoModelFileError(f"path: expected a file, {self.named(name)} is not there.")

    def _read(self) -> dict[str, bytes]:
        if not self.place.is_dir():
            raise NoModelFileError(f"path: expected a folder, {str(self.place)!r} is not one.")
        with locked(self.place, shared=True):
            save = self._unfinished()
            parts = {} if save is None else {name: _as_data(data) for name, data in save.tensors.items()}
            gone = set() if save is None else set(save.content["absent"])
            left = [name for name in self.names if name not in {*parts, *gone} and (self.place / name).is_file()]
            return parts | {name: read_whole(self.place / name) for name in left}

    def _unfinished(self) -> Archive | None:
        file = self.place / UNFINISHED
        if not file.exists():
            return None
        save, name = Archive.load(file, KIND), repr(str(file))
        with damage_named(name):
            unknown = {*save.tensors, *save.content["absent"]} - set(self.names)
            if unknown:
                raise ModelFileError(f"{name} has parts {sorted(unknown)[:5]} that are not those of its folder.")
        return save

    def _finish(self) -> None:
        save = self._unfinished()
        if save is None:
            return
        for name, data in save.tensors.items():
            write_whole(self.place / name, _as_data(data))
        for name in save.content["absent"]:
            (self.place / name).unlink(missing_ok=True)
            if (self.place / name).parent != self.place:
                with suppress(OSError):  # not empty, or another's
                    (self.place / name).parent.rmdir()
        (self.place / UNFINISHED).unlink()


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def _as_tensor(part: Archive, name: str) -> torch.Tensor:
    data = part.to_json() if _is_json(name) else part.to_bytes()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_data(data: torch.Tensor) -> bytes:
    return data.numpy().tobytes()
