"""The exceptions of the library. Each is also the builtin that callers of the documented interfaces catch."""

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])
MOST = 2**63 - 1  # that tensors and their generators take


class InvalidArgumentError(ValueError, AssertionError):
    """An argument has a value that it must not have. Says which, what was found, what was expected."""


class UnknownOptionError(InvalidArgumentError, TypeError):
    """A call was given an option that it does not have. Lists what there is."""


class NotReadyError(RuntimeError, ValueError):
    """Something was asked for before the step that makes it (``setup_data``, ``fit``, a test)."""


class UnreliableWarning(UserWarning):
    """Results have p-values that may not hold, and say which."""


class NoResultsError(InvalidArgumentError, NotReadyError):
    """A result was asked for that no call has made, or that the fit at hand cannot give. Says which call would."""


class NotStatedError(InvalidArgumentError, NotImplementedError):
    """A class that a user wrote does not say what is needed. Names the method to override."""


class RefusedModelError(InvalidArgumentError, NotImplementedError):
    """A Pyro model has a part that the method asked for cannot do. Names the site or plate, and what would do."""


class ModelFileError(ValueError):
    """A file is not one that this version of the library can read: truncated, foreign, or newer."""


class NoModelFileError(ModelFileError, FileNotFoundError):
    """There is no file where a model was to be read from. Says where."""


class NonSpatialWarning(UserWarning):
    """The spatial graph is not what the user probably wanted (isolated spots, many components)."""


def check_option(name: str, value: object, allowed: Collection[Any]) -> None:
    """Raise :class:`InvalidArgumentError` unless ``value`` is one of ``allowed``."""
    if not _is_among(value, allowed):
        expected = f"one of {', '.join(sorted(map(repr, allowed)))}" if allowed else "none"
        raise InvalidArgumentError(f"{name}: expected {expected}, found {value!r}.")


def check_known(name: str, value: object, known: Collection[Any], what: str) -> None:
    """Raise :class:`InvalidArgumentError` unless ``value`` is one of the ``known`` names; ``what`` says what of."""
    if not _is_among(value, known):
        raise InvalidArgumentError(f"{name}: expected {what} {list(known)}, found {value!r}.")


def _is_among(value: object, allowed: Collection[Any]) -> bool:
    try:
        return not getattr(value, "ndim", 0) and bool(value in allowed)
    except (TypeError, ValueError):  # what has no hash, or no truth
        return False


def check_switches(**switches: Any) -> None:
    """Raise :class:`InvalidArgumentError` unless every value is True or False."""
    for name, value in switches.items():
        check_option(name, value, (True, False))


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is one real number, of Python or NumPy, and no boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether ``value`` is a whole number of at least ``least``, of Python or NumPy, and no boolean."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def listed(names: Iterable[Any], *, near: str = "", most: int = 20) -> str:
    """List names for an error message, the first or those most like ``near`` where there are many."""
    every = [str(name) for name in names]
    if len(every) <= most:
        return str(every)
    close = difflib.get_close_matches(near, every, n=most // 2, cutoff=0.3) if near else []
    shown = ", ".join(map(repr, close or every[:most]))
    return f"[{shown}, …] ({len(every)} in all)"


def call_hint(found: object, kind: type) -> str:
    """How to make an object of a class of that ``kind`` that was given in its place; "" for anything else."""
    return f" (call it: {found.__name__}())" if isinstance(found, type) and issubclass(found, kind) else ""


def own_options_only(call: Call) -> Call:
    """Make ``call`` refuse options that it does not have with :class:`UnknownOptionError`, which lists its own.

    A call that takes any option reads them itself, and comes back as it is.
    """
    check = check_of_options(call)
    if check is None:
        return call

    @functools.wraps(call)
    def checked(*args: Any, **options: Any) -> object:
        check(args, options)
        return call(*args, **options)

    return checked  # type: ignore[return-value]


def check_of_options(call: Callable[..., Any]) -> Callable[[tuple[Any, ...], Mapping[str, Any]], None] | None:
    """What raises :class:`UnknownOptionError` for options that ``call`` does not have; None where it takes any."""
    described = inspect.signature(call).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in described):
        return None
    names = [p.name for p in described if p.name != "self"]
    is_method = len(names) < len(described)

    def check(args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        for name in options:
            if name not in names:
                title = f"{type(args[0]).__name__}.{call.__name__}" if is_method else call.__name__
                title, own = title.removesuffix(".__init__"), ", ".join(names) or "none"
                raise UnknownOptionError(f"{title}: no option {name!r}; it takes {own}.")

    return check


def check_integer(name: str, value: object, *, least: int = 1) -> int:
    """Read ``value`` as an int; :class:`InvalidArgumentError` unless it is whole (:func:`is_whole`), of 63 bits."""
    if not is_whole(value, least):
        raise InvalidArgumentError(f"{name}: expected a whole number of at least {least}, found {value!r}.")
    if int(value) > MOST:
        raise InvalidArgumentError(f"{name}: expected a whole number of at most {MOST}, found {value!r}.")
    return int(value)


def check_share(name: str, value: object, *, ends: bool = False) -> float:
    """Read ``value`` as a float; :class:`InvalidArgumentError` unless it is in (0, 1), with ``ends`` in [0, 1]."""
    if not is_number(value) or not (0 <= value <= 1 if ends else 0 < value < 1):
        expected = "in [0, 1]" if ends else "between 0 and 1"
        raise InvalidArgumentError(f"{name}: expected a number {expected}, found {value!r}.")
    return float(value)


def check_number(name: str, value: object, *, least: float = 0.0) -> float:
    """Read ``value`` as a float; :class:`InvalidArgumentError` unless it is finite and at least ``least``."""
    if not is_number(value) or not least <= float(value) < math.inf:
        raise InvalidArgumentError(f"{name}: expected a number of at least {least:g}, found {value!r}.")
    return float(value)
