import numpy as np
import pytest
import torch

from pyrosplice import MultinomGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance


def data(n_genes=24, depth=2.0, n_spots=100, theta=0.5, **settings):
    adata = simulate_isoforms(
        n_spots=n_spots, n_genes=n_genes, n_isoforms=2, depth=depth, sigma=1.0, theta=theta, seed=5, **settings
    )
    counts = torch.from_numpy(adata.layers["counts"].toarray()).double().reshape(n_spots, n_genes, 2).transpose(0, 1)
    return adata, counts, CarCovariance(adata.obsp["connectivities"])


def fitted(counts, covariance, design=None, **options):
    model = MultinomGLMM(**{"fitting_method": "marginal_newton", "var_fix_sigma": False, **options})
    model.setup_data(counts, corr_sp=covariance, design_mtx=design)
    model.fit(quiet=True)
    return model


def test_the_corrected_value_is_the_integral():
    """One spot: the marginal likelihood is an integral over one number."""
    counts = torch.tensor([[[3.0, 1.0]], [[0.0, 2.0]]], dtype=torch.float64)
    model = MultinomGLMM(fitting_method="marginal_newton")
    model.setup_data(counts, corr_sp=IdentityCovariance(1))
    model.update_params_from_dict({"sigma": torch.full((2, 1), 1.5)})
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    eta = torch.from_numpy(1.5 * nodes)
    choose = torch.tensor([4.0, 1.0])[:, None]
    first, second = counts[:, 0, :1], counts[:, 0, 1:]
    density = choose * torch.sigmoid(eta) ** first * torch.sigmoid(-eta) ** second
    exact = (density @ torch.from_numpy(weights / weights.sum())).log()
    found = model.importance(n_draws=4000)
    assert ((found.value - exact).abs() < 4 * found.standard_error).all()
    assert (found.value - exact).abs().max() < 0.3 * (model.forward().detach() - exact).abs().max()
    assert torch.equal(model.importance(100, seed=3).value, model.importance(100, seed=3).value)
    assert not torch.equal(model.importance(100, seed=3).value, model.importance(100, seed=4).value)


@pytest.mark.slow
def test_refined_estimates_are_a_better_optimum_and_less_shrunken():
    _, counts, covariance = data()
    model = fitted(counts, covariance)
    before, sigma = model.importance(), model.sigma.clone()
    assert model.pareto_k is None
    after = model.refine()
    done = torch.tensor([reason != "not_refined" for reason in model.logger.reason])
    assert done.double().mean() > 0.8
    assert torch.equal(model.pareto_k, after.pareto_k)
    assert (after.value > before.value - 1e-6).all()
    assert (after.value - before.value).mean() > 0.05
    assert model.sigma[done].square().mean() > 1.05 * sigma[done].square().mean()
    eta = model.linear_predictor().detach()
    torch.testing.assert_close(model.nu.detach(), model.random_effect_posterior().mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(eta - model.bias_eta[:, None], model.nu.detach())
    model.fit(quiet=True)
    assert model.pareto_k is None
    torch.testing.assert_close(model.sigma, sigma, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("identity", [True, False])
def test_covariates_and_models_without_space_are_refined_too(identity):
    _, counts, covariance = data(n_genes=4, depth=5.0)
    x = 1e3 + torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]
    model = fitted(counts, IdentityCovariance(100) if identity else covariance, x)
    beta = model.beta.clone()
    model.refine(n_draws=200)
    error = (model.beta - beta).abs() / model.standard_errors()["beta"]
    assert 0 < error.max() < 1
    if identity:
        assert (model.var_sp_prop() < 1e-15).all()


@pytest.mark.parametrize(
    ("options", "ask", "message"),
    [
        ({"fitting_method": "joint_newton"}, lambda m: m.refine(), "found 'joint_newton'"),
        ({"var_fix_sigma": True}, lambda m: m.refine(), "var_fix_sigma=True"),
        ({}, lambda m: m.refine(n_draws=101), "n_draws: expected an even number"),
        ({}, lambda m: m.importance(n_draws=10), "at least 50, found 10"),
    ],
)
def test_what_cannot_be_refined_says_why(options, ask, message):
    _, counts, covariance = data(n_genes=1, n_spots=25)
    with pytest.raises(InvalidArgumentError, match=message):
        ask(fitted(counts, covariance, **options))
    with pytest.raises(NotReadyError):
        MultinomGLMM().importance()
