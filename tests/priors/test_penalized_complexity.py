"""Penalised-complexity priors against their definition, and priors as tables and JSON."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad

from pyrosplice import MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._multinomial import MultinomialGLMM
from pyrosplice.likelihoods import DirichletMultinomial
from pyrosplice.priors import ScaledNormal
from pyrosplice.priors._penalized_complexity import SpatialShare, pc_sigma, pc_theta, weak_priors
from pyrosplice.priors._prior_tables import describe, prior_from_json, prior_table, prior_to_json
from pyrosplice.spatial.car import IdentityCovariance
from tests.glmm.test_laplace import grid

CAR = grid(7)


def test_sigma():
    prior = pc_sigma(1.5, 0.1)
    assert float(1 - prior.cdf(torch.tensor(1.5))) == pytest.approx(0.1)


def distance(theta):
    values = torch.linalg.eigvalsh(CAR.dense())
    return float((-(1 - theta + theta * values).log().sum()).sqrt())


def test_theta_is_a_truncated_exponential_of_its_distance():
    prior = pc_theta(CAR, 0.5, 0.7)

    def density(u):
        return float(prior.log_prob(torch.tensor(u, dtype=torch.float64)).exp())

    whole = quad(density, -40, 40, limit=200, points=[-6, 0, 6])[0]
    below = quad(density, -40, 0, limit=200, points=[-6])[0]
    assert whole == pytest.approx(1, abs=5e-4)
    assert below == pytest.approx(0.7, abs=5e-4)
    for u in (-8.0, -2.3, 0.4, 3.0):
        theta, h = 1 / (1 + np.exp(-u)), 1e-4
        slope = (distance(1 / (1 + np.exp(-u - h))) - distance(1 / (1 + np.exp(-u + h)))) / (2 * h)
        expected = prior.rate * np.exp(-prior.rate * distance(theta)) * slope
        assert density(u) * (1 - np.exp(-prior.rate * distance(1 - 1e-12))) == pytest.approx(expected, rel=5e-3)


def test_theta_draws_follow_the_density_and_gradients_exist():
    prior = pc_theta(CAR)
    torch.manual_seed(0)
    draws = prior.expand((20000,)).sample()
    assert float((draws < 0).double().mean()) == pytest.approx(2 / 3, abs=0.015)
    u = torch.tensor([-9.0, 0.3, 12.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(prior.log_prob(u).sum(), u)
    assert slope[0] == pytest.approx(1, abs=0.01) and slope[2] == pytest.approx(-1, abs=0.01)
    with pytest.raises(InvalidArgumentError, match="expected more than"):
        pc_theta(CAR, 0.5, 0.05)


def test_small_arguments_of_a_prior_are_written_out():
    assert describe(dist.Normal(0.0, torch.tensor([[1.0], [0.1]]))) == "Normal(loc=0, scale=[[1], [0.1]])"
    assert describe(dist.Normal(torch.zeros(9), torch.arange(1.0, 10))) == "Normal(loc=0, scale=[9])"


def test_the_prior_table_names_every_site():
    priors = {"beta": dist.StudentT(3.0, 0.0, 1.0), "theta_logit": pc_theta(CAR)}
    shapes = {"beta": (4, 2, 2), "bias_eta": (4, 2), "sigma": (4, 1), "theta_logit": (4, 1), "concentration": (4, 1)}
    table = prior_table(priors, shapes)
    assert table.loc["beta", "prior"] == "StudentT(df=3, loc=0, scale=1)"
    assert table.loc["sigma", "prior"] == "flat" and table.loc["concentration", "support"] == "positive"
    assert "penalised complexity" in table.loc["theta_logit", "prior"]
    assert table.loc["beta", "shape"] == (2, 2)


@pytest.mark.parametrize(
    "prior",
    [
        *weak_priors(CAR).values(),
        dist.StudentT(3.0, 0.0, 1.0),
        dist.Gamma(2.0, 0.3),
        dist.HalfNormal(2.0),
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        ScaledNormal(torch.tensor([1.0, -1.0]), 3.0),
    ],
    ids=describe,
)
def test_priors_come_back_from_json(prior):
    again = prior_from_json(prior_to_json(prior))
    shape = prior.event_shape
    at = torch.full(shape, 0.4, dtype=torch.float64)
    torch.testing.assert_close(again.log_prob(at).double(), prior.log_prob(at).double(), rtol=1e-6, atol=1e-6)


def test_what_json_cannot_bring_back_is_none():
    class Mine(dist.Normal):
        pass

    assert prior_to_json(Mine(0.0, 1.0)) is None
    assert prior_to_json(Mine(torch.zeros(2), 1.0).to_event(1)) is None
    assert isinstance(prior_from_json(prior_to_json(pc_theta(CAR))), SpatialShare)


def spatial_counts():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 10, (2, 25, 3), generator=generator).double()
    return counts, torch.randn(25, 1, generator=generator).double()


def log_densities(priors, sites):
    """Log density of each given prior at a point of its own."""
    return {name: float(priors[name].log_prob(torch.tensor(0.7).double())) for name in sites}


def test_weak_by_name_is_the_table_of_the_data_at_hand():
    (counts, design), space, likelihood = spatial_counts(), grid(5), DirichletMultinomial()
    expected = weak_priors(space, likelihood)
    model = MultinomGLMM(fitting_method="marginal_newton", priors="weak", likelihood=likelihood)
    assert "weak" in repr(model)
    model.setup_data(counts, space, design)
    assert log_densities(model.priors, expected) == pytest.approx(log_densities(expected, expected), rel=1e-6)
    glm = MultinomGLM(priors="weak")
    glm.setup_data(counts, design)
    assert set(glm.priors) == {"beta", "bias_eta"}
    program = MultinomialGLMM(counts, design, space.dense(), priors="weak")
    point = torch.full((2, 1), 0.7, dtype=torch.float64)
    torch.testing.assert_close(
        program.priors["theta_logit"].log_prob(point),
        expected["theta_logit"].log_prob(point).squeeze(-1),
        rtol=1e-5,
        atol=0,
    )
    model.setup_data(counts[:, :16], IdentityCovariance(16), design[:16])  # another tissue has other priors
    assert isinstance(model.priors["theta_logit"], dist.Logistic)
    eigen = torch.linalg.eigh(space.dense())
    model.setup_data(counts, None, design, corr_sp_eigvals=eigen[0][5:], corr_sp_eigvecs=eigen[1][:, 5:])
    assert torch.isfinite(model.priors["theta_logit"].log_prob(torch.tensor(0.7).double()))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["glm", "glmm-null", "glmm-full"])
def test_weak_by_name_of_an_anndata(model_type, tmp_path):
    adata = simulate_isoforms(n_spots=36, n_genes=2, covariates=("iid",), seed=0)
    model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False, priors="weak")
    assert "weak priors" in repr(model)
    model.setup_data(adata, design_mtx="iid")
    given = weak_priors(model.sp_kernel if model_type == "glmm-full" else None)
    sites = [name for name in given if model_type != "glm" or name in ("beta", "bias_eta")]
    assert log_densities(model.priors, sites) == log_densities(given, sites) and set(model.priors) == set(sites)
    model.fit(print_progress=False, with_design_mtx=True)
    model.save(tmp_path / "model")
    assert set(SplisosmGLMM.load(tmp_path / "model").priors) == set(sites)
    drawn = model.posterior(num_samples=30, hyper="integrate")
    assert "prior_predictive" in drawn.children  # every prior is proper


@pytest.mark.parametrize("make", [MultinomGLM, MultinomGLMM, SplisosmGLMM])
@pytest.mark.parametrize("given", ["strong", 3, ["weak"]])
def test_other_names_are_refused_with_those_that_exist(make, given):
    with pytest.raises(InvalidArgumentError, match=r"priors: expected a dictionary .* or a name \('weak'\), found"):
        make(priors=given)
