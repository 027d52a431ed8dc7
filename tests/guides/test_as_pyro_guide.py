"""The guides in Pyro's own hands: Predictive, ELBO, SVI, NUTS, quantiles, draws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoGuide, AutoLaplaceApproximation, AutoNormal, init_to_value
from scipy.stats import kstest

from pyrosplice.glmm._multinomial import MultinomialGLM, MultinomialGLMM
from pyrosplice.guides import AutoMarginalLaplace, AutoNewtonMAP
from tests.guides.simulated import tissue
from tests.guides.test_closed_forms import draws, normal_normal, poisson_mixture


@pytest.fixture(autouse=True)
def _seeded():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def usage():
    counts, design, car = tissue(3, 2)
    model = MultinomialGLMM(counts, design, torch.as_tensor(car.dense()), priors="weak")
    return model, AutoMarginalLaplace(model, ["nu"]).fit()


@pytest.fixture(scope="module")
def gaussian(usage):
    return usage[1].laplace_approximation()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("outer", ["delta", "gaussian"])
def test_predictive(usage, gaussian, outer, parallel):
    model, guide = usage
    guide = guide if outer == "delta" else gaussian
    assert isinstance(guide, AutoGuide)
    free = pyro.poutine.uncondition(model)
    drawn = Predictive(free, guide=guide, num_samples=6, parallel=parallel, return_sites=["counts", "nu"])()
    assert drawn["counts"].reshape(6, *model.counts.shape).sum(-1).equal(model.totals.expand(6, -1, -1))
    nu = drawn["nu"].reshape(6, *guide.median()["nu"].shape)
    assert (nu[0] != nu[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_are_of_the_posterior(seed):
    y = draws(2, 6, seed=seed)
    guide = AutoMarginalLaplace(normal_normal, ["effect"]).fit(y)
    posterior, drawn = guide.get_posterior(), guide.sample_posterior(2000, seed=seed)["effect"]
    scaled = (drawn.reshape(2000, 2, 6) - posterior.mean) / posterior.variance.sqrt()
    assert all(kstest(scaled[:, g, c].numpy(), "norm").pvalue > 1e-4 for g in range(2) for c in range(6))
    again = guide.sample_posterior(2000, seed=seed)["effect"]
    assert torch.equal(drawn, again)
    inside = guide.quantiles([0.05, 0.95])["effect"]
    share = ((drawn > inside[0]) & (drawn < inside[1])).double().mean()
    assert abs(float(share) - 0.9) < 0.02


def test_seeds_leave_the_state_of_torch_alone(usage):
    before = torch.get_rng_state()
    usage[1].sample_posterior(3, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_fit_draws_nothing_and_is_repeatable():
    y = draws(3, 8)
    pyro.set_rng_seed(1)
    before = torch.get_rng_state()
    first = AutoMarginalLaplace(normal_normal, ["effect"]).fit(y)
    assert torch.equal(before, torch.get_rng_state())
    pyro.set_rng_seed(2)
    second = AutoMarginalLaplace(normal_normal, ["effect"]).fit(y)
    assert all(torch.equal(value, second.median()[name]) for name, value in first.median().items())


def test_medians_are_copies(usage):
    _, guide = usage
    before = guide.median()
    for value in guide.median().values():
        value.fill_(99.0)
    assert all(torch.equal(value, guide.median()[name]) for name, value in before.items())


def test_elbo_of_the_exact_posterior_is_the_log_marginal():
    y = draws(2, 5)
    guide = AutoMarginalLaplace(normal_normal, ["effect"]).fit(y)
    for elbo in (Trace_ELBO(), Trace_ELBO(20, vectorize_particles=True, max_plate_nesting=2)):
        loss = elbo.loss(normal_normal, guide, y)
        assert abs(loss + float(guide.objective.sum())) < 1e-8


def test_elbo_of_a_model_with_a_discrete_site():
    counts = torch.poisson(torch.full((2, 30), 3.0))
    guide = AutoNewtonMAP(poisson_mixture).fit(counts)
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    loss = elbo.loss(pyro.infer.config_enumerate(poisson_mixture), guide, counts)
    assert abs(loss + float(guide.objective.sum())) < 1e-3  # Pyro works in the float32 of the counts


def test_svi_goes_on_from_the_mode():
    counts, design, _ = tissue(4, 2)
    model = MultinomialGLM(counts, design, priors="weak")
    guide = AutoNewtonMAP(model).fit()
    before = guide.loc.detach().clone()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-4}), Trace_ELBO())
    losses = [svi.step() for _ in range(3)]
    assert float((guide.loc.detach() - before).abs().max()) < 1e-8
    assert abs(losses[0] + float(guide.objective.sum())) < 1e-8


def test_starts_nuts_and_svi(usage):
    model, guide = usage
    start = init_to_value(values=guide.median())
    normal = AutoNormal(model, init_loc_fn=start, init_scale=0.05)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(model, normal)))
    torch.testing.assert_close(normal.median()["nu"], guide.median()["nu"])
    chain = MCMC(
        NUTS(model, init_strategy=start, max_tree_depth=2), num_samples=2, warmup_steps=2, disable_progbar=True
    )
    chain.run()
    assert torch.isfinite(chain.get_samples()["nu"]).all()


@pytest.mark.slow
def test_log_marginal_is_a_factor_for_nuts():
    y = draws(1, 10)
    guide = AutoMarginalLaplace(normal_normal, ["effect"], units=None).fit(y)

    def hyper():
        mean = pyro.sample("mean", dist.Normal(torch.zeros(1, 1).double(), 3.0).to_event(2))
        sd = pyro.sample("sd", dist.HalfNormal(torch.ones(1, 1).double()).to_event(2))
        pyro.factor("data", guide.log_marginal({"mean": mean, "sd": sd}).sum())

    kernel = NUTS(hyper, init_strategy=init_to_value(values=guide.median()), max_tree_depth=3)
    chain = MCMC(kernel, num_samples=8, warmup_steps=4, disable_progbar=True)
    chain.run()
    assert float(chain.get_samples()["mean"].std()) > 0
    assert float((chain.get_samples()["mean"] - guide.median()["mean"]).abs().max()) < 2


def test_laplace_approximation_is_pyros():
    counts, design, _ = tissue(4, 2)
    model = MultinomialGLM(counts, design, priors="weak")
    guide = AutoNewtonMAP(model).fit()
    own = AutoLaplaceApproximation(model, init_loc_fn=init_to_value(values=guide.median()))
    own()
    theirs, mine = own.laplace_approximation(), guide.laplace_approximation()
    for level in ([0.05], [0.5], [0.95]):
        a, b = mine.quantiles(level), theirs.quantiles(level)
        assert all(torch.allclose(a[name], b[name], atol=1e-8) for name in b)
    assert set(mine()) == set(theirs()) and set(mine.sample_posterior(3)) == set(b)


def test_laplace_approximation_of_constrained_sites():
    def model(y):
        with pyro.plate("genes", len(y), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0 * torch.ones(len(y)).double(), 1.0))
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = torch.tensor([3.0, 10.0, 40.0]).double()
    point = AutoNewtonMAP(model).fit(y)
    torch.testing.assert_close(point.median()["rate"], (y + 1) / 2)  # mode of Gamma(y + 2, 2)
    normal = point.laplace_approximation(y)
    torch.testing.assert_close(normal.median()["rate"], (y + 2) / 2)  # of log rate
    torch.testing.assert_close(normal.get_posterior().variance[:, 0], 1 / (y + 2))


def test_outer_gaussian_spreads_what_is_not_integrated(gaussian):
    low, middle, high = gaussian.quantiles([0.1, 0.5, 0.9])["sigma"]
    assert (low < middle).all() and (middle < high).all()
    assert torch.equal(middle, gaussian.median()["sigma"])
    assert (gaussian.sample_posterior(5, seed=0)["sigma"].std(0) > 0).all()
