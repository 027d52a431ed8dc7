"""Rising factorials against their products, which whole numbers make exact, and their own derivatives."""

from collections.abc import Callable
from fractions import Fraction
from math import factorial, log1p

import numpy as np
import pytest
import torch

from pyrosplice.likelihoods._rising import LARGE, log_rising, rising_bend, rising_slope, rising_twist

ALPHAS = (1e-9, 0.1, 3.0, LARGE - 0.5, LARGE + 0.5, 1e5, 1e8, 1e15)
COUNTS = (0, 1, 2, 7, 60)


def rate(alpha: float, count: int, order: int) -> float:
    """``(−1)^(n−1) (n−1)! Σ_j (α + j)^−n``, in whole numbers."""
    total = sum((1 / (Fraction(alpha) + j) ** order for j in range(count)), Fraction(0))
    return float((-1) ** (order - 1) * factorial(order - 1) * total)


@pytest.mark.parametrize(
    ("function", "order", "accuracy"),
    [(rising_slope, 1, 1e-11), (rising_bend, 2, 1e-9), (rising_twist, 3, 1e-11)],  # torch's trigamma
)
def test_derivatives_are_sums_of_powers(function: Callable, order: int, accuracy: float) -> None:
    alpha, y = torch.tensor(ALPHAS, dtype=torch.float64)[:, None], torch.tensor(COUNTS, dtype=torch.float64)
    expected = np.array([[rate(a, count, order) for count in COUNTS] for a in ALPHAS])
    found = function(alpha, y).numpy()
    np.testing.assert_allclose(found, expected, rtol=accuracy)
    np.testing.assert_allclose(found[4:], expected[4:], rtol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_is_the_log_of_a_product(alpha: float) -> None:
    for count in COUNTS:
        expected = count * np.log(alpha) + sum(log1p(j / alpha) for j in range(count))
        found = log_rising(torch.tensor(alpha, dtype=torch.float64), torch.tensor(float(count), dtype=torch.float64))
        assert float(found) == pytest.approx(expected, rel=1e-13, abs=2e-12)


def test_autograd_agrees_with_the_closed_forms() -> None:
    alpha = torch.tensor([0.3, 5.0, 2000.0, 1e9], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([4.0, 2.5, 9.0, 3.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(log_rising(alpha, y).sum(), alpha, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), alpha, create_graph=True)
    (twist,) = torch.autograd.grad(bend.sum(), alpha)
    torch.testing.assert_close(slope, rising_slope(alpha, y), rtol=1e-9, atol=0)
    torch.testing.assert_close(bend, rising_bend(alpha, y), rtol=1e-6, atol=0)
    torch.testing.assert_close(twist, rising_twist(alpha, y), rtol=1e-6, atol=0)
