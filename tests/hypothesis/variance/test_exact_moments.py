"""Moments under permutation against all permutations."""

from itertools import permutations

import numpy as np
import pytest
import torch

from pyrosplice._hypothesis.variance.exact_moments import GraphSums, permutation_cumulants
from pyrosplice._hypothesis.variance.permutation_law import gamma_sf


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("k", [1, 3])
def test_three_cumulants_against_all_permutations(n, k):
    rng = np.random.default_rng([n, k])
    centring = np.eye(n) - 1 / n
    matrix = centring @ (lambda b: b + b.T)(rng.normal(size=(n, n))) @ centring
    vectors = centring @ rng.gamma(1.0, size=(n, k))
    gram = vectors @ vectors.T
    values = np.array([(matrix * gram[np.ix_(p, p)]).sum() for p in permutations(range(n))])
    scatter = values - values.mean()
    want = [values.mean(), (scatter**2).mean(), (scatter**3).mean()]
    kernel, data = GraphSums.of_matrix(torch.from_numpy(matrix)), GraphSums.of_vectors(torch.from_numpy(vectors))
    found = permutation_cumulants(kernel, data, torch.tensor(float(n), dtype=torch.float64))
    np.testing.assert_allclose([float(x) for x in found], want, rtol=1e-8, atol=1e-9)


def test_sums_of_a_gram_matrix_need_no_gram_matrix():
    vectors = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = vectors - vectors.mean(1, keepdim=True)
    matrix, direct = GraphSums.of_matrix(vectors @ vectors.mT), GraphSums.of_vectors(vectors)
    for name in GraphSums.__dataclass_fields__:
        torch.testing.assert_close(getattr(direct, name), getattr(matrix, name))


@pytest.mark.parametrize("skewness", [-1.5, -0.3, 0.0, 0.3, 2.0])
def test_gamma_tail(skewness):
    """A standardised gamma variable, reflected where the skewness is negative; normal where there is none."""
    rng = np.random.default_rng(0)
    if skewness:
        shape = 4 / skewness**2
        draws = np.sign(skewness) * (rng.gamma(shape, size=400_000) - shape) / np.sqrt(shape)
    else:
        draws = rng.standard_normal(400_000)
    for z in (-1.0, 0.0, 1.0, 2.0):
        found = gamma_sf(torch.tensor([z], dtype=torch.float64), torch.tensor([skewness], dtype=torch.float64))
        assert float(found) == pytest.approx((draws > z).mean(), abs=0.004)
