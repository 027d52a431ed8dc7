import numpy as np
import pytest
import torch
from scipy.stats import chi2

from pyrosplice._hypothesis.likelihood_ratio import (
    chi2_sf,
    likelihood_ratio_test,
    spatial_likelihood_ratio_test,
)
from pyrosplice.errors import InvalidArgumentError


def test_tail_probabilities():
    x = torch.tensor([0.0, 0.3, 5.0, 400.0, 1e5], dtype=torch.float64)
    for dof in (1, 2, 7):
        np.testing.assert_allclose(chi2_sf(x[:4], dof).numpy(), chi2.sf(x[:4].numpy(), dof), rtol=1e-10)
        assert float(chi2_sf(x[4], dof)) > 0
    assert torch.isnan(chi2_sf(torch.tensor(float("nan")), 2))
    assert chi2_sf(torch.tensor([0.0, 1.0]), 0).tolist() == [1.0, 0.0]


def test_regular_ratio():
    statistic, pvalue = likelihood_ratio_test(torch.tensor([-10.0, -5.0]), torch.tensor([-13.0, -5.0]), 2)
    assert statistic.tolist() == [6.0, 0.0]
    np.testing.assert_allclose(pvalue.numpy(), chi2.sf([6.0, 0.0], 2))


def test_boundary_mixture():
    null = torch.zeros(4, dtype=torch.float64)
    full = torch.tensor([0.0, 1.0, 30.0, -1e-9], dtype=torch.float64)
    statistic, pvalue = spatial_likelihood_ratio_test(full, null)
    np.testing.assert_allclose(statistic.numpy(), 2 * full.numpy())
    np.testing.assert_allclose(pvalue.numpy(), [1.0, *(0.5 * chi2.sf([2.0, 60.0], 1)), 1.0])
    _, two = spatial_likelihood_ratio_test(full, null, n_components=2)
    assert float(two[1]) == pytest.approx(0.5 * chi2.sf(2.0, 1) + 0.25 * chi2.sf(2.0, 2))
    with pytest.raises(InvalidArgumentError, match="n_components"):
        spatial_likelihood_ratio_test(full, null, n_components=0)
