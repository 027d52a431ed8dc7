"""Score and Wald tests of covariates against a dense oracle."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

from pyrosplice._hypothesis.coefficients.score import (
    Linearized,
    information_product,
    score_test,
    score_variance,
)
from pyrosplice._hypothesis.coefficients.wald import contrast_test
from pyrosplice._optimize.newton import newton
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._design_information import covariate_information
from pyrosplice.glmm._glm_objective import GLMObjective
from pyrosplice.likelihoods._contract import Multinomial
from tests.hypothesis.oracle import dense_product, random_effect_fit
from tests.studies.simulation import grid, simulate_counts

N_GENES = 3


@pytest.fixture(scope="module")
def gene_batch():
    covariance = grid(8)
    counts = simulate_counts(covariance, n_genes=N_GENES, depth=6, sigma=0.7, theta=0.7, seed=4)
    generator = torch.Generator().manual_seed(1)
    smooth = covariance.sample(1, generator).T
    level = torch.randint(0, 3, (64, 1), generator=generator)
    design = torch.cat(
        [smooth, torch.randn(64, 1, generator=generator), (level == torch.tensor([0, 1, 2])).double()], 1
    )
    sigma = 0.49 * (0.7 * covariance.dense() + 0.3 * torch.eye(64, dtype=torch.float64))
    return counts, design, sigma


def null_fit(counts, sigma, nuisance=None):
    ones = torch.ones(64, 1, dtype=torch.float64)
    base = ones if nuisance is None else torch.cat([nuisance, ones], 1)
    fits = [random_effect_fit(gene, sigma, base) for gene in counts]
    residual, inverses = (torch.stack(each) for each in list(zip(*fits, strict=True))[::2])
    return linear(residual, dense_product(inverses)), inverses


def linear(residual, product):
    """For tests with the model's variance, which needs no blocks."""
    return Linearized(residual, product, torch.empty(0))


def test_statistic_is_the_textbook_one(gene_batch):
    counts, design, sigma = gene_batch
    fit, inverses = null_fit(counts, sigma)
    ours = score_test(fit, design[:, :2])
    eye = torch.eye(2, dtype=torch.float64)
    for g in range(N_GENES):
        for j in range(2):
            x, one = torch.kron(design[:, [j]], eye), torch.kron(torch.ones(64, 1, dtype=torch.float64), eye)
            a = inverses[g] @ one
            projected = inverses[g] - a @ torch.linalg.solve(one.T @ a, a.T)
            u = x.T @ fit.residual[g].flatten()
            expected = float(u @ torch.linalg.solve(x.T @ projected @ x, u))
            assert float(ours.statistic[g, j]) == pytest.approx(expected, rel=1e-8)
            assert float(ours.pvalue[g, j]) == pytest.approx(chi2.sf(expected, 2), rel=1e-8)
    assert ours.dof[0].tolist() == [2, 2]


def test_shift_unit_and_coding_make_no_difference(gene_batch):
    counts, design, sigma = gene_batch
    fit, _ = null_fit(counts, sigma)
    reference = score_test(fit, design, terms=[[0], [1], [2, 3, 4]])
    assert reference.dof[0].tolist() == [2, 2, 4]  # three indicators beside an intercept are two columns
    moved = design.clone()
    moved[:, 0] = 1e4 * design[:, 0] + 3e4
    moved[:, 1] = -1e-3 * design[:, 1] + 7
    moved[:, 2:] = design[:, 2:] @ torch.tensor([[1.0, 1, 1], [0, 2, -1], [0, 0, 5]], dtype=torch.float64) + 3
    other = score_test(fit, moved, terms=[[0], [1], [2, 3, 4]])
    assert (other.pvalue - reference.pvalue).abs().max() < 1e-8
    two = score_test(fit, moved, terms=[[0], [1], [2, 4]])
    assert (two.pvalue - reference.pvalue).abs().max() < 1e-8


def test_spots_and_genes_in_another_order(gene_batch):
    counts, design, sigma = gene_batch
    fit, inverses = null_fit(counts, sigma)
    reference = score_test(fit, design[:, :2])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    rows = (2 * order.unsqueeze(-1) + torch.arange(2)).flatten()
    moved = torch.stack([v[rows][:, rows] for v in inverses]).flip(0)
    other = score_test(linear(fit.residual[:, order].flip(0), dense_product(moved)), design[order, :2])
    assert (other.pvalue.flip(0) - reference.pvalue).abs().max() < 1e-8


