"""A spot's density with its own effect integrated out: its law, leave-one-out by it, and the tree with it."""

import numpy as np
import pytest
import torch

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._given_others import left_out_effect
from pyrosplice.glmm._group_cross_validation import group_densities
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial
from pyrosplice.posterior import leave_one_out, one_gene
from pyrosplice.posterior._problem import link_posterior
from tests.glmm.test_laplace import grid
from tests.posterior.test_posterior import SPACE, data, mixed


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("spatial", [True, False])
def test_the_effect_at_a_spot_given_the_others_is_that_of_the_dense_gaussian(theta, spatial):
    generator, n = torch.Generator().manual_seed(0), 25
    solver = SparseSolver(SPACE.precision) if spatial else None
    model = MixedModel(torch.ones(2, n, 3).double(), torch.ones(n, 1).double(), solver, Multinomial())
    sigma = torch.tensor([[0.5, 1.0], [2.0, 0.2]]).double()
    a, c = sigma * theta**0.5 * spatial, sigma * (1 - theta * spatial) ** 0.5
    nu = torch.randn(2, n, 2, 3, generator=generator).double()
    mean, variance = left_out_effect(model, Parameters(torch.zeros(2, 1, 2).double(), a, c.unsqueeze(1)), nu)
    v = SPACE.dense()
    for gene in range(2):
        for q in range(2):
            whole = a[gene, q] ** 2 * v + c[gene, q] ** 2 * torch.eye(n).double()
            for i in (0, 12, 24):
                others = [j for j in range(n) if j != i]
                weights = torch.linalg.solve(whole[others][:, others], whole[others, i])
                torch.testing.assert_close(mean[gene, i, q], weights @ nu[gene, others, q], atol=1e-8, rtol=1e-8)
                left = whole[i, i] - weights @ whole[others, i]
                assert float(variance[gene, i, q]) == pytest.approx(float(left), rel=1e-8)


def test_without_an_independent_part_it_is_that_of_the_field():
    """θ = 1: (Σ⁻¹)ᵢᵢ is a difference that rounding would eat; what is kept of c changes it by a millionth."""
    model = MixedModel(torch.ones(1, 25, 2).double(), None, SparseSolver(SPACE.precision), Multinomial())
    nu = SPACE.sample(1, torch.Generator().manual_seed(1)).T[None]
    white = torch.full((1, 1, 1), 1e-8).double()
    parameters = Parameters(torch.zeros(1, 25, 1).double(), torch.ones(1, 1).double(), white)
    mean, variance = left_out_effect(model, parameters, nu.unsqueeze(-1))
    precision = torch.from_numpy(SPACE.precision.toarray())
    torch.testing.assert_close(variance[0, :, 0], 1 / precision.diagonal(), rtol=1e-4, atol=0)
    expected = nu[0, :, 0] - (precision @ nu[0, :, 0]) / precision.diagonal()
    torch.testing.assert_close(mean[0, :, 0, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [{}, {"hyper": "integrate"}, {"isoform_effect": "symmetric"}], ids=str)
def test_the_tree_has_the_mean_density_over_what_the_others_say(method):
    """At each draw: the likelihood averaged over draws of the effect at the spot from its law given the others."""
    effect = method.pop("isoform_effect", "independent")
    counts, design = data(depth=4.0)
    model = mixed(counts, design, isoform_effect=effect)
    tree = model.posterior(num_samples=3, groups=("left_out", "log_likelihood"), **method)
    method["isoform_effect"] = effect  # as it was given
    post, found = tree["posterior"], tree["left_out"].counts.values[0]
    assert found.shape == (3, 2, 25) and (found < 0).all()
    between = torch.eye(2).double() + (effect == "symmetric")
    for draw in range(3):
        sigma, theta = (float(post[name].values[0, draw, 1, 0]) for name in ("sigma", "theta"))
        whole = sigma**2 * torch.kron(theta * SPACE.dense() + (1 - theta) * torch.eye(25).double(), between)
        precision = torch.linalg.inv(whole)
        nu = torch.from_numpy(post.nu.values[0, draw, 1]).flatten()
        for spot in (0, 11):
            own = slice(2 * spot, 2 * spot + 2)
            covariance = torch.linalg.inv(precision[own, own])
            mean = nu[own] - covariance @ (precision @ nu)[own]
            noise = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(spot)).double()
            eta = mean + noise @ torch.linalg.cholesky(covariance).T
            fixed = design[spot] @ torch.from_numpy(post.beta.values[0, draw, 1])
            eta = eta + fixed + torch.from_numpy(post.bias_eta.values[0, draw, 1])
            density = Multinomial().log_prob(counts[1, spot], eta).exp().mean().log()
            assert found[draw, 1, spot] == pytest.approx(float(density), abs=0.03)


@pytest.mark.slow
def test_leave_one_out_is_fine_where_it_was_not():
    counts, design = data(n_genes=4, depth=20.0)
    trees = mixed(counts, design).posterior(num_samples=400, groups=("left_out", "log_likelihood"))
    new = leave_one_out(trees)
    del trees["left_out"]
    old = leave_one_out(trees)
    assert new.verdict.eq("fine").all() and (new.pareto_k < 0.7).all()
    assert (old.pareto_k > 0.7).any() and (old.elpd > new.elpd).all()  # which sees its own spot


@pytest.mark.slow
def test_arviz_takes_it():
    stats = pytest.importorskip("arviz_stats")
    counts, design = data(depth=20.0)
    counts[0, :5] = 0
    model = mixed(counts, design)
    tree = model.posterior(num_samples=400, groups=("left_out",), names={"gene": ["a", "b"]})
    one = one_gene(tree, "a")
    assert one["left_out"].sizes["spot"] >= 20
    one["log_likelihood"] = one["left_out"]
    found = stats.loo(one, var_name="counts")
    assert found.elpd == pytest.approx(leave_one_out(tree).loc["a", "elpd"], abs=0.05)


def test_what_has_no_effect_is_refused_and_it_is_only_made_on_demand():
    counts, design = data()
    glm = MultinomGLM()
    glm.setup_data(counts, design)
    glm.fit()
    with pytest.raises(InvalidArgumentError, match="has none"):
        glm.posterior(num_samples=5, groups=("left_out",))
    assert "left_out" not in mixed(counts, design).posterior(num_samples=5).children


def test_hyper_parameters_of_the_likelihood_are_those_of_the_draw():
    counts, design = data(depth=4.0)
    tree = mixed(counts, design, likelihood=DirichletMultinomial()).posterior(num_samples=4, groups=("left_out",))
    assert np.isfinite(tree["left_out"].counts.values).all()


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_of_draws_at_the_estimates_it_is_that_of_the_gaussian_without_the_spot(sigma):
    """Another computation of the same number: no draws, no weights, the spot's likelihood taken out."""
    generator = torch.Generator().manual_seed(4)
    space = grid(8)
    eta = sigma * space.sample(4, generator).unsqueeze(-1)
    counts = Multinomial().sample(torch.full((4, 64), 6.0).double(), eta, generator=generator)
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, priors="weak")
    model.setup_data(counts, space)
    model.fit()
    found = leave_one_out(model.posterior(num_samples=1000, groups=("left_out",)))
    each = group_densities(link_posterior(model.posterior_problem()), [torch.tensor([i]) for i in range(64)])
    assert np.abs(found.elpd.to_numpy() - each.sum(1).numpy()).max() / 64 < 0.01
