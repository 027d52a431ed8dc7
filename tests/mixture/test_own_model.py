"""A Pyro model of a person's own is what ``GaussianMixture`` fits: its optimum, sites and predictions, or a refusal."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import sklearn
import torch
from pyro import poutine

from pyrosplice import GaussianMixture
from pyrosplice._mixture.gaussian_mixture import gaussian_mixture
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from pyrosplice.errors import InvalidArgumentError, ModelFileError, RefusedModelError
from pyrosplice.guides._separate_units import unit_density
from pyrosplice.guides._unit_density import ModelCall
from tests.guides.simulated import blobs

CELLS = blobs()
EXACT = {"convergence_tolerance": 1e-13, "covariance_regularization": 0.0, "trainer_params": {"max_epochs": 2000}}


def sparse_means(x, n_components, *, components=dist.Normal, strength=2.0):
    """Means that a Laplace prior holds at zero; Gaussian components, or others."""
    double = torch.full((n_components,), strength).double()
    weights = pyro.sample("weights", dist.Dirichlet(double))
    with pyro.plate("components", n_components, dim=-1):
        means = pyro.sample("means", dist.Laplace(torch.zeros(2).double(), 1.0).to_event(1))
        variances = pyro.sample("covariances", dist.InverseGamma(torch.full((2,), 2.0).double(), 1.0).to_event(1))
    with pyro.plate("cells", len(x), dim=-1):
        z = pyro.sample("assignments", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", components(means[z], variances[z].sqrt()).to_event(1), obs=x)


def heavy_tails(x, n_components):
    sparse_means(x, n_components, components=partial(dist.StudentT, 4.0))


def one_scale(x, n_components):
    """Variances around a scale of their own, which is estimated too."""
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()).double(), 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((n_components,), 2.0).double()))
    with pyro.plate("components", n_components, dim=-1):
        means = pyro.sample("means", dist.Normal(torch.zeros(2).double(), 5.0).to_event(1))
        variances = pyro.sample("covariances", dist.InverseGamma(torch.tensor([3.0, 3.0]).double(), scale).to_event(1))
    with pyro.plate("cells", len(x), dim=-1):
        z = pyro.sample("assignments", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(means[z], variances[z].sqrt()).to_event(1), obs=x)


def dirichlet(x, n_components, covariance_type):
    """The shipped model with another prior."""
    prior = MixturePrior(concentration=20.0)
    gaussian_mixture(x, n_components=n_components, covariance_type=covariance_type, prior=prior)


def slope(mixture, cells=CELLS):
    """Norm of the gradient of a model's own log density, components summed out by hand, along the simplex."""
    free = {name: value.clone().requires_grad_(True) for name, value in mixture.sites.items()}
    totals, program = [], mixture.model
    for component in range(mixture.num_components):
        labels = torch.full((len(cells),), component)
        trace = poutine.trace(poutine.condition(program, data={**free, "assignments": labels})).get_trace(cells)
        trace.compute_log_prob()
        nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample" and "log_prob" in node}
        totals.append(nodes["assignments"]["log_prob"] + nodes["x"]["log_prob"])
        prior = sum(nodes[name]["log_prob"].sum() for name in free)
    total = prior + torch.stack(totals).logsumexp(0).sum()
    slopes = dict(zip(free, torch.autograd.grad(total, list(free.values())), strict=True))
    slopes["weights"] = slopes["weights"] - slopes["weights"].mean()  # along the simplex
    return torch.cat([gradient.flatten() for gradient in slopes.values()]).norm()


