"""Priors by site: what EM maximizes under them is the model's density, and what it cannot do goes the generic way."""

from functools import partial
from itertools import pairwise

import numpy as np
import pyro.distributions as dist
import pytest
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice import GaussianMixture
from pyrosplice._mixture.gaussian_mixture import log_joint
from pyrosplice._mixture.gibbs_posterior import GibbsChains, sample_posterior
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from pyrosplice.errors import InvalidArgumentError, RefusedModelError
from pyrosplice.guides import AutoNewtonMAP
from pyrosplice.guides._separate_units import unit_density
from pyrosplice.guides._unit_density import ModelCall
from pyrosplice.priors import InverseWishart, ScaledNormal
from tests.mixture.helpers import F64, clouds

EXACT = {"convergence_tolerance": 1e-13, "trainer_params": {"max_epochs": 3000}, "random_state": 0}
WEIGHTS = ["none", "symmetric", "each"]
MEANS = ["none", "normal", "feature", "component", "joint", "scaled"]
COVARIANCES = ["none", "same", "component"]


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def matrix(*lead, dim, seed=0):
    root = 0.3 * numbers(*lead, dim, dim, seed=seed)
    return torch.eye(dim, dtype=F64) + root @ root.mT


def priors_of(kind, dim, m, weights, means, covariances):
    """One of every kind of conjugate prior; scaled means with flat covariances would have no greatest density."""
    covariances = "same" if means == "scaled" and covariances == "none" else covariances
    steps = torch.arange(m, dtype=F64)
    scales = 1 + torch.arange(dim, dtype=F64)
    spreads = {
        "full": (InverseWishart(dim + 3.0, matrix(dim=dim)), InverseWishart(dim + 3 + steps, matrix(m, dim=dim))),
        "tied": (InverseWishart(dim + 3.0, matrix(dim=dim)),) * 2,
        "diag": (dist.InverseGamma(3.0, scales), dist.InverseGamma(2 + steps[:, None], scales).to_event(1)),
        "spherical": (dist.InverseGamma(3.0, 1.0), dist.InverseGamma(2 + steps, 1.0)),
    }[kind]
    table = {
        "weights": {"symmetric": dist.Dirichlet(torch.tensor([2.5])), "each": dist.Dirichlet(1.5 + steps)},
        "means": {
            "normal": dist.Normal(0.0, 2.0),
            "feature": dist.Normal(torch.zeros(dim).double(), scales),
            "component": dist.Normal(numbers(m, dim), 1.0).to_event(1),
            "joint": dist.MultivariateNormal(numbers(dim), matrix(dim=dim, seed=3)),
            "scaled": ScaledNormal(numbers(m, dim), 1 + steps),
        },
        "covariances": {"same": spreads[0], "component": spreads[1]},
    }
    chosen = {"weights": weights, "means": means, "covariances": covariances}
    return {site: table[site][name] for site, name in chosen.items() if name != "none"}


def slope(mixture, cells):
    """Largest derivative of the model's log density at the fit, in its unconstrained coordinates."""
    values = mixture.sites
    density = unit_density(
        ModelCall(mixture.model, (cells,)), None, frozenset(), init=lambda s: values.get(s["name"], torch.tensor(0))
    )
    point = density.unconstrain(values, density.latents).detach().requires_grad_(True)
    return float(torch.autograd.grad(density(point).sum(), point)[0].norm())


SPACE = {
    "kind": st.sampled_from(COVARIANCE_TYPES),
    "weights": st.sampled_from(WEIGHTS),
    "means": st.sampled_from(MEANS),
    "covariances": st.sampled_from(COVARIANCES),
    "dim": st.integers(1, 3),
    "seed": st.integers(0, 20),
}


