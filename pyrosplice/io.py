"""One safe file format: named tensors and JSON in a safetensors container. Nothing in it is ever executed.

The header of a file says what wrote it: ``format`` (always ``pyrosplice``), ``kind`` (what the file holds),
``format_version`` (one whole number) and ``content``, the JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from anndata import AnnData
from anndata.io import read_elem, write_elem
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyrosplice.data.storable import joined, nullable_text, split
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NoModelFileError

FORMAT = "pyrosplice"
FORMAT_VERSION = 1
# of content that is not as written; OSError is HDF5's
DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OSError)


@contextmanager
def damage_named(path: str | os.PathLike[str], *, keep: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what content that is not as it was written raises into :class:`ModelFileError`; ``keep`` goes through."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, (ModelFileError, *keep)):
            raise
        raise ModelFileError(
            f"{os.fspath(path)!r} is damaged: what it holds is not what was written ({type(error).__name__}: {error})."
        ) from error


def save_archive(
    path: str | os.PathLike[str], *, kind: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write tensors and JSON to one file; an existing file is replaced only once the new one is whole.

    Parameters
    ----------
    path
        Where to.
    kind
        What the file holds, checked by :func:`load_archive`.
    tensors
        Tensors by name, any device.
    content
        Whatever JSON can say.
    """
    header = {
        "format": FORMAT,
        "kind": kind,
        "format_version": str(FORMAT_VERSION),
        "content": json.dumps(content, default=_plain),
    }
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    whole = save(plain, header | {"sha256": digest_of(plain, header["content"])})
    target = new_file(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(whole)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def digest_of(tensors: Mapping[str, Tensor], content: str) -> str:
    """SHA-256, in hexadecimal, of a file's JSON and of its tensors: their names, types, shapes and bytes."""
    found = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def as_path(path: str | os.PathLike[str]) -> Path:
    """``path`` as a Path; :class:`~pyrosplice.errors.InvalidArgumentError` where it is no name of a file."""
    try:
        name = os.fspath(path)
    except TypeError:
        name = ""
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(f"path: expected the name of a file or a folder, found {path!r}.")
    return Path(name)


def new_file(path: str | os.PathLike[str]) -> Path:
    """Where a file is to be written; its folder is made if missing.

    Raises
    ------
    InvalidArgumentError
        ``path`` is a folder.
    """
    target = as_path(path)
    if target.is_dir():
        raise InvalidArgumentError(f"path: expected a file to write, found the folder {str(target)!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise :class:`~pyrosplice.errors.NoModelFileError` unless there is a file at ``path``."""
    place = as_path(path)
    if not place.is_file():
        what = "is a folder" if place.is_dir() else "is not there"
        raise NoModelFileError(f"path: expected a file, {os.fspath(path)!r} {what}.")


def load_archive(
    path: str | os.PathLike[str], *, kind: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_archive` wrote: the tensors, on ``device``, and the JSON.

    Raises
    ------
    NoModelFileError
        No such file.
    ModelFileError
        A file that is truncated, of another format or kind, or written by a newer version.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as archive:
            header = archive.metadata() or {}
            content = _checked_header(path, header, kind)
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ModelFileError(f"{os.fspath(path)!r} is truncated or no {FORMAT} file at all ({error}).") from error
    if "sha256" in header and header["sha256"] != digest_of(tensors, header["content"]):  # older files have none
        raise ModelFileError(
            f"{os.fspath(path)!r} is damaged: its content is not what was written; take a copy that is whole, or save "
            "it again."
        )
    return tensors, content


def _checked_header(path: str | os.PathLike[str], header: Mapping[str, str], kind: str) -> dict[str, Any]:
    name = os.fspath(path)
    if header.get("format") != FORMAT:
        raise ModelFileError(f"{name!r} was not written by {FORMAT}: expected format {FORMAT!r} in its header.")
    try:
        version, content = int(header["format_version"]), json.loads(header["content"])
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{name!r} is damaged: its header cannot be read ({error}).") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{name!r} has format version {version}; this version of {FORMAT} reads up to {FORMAT_VERSION}. Upgrade it."
        )
    if header.get("kind") != kind:
        raise ModelFileError(f"{name!r} holds a {header.get('kind')}; expected a {kind}.")
    return content


def anndata_to_tensors(adata: AnnData) -> dict[str, Tensor]:
    """An AnnData as bytes: its h5ad file (``adata``), and JSON (``rest``) of what such a file refuses."""
    plain, rest = split(adata)
    buffer = io.BytesIO()
    with nullable_text(), h5py.File(buffer, "w") as file:
        write_elem(file, "/", AnnData(**plain))
    return {"adata": _as_tensor(buffer.getvalue()), "rest": _as_tensor(json.dumps(rest).encode())}


def anndata_from_tensors(tensors: Mapping[str, Tensor]) -> AnnData:
    """Inverse of :func:`anndata_to_tensors`."""
    with h5py.File(io.BytesIO(_as_bytes(tensors["adata"])), "r") as file:
        adata = read_elem(file)
    return joined(adata, json.loads(_as_bytes(tensors["rest"]))) if "rest" in tensors else adata


def _as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def _as_bytes(data: Tensor) -> bytes:
    return data.cpu().numpy().tobytes()


def _plain(value: Any) -> Any:
    """A NumPy number as JSON takes it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"content: JSON has no {type(value).__name__}.")
