"""Files that are there whole or not at all: the one place that puts what the library saves on a disk."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyrosplice.errors import InvalidArgumentError, NoModelFileError

if sys.platform != "win32":
    import fcntl

PREFIX = ".pyrosplice-"  # of files that only a save in progress has
DAY = 86_400.0  # seconds after which what is unfinished is what a kill has left


def as_path(path: str | os.PathLike[str]) -> Path:
    """Read ``path`` as a Path; :class:`~pyrosplice.errors.InvalidArgumentError` where it is no name of a file."""
    try:
        name = os.fspath(path)
    except TypeError:
        name = ""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidArgumentError(f"path: expected the name of a file or a folder, found {path!r}.")
    return Path(name)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under exactly the name given; what stood there is replaced once the new one is on the disk.

    A crash, a full disk or another process that writes the same file leaves one whole file, the old or the new one.

    Parameters
    ----------
    path
        Where to, with any suffix or none; missing folders are made, and a link is followed.
    data
        The whole content.

    Raises
    ------
    InvalidArgumentError
        ``path`` is a folder.
    OSError
        The system refuses; says that what stood there is as it was.
    """
    target = as_path(path)
    if target.is_dir():
        raise InvalidArgumentError(f"path: expected a file to write, found the folder {str(target)!r}.")
    target = target.resolve()
    partial = target.with_name(f"{PREFIX}{secrets.token_hex(8)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(f"{str(target)!r} is write-protected")
        _sweep(target.parent)
        _write_through(partial, data, like=target)
        partial.replace(target)
    except OSError as error:
        error.add_note(f"{str(target)!r} was not written, and what stood there is as it was; save to another place.")
        raise
    finally:
        with suppress(OSError):  # gone where it was moved; else the first error is the one to tell
            partial.unlink(missing_ok=True)
    _sync(target.parent)


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Read all bytes of a file.

    Raises
    ------
    NoModelFileError
        There is no file at ``path``.
    """
    place = as_path(path)
    if not place.is_file():
        what = "is a folder" if place.is_dir() else "is not there"
        raise NoModelFileError(f"path: expected a file, {os.fspath(path)!r} {what}.")
    return place.read_bytes()


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep others from writing a folder's files meanwhile; ``shared`` lets others read, as readers do.

    Where the system has no locks (Windows, some network drives) nothing is held.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_through(path: Path, data: bytes, *, like: Path) -> None:
    with path.open("xb") as file:
        if like.exists():
            path.chmod(like.stat().st_mode & 0o777)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(folder: Path) -> None:
    """Take away what saves that were killed have left."""
    for file in folder.glob(f"{PREFIX}*.partial"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > DAY:
                file.unlink()


def _sync(folder: Path) -> None:
    """Put a folder's names on the disk too, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
