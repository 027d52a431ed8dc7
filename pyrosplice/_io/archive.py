"""The one format of files: named tensors and JSON, sealed part by part. Nothing in a file is ever executed.

A file is safetensors (tensors, and a header of text) or, without tensors, JSON. Either says

==================  ===================================================================================================
``format``          always ``pyrosplice``
``kind``            the class whose it is
``format_version``  one whole number for files of every kind
``content``         the JSON, under whatever name its kind gives it (in a JSON file, its other keys)
``checksums``       SHA-256 of every tensor with its name, type and shape, and of the JSON (in a JSON file, ``sha256``)
==================  ===================================================================================================

The rule of versions: a newer file than the library's is refused; an older one is read where its kind says how, else
refused; both by name. The rule of suffixes: a file has the name that is given, whatever its suffix.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, uint8

from pyrosplice._io.atomic import read_whole, write_whole
from pyrosplice._io.codec import pack, unpack
from pyrosplice.errors import InvalidArgumentError, ModelFileError

FORMAT = "pyrosplice"
FORMAT_VERSION = 3  # of usage files 1, of expression files 2, of mixtures 1 were before there was one rule
CONTENT = "content"
HEADER = {"format", "kind", "format_version", "checksums"}  # beside the JSON
JSON_HEADER = ("format", "kind", "format_version", "sha256")
LONGEST_HEADER = 100_000_000  # bytes, that safetensors reads
AGAIN = "take a copy that is whole, or save it again"

Record = TypeVar("Record")
Upgrades = Mapping[int, Callable[["Archive"], "Archive"]]


@dataclass(frozen=True)
class Archive:
    """What one file holds.

    Attributes
    ----------
    kind
        Name of the class whose it is; "" in files of before they said so.
    content
        JSON.
    tensors
        Tensors by name, on the CPU.
    version
        Format version.
    part
        What the JSON is called in a safetensors file.
    """

    kind: str
    content: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    version: int = FORMAT_VERSION
    part: str = CONTENT

    @classmethod
    def of(cls, kind: str, record: object, *, part: str = CONTENT) -> Archive:
        """The fields of a dataclass, by their annotations; see :func:`~pyrosplice._io.codec.pack`."""
        tensors: dict[str, Tensor] = {}
        return cls(kind, pack(record, type(record), "", tensors), tensors, part=part)

    def to(self, record: type[Record]) -> Record:
        """Inverse of :meth:`of`.

        Raises
        ------
        ModelFileError
            A field or a tensor that is missing, unknown or of another type; says which.
        """
        left = dict(self.tensors)
        made: Record = unpack(self.content, record, "", left)
        if left:
            raise ModelFileError(f"found {sorted(left)[:5]}, which no part of a {self.kind} is; {AGAIN}.")
        return made

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of every part: the JSON with kind and version, and each tensor."""
        text = f"{FORMAT} {self.kind} {self.version}\n{json.dumps(self.content)}"
        digests = {name: _digest(name, tensor) for name, tensor in self.tensors.items()}
        return {self.part: _sha256(text.encode())} | digests

    @property
    def seal(self) -> str:
        """SHA-256 of all of it."""
        return _sha256(json.dumps(self.checksums, sort_keys=True).encode())

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        if self.part in self.tensors:
            raise InvalidArgumentError(f"tensors: {self.part!r} is the name of the JSON; give it another.")
        header = {"format": FORMAT, "kind": self.kind, "format_version": str(self.version)}
        header |= {self.part: json.dumps(self.content), "checksums": json.dumps(self.checksums)}
        data = bytes_of({name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}, header)
        if int.from_bytes(data[:8], "little") > LONGEST_HEADER:
            raise InvalidArgumentError("path: too many genes for one file; save some of them at a time.")
        return data

    def to_json(self) -> bytes:
        """A JSON file; there must be no tensors."""
        taken = sorted(set(JSON_HEADER) & set(self.content))
        if taken:
            raise InvalidArgumentError(f"{taken}: names that a file has for itself; call them something else.")
        header = dict(zip(JSON_HEADER, (FORMAT, self.kind, self.version, self.seal), strict=True))
        return json.dumps(header | self.content, indent=1).encode()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; see :func:`~pyrosplice._io.atomic.write_whole`."""
        write_whole(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str], kind: str, older: Upgrades | None = None) -> Archive:
        """Read what :meth:`save` wrote, every part verified.

        Parameters
        ----------
        path, kind
            The file, and what it must hold.
        older
            How to read files of earlier versions.

        Raises
        ------
        NoModelFileError
            No such file.
        ModelFileError
            A file that is truncated, damaged, of another program, kind or version; says which part.
        """
        data, name = read_whole(path), repr(os.fspath(path))
        with damage_named(name):
            return cls.of_bytes(data, name).checked(name, kind, older)

    @classmethod
    def of_bytes(cls, data: bytes, name: str) -> Archive:
        """The content of a safetensors file; ``name`` is for messages."""
        try:
            tensors = tensors_of(data)
        except (SafetensorError, ValueError, KeyError, OverflowError) as error:
            raise ModelFileError(
                f"{name} is damaged: truncated or no {FORMAT} file at all ({error}); {AGAIN}."
            ) from error
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if not header:
            return cls("", {}, tensors, 1)
        if header.get("format") in _OLDER and "checksums" not in header:
            return _older(header, tensors, name)
        if header.get("format") != FORMAT:
            raise _foreign(name)
        version = _version(header.get("format_version"), name)
        parts, missing = set(header) - HEADER, HEADER - set(header)
        if len(parts) != 1 or missing:
            raise _header_damaged(name, missing | (parts - {CONTENT}) or {CONTENT})
        (part,) = parts
        archive = cls(header["kind"], json.loads(header[part]), tensors, version, part)
        archive._verify(json.loads(header["checksums"]), name)
        return archive

    @classmethod
    def of_json(cls, data: bytes, name: str) -> Archive:
        """The content of a JSON file."""
        try:
            content = json.loads(data)
            version = _version(content.pop("format_version"), name)
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, ModelFileError):
                raise
            raise ModelFileError(f"{name} is damaged, or no file of {FORMAT} ({error!r}); {AGAIN}.") from error
        if version < FORMAT_VERSION and not {"format", "kind"} & set(content):
            return cls("", content, {}, version)
        missing = {key for key in JSON_HEADER if key != "format_version"} - set(content)
        if missing:
            raise _header_damaged(name, missing)
        said, kind, seal = (content.pop(key) for key in ("format", "kind", "sha256"))
        archive = cls(kind, content, {}, version)
        if said != FORMAT or seal != archive.seal:
            raise ModelFileError(f"{name} is damaged: its content is not what was written; {AGAIN}.")
        return archive

    def checked(self, name: str, kind: str, older: Upgrades | None = None) -> Archive:
        """The archive, or what ``older`` makes of it; refused where it is of another kind or version."""
        if not self.kind:
            raise _foreign(name)
        if self.kind != kind:
            raise ModelFileError(f"{name} holds a {self.kind}; expected a {kind}. Load it with {self.kind}.")
        if self.version == FORMAT_VERSION:
            return self
        if self.version not in (older or {}):
            raise ModelFileError(
                f"{name} has format version {self.version}, of a development version before 0.1, which is not read any "
                "more; fit the model again."
            )
        return (older or {})[self.version](self)

    def _verify(self, said: Mapping[str, str], name: str) -> None:
        found = self.checksums
        wrong = next((part for part in [*said, *found] if said.get(part) != found.get(part)), None)
        if wrong is not None:
            how = "missing" if wrong not in found else "none of it" if wrong not in said else "not as it was written"
            raise ModelFileError(f"{name} is damaged: its part {wrong!r} is {how}; {AGAIN}.")


def check_arguments(kind: type, names: Collection[str]) -> None:
    """Raise unless a class's constructor takes exactly the arguments that its files hold, or any and needs no others.

    Raises
    ------
    InvalidArgumentError
        A subclass that takes others, whose objects could not be made again; says which.
    """
    found = inspect.signature(kind).parameters
    named = {name: p for name, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in found.values())
    needed = {name for name, p in named.items() if p.default is p.empty} - set(names)
    wrong = sorted(needed if takes_any else set(found) ^ set(names))
    if wrong:
        raise InvalidArgumentError(
            f"{kind.__name__}: its constructor differs from its parent's in {wrong}, so that a file of it could not be "
            "read again; give it the same arguments, or save an object of the parent."
        )


@contextmanager
def damage_named(name: str, *, keep: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever content that cannot be read raises into :class:`ModelFileError`; ``keep`` goes through."""
    try:
        yield
    except ModelFileError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error
    except keep:
        raise
    except Exception as error:  # of whatever kind: JSON, HDF5, pandas and constructors each have their own
        raise ModelFileError(
            f"{name} is damaged: what it holds is not what was written ({type(error).__name__}: {error}); {AGAIN}."
        ) from error


