"""Score and Wald tests of covariates against a dense oracle."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.dispersion import dispersion_of
from pyrosplice.hypothesis.score import information_product, score_test
from pyrosplice.hypothesis.wald import coefficient_covariance, contrast_test
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
    return torch.stack([f[0] for f in fits]), dense_product(torch.stack([f[2] for f in fits])), [f[2] for f in fits]


def test_statistic_is_the_textbook_one(gene_batch):
    counts, design, sigma = gene_batch
    residual, product, inverses = null_fit(counts, sigma)
    ours = score_test(residual, product, design[:, :2])
    eye = torch.eye(2, dtype=torch.float64)
    for g in range(N_GENES):
        for j in range(2):
            x, one = torch.kron(design[:, [j]], eye), torch.kron(torch.ones(64, 1, dtype=torch.float64), eye)
            a = inverses[g] @ one
            projected = inverses[g] - a @ torch.linalg.solve(one.T @ a, a.T)
            u = x.T @ residual[g].flatten()
            expected = float(u @ torch.linalg.solve(x.T @ projected @ x, u))
            assert float(ours.statistic[g, j]) == pytest.approx(expected, rel=1e-8)
            assert float(ours.pvalue[g, j]) == pytest.approx(chi2.sf(expected, 2), rel=1e-8)
    assert ours.dof.tolist() == [2, 2]


def test_shift_unit_and_coding_make_no_difference(gene_batch):
    counts, design, sigma = gene_batch
    residual, product, _ = null_fit(counts, sigma)
    reference = score_test(residual, product, design, terms=[[0], [1], [2, 3, 4]])
    assert reference.dof.tolist() == [2, 2, 4]  # three indicators beside an intercept are two columns
    moved = design.clone()
    moved[:, 0] = 1e4 * design[:, 0] + 3e4
    moved[:, 1] = -1e-3 * design[:, 1] + 7
    moved[:, 2:] = design[:, 2:] @ torch.tensor([[1.0, 1, 1], [0, 2, -1], [0, 0, 5]], dtype=torch.float64) + 3
    other = score_test(residual, product, moved, terms=[[0], [1], [2, 3, 4]])
    assert (other.pvalue - reference.pvalue).abs().max() < 1e-8
    two = score_test(residual, product, moved, terms=[[0], [1], [2, 4]])
    assert (two.pvalue - reference.pvalue).abs().max() < 1e-8


def test_spots_and_genes_in_another_order(gene_batch):
    counts, design, sigma = gene_batch
    residual, _, inverses = null_fit(counts, sigma)
    reference = score_test(residual, dense_product(torch.stack(inverses)), design[:, :2])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    rows = (2 * order.unsqueeze(-1) + torch.arange(2)).flatten()
    moved = torch.stack([v[rows][:, rows] for v in inverses]).flip(0)
    other = score_test(residual[:, order].flip(0), dense_product(moved), design[order, :2])
    assert (other.pvalue.flip(0) - reference.pvalue).abs().max() < 1e-8


def test_nuisance_covariates_are_projected_out(gene_batch):
    counts, design, sigma = gene_batch
    residual, product, inverses = null_fit(counts, sigma, nuisance=design[:, :1])
    ours = score_test(residual, product, design[:, :2], terms=[[1]], nuisance=[[0]])
    eye = torch.eye(2, dtype=torch.float64)
    base = torch.kron(torch.cat([design[:, :1], torch.ones(64, 1, dtype=torch.float64)], 1), eye)
    x, a = torch.kron(design[:, 1:2], eye), inverses[0] @ base
    projected = inverses[0] - a @ torch.linalg.solve(base.T @ a, a.T)
    u = x.T @ residual[0].flatten()
    assert float(ours.statistic[0, 0]) == pytest.approx(float(u @ torch.linalg.solve(x.T @ projected @ x, u)), rel=1e-7)


def test_constant_and_collinear_covariates_are_refused(gene_batch):
    counts, design, sigma = gene_batch
    residual, product, _ = null_fit(counts, sigma)
    with pytest.raises(InvalidArgumentError, match=r"column\(s\) \[1\]"):
        score_test(residual, product, torch.cat([design[:, :1], torch.full((64, 1), 0.1, dtype=torch.float64)], 1))
    with pytest.raises(InvalidArgumentError, match="nuisance"):
        score_test(residual, product, torch.cat([design[:, :1], 2 * design[:, :1] + 1], 1), terms=[[1]], nuisance=[[0]])


def intercepts_only(counts):
    usage = counts.sum(1) / counts.sum((1, 2))[:, None]
    eta = (usage[:, :-1] / usage[:, -1:]).log().unsqueeze(1).expand(-1, counts.shape[1], -1)
    return Multinomial().score(counts, eta), information_product(Multinomial().information(counts, eta))


def glm(counts, design):
    objective = GLMObjective.of(counts, design, Multinomial())
    beta, bias = objective.coefficients(newton(objective, objective.start()).point)
    eta = design @ beta + bias.unsqueeze(-2)
    information = Multinomial().information(counts, eta)
    return (beta, bias), Multinomial().score(counts, eta), information_product(information)


def test_a_gene_that_cannot_be_tested_fails_alone(gene_batch):
    counts, design, _ = gene_batch
    broken = counts.clone()
    broken[1, :, 2] = 0.0
    broken[1, :, 1] = 0.0  # one isoform left
    residual, product = intercepts_only(broken)
    result = score_test(residual, product, design[:, :2])
    assert torch.isnan(result.pvalue[1]).all()
    assert torch.isfinite(result.pvalue[[0, 2]]).all()


@pytest.mark.parametrize("kind", ["iid", "smooth", "binary"])
def test_size_of_the_glm_score_and_wald_tests(kind):
    """No random effect: both tests reject as often as they say, whatever the covariate."""
    covariance = grid(16)
    generator = torch.Generator().manual_seed(2)
    smooth = covariance.sample(1, generator).T + 5
    noise = torch.randn(256, 1, generator=generator, dtype=torch.float64)
    design = {"iid": noise, "smooth": smooth, "binary": (noise > 0).double()}[kind]
    counts = simulate_counts(covariance, n_genes=2000, depth=5, sigma=0.0, theta=0.0, seed=8)
    residual, product = intercepts_only(counts)
    score = score_test(residual, product, design).pvalue[:, 0]
    (beta, _), _, product = glm(counts, design)
    covariance = coefficient_covariance(product, design, n_genes=2000, n_logits=2)
    wald = contrast_test(beta, covariance, torch.ones(1, 1, dtype=torch.float64))[1][:, 0]
    for level in (0.05, 0.01):
        low, high = binom.ppf([0.005, 0.995], 2000, level)
        assert low <= int((score < level).sum()) <= high
        assert low <= int((wald < level).sum()) <= high


def test_dispersion_of_the_residuals_stands_over_dispersion():
    """Independent over-dispersion that depends between the logits: the model's variance is too small."""
    layout = grid(16)
    generator = torch.Generator().manual_seed(3)
    design = torch.cat([layout.sample(1, generator).T, torch.randn(256, 1, generator=generator).sign().double()], 1)
    noise = torch.randn(2000, 256, 2, generator=generator, dtype=torch.float64)
    eta = noise @ torch.tensor([[0.9, 0.6], [0.0, 0.4]], dtype=torch.float64)
    counts = Multinomial().sample(torch.full((2000, 256), 20.0, dtype=torch.float64), eta, generator=generator)
    residual, product = intercepts_only(counts)
    usage = counts.sum(1) / counts.sum((1, 2))[:, None]
    eta = (usage[:, :-1] / usage[:, -1:]).log().unsqueeze(1).expand(-1, 256, -1)
    information = Multinomial().information(counts, eta)
    plain, robust = (score_test(residual, product, design, spot_precision=one).pvalue for one in (None, information))
    low, high = binom.ppf([0.0005, 0.9995], 2000, 0.05)
    assert ((plain < 0.05).sum(0) > 3 * high).all()
    assert ((robust < 0.05).sum(0) >= low).all() and ((robust < 0.05).sum(0) <= high).all()
    joint = score_test(residual, product, design, terms=[[0, 1]], spot_precision=information)
    mixed = design @ torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64) + 4
    other = score_test(residual, product, mixed, terms=[[0, 1]], spot_precision=information)
    assert (joint.pvalue - other.pvalue).abs().max() < 1e-8
    (beta, _), residual, product = glm(counts, design)
    dispersion = dispersion_of(residual, information, 3)
    covariance = coefficient_covariance(product, design, n_genes=2000, n_logits=2, dispersion=dispersion)
    for row in torch.eye(2, dtype=torch.float64):
        wald = contrast_test(beta, covariance, row[None], dispersion)[1][:, 0]
        assert low <= int((wald < 0.05).sum()) <= high