@pytest.mark.slow
@settings(max_examples=40)
@given(**SPACE, weighted=st.booleans())
def test_em_stops_where_the_density_of_the_model_does(kind, weights, means, covariances, dim, seed, weighted):
    x = torch.from_numpy(clouds(90, dim, 2, seed=seed)[0])
    times = torch.arange(90) % 3 if weighted else torch.ones(90, dtype=torch.int64)
    priors = priors_of(kind, dim, 2, weights, means, covariances)
    mixture = GaussianMixture(2, covariance_type=kind, priors=priors, covariance_regularization=0.0, **EXACT)
    mixture.fit(x, sample_weight=times.double() if weighted else None)
    assert mixture.engine == "closed-form engine" and mixture.converged_
    assert slope(mixture, x.repeat_interleave(times, 0)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("means", MEANS)
def test_the_generic_way_has_the_same_optimum(kind, means):
    x = torch.from_numpy(clouds(120, 2, 2, seed=1)[0])
    priors = priors_of(kind, 2, 2, "each", means, "component")
    mixture = GaussianMixture(2, covariance_type=kind, priors=priors, **EXACT).fit(x)
    start = {name: value.clone() for name, value in mixture.sites.items()}
    start["means"] += 0.05
    guide = AutoNewtonMAP(mixture.model, units=None, init_loc_fn=lambda site: start[site["name"]]).fit(x)
    for name, value in guide.median().items():
        torch.testing.assert_close(mixture.sites[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=15)
@given(**SPACE)
def test_no_iteration_lowers_the_density(kind, weights, means, covariances, dim, seed):
    x = torch.from_numpy(clouds(60, dim, 3, seed=seed, spread=1.0)[0])
    priors = priors_of(kind, dim, 3, weights, means, covariances)
    options = {"covariance_type": kind, "priors": priors, "covariance_regularization": 0.0, "random_state": 0}
    densities = []
    for n in range(1, 9):
        most = {"trainer_params": {"max_epochs": n}, "convergence_tolerance": 0.0}
        sites = GaussianMixture(3, **options, **most).fit(x).sites
        densities.append(float(log_joint(sites, x, covariance_type=kind, prior=priors)))
    assert all(later >= earlier - 1e-9 * abs(earlier) for earlier, later in pairwise(densities))


@pytest.mark.slow
@settings(max_examples=15)
@given(**SPACE)
def test_features_and_rows_have_no_order(kind, weights, means, covariances, dim, seed):
    x, rng = clouds(80, dim, 2, seed=seed)[0], np.random.default_rng(seed)
    order, rows = rng.permutation(dim), rng.permutation(80)
    start = clouds(2, dim, 2, seed=seed)[0]
    start[1] += 3

    def turned(prior):
        if isinstance(prior, InverseWishart):
            return InverseWishart(prior.dof, prior.scale[..., order, :][..., order])
        if isinstance(prior, ScaledNormal):
            return ScaledNormal(prior.loc[..., order], prior.cells)
        if isinstance(prior, dist.MultivariateNormal):
            return dist.MultivariateNormal(prior.loc[order], prior.covariance_matrix[order][:, order])
        if isinstance(prior, dist.Independent):
            return turned(prior.base_dist).to_event(1)
        if isinstance(prior, dist.Normal) and prior.batch_shape:
            return dist.Normal(prior.loc[..., order], prior.scale[..., order])
        if isinstance(prior, dist.InverseGamma) and kind == "diag":
            return dist.InverseGamma(prior.concentration[..., order], prior.rate[..., order])
        return prior

    priors = priors_of(kind, dim, 2, weights, means, covariances)
    options = {"covariance_type": kind, **EXACT}
    plain = GaussianMixture(2, priors=priors, init_means=start, **options).fit(x)
    moved = {site: turned(prior) for site, prior in priors.items()}
    other = GaussianMixture(2, priors=moved, init_means=start[:, order], **options).fit(x[rows][:, order])
    torch.testing.assert_close(other.sites["means"], plain.sites["means"][:, order], rtol=0, atol=1e-6)
    torch.testing.assert_close(other.sites["weights"], plain.sites["weights"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("form", [dist.Normal, partial(dist.StudentT, 3.0)])
def test_components_are_those_that_priors_name(kind, form):
    x = torch.from_numpy(clouds(150, 2, 3, seed=3, spread=5)[0])
    options = {"covariance_type": kind, "random_state": 0}
    means = GaussianMixture(3, **options).fit(x).model_.means
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        mixture = GaussianMixture(3, priors={"means": form(means[order], 0.2).to_event(1)}, **options).fit(x)
        torch.testing.assert_close(mixture.sites["means"], means[order], rtol=0, atol=0.1)
    if form is dist.Normal:
        proper = {"means": form(means[order], 0.2), **priors_of(kind, 2, 3, "none", "none", "same")}
        tree = GaussianMixture(3, priors=proper, **options).fit(x).posterior(x, num_samples=50, groups=())
        np.testing.assert_allclose(tree["posterior"].means.mean(("chain", "draw")), means[order], atol=0.2)
        assert not tree["sample_stats"].relabelled.any()


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_single_precision_is_that_of_the_cells(kind):
    x = torch.from_numpy(clouds(150, 2, 2, seed=2)[0])
    priors = priors_of(kind, 2, 2, "each", "joint", "same")
    double = GaussianMixture(2, covariance_type=kind, priors=priors, **EXACT).fit(x)
    single = GaussianMixture(2, covariance_type=kind, priors=priors, random_state=0).fit(x.float())
    assert single.model_.means.dtype == torch.float32
    torch.testing.assert_close(single.sites["means"], double.sites["means"], rtol=0, atol=5e-3)
    loose = {"means": dist.MultivariateNormal(torch.ones(2), torch.eye(2))}
    tight = {"means": dist.MultivariateNormal(torch.ones(2).double(), torch.eye(2).double())}
    fits = [GaussianMixture(2, covariance_type=kind, priors=one, **EXACT).fit(x) for one in (loose, tight)]
    assert torch.equal(fits[0].model_.means, fits[1].model_.means)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_numbers_and_distributions_say_the_same(kind):
    x = torch.from_numpy(clouds(100, 2, 3, seed=4)[0])
    prior = MixturePrior(
        concentration=2.0, mean=torch.ones(2), mean_strength=3.0, covariance_dof=6.0, covariance_scale=matrix(dim=2)
    )
    options = {"covariance_type": kind, "covariance_regularization": 0.0, **EXACT}
    first = GaussianMixture(3, prior=prior, **options).fit(x)
    again = GaussianMixture(3, priors=prior.by_site(3, 2, kind), **options).fit(x)
    for name, value in first.sites.items():
        assert torch.equal(again.sites[name], value)
    draws = [one.posterior(x, num_samples=10, warmup_steps=5, groups=("log_prior",)) for one in (first, again)]
    np.testing.assert_array_equal(draws[0]["posterior"].means, draws[1]["posterior"].means)
    np.testing.assert_array_equal(draws[0]["log_prior"].lp, draws[1]["log_prior"].lp)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_weak_priors_are_of_the_cells(kind):
    x = torch.from_numpy(clouds(100, 2, 2, seed=5)[0])
    mixture = GaussianMixture(2, covariance_type=kind, priors="weak", **EXACT).fit(x)
    assert slope(mixture, x) <= 1e-4 and mixture.engine == "closed-form engine"
    same = GaussianMixture(2, covariance_type=kind, **EXACT).fit(x)
    assert float((same.sites["means"] - mixture.sites["means"]).abs().max()) < 0.05
    twins = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat_interleave(20, 0)  # a maximum likelihood without end
    assert GaussianMixture(2, covariance_type=kind, priors="weak", random_state=0).fit(twins[:, :1]).converged_


GENERIC = {
    "laplace": {"means": dist.Laplace(0.0, 1.0)},
    "lognormal": {"covariances": dist.LogNormal(0.0, 0.5)},
    "both": {
        "means": dist.StudentT(4.0, torch.tensor([0.0, 1.0]), 2.0),
        "covariances": dist.HalfNormal(2.0),
        "weights": dist.Dirichlet(torch.tensor([3.0])),
    },
}


@pytest.mark.parametrize("name", GENERIC)
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_other_priors_are_followed_by_the_guide(name, kind):
    x = torch.from_numpy(clouds(100, 2, 2, seed=6)[0])
    mixture = GaussianMixture(2, covariance_type=kind, priors=GENERIC[name], random_state=0).fit(x)
    assert mixture.converged_ and slope(mixture, x) <= 1e-4
    site, prior = next(iter(GENERIC[name].items()))
    assert f"AutoNewtonMAP of gaussian_mixture with {site} ~ {type(prior).__name__}" in mixture.engine
    assert mixture.predict(x).shape == (100,) and np.isfinite(mixture.bic(x))
    for call, words in (
        (lambda: mixture.posterior(x), f"posterior: .*{site} ~ {type(prior).__name__}"),
        (lambda: mixture.clone().partial_fit(x), f"partial_fit: .*{site} ~ {type(prior).__name__}"),
        (
            lambda: sample_posterior(x, mixture.model_.parameters_of(), GibbsChains(), prior=GENERIC[name]),
            f"priors: Gibbs draws need conjugate .*'{site}'",
        ),
    ):
        with pytest.raises(RefusedModelError, match=words):
            call()


def test_a_density_of_ones_own_is_followed():
    class Sharper(dist.Normal):
        def log_prob(self, value):
            return 10 * super().log_prob(value)

    x = torch.from_numpy(clouds(100, 2, 2, seed=6)[0])
    own = GaussianMixture(2, priors={"means": Sharper(0.0, 3.0)}, random_state=0).fit(x)
    known = GaussianMixture(2, priors={"means": dist.Normal(0.0, 3.0 / np.sqrt(10))}, **EXACT).fit(x)
    assert "means ~ Sharper" in own.engine
    torch.testing.assert_close(own.sites["means"], known.sites["means"], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("means", ["normal", "scaled"])
def test_draws_have_the_posterior_on_a_grid(kind, means):
    x = np.array([0.3, 1.9, -0.4, 2.2, 1.1, 0.6])
    spread = InverseWishart(4.0, 2 * torch.eye(1).double())
    spread = spread if kind in ("full", "tied") else dist.InverseGamma(2.0, 1.0)
    of_means = {"normal": dist.Normal(-1.0, 0.7), "scaled": ScaledNormal(torch.tensor([-1.0]), 3.0)}[means]
    priors = {"means": of_means, "covariances": spread}
    mixture = GaussianMixture(1, covariance_type=kind, priors=priors).fit(x[:, None])
    tree = mixture.posterior(x[:, None], num_samples=2500, num_chains=8, warmup_steps=20, groups=())
    mu, log_v = np.meshgrid(np.linspace(-3, 4, 400), np.linspace(-4, 4, 400), indexing="ij")
    v = np.exp(log_v)
    sd = 0.7**2 if means == "normal" else v / 3
    log_p = -3 * log_v - ((x[:, None, None] - mu) ** 2).sum(0) / 2 / v  # cells
    log_p += -((mu + 1) ** 2) / 2 / sd - np.log(sd) / 2 - 2 * log_v - 1 / v  # priors, and log v in the place of v
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    drawn = tree["posterior"]
    assert float(drawn.means.mean()) == pytest.approx((p * mu).sum(), abs=0.01)
    assert float(drawn.means.std()) == pytest.approx(np.sqrt((p * mu**2).sum() - (p * mu).sum() ** 2), rel=0.03)
    assert float(np.log(drawn.covariances).mean()) == pytest.approx((p * log_v).sum(), abs=0.02)


@pytest.mark.slow
def test_the_prior_is_drawn_from():
    x = torch.from_numpy(clouds(50, 2, 2, seed=6)[0])
    for kind in COVARIANCE_TYPES:
        priors = priors_of(kind, 2, 2, "each", "component", "component")
        tree = GaussianMixture(2, covariance_type=kind, priors=priors, random_state=0).fit(x).posterior(x)
        prior = tree["prior"].to_dataset().mean(("chain", "draw"))
        np.testing.assert_allclose(prior.means, numbers(2, 2), atol=0.1)
        np.testing.assert_allclose(prior.weights, [0.375, 0.625], atol=0.03)
        at = tree["posterior"].isel(chain=0, draw=3)
        sites = {name: torch.from_numpy(at[name].values.copy()) for name in ("weights", "means", "covariances")}
        whole = float(log_joint(sites, x, covariance_type=kind, prior=priors))
        parts = tree["log_likelihood"].x.sum("cell") + tree["log_prior"].lp
        assert float(parts.isel(chain=0, draw=3)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("means", MEANS)
def test_files_keep_priors(tmp_path, kind, means):
    x = clouds(80, 2, 2, seed=7)[0]
    priors = {"weights": None, **priors_of(kind, 2, 2, "each", means, "component")}
    mixture = GaussianMixture(2, covariance_type=kind, priors=priors, random_state=0).fit(x)
    mixture.save(tmp_path / "mixture")
    again = GaussianMixture.load(tmp_path / "mixture")
    known = again.get_params()["priors"]
    assert known.keys() == priors.keys()
    for site, prior in priors.items():
        if prior is None:
            assert known[site] is None
            continue
        value = prior.sample().double()
        expected = prior.log_prob(value).double()  # in single precision: that of Normal(0.0, 1.0) is torch's default
        torch.testing.assert_close(known[site].log_prob(value), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(again.model_.means, mixture.model_.means)
    np.testing.assert_array_equal(again.clone().fit(x).predict_proba(x), mixture.predict_proba(x))


def test_files_of_other_priors(tmp_path):
    x = clouds(80, 2, 2, seed=7)[0]
    mixture = GaussianMixture(2, priors=GENERIC["laplace"], random_state=0).fit(x)
    mixture.save(tmp_path / "laplace")
    again = GaussianMixture.load(tmp_path / "laplace")
    assert again.engine == mixture.engine and torch.equal(again.sites["means"], mixture.sites["means"])
    spread = {"covariances": dist.Wishart(5.0, matrix(dim=2))}
    wishart = GaussianMixture(2, covariance_type="full", priors=spread, random_state=0)
    wishart.fit(x).save(tmp_path / "wishart")
    again = GaussianMixture.load(tmp_path / "wishart")
    assert "Wishart" in again.engine
    torch.testing.assert_close(again.clone().fit(x).sites["covariances"], wishart.sites["covariances"])
    GaussianMixture(2, priors="weak").save(tmp_path / "weak")
    assert GaussianMixture.load(tmp_path / "weak").priors == "weak"

    class Mine(dist.Normal):
        pass

    with pytest.raises(InvalidArgumentError, match=r"priors: .*'means'.* files hold no code"):
        GaussianMixture(2, priors={"means": Mine(0.0, 1.0)}).save(tmp_path / "mine")


def test_priors_are_an_option_of_scikit_learn():
    x = clouds(80, 2, 2, seed=7)[0]
    priors = priors_of("full", 2, 2, "each", "joint", "same")
    mixture = GaussianMixture(2, covariance_type="full", priors=priors, random_state=0)
    assert mixture.get_params()["priors"] is priors and "priors=" in repr(mixture)
    fits = [one.fit(x).predict_proba(x) for one in (mixture, sklearn.base.clone(mixture), mixture.clone())]
    np.testing.assert_array_equal(fits[0], fits[1])
    np.testing.assert_array_equal(fits[0], fits[2])
    flat = mixture.set_params(priors=None).fit(x)
    np.testing.assert_array_equal(
        flat.predict_proba(x), GaussianMixture(2, covariance_type="full", random_state=0).fit(x).predict_proba(x)
    )


def test_priors_of_models_of_ones_own():
    def mine(x, n_components, priors):
        means = {"means": dist.Normal(0.0, 0.1)} if priors is None else priors
        shipped = GaussianMixture(n_components, priors=means).model
        return shipped(x)

    x = torch.from_numpy(clouds(100, 2, 2, seed=6)[0])
    priors = {"means": dist.Normal(0.0, 0.5)}
    mixture = GaussianMixture(2, model=mine, priors=priors, random_state=0).fit(x)
    assert mixture.engine == "closed-form engine"  # the same density as the shipped one
    with pytest.raises(InvalidArgumentError, match=r"priors: .* takes no argument 'priors'"):
        GaussianMixture(2, model=lambda x, n_components: None, priors=priors).fit(x)
