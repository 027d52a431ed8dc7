"""Which of a class's closed forms still belong to it: those that no subclass has put another definition beneath.

A closed form (a score, a flag, a shortcut) is right for the density that it was derived from. A class says so in
``closed_forms``: its name, and the names of what it follows from. Where a subclass defines one of these again, without
the closed form, Python's own inheritance would go on with the parent's. Here it goes back to what the base class has,
which works from the definition itself.

Classes are looked at when they are made. A method that is set on an object, or on a class afterwards, is not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from pyrosplice.errors import InvalidArgumentError


def depth(kind: type, name: str) -> int:
    """How far up its line of ancestors a class finds ``name``: 0 for its own, the line's length for nowhere."""
    line = kind.__mro__
    return next((place for place, ancestor in enumerate(line) if name in vars(ancestor)), len(line))


def is_current(kind: type, name: str, sources: Iterable[str]) -> bool:
    """Whether ``name`` is defined where the last of ``sources`` is, or in a subclass of that."""
    return depth(kind, name) <= min(depth(kind, source) for source in sources)


def is_ours(kind: type) -> bool:
    """Whether a class is one of this library's, not a subclass that somebody wrote."""
    return kind.__module__.split(".")[0] == __name__.split(".")[0]


def refuse_set_methods(value: object, argument: str) -> None:
    """Raise unless every method of an object is its class's: one that is set on the object itself would be missed."""
    found = sorted(name for name in getattr(value, "__dict__", ()) if callable(getattr(type(value), name, None)))
    if found:
        raise InvalidArgumentError(
            f"{argument}: found {', '.join(found)} set on a {type(value).__name__} object; override methods in a "
            "subclass."
        )


def refuse_properties(kind: type, parent: type, *, read: Collection[str] = ()) -> None:
    """Raise where a subclass overrides a property of ``parent`` that its methods do not ``read``, and would ignore."""
    properties = {name for name, value in vars(parent).items() if isinstance(value, property)} - {*read}
    found = sorted(name for name in properties if vars(parent)[name] is not getattr(kind, name))
    if found:
        raise InvalidArgumentError(
            f"{kind.__name__}: it overrides {', '.join(found)}, and the methods of {parent.__name__} read what they "
            "need from the data that they were given, not from there; override a method, or use another name."
        )


class Extensible:
    """Base of classes with closed forms; see the module."""

    closed_forms: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        base = [kind for kind in cls.__mro__ if "closed_forms" in vars(kind) and kind is not Extensible][-1]
        for name, sources in cls.closed_forms.items():
            if vars(cls.__mro__[depth(cls, name)])[name] is not vars(base)[name] and not is_current(cls, name, sources):
                setattr(cls, name, vars(base)[name])
