"""Amounts of memory: any positive number however it is written, and nothing else."""

import math

import numpy as np
import pytest

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.posterior._memory import as_bytes

UNITS = {"": 1, " b": 1, "k": 1e3, " KB": 1e3, "MiB": 1e6, " gb": 1e9, "T": 1e12}


@pytest.mark.parametrize("number", [7, 0.5, 1e16, 1e-5, 2.5e9, 1e300, np.float64(4e9), np.int64(3), np.float32(1e20)])
def test_numbers_are_read_as_python_writes_them(number):
    assert as_bytes(number) == pytest.approx(float(str(number)), rel=1e-7)
    for unit, factor in UNITS.items():
        assert as_bytes(f"{number}{unit}") == pytest.approx(float(str(number)) * factor, rel=1e-7)


def test_written_forms():
    assert [as_bytes(text) for text in ("4.", ".5", "1e3", "1E+3 kb", math.inf)] == [4, 0.5, 1e3, 1e6, math.inf]


@pytest.mark.parametrize(
    "given",
    [
        *["1.2.3", "..", ".", "", " ", "e3", "1e", "1e+", "4,5 GB", "-1", "+-1", "0", "0e5", "nan", "4 xb", "4 GB 2"],
        *[0, -1, float("nan"), -math.inf, True, False, b"4GB", [1], {}, object()],
    ],
)
def test_all_else_is_refused_by_name(given):
    with pytest.raises(InvalidArgumentError, match="max_memory"):
        as_bytes(given)
