"""Dataclasses as JSON and named tensors, by their annotations: what a field may hold is what its type says."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from pyrosplice._io.storable import anndata_from_bytes, anndata_to_bytes
from pyrosplice._io.stored_values import from_json, to_json
from pyrosplice.errors import ModelFileError

SCALARS = (bool, int, float, str)
LIFTED = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")  # arrays as tensors
Tensors = dict[str, Tensor]
NEW = "new"
"""Mark of a field with a default: files of before there was the field may lack it."""


def pack(value: Any, hint: Any, name: str, tensors: Tensors) -> Any:
    """A value of an annotated type as JSON; its arrays go to ``tensors``, and JSON has their names.

    Parameters
    ----------
    value, hint
        A dataclass, number, text, array, tensor, AnnData, or list, tuple, set, dict or None of such; or of type
        ``Any``, which takes what :func:`~pyrosplice._io.stored_values.to_json` does.
    name
        Where it is, for names of tensors and messages.
    tensors
        Filled.

    Raises
    ------
    InvalidArgumentError
        Something that no file can hold; says where.
    """
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return _pack_any(value, name, tensors)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else pack(value, _given(arguments), name, tensors)
    if hint is AnnData:
        file, rest = anndata_to_bytes(value)
        stored = {"h5ad": file, "rest": rest}
        return {key: pack(_as_bytes(data), Tensor, _at(name, key), tensors) for key, data in stored.items()}
    if origin is np.ndarray and value.dtype == object:
        return [to_json(str(item), name) for item in value]
    if origin in (Tensor, np.ndarray):
        while name in tensors:  # of a key with a dot in it
            name += "_"
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value).copy())
        tensors[name] = tensor.detach().cpu()
        return name
    if is_dataclass(hint):
        hints = _hints(origin)
        return {f.name: pack(getattr(value, f.name), hints[f.name], _at(name, f.name), tensors) for f in fields(hint)}
    if _is_mapping(origin):
        return {key: pack(item, arguments[1], _at(name, key), tensors) for key, item in value.items()}
    if origin in SCALARS:
        return to_json(value, name)
    if issubclass(origin, StrEnum):
        return str(value)
    items = sorted(value) if origin is frozenset else value
    return [pack(item, arguments[0], _at(name, i), tensors) for i, item in enumerate(items)]


def unpack(stored: Any, hint: Any, name: str, tensors: Tensors) -> Any:
    """Inverse of :func:`pack`; takes out of ``tensors`` what it uses.

    Raises
    ------
    ModelFileError
        What is stored is not of the type, lacks a field or has another; says where.
    """
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return _unpack_any(stored, name, tensors)
    if origin in (typing.Union, types.UnionType):
        return None if stored is None else unpack(stored, _given(arguments), name, tensors)
    if hint is AnnData:
        check_keys(stored, ("h5ad", "rest"), name)
        file, rest = (_take(stored[key], _at(name, key), tensors).numpy().tobytes() for key in ("h5ad", "rest"))
        return anndata_from_bytes(file, rest)
    if origin is Tensor:
        return _take(stored, name, tensors)
    if origin is np.ndarray and isinstance(stored, list):
        return np.array([_checked(item, str, name) for item in stored], dtype=object)
    if origin is np.ndarray:
        return _array(_take(stored, name, tensors).numpy(), arguments, name)
    if is_dataclass(hint):
        hints = _hints(origin)
        given = _checked(stored, dict, name)
        check_keys(given, [f.name for f in fields(hint) if f.name in given or not f.metadata.get(NEW)], name)
        made: Any = hint
        return made(**{key: unpack(item, hints[key], _at(name, key), tensors) for key, item in stored.items()})
    if _is_mapping(origin):
        return {k: unpack(v, arguments[1], _at(name, k), tensors) for k, v in _checked(stored, dict, name).items()}
    if origin in SCALARS:
        whole = origin is float and type(stored) is int
        return float(stored) if whole else _checked(stored, origin, name)
    if issubclass(origin, StrEnum):
        if _checked(stored, str, name) not in list(origin):
            raise ModelFileError(f"{name}: expected one of {', '.join(origin)}, found {stored[:40]!r}.")
        return origin(stored)
    items = [unpack(v, arguments[0], _at(name, i), tensors) for i, v in enumerate(_checked(stored, list, name))]
    return items if origin in (list, Sequence) else origin(items)


def check_keys(stored: Any, names: Collection[str], name: str) -> None:
    """Raise :class:`~pyrosplice.errors.ModelFileError` unless what is stored has these names, and no others."""
    wrong = sorted(set(_checked(stored, dict, name)) ^ set(names))
    if wrong:
        how = "unknown" if wrong[0] in stored else "missing"
        raise ModelFileError(f"{_at(name, wrong[0])}: {how}; this version has {list(names)} here.")


def check_sizes(**arrays: tuple[Any, str]) -> None:
    """Raise unless sizes that the same letter stands for are the same: ``theta=(theta, "GD"), mean=(mean, "G")``.

    Raises
    ------
    ModelFileError
        Names the array and the two sizes.
    """
    known: dict[str, int] = {}
    for name, (array, letters) in arrays.items():
        shape = tuple(np.shape(array)) if isinstance(array, np.ndarray | Tensor) else (len(array),)
        if len(shape) != len(letters) or any(known.setdefault(k, n) != n for k, n in zip(letters, shape, strict=True)):
            expected = tuple(known.get(letter, letter) for letter in letters)
            raise ModelFileError(f"{name}: expected shape {expected}, found {shape}.")


def _pack_any(value: Any, name: str, tensors: Tensors) -> Any:
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {"fields": {key: _pack_any(item, _at(name, key), tensors) for key, item in value.items()}}
    if type(value) is np.ndarray and value.dtype.name in LIFTED:
        return {"part": pack(value, np.ndarray, name, tensors)}
    return to_json(value, name)


def _unpack_any(stored: Any, name: str, tensors: Tensors) -> Any:
    if isinstance(stored, dict) and set(stored) == {"fields"}:
        return {key: _unpack_any(item, _at(name, key), tensors) for key, item in stored["fields"].items()}
    if isinstance(stored, dict) and set(stored) == {"part"}:
        return _take(stored["part"], name, tensors).numpy()
    return from_json(stored)


def _take(stored: Any, name: str, tensors: Tensors) -> Tensor:
    if stored not in tensors:
        raise ModelFileError(f"{name}: its tensor {stored!r} is not in the file, or is that of something else.")
    return tensors.pop(stored)


def _array(array: Any, arguments: tuple[Any, ...], name: str) -> Any:
    """The array, if it is of the annotated type of numbers."""
    wanted = typing.get_args(arguments[1])[0] if len(arguments) > 1 else np.generic
    if not isinstance(wanted, typing.TypeVar) and not np.issubdtype(array.dtype, wanted):
        raise ModelFileError(f"{name}: expected an array of {np.dtype(wanted)}, found {array.dtype}.")
    return array


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _given(arguments: tuple[Any, ...]) -> Any:
    """The type beside None."""
    (hint,) = (argument for argument in arguments if argument is not types.NoneType)
    return hint


def _is_mapping(origin: Any) -> bool:
    return origin in (dict, Mapping)


def _checked(stored: Any, kind: type, name: str) -> Any:
    if type(stored) is not kind:
        raise ModelFileError(f"{name}: expected {kind.__name__}, found {str(stored)[:40]!r}.")
    return stored


def _at(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _as_bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
