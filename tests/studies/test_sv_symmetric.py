"""Reduced study of the tests of space under a symmetric random effect."""

import pytest
from scipy.stats import binom

from tests.studies.sv_symmetric import TESTS, pvalues

LEVEL = 0.2  # at which few genes tell much


@pytest.mark.parametrize("n_isos", [3, 4])
def test_null_genes_are_rejected_as_often_as_the_level_says(n_isos):
    found = pvalues(null="over-dispersion", n_isos=n_isos, depth=5, n_genes=48, n_spots=49, seed=n_isos)
    low, high = binom.ppf([0.0005, 0.9995], 48, LEVEL)
    assert set(found) == set(TESTS)
    for test, pvalue in found.items():
        assert ((pvalue > 0) & (pvalue <= 1)).all()
        assert low <= (pvalue < LEVEL).sum() <= high, test
