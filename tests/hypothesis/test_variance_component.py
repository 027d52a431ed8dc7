import numpy as np
import pytest
import torch
from scipy.stats import binom

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis import spatial_kernel as kernel_module
from pyrosplice.hypothesis import variance_component as module
from pyrosplice.hypothesis.chi2_mixture import chi2_mixture_sf
from pyrosplice.hypothesis.spatial_kernel import spatial_kernel
from pyrosplice.hypothesis.variance_component import variance_component_test
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import grid, scattered, simulate_counts

LAYOUT = grid(10)
KERNEL = spatial_kernel(LAYOUT)


@pytest.fixture(scope="module")
def counts():
    return simulate_counts(LAYOUT, n_genes=6, depth=3, sigma=0.7, theta=0.5, seed=1)


@pytest.fixture(scope="module")
def design():
    generator = torch.Generator().manual_seed(0)
    return torch.cat([LAYOUT.sample(1, generator).T, torch.randn(100, 1, generator=generator, dtype=torch.float64)], 1)


def textbook(gene, kernel):
    """The test of one gene without covariates, everything dense: p-value from all eigenvalues."""
    n = gene.sum(1)
    usage = gene.sum(0) / gene.sum()
    residual = gene - n[:, None] * usage
    disagreement = 1 - (usage**2).sum()
    excess = (residual**2).sum() - n.sum() * disagreement
    rho = float((excess / ((n * (n - 1)).sum() * disagreement)).clamp(0, 0.99))
    weight = 1 / (1 + (n - 1).clamp_min(0) * rho)
    a = weight * n
    projection = torch.eye(len(n), dtype=torch.float64) - torch.outer(torch.ones_like(a), a) / a.sum()
    e = projection.T @ (weight[:, None] * residual)
    kernel = projection.T.T @ kernel @ projection.T
    return e, a, kernel


def test_statistic_and_null_law_are_those_of_the_definition(counts):
    exact = torch.linalg.inv(torch.from_numpy(LAYOUT.precision.toarray()) + 0.1 * torch.eye(100, dtype=torch.float64))
    result = variance_component_test(counts, KERNEL)
    for g, gene in enumerate(counts):
        e, a, _ = textbook(gene, exact)
        p = torch.eye(100, dtype=torch.float64) - torch.outer(torch.ones_like(a), a) / a.sum()
        projected = p @ exact @ p.T
        leverage = a / a.sum()
        norm = (e**2).sum(1) / (1 - leverage)
        statistic = (e * (exact @ e)).sum() - (projected.diagonal() * norm).sum()
        mu = torch.linalg.eigvalsh(e.T @ e / (a * (1 - leverage)).sum())[1:]
        matrix = a.sqrt()[:, None] * projected * a.sqrt()
        matrix = matrix - torch.diag(matrix.diagonal())
        spread = (2 * matrix.square().sum() * mu.square().sum()).sqrt()
        assert float(result.statistic[g]) == pytest.approx(float(statistic / spread), rel=1e-9)
        seen = a > 0
        lam = torch.linalg.eigvalsh(matrix[seen][:, seen])
        weights = torch.outer(mu, lam) - (statistic * mu / mu.square().sum() / (seen.sum() - 1))[:, None] * mu[:, None]
        pvalue = chi2_mixture_sf(torch.zeros((), dtype=torch.float64), weights.flatten())
        assert np.log(float(result.pvalue[g])) == pytest.approx(np.log(float(pvalue)), abs=0.05)


def test_moments_of_the_null_law_are_exact(counts, design):
    """Count, trace and trace of squares of the compressed spectrum, covariates included."""
    dense = KERNEL.matrix
    basis = module.orthonormal_columns(design, KERNEL.diagonal)
    totals = counts.sum(-1)
    root = module._inverse_root_gram(totals, basis)
    diagonal, squares = module._pair_moments(KERNEL, totals, basis, root)
    lam, dof = module._spectrum(KERNEL, totals, basis, root, diagonal, squares, torch.ones(6), (totals > 0).sum(-1) - 3)
    for g, a in enumerate(totals):
        x = torch.cat([design, torch.ones(100, 1, dtype=torch.float64)], 1)
        projection = torch.eye(100, dtype=torch.float64) - x @ torch.linalg.solve(x.T @ (a[:, None] * x), x.T * a)
        projected = projection @ dense @ projection.T
        torch.testing.assert_close(diagonal[g], projected.diagonal())
        matrix = a.sqrt()[:, None] * projected * a.sqrt()
        matrix = matrix - torch.diag(matrix.diagonal())
        assert float(squares[g]) == pytest.approx(float(matrix.square().sum()), rel=1e-9)
        assert float((dof[g] * lam[g]).sum()) == pytest.approx(0.0, abs=1e-9)
        assert float((dof[g] * lam[g] ** 2).sum()) == pytest.approx(float(squares[g]), rel=1e-9)
        assert float(dof[g].sum()) == int((a > 0).sum()) - 3


