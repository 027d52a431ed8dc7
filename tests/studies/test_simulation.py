"""Patterns and counts that the studies of space draw."""

import numpy as np
import pytest

from tests.studies.simulation import shapes
from tests.studies.sv_shapes import COVERED, SHAPES, nulls, simulate


@pytest.mark.parametrize("shape", ["domains", "gradient", "hot-spot", "stripes", "ring", "field"])
def test_patterns_have_one_size_and_a_place_each(shape):
    found = shapes(shape, 12, 20, seed=0)
    assert found.shape == (20, 144, 2)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(np.square(found).mean((1, 2)), 1)
    assert len(np.unique(found.round(9), axis=0)) == 20
    np.testing.assert_array_equal(found, shapes(shape, 12, 20, seed=0))


def test_spots_are_covered_as_the_cell_says():
    cell = COVERED[0]
    totals = simulate(cell, 5, seed=0).sum(-1)
    assert ((totals > 0).sum(1) == cell.covered).all()
    assert set(totals.flatten().tolist()) == {0, cell.depth}
    assert abs(float(simulate(SHAPES[0], 20, seed=0).sum(-1).mean()) - SHAPES[0].depth) < 0.1
    assert all(cell.effect == 0 for cell in nulls(SHAPES)) and len(nulls(SHAPES)) == 1
