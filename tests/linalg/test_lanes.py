"""Vectors of eight in compiled kernels do what numpy does."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice._linalg import lanes
from pyrosplice._linalg.lanes import LANES


@numba.njit
def every_function(table, number, out):  # the functions one after the other, each to a vector of its own
    x, y, z = lanes.load(table, 0), lanes.load(table, 1), lanes.load(table, 2)
    lanes.put(out, 0, lanes.plus_product(x, y, z))
    lanes.put(out, 1, lanes.minus_product(x, y, z))
    lanes.put(out, 2, lanes.quotient(x, y))
    lanes.put(out, 3, lanes.root(z))
    lanes.put(out, 4, lanes.minus(x))
    lanes.put(out, 5, lanes.same(number))


@pytest.mark.parametrize("offset", range(3), ids=["aligned", "off by one", "off by two"])
@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(allow_subnormal=False), min_size=25, max_size=25))
def test_functions_are_those_of_numbers(offset, numbers):
    """Of any numbers, infinite and missing ones too, wherever they are in memory."""
    table = lanes.zeros(4).ravel()[offset : offset + 3 * LANES].reshape(3, LANES)
    table[:] = np.reshape(numbers[:24], (3, LANES))
    out = np.empty((6, LANES))
    every_function(table, numbers[24], out)
    with np.errstate(all="ignore"):
        _check(out, table, numbers[24])


def _check(out, table, number):
    x, y, z = table
    assert np.array_equal(out[2:4], [x / y, np.sqrt(z)], equal_nan=True)
    assert np.array_equal(out[4:], [-x, np.full(LANES, number)], equal_nan=True)
    usual = (np.abs(table) < 1e100).all(0)  # fused where the machine can: what is rounded differs
    for found, expected in zip(out[:2], (x + y * z, x - y * z), strict=True):
        size = 1e-12 * (np.abs(x) + np.abs(y * z))
        assert (np.abs(found - expected) <= size)[usual].all()


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 2), (5, 2, 2), (2, 0)])
def test_zeros_are_aligned(shape):
    found = lanes.zeros(*shape)
    assert found.shape == (*shape, LANES) and found.flags.c_contiguous and not found.any()
    assert found.ctypes.data % lanes.ALIGNMENT == 0 or not found.size


@pytest.mark.parametrize("table", [np.zeros((2, 16))[:, ::2], np.zeros((3, LANES), np.float32)], ids=["gaps", "single"])
def test_other_arrays_have_no_vectors(table):
    with pytest.raises(numba.TypingError, match="load"):
        every_function(table, 0.0, table)
