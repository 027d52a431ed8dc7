import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from pyrosplice._hypothesis.variance import permutation_law as laws
from pyrosplice._hypothesis.variance import score_test as module
from pyrosplice._hypothesis.variance import spatial_kernel as kernel_module
from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import grid, scattered, simulate_counts

LAYOUT = grid(10)
KERNEL = spatial_kernel(LAYOUT)
EVERY = replace(KERNEL, spatial=None)  # damps spots without counts too


@pytest.fixture(scope="module")
def counts():
    return simulate_counts(LAYOUT, n_genes=6, depth=3, sigma=0.7, theta=0.5, seed=1)


@pytest.fixture(scope="module")
def design():
    generator = torch.Generator().manual_seed(0)
    return torch.cat([LAYOUT.sample(1, generator).T, torch.randn(100, 1, generator=generator, dtype=torch.float64)], 1)


def textbook(gene, kernel):
    """Statistic of one gene without covariates, everything dense: u, M and T on the covered spots."""
    n = gene.sum(1)
    usage = gene.sum(0) / gene.sum()
    residual = gene - n[:, None] * usage
    disagreement = 1 - (usage**2).sum()
    excess = (residual**2).sum() - n.sum() * disagreement
    rho = float((excess / ((n * (n - 1)).sum() * disagreement)).clamp(0, 0.99))
    weight = 1 / (1 + (n - 1).clamp_min(0) * rho)
    a = weight * n
    leverage = a / a.sum()
    e = weight[:, None] * residual
    e = e - leverage[:, None] * e.sum(0)
    p = torch.eye(len(n), dtype=torch.float64) - leverage.expand(len(n), -1)
    projected = p @ kernel @ p.T
    pairs = kernel - torch.diag(projected.diagonal() / (1 - leverage))
    matrix = a.sqrt()[:, None] * (p @ pairs @ p.T) * a.sqrt()
    seen = a > 0
    return (e / a.sqrt()[:, None])[seen], matrix[seen][:, seen], (e * (pairs @ e)).sum()


def permuted_statistics(u, matrix, n_draws, seed=0):
    """T of residuals that are centred, at their total square, and permuted over the spots."""
    centered = u - u.mean(0)
    centered = centered * (u.square().sum() / centered.square().sum()).sqrt()
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(u), generator=generator) for _ in range(n_draws)])
    moved = centered[orders]
    return (moved * (matrix @ moved)).sum((-2, -1))


@pytest.mark.slow
def test_statistic_and_null_law_are_those_of_the_definition(counts):
    """Mean and spread against 20,000 permutations, three standard errors; the tail at three levels."""
    result = variance_component_test(counts, KERNEL)
    for g, gene in enumerate(counts[:4]):
        seen, exact = gene.sum(1) > 0, torch.zeros(100, 100, dtype=torch.float64)
        inverse = torch.linalg.inv(LAYOUT.dense()[seen][:, seen])
        exact[torch.outer(seen, seen)] = torch.linalg.inv(inverse + 0.1 * torch.eye(len(inverse))).flatten()
        u, matrix, statistic = textbook(gene, exact)
        assert float(matrix.trace()) == pytest.approx(0.0, abs=1e-10)
        draws = permuted_statistics(u, matrix, 20_000)
        z = (statistic - draws.mean()) / draws.std()
        assert float(result.statistic[g]) == pytest.approx(float(z), abs=0.03 * max(1.0, abs(float(z))))
        share = float((draws >= statistic).double().mean())
        if share > 0.002:
            assert float(result.pvalue[g]) == pytest.approx(share, abs=0.004 + 0.1 * share)


def residuals_of(counts, kernel, design=None):
    return module.standardized_residuals(counts, module.orthonormal_columns(design, kernel.diagonal))[0]


@pytest.mark.parametrize("covered", [5, 8, 20, 60, 100])
@pytest.mark.parametrize("covariates", [0, 2])
def test_moments_of_the_null_law_are_exact(covered, covariates, design, monkeypatch):
    """M's trace is zero; entries and products give the same moments, whatever coverage, totals and covariates."""
    rng = np.random.default_rng(covered)
    counts = np.zeros((4, 100, 3))
    for gene in counts:
        gene[rng.permutation(100)[:covered]] = rng.multinomial(rng.integers(1, 9, covered), [0.5, 0.3, 0.2])
    residuals = residuals_of(torch.from_numpy(counts), KERNEL, design if covariates else None)
    found = {}

    def note(statistic, kernel, data, residuals):
        found[len(found)] = statistic, kernel
        return statistic, statistic

    monkeypatch.setattr(laws, "_gamma_tail", note)
    monkeypatch.setattr(laws, "ENUMERATED", 0)
    laws.exact_law(residuals, EVERY)
    laws.product_law(residuals, EVERY)
    (statistic, exact), (again, products) = found.values()
    torch.testing.assert_close(again, statistic, rtol=1e-9, atol=1e-9)
    for name in ("trace", "diagonal2", "diagonal3", "square", "barbell"):
        scale = exact.square ** (0.5 if name == "trace" else 1.5 if name in ("diagonal3", "barbell") else 1)
        assert float(((getattr(products, name) - getattr(exact, name)) / scale).abs().max()) < 1e-9
    # the trace that is left is what centring takes out of M, whose own is zero
    assert float((exact.trace / exact.square.sqrt()).abs().max()) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("covered", range(3, 8))
