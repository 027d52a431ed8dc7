"""The exceptions of the library. Each is also the builtin that callers of the documented interfaces catch."""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np

Call = TypeVar("Call", bound=Callable[..., Any])


class InvalidArgumentError(ValueError, AssertionError):
    """An argument has a value that it must not have. Says which, what was found, what was expected."""


class UnknownOptionError(InvalidArgumentError, TypeError):
    """A call was given an option that it does not have. Lists what there is."""


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


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise :class:`InvalidArgumentError` unless ``value`` is an integer of any type, at least ``least``."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise InvalidArgumentError(f"{name}: expected a whole number of at least {least}, found {value!r}.")


def own_options_only(call: Call) -> Call:
    """Make ``call`` refuse options that it does not have with :class:`UnknownOptionError`, which lists its own."""
    names = [p.name for p in inspect.signature(call).parameters.values() if p.name != "self"]
    title = call.__qualname__.removesuffix(".__init__")

    @functools.wraps(call)
    def checked(*args: Any, **options: Any) -> Any:
        for name in options:
            if name not in names:
                raise UnknownOptionError(f"{title}: no option {name!r}; it takes {', '.join(names)}.")
        return call(*args, **options)

    return checked  # type: ignore[return-value]
