"""Posterior draws against exact answers, distances against linear programming, figures."""

import itertools
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.optimize import linprog
from scipy.special import gammaln

from pyrosplice._mixture.em_estimator import GaussianMixture
from pyrosplice._mixture.gibbs_posterior import GibbsChains, sample_posterior
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from pyrosplice._mixture.patients.distances import patient_distances, squared_bures_wasserstein
from pyrosplice._mixture.patients.fit_gmm import fit_gmm
from pyrosplice._mixture.patients.selection import selection_table
from pyrosplice._mixture.patients.triplets import TripletDataset
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.plotting._mixture import criterion_curve, mixture_components, patient_distance_map
from tests.mixture.helpers import F64, clouds

mpl.use("Agg")


def _exact_sharing(x, prior):
    """Posterior mean of Σ w² of a one-dimensional mixture of two, over all assignments of the cells."""
    kappa, nu, psi, alpha = (
        prior.mean_strength,
        prior.covariance_dof,
        float(prior.covariance_scale),
        prior.concentration,
    )
    total = weighted = 0.0
    for z in itertools.product([0, 1], repeat=len(x)):
        log_p, n = 0.0, np.bincount(z, minlength=2)
        for k in range(2):
            own = x[np.array(z) == k]
            gap = kappa * len(own) / (kappa + len(own)) * (own.mean() - float(prior.mean)) ** 2 if len(own) else 0.0
            scale = psi + ((own - own.mean()) ** 2).sum() + gap if len(own) else psi
            log_p += 0.5 * math.log(kappa / (kappa + len(own))) + gammaln((nu + len(own)) / 2)
            log_p += -(nu + len(own)) / 2 * math.log(scale) + gammaln(alpha + n[k])
        a = alpha + n
        p = math.exp(log_p)
        total += p
        weighted += p * (a * (a + 1)).sum() / (a.sum() * (a.sum() + 1))
    return weighted / total


@pytest.mark.slow
@pytest.mark.parametrize("kind", COVARIANCE_TYPES[:1] + COVARIANCE_TYPES[2:])
def test_draws_of_a_tiny_mixture_have_the_enumerated_posterior(kind):
    x = np.array([-1.2, -0.8, 0.1, 0.9, 2.5, 3.1, -0.3])
    prior = MixturePrior(
        concentration=1.5,
        mean=torch.zeros(1, dtype=F64),
        mean_strength=0.5,
        covariance_dof=4.0,
        covariance_scale=torch.eye(1, dtype=F64),
    )
    start = GaussianMixture(2, covariance_type=kind, random_state=0, prior=prior).fit(x[:, None]).model_.parameters_of()
    tree = sample_posterior(x[:, None], start, GibbsChains(1200, n_chains=16, seed=1), prior=prior)
    weights = tree["posterior"]["weights"].to_numpy()
    assert weights.shape == (16, 1200, 2)
    assert (weights**2).sum(-1).mean() == pytest.approx(_exact_sharing(x, prior), abs=0.01)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_draws_of_one_component_have_the_conjugate_posterior(kind):
    x, _ = clouds(30, 2, 1, seed=3)
    scale = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    prior = MixturePrior(mean=torch.ones(2, dtype=F64), mean_strength=3.0, covariance_dof=7.0, covariance_scale=scale)
    start = GaussianMixture(1, covariance_type=kind, prior=prior).fit(x).model_.parameters_of()
    draws = sample_posterior(x, start, GibbsChains(800, 1, 10), prior=prior)["posterior"]
    gap = x.mean(0) - 1
    s = scale.numpy() + 30 * np.cov(x.T, bias=True) + 3 * 30 / 33 * np.outer(gap, gap)
    expected = {
        "full": s / (37 - 3),
        "tied": s / (37 - 3),
        "diag": s.diagonal() / (37 - 2),
        "spherical": (s.trace() - scale.trace().item() / 2) / (7 + 60 - 2),
    }[kind]
    found = draws["covariances"].mean(["chain", "draw"]).to_numpy()
    np.testing.assert_allclose(np.squeeze(found), expected, rtol=0.03, atol=0.02)
    mean = (3 * np.ones(2) + 30 * x.mean(0)) / 33
    np.testing.assert_allclose(draws["means"].mean(["chain", "draw"]).to_numpy()[0], mean, atol=0.03)


