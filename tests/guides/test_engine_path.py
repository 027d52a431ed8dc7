"""The sparse engine reads the Pyro model: the same optimum, value and posterior as the generic path."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import MultinomGLMM
from pyrosplice.glmm._distributions import EigenCovariance, LazyCovariance, SpatialEffect, SpotCounts
from pyrosplice.glmm._multinomial import MultinomialGLMM
from pyrosplice.guides import AutoMarginalLaplace, FitOptions
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial
from tests.guides.simulated import tissue

SMALL = FitOptions(tolerance=1e-7)


class Shifted(MultinomialGLMM):
    def linear_predictor(self, values):
        return super().linear_predictor(values) + 2.0


class Bounded(MultinomialGLMM):
    def linear_predictor(self, values):
        fixed = self.design @ values["beta"] + values["bias_eta"].unsqueeze(-2)
        return 2 * torch.tanh(fixed) + values["nu"]


class OtherScales(MultinomialGLMM):
    def site_shapes(self):
        return {name: shape for name, shape in super().site_shapes().items() if name not in ("sigma", "theta_logit")}

    def sample_latents(self):
        genes = len(self.counts)
        one = torch.ones(genes, 1, dtype=torch.float64)
        values = {name: self._sample(name) for name in self.priors}
        log_sigma = pyro.sample("log_sigma", dist.Normal(-0.5 * one, 1.0).to_event(1))
        theta = pyro.sample("theta", dist.Beta(2 * one, 2.0).to_event(1))
        values |= {"sigma": log_sigma.exp(), "theta_logit": theta.logit()}
        return {**values, "nu": pyro.sample("nu", self.effect(values))}


class SquaredTheta(OtherScales):
    """θ is no site, nor its logit."""

    def sample_latents(self):
        one = torch.ones(len(self.counts), 1, dtype=torch.float64)
        values = {name: self._sample(name) for name in self.priors}
        sd = pyro.sample("sd", dist.HalfNormal(one).to_event(1))
        root = pyro.sample("root", dist.Beta(2 * one, 2.0).to_event(1))
        values |= {"sigma": 2 * sd, "theta_logit": root.square().logit()}
        return {**values, "nu": pyro.sample("nu", self.effect(values))}


class Misread(Multinomial):
    def log_prob(self, counts, eta):
        read = 0.9 * torch.softmax(torch.nn.functional.pad(eta, (0, 1)), -1) + 0.1 / counts.shape[-1]
        return torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1) + (counts * read.log()).sum(-1)


class WrongScore(Multinomial):
    def log_prob(self, counts, eta):
        return super().log_prob(counts, eta)

    def score(self, counts, eta):
        return 1.01 * Multinomial().score(counts, eta)


def both(model, *args, options=SMALL, **kwargs):
    """Fits of a model by the two paths."""
    fits = [AutoMarginalLaplace(model, ["nu"], **kwargs).fit(*args, path=path, options=options) for path in PATHS]
    assert (
        fits[0].path.startswith("engine (") and fits[1].path == fits[1].path and "generic (asked for)" in fits[1].path
    )
    assert all(fit.converged.all() for fit in fits)
    return fits


PATHS = ("engine", "generic")


def assert_same(engine, generic, atol=1e-6):
    """The same value and the same estimates, where the data say what they are."""
    torch.testing.assert_close(engine.objective, generic.objective, rtol=0, atol=atol)
    theirs = generic.median()
    for name, value in engine.median().items():
        expected = theirs[name]
        if name == "theta_logit":  # at an end any large one
            value, expected = value.sigmoid(), expected.sigmoid()
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-5)


def data(**options):
    counts, design, car = tissue(6, 2, **{"seed": 1, **options})
    return counts, design, torch.as_tensor(car.dense())


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["independent", "symmetric"])
@pytest.mark.parametrize("covariance", ["dense", "lazy"])
def test_shipped_model(effect, covariance):
    counts, design, car = tissue(6, 2, seed=1)
    space = torch.as_tensor(car.dense()) if covariance == "dense" else car
    model = MultinomialGLMM(counts, design, space, isoform_effect=effect, priors="weak")
    engine, generic = both(model)
    assert_same(engine, generic)
    torch.testing.assert_close(engine.get_posterior().variance, generic.get_posterior().variance, rtol=1e-4, atol=0)


@pytest.mark.slow
def test_variances_of_each_logit():
    counts, design, dense = data(seed=3)
    assert_same(*both(MultinomialGLMM(counts, design, dense, share_variance=False, priors="weak")))


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
def test_estimator(effect):
    counts, design, car = tissue(8, 4, seed=2)
    fitted = MultinomGLMM(
        fitting_method="marginal_newton", var_fix_sigma=False, isoform_effect=effect, fitting_configs={"tol": 1e-12}
    )
    fitted.setup_data(counts, corr_sp=car, design_mtx=design)
    fitted.fit(quiet=True)
    guide = AutoMarginalLaplace(fitted.model, ["nu"]).fit(path="engine", options=SMALL)
    torch.testing.assert_close(guide.objective, fitted.forward().detach(), rtol=0, atol=1e-7)
    found = guide.median()
    for name in ("beta", "bias_eta", "sigma", "nu"):
        torch.testing.assert_close(found[name], getattr(fitted, name).detach(), rtol=0, atol=1e-4)
    theta = torch.sigmoid(found["theta_logit"])
    torch.testing.assert_close(theta, torch.sigmoid(fitted.theta_logit.detach()), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_shifted_predictor():
    counts, design, dense = data()
    shifted, generic = both(
        Shifted(counts, design, dense, priors={"sigma": dist.HalfNormal(torch.tensor(1.0).double())})
    )
    assert_same(shifted, generic)
    plain = AutoMarginalLaplace(
        MultinomialGLMM(counts, design, dense, priors={"sigma": dist.HalfNormal(torch.tensor(1.0).double())}), ["nu"]
    ).fit(path="engine", options=SMALL)
    torch.testing.assert_close(shifted.objective, plain.objective, rtol=0, atol=1e-8)
    torch.testing.assert_close(shifted.median()["bias_eta"], plain.median()["bias_eta"] - 2, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Bounded, OtherScales, SquaredTheta])
def test_other_predictors_and_parametrizations(kind):
    counts, design, dense = data(seed=4)
    assert_same(*both(kind(counts, design, dense, priors="weak")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Misread, WrongScore])
def test_likelihood_of_ones_own(kind):
    counts, design, dense = data(seed=5)
    engine, generic = both(MultinomialGLMM(counts, design, dense, priors="weak", likelihood=kind()))
    assert_same(engine, generic)
    assert ("score worked out by autograd" in engine.path) == (kind is WrongScore)


@pytest.mark.slow
def test_free_concentration():
    counts, design, dense = data(seed=6)
    assert_same(*both(MultinomialGLMM(counts, design, dense, priors="weak", likelihood=DirichletMultinomial())))


@pytest.mark.slow
def test_priors_of_ones_own():
    counts, design, dense = data(seed=7)
    one = torch.tensor(1.0).double()
    priors = {
        "beta": dist.StudentT(3 * one, 0 * one, 0.1 * one),
        "sigma": dist.LogNormal(-one, 0.2 * one),
        "theta_logit": dist.Normal(one, one),
        "bias_eta": dist.Normal(0 * one, 0.01 * one),
    }
    assert_same(*both(MultinomialGLMM(counts, design, dense, priors=priors)))


@pytest.mark.slow
@pytest.mark.parametrize("genes", [1, 3])
@pytest.mark.parametrize("units", ["auto", "given"])
def test_numbers_of_genes(genes, units):
    counts, design, car = tissue(6, genes, seed=8)
    model = MultinomialGLMM(counts, design, torch.as_tensor(car.dense()), priors="weak")
    assert_same(*both(model, units="auto" if units == "auto" else "genes"))


def single(counts, space):
    """One gene, without a plate of genes."""
    bias = pyro.sample("bias", dist.Normal(torch.zeros(2).double(), 3.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(1.0).double()))
    logit = pyro.sample("logit", dist.Normal(torch.tensor(0.0).double(), 2.0))
    nu = pyro.sample("nu", SpatialEffect(space, sigma.reshape(1), logit.reshape(1), 2))
    with pyro.plate("spots", len(counts)):
        pyro.sample("counts", SpotCounts(Multinomial(), counts.sum(-1), bias + nu, 3), obs=counts)


@pytest.mark.slow
def test_a_model_without_a_plate_of_genes():
    counts, _, car = tissue(6, 1, seed=9)
    assert_same(*both(single, counts[0], car))


@pytest.mark.slow
def test_a_plate_further_left():
    counts, _, car = tissue(6, 3, seed=9)

    def model(counts):
        with pyro.plate("genes", 3, dim=-2):
            bias = pyro.sample("bias", dist.Normal(torch.zeros(3, 1, 2).double(), 3.0).to_event(1))
            sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones(3, 1).double()))
            nu = pyro.sample("nu", SpatialEffect(car, sigma[..., None], torch.zeros(3, 1, 1).double(), 2))
            with pyro.plate("spots", counts.shape[1], dim=-1):
                eta = bias + nu.squeeze(-3)
                pyro.sample("counts", SpotCounts(Multinomial(), counts.sum(-1), eta, 3), obs=counts)

    assert_same(*both(model, counts))


@pytest.mark.slow
def test_large_tissue_is_never_decomposed():
    counts, design, car = tissue(20, 2, seed=11)
    space = LazyCovariance(car)
    model = MultinomialGLMM(counts, design, space, priors="weak")
    guide = AutoMarginalLaplace(model, ["nu"]).fit()
    assert guide.path.startswith("engine (SparseSolver") and guide.converged.all()
    at = {name: value.requires_grad_(True) for name, value in guide.median().items() if name != "nu"}
    slopes = torch.autograd.grad(guide.log_marginal(at, prior=True).sum(), list(at.values()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4
    assert guide.sample_posterior(2, seed=0)["nu"].shape == (2, 2, 400, 2)
    assert (guide.quantiles([0.1, 0.9])["nu"].diff(dim=0) > 0).all()
    assert guide.laplace_approximation().converged.all()
    assert space.is_lazy


@pytest.mark.slow
def test_log_marginal_and_its_gradient():
    counts, design, dense = data(seed=12)
    engine, generic = both(MultinomialGLMM(counts, design, dense, priors="weak"))
    at = {name: value + 0.1 for name, value in generic.median().items() if name != "nu"}
    for prior in (False, True):
        found = []
        for guide in (engine, generic):
            values = {name: value.clone().requires_grad_(True) for name, value in at.items()}
            total = guide.log_marginal(values, prior=prior)
            found.append((total.detach(), *torch.autograd.grad(total.sum(), list(values.values()))))
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_gaussian_around_the_other_sites():
    counts, design, dense = data(seed=13)
    engine, generic = both(MultinomialGLMM(counts, design, dense, priors="weak"), outer="gaussian")
    assert_same(engine, generic)
    for level in (0.05, 0.95):
        mine, theirs = engine.quantiles([level]), generic.quantiles([level])
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_posterior_density():
    counts, design, dense = data(seed=14)
    engine, generic = both(MultinomialGLMM(counts, design, dense, priors="weak"))
    drawn = engine.sample_posterior(3, seed=1)["nu"].flatten(2)
    torch.testing.assert_close(
        engine.get_posterior().log_prob(drawn), generic.get_posterior().log_prob(drawn), rtol=0, atol=1e-2
    )
    away = torch.stack([engine.get_posterior().rsample() for _ in range(400)]) - engine.get_posterior().mean
    ratio = away.square().mean(0) / engine.get_posterior().variance
    assert abs(float(ratio.mean()) - 1) < 0.05


@pytest.mark.slow
def test_boundaries_are_ordinary_points():
    generator = torch.Generator().manual_seed(0)
    _, design, car = tissue(6, 1, seed=15)
    plain = torch.tensor([6.0, 9.0, 15.0]).double().expand(36, 3)
    spread = torch.randn(36, 2, generator=generator, dtype=torch.float64)
    usage = torch.softmax(torch.nn.functional.pad(spread, (0, 1)), -1)
    drawn = torch.multinomial(usage, 30, replacement=True, generator=generator)
    noisy = torch.nn.functional.one_hot(drawn, 3).sum(1).double()
    field = torch.linalg.cholesky(torch.as_tensor(car.dense())) @ spread
    usage = torch.softmax(torch.nn.functional.pad(1.5 * field, (0, 1)), -1)
    drawn = torch.multinomial(usage, 30, replacement=True, generator=generator)
    smooth = torch.nn.functional.one_hot(drawn, 3).sum(1).double()
    counts = torch.stack([plain, noisy, smooth])
    fitted = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, fitting_configs={"tol": 1e-12})
    fitted.setup_data(counts, corr_sp=car, design_mtx=design)
    fitted.fit(quiet=True)
    guide = AutoMarginalLaplace(MultinomialGLMM(counts, design, car), ["nu"]).fit(path="engine")
    assert guide.converged.all()
    torch.testing.assert_close(guide.objective, fitted.forward().detach(), rtol=0, atol=1e-6)
    found = guide.median()
    assert float(found["sigma"][0]) < 1e-2 and all(bool(torch.isfinite(value).all()) for value in found.values())
    assert float(torch.sigmoid(found["theta_logit"][1])) < 0.05 and float(torch.sigmoid(found["theta_logit"][2])) > 0.9
    assert (guide.sample_posterior(2, seed=0)["nu"].isfinite()).all()


@pytest.mark.slow
def test_a_gene_that_fails_changes_no_other():
    counts, design, car = tissue(6, 3, seed=16)
    counts[1, :, 0] = 0  # an isoform that is never seen: the optimum is at infinity
    guide, alone = (
        AutoMarginalLaplace(MultinomialGLMM(some, design, car), ["nu"]).fit(
            path="engine", options=FitOptions(restarts=0)
        )
        for some in (counts, counts[[0, 2]])
    )
    assert guide.converged[[0, 2]].all()
    torch.testing.assert_close(guide.objective[[0, 2]], alone.objective, rtol=0, atol=1e-8)


def test_a_start_of_ones_own():
    counts, design, dense = data(seed=17)
    model = MultinomialGLMM(counts, design, dense, priors="weak")
    first = AutoMarginalLaplace(model, ["nu"]).fit(path="engine", options=SMALL)
    start = pyro.infer.autoguide.init_to_value(values=first.median())
    again = AutoMarginalLaplace(model, ["nu"], init_loc_fn=start).fit(path="engine", options=FitOptions(tolerance=1e-5))
    assert int(again.report().evaluations.max()) <= 8
    torch.testing.assert_close(again.objective, first.objective, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_held_sites():
    counts, design, dense = data(seed=18)
    held = {"sigma": torch.full((2, 1), 0.6).double(), "theta_logit": torch.zeros(2, 1).double()}
    for names in (("sigma",), ("theta_logit",), ("sigma", "theta_logit")):
        fixed = {name: held[name] for name in names}
        assert_same(*both(MultinomialGLMM(counts, design, dense, priors="weak", fixed=fixed)))


def test_covariances_that_a_distribution_carries():
    _, _, car = tissue(4, 2, seed=19)
    sigma, logit = torch.ones(2, 1).double(), torch.zeros(2, 1).double()
    value = torch.randn(2, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lazy = SpatialEffect(car, sigma, logit, 2)
    known = SpatialEffect(EigenCovariance.from_dense(torch.as_tensor(car.dense())), sigma, logit, 2)
    assert lazy.event_shape == known.event_shape and SpatialEffect(car, sigma, logit, 2).space is lazy.space
    torch.testing.assert_close(lazy.log_prob(value), known.log_prob(value))
    assert lazy.rsample().shape == (2, 16, 2) and not lazy.space.is_lazy


def direct(counts, space, *, sigma=None, theta_logit=None):
    """A model of one's own, of one gene and two isoforms; its priors of σ and θ are given as functions."""
    bias = pyro.sample("bias", dist.Normal(torch.zeros(1).double(), 3.0).to_event(1))
    scale = sigma() if sigma else pyro.sample("sigma", dist.HalfNormal(torch.ones(1).double()).to_event(1))
    share = theta_logit() if theta_logit else torch.zeros(1).double()
    nu = pyro.sample("nu", SpatialEffect(space, scale, share, 1))
    with pyro.plate("spots", len(counts)):
        pyro.sample("counts", SpotCounts(Multinomial(), counts.sum(-1), bias + nu, 2), obs=counts)


