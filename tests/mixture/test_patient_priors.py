"""Priors by site of every patient's mixture, of missing values and of streams of cells: the same fits, or a refusal."""

from itertools import pairwise

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import GaussianMixture, TripletDataset, fit_gmm
from pyrosplice._mixture.gaussian_mixture import log_prior
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from pyrosplice._mixture.posterior_tree import posterior_of_patients
from pyrosplice.errors import InvalidArgumentError, RefusedModelError
from pyrosplice.priors import InverseWishart, ScaledNormal
from tests.mixture.helpers import F64, brute_force, clouds

POINTS = [clouds(70 + 10 * s, 2, 2, seed=s, spread=6)[0] for s in range(3)]
LAPLACE = {"means": dist.Laplace(0.0, 3.0)}


def patients():
    return TripletDataset(POINTS, [0, 0, 1])


def spread_of(kind):
    matrix = InverseWishart(6.0, torch.eye(2, dtype=F64))
    return matrix if kind in ("full", "tied") else dist.InverseGamma(3.0, 1.0)


def given(kind, name):
    return {
        "weak": "weak",
        "conjugate": {
            "weights": dist.Dirichlet(torch.tensor([2.0])),
            "means": dist.Normal(0.0, 4.0),
            "covariances": spread_of(kind),
        },
        "generic": {**LAPLACE, "covariances": spread_of(kind)},
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("name", ["weak", "conjugate", "generic"])
def test_each_patient_has_the_fit_of_its_cells(kind, name):
    priors = given(kind, name)
    data = fit_gmm(patients(), k_comps=2, covariance_type=kind, priors=priors, tol=1e-12, max_iter=1000, verbose=False)
    exact = {"convergence_tolerance": 1e-12, "trainer_params": {"max_epochs": 1000}}
    for cells, means, covariances, weights in zip(POINTS, data.supports, data.covariances, data.weights, strict=True):
        alone = GaussianMixture(2, covariance_type=kind, priors=priors, init_means=means, **exact).fit(cells)
        torch.testing.assert_close(alone.sites["means"], means, rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.sites["weights"], weights, rtol=0, atol=1e-6)
        matrices = alone.model_.parameters_of().covariance_matrices()
        torch.testing.assert_close(matrices, covariances, rtol=0, atol=1e-5)
    about = data.gmm["fit_params"]
    assert about["engine"] == ("AutoNewtonMAP" if name == "generic" else "closed-form engine")
    assert about["priors"] == "weak" if name == "weak" else about["priors"].keys() == priors.keys()


def test_numbers_of_components_do_not_matter_to_each_other():
    for name in ("weak", "conjugate"):
        several = fit_gmm(patients(), k_comps=[1, 2, 3], priors=given("full", name), refit="full", verbose=False)
        for patient, k in enumerate(several.gmm["distribution_n_components"]):
            alone = fit_gmm(patients(), k_comps=int(k), priors=given("full", name), verbose=False)
            torch.testing.assert_close(several.supports[patient][:k], alone.supports[patient][:k])


def test_distributions_and_numbers_are_the_same_priors():
    prior = MixturePrior(covariance_dof=5.0, covariance_scale=torch.eye(2, dtype=F64))
    first = fit_gmm(patients(), k_comps=2, prior=prior, eps=0.0, verbose=False)
    second = fit_gmm(patients(), k_comps=2, priors=prior.by_site(2, 2, "full"), verbose=False)
    assert torch.equal(first.supports, second.supports) and torch.equal(first.covariances, second.covariances)
    pooled = [fit_gmm(patients(), k_comps=2, verbose=False, **{n: "pooled"}).covariances for n in ("prior", "priors")]
    assert torch.equal(*pooled)
    shared = [
        fit_gmm(patients(), k_comps=2, component_sharing="global", verbose=False, **one).supports
        for one in ({"prior": prior, "eps": 0.0}, {"priors": prior.by_site(2, 2, "full")})
    ]
    assert torch.equal(*shared)


def test_what_patients_cannot_follow_is_refused():
    weights, spread = {"weights": dist.Dirichlet(torch.full((2,), 2.0))}, {"covariances": spread_of("full")}
    for options, words in (
        ({"k_comps": [1, 2], "priors": weights}, r"'weights'\]: .*broadcasts to shape \(1,\)"),
        ({"k_comps": 2, "priors": {"means": ScaledNormal(torch.zeros(3), 1.0)}}, r"shape \(2, 2\) \(components first"),
        ({"k_comps": 2, "priors": spread, "eps": 0.3}, "eps: found 0.3 beside priors of covariances"),
        ({"k_comps": 2, "priors": LAPLACE, "eps": 0.3}, "eps: found 0.3 beside"),
        ({"k_comps": 2, "priors": spread, "prior": "pooled"}, "prior, priors: expected one of them, found both"),
        ({"k_comps": 2, "priors": "strong"}, "priors: expected a dictionary"),
        ({"k_comps": 2, "prior": "weak"}, "prior: expected None, 'pooled' or a MixturePrior, found 'weak'"),
        ({"k_comps": 2, "priors": {"sigma": dist.HalfNormal(1.0)}}, "found 'sigma'"),
        ({"k_comps": 2, "covariance_type": "round", "priors": spread}, "covariance_type"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            fit_gmm(patients(), verbose=False, **options)
    for priors, words in (
        (LAPLACE, "priors: shared components .*'means'"),
        (weights, r"priors\['weights'\]: with shar"),
    ):
        with pytest.raises(RefusedModelError, match=words):
            fit_gmm(patients(), k_comps=2, component_sharing="global", priors=priors, verbose=False)


def test_draws_take_the_same_priors():
    priors = {"means": dist.Normal(0.0, 4.0), "covariances": spread_of("full")}
    data = fit_gmm(patients(), k_comps=2, priors=priors, verbose=False)
    trees = posterior_of_patients(data, num_samples=30, num_chains=2, priors=priors, groups=())
    for tree, means in zip(trees.values(), data.supports, strict=True):
        np.testing.assert_allclose(tree["posterior"].means.mean(("chain", "draw")), means, atol=0.6)
    with pytest.raises(RefusedModelError, match="priors: Gibbs draws need conjugate"):
        posterior_of_patients(data, num_samples=30, priors=LAPLACE)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("means", [dist.Normal(1.0, 0.5), ScaledNormal(torch.ones(2), 5.0)])
def test_missing_values_never_lower_the_density(kind, means):
    x = clouds(60, 2, 2, seed=2, spread=2)[0]
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    priors, densities = {"means": means, "covariances": spread_of(kind)}, []
    for n in range(1, 8):
        most = {"trainer_params": {"max_epochs": n}, "convergence_tolerance": 0.0, "missing": "marginalize"}
        fit = GaussianMixture(2, covariance_type=kind, priors=priors, random_state=0, **most).fit(x)
        parameters = fit.model_.parameters_of()
        densities.append(brute_force(parameters, x).sum() + float(log_prior(parameters, priors)))
    assert all(later >= earlier - 1e-9 * abs(earlier) for earlier, later in pairwise(densities))


def test_a_stream_of_cells_keeps_the_priors():
    x, priors = POINTS[0], {"means": dist.Normal(0.0, 1e-3), "covariances": spread_of("diag")}
    mixture = GaussianMixture(2, priors=priors, random_state=0).partial_fit(x[:40]).partial_fit(x[40:])
    assert float(mixture.model_.means.abs().max()) < 0.02
    with pytest.raises(InvalidArgumentError, match="priors: as in the first call"):
        mixture.set_params(priors=None).partial_fit(x)


def test_a_feature_without_variance_has_no_weak_prior():
    x = np.column_stack([POINTS[0], np.ones(len(POINTS[0]))])
    with pytest.raises(InvalidArgumentError, match=r"covariance_scale: .*no variance.*Leave out features"):
        GaussianMixture(2, covariance_type="full", priors="weak").fit(x)