def test_labels_of_draws_agree_between_chains():
    x, _ = clouds(200, 2, 3, seed=1, spread=6)
    model = GaussianMixture(3, covariance_type="full", random_state=0).fit(x)
    tree = sample_posterior(x, model.model_.parameters_of(), GibbsChains(60, 20))
    assert set(tree.children) == {"posterior", "sample_stats"}
    means = tree["posterior"]["means"].to_numpy()
    np.testing.assert_allclose(means.mean((0, 1)), model.model_.means.numpy(), atol=0.5)
    assert means.std((0, 1)).max() < 0.6
    likelihood = tree["sample_stats"]["lp"].to_numpy()
    assert likelihood.max() < -200 * model.nll_ + 1e-6
    assert likelihood.mean() > -200 * model.nll_ - 40
    with pytest.raises(InvalidArgumentError, match="prior"):
        sample_posterior(x, model.model_.parameters_of(), GibbsChains(), prior=MixturePrior())
    with pytest.raises(InvalidArgumentError, match="n_draws"):
        sample_posterior(x, model.model_.parameters_of(), GibbsChains(0))


def _patients():
    points = [clouds(150, 2, 3, seed=s, spread=5)[0] + 2 * (s == 2) for s in (0, 0, 2, 3)]
    return fit_gmm(TripletDataset(points, [0, 0, 1, 1]), k_comps=[2, 3], verbose=False)


def test_bures_and_patient_distances_agree_with_definitions():
    pytest.importorskip("ot")
    data = _patients()
    means, covariances = data.supports.flatten(0, 1), data.covariances.flatten(0, 2 - 1)
    cost = squared_bures_wasserstein(means, covariances, means, covariances).numpy()
    root = sqrtm(covariances[0].numpy())
    cross = sqrtm(root @ covariances[4].numpy() @ root)
    expected = float((means[0] - means[4]).square().sum()) + np.trace(
        covariances[0].numpy() + covariances[4].numpy() - 2 * cross.real
    )
    assert cost[0, 4] == pytest.approx(expected, rel=1e-8)
    distances = patient_distances(data)
    k = data.weights.shape[1]
    for p, q in ((0, 2), (1, 3)):
        block = cost[p * k : (p + 1) * k, q * k : (q + 1) * k]
        sums = np.concatenate([np.kron(np.eye(k), np.ones(k)), np.kron(np.ones(k), np.eye(k))])
        best = linprog(block.ravel(), A_eq=sums, b_eq=np.concatenate([data.weights[p], data.weights[q]])).fun
        assert distances.iloc[p, q] == pytest.approx(math.sqrt(best), rel=1e-6)
    assert distances.iloc[0, 1] < 1e-6 and (np.diag(distances) == 0).all() and distances.equals(distances.T)
    values = distances.to_numpy()
    assert all(values[i, j] <= values[i, k] + values[k, j] + 1e-9 for i, j, k in itertools.permutations(range(4), 3))
    with pytest.raises(NotReadyError):
        patient_distances(TripletDataset(np.zeros((2, 5, 2)), [0, 1]))


def test_shared_components_have_distances_too():
    pytest.importorskip("ot")
    points = [clouds(100, 2, 2, seed=4)[0][: 60 + 20 * s] for s in range(3)]
    data = fit_gmm(TripletDataset(points, [0, 0, 1]), k_comps=2, component_sharing="global", verbose=False)
    distances = patient_distances(data).to_numpy()
    assert distances.shape == (3, 3) and np.isfinite(distances).all()


def test_figures_show_what_the_tables_hold():
    data = _patients()
    table = selection_table(data.gmm)
    ax = criterion_curve(table, criterion="bic")
    assert len(ax.lines) >= 5 and ax.get_xticks().tolist() == [2, 3]
    one = table[table["patient"] == "0"]
    assert criterion_curve(one).get_xlabel() == "components" and "patients" in ax.get_xlabel()
    with pytest.raises(InvalidArgumentError, match="criterion"):
        criterion_curve(table, criterion="icl")
    ax = mixture_components(clouds(50, 2, 2)[0], data.weights[0], data.supports[0], data.covariances[0])
    assert len(ax.patches) == 2 * int((data.weights[0] > 0).sum())
    major = ax.patches[0]
    values = np.linalg.eigvalsh(data.covariances[0, 0].numpy())
    assert major.width == pytest.approx(2 * math.sqrt(2 * math.log(2) * values[1]), rel=1e-6)
    distances = pd.DataFrame([[0, 1, 2.0], [1, 0, 1.5], [2, 1.5, 0]], index=list("abc"), columns=list("abc"))
    ax = patient_distance_map(distances)
    assert sorted(t.get_text() for t in ax.get_xticklabels()) == ["a", "b", "c"]
    with pytest.raises(InvalidArgumentError, match="symmetric"):
        patient_distance_map(distances.iloc[:2])
    mpl.pyplot.close("all")