def test_variance_ratio_of_unlike_spots(counts):
    """Covariances that differ between spots, against the double sum over pairs."""
    usage = torch.softmax(LAYOUT.sample(9, torch.Generator().manual_seed(1)).reshape(3, 3, 100).mT, -1)
    size = counts[:3].sum(-1)
    ratio = module._variance_ratio(KERNEL, size, usage)
    pairs = KERNEL.matrix.square().clone().fill_diagonal_(0.0)
    for g in range(3):
        each = torch.diag_embed(usage[g]) - usage[g].unsqueeze(-1) * usage[g].unsqueeze(-2)
        each = (size[g, :, None, None] * each).flatten(1)
        alike = size[g, :, None] * each.sum(0) / size[g].sum()
        expected = ((each @ each.T) * pairs).sum() / ((alike @ alike.T) * pairs).sum()
        assert float(ratio[g]) == pytest.approx(float(expected), rel=1e-10)
        assert float(ratio[g]) > 1.01


def test_third_cumulant_of_rare_isoforms():
    """Of T with known usage, by the formula and by simulation, multinomial and Dirichlet-multinomial."""
    rng = np.random.default_rng(5)
    totals = rng.integers(1, 3, 100).astype(float)
    pairs = KERNEL.matrix.numpy() - KERNEL.matrix.numpy().mean()
    np.fill_diagonal(pairs, 0.0)
    usage, shape = np.array([0.97, 0.02, 0.01]), (30_000, 100)
    for rho in (0.0, 0.3):
        p = rng.dirichlet(usage * (1 - rho) / rho, shape) if rho else usage
        weight = 1 / (1 + (totals - 1) * rho)
        residual = weight[:, None] * (
            rng.multinomial(np.broadcast_to(totals.astype(int), shape), p) - totals[:, None] * usage
        )
        statistic = np.einsum("gik,ij,gjk->g", residual, pairs, residual, optimize=True)
        size = torch.from_numpy(weight * totals)[None]
        mu = np.linalg.eigvalsh(np.diag(usage) - np.outer(usage, usage))[1:]
        extra = module._skewness_of_counts(
            KERNEL, size, torch.from_numpy(weight)[None], torch.tensor([rho]), torch.from_numpy(usage)[None, None],
            torch.from_numpy(mu)[None],
        )  # fmt: skip
        root = np.sqrt(weight * totals)
        normal = (np.linalg.eigvalsh(root[:, None] * pairs * root) ** 3).sum()
        expected = 8 * (mu**3).sum() * (normal + float(extra))
        cubes = (statistic - statistic.mean()) ** 3
        assert float(extra) > 0.5 * normal
        assert abs(cubes.mean() - expected) < 4 * cubes.std() / np.sqrt(len(cubes))


def test_order_of_isoforms_genes_and_spots(counts, design):
    reference = variance_component_test(counts, KERNEL, design=design).pvalue
    for order in ([2, 0, 1], [1, 2, 0]):
        moved = variance_component_test(counts[..., order], KERNEL, design=design).pvalue
        assert (moved - reference).abs().max() < 1e-8
    moved = variance_component_test(counts.flip(0), KERNEL, design=design).pvalue
    assert (moved.flip(0) - reference).abs().max() < 1e-8
    spots = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    kernel = spatial_kernel(CarCovariance(LAYOUT.adjacency[spots.numpy()][:, spots.numpy()]))
    moved = variance_component_test(counts[:, spots], kernel, design=design[spots]).pvalue
    assert (moved - reference).abs().max() < 1e-8


def test_shift_unit_and_coding_of_covariates(counts, design):
    reference = variance_component_test(counts, KERNEL, design=design).pvalue
    mixed = design @ torch.tensor([[1e3, 1.0], [0.0, -2.0]], dtype=torch.float64) + torch.tensor([5.0, -7.0])
    mixed = torch.cat([mixed, mixed[:, :1], torch.ones(100, 1, dtype=torch.float64)], 1)  # collinear, constant
    assert (variance_component_test(counts, KERNEL, design=mixed).pvalue - reference).abs().max() < 1e-8


def test_spots_without_counts_change_nothing(counts):
    """The same data on a larger tissue whose further spots are empty."""
    larger = scattered(180, seed=2).dense()
    larger[:100, :100] = LAYOUT.dense()
    larger[:100, 100:] = larger[100:, :100] = 0.0
    padded = torch.cat([counts, torch.zeros(6, 80, 3, dtype=torch.float64)], 1)
    reference = variance_component_test(counts, KERNEL)
    result = variance_component_test(padded, spatial_kernel(larger))
    torch.testing.assert_close(result.statistic, reference.statistic, rtol=1e-10, atol=1e-10)
    assert (result.pvalue.log() - reference.pvalue.log()).abs().max() < 0.05  # more eigenvectors are shared out


