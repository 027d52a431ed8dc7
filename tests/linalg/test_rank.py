import torch

from pyrosplice._linalg.rank import collinear_columns, constant_columns


def test_constant_and_dependent_columns_are_found_whatever_their_unit():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    one = torch.ones_like(a)
    assert collinear_columns(torch.stack([a, 3 * one, b], 1)) == [1]
    assert collinear_columns(torch.stack([a, b, 5 + 1e6 * a - 1e-3 * b, c, c + 2], 1)) == [2, 4]
    assert collinear_columns(torch.stack([1e6 + a, 1e6 + a + 1e-3 * b], 1)) == []
    assert collinear_columns(a.new_zeros(50, 0)) == []


def test_more_columns_than_spots():
    design = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert collinear_columns(design) == [3, 4, 5]  # three spots' worth of contrasts, beside the intercept


def test_distance_from_zero_makes_nothing_constant_or_collinear():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    for far in (1e3, 1e6, 1e9, 1e12):
        assert constant_columns(torch.stack([far + a, torch.full_like(a, far / 3), 0 * a], 1)) == [1, 2]
        assert collinear_columns(torch.stack([far + a, b, far + b + a], 1)) == [2]
        assert collinear_columns(torch.stack([far + b + a, b, far + a], 1)) == [2]
        assert collinear_columns(torch.stack([far + a, far - b], 1)) == []


def test_what_rounding_leaves_of_a_column_is_nothing():
    a = torch.arange(50, dtype=torch.float64)
    coarse = 1e9 + 1e-3 * a  # its own numbers are rounded to a ten-thousandth of its spread
    assert collinear_columns(torch.stack([coarse, a], 1)) == [1]
    assert collinear_columns(torch.stack([a, coarse], 1)) == [1]
    assert collinear_columns(torch.stack([a, a + 1e-6 * torch.sin(a)], 1)) == []
    assert constant_columns(torch.stack([0.1 * 3 + 0 * a, 0.3 + 1e-17 * a], 1)) == [0, 1]
