"""How residuals scatter, dispersion and excess: what they are, that they move with the basis, and the law of tests."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, f

from pyrosplice._hypothesis.coefficients.residual_variance import dispersed, dispersion_of, excess_of, trace_sf
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial

N_GENES, N_SPOTS, Q = 4, 50, 3


@pytest.fixture
def fit():
    rng = np.random.default_rng(0)
    residual = torch.from_numpy(rng.normal(size=(N_GENES, N_SPOTS, Q)) @ rng.normal(size=(Q, Q)))
    half = torch.from_numpy(rng.normal(size=(N_GENES, N_SPOTS, Q, Q + 2)))
    return residual, half @ half.mT


def effective(blocks):
    share = torch.einsum("bqk,bnqk->bn", torch.linalg.inv(blocks.sum(1)), blocks) / blocks.shape[-1]
    return 1 / share.square().sum(1)


def test_root_turns_the_models_variance_into_that_of_the_residuals(fit):
    residual, blocks = fit
    found = dispersion_of(residual, blocks, 2)
    torch.testing.assert_close(found.dof, effective(blocks) - 2)
    expected = (1 - 2 / effective(blocks))[:, None, None] * blocks.sum(1)
    torch.testing.assert_close(found.root @ expected @ found.root.mT, residual.mT @ residual)
    torch.testing.assert_close(found.root @ found.root, residual.mT @ residual @ torch.linalg.inv(expected))


def test_one_logit_is_a_quotient_of_sums(fit):
    residual, blocks = fit[0][..., :1], torch.full((N_GENES, N_SPOTS, 1, 1), 2.0, dtype=torch.float64)
    residual[:, 40:], blocks[:, 40:] = 0.0, 0.0  # spots without counts
    quotient = residual.square().sum((1, 2)) / 80 * 40 / 37
    found = dispersion_of(residual, blocks, 3)
    torch.testing.assert_close(found.root[:, 0, 0], quotient.sqrt())
    torch.testing.assert_close(found.dof, torch.full((N_GENES,), 37.0, dtype=torch.float64))


def test_root_moves_with_the_basis_of_the_logits(fit):
    residual, blocks = fit
    basis = torch.tensor([[1.0, -1, 0], [0, 2, 0.5], [0, 0, -1]], dtype=torch.float64)
    moved = dispersion_of(residual @ basis.T, basis @ blocks @ basis.T, 1).root
    torch.testing.assert_close(moved, basis @ dispersion_of(residual, blocks, 1).root @ torch.linalg.inv(basis))


def test_a_gene_without_information_fails_alone(fit):
    residual, blocks = fit[0].clone(), fit[1].clone()
    residual[1, :, 0], blocks[1, :, 0], blocks[1, ..., 0] = 0.0, 0.0, 0.0
    residual[2, 0, 0] = torch.nan
    root = dispersion_of(residual, blocks, 1).root
    assert torch.isnan(root[[1, 2]]).all() and torch.isfinite(root[[0, 3]]).all()


def test_products_are_those_of_the_whole_matrices(fit):
    root = dispersion_of(*fit, 1).root
    half = torch.from_numpy(np.random.default_rng(1).normal(size=(N_GENES, 2 * Q, 2 * Q + 1)))
    information = half @ half.mT
    whole = torch.stack([torch.kron(torch.eye(2, dtype=torch.float64), one.contiguous()) for one in root])
    expected = whole @ information @ whole.mT
    torch.testing.assert_close(dispersed(root, information), expected)


def test_the_law_of_one_column_is_hotelling_s():
    statistic = torch.tensor([[0.5, 9.0, 80.0]] * N_GENES, dtype=torch.float64)
    found = trace_sf(statistic, torch.ones(3), Q, torch.full((N_GENES, 1), 46.0, dtype=torch.float64))
    np.testing.assert_allclose(found[0], f.sf((46 - Q + 1) / (46 * Q) * statistic[0], Q, 46 - Q + 1), rtol=1e-10)


def test_the_law_of_more_columns_is_that_of_normal_residuals():
    rng = np.random.default_rng(2)
    hypothesis, error = rng.normal(size=(20000, 2, Q)), rng.normal(size=(20000, 25, Q))
    between, within = (np.einsum("bnq,bnk->bqk", x, x) for x in (hypothesis, error))
    trace = 25 * np.trace(np.linalg.solve(within, between), axis1=1, axis2=2)
    dof = torch.tensor([[25.0]], dtype=torch.float64)
    pvalue = trace_sf(torch.from_numpy(trace)[None], torch.full((20000,), 2), Q, dof)
    for level in (0.05, 0.01):
        low, high = binom.ppf([0.0005, 0.9995], 20000, level)
        assert low <= int((pvalue < level).sum()) <= high
    few, one = torch.tensor([[Q + 3.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert torch.isnan(trace_sf(one, torch.full((1,), 2), Q, few)).all()
    assert torch.isfinite(trace_sf(one, torch.ones(1), Q, few)).all()
    assert torch.isnan(trace_sf(one, torch.ones(1), Q, few - 4)).all()


def test_a_statistic_that_rounding_made_negative_has_p_value_one(fit):
    statistic = torch.tensor([[-1e-9, torch.nan]] * N_GENES, dtype=torch.float64)
    found = trace_sf(statistic, torch.tensor([1, 2]), Q, dispersion_of(*fit, 1).dof[:, None])
    assert (found[:, 0] == 1).all() and torch.isnan(found[:, 1]).all()


def test_without_degrees_of_freedom_there_is_no_dispersion(fit):
    found = dispersion_of(*fit, torch.tensor([1.0, 60.0, 2.0, 3.0], dtype=torch.float64))
    assert torch.isnan(found.root[1]).all() and torch.isnan(found.dof[1])
    assert torch.isfinite(found.root[[0, 2, 3]]).all()


def over_dispersed(n_genes, n_spots, concentration=4.0):
    """Residuals of Dirichlet-multinomial counts at their true usage, what the multinomial says of them, and depths."""
    generator = torch.Generator().manual_seed(6)
    totals = torch.randint(0, 40, (n_spots,), generator=generator).double()
    eta = torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64).expand(n_genes, n_spots, 3)
    law = DirichletMultinomial(concentration)
    counts = law.sample(totals.expand(n_genes, -1), eta, generator=generator)
    return Multinomial().score(counts, eta), Multinomial().information(counts, eta), repeated(totals, n_genes), totals


def repeated(totals, n_genes):
    return ((totals - 1).clamp_min(0) / totals.clamp_min(1)).expand(n_genes, -1)


@pytest.mark.slow
def test_excess_is_the_variance_of_dirichlet_multinomial_counts():
    """Which is (n + A) / (1 + A) times the multinomial's, at every depth."""
    residual, blocks, repeats, totals = over_dispersed(20, 20000)
    found = excess_of(residual, blocks, repeats, 1)
    expected = (((totals + 4) / 5)[:, None, None] * blocks[0])[totals > 0]
    for gene in found.variance:
        torch.testing.assert_close(gene[totals > 0], expected, rtol=0.1, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_degrees_of_freedom_are_those_of_the_variance_of_a_combination(deep):
    """Ten deep spots among single counts: few for what differs between the former, many for the rest. Multinomial."""
    generator = torch.Generator().manual_seed(2)
    totals = torch.cat([torch.full((10,), 60.0), torch.ones(600), torch.full((60,), 5.0)]).double()
    eta = torch.zeros(4000, len(totals), 1, dtype=torch.float64)
    counts = Multinomial().sample(totals.expand(4000, -1), eta, generator=generator)
    blocks = Multinomial().information(counts, eta)
    found = excess_of(Multinomial().score(counts, eta), blocks, repeated(totals, 4000), 1)
    column = torch.where(torch.arange(len(totals)) < 10, float(deep), float(not deep)).double()
    variance = (column * found.variance[..., 0, 0]).sum(1)
    claimed = found.dof(column * blocks[..., 0, 0]) + 1
    seen = 2 * variance.mean().square() / variance.var()
    assert float(claimed.median()) == pytest.approx(float(seen), rel=0.3)
    assert (seen < 15) == deep


def test_excess_moves_with_the_basis_of_the_logits():
    residual, blocks, repeats, _ = over_dispersed(3, 60)
    basis = torch.tensor([[1.0, -1, 0], [0, 2, 0.5], [0, 0, -1]], dtype=torch.float64)
    ours, moved = (
        excess_of(*both, repeats, 2) for both in ((residual, blocks), (residual @ basis.T, basis @ blocks @ basis.T))
    )
    torch.testing.assert_close(moved.variance, basis @ ours.variance @ basis.T)
    torch.testing.assert_close(moved.dof(repeats), ours.dof(repeats))


def test_single_counts_have_no_excess():
    residual, blocks, repeats, _ = over_dispersed(3, 60)
    found = excess_of(residual, blocks, torch.zeros_like(repeats), 2)
    torch.testing.assert_close(found.variance, blocks)
    torch.testing.assert_close(found.dof(repeats), effective(blocks) - 2)


def test_no_spot_has_a_negative_variance_where_residuals_scatter_too_little():
    """Usage differs between the spots, so that they inform on different logits."""
    usage = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], dtype=torch.float64)
    eta = (usage[:, :2] / usage[:, 2:]).log().repeat(20, 1).expand(3, -1, -1)
    totals = torch.full((60,), 30.0, dtype=torch.float64)
    counts = Multinomial().sample(totals.expand(3, -1), eta, generator=torch.Generator().manual_seed(0))
    residual, blocks = Multinomial().score(counts, eta), Multinomial().information(counts, eta)
    found = excess_of(0.01 * residual, blocks, repeated(totals, 3), 2).variance
    assert (torch.linalg.eigvalsh(found) > 0).all()


def test_excess_of_a_gene_without_information_or_degrees_of_freedom_fails_alone():
    residual, blocks, repeats, _ = over_dispersed(4, 60)
    residual[1, :, 0], blocks[1, :, 0], blocks[1, ..., 0] = 0.0, 0.0, 0.0
    residual[2, 0, 0] = torch.nan
    found = excess_of(residual, blocks, repeats, torch.tensor([2.0, 2.0, 2.0, 80.0], dtype=torch.float64))
    dof = found.dof(repeats)
    assert torch.isnan(dof[1:]).all() and torch.isfinite(dof[0])
    assert torch.isfinite(found.variance[0]).all()
