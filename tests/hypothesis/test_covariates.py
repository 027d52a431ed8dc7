"""Score and Wald tests of covariates against a dense oracle."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.score import Linearised, covariate_information, information_product, score_test
from pyrosplice.hypothesis.wald import contrast_test, score_variance
from pyrosplice.inference.glm import GLMObjective
from pyrosplice.inference.newton import newton
from pyrosplice.models.likelihoods import Multinomial
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


def linear(residual, product, blocks=None):
    """For tests with the model's variance, which needs no blocks."""
    return Linearised(residual, product, torch.empty(0) if blocks is None else blocks, independent=blocks is not None)


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
    assert ours.dof.tolist() == [2, 2]


def test_shift_unit_and_coding_make_no_difference(gene_batch):
    counts, design, sigma = gene_batch
    fit, _ = null_fit(counts, sigma)
    reference = score_test(fit, design, terms=[[0], [1], [2, 3, 4]])
    assert reference.dof.tolist() == [2, 2, 4]  # three indicators beside an intercept are two columns
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
    eta = (usage[:, :-1] / usage[:, -1:]).log().unsqueeze(1).expand(-1, counts.shape[1], -1)
    information = Multinomial().information(counts, eta)
    return linear(Multinomial().score(counts, eta), information_product(information), information)


def glm(counts, design):
    """Fit with covariates; these, with the intercept; the information of the coefficients."""
    objective = GLMObjective.of(counts, design, Multinomial())
    beta, bias = objective.coefficients(newton(objective, objective.start()).point)
    eta = design @ beta + bias.unsqueeze(-2)
    spots = Multinomial().information(counts, eta)
    fit = linear(Multinomial().score(counts, eta), information_product(spots), spots)
    covariates = torch.cat([design, torch.ones_like(design[:, :1])], 1)
    return beta, fit, covariates, covariate_information(fit.precision_product, covariates, *beta.shape[::2])


def test_a_gene_that_cannot_be_tested_fails_alone(gene_batch):
    counts, design, _ = gene_batch
    broken = counts.clone()
    broken[1, :, 2] = 0.0
    broken[1, :, 1] = 0.0  # one isoform left
    fit = intercepts_only(broken)
    result = score_test(fit, design[:, :2])
    assert torch.isnan(result.pvalue[1]).all()
    assert torch.isfinite(result.pvalue[[0, 2]]).all()


@pytest.mark.parametrize("kind", ["iid", "smooth", "binary"])
def test_size_of_the_glm_score_and_wald_tests(kind):
    """No random effect: both tests reject as often as they say, whatever the covariate and the variance."""
    covariance = grid(16)
    generator = torch.Generator().manual_seed(2)
    smooth = covariance.sample(1, generator).T + 5
    noise = torch.randn(256, 1, generator=generator, dtype=torch.float64)
    design = {"iid": noise, "smooth": smooth, "binary": (noise > 0).double()}[kind]
    counts = simulate_counts(covariance, n_genes=2000, depth=5, sigma=0.0, theta=0.0, seed=8)
    null = intercepts_only(counts)
    beta, fit, covariates, information = glm(counts, design)
    inverse, one = torch.linalg.inv(information), torch.ones(1, 1, dtype=torch.float64)
    variance, dof = score_variance(fit, covariates, information)
    found = [score_test(null, design, robust=robust).pvalue for robust in (False, True)]
    found += [contrast_test(beta, inverse, one)[1], contrast_test(beta, inverse @ variance @ inverse, one, dof)[1]]
    for level in (0.05, 0.01):
        low, high = binom.ppf([0.005, 0.995], 2000, level)
        assert all(low <= int((pvalue < level).sum()) <= high for pvalue in found)


