"""The Pyro models: their density is the formula, and Pyro's own tools run on them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch.distributions import Multinomial as TorchMultinomial
from torch.distributions import MultivariateNormal

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._distributions import EigenCovariance, SpatialEffect, SpotCounts
from pyrosplice.glmm._multinomial import MultinomialGLM, MultinomialGLMM, log_density
from pyrosplice.likelihoods._contract import Multinomial
from pyrosplice.priors._sites import complete_priors, is_flat, log_prior, variance_prior

G, N, P, Q = 3, 12, 2, 2


@pytest.fixture
def data():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(N, N, generator=rng, dtype=torch.float64)
    counts = torch.randint(0, 5, (G, N, Q + 1), generator=rng).double()
    counts[:, :2] = 0.0
    return counts, torch.randn(N, P, generator=rng, dtype=torch.float64), root @ root.T / N


@pytest.fixture
def values():
    rng = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    return {
        "beta": normal(G, P, Q),
        "bias_eta": normal(G, Q),
        "sigma": normal(G, Q).exp(),
        "theta_logit": normal(G, Q),
        "nu": normal(G, N, Q),
    }


def reference_log_density(counts, design, covariance, values):
    """The model's formula with torch's own distributions, one spot and one logit at a time."""
    total = torch.zeros(G, dtype=torch.float64)
    for g in range(G):
        eta = design @ values["beta"][g] + values["bias_eta"][g] + values["nu"][g]
        for i in range(N):
            logits = torch.cat([eta[i], eta.new_zeros(1)])
            total[g] += TorchMultinomial(int(counts[g, i].sum()), logits=logits).log_prob(counts[g, i])
        for q in range(Q):
            theta, sigma = torch.sigmoid(values["theta_logit"][g, q]), values["sigma"][g, q]
            matrix = sigma**2 * (theta * covariance + (1 - theta) * torch.eye(N, dtype=torch.float64))
            total[g] += MultivariateNormal(torch.zeros(N).double(), matrix).log_prob(values["nu"][g, :, q])
    return total


def test_joint_density_is_the_formula(data, values):
    counts, design, covariance = data
    model = MultinomialGLMM(counts, design, covariance, share_variance=False)
    density = log_density(model, values)
    torch.testing.assert_close(density, reference_log_density(counts, design, covariance, values), rtol=0, atol=1e-9)
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data=values)).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), density.sum())


def test_priors_add_their_density(data, values):
    counts, design, covariance = data
    values = {**values, "sigma": values["sigma"][:, :1], "theta_logit": values["theta_logit"][:, :1]}
    priors = {
        "beta": dist.MultivariateNormal(torch.zeros(Q).double(), 2.0 * torch.eye(Q).double()),
        "bias_eta": dist.Normal(0.0, 3.0),
        "sigma": dist.Gamma(2.0, 0.3),
    }
    flat = log_density(MultinomialGLMM(counts, design, covariance), values)
    model = MultinomialGLMM(counts, design, covariance, priors=priors)
    sites = {name: values[name] for name in model.priors}
    expected = (
        torch.distributions.Normal(0.0, 2.0**0.5).log_prob(values["beta"]).sum((1, 2))
        + torch.distributions.Normal(0.0, 3.0).log_prob(values["bias_eta"]).sum(1)
        + torch.distributions.Gamma(2.0, 0.3).log_prob(values["sigma"]).sum(1)
    )
    torch.testing.assert_close(log_prior(model.priors, sites), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_density(model, values) - flat, expected, rtol=1e-6, atol=1e-6)
    assert is_flat(model.priors["theta_logit"])
    assert not is_flat(model.priors["beta"])


def test_inverse_gamma_prior_is_a_density_of_sigma():
    prior = variance_prior("inv_gamma")
    sigma = torch.linspace(1e-3, 60, 400_001, dtype=torch.float64)
    assert torch.trapezoid(prior.log_prob(sigma).exp(), sigma).item() == pytest.approx(1.0, abs=1e-4)
    variance = torch.distributions.InverseGamma(torch.tensor(3.0).double(), torch.tensor(0.5).double())
    at = torch.tensor(0.7, dtype=torch.float64)
    expected = variance.log_prob(at**2) + (2 * at).log()
    assert prior.log_prob(at).item() == pytest.approx(expected.item(), abs=1e-12)


def test_gamma_prior_has_the_documented_defaults():
    at = torch.tensor(0.7, dtype=torch.float64)
    expected = torch.distributions.Gamma(2.0, 0.3).log_prob(at).item()
    assert variance_prior("gamma").log_prob(at).item() == pytest.approx(expected, abs=1e-6)
    assert variance_prior("none") is None


@pytest.mark.parametrize(
    ("name", "params", "match"),
    [("normal", None, "var_prior_model"), ("gamma", {"rate": 1.0}, "rate"), ("inv_gamma", {"alpha": -1.0}, "alpha")],
)
def test_variance_prior_refuses(name, params, match):
    with pytest.raises(InvalidArgumentError, match=match):
        variance_prior(name, params)


@pytest.mark.parametrize(
    ("priors", "match"),
    [
        ({"slope": dist.Normal(0.0, 1.0)}, "slope"),
        ({"beta": 1.0}, "Pyro distribution"),
        ({"beta": dist.Normal(torch.zeros(5), 1.0)}, r"broadcasts to shape \(3, 2, 2\)"),
        ({"bias_eta": dist.MultivariateNormal(torch.zeros(3), torch.eye(3))}, "bias_eta"),
    ],
)
def test_bad_priors_are_named(priors, match):
    with pytest.raises(InvalidArgumentError, match=match):
        complete_priors(priors, {"beta": (G, P, Q), "bias_eta": (G, Q)})


@pytest.mark.parametrize(
    "prior",
    [
        dist.Uniform(0.1, 2.0),
        dist.HalfCauchy(1.0),
        dist.LogNormal(0.0, 1.0),
        variance_prior("inv_gamma"),
        variance_prior("gamma"),
    ],
)
def test_a_value_outside_the_support_is_one_gene_s_trouble(prior):
    priors = complete_priors({"sigma": prior}, {"sigma": (4, 1)})
    sigma = torch.tensor([[1.0], [-1.0], [float("nan")], [0.5]], dtype=torch.float64)
    density = log_prior(priors, {"sigma": sigma})
    assert density[1:3].tolist() == [-torch.inf, -torch.inf]
    torch.testing.assert_close(density[[0, 3]].double(), prior.log_prob(sigma[[0, 3], 0]).double())
    some = log_prior(priors, {"sigma": sigma[[3, 1]]}, genes=torch.tensor([3, 1]))
    assert torch.equal(some, density[[3, 1]])
    rows = torch.tensor([3, 0, 3, 1, 0, 3])
    torch.testing.assert_close(log_prior(priors, {"sigma": sigma[rows]}, genes=rows), density[rows])


@pytest.mark.parametrize("n_covariates", [P, 0])
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_keeps_shapes_and_totals(data, values, n_covariates, parallel):
    counts, design, covariance = data
    model = MultinomialGLMM(counts, design[:, :n_covariates], covariance, share_variance=False)
    draws = {name: value.expand(4, *value.shape) for name, value in values.items()}
    draws["beta"] = draws["beta"][:, :, :n_covariates]
    if parallel:
        draws = {name: value.unsqueeze(1) for name, value in draws.items()}
    replicate = pyro.poutine.uncondition(model)
    drawn = Predictive(replicate, draws, parallel=parallel, return_sites=["counts"])()["counts"]
    assert drawn.shape == (4, G, N, Q + 1)
    assert torch.equal(drawn.sum(-1), counts.sum(-1).expand(4, G, N))


def test_pyro_inference_runs_on_the_models(data):
    counts, design, covariance = data
    model = MultinomialGLMM(counts, design, covariance, priors={"sigma": dist.Gamma(2.0, 3.0)})
    pyro.clear_param_store()
    guide = AutoDelta(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step() for _ in range(30)]
    pyro.clear_param_store()
    assert losses[-1] < losses[0]
    sampler = MCMC(NUTS(model, max_tree_depth=3), num_samples=3, warmup_steps=3, disable_progbar=True)
    sampler.run()
    assert {name: draw.shape[1:] for name, draw in sampler.get_samples().items()} == {
        "beta": (G, P, Q),
        "bias_eta": (G, Q),
        "sigma": (G, 1),
        "theta_logit": (G, 1),
        "nu": (G, N, Q),
    }


def test_map_by_pyro_is_the_glm_optimum_of_a_closed_form():
    counts = torch.tensor([[[3.0, 5.0, 2.0], [1.0, 0.0, 4.0]]], dtype=torch.float64)
    model = MultinomialGLM(counts, torch.zeros(2, 0, dtype=torch.float64))
    totals = counts.sum(1)
    values = {"bias_eta": (totals[:, :-1] / totals[:, -1:]).log().requires_grad_(True)}
    (gradient,) = torch.autograd.grad(log_density(model, values).sum(), values["bias_eta"])
    assert gradient.abs().max() < 1e-12


def test_fixed_sites_are_not_sampled(data, values):
    counts, design, covariance = data
    model = MultinomialGLMM(counts, design, covariance, share_variance=False, fixed={"sigma": values["sigma"]})
    rest = {name: value for name, value in values.items() if name != "sigma"}
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data=rest)).get_trace()
    assert "sigma" not in trace.nodes
    full = MultinomialGLMM(counts, design, covariance, share_variance=False)
    torch.testing.assert_close(log_density(model, rest), log_density(full, values))


def test_spatial_effect_samples_have_its_covariance(data):
    _, _, covariance = data
    sigma, theta_logit = torch.tensor([[0.8]]).double(), torch.tensor([[0.5]]).double()
    effect = SpatialEffect(EigenCovariance.from_dense(covariance), sigma, theta_logit, 1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        draws = effect.sample((200_000,))[:, 0, :, 0]
    theta = torch.sigmoid(theta_logit)
    expected = sigma**2 * (theta * covariance + (1 - theta) * torch.eye(N, dtype=torch.float64))
    assert (draws.T.cov() - expected).abs().max() < 0.02


def test_density_is_finite_and_exact_at_the_boundaries_of_theta(data):
    _, _, covariance = data
    nu = torch.randn(1, N, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    for logit, matrix in ((-36.0, torch.eye(N).double()), (36.0, covariance)):
        effect = SpatialEffect(EigenCovariance.from_dense(covariance), one, logit * one, 1)
        expected = MultivariateNormal(torch.zeros(N).double(), matrix).log_prob(nu[0, :, 0])
        assert effect.log_prob(nu).item() == pytest.approx(expected.item(), rel=1e-8)


def test_spot_counts_refuse_other_totals():
    eta = torch.zeros(1, 2, 1, dtype=torch.float64)
    counts = SpotCounts(Multinomial(), torch.tensor([[3.0, 0.0]]).double(), eta, 2)
    assert counts.log_prob(torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]).double())[0, 1] == 0.0
    with pytest.raises(InvalidArgumentError, match="totals"):
        counts.log_prob(torch.ones(1, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("matrix", "match"),
    [(torch.ones(2, 3), "square"), (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"), (-torch.eye(2), "negative")],
)
def test_bad_covariances_are_refused(matrix, match):
    with pytest.raises(InvalidArgumentError, match=match):
        EigenCovariance.from_dense(matrix.double())