def test_few_covered_spots_are_compared_with_all_permutations(covered):
    """p is a share of the permutations, so that under the null it is never too small too often."""
    rng = np.random.default_rng(covered)
    counts = np.zeros((300, 100, 2))
    for gene in counts:
        gene[rng.permutation(100)[:covered]] = rng.multinomial(6, [0.6, 0.4], size=covered)
    pvalue = variance_component_test(torch.from_numpy(counts), KERNEL).pvalue
    tested = pvalue[~torch.isnan(pvalue)]
    shares = tested * math.factorial(covered)
    torch.testing.assert_close(shares, shares.round(), rtol=0, atol=1e-6)
    for level in (0.05, 0.2, 0.5):
        assert float((tested <= level).double().mean()) <= level + 3 * (level * (1 - level) / len(tested)) ** 0.5


@pytest.mark.parametrize(
    ("covered", "molecules", "spread"), [(10, 5, 0), (20, 5, 0), (34, 5, 0), (60, 1, 0), (256, 0, 0), (256, 0, 1.5)]
)
def test_size_at_any_coverage(covered, molecules, spread):
    """Rejections of 1,500 true nulls not above the exact binomial 99.9 % limit, and not far below the level."""
    rng = np.random.default_rng([covered, molecules])
    totals = np.zeros((1500, 256), int)
    if molecules:
        places = rng.permuted(np.broadcast_to(np.arange(256), totals.shape), axis=1)[:, :covered]
        np.put_along_axis(totals, places, molecules, 1)
    else:
        depth = np.exp(spread * rng.standard_normal(totals.shape))
        totals = rng.multinomial(80, depth / depth.sum(1, keepdims=True))
    counts = torch.from_numpy(rng.multinomial(totals, [0.4, 0.3, 0.2, 0.1]).astype(float))
    pvalue = variance_component_test(counts, spatial_kernel(grid(16))).pvalue
    for level in (0.05, 0.01, 0.001):
        assert int((pvalue < level).sum()) <= binom.ppf(0.9995, 1500, level)
    assert float((pvalue < 0.05).double().mean()) > 0.03


def test_power_where_few_spots_are_covered():
    """40 spots with 5 counts of a field of sd 1.2, of which the sketch of this law found half at 5 %."""
    layout = grid(24)
    counts = simulate_counts(layout, n_genes=300, depth=200, sigma=1.2, theta=1.0, seed=3)
    rng = np.random.default_rng(4)
    thin = torch.zeros_like(counts)
    for g, gene in enumerate(counts):
        some = rng.permutation(576)[:40]
        share = gene[some] / gene[some].sum(-1, keepdim=True)
        thin[g, some] = torch.from_numpy(rng.multinomial(5, share.numpy()).astype(float))
    assert float((variance_component_test(thin, spatial_kernel(layout)).pvalue < 0.05).double().mean()) > 0.4


@pytest.mark.parametrize("spread", [0.0, 1.0, 1.5])
def test_third_cumulant_from_products(spread):
    """Tail at three standard deviations within 7 % of that by entries, where more than 500 spots are covered."""
    layout = replace(spatial_kernel(grid(24)), spatial=None)
    rng = np.random.default_rng(7)
    totals = rng.poisson(3 * np.exp(spread * rng.standard_normal((6, 576))))
    counts = torch.from_numpy(rng.multinomial(totals, [0.5, 0.3, 0.2]).astype(float))
    residuals = residuals_of(counts, layout)
    by_entries, by_products = laws.exact_law(residuals, layout), laws.product_law(residuals, layout)
    torch.testing.assert_close(by_products[0], by_entries[0], rtol=1e-8, atol=1e-8)
    assert float((by_products[1].log() - by_entries[1].log()).abs().max()) < 0.07


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
    torch.testing.assert_close(result.pvalue, reference.pvalue, rtol=1e-9, atol=0)


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


@pytest.mark.slow
@pytest.mark.parametrize("covered", [20, 60, 200, 900])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_sparse_and_dense_kernels_agree(covered, spread, monkeypatch):
    """Statistics within 6 % of themselves or of one sd, half of the p-values within 3 % of their digits."""
    layout = scattered(900)
    rng = np.random.default_rng(covered)
    counts = simulate_counts(
        layout, n_genes=20, depth=8 * np.exp(spread * rng.standard_normal(900)), sigma=0.7, theta=0.5, seed=5
    )
    for gene in counts:
        gene[rng.permutation(900)[covered:]] = 0.0
    every = replace(spatial_kernel(layout), spatial=None)  # damps every spot, as the sparse one
    dense = variance_component_test(counts, every)
    monkeypatch.setattr(kernel_module, "DENSE_LIMIT", 0)
    sparse = variance_component_test(counts, spatial_kernel(layout))
    spread = (sparse.statistic - dense.statistic).abs() / dense.statistic.abs().clamp_min(1.0)
    assert float(spread.max()) < 0.06
    digits = (sparse.pvalue.log10() - dense.pvalue.log10()).abs() / (1 - dense.pvalue.log10())
    assert float(digits.median()) < 0.03


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


@pytest.mark.slow
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
        layout,
        n_genes=2000,
        depth=depth * factor,
        sigma=0.0 if null == "no effect" else 0.7,
        theta=0.0,
        seed=10 + depth,
        effect=effect,
        **rare,
    )
    pvalue = variance_component_test(counts, spatial_kernel(layout), design=design).pvalue
    for level in (0.05, 0.01, 0.001):
        low, high = binom.ppf([0.0005, 0.9995], 2000, level)
        assert low <= int((pvalue < level).sum()) <= high


def test_power_where_the_plan_asks_for_it():
    """At σ = θ = .7 and 5 counts a spot, HSIC-IR finds 90 % and the sketch 92 % of the genes."""
    layout = grid(16)
    counts = simulate_counts(layout, n_genes=300, depth=5, sigma=0.7, theta=0.7, seed=1)
    assert float((variance_component_test(counts, spatial_kernel(layout)).pvalue < 0.05).double().mean()) > 0.93
