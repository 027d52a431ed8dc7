"""Random effects by importance: several tried at each of the rest, one kept by weight."""

import pytest
import torch

from pyrosplice.glmm._importance import importance, pareto_k
from pyrosplice.posterior._gaussian import _effects, draw_integrated
from pyrosplice.posterior._grid import evaluated, hyper_grid, nodes_of
from pyrosplice.posterior._problem import target_of
from tests.posterior.test_posterior import data, mixed


@pytest.fixture(scope="module")
def fit():
    """Two counts a spot, where Laplace's random effects are far from theirs."""
    problem = mixed(*data(2, depth=2.0)).posterior_problem()
    target, coefficients, phi = target_of(problem, torch.arange(2), hyper="integrate")
    return target, coefficients, torch.tensor([0.3, 0.5]).to(phi).expand_as(phi)  # log σ and logit θ


@pytest.mark.slow
def test_the_mean_weight_is_the_marginal_likelihood_and_the_weighted_draws_are_the_random_effects(fit):
    target, coefficients, phi = fit
    generator = torch.Generator().manual_seed(0)
    exact = importance(target.mode(coefficients, phi), n_draws=4000, seed=1)
    _, total = _effects(target.mode(coefficients, phi), 2000, generator)
    torch.testing.assert_close(total, exact.value, rtol=0, atol=5 * float(exact.standard_error.max()))

    times = 2000
    mode = target.mode(coefficients.repeat(times, 1, 1), phi.repeat(times, 1))
    means, spreads = [], []
    for n_tried in (1, 16):
        latents, weight = _effects(mode, n_tried, generator)
        nu = mode.step.model.random_part(mode.step.parameters, latents).reshape(times, 2, -1)
        share = torch.softmax(weight.reshape(times, 2), 0)
        means.append((share.unsqueeze(-1) * nu).sum(0))
        spreads.append(weight.reshape(times, 2).std(0))
    assert (spreads[1] < 0.5 * spreads[0]).all()
    laplace = mode.step.model.random_part(mode.step.parameters, mode.latents)[:2].flatten(1)
    assert ((means[1] - means[0]).square().sum(1) < 0.3 * (laplace - means[1]).square().sum(1)).all()


@pytest.mark.slow
def test_trying_more_random_effects_evens_the_weights(fit):
    target, coefficients, phi = fit
    known = hyper_grid(target, coefficients, phi)
    one, many = (
        draw_integrated(target, known, 300, torch.Generator().manual_seed(0), n_effects=n).log_weights for n in (1, 16)
    )
    assert (many.std(0) < one.std(0)).all() and (pareto_k(many) < 0.7).all()
    torch.testing.assert_close(*(torch.logsumexp(x, 0) for x in (one, many)), rtol=0, atol=0.3)


def test_the_density_of_a_gene_does_not_depend_on_the_others(fit):
    target, coefficients, phi = fit
    nodes = nodes_of(hyper_grid(target, coefficients, phi).axes)[:, ::40].transpose(0, 1)
    both, there = evaluated(target, coefficients, nodes)
    second = torch.tensor([1])
    alone, here = evaluated(target.select(second), coefficients[second], nodes[:, second])
    torch.testing.assert_close(both[:, second], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(there[:, second], here, rtol=0, atol=1e-5)
