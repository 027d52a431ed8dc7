"""Laplace's posterior of the linear predictor at fitted and new spots, and without groups, against dense algebra."""

import numpy as np
import pytest
import torch

from pyrosplice import MultinomGLMM
from pyrosplice.glmm._group_cross_validation import group_densities, without_groups
from pyrosplice.glmm._link_posterior import LinkPosterior, Places
from pyrosplice.likelihoods import DirichletMultinomial, NegativeBinomial
from pyrosplice.posterior._problem import target_of
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial._new_spots import Positions, new_spots
from pyrosplice.spatial.car import CarCovariance

GRID = torch.cartesian_prod(torch.arange(8.0), torch.arange(7.0)).double().numpy()
HELD = np.zeros(len(GRID), dtype=bool)
HELD[[3, 17, 18, 24, 25, 40]] = True  # alone, and a hole
LIKELIHOODS = [None, DirichletMultinomial(20.0), NegativeBinomial(0.5)]


def fitted(seed, *, theta_logit=0.4, likelihood=None, isoform_effect="independent"):
    """A model at given parameters, with its Gaussian posterior, and the field at the spots that are held out."""
    generator = torch.Generator().manual_seed(seed)
    covariance = CarCovariance(knn_graph(GRID[~HELD], k_neighbors=4), rho=0.95)
    n_isos, n = 1 if isinstance(likelihood, NegativeBinomial) else 3, int((~HELD).sum())
    counts = torch.poisson(3 * torch.rand(2, n, n_isos, generator=generator).double(), generator=generator)
    design = torch.randn(n, 1, generator=generator).double()
    model = MultinomGLMM(fitting_method="marginal_newton", likelihood=likelihood, isoform_effect=isoform_effect)
    model.setup_data(counts, covariance, design)
    q = model.bias_eta.shape[1]
    model.update_params_from_dict(
        {
            "beta": 0.3 * torch.randn(2, 1, q, generator=generator).double(),
            "bias_eta": 0.3 * torch.randn(2, q, generator=generator).double(),
            "sigma": torch.tensor([[0.6], [1.3]]).double(),
            "theta_logit": torch.full((2, 1), theta_logit).double(),
        }
    )
    target, coefficients, phi = target_of(model.posterior_problem(), torch.arange(2), hyper="plug-in")
    profile = target.profile(coefficients, phi)
    places = [Positions(GRID[some], np.zeros(int(some.sum()), dtype=np.intp)) for some in (~HELD, HELD)]
    field = new_spots(covariance, *places, k_neighbors=4, graph="mutual")
    return LinkPosterior(profile.mode, profile.information), covariance, field


def dense(posterior, covariance, field, design, gene, taken=()):
    """Covariance of η at old and new spots, spots fastest, at the posterior's own mode; without some spots' counts."""
    n, m, q = len(posterior.design), len(field), posterior.model.n_predictors
    v, k = covariance.dense(), field.weights(torch.arange(m))
    left = torch.linalg.inv(torch.from_numpy(field.solver.precision.toarray()))
    space = torch.cat([torch.cat([v, v @ k.T], 1), torch.cat([k @ v, k @ v @ k.T + left], 1)])
    a, c = posterior.parameters.spatial[gene], posterior.parameters.white[gene, 0]
    eye = torch.eye(n + m, dtype=torch.float64)
    prior = torch.block_diag(*[a[r] ** 2 * space + c[r] ** 2 * eye for r in range(q)])
    columns = torch.block_diag(*[torch.cat([posterior.design, design])] * q)
    information = torch.zeros_like(prior)
    for i in set(range(n)) - set(taken):
        at = [r * (n + m) + i for r in range(q)]
        information[np.ix_(at, at)] = posterior.mode.step.information[gene, i]
    both = torch.cat([columns, torch.eye(len(prior), dtype=torch.float64)], 1)  # η from (Γ, ν)
    precision = both.T @ information @ both
    precision[columns.shape[1] :, columns.shape[1] :] += torch.linalg.inv(prior)
    return (both @ torch.linalg.solve(precision, both.T)).reshape(q, n + m, q, n + m)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
