import pytest
import torch

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis import spatial_kernel as module
from pyrosplice.hypothesis.spatial_kernel import spatial_kernel
from tests.studies.simulation import grid, scattered


def kernels(covariance, monkeypatch, damping):
    """The same kernel from V, from the sparse V⁻¹ made dense, and from the sparse V⁻¹ left sparse."""
    both = [spatial_kernel(covariance.dense(), damping=damping), spatial_kernel(covariance, damping=damping)]
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    return [*both, spatial_kernel(covariance, damping=damping)]


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("layout", [grid(12), scattered(150)])
def test_three_ways_to_the_same_kernel(layout, damping, monkeypatch):
    n = layout.n_spots
    exact = torch.linalg.inv(torch.from_numpy(layout.precision.toarray()) + damping * torch.eye(n, dtype=torch.float64))
    values = torch.linalg.eigvalsh(exact)
    rest = values[:-32]
    skewness = float(((rest - rest.mean()) ** 3).mean() / ((rest - rest.mean()) ** 2).mean() ** 1.5)
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dense, inverted, sparse = kernels(layout, monkeypatch, damping)
    assert dense.matrix is not None and inverted.matrix is not None and sparse.matrix is None
    for kernel in (dense, inverted, sparse):
        assert kernel.n_spots == n
        torch.testing.assert_close(kernel.product(x), x @ exact, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(kernel.diagonal, exact.diagonal(), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(kernel.values, values.flip(0)[:32], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(kernel.vectors * kernel.values, exact @ kernel.vectors, rtol=1e-6, atol=1e-6)
        assert kernel.trace_square == pytest.approx(float(values.square().sum()), rel=1e-4)
        assert kernel.skewness == pytest.approx(skewness, rel=0.05)
    for power, centre in ((2, 0.0), (3, exact.mean())):
        pairs = ((exact - centre) ** power).fill_diagonal_(0.0)
        torch.testing.assert_close(dense.pair_product(x, power), x @ pairs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("layout", [grid(20), scattered(400)])
def test_sparse_powers_are_close_where_it_matters(layout, monkeypatch):
    """Quadratic forms of totals: constant, white noise, and a trend."""
    n, generator = layout.n_spots, torch.Generator().manual_seed(1)
    dense = spatial_kernel(layout)
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    sparse = spatial_kernel(layout)
    constant = torch.ones(n, dtype=torch.float64)
    noise = torch.poisson(2 * constant, generator=generator)
    trend = torch.exp(0.7 * layout.sample(1, generator)[0])
    for power, tolerance in ((2, 0.05), (3, 0.15)):
        for weight in (constant, noise, trend):
            exact = float(weight @ dense.pair_product(weight, power))
            assert float(weight @ sparse.pair_product(weight, power)) == pytest.approx(exact, rel=tolerance)
    exact = float(dense.pair_product(constant, 2).sum())
    assert float(sparse.pair_product(constant, 2).sum()) == pytest.approx(exact, rel=1e-5)


def test_bad_input_is_named():
    good = grid(4).dense()
    with pytest.raises(InvalidArgumentError, match="damping"):
        spatial_kernel(good, damping=-1.0)
    with pytest.raises(InvalidArgumentError, match="square"):
        spatial_kernel(good[:3])
    with pytest.raises(InvalidArgumentError, match="symmetric"):
        spatial_kernel(good + torch.triu(torch.ones(16, 16, dtype=torch.float64), 1))
    with pytest.raises(InvalidArgumentError, match="negative"):
        spatial_kernel(good - 2 * torch.eye(16, dtype=torch.float64))