def test_nuisance_covariates_are_projected_out(gene_batch):
    counts, design, sigma = gene_batch
    fit, inverses = null_fit(counts, sigma, nuisance=design[:, :1])
    ours = score_test(fit, design[:, :2], terms=[[1]], nuisance=[[0]])
    eye = torch.eye(2, dtype=torch.float64)
    base = torch.kron(torch.cat([design[:, :1], torch.ones(64, 1, dtype=torch.float64)], 1), eye)
    x, a = torch.kron(design[:, 1:2], eye), inverses[0] @ base
    projected = inverses[0] - a @ torch.linalg.solve(base.T @ a, a.T)
    u = x.T @ fit.residual[0].flatten()
    assert float(ours.statistic[0, 0]) == pytest.approx(float(u @ torch.linalg.solve(x.T @ projected @ x, u)), rel=1e-7)


def test_constant_and_collinear_covariates_are_refused(gene_batch):
    counts, design, sigma = gene_batch
    fit, _ = null_fit(counts, sigma)
    with pytest.raises(InvalidArgumentError, match=r"column\(s\) \[1\]"):
        score_test(fit, torch.cat([design[:, :1], torch.full((64, 1), 0.1, dtype=torch.float64)], 1))
    with pytest.raises(InvalidArgumentError, match="nuisance"):
        score_test(fit, torch.cat([design[:, :1], 2 * design[:, :1] + 1], 1), terms=[[1]], nuisance=[[0]])


def intercepts_only(counts):
    usage = counts.sum(1) / counts.sum((1, 2))[:, None]
    return at(counts, (usage[:, :-1] / usage[:, -1:]).log().unsqueeze(1).expand(-1, counts.shape[1], -1))


def at(counts, eta):
    information, totals = Multinomial().information(counts, eta), counts.sum(-1)
    repeats = (totals - 1).clamp_min(0) / totals.clamp_min(1)
    return Linearized(Multinomial().score(counts, eta), information_product(information), information, repeats)


def glm(counts, design):
    """Coefficients, their covariance by the model and by the residuals, and ν of the latter for each covariate."""
    objective = GLMObjective.of(counts, design, Multinomial())
    beta, bias = objective.coefficients(newton(objective, objective.start()).point)
    fit = at(counts, design @ beta + bias.unsqueeze(-2))
    columns = torch.cat([design, torch.ones_like(design[:, :1])], 1)
    information = covariate_information(fit.precision_product, columns, *beta.shape[::2])
    inverse, variance = torch.linalg.inv(information), score_variance(fit, columns, information, columns.shape[1])
    own = [variance.dof(inverse[:, 2 * j : 2 * j + 2]) for j in range(design.shape[1])]
    return beta, inverse, inverse @ variance.matrix @ inverse, own