def test_covariance_is_the_inverse_information_whatever_the_origin(gene_batch):
    counts, design, _ = gene_batch
    design = design[:, :2] + 1e3
    _, _, product = glm(counts, design)
    covariance = coefficient_covariance(product, design, n_genes=N_GENES, n_logits=2)
    columns = torch.cat([design - 1e3, torch.ones(64, 1, dtype=torch.float64)], 1)
    x = torch.kron(columns, torch.eye(2, dtype=torch.float64))
    dense = torch.stack(
        [x.T @ product(x.reshape(1, 64, 2, 6).expand(3, -1, -1, -1))[g].reshape(128, 6) for g in range(3)]
    )
    expected = torch.linalg.inv(dense)
    torch.testing.assert_close(covariance[:, :4, :4], expected[:, :4, :4], rtol=1e-7, atol=1e-12)


def test_wald_joint_and_contrast_tests(gene_batch):
    counts, design, _ = gene_batch
    design = design[:, [0, 1, 2, 3]]
    (beta, _), _, product = glm(counts, design)
    covariance = coefficient_covariance(product, design, n_genes=N_GENES, n_logits=2)
    joint, _, joint_dof = contrast_test(beta, covariance, torch.eye(4, dtype=torch.float64)[2:])
    flat = beta[:, 2:].flatten(1)
    expected = torch.einsum("bi,bij,bj->b", flat, torch.linalg.inv(covariance[:, 4:8, 4:8]), flat)
    torch.testing.assert_close(joint[:, 0], expected)
    assert joint_dof.tolist() == [4]
    difference = torch.tensor([[0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    statistic, _, dof = contrast_test(beta, covariance, difference)
    recoded = torch.stack([*design[:, :2].T, design[:, 2], design[:, 2] + design[:, 3]], 1)
    (other, _), _, product = glm(counts, recoded)  # the first indicator's coefficient is now the difference
    moved = coefficient_covariance(product, recoded, n_genes=N_GENES, n_logits=2)
    moved_statistic, _, _ = contrast_test(other, moved, torch.eye(4, dtype=torch.float64)[2:3])
    torch.testing.assert_close(moved_statistic, statistic, rtol=1e-6, atol=1e-9)
    assert dof.tolist() == [2]


def test_numbers_are_doubles(gene_batch):
    counts, design, sigma = gene_batch
    residual, product, _ = null_fit(counts, sigma)
    assert score_test(residual, product, design[:, :1].float()).pvalue.dtype == torch.float64
    assert np.isfinite(score_test(residual, product, design[:, :1]).statistic.numpy()).all()
