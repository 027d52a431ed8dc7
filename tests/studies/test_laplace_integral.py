"""Laplace's integral of the study against sums over a fine grid, where there are two spots."""

import numpy as np
import pytest
import torch

from tests.studies.laplace_integral import laplace_integral

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_integrals_are_those_of_a_grid_up_to_a_constant(correlation):
    counts = torch.tensor([[[30.0, 10.0], [14.0, 26.0]], [[20.0, 20.0], [22.0, 18.0]]], dtype=torch.float64)
    fixed, found, brute = torch.ones(2, 1, dtype=torch.float64), [], []
    b, eta = np.linspace(-12, 12, 401), np.linspace(-6, 6, 241)
    first, second = np.meshgrid(eta, eta, indexing="ij")
    for scale in (0.1, 0.4, 1.5):
        covariance = scale * np.array([[1.0, correlation], [correlation, 1.0]])
        found.append(laplace_integral(counts, torch.from_numpy(covariance).expand(2, 2, 2), fixed))
        inverse, density = np.linalg.inv(covariance), 0.0
        for middle in b:
            apart = np.stack([first - middle, second - middle], -1)
            density = density + np.exp(-0.5 * np.einsum("ijk,kl,ijl->ij", apart, inverse, apart))
        density = density / np.sqrt(np.linalg.det(covariance))
        each = []
        for table in counts.numpy():
            likelihood = sum(
                y * at - (y + z) * np.logaddexp(0, at) for (y, z), at in zip(table, (first, second), strict=True)
            )
            each.append(np.log((np.exp(likelihood - likelihood.max()) * density).sum()) + likelihood.max())
        brute.append(torch.tensor(each))
    found, brute = torch.stack(found), torch.stack(brute)
    torch.testing.assert_close(found - found[:1], brute - brute[:1], rtol=0, atol=0.03)
