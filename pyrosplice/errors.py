"""The exceptions of the library. Each is also the builtin that callers of the documented interfaces catch."""

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

import numpy as np


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


def check_integer(name: str, value: Any, *, least: int = 1) -> int:
    """``value`` as an int; :class:`InvalidArgumentError` unless it is a whole number (of NumPy too) from ``least``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise InvalidArgumentError(f"{name}: expected {wanted}, found {value!r}.")
    return int(value)


def check_number(name: str, value: Any, *, least: float = 0.0) -> float:
    """``value`` as a float; :class:`InvalidArgumentError` unless it is a finite number of at least ``least``."""
    number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not number or not least <= float(value) < math.inf:
        raise InvalidArgumentError(f"{name}: expected a number of at least {least:g}, found {value!r}.")
    return float(value)
