"""The exceptions of the library. Each is also the builtin that callers of the documented interfaces catch."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any


class InvalidArgumentError(ValueError, AssertionError):
    """An argument has a value that it must not have. Says which, what was found, what was expected."""


class NotReadyError(RuntimeError):
    """Something was asked for before the step that makes it (``setup_data``, ``fit``, a test)."""


class NoResultsError(InvalidArgumentError, NotReadyError):
    """A result was asked for that no call has made, or that the fit at hand cannot give. Says which call would."""


class ModelFileError(ValueError):
    """A file is not one that this version of the library can read: truncated, foreign, or newer."""


class NonSpatialWarning(UserWarning):
    """The spatial graph is not what the user probably wanted (isolated spots, many components)."""


def check_option(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise :class:`InvalidArgumentError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InvalidArgumentError(f"{name}: expected one of {', '.join(sorted(map(repr, allowed)))}, found {value!r}.")


def listed(names: Iterable[Any], *, near: str = "", most: int = 20) -> str:
    """Names for an error message, the first or those most like ``near`` where there are many."""
    every = [str(name) for name in names]
    if len(every) <= most:
        return str(every)
    close = difflib.get_close_matches(near, every, n=most // 2, cutoff=0.3) if near else []
    shown = ", ".join(map(repr, close or every[:most]))
    return f"[{shown}, …] ({len(every)} in all)"
