"""Every public name shows by an example what it is for, and every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import pyrosplice
from pyrosplice import api
from pyrosplice._expression.comparisons import ExpressionTests
from pyrosplice._expression.continuous import ContinuousTest
from pyrosplice._expression.partition import Partition, TestPartition
from pyrosplice._expression.quasi_test import QuasiFit
from pyrosplice._expression.results import ExpressionTest
from tests.test_public_surface import ROOMS

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
RESULTS = (ExpressionTest, ExpressionTests, ContinuousTest, QuasiFit, Partition, TestPartition)
SLOW: set[str] = set()  # examples of over a second, which make test-long runs


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(pyrosplice.__path__, "pyrosplice."):
        yield importlib.import_module(found.name)


def plain(member: Any) -> Any:
    """What has the docstring: the function of a method, of whichever kind."""
    if isinstance(member, property):
        return member.fget
    return getattr(member, "__func__", member)


def path_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def public_things() -> Iterator[tuple[str, Any]]:
    """Names that people write, and what they are."""
    for room, names in ROOMS.items():
        module = importlib.import_module(f"pyrosplice.{room}".rstrip("."))
        yield from ((f"{room}.{name}".lstrip("."), getattr(module, name)) for name in names - {"__version__"})
    for part in api.__all__:
        yield from ((f"api.{part}.{name}", thing) for name, thing in vars(getattr(api, part)).items())
    for module in (pyrosplice.errors, pyrosplice.reasons):
        own = {name: thing for name, thing in vars(module).items() if callable(thing) and not name.startswith("_")}
        yield from ((f"{path_of(thing)}", thing) for thing in own.values() if thing.__module__ == module.__name__)
    yield from ((f"results.{kind.__name__}", kind) for kind in RESULTS)


def methods(kind: type) -> Iterator[Any]:
    """Documented public methods that a class is the first to have; one that it overrides is shown where it is from."""
    for name, member in vars(kind).items():
        if name.startswith("_") or isinstance(member, property | type) or not callable(plain(member)):
            continue
        if not any(hasattr(base, name) for base in kind.__bases__) and plain(member).__doc__:
            yield plain(member)


def owed() -> dict[str, Any]:
    """All that has to have an example, by the path where its docstring stands."""
    things: dict[str, Any] = {}
    for name, thing in public_things():
        things.setdefault(f"{name} ({path_of(thing)})", thing)
        if inspect.isclass(thing):
            own = (base for base in thing.__mro__ if base.__module__.startswith("pyrosplice"))
            for base in (base for base in own if not getattr(base, "_is_protocol", False)):
                things |= {path_of(method): method for method in methods(base)}
    return things