def even_counts():
    """Less spread between spots than the multinomial's own: σ is estimated as zero."""
    first = 15.0 + torch.arange(25).double() % 2
    return torch.stack([first, 30 - first], -1), tissue(5, 1, isoforms=2, seed=4)[2]


@pytest.mark.parametrize("center", [-6.0, -30.0])
def test_a_mode_of_sigma_far_below_where_searches_round_it_off(center):
    counts, car = even_counts()
    prior = dist.LogNormal(torch.full((1,), center).double(), 1.0).to_event(1)
    guide = AutoMarginalLaplace(lambda: direct(counts, car, sigma=lambda: pyro.sample("sigma", prior)), ["nu"])
    guide.fit(path="engine")
    assert guide.converged.all()
    log_sigma = guide.median()["sigma"].log()
    # the counts say nothing of so small a σ: the mode is the prior's
    torch.testing.assert_close(log_sigma, torch.full((1,), center - 1.0).double(), rtol=0, atol=1e-3)
    assert float(guide.optimum.gradient.abs().max()) < 1e-6


def test_a_density_that_rises_to_no_effect_without_end():
    counts, car = even_counts()
    prior = dist.Gamma(torch.full((1,), 0.5).double(), torch.ones(1).double()).to_event(1)
    guide = AutoMarginalLaplace(lambda: direct(counts, car, sigma=lambda: pyro.sample("sigma", prior)), ["nu"])
    guide.fit(path="engine", options=FitOptions(restarts=0))
    assert guide.optimum.reason == ["unbounded"]