def test_a_gene_does_not_notice_the_others(counts, monkeypatch):
    together = variance_component_test(counts, KERNEL).pvalue
    monkeypatch.setattr(module, "_BLOCK", 1)
    torch.testing.assert_close(variance_component_test(counts, KERNEL).pvalue, together, rtol=1e-9, atol=0)


def test_nothing_to_test_is_nan_and_alone(counts):
    odd = counts.clone()
    odd[0] = 0.0
    odd[1, :, 1:] = 0.0  # one isoform seen
    odd[2] = 0.0
    odd[2, 5] = torch.tensor([3.0, 1.0, 0.0])  # one spot
    odd[3, :, 2] = 0.0  # one isoform never seen: two remain
    result = variance_component_test(odd, KERNEL)
    assert torch.isnan(result.pvalue[:3]).all() and torch.isfinite(result.pvalue[3:]).all()
    torch.testing.assert_close(result.pvalue[4:], variance_component_test(counts[4:], KERNEL).pvalue)
    two = variance_component_test(odd[3:4, :, :2], KERNEL)
    assert float(two.pvalue) == pytest.approx(float(result.pvalue[3]), rel=1e-8)


def test_sparse_and_dense_kernels_agree(monkeypatch):
    layout = scattered(500)
    counts = simulate_counts(layout, n_genes=20, depth=4, sigma=0.5, theta=0.7, seed=5)
    dense = variance_component_test(counts, spatial_kernel(layout)).pvalue
    monkeypatch.setattr(kernel_module, "DENSE_LIMIT", 0)
    sparse = variance_component_test(counts, spatial_kernel(layout)).pvalue
    assert (sparse.log() - dense.log()).abs().max() < 0.1


def test_overdispersion_is_measured():
    counts = simulate_counts(grid(20), n_genes=40, depth=10, sigma=0.7, theta=0.0, seed=6)
    flat = simulate_counts(grid(20), n_genes=40, depth=10, sigma=0.0, theta=0.0, seed=6)
    kernel = spatial_kernel(grid(20))
    eta = 0.7 * torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    usage = torch.softmax(torch.cat([eta, torch.zeros(200_000, 1, dtype=torch.float64)], 1), 1)
    truth = float(usage.var(0).sum() / (1 - usage.mean(0).square().sum()))
    assert float(variance_component_test(counts, kernel).overdispersion.mean()) == pytest.approx(truth, rel=0.1)
    assert float(variance_component_test(flat, kernel).overdispersion.mean()) < 0.01


def test_shapes_are_checked(counts):
    with pytest.raises(InvalidArgumentError, match="counts: expected shape"):
        variance_component_test(counts[:, :50], KERNEL)
    with pytest.raises(InvalidArgumentError, match="design: expected shape"):
        variance_component_test(counts, KERNEL, design=torch.zeros(50, 1))


def smooth_field(layout):
    field = layout.sample(1, torch.Generator().manual_seed(7))[0].numpy()
    return (field - field.mean()) / field.std()


@pytest.mark.parametrize("null", ["no effect", "over-dispersion", "spatial totals", "smooth covariate", "rare isoform"])
@pytest.mark.parametrize("depth", [1, 5])
def test_size(null, depth):
    """Rejections of 2,000 true nulls inside the exact binomial 99.9 % interval (ten cells, three levels)."""
    layout = grid(16)
    field = smooth_field(layout)
    factor = np.exp(0.7 * field) if null == "spatial totals" else 1.0
    effect = np.stack([0.8 * field, -0.4 * field], 1) if null == "smooth covariate" else None
    design = torch.from_numpy(field)[:, None] if null == "smooth covariate" else None
    rare = {"n_isos": 2, "bias": np.log([30.0])} if null == "rare isoform" else {}
    counts = simulate_counts(
        layout, n_genes=2000, depth=depth * factor, sigma=0.0 if null == "no effect" else 0.7, theta=0.0,
        seed=10 + depth, effect=effect, **rare,
    )  # fmt: skip
    pvalue = variance_component_test(counts, spatial_kernel(layout), design=design).pvalue
    for level in (0.05, 0.01, 0.001):
        low, high = binom.ppf([0.0005, 0.9995], 2000, level)
        assert low <= int((pvalue < level).sum()) <= high


def test_power_where_the_plan_asks_for_it():
    """At σ = θ = .7 and 5 counts a spot, HSIC-IR finds 90 % and the sketch 92 % of the genes."""
    layout = grid(16)
    counts = simulate_counts(layout, n_genes=300, depth=5, sigma=0.7, theta=0.7, seed=1)
    assert float((variance_component_test(counts, spatial_kernel(layout)).pvalue < 0.05).double().mean()) > 0.93
