"""The examples in the docstrings run, and give what they say."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("module", ["guides", "guides._newton_map", "guides._marginal_laplace"])
def test_examples(module):
    found = doctest.testmod(import_module(f"pyrosplice.{module}"))
    assert found.attempted > 5 and not found.failed