def test_a_density_that_rises_to_an_end_of_theta_without_end():
    counts, _, car = tissue(5, 1, isoforms=2, seed=4)
    prior = dist.Beta(*torch.full((2, 1), 0.5).double()).to_event(1)
    model = lambda: direct(counts[0], car, theta_logit=lambda: pyro.sample("theta", prior).logit())  # noqa: E731
    guide = AutoMarginalLaplace(model, ["nu"]).fit(path="engine", options=FitOptions(restarts=0))
    assert guide.optimum.reason == ["unbounded"]


@pytest.mark.parametrize("end", [-torch.inf, torch.inf])
def test_theta_held_at_an_end(end):
    counts, _, car = tissue(5, 1, isoforms=2, seed=4)
    fits = [
        AutoMarginalLaplace(
            lambda at=at: direct(counts[0], car, theta_logit=lambda: torch.full((1,), at).double()), ["nu"]
        ).fit(path="engine", options=SMALL)
        for at in (end, 40.0 if end > 0 else -40.0)
    ]
    torch.testing.assert_close(fits[0].objective, fits[1].objective, rtol=0, atol=1e-9)


def test_counts_that_are_integers():
    counts, _, car = tissue(5, 1, isoforms=2, seed=4)
    fits = [
        AutoMarginalLaplace(lambda some=some: direct(some, car), ["nu"]).fit(path="engine")
        for some in (counts[0], counts[0].long())
    ]
    torch.testing.assert_close(fits[0].objective, fits[1].objective, rtol=0, atol=1e-9)