def over_dispersed(n_genes, depth):
    """Independent over-dispersion that depends between the logits, and covariates that go with depth or do not."""
    generator = torch.Generator().manual_seed(3)
    other = torch.randn(256, 2, generator=generator, dtype=torch.float64)
    design = torch.cat([grid(16).sample(1, generator).T, other[:, :1].sign(), depth.log()[:, None] + 0.3 * other], 1)
    noise = torch.randn(n_genes, 256, 2, generator=generator, dtype=torch.float64)
    eta = noise @ torch.tensor([[0.9, 0.6], [0.0, 0.4]], dtype=torch.float64)
    return Multinomial().sample(depth.round().expand(n_genes, -1), eta, generator=generator), design[:, :3]


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_residuals_of_independent_spots_stand_over_dispersion(spread):
    """Of which the model knows nothing, and which counts for more where there are more counts."""
    depth = torch.randn(256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts, design = over_dispersed(2000, 20 * (spread * depth).exp())
    null = intercepts_only(counts)
    plain, robust = (score_test(null, design, robust=robust).pvalue for robust in (False, True))
    low, high = binom.ppf([0.0005, 0.9995], 2000, 0.05)
    assert ((plain < 0.05).sum(0) > 3 * high).all()
    assert ((robust < 0.05).sum(0) >= low).all() and ((robust < 0.05).sum(0) <= high).all()
    beta, fit, covariates, information = glm(counts, design)
    variance, dof = score_variance(fit, covariates, information)
    inverse = torch.linalg.inv(information)
    for row in torch.eye(3, dtype=torch.float64):
        wald = contrast_test(beta, inverse @ variance @ inverse, row[None], dof)[1]
        assert low <= int((wald < 0.05).sum()) <= 1.2 * high


def test_variance_of_independent_spots_is_the_sum_of_their_squares(gene_batch):
    """The textbook's formulas, spot by spot, beside a nuisance covariate."""
    counts, design, _ = gene_batch
    design, eye = design[:, :2], torch.eye(2, dtype=torch.float64)
    null = intercepts_only(counts)
    found = score_test(null, design, terms=[[1]], nuisance=[[0]], robust=True).statistic[0, 0]
    columns = torch.cat([torch.ones(64, 1, dtype=torch.float64), design], 1)
    rows = torch.stack([torch.kron(row[:, None], eye) for row in columns])  # of each spot, (64, 6, 2)
    weights = null.spot_precision[0]
    whole = (rows @ weights @ rows.mT).sum(0)
    score = (rows @ null.residual[0].unsqueeze(-1)).sum(0)[:, 0]
    left = (
        null.residual[0] - (weights @ rows.mT[..., :4] @ torch.linalg.solve(whole[:4, :4], score[:4])[:, None])[..., 0]
    )
    project = torch.cat([-torch.linalg.solve(whole[:4, :4], whole[:4, 4:]).T, eye], 1)
    added = (project @ rows @ left.unsqueeze(-1))[..., 0]
    totals = counts[0].sum(1)
    effective = totals.sum().square() / totals.square().sum()
    expected = project @ score @ torch.linalg.solve(added.T @ added * effective / (effective - 2), project @ score)
    torch.testing.assert_close(found, expected)

    _, fit, covariates, information = glm(counts, design)
    variance, dof = score_variance(fit, covariates, information)
    rows = torch.stack([torch.kron(row[:, None], eye) for row in covariates])
    leverage = fit.spot_precision[0] @ rows.mT @ torch.linalg.inv(information[0]) @ rows
    left = torch.linalg.solve(eye - leverage, fit.residual[0])
    added = (rows @ left.unsqueeze(-1))[..., 0]
    torch.testing.assert_close(variance[0], added.T @ added, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(dof[0], effective - 3, rtol=0.02, atol=0.0)


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
    beta, _, _, information = glm(counts, design)
    covariance = torch.linalg.inv(information)
    joint, pvalue = contrast_test(beta, covariance, torch.eye(4, dtype=torch.float64)[2:])
    flat = beta[:, 2:].flatten(1)
    expected = torch.einsum("bi,bij,bj->b", flat, torch.linalg.inv(covariance[:, 4:8, 4:8]), flat)
    torch.testing.assert_close(joint[:, 0], expected)
    np.testing.assert_allclose(pvalue[:, 0], chi2.sf(expected, 4))
    difference = torch.tensor([[0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    statistic, _ = contrast_test(beta, covariance, difference)
    recoded = torch.stack([*design[:, :2].T, design[:, 2], design[:, 2] + design[:, 3]], 1)
    other, _, _, information = glm(counts, recoded)  # the first indicator's coefficient is now the difference
    moved_statistic, _ = contrast_test(other, torch.linalg.inv(information), torch.eye(4, dtype=torch.float64)[2:3])
    torch.testing.assert_close(moved_statistic, statistic, rtol=1e-6, atol=1e-9)


def test_numbers_are_doubles(gene_batch):
    counts, design, sigma = gene_batch
    fit, _ = null_fit(counts, sigma)
    assert score_test(fit, design[:, :1].float()).pvalue.dtype == torch.float64
    assert np.isfinite(score_test(fit, design[:, :1]).statistic.numpy()).all()
