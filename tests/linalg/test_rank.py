import torch

from pyrosplice.linalg.rank import collinear_columns


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
