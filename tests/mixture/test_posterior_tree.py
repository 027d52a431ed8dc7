"""The posterior of a mixture: the same groups and diagnostics as those of the other families, by Gibbs and by NUTS."""

import numpy as np
import pytest
import torch

from pyrosplice import GaussianMixture, fit_gmm
from pyrosplice._mixture.gaussian_mixture import MixtureParameters, log_joint
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior, weak_prior
from pyrosplice._mixture.patients.triplets import TripletDataset
from pyrosplice._mixture.posterior_tree import PackedCovariance, posterior_of_patients
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.posterior import compare_posteriors, leave_one_out, predictive_check, prior_sensitivity
from pyrosplice.posterior._tree import GROUPS
from tests.mixture.helpers import clouds


def fitted(kind="full", n=120, m=2, **options):
    x, _ = clouds(n, 2, m, seed=1, spread=6)
    return x, GaussianMixture(m, covariance_type=kind, random_state=0, **options).fit(x)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_densities_are_those_of_the_pyro_model(kind):
    x, model = fitted(kind)
    tree = model.posterior(x, num_samples=10, num_chains=2, warmup_steps=5)
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data", *GROUPS}
    at = tree["posterior"].isel(chain=1, draw=4)
    sites = {name: torch.from_numpy(at[name].values.copy()) for name in ("weights", "means", "covariances")}
    prior = weak_prior(torch.from_numpy(np.cov(x.T, bias=True)), torch.from_numpy(x.mean(0)), 2)
    whole = log_joint(sites, torch.from_numpy(x), covariance_type=kind, prior=prior)
    parts = tree["log_likelihood"].x.sum("cell") + tree["log_prior"].lp
    assert float(parts.isel(chain=1, draw=4)) == pytest.approx(float(whole), rel=1e-9)
    matrices = MixtureParameters(**sites, covariance_type=kind).covariance_matrices()
    np.testing.assert_allclose(at.sd**2, torch.diagonal(matrices, dim1=-2, dim2=-1))


def test_diagnostics_take_the_tree():
    x, model = fitted()
    tree = model.posterior(x, num_samples=100, names={"feature": ["u", "v"]})
    assert tree["posterior_predictive"].x.dims == ("chain", "draw", "cell", "feature")
    assert tree["posterior"].feature.values.tolist() == ["u", "v"]
    row = leave_one_out(tree).loc["all"]
    assert row["verdict"] == "fine" and 5 < row["p_loo"] < 20  # 11 free parameters
    assert row["elpd"] == pytest.approx(-model.nll_ * len(x), abs=40)
    assert predictive_check(tree)["pvalue"].between(0.01, 0.99).all()
    assert set(prior_sensitivity(tree)["site"]) == {"weights", "means"}
    spread = float(tree["prior"].means.std() / tree["posterior"].means.std(("chain", "draw")).mean())
    assert spread > 3


def test_packed_covariances_are_a_bijection():
    packed, x = PackedCovariance(), torch.linspace(-1, 1, 6, dtype=torch.float64)
    covariance = packed(x)
    assert torch.linalg.eigvalsh(covariance).min() > 0
    torch.testing.assert_close(packed.inv(covariance), x)
    rows = torch.tril_indices(3, 3)
    jacobian = torch.autograd.functional.jacobian(lambda v: packed(v)[rows[0], rows[1]], x)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, packed.log_abs_det_jacobian(x, covariance))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_nuts_on_the_pyro_model_agrees_with_gibbs(kind):
    x, model = fitted(kind, n=60)
    gibbs = model.posterior(x, num_samples=500, groups=())
    nuts = model.posterior(x, num_samples=120, method="nuts", num_chains=1, warmup_steps=50, groups=())
    assert not nuts["sample_stats"].diverging.values.all()
    table = compare_posteriors(gibbs, nuts, sites=("weights", "means", "sd"))
    assert (table["shift"].abs() < 0.15 + 4 * table["shift_error"]).all(), table
    assert table["sd_ratio"].between(0.7, 1.4).all(), table


@pytest.mark.slow
def test_every_patient_of_a_data_set():
    points = [clouds(60 + 20 * s, 2, 2, seed=s, spread=6)[0] for s in range(3)]
    data = fit_gmm(TripletDataset(points, [0, 0, 1]), k_comps=2, verbose=False)
    trees = posterior_of_patients(data, num_samples=60, groups=("log_likelihood",))
    assert list(trees) == data.names
    for tree, means, cells in zip(trees.values(), data.supports, points, strict=True):
        np.testing.assert_allclose(tree["posterior"].means.mean(("chain", "draw")), means, atol=0.6)
        assert tree["log_likelihood"].sizes["cell"] == len(cells)
    shared = fit_gmm(TripletDataset(points, [0, 0, 1]), k_comps=2, component_sharing="global", verbose=False)
    with pytest.raises(InvalidArgumentError, match="share components"):
        posterior_of_patients(shared)
    with pytest.raises(NotReadyError, match="fit_gmm"):
        posterior_of_patients(TripletDataset(points, [0, 0, 1]))


def test_what_cannot_be_drawn_is_refused():
    x, model = fitted(prior=MixturePrior(concentration=2.0))
    with pytest.raises(InvalidArgumentError, match="proper prior"):
        model.posterior(x)
    for bad in ({"method": "laplace"}, {"groups": ("warmup",)}):
        with pytest.raises(InvalidArgumentError):
            fitted()[1].posterior(x, num_samples=2, **bad)