@pytest.mark.parametrize("model", [sparse_means, heavy_tails, one_scale])
def test_the_optimum_is_that_of_the_model(model):
    mixture = GaussianMixture(2, random_state=0, model=model).fit(CELLS)
    assert mixture.converged_ and slope(mixture) <= 1e-4 and mixture.reason_ == "converged"
    assert f"AutoNewtonMAP of {model.__name__}" in mixture.engine and "assignments" in mixture.engine
    assert mixture.guide(CELLS).keys() == mixture.sites.keys() >= {"weights", "means", "covariances"}


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_another_prior_is_that_of_em(kind):
    prior = MixturePrior(concentration=20.0)
    plain = GaussianMixture(2, covariance_type=kind, random_state=0, prior=prior, **EXACT).fit(CELLS)
    mine = GaussianMixture(2, covariance_type=kind, random_state=0, model=dirichlet).fit(CELLS)
    for name, value in plain.sites.items():
        torch.testing.assert_close(mine.sites[name], value, rtol=0, atol=1e-6)
    assert plain.engine == "closed-form engine" and mine.engine != plain.engine
    np.testing.assert_array_equal(mine.predict(CELLS), plain.predict(CELLS))
    for call in ("score", "aic", "bic"):
        assert getattr(mine, call)(CELLS) == pytest.approx(getattr(plain, call)(CELLS), abs=1e-5)
    assert mine.nll_ == pytest.approx(plain.nll_, abs=1e-6) and mine.sample(5).shape == (5, 2)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_the_shipped_model_and_guide_are_shown(kind):
    mixture = GaussianMixture(3, covariance_type=kind, random_state=0).fit(CELLS)
    values = mixture.guide(CELLS)
    density = unit_density(
        ModelCall(mixture.model, (CELLS,)), None, frozenset(), init=lambda s: values.get(s["name"], torch.tensor(0))
    )
    expected = -len(CELLS) * mixture.score(CELLS)
    weights = 0.6931471805599453  # of the flat Dirichlet of three weights: log 2!
    assert float(density(density.start)) == pytest.approx(expected + weights, abs=1e-2)
    same = GaussianMixture(3, covariance_type=kind, random_state=0, model=gaussian_mixture).fit(CELLS)
    assert same.engine == mixture.engine and torch.equal(same.model_.means, mixture.model_.means)


def test_predictions_are_those_of_the_model_or_refused(tmp_path):
    gaussian = GaussianMixture(2, random_state=0, model=sparse_means).fit(CELLS)
    assert gaussian.score(CELLS) == pytest.approx(gaussian.nll_) and gaussian.predict_proba(CELLS).shape == (250, 2)
    assert gaussian.bic(CELLS) > gaussian.aic(CELLS)
    scaled = GaussianMixture(2, random_state=0, model=one_scale).fit(CELLS)
    assert scaled.predict(CELLS).shape == (250,)
    with pytest.raises(RefusedModelError, match=r"one_scale has other sites .*'scale'"):
        scaled.bic(CELLS)
    heavy = GaussianMixture(2, random_state=0).fit(CELLS).set_params(model=heavy_tails).fit(CELLS)
    for call in (heavy.predict, heavy.predict_proba, heavy.score_samples, heavy.score, heavy.bic):
        with pytest.raises(RefusedModelError, match="those of heavy_tails have another"):
            call(CELLS)
    for call in (
        heavy.sample,
        lambda: heavy.save(tmp_path / "heavy"),
        lambda: heavy.save_attributes(tmp_path / "heavy"),
    ):
        with pytest.raises(RefusedModelError, match="heavy_tails"):
            call()
    for call in (gaussian.posterior, gaussian.partial_fit):
        with pytest.raises(RefusedModelError, match=r"shipped model, and this mixture's is sparse_means"):
            call(CELLS)
    back = heavy.set_params(model=None).fit(CELLS)
    assert back.engine == "closed-form engine" and back.predict(CELLS).shape == (250,)


def test_files_hold_no_code(tmp_path):
    mixture = GaussianMixture(2, random_state=0, model=one_scale).fit(CELLS)
    mixture.save(tmp_path / "own")
    again = GaussianMixture.load(tmp_path / "own", model=one_scale)
    assert again.engine == mixture.engine and again.get_params() == mixture.get_params()
    for name, value in mixture.sites.items():
        assert torch.equal(again.sites[name], value)
    np.testing.assert_array_equal(again.predict(CELLS), mixture.predict(CELLS))
    with pytest.raises(RefusedModelError, match="guide: a loaded mixture has none of one_scale"):
        _ = again.guide
    again.save(tmp_path / "again")
    assert torch.equal(GaussianMixture.load(tmp_path / "again", model=one_scale).sites["scale"], mixture.sites["scale"])
    for call, words in (
        (lambda: GaussianMixture.load(tmp_path / "own"), r"with the model one_scale.*load\(path, model=one_scale\)"),
        (lambda: GaussianMixture.load(tmp_path / "own", model=dirichlet), "saved with one_scale, found dirichlet"),
        (lambda: GaussianMixture.load_parameters(tmp_path / "own"), "model=one_scale"),
    ):
        with pytest.raises(ModelFileError, match=words):
            call()
    GaussianMixture(2, random_state=0).save(tmp_path / "plain")
    with pytest.raises(ModelFileError, match="saved with the shipped model"):
        GaussianMixture.load(tmp_path / "plain", model=one_scale)


