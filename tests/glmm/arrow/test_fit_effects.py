"""Fits with lists of effects: closed forms, symmetries, and genes that have no estimate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.fitting import EffectsOptions, fit_effects
from pyrosplice.likelihoods import Likelihood, Poisson
from tests.glmm.arrow.dense_laplace import block, dense_value, design_of, random_problem

TIGHT = EffectsOptions(tolerance=1e-6)


def with_effects(layout, family, seed, *, sd=0.6, n_cells=150, n_genes=3):
    """A problem whose counts have effects of its own groups."""
    problem = random_problem(layout, family, seed, n_genes=n_genes, n_cells=n_cells)
    rng = np.random.default_rng(seed)
    psi = np.concatenate([[sd * (np.trace(e) > 0) for e in g.basis] for g in problem.groups])
    z = design_of(problem, torch.as_tensor(psi)).numpy()
    eta = 0.7 + problem.offset + 0.3 * problem.design[:, 1] + rng.normal(size=(n_genes, z.shape[1])) @ z.T
    if family == "normal":
        counts = eta + rng.normal(0, 0.8, eta.shape)
    else:
        counts = rng.poisson(np.exp(eta) * rng.gamma(4, 1 / 4, eta.shape))
    return replace(problem, counts=torch.as_tensor(counts[..., None], dtype=torch.float64))


@pytest.mark.parametrize("restricted", [True, False])
@pytest.mark.parametrize("layout", ["intercept", "slopes", "nested", "crossed", "root"])
def test_normal_is_the_linear_mixed_model(layout, restricted):
    problem = with_effects(layout, "normal", seed=3, n_genes=2)
    fit = fit_effects(problem, restricted=restricted, options=TIGHT)
    x, n_psi = problem.design, fit.parameters.shape[1]
    for gene in range(2):
        y = problem.counts[gene, :, 0].numpy() - problem.offset

        def minus_log_likelihood(parameters, y=y):
            z = design_of(problem, torch.as_tensor(parameters[:n_psi])).numpy()
            v = z @ z.T + np.exp(2 * parameters[-1]) * np.eye(len(y))
            vx, n_free = np.linalg.solve(v, x), len(y) - (x.shape[1] if restricted else 0)
            rest = y - x @ np.linalg.solve(x.T @ vx, vx.T @ y)
            out = np.linalg.slogdet(v)[1] + rest @ np.linalg.solve(v, rest) + n_free * np.log(2 * np.pi)
            return 0.5 * (out + (np.linalg.slogdet(x.T @ vx)[1] if restricted else 0.0))

        found = np.append(fit.parameters[gene], fit.hyper["sd"][gene].log())
        assert fit.log_likelihood[gene].item() == pytest.approx(-minus_log_likelihood(found), abs=1e-8)
        best = minimize(minus_log_likelihood, found + 0.05, method="BFGS", options={"gtol": 1e-6})
        assert fit.log_likelihood[gene].item() == pytest.approx(-best.fun, abs=1e-6)
        z = design_of(problem, torch.as_tensor(found[:n_psi])).numpy()
        precision = np.linalg.inv(z @ z.T + np.exp(2 * found[-1]) * np.eye(len(y)))
        covariance = np.linalg.inv(x.T @ precision @ x)
        np.testing.assert_allclose(fit.covariance[gene], covariance, atol=1e-9)
        np.testing.assert_allclose(fit.coefficients[gene, :, 0], covariance @ x.T @ precision @ y, atol=1e-6)


@pytest.mark.parametrize("layout", ["slopes", "nested slopes", "crossed", "missing"])
@pytest.mark.parametrize("restricted", [True, False])
def test_value_at_the_estimates_is_dense_and_highest(layout, restricted):
    problem = with_effects(layout, "nb", seed=5)
    fit = fit_effects(problem, restricted=restricted, options=TIGHT)
    beta = np.zeros((3, 0)) if restricted else fit.coefficients[..., 0].numpy()
    outer = (fit.parameters.numpy(), fit.hyper["dispersion"].log().numpy(), beta)
    for gene in range(2):
        own = [part[gene] for part in outer]
        best = dense_value(problem, gene, own, restricted=restricted)
        assert fit.log_likelihood[gene].item() == pytest.approx(best, abs=1e-8)
        rng = np.random.default_rng(gene)
        for _ in range(3):
            other = [part + rng.normal(0, 0.05, part.shape) for part in own]
            assert dense_value(problem, gene, other, restricted=restricted) < best + 1e-9


def relabelled(problem, rng):
    """The same problem with cells, levels and genes in another order."""
    cells, genes = rng.permutation(len(problem.design)), rng.permutation(len(problem.counts))
    groups, names = [], []
    for group in problem.groups:
        names.append(rng.permutation(len(group.level_names)))
        levels = np.where(group.levels >= 0, names[-1][group.levels], -1)[cells]
        root = group.root
        if root is not None:
            root = np.empty_like(group.root)
            root[names[-1]] = group.root
        groups.append(replace(group, levels=levels, columns=group.columns[cells], root=root))
    counts = problem.counts[torch.as_tensor(genes)][:, torch.as_tensor(cells)]
    moved = replace(
        problem, counts=counts, design=problem.design[cells], offset=problem.offset[cells], groups=tuple(groups)
    )
    return moved, genes, names


@pytest.mark.parametrize("layout", ["nested slopes", "crossed", "missing", "root"])
def test_order_of_genes_cells_and_levels_does_not_matter(layout):
    problem = with_effects(layout, "nb", seed=7)
    moved, genes, names = relabelled(problem, np.random.default_rng(0))
    one, other = fit_effects(problem, options=TIGHT), fit_effects(moved, options=TIGHT)
    one = one.take(torch.as_tensor(genes))
    np.testing.assert_allclose(other.log_likelihood, one.log_likelihood, atol=1e-7)
    np.testing.assert_allclose(other.coefficients, one.coefficients, atol=1e-5)
    for e, name in enumerate(names):
        np.testing.assert_allclose(other.group_modes[e][:, name], one.group_modes[e], atol=1e-5)
        np.testing.assert_allclose(other.group_sds[e][:, name], one.group_sds[e], atol=1e-5)


def test_merged_rows_are_their_cells():
    problem = with_effects("crossed", "nb", seed=9)
    whole = replace(problem, offset=None)
    merged = replace(
        whole,
        design=whole.design[:, :2],
        groups=tuple(
            replace(g, columns=g.columns[:, :1], basis=g.basis[:1, :1, :1], parameters=("sd",)) for g in whole.groups
        ),
    )
    spread = np.zeros((3, 150, 1)) + 1e-300 * np.arange(3)[:, None, None]  # an offset of each gene: nothing merges
    one = fit_effects(merged, options=TIGHT)
    other = fit_effects(replace(merged, offset=spread), options=TIGHT)
    for name in ("log_likelihood", "coefficients", "covariance", "parameters"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6)


def test_offsets_of_each_gene_are_those_of_each_gene():
    problem = with_effects("intercept", "nb", seed=10)
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 0.3, (3, 150, 1))
    whole = fit_effects(replace(problem, offset=offsets))
    for gene in range(3):
        alone = fit_effects(replace(problem, counts=problem.counts[gene : gene + 1], offset=offsets[gene, :, 0]))
        np.testing.assert_allclose(alone.log_likelihood[0], whole.log_likelihood[gene], atol=1e-8)


class PlainNegativeBinomial(Likelihood):
    """The same density, of which the engine knows nothing."""

    predictors, n_categories, conditional = ("location",), (1, 1), False
    hyperparameters, size = {"size": 3.0}, None

    def log_prob(self, counts, eta):
        y, mean, r = counts[..., 0], eta[..., 0].exp(), torch.as_tensor(self.size)
        gammas = torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1)
        return gammas + y * (mean / (mean + r)).log() + r * (r / (mean + r)).log()


@pytest.mark.parametrize("layout", ["slopes", "crossed"])
def test_a_likelihood_of_ones_own_is_fitted_alike(layout):
    problem = with_effects(layout, "nb", seed=11)
    one = fit_effects(problem, options=TIGHT)
    other = fit_effects(replace(problem, likelihood=PlainNegativeBinomial()), options=TIGHT)
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, atol=1e-6)
    np.testing.assert_allclose(one.hyper["dispersion"], 1 / other.hyper["size"], rtol=1e-3)


def test_genes_without_estimates_say_why_and_change_no_other():
    problem = with_effects("slopes", "nb", seed=12, n_genes=4)
    alone = fit_effects(problem, options=TIGHT)
    counts = problem.counts.clone()
    counts[1] = 0
    counts[2, problem.design[:, 1] == 0] = 0
    fit = fit_effects(replace(problem, counts=counts), options=TIGHT)
    assert list(fit.reason[[1, 2]]) == ["no_counts", "separated"]
    assert fit.coefficients[1:3].isnan().all() and fit.log_likelihood[1:3].isnan().all()
    assert fit.group_modes[0][1:3].isnan().all()
    for name in ("log_likelihood", "coefficients", "parameters"):
        np.testing.assert_allclose(getattr(fit, name)[[0, 3]], getattr(alone, name)[[0, 3]], atol=1e-10)


def test_an_effect_that_is_absent_has_a_variance_of_zero():
    problem = with_effects("intercept", "nb", seed=2, sd=0.0, n_genes=20)
    fit = fit_effects(problem)
    assert set(fit.reason) <= {"converged", "boundary"}
    zero = fit.parameters[:, 0] < 1e-3
    assert 4 <= int(zero.sum()) <= 16  # half of them, about
    none = fit_effects(replace(problem, groups=()))
    np.testing.assert_allclose(fit.log_likelihood[zero], none.log_likelihood[zero], atol=1e-5)


def test_a_prior_is_added_to_what_is_maximized():
    problem = with_effects("intercept", "nb", seed=14)
    held = fit_effects(problem, log_prior=lambda psi, sds, logs: -0.5 * ((psi[:, 0] - 0.2) / 1e-4).square())
    np.testing.assert_allclose(held.parameters[:, 0], 0.2, atol=1e-4)


def test_linear_predictor_is_that_of_the_modes():
    problem = with_effects("crossed", "normal", seed=15)
    fit = fit_effects(problem, options=TIGHT)
    eta = fit.linear_predictor(problem)
    rest = (problem.counts - eta).square().sum((1, 2))
    u = [mode[..., 0].square().sum((1, 2)) for mode in fit.group_modes]
    assert eta.shape == (3, 150, 1)
    # the normal equations of the mode: residuals are orthogonal to the design
    np.testing.assert_allclose((problem.counts - eta)[..., 0] @ torch.as_tensor(problem.design), 0.0, atol=1e-6)
    assert (rest > 0).all() and all((own > 0).all() for own in u)


def test_wrong_problems_are_refused():
    problem = random_problem("intercept", "nb", 0)
    with pytest.raises(InvalidArgumentError, match="full rank"):
        fit_effects(replace(problem, design=problem.design[:, [0, 1, 1]]))
    with pytest.raises(InvalidArgumentError, match="effect 'effect': expected levels"):
        fit_effects(replace(problem, groups=(block(np.zeros(10, int), np.ones((10, 1))),)))
    with pytest.raises(InvalidArgumentError, match="offset"):
        fit_effects(replace(problem, offset=np.zeros(3)))


@pytest.mark.parametrize("restricted", [True, False])
def test_a_symmetric_effect_does_not_know_the_last_isoform(restricted):
    problem = replace(with_usage(seed=16), isoform_effect="symmetric", offset=None)
    other = replace(problem, counts=problem.counts[..., [2, 0, 1]])
    one, turned = (fit_effects(p, restricted=restricted, options=TIGHT) for p in (problem, other))
    np.testing.assert_allclose(one.log_likelihood, turned.log_likelihood, atol=1e-7)
    np.testing.assert_allclose(one.parameters, turned.parameters, atol=1e-4)
    last, first = turned.coefficients.unbind(-1)  # isoforms 2 and 0 against 1
    np.testing.assert_allclose(one.coefficients, torch.stack([first - last, -last], -1), atol=1e-4)
    last, first = turned.group_modes[0].unbind(-1)
    np.testing.assert_allclose(one.group_modes[0], torch.stack([first - last, -last], -1), atol=1e-4)
    variance = turned.group_sds[0].square()
    np.testing.assert_allclose(one.group_sds[0][..., 1].square(), variance[..., 0], atol=1e-4)


def test_offsets_of_symmetric_effects_are_those_of_logits():
    problem = replace(with_usage(seed=18), isoform_effect="symmetric")
    spread = np.broadcast_to(problem.offset[None, :, None], (3, 150, 2))
    one, other = fit_effects(problem), fit_effects(replace(problem, offset=spread.copy()))
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, atol=1e-8)
    np.testing.assert_allclose(one.linear_predictor(problem), other.linear_predictor(problem), atol=1e-6)


def with_usage(seed):
    """Counts of three isoforms whose usage varies between levels."""
    problem = random_problem("slopes", "multinomial", seed, n_cells=150)
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(3, 6, 3))[:, problem.groups[0].levels]
    return replace(problem, counts=torch.as_tensor(rng.poisson(2 * np.exp(0.6 * effects))).double())


def test_batches_do_not_matter():
    problem = with_effects("crossed", "nb", seed=17, n_genes=5)
    whole = fit_effects(problem, options=TIGHT)
    single = fit_effects(problem, options=replace(TIGHT, batch_genes=2))
    assert list(whole.reason) == list(single.reason)
    for name in ("log_likelihood", "coefficients", "covariance", "parameters"):
        np.testing.assert_allclose(getattr(single, name), getattr(whole, name), atol=1e-6)


class NoLargeCounts(Poisson):
    """Poisson counts by a density that refuses large ones."""

    def log_prob(self, counts, eta):
        if float(counts.max()) > 900:
            raise ValueError("too large")
        return super().log_prob(counts, eta)


@pytest.mark.parametrize("noise", [False, True])
def test_a_gene_whose_own_likelihood_raises_fails_alone(noise):
    problem = replace(with_effects("intercept", "nb", seed=2, n_cells=60), likelihood=NoLargeCounts(), noise=noise)
    expected = fit_effects(replace(problem, counts=problem.counts[[0, 2]]))
    problem.counts[1, 0] = 1000.0
    with pytest.warns(UserWarning, match="raised"):
        fit = fit_effects(problem)
    assert bool(fit.coefficients[1].isnan().all()) and fit.reason[1] not in ("converged", "boundary")
    torch.testing.assert_close(fit.coefficients[[0, 2]], expected.coefficients, rtol=0, atol=1e-6)
    torch.testing.assert_close(fit.log_likelihood[[0, 2]], expected.log_likelihood, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["intercept", "slopes", "crossed"])
def test_without_coefficients_both_likelihoods_are_the_dense_one(layout):
    problem = with_effects(layout, "nb", seed=5)
    problem = replace(problem, design=problem.design[:, :0])
    restricted, maximum = (fit_effects(problem, restricted=own, options=TIGHT) for own in (True, False))
    assert restricted.coefficients.shape == (3, 0, 1)
    for gene in range(3):
        outer = [maximum.parameters[gene].numpy(), maximum.hyper["dispersion"][gene].log().numpy(), np.zeros(0)]
        best = dense_value(problem, gene, outer, restricted=False)
        assert maximum.log_likelihood[gene].item() == pytest.approx(best, abs=1e-8)
        assert restricted.log_likelihood[gene].item() == pytest.approx(best, abs=1e-8)
