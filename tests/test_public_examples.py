"""Every public name shows by an example what it is for, and every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pyro
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
SLOW = {  # examples of over two seconds, which make test-long runs
    "pyrosplice._usage.analysis.differential_usage.covariate_modes",
    "pyrosplice._usage.analysis.own_calibration.check_calibration",
    "pyrosplice._usage.refinement.refined_estimates",
    "pyrosplice.guides",
    "pyrosplice.posterior._nuts.NutsOptions",
    "pyrosplice.spatial._domains.Domains",
}


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


def docstrings() -> Iterator[tuple[str, str]]:
    """Paths of whatever has a docstring in the package, public or not, and the docstrings."""
    for module in modules():
        yield module.__name__, module.__doc__ or ""
        things = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
        for thing in (thing for thing in things if hasattr(thing, "__qualname__")):
            yield path_of(thing), inspect.unwrap(thing).__doc__ or ""
            for member in (plain(member) for member in vars(thing).values()) if inspect.isclass(thing) else ():
                if getattr(member, "__module__", None) == module.__name__ and hasattr(member, "__qualname__"):
                    yield path_of(member), member.__doc__ or ""


def examples() -> list[Any]:
    """What runs: every docstring with a prompt, once; those of over a second are slow."""
    found = {path: text for path, text in docstrings() if ">>>" in text}
    marks = {path: [pytest.mark.slow] if path in SLOW else [] for path in found}
    return [pytest.param(found[path], id=path, marks=marks[path]) for path in sorted(found)]


def without_example(thing: Any) -> bool:
    sections = re.split(r"^[ \t]*Examples\n[ \t]*-{8}\n", thing.__doc__ or "", flags=re.MULTILINE)
    return len(sections) != 2 or not doctest.DocTestParser().get_examples(sections[1])


def test_every_public_name_has_an_example() -> None:
    things = owed()
    assert len(things) > 380  # that the walk finds them
    assert sorted(name for name, thing in things.items() if without_example(thing)) == []
    assert not SLOW - {path for path, text in docstrings() if ">>>" in text}


def test_what_has_no_example_is_found() -> None:
    def bare() -> None:
        """Do nothing."""

    def told() -> None:
        """Do nothing.

        Examples
        --------
        As one would think.
        """

    def shown() -> None:
        """Do nothing.

        Examples
        --------
        >>> 1 + 1
        2
        """

    assert [without_example(thing) for thing in (bare, told, shown)] == [True, True, False]
    assert [failures(thing.__doc__ or "", "here") for thing in (bare, shown)] == ["", ""]
    assert "3" in failures((shown.__doc__ or "").replace("2", "3"), "here")


def failures(docstring: str, name: str) -> str:
    """What doctest reports of a docstring that is run with names of its own; "" if all is as it says."""
    test = doctest.DocTestParser().get_doctest(docstring, {"__name__": "__main__"}, name, None, None)
    reports: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=OPTIONS).run(test, out=reports.append)
    return "".join(reports)


@pytest.mark.parametrize("docstring", examples())
def test_an_example_gives_what_it_says(docstring: str, request: pytest.FixtureRequest) -> None:
    matplotlib.use("Agg")
    report = failures(docstring, request.node.callspec.id)
    plt.close("all")
    pyro.clear_param_store()
    assert not report, report