def test_a_gene_that_cannot_be_tested_fails_alone(gene_batch):
    counts, design, _ = gene_batch
    broken = counts.clone()
    broken[1, :, 2] = 0.0
    broken[1, :, 1] = 0.0  # one isoform left
    fit = intercepts_only(broken)
    result = score_test(fit, design[:, :2])
    assert torch.isnan(result.pvalue[1]).all()
    assert torch.isfinite(result.pvalue[[0, 2]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["iid", "smooth", "binary"])
def test_size_of_the_glm_score_and_wald_tests(kind):
    """No random effect: both tests reject as often as they say, whatever the covariate and the variance."""
    covariance = grid(16)
    generator = torch.Generator().manual_seed(2)
    smooth = covariance.sample(1, generator).T + 5
    noise = torch.randn(256, 1, generator=generator, dtype=torch.float64)
    design = {"iid": noise, "smooth": smooth, "binary": (noise > 0).double()}[kind]
    counts = simulate_counts(covariance, n_genes=2000, depth=5, sigma=0.0, theta=0.0, seed=8)
    null, one = intercepts_only(counts), torch.ones(1, 1, dtype=torch.float64)
    beta, by_model, by_residuals, dof = glm(counts, design)
    found = [score_test(null, design, robust=robust).pvalue for robust in (False, True)]
    found += [contrast_test(beta, by_model, one)[1], contrast_test(beta, by_residuals, one, dof[0])[1]]
    for level in (0.05, 0.01):
        low, high = binom.ppf([0.0005, 0.9995], 2000, level)
        assert all(low <= int((pvalue < level).sum()) <= high for pvalue in found)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_residuals_stand_over_dispersion(spread):
    """The model knows nothing of it; it depends between the logits, and counts for more in deeper spots.

    A smooth covariate, one that goes with depth, a group of the deepest spots, and one of four spots.
    """
    generator = torch.Generator().manual_seed(3)
    deep, other = torch.randn(2, 256, generator=generator, dtype=torch.float64)
    groups = torch.stack([deep > 1, torch.arange(256) < 4], 1).double()
    design = torch.cat([grid(16).sample(1, generator).T, (deep + 0.3 * other)[:, None], groups], 1)
    noise = torch.randn(2000, 256, 2, generator=generator, dtype=torch.float64)
    eta = 0.7 * noise @ torch.tensor([[0.9, 0.6], [0.0, 0.4]], dtype=torch.float64)
    totals = torch.poisson((20 * (spread * deep - spread**2 / 2).exp()).expand(2000, -1), generator=generator)
    counts = Multinomial().sample(totals, eta, generator=generator)
    null = intercepts_only(counts)
    plain, robust = (score_test(null, design, robust=robust).pvalue for robust in (False, True))
    low, high = binom.ppf([0.0005, 0.9995], 2000, 0.05)
    assert ((plain < 0.05).sum(0) > 1.5 * high).all()
    assert ((robust < 0.05).sum(0) >= 0.8 * low).all() and ((robust < 0.05).sum(0) <= 1.2 * high).all()
    beta, _, covariance, dof = glm(counts, design)
    for row, own in zip(torch.eye(4, dtype=torch.float64), dof, strict=True):
        rejected = int((contrast_test(beta, covariance, row[None], own)[1] < 0.05).sum())
        assert 0.8 * low <= rejected <= 1.2 * high


def test_robust_tests_do_not_depend_on_reference_or_coding(gene_batch):
    counts, design, _ = gene_batch
    moved = counts[..., [2, 0, 1]]
    mixed = design[:, :2] @ torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64) + 4
    ours = score_test(intercepts_only(counts), design[:, :2], terms=[[0, 1]], robust=True)
    for other in (counts, moved):
        again = score_test(intercepts_only(other), mixed, terms=[[0, 1]], robust=True)
        assert (ours.pvalue - again.pvalue).abs().max() < 1e-8


def test_wald_joint_and_contrast_tests(gene_batch):
    counts, design, _ = gene_batch
    design = design[:, [0, 1, 2, 3]]
    beta, covariance, _, _ = glm(counts, design)
    joint, pvalue = contrast_test(beta, covariance, torch.eye(4, dtype=torch.float64)[2:])
    flat = beta[:, 2:].flatten(1)
    expected = torch.einsum("bi,bij,bj->b", flat, torch.linalg.inv(covariance[:, 4:8, 4:8]), flat)
    torch.testing.assert_close(joint[:, 0], expected)
    np.testing.assert_allclose(pvalue[:, 0], chi2.sf(expected, 4))
    difference = torch.tensor([[0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    statistic, _ = contrast_test(beta, covariance, difference)
    recoded = torch.stack([*design[:, :2].T, design[:, 2], design[:, 2] + design[:, 3]], 1)
    other, moved, _, _ = glm(counts, recoded)  # the first indicator's coefficient is now the difference
    moved_statistic, _ = contrast_test(other, moved, torch.eye(4, dtype=torch.float64)[2:3])
    torch.testing.assert_close(moved_statistic, statistic, rtol=1e-6, atol=1e-9)


def test_numbers_are_doubles(gene_batch):
    counts, design, sigma = gene_batch
    fit, _ = null_fit(counts, sigma)
    assert score_test(fit, design[:, :1].float()).pvalue.dtype == torch.float64
    assert np.isfinite(score_test(fit, design[:, :1]).statistic.numpy()).all()
