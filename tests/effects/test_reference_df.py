"""Degrees of freedom: which rule gives which."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice.effects._reference_df import degrees_of_freedom
from pyrosplice.errors import InvalidArgumentError

POSITIVE = st.one_of(st.floats(0.01, 1e6), st.just(np.nan), st.just(np.inf))


@given(st.lists(POSITIVE, min_size=1, max_size=5), st.integers(1, 40))
def test_rules(satterthwaite, design):
    curvature = np.array(satterthwaite)
    clipped = degrees_of_freedom(curvature, design)
    assert ((clipped >= 1) & (clipped <= 2 * design)).all()
    inside = (curvature >= 1) & (curvature <= 2 * design)
    np.testing.assert_array_equal(clipped[inside], curvature[inside])
    np.testing.assert_array_equal(clipped[np.isnan(curvature)], design)
    np.testing.assert_array_equal(degrees_of_freedom(curvature, design, "satterthwaite"), curvature)
    np.testing.assert_array_equal(
        degrees_of_freedom(curvature, design, "between-within"), np.full(len(curvature), design)
    )
    assert np.isinf(degrees_of_freedom(curvature, design, "normal")).all()
    assert (degrees_of_freedom(curvature, design, 7.5) == 7.5).all()


def test_one_design_for_many_genes():
    found = degrees_of_freedom(np.array([[1.0, 30.0], [15.0, 12.0]]), [10, 11])
    np.testing.assert_array_equal(found, [[1, 22], [15, 12]])


@pytest.mark.parametrize("df", ["kenward-roger", 0, -1.0, True, None, np.nan])
def test_other_rules_are_refused(df):
    with pytest.raises(InvalidArgumentError, match=r"^df: expected"):
        degrees_of_freedom([3.0], [3.0], df)


@pytest.mark.parametrize("df", ["clip", "between-within"])
def test_no_degree_of_freedom_is_refused_where_it_is_used(df):
    with pytest.raises(InvalidArgumentError, match="not more units than coefficients"):
        degrees_of_freedom([3.0, 4.0], [2.0, 0.0], df)
    assert degrees_of_freedom([3.0, 4.0], [2.0, 0.0], "satterthwaite").tolist() == [3, 4]


def test_shapes_have_to_agree():
    with pytest.raises(InvalidArgumentError, match="between_within: expected one of each"):
        degrees_of_freedom([3.0, 4.0], [2.0, 1.0, 1.0])