@pytest.mark.parametrize("theta_logit", [-2.0, 0.4, 3.0])
def test_predictors_have_the_mean_and_covariance_of_dense_kriging(likelihood, theta_logit):
    posterior, covariance, field = fitted(0, theta_logit=theta_logit, likelihood=likelihood)
    n, m, q = posterior.design.shape[0], len(field), posterior.model.n_predictors
    design = torch.randn(m, posterior.design.shape[1], generator=torch.Generator().manual_seed(5)).double()
    places = Places(torch.cat([posterior.design, design]), torch.cat([torch.arange(n), torch.full((m,), -1)]), field)
    mean, spread = posterior.mean(places), posterior.covariance(places)
    torch.testing.assert_close(mean[:, :n], posterior.mode.eta, atol=1e-10, rtol=0)
    for gene in range(2):
        whole = dense(posterior, covariance, field, design, gene)
        expected = torch.stack([whole[:, i, :, i] for i in range(n + m)])
        torch.testing.assert_close(spread[gene], expected, atol=1e-8, rtol=1e-8)
        # the mean at new spots: that of the prior given the effect at the old ones
        a, c = posterior.parameters.spatial[gene], posterior.parameters.white[gene, 0]
        v, k = covariance.dense(), field.weights(torch.arange(m))
        effect = mean[gene, :n] - posterior.design @ posterior.parameters.coefficients[gene]
        for r in range(q):
            old = a[r] ** 2 * v + c[r] ** 2 * torch.eye(n).double()
            kriged = a[r] ** 2 * k @ v @ torch.linalg.solve(old, effect[:, r])
            kriged = kriged + design @ posterior.parameters.coefficients[gene, :, r]
            torch.testing.assert_close(mean[gene, n:, r], kriged, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
@pytest.mark.parametrize("group", [(4,), (3, 4, 11, 30)], ids=str)
def test_a_group_is_taken_out_of_the_gaussian(likelihood, group):
    posterior, covariance, field = fitted(1, likelihood=likelihood)
    spots, q = torch.tensor([group]), posterior.model.n_predictors
    mean, root = without_groups(posterior, spots)
    design = torch.zeros(len(field), posterior.design.shape[1]).double()
    for gene in range(2):
        whole = dense(posterior, covariance, field, design, gene, taken=group)
        expected = whole[:, group][:, :, :, group].permute(1, 0, 3, 2).reshape(len(group) * q, -1)
        torch.testing.assert_close((root @ root.mT)[gene, 0], expected, atol=1e-8, rtol=1e-8)
        # at the mode of all counts, what the others say and the group's own score balance
        away = posterior.mode.eta[gene, list(group)] - mean[gene, 0]
        pull = torch.linalg.solve(expected, away.flatten())
        torch.testing.assert_close(pull, posterior.mode.score[gene, list(group)].flatten(), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("isoform_effect", ["independent", "symmetric"])
def test_single_spots_in_one_pass_are_the_groups_of_one(isoform_effect):
    posterior, _, _ = fitted(2, isoform_effect=isoform_effect)
    some = [torch.tensor([i]) for i in (0, 7, 20)]
    together = group_densities(posterior, some)
    one_by_one = torch.cat([group_densities(posterior, [spot]) for spot in some], 1)
    torch.testing.assert_close(together, one_by_one)
    pairs = group_densities(posterior, [torch.tensor([0, 7])])
    assert bool((pairs < 0).all()) and float((pairs - together[:, :1] - together[:, 1:2]).abs().max()) < 1.0


@pytest.mark.slow
def test_draws_have_the_mean_and_covariance(n_draws=2000):
    posterior, covariance, field = fitted(3)
    n, m = len(posterior.design), len(field)
    design = torch.randn(m, 2, generator=torch.Generator().manual_seed(5)).double()
    places = Places(torch.cat([posterior.design, design]), torch.cat([torch.arange(n), torch.full((m,), -1)]), field)
    draws = torch.stack(list(posterior.draws(places, n_draws, torch.Generator().manual_seed(0))))
    for gene in range(2):
        whole = dense(posterior, covariance, field, design, gene).permute(1, 0, 3, 2).reshape(2 * (n + m), -1)
        scale = whole.diagonal().sqrt()
        away = (draws[:, gene] - posterior.mean(places)[gene]).flatten(1) / scale
        assert float(away.mean(0).abs().max()) < 5 / n_draws**0.5
        assert float((away.T @ away / n_draws - whole / scale / scale[:, None]).abs().max()) < 7 / n_draws**0.5