def test_it_is_an_option_of_scikit_learn():
    mixture = GaussianMixture(2, random_state=0, model=sparse_means)
    assert mixture.get_params()["model"] is sparse_means and "sparse_means" in repr(mixture)
    copied = sklearn.base.clone(mixture).fit(CELLS)
    torch.testing.assert_close(copied.model_.means, mixture.clone().fit(CELLS).model_.means)

    class Mine(GaussianMixture):
        @property
        def model(self):
            return partial(sparse_means, n_components=self.num_components)

    torch.testing.assert_close(Mine(2, random_state=0).fit(CELLS).sites["means"], copied.sites["means"])
    class_made = type(
        "Made",
        (),
        {
            "__init__": lambda self, n_components: setattr(self, "n", n_components),
            "__call__": lambda self, x: sparse_means(x, self.n),
        },
    )
    torch.testing.assert_close(
        GaussianMixture(2, random_state=0, model=class_made).fit(CELLS).sites["means"], copied.sites["means"]
    )


def test_what_is_not_followed_is_refused():
    def deaf(x, n_components, covariance_type, prior):
        sparse_means(x, n_components)

    prior = MixturePrior(concentration=3.0)
    for options, words in (
        ({"model": sparse_means, "prior": prior}, "prior: sparse_means takes no argument 'prior'"),
        ({"model": deaf, "prior": prior}, "prior: the model deaf does not use it"),
        ({"model": lambda x, **options: sparse_means(x, 2)}, "num_components=2: the model <lambda> does not use it"),
        (
            {"model": lambda x, n_components, **options: sparse_means(x, n_components), "covariance_type": "full"},
            "covariance_type='full': the model <lambda> does not use it",
        ),
        ({"model": sparse_means, "covariance_type": "full"}, "covariance_type='full': sparse_means takes no argument"),
        ({"model": lambda x: sparse_means(x, 2)}, "num_components=2: <lambda> takes no argument 'n_components'"),
        ({"model": 3}, "model: expected a Pyro model"),
        ({"model": lambda x, n_components: x}, "samples no latent site"),
        ({"model": sparse_means, "batch_size": 50}, "batch_size: a model of your own is fitted"),
        ({"model": sparse_means, "covariance_regularization": 1.0}, "covariance_regularization: a model of your own"),
        ({"model": sparse_means, "missing": "marginalize"}, "missing: a model of your own is fitted"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            GaussianMixture(2, random_state=0, **options).fit(CELLS)
    with pytest.raises(InvalidArgumentError, match="sample_weight: a model of your own"):
        GaussianMixture(2, model=sparse_means).fit(CELLS, sample_weight=np.ones(250))
    cells = CELLS.clone() if isinstance(CELLS, torch.Tensor) else CELLS.copy()
    cells[7, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match=r"X: expected finite values .* NaN in row 7, feature 1"):
        GaussianMixture(2, model=sparse_means).fit(cells)


def test_a_bounded_flat_prior_is_another_model():
    def bounded(x, n_components):
        """The shipped model with variances that a flat prior bounds."""
        weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(n_components)))
        limits = dist.constraints.independent(dist.constraints.interval(0.01, 0.3), 1)
        with pyro.plate("components", n_components, dim=-1):
            variances = pyro.sample("covariances", dist.ImproperUniform(limits, (), (2,)))
            flat = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
            means = pyro.sample("means", flat)
        with pyro.plate("cells", len(x), dim=-1):
            z = pyro.sample("assignments", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(means[z], variances[z].sqrt()).to_event(1), obs=x)

    mixture = GaussianMixture(2, random_state=0, model=bounded).fit(CELLS)
    assert "bounded" in mixture.engine and mixture.sites["covariances"].max() <= 0.3
