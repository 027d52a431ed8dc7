import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import chi2

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.likelihood_ratio import (
    chi2_sf,
    chi_bar_weights,
    likelihood_ratio_test,
    spatial_likelihood_ratio_test,
)


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
    with pytest.raises(InvalidArgumentError, match="mixing"):
        spatial_likelihood_ratio_test(full, null, n_components=2, mixing=torch.ones(2) / 2)
    with pytest.raises(InvalidArgumentError, match="n_components"):
        spatial_likelihood_ratio_test(full, null, n_components=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chi_bar_weights_are_those_of_projected_normals(k):
    rng = np.random.default_rng(k)
    factor = rng.standard_normal((k, k + 2))
    information = factor @ factor.T
    root, spread = np.linalg.cholesky(information).T, np.linalg.cholesky(np.linalg.inv(information))
    n, counts = 20_000, np.zeros(k + 1)
    for _ in range(n):
        projected, _ = nnls(root, root @ (spread @ rng.standard_normal(k)))
        counts[(projected > 1e-12).sum()] += 1
    weights = chi_bar_weights(torch.from_numpy(information)).numpy()
    assert weights.sum() == pytest.approx(1.0)
    assert np.abs(counts / n - weights).max() < 4 * 0.5 / np.sqrt(n)


def test_chi_bar_weights_of_independent_estimates_are_binomial():
    weights = chi_bar_weights(torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    np.testing.assert_allclose(weights.numpy(), [1 / 8, 3 / 8, 3 / 8, 1 / 8], rtol=1e-6)
    with pytest.raises(InvalidArgumentError, match="found 4"):
        chi_bar_weights(torch.eye(4))
