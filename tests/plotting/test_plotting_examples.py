"""The examples of the figures run."""

import doctest
from importlib import import_module
from pkgutil import iter_modules

import matplotlib
import matplotlib.pyplot as plt
import pytest

from pyrosplice import plotting


@pytest.mark.parametrize("module", [module.name for module in iter_modules(plotting.__path__)])
def test_examples_of_figures_run(module):
    matplotlib.use("Agg")
    found = doctest.testmod(import_module(f"pyrosplice.plotting.{module}"))
    plt.close("all")
    assert not found.failed
    undocumented = [name for name in plotting.__all__ if not getattr(plotting, name).__doc__]
    assert not undocumented
