"""Simulation-based calibration of likelihoods and priors, shipped and a person's own."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from joblib import parallel_config
from scipy.stats import chisquare

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice.errors import InvalidArgumentError, NotStatedError
from pyrosplice.likelihoods import Binomial, DirichletMultinomial, Likelihood, Multinomial, Poisson
from pyrosplice.plotting import rank_ecdf
from pyrosplice.posterior import NutsOptions
from pyrosplice.testing import calibrate
from pyrosplice.testing._calibration import _of_likelihood
from pyrosplice.testing._rank_statistics import PosteriorCalibration, chi2_pvalue
from tests.studies.simulation import grid

SOON = {"print_progress": False}
NARROW = {"bias_eta": dist.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())}


class Halved(Binomial):
    """Draws from odds that are half of what its density says: a mistake that calibration should find."""

    def log_prob(self, counts, eta):
        return Binomial().log_prob(counts, eta)

    def mean(self, eta):
        return Binomial().mean(eta)

    def sample(self, totals, eta, *, generator=None):
        return Binomial().sample(totals, 0.5 * eta, generator=generator)


class Own(Halved):
    """A likelihood without the mistake."""

    def sample(self, totals, eta, *, generator=None):
        return Binomial().sample(totals, eta, generator=generator)


class Mute(Likelihood):
    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, eta)


def test_a_likelihood_of_ones_own_is_right_and_one_with_a_mistake_is_found():
    right = calibrate(Own(), NARROW, (16, 2), n_simulations=100, **SOON)
    assert right.holds and "uniform ranks" in str(right)
    wrong = calibrate(Halved(), NARROW, (16, 2), n_simulations=100, **SOON)
    assert not wrong.holds and "not calibrated" in str(wrong)
    assert dict(zip(wrong.table["quantity"], wrong.table["verdict"], strict=True))["bias_eta"] == "draws are too narrow"


def test_the_same_seed_gives_the_same_ranks_for_any_number_of_processes():
    ask = {"n_simulations": 12, "batch_size": 5, "design": 1, "n_draws": 19, **SOON}
    state = torch.get_rng_state()
    once = calibrate(Multinomial(), "weak", (9, 3), **ask).ranks
    assert torch.equal(state, torch.get_rng_state())
    with parallel_config("threading"):
        again = calibrate(Multinomial(), "weak", (9, 3), n_jobs=2, **ask).ranks
    pd.testing.assert_frame_equal(once, again)
    assert not once.equals(calibrate(Multinomial(), "weak", (9, 3), seed=1, **ask).ranks)
    assert list(once) == ["beta_0", "beta_1", "bias_eta_0", "bias_eta_1", "log_likelihood"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["laplace", "importance", "nuts"])
def test_every_method_and_a_model_with_data(method):
    model = (
        MultinomGLMM(
            fitting_method="marginal_newton", var_fix_sigma=False, likelihood=DirichletMultinomial(), priors="weak"
        )
        if method == "laplace"
        else MultinomGLM(priors="weak")
    )
    counts = torch.poisson(torch.full((2, 9, 2), 6.0), generator=torch.Generator().manual_seed(0)).double()
    space = {"corr_sp": grid(3)} if method == "laplace" else {}
    model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 9)[:, None], **space)
    before = {name: value.clone() for name, value in model.named_parameters()}
    options = NutsOptions(warmup_steps=10, max_tree_depth=3) if method == "nuts" else None
    found = calibrate(model, n_simulations=2, n_draws=9, method=method, nuts_options=options, **SOON)
    assert torch.equal(model.counts, counts) and all(torch.equal(before[k], v) for k, v in model.named_parameters())
    sites = {"beta", "bias_eta", "log_likelihood"}
    assert set(found.ranks) == sites | ({"sigma", "theta_logit", "concentration"} if method == "laplace" else set())
    assert found.ranks.stack().between(0, 9).all() and found.table["missing"].eq(0).all()


def test_data_sets_have_the_given_totals_and_the_priors_moments():
    totals = torch.arange(8.0)
    given = {"data_shape": (8, 2), "totals": totals, "design": None, "covariance": None}
    world = _of_likelihood(Binomial(), NARROW, 4_000, given)
    counts, truth = world.draw()
    assert torch.equal(counts.sum(-1), totals.expand(4_000, 8).double())
    assert abs(float(truth["bias_eta"].mean())) < 0.05 and abs(float(truth["bias_eta"].std()) - 1) < 0.04
    expected = torch.sigmoid(truth["bias_eta"])[:, 0] * 7
    assert abs(float((counts[:, 7, 0] - expected).mean())) < 0.08


def test_statistics_are_scipys():
    ranks = np.random.default_rng(0).integers(0, 100, 400)
    expected = chisquare(np.histogram(ranks, np.linspace(0, 100, 21))[0]).pvalue
    assert chi2_pvalue(ranks, 99) == pytest.approx(expected)
    assert np.isnan(chi2_pvalue(ranks[:5], 99))
    uneven = chi2_pvalue(ranks % 7, 6, bins=3)  # ranks 0-2, 3-4, 5-6
    observed = np.bincount(np.array([0, 0, 0, 1, 1, 2, 2])[ranks % 7])
    assert uneven == pytest.approx(chisquare(observed, np.array([3, 2, 2]) / 7 * 400).pvalue)


def test_words_and_figure_name_what_is_wrong():
    matplotlib.use("Agg")
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    kinds = {"right": (0, 1), "low": (-0.6, 1), "high": (0.6, 1), "narrow": (0, 0.5), "wide": (0, 2)}
    ranks = pd.DataFrame({k: (rng.normal(m, s, (99, 300)) < truth).sum(0) for k, (m, s) in kinds.items()}).astype(float)
    ranks.loc[0, "right"] = np.nan
    about = {"model": "binomial GLM", "method": "laplace"}
    found = PosteriorCalibration.of(ranks.assign(pareto_k=[0.9, *[0.1] * 299]), 99, about, 0.99)
    expected = ["uniform", *(f"draws are too {word}" for word in ("low", "high", "narrow", "wide"))]
    assert found.table["verdict"].tolist() == expected and found.table["missing"].tolist() == [1, 0, 0, 0, 0]
    assert "1 without draws" in str(found) and "k̂ > 0.7 in 0.3%" in str(found)
    ax = found.plot()
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    assert entries == ["low", "high", "narrow", "wide", "99 % band of uniform ranks"]
    x, y = ax.lines[1].get_data()
    below = (ranks["low"].to_numpy()[:, None] < np.arange(1, 100)).mean(0)
    np.testing.assert_allclose(y[1:-1], below - x[1:-1])
    with pytest.raises(InvalidArgumentError, match="n_draws"):
        rank_ecdf(ranks, n_draws=50)
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"priors": None}, r"flat.*bias_eta"),
        ({"data_shape": None}, "data_shape"),
        ({"data_shape": (5, 2, 2)}, "data_shape"),
        ({"data_shape": (0, 2)}, "data_shape"),
        ({"totals": 2.5}, "totals"),
        ({"totals": [3.0, 4.0]}, "totals"),
        ({"model": Poisson(), "data_shape": (5, 1), "totals": 3}, "random"),
        ({"n_simulations": 1}, "n_simulations"),
        ({"n_draws": 0}, "n_draws"),
        ({"method": "mcmc"}, "method"),
        ({"hyper": "grid"}, "hyper"),
        ({"confidence": 0}, "confidence"),
        ({"seed": 1.5}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"covariance": grid(3)}, "5"),
        ({"model": "multinomial"}, "expected a likelihood"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, words):
    ask = {"model": Binomial(), "priors": "weak", "data_shape": (5, 2), "n_simulations": 4, **SOON}
    with pytest.raises(InvalidArgumentError, match=words):
        calibrate(**(ask | arguments))


def test_models_without_a_posterior_or_with_arguments_that_they_have_are_refused():
    counts = torch.ones(1, 9, 2)
    joint = MultinomGLMM(priors="weak")
    joint.setup_data(counts, grid(3))
    with pytest.raises(InvalidArgumentError, match="marginal"):
        calibrate(joint, n_simulations=4, **SOON)
    glm = MultinomGLM(priors="weak")
    glm.setup_data(counts)
    with pytest.raises(InvalidArgumentError, match="data_shape: expected None"):
        calibrate(glm, data_shape=(9, 2), n_simulations=4, **SOON)
    with pytest.raises(NotStatedError, match="sample"):
        calibrate(Mute(), "weak", (5, 2), n_simulations=4, **SOON)


@pytest.mark.parametrize(
    "argument", ["data_shape", "totals", "covariance", "method", "hyper", "n_draws", "seed", "design"]
)
@pytest.mark.parametrize("value", ["foo", b"x", object(), {"a": 1}, ["a", None], int, 1j])
def test_odd_values_are_refused_by_name(argument, value):
    given = {"data_shape": (12, 2), "n_simulations": 2, "n_draws": 9, **SOON, argument: value}
    with pytest.raises(InvalidArgumentError, match={"covariance": "corr_sp"}.get(argument, argument)):
        calibrate(Binomial(), "weak", **given)
