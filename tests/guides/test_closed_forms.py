"""The guides against answers that are known without them."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value
from sklearn.mixture import GaussianMixture

from pyrosplice._mixture.gaussian_mixture import gaussian_mixture
from pyrosplice.guides import AutoMarginalLaplace, AutoNewtonMAP, FitOptions
from tests.guides.simulated import blobs, inflated

flat = dist.ImproperUniform
real, positive = dist.constraints.real, dist.constraints.positive


def normal_normal(y):
    genes, cells = y.shape
    with pyro.plate("genes", genes, dim=-2):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(genes, 1).to(y), 3.0))
        sd = pyro.sample("sd", dist.HalfNormal(torch.ones(genes, 1).to(y)))
        with pyro.plate("cells", cells, dim=-1):
            effect = pyro.sample("effect", dist.Normal(0.0, sd))
            pyro.sample("y", dist.Normal(mean + effect, 0.5), obs=y)


def exact(y, mean, sd):
    return dist.Normal(mean, (sd.square() + 0.25).sqrt()).log_prob(y).sum(-1)


def draws(genes=4, cells=15, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.0 + 0.9 * torch.randn(genes, cells, generator=generator, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("units", ["auto", "genes", None])
def test_laplace_is_exact_for_gaussians(seed, units):
    y = draws(seed=seed)
    guide = AutoMarginalLaplace(normal_normal, marginalize=["effect"], units=units).fit(y)
    assert guide.converged.all()
    assert len(guide.report()) == (1 if units is None else len(y))
    at = {name: guide.median()[name].requires_grad_(True) for name in ("mean", "sd")}
    value = exact(y, **at)
    torch.testing.assert_close(guide.log_marginal(at).sum(), value.sum())
    prior = dist.Normal(0.0, 3.0).log_prob(at["mean"]) + dist.HalfNormal(1.0).log_prob(at["sd"])
    slopes = torch.autograd.grad((value + prior[:, 0]).sum(), list(at.values()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-5
    posterior = guide.get_posterior()
    sd, mean = at["sd"].detach(), at["mean"].detach()
    precision = sd**-2 + 4
    torch.testing.assert_close(guide.median()["effect"], 4 * (y - mean) / precision, atol=1e-9, rtol=0)
    torch.testing.assert_close(posterior.variance.reshape(y.shape), 1 / precision.expand(y.shape))


@pytest.mark.parametrize("prior", [False, True])
def test_log_marginal_and_its_gradient(prior):
    y = draws()
    guide = AutoMarginalLaplace(normal_normal, marginalize=["effect"]).fit(y)
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(4, 1, generator=generator, dtype=torch.float64).requires_grad_(True)
    sd = (0.2 + torch.rand(4, 1, generator=generator, dtype=torch.float64)).requires_grad_(True)
    value, wanted = guide.log_marginal({"mean": mean, "sd": sd}, prior=prior), exact(y, mean, sd)
    if prior:
        wanted = wanted + (dist.Normal(0.0, 3.0).log_prob(mean) + dist.HalfNormal(1.0).log_prob(sd))[:, 0]
    torch.testing.assert_close(value, wanted)
    for mine, own in zip(*(torch.autograd.grad(v.sum(), (mean, sd)) for v in (value, wanted)), strict=True):
        torch.testing.assert_close(mine, own)


@pytest.mark.slow
def test_gradient_is_that_of_the_value_where_laplace_is_an_approximation():
    counts, x = inflated(2, 15, seed=1)
    guide = AutoMarginalLaplace(zero_inflated, marginalize=["u"]).fit(counts, x)
    at = {name: value.clone() for name, value in guide.median().items() if name != "u"}
    at["s"] = at["s"] + 0.1
    moving = {name: value.clone().requires_grad_(True) for name, value in at.items()}
    slopes = dict(
        zip(moving, torch.autograd.grad(guide.log_marginal(moving).sum(), list(moving.values())), strict=True)
    )
    for name, value in at.items():
        difference = torch.zeros_like(value)
        for place in np.ndindex(*value.shape):
            step = torch.zeros_like(value)
            step[place] = 1e-5
            up, down = ({**at, name: value + sign * step} for sign in (1, -1))
            difference[place] = (guide.log_marginal(up) - guide.log_marginal(down)).sum() / 2e-5
        torch.testing.assert_close(slopes[name], difference, rtol=1e-6, atol=1e-6)


def zero_inflated(counts, x):
    genes, cells = counts.shape
    with pyro.plate("genes", genes, dim=-2):
        gate = pyro.sample("gate", dist.Beta(2 * torch.ones(genes, 1), 2.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(genes, 1, 2), 5.0).to_event(1))
        s = pyro.sample("s", dist.HalfNormal(torch.ones(genes, 1)))
        with pyro.plate("cells", cells, dim=-1):
            u = pyro.sample("u", dist.Normal(0.0, s.expand(genes, cells)))
            rate = (b[..., 0] + b[..., 1] * x + u).exp()
            pyro.sample("k", dist.ZeroInflatedPoisson(rate, gate=gate.expand(genes, cells)), obs=counts)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_zero_inflated_counts_against_quadrature(seed):
    counts, x = inflated(2, 80, seed=seed)
    guide = AutoMarginalLaplace(zero_inflated, marginalize=["u"]).fit(counts, x)
    report = guide.report()
    assert report.converged.all() and float(report.gradient_norm.max()) < 1e-4
    assert "80 blocks of up to 1" in guide.path and "1 products" in guide.path
    at = guide.median()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    eta = (at["b"][..., 0] + at["b"][..., 1] * x)[..., None] + at["s"][..., None] * nodes
    own = dist.ZeroInflatedPoisson(eta.exp(), gate=at["gate"][..., None]).log_prob(counts[..., None])
    exactly = (own + weights.log()).logsumexp(-1).sum(1)
    values = {name: value for name, value in at.items() if name != "u"}
    assert float((guide.log_marginal(values) - exactly).abs().max()) < 0.05 * counts.shape[1]


def test_mixture_is_that_of_em():
    x = blobs()
    em = GaussianMixture(2, covariance_type="diag", tol=1e-13, max_iter=5000, reg_covar=0, random_state=0).fit(
        x.numpy()
    )
    rough = GaussianMixture(2, covariance_type="diag", max_iter=3, tol=1e-2, random_state=0).fit(x.numpy())
    start = {name: torch.tensor(getattr(rough, f"{name}_")) for name in ("weights", "means", "covariances")}
    guide = AutoNewtonMAP(gaussian_mixture, init_loc_fn=init_to_value(values=start))
    guide.fit(x, n_components=2, covariance_type="diag")
    assert guide.converged.all() and "one problem" in guide.path and "summed over assignments" in guide.path
    for name, value in guide.median().items():
        torch.testing.assert_close(value, torch.tensor(getattr(em, f"{name}_")), rtol=0, atol=1e-4)
    flat_weights = math.lgamma(2)  # of the uniform Dirichlet of two components, log 1! = 0
    assert abs(float(guide.objective) - flat_weights - em.score(x.numpy()) * len(x)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_mixture_from_the_deterministic_point(kind):
    x = blobs(3)
    guide = AutoNewtonMAP(gaussian_mixture).fit(x, n_components=2, covariance_type=kind, options=FitOptions(starts=3))
    em = GaussianMixture(2, covariance_type=kind, tol=1e-12, max_iter=5000, reg_covar=0, n_init=3, random_state=0)
    em.fit(x.numpy())
    assert guide.converged.all() and guide.report().identified.all()
    assert abs(float(guide.objective) - em.score(x.numpy()) * len(x)) < 1e-6


def poisson_mixture(counts):
    genes, cells = counts.shape
    with pyro.plate("genes", genes, dim=-2):
        share = pyro.sample("share", dist.Beta(2.0 * torch.ones(genes, 1), 2.0))
        low = pyro.sample("low", dist.Gamma(2.0 * torch.ones(genes, 1), 1.0))
        ratio = pyro.sample("ratio", dist.LogNormal(torch.ones(genes, 1), 0.5))
        with pyro.plate("cells", cells, dim=-1):
            on = pyro.sample("on", dist.Bernoulli(share.expand(genes, cells)))
            pyro.sample("counts", dist.Poisson(low * torch.where(on > 0, 1 + ratio, 1.0)), obs=counts)


def test_sites_are_summed_out_unit_by_unit():
    generator = torch.Generator().manual_seed(0)
    high = torch.rand(5, 120, generator=generator) < 0.4
    counts = torch.poisson(torch.where(high, 8.0, 2.0), generator=generator).double()
    guide = AutoNewtonMAP(poisson_mixture).fit(counts)
    assert guide.converged.all() and len(guide.report()) == 5
    at = guide.median()
    rates = torch.stack([at["low"].expand_as(counts), (at["low"] * (1 + at["ratio"])).expand_as(counts)])
    shares = torch.stack([1 - at["share"], at["share"]])
    own = (dist.Poisson(rates).log_prob(counts) + shares.log()).logsumexp(0).sum(1)
    prior = dist.Beta(2.0, 2.0).log_prob(at["share"]) + dist.Gamma(2.0, 1.0).log_prob(at["low"])
    prior = prior + dist.LogNormal(1.0, 0.5).log_prob(at["ratio"])
    torch.testing.assert_close(guide.objective, own + prior[:, 0])


def test_flat_priors_are_maximum_likelihood():
    def model(y):
        with pyro.plate("genes", len(y), dim=-2):
            mean = pyro.sample("mean", flat(real, (), ()))
            sd = pyro.sample("sd", flat(positive, (), ()))
            with pyro.plate("cells", y.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(mean, sd), obs=y)

    y = 100 * draws(6, 20) - 3000
    guide = AutoNewtonMAP(model).fit(y)
    assert guide.converged.all()
    torch.testing.assert_close(guide.median()["mean"][:, 0], y.mean(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(guide.median()["sd"][:, 0], y.std(1, correction=0), rtol=1e-7, atol=0)
