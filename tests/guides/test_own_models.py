"""A model of a person's own for each family, in at most 20 lines, fitted to the optimum of its own log density."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import TraceEinsumEvaluator

from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice._mixture.gaussian_mixture import mixture_sites
from pyrosplice._mixture.mixture_prior import MixturePrior
from pyrosplice.glmm._multinomial import MultinomialGLM, MultinomialGLMM
from pyrosplice.guides import AutoMarginalLaplace, AutoNewtonMAP, FitOptions
from pyrosplice.likelihoods import CellCounts, Multinomial
from tests.guides.simulated import blobs, inflated, tissue


class Shifted(MultinomialGLM):
    def linear_predictor(self, values):
        return super().linear_predictor(values) + 2.0


class Donors(MultinomialGLMM):
    donor = torch.arange(9) % 3

    def sample_latents(self):
        values = super().sample_latents()
        genes, logits = values["bias_eta"].shape[-2:]
        tau = pyro.sample("tau", dist.HalfNormal(torch.ones(genes, 1).double()).to_event(1))
        effect = dist.Normal(0.0, tau[..., None, :].expand(*tau.shape[:-1], 3, logits)).to_event(2)
        return {**values, "donor": pyro.sample("donor", effect)}

    def linear_predictor(self, values):
        return super().linear_predictor(values) + values["donor"][..., self.donor, :]


class Misread(Multinomial):
    log_concave = additive = False

    def log_prob(self, counts, eta):
        read = 0.8 * self.mean(eta) + 0.2 / counts.shape[-1]
        return torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1) + (counts * read.log()).sum(-1)


class CellEffects(ExpressionModel):
    def __call__(self, counts):
        genes, cells = counts.shape
        with pyro.plate("genes", genes, dim=-2):
            a = pyro.sample("location", self.location_prior)
            b = pyro.sample("scale", dist.Normal(torch.zeros(genes, 1, 1).double(), 1.0).to_event(1))
            sd = pyro.sample("sd", dist.HalfNormal(torch.ones(genes, 1).double()))
            with pyro.plate("cells", cells, dim=-1):
                effect = pyro.sample("effect", dist.Normal(0.0, sd.expand(genes, cells)))
                eta = a.squeeze(-2) @ self.location.T + effect
                zeta = b.squeeze(-2) @ self.scale.T
                pyro.sample("counts", CellCounts(self.likelihood, eta, zeta), obs=counts)


def zero_inflated(counts, x):
    genes, cells = counts.shape
    with pyro.plate("genes", genes, dim=-2):
        gate = pyro.sample("gate", dist.Beta(2 * torch.ones(genes, 1), 2.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(genes, 1, 2), 5.0).to_event(1))
        with pyro.plate("cells", cells, dim=-1):
            zero = pyro.sample("zero", dist.Bernoulli(gate.expand(genes, cells)))
            rate = (b[..., 0] + b[..., 1] * x).exp() * (1 - zero) + 1e-8
            pyro.sample("counts", dist.Poisson(rate), obs=counts)


def other_mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 5.0).to(x)))
    with pyro.plate("components", 2, dim=-1):
        means = pyro.sample("means", dist.StudentT(4.0, torch.zeros(2).to(x), 2.0).to_event(1))
        sds = pyro.sample("sds", dist.LogNormal(torch.zeros(2).to(x), 0.5).to_event(1))
    with pyro.plate("cells", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(means[z], sds[z]).to_event(1), obs=x)


def informed_mixture(x):
    prior = MixturePrior(concentration=3.0, covariance_dof=4.0, covariance_scale=torch.eye(2).to(x))
    weights, means, matrices = mixture_sites(x, 2, "full", prior)
    with pyro.plate("cells", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(means[z], matrices[z]), obs=x)


def slope(model, guide, *args):
    """Largest derivative of the model's own density at the guide's median, discrete sites summed out by Pyro."""
    at = {name: value.requires_grad_(True) for name, value in guide.median().items()}
    fixed = pyro.infer.config_enumerate(pyro.poutine.condition(model, data=at))
    trace = pyro.poutine.trace(pyro.poutine.enum(fixed, first_available_dim=-3)).get_trace(*args)
    total = TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=2).log_prob(trace)
    found = dict(zip(at, torch.autograd.grad(total, list(at.values())), strict=True))
    if "weights" in found:  # which add up to one: along the simplex
        found["weights"] = found["weights"] - found["weights"].mean()
    return max(float(s.abs().max()) for s in found.values())


def test_they_are_short():
    for part in (Shifted, Donors, Misread, CellEffects, zero_inflated, other_mixture, informed_mixture):
        assert len(inspect.getsource(part).splitlines()) <= 20


def test_an_intercept_shift():
    counts, design, _ = tissue(4, 3)
    plain, shifted = (AutoNewtonMAP(kind(counts, design)).fit() for kind in (MultinomialGLM, Shifted))
    torch.testing.assert_close(shifted.objective, plain.objective)
    torch.testing.assert_close(shifted.median()["bias_eta"], plain.median()["bias_eta"] - 2)
    assert slope(Shifted(counts, design), shifted) < 1e-6


def test_a_log_density_of_ones_own():
    counts, design, _ = tissue(4, 3)
    model = MultinomialGLM(counts, design[:, :0], likelihood=Misread())
    guide = AutoNewtonMAP(model).fit()
    share = (counts.sum(1) / counts.sum((1, 2))[:, None] - 0.2 / 3) / 0.8
    torch.testing.assert_close(guide.median()["bias_eta"], (share[:, :-1] / share[:, -1:]).log())


@pytest.mark.slow
def test_a_second_random_effect():
    counts, design, car = tissue(3, 2, isoforms=2)
    model = Donors(counts, design, torch.as_tensor(car.dense()), priors="weak")
    guide = AutoMarginalLaplace(model, marginalize=["nu", "donor"]).fit()
    assert guide.converged.all() and "precision of nu, donor known" in guide.path
    assert float(guide.report().gradient_norm.max()) < 1e-4
    at = {name: value.requires_grad_(True) for name, value in guide.median().items() if name not in ("nu", "donor")}
    slopes = torch.autograd.grad(guide.log_marginal(at, prior=True).sum(), list(at.values()))
    for (name, value), found in zip(at.items(), slopes, strict=True):  # in logs where positive: a variance may be 0
        found = found * value.detach() if name in ("sigma", "tau") else found
        assert float(found.abs().max()) < 1e-4


@pytest.mark.slow
def test_cell_effects_on_negative_binomial_counts():
    counts, x = inflated(2, 20, seed=2)
    design = torch.stack([torch.ones_like(x), x], 1)
    model = CellEffects(design, design[:, :1], location_prior=dist.Normal(torch.tensor(0.0).double(), 5.0))
    guide = AutoMarginalLaplace(model, marginalize=["effect"]).fit(counts)
    assert guide.converged.all() and float(guide.report().gradient_norm.max()) < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_zero_inflation_by_a_discrete_site(seed):
    counts, x = inflated(3, 60, seed=seed)
    guide = AutoNewtonMAP(zero_inflated).fit(counts, x)
    assert guide.converged.all() and "summed over zero" in guide.path
    assert slope(zero_inflated, guide, counts, x) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model", [other_mixture, informed_mixture])
def test_mixtures_with_another_prior(model):
    x = blobs()
    guide = AutoNewtonMAP(model).fit(x, options=FitOptions(starts=2))
    assert guide.converged.all() and guide.report().identified.all()
    assert slope(model, guide, x) < 1e-4
    assert float((guide.median()["means"][0] - guide.median()["means"][1]).norm()) > 2
