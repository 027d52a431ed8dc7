import pytest
import torch

from pyrosplice._hypothesis.variance import spatial_kernel as module
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import grid, scattered


def kernels(covariance, monkeypatch, damping):
    """The same kernel from V, from the sparse V⁻¹ made dense, and from the sparse V⁻¹ left sparse."""
    both = [spatial_kernel(covariance.dense(), damping=damping), spatial_kernel(covariance, damping=damping)]
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    return [*both, spatial_kernel(covariance, damping=damping)]


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("layout", [grid(12), scattered(150)])
def test_three_ways_to_the_same_kernel(layout, damping, monkeypatch):
    """Exact but for products of the sparse kernel: to 1e-3 (quadratic forms 2e-5) of its largest eigenvalue."""
    n = layout.n_spots
    exact = torch.linalg.inv(torch.from_numpy(layout.precision.toarray()) + damping * torch.eye(n, dtype=torch.float64))
    values = torch.linalg.eigvalsh(exact)
    rest = values[:-32]
    skewness = float(((rest - rest.mean()) ** 3).mean() / ((rest - rest.mean()) ** 2).mean() ** 1.5)
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kernel in kernels(layout, monkeypatch, damping):
        sparse = isinstance(kernel, module.SparseKernel)
        assert kernel.n_spots == n
        error = float(values[-1]) * float(x.norm(dim=1).max())
        assert float((kernel.product(x) - x @ exact).abs().max()) < (1e-3 if sparse else 1e-10) * error
        form = (x * (x @ exact)).sum(-1)
        assert float((kernel.quadratic(x) - form).abs().max()) < (2e-5 if sparse else 1e-10) * error * error
        torch.testing.assert_close(kernel.diagonal, exact.diagonal(), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(kernel.values, values.flip(0)[:32], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(kernel.vectors * kernel.values, exact @ kernel.vectors, rtol=1e-6, atol=1e-6)
        assert kernel.trace_square == pytest.approx(float(values.square().sum()), rel=1e-4)
        assert kernel.skewness == pytest.approx(skewness, rel=0.05)
        spots, covered = torch.tensor([[3, 17, 40], [0, 1, 2]]), torch.tensor([[True, True, False], [True] * 3])
        if not sparse:
            known = layout.dense()[spots.unsqueeze(-1), spots.unsqueeze(-2)]
            pair = torch.linalg.inv(known[0, :2, :2].inverse() + damping * torch.eye(2))
            three = torch.linalg.inv(known[1].inverse() + damping * torch.eye(3))
            found = kernel.between(spots, covered)
            torch.testing.assert_close(found[0, :2, :2], pair)
            torch.testing.assert_close(found[1], three)


@pytest.mark.parametrize("layout", [grid(20), scattered(400)])
def test_sums_over_pairs(layout, monkeypatch):
    """Constant, noisy and smooth sizes: exact from the matrix, close to it from near entries of the sparse kernel."""
    n, generator = layout.n_spots, torch.Generator().manual_seed(1)
    constant = torch.ones(n, dtype=torch.float64)
    sizes = torch.stack(
        [constant, torch.poisson(2 * constant, generator=generator), torch.exp(0.7 * layout.sample(1, generator)[0])]
    )
    dense = spatial_kernel(layout)
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    sparse = spatial_kernel(layout)
    matrix = dense.matrix.clone().fill_diagonal_(0.0)
    centered = (dense.matrix - dense.matrix.mean()).fill_diagonal_(0.0)
    exact, near = dense.pair_sums(sizes), sparse.pair_sums(sizes)
    torch.testing.assert_close(exact.rows, sizes * (sizes @ matrix.square()))
    torch.testing.assert_close(exact.cubes, torch.einsum("bi,ij,bj->b", sizes**1.5, centered**3, sizes**1.5))
    assert float((near.rows.sum(-1) / exact.rows.sum(-1) - 1).abs().max()) < 0.03
    assert float((near.cubes / torch.einsum("bi,ij,bj->b", sizes**1.5, matrix**3, sizes**1.5) - 1).abs().max()) < 0.05
    assert sparse.pair_trace_cube == pytest.approx(float((matrix @ matrix @ matrix).trace()), rel=0.25)
    entries = sparse.between(torch.arange(n)[None], torch.ones(1, n, dtype=torch.bool))[0]
    torch.testing.assert_close(entries.diagonal(), dense.diagonal, rtol=1e-8, atol=1e-8)
    assert float((entries - dense.matrix).square().sum() / matrix.square().sum()) < 0.05


@pytest.mark.slow
def test_an_ill_conditioned_precision_takes_a_factor(monkeypatch):
    """Where the polynomial would need thousands of products."""
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    layout = CarCovariance(grid(12).adjacency, rho=0.999999)
    kernel = spatial_kernel(layout, damping=0.0)
    exact = torch.linalg.inv(torch.from_numpy(layout.precision.toarray()))
    x = torch.randn(2, 144, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(kernel.product(x), x @ exact, rtol=1e-4, atol=1e-4)


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
