import numpy as np

from pyrosplice._hypothesis.fdr import adjust_pvalues


def test_by_hand_and_per_column():
    p = np.array([[0.01, 0.5], [0.02, 0.5], [0.03, 0.5], [0.5, 0.5]])
    expected = np.array([[0.04, 0.5], [0.04, 0.5], [0.04, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(adjust_pvalues(p), expected)
    np.testing.assert_allclose(adjust_pvalues(p[:, 0]), expected[:, 0])


def test_untested_genes_do_not_count():
    p = np.array([0.01, np.nan, 0.04, np.nan])
    np.testing.assert_allclose(adjust_pvalues(p), [0.02, np.nan, 0.04, np.nan])
    assert np.isnan(adjust_pvalues(np.full(3, np.nan))).all()
    assert np.isnan(p[1]) and p[0] == 0.01  # the input stays as it was
