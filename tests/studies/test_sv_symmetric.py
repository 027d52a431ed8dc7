"""Reduced study of the tests of space under a symmetric random effect."""

import pytest
from scipy.stats import binom

from tests.studies.sv_symmetric import TESTS, pvalues

pytestmark = pytest.mark.slow

N_GENES, LEVEL = 40, 0.2  # a level at which few genes tell much


def test_null_genes_are_rejected_as_often_as_the_level_says():
    """The ratio of most null genes is zero on so few spots, and their p-value one: it is held to the upper bound."""
    found = pvalues(null="over-dispersion", n_isos=4, depth=5, n_genes=N_GENES, n_spots=64, seed=4)
    low, high = binom.ppf([0.0005, 0.9995], N_GENES, LEVEL)
    assert set(found) == set(TESTS)
    for pvalue in found.values():
        assert ((pvalue > 0) & (pvalue <= 1)).all()
        assert (pvalue < LEVEL).sum() <= high
    assert (found["score"] < LEVEL).sum() >= low
