"""Effects that coefficients explain are refused, by the names of both."""

import numpy as np
import pytest

from pyrosplice.effects._explained import check_unexplained
from pyrosplice.effects._units import Coefficients
from pyrosplice.errors import InvalidArgumentError
from tests.glmm.arrow.dense_laplace import block

RNG = np.random.default_rng(0)
DONOR = np.repeat(np.arange(6), RNG.integers(5, 30, 6))
Z = RNG.normal(size=len(DONOR))
ONE = np.ones((len(DONOR), 1))


def dummies(levels):
    return (levels[:, None] == np.arange(1, levels.max() + 1)).astype(float)


def known(design, names, *blocks):
    check_unexplained(Coefficients(np.hstack(design), names, names), blocks)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-5, 1.0), (1e5, -3.0), (1.0, 1e4)])
def test_what_coefficients_leave_is_known(scale, shift):
    z = scale * Z[:, None] + shift
    known([ONE, z, dummies(DONOR // 2)], ["1", "z", "a", "b"], block(DONOR, np.hstack([ONE, z])))
    known([ONE, z], ["1", "z"], block(np.where(DONOR < 2, -1, DONOR), ONE), block(DONOR, z))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-5, 1.0), (1e5, -3.0), (1.0, 1e4)])
def test_what_they_explain_is_refused(scale, shift):
    z = scale * Z[:, None] + shift
    pair = DONOR // 3
    with pytest.raises(InvalidArgumentError, match=r"effect \(effect\): .*\['condition'\] explain them all"):
        known([ONE, pair[:, None], z], ["1", "condition", "z"], block(pair, ONE))
    section = dummies(DONOR)
    with pytest.raises(InvalidArgumentError, match=r"\['section'\] explain them all.*Leave the effect out, or"):
        known([ONE, section, z], ["1", *["section"] * 5, "z"], block(DONOR, ONE))
    with pytest.raises(InvalidArgumentError, match=r"effects of 'c1' coefficients leave.*\['z', 'z:pair'\]"):
        first = (pair == 0)[:, None]
        known([ONE, z, z * first], ["1", "z", "z:pair"], block(pair, np.hstack([Z[:, None] ** 2, z])))
