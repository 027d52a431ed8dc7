"""Priors are of their sites, or refused where they are given: names, supports, kinds of distribution, shapes."""

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice import ExpressionGLM, MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._multinomial import MultinomialGLM
from pyrosplice.likelihoods import DirichletMultinomial
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance

T = torch.distributions.transforms
REAL = [
    dist.Normal(0.0, 1.0),
    dist.StudentT(3.0),
    dist.Laplace(0.0, 1.0),
    dist.Cauchy(0.0, 1.0),
    dist.Logistic(0.0, 1.0),
    dist.Normal(0.0, 1.0).expand([1]).to_event(1),
    dist.TransformedDistribution(dist.Gamma(2.0, 1.0), [T.ExpTransform().inv]),
    dist.TransformedDistribution(dist.Normal(0.0, 1.0), [T.AffineTransform(1.0, 2.0)]),
]
POSITIVE = [
    dist.Gamma(2.0, 1.0),
    dist.HalfNormal(1.0),
    dist.HalfCauchy(1.0),
    dist.LogNormal(0.0, 1.0),
    dist.Exponential(1.0),
    dist.InverseGamma(2.0, 1.0),
    dist.Exponential(1.0).expand([1]).to_event(1),
    dist.Uniform(0.0, 5.0),
]
NEITHER = [
    dist.Uniform(-1.0, 1.0),
    dist.Poisson(3.0),
    dist.Bernoulli(0.5),
    dist.Dirichlet(torch.ones(1)),
    dist.Delta(torch.tensor(0.0)),
    dist.TransformedDistribution(dist.HalfNormal(1.0), [T.AffineTransform(-3.0, 1.0)]),
    3.0,
    "normal",
    dist.Normal,
    torch.distributions.Normal(0.0, 1.0),
    torch.distributions.Gamma(1.0, 1.0),
    [dist.Normal(0.0, 1.0)],
]
SITES = {"beta": True, "bias_eta": True, "theta_logit": True, "sigma": False, "concentration": False}
FAMILIES = {
    "glm": (MultinomGLM, ("beta", "bias_eta", "concentration")),
    "glmm": (MultinomGLMM, tuple(SITES)),
    "analysis": (SplisosmGLMM, tuple(SITES)),
}


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    site=st.sampled_from(sorted(SITES)),
    kind=st.sampled_from(["real", "positive", "neither"]),
    which=st.integers(0, 30),
)
def test_supports_are_compared_at_construction(family, site, kind, which):
    estimator, sites = FAMILIES[family]
    table = {"real": REAL, "positive": POSITIVE, "neither": NEITHER}[kind]
    prior = table[which % len(table)]
    right = site in sites and kind == ("real" if SITES[site] else "positive")
    if right:
        assert site in estimator(likelihood=DirichletMultinomial(), priors={site: prior}).priors
        return
    with pytest.raises(InvalidArgumentError, match="priors"):
        estimator(likelihood=DirichletMultinomial(), priors={site: prior})


@pytest.mark.parametrize("estimator", [MultinomGLM, MultinomGLMM, SplisosmGLMM])
def test_a_site_that_is_none_is_told_those_that_are(estimator):
    with pytest.raises(InvalidArgumentError, match=r"'beta', 'bias_eta'.*found 'betta'"):
        estimator(priors={"betta": dist.Normal(0.0, 1.0)})


def test_torchs_distributions_are_told_pyros():
    with pytest.raises(InvalidArgumentError, match=r"use pyro\.distributions\.Normal"):
        MultinomGLM(priors={"beta": torch.distributions.Normal(0.0, 1.0)})


@pytest.mark.parametrize(
    "prior", [dist.Normal(torch.zeros(7), 1.0), dist.MultivariateNormal(torch.zeros(5), torch.eye(5))]
)
def test_shapes_are_compared_with_the_data(prior):
    model = MultinomGLM(priors={"bias_eta": prior})
    with pytest.raises(InvalidArgumentError, match=r"priors\['bias_eta'\]: .*shape \(2, 2\)"):
        model.setup_data(torch.ones(2, 9, 3))


def test_the_pyro_model_compares_them_too():
    counts, design = torch.ones(1, 4, 3, dtype=torch.float64), torch.zeros(4, 0, dtype=torch.float64)
    with pytest.raises(InvalidArgumentError, match="real numbers"):
        MultinomialGLM(counts, design, priors={"bias_eta": dist.Gamma(1.0, 1.0)})


@pytest.mark.parametrize("prior", NEITHER + POSITIVE[:2])
@pytest.mark.parametrize("site", ["location", "scale", "elsewhere"])
def test_expression_compares_them_before_it_draws(prior, site):
    counts = torch.poisson(torch.full((12, 2), 5.0)).numpy()
    glm = ExpressionGLM("~1")
    glm.fit(counts)
    with pytest.raises(InvalidArgumentError, match="priors"):
        glm.posterior(num_samples=2, priors={site: prior})


class Unsampled(dist.Normal):
    """A density alone."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008 (torch's own signature)
        raise NotImplementedError

    rsample = sample


@pytest.mark.parametrize("space", [False, True])
def test_a_prior_without_samples(space):
    """Fits and Laplace's draws need none; NUTS says so before its warm-up, and draws of the prior before any draw."""
    counts = torch.poisson(torch.full((1, 9, 3), 4.0, dtype=torch.float64))
    grid = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    options = {"fitting_method": "marginal_newton"} if space else {}
    model = (MultinomGLMM if space else MultinomGLM)(priors={"bias_eta": Unsampled(0.0, 3.0)}, **options)
    model.setup_data(counts, *([CarCovariance(knn_graph(grid))] if space else []))
    model.fit(quiet=True)
    made = ("log_likelihood", "posterior_predictive")
    assert "log_likelihood" in model.posterior(num_samples=4, groups=made).children
    for options in ({"method": "nuts", "groups": ()}, {"method": "nuts"}):
        if space:
            model.var_fix_sigma = True
        with pytest.raises(InvalidArgumentError, match=r"Unsampled has no sample|flat"):
            model.posterior(num_samples=4, **options)


@pytest.mark.parametrize("transform", [T.ExpTransform(), T.PowerTransform(torch.tensor(0.5).double())])
def test_a_support_that_is_more_than_where_there_is_a_density_is_refused(transform):
    prior = dist.TransformedDistribution(dist.Uniform(0.0, 1.0), [transform])
    with pytest.raises(InvalidArgumentError, match=r"priors\['sigma'\]: expected a density on all of its support"):
        MultinomGLMM(priors={"sigma": prior})


@pytest.mark.parametrize(("site", "parts"), [("sigma", dist.Gamma), ("bias_eta", dist.Normal)])
def test_a_support_that_torch_cannot_transform_is_told_what_to_do(site, parts):
    prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts(torch.ones(2), torch.ones(2)))
    with pytest.raises(InvalidArgumentError, match="give a subclass of it"):
        MultinomGLMM(priors={site: prior})

    class Stated(dist.MixtureSameFamily):
        support = dist.constraints.positive if site == "sigma" else dist.constraints.real

    MultinomGLMM(priors={site: Stated(prior.mixture_distribution, prior.component_distribution)})
