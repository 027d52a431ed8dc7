"""The examples in the docstrings of what reads and loads data run, and give what they say."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("module", ["_junctions", "_real_sets", "_spatialdata", "_visium"])
def test_examples(module):
    found = doctest.testmod(import_module(f"pyrosplice.data.{module}"))
    assert found.attempted > 4 and not found.failed
