"""The exceptions of the library. Each is also the builtin that callers of the documented interfaces catch."""

from collections.abc import Collection
from typing import Any


class InvalidArgumentError(ValueError, AssertionError):
    """An argument has a value that it must not have. Says which, what was found, what was expected."""


class NotReadyError(RuntimeError):
    """Something was asked for before the step that makes it (``setup_data``, ``fit``, a test)."""


class NoResultsError(InvalidArgumentError, NotReadyError):
    """A result was asked for that no call has made, or that the fit at hand cannot give. Says which call would."""


class NotStatedError(InvalidArgumentError, NotImplementedError):
    """A class that a user wrote does not say what is needed. Names the method to override."""


class ModelFileError(ValueError):
    """A file is not one that this version of the library can read: truncated, foreign, or newer."""


class NonSpatialWarning(UserWarning):
    """The spatial graph is not what the user probably wanted (isolated spots, many components)."""


def check_option(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise :class:`InvalidArgumentError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InvalidArgumentError(f"{name}: expected one of {', '.join(sorted(map(repr, allowed)))}, found {value!r}.")