_OLDER = {FORMAT: ("format_version", CONTENT), "pyrosplice-expression": ("version", "about")}


def _older(header: Mapping[str, str], tensors: dict[str, Tensor], name: str) -> Archive:
    """A file of before there was one rule: one checksum of all its parts."""
    version_key, content_key = _OLDER[header["format"]]
    version, text = _version(header.get(version_key), name), header.get(content_key, "")
    if "sha256" not in header or version >= FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has no checksums: it is damaged, or of a development version before 0.1 that wrote none, which is "
            "not read any more; fit the model again."
        )
    found = hashlib.sha256(text.encode())
    for part in sorted(tensors):
        found.update(_described(part, tensors[part]))
        found.update(_raw(tensors[part]))
    if header["sha256"] != found.hexdigest():
        raise ModelFileError(f"{name} is damaged: its content is not what was written; {AGAIN}.")
    return Archive(header.get("kind", "ExpressionGLM"), json.loads(text), tensors, version)


def _version(said: object, name: str) -> int:
    try:
        version = int(str(said))
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{name} is damaged: its format version is {said!r}; {AGAIN}.") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has format version {version}; this version of {FORMAT} reads up to {FORMAT_VERSION}. Upgrade it."
        )
    return version


def _foreign(name: str) -> ModelFileError:
    return ModelFileError(f"{name} was not written by {FORMAT}: expected format {FORMAT!r} in its header.")


def _header_damaged(name: str, keys: set[str]) -> ModelFileError:
    return ModelFileError(f"{name} is damaged: its header lacks, or should not have, {sorted(keys)[:5]}; {AGAIN}.")


def _digest(name: str, tensor: Tensor) -> str:
    found = hashlib.sha256(_described(name, tensor))
    found.update(_raw(tensor))
    return found.hexdigest()


def _described(name: str, tensor: Tensor) -> bytes:
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()


def _raw(tensor: Tensor) -> memoryview | bytes:
    return tensor.contiguous().reshape(-1).view(uint8).numpy().data if tensor.numel() else b""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
