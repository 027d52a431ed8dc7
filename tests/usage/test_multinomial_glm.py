"""MultinomGLM: gold results, recovery, every method's optimum, bad input, and the documented surface."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

from pyrosplice._usage.glm import MultinomGLM
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from tests.paths import shared

GOLD = ["mn_sim1", "mn_haber", "mn_lung_cd47", "mn_anes96"]


def gold_data(name):
    table = pd.read_csv(shared("gold", f"{name}.csv"))
    rows = pd.read_csv(shared("gold", "a_multinomial_coef.csv")).query("set == @name")
    categories = [*rows.category.drop_duplicates(), rows.baseline.iloc[0]]
    terms = list(rows.term.drop_duplicates())[1:]

    def column(term):
        if term in table:
            return table[term].to_numpy(float)
        factor = next(c for c in table if term.startswith(c) and term.removeprefix(c) in set(table[c].astype(str)))
        return (table[factor].astype(str) == term.removeprefix(factor)).to_numpy(float)

    design = np.stack([column(term) for term in terms], 1)
    order = rows.set_index(["term", "category"]).loc[[(t, c) for t in [*terms, "(Intercept)"] for c in categories[:-1]]]
    fit = pd.read_csv(shared("gold", "a_multinomial_fit.csv")).set_index("set").loc[name]
    return torch.tensor(table[categories].to_numpy(float)), torch.tensor(design), order, fit.loglik_full


@pytest.mark.parametrize("method", ["iwls", "newton"])
@pytest.mark.parametrize("name", GOLD)
def test_gold_coefficients_errors_and_likelihood(name, method):
    counts, design, gold, loglik = gold_data(name)
    model = MultinomGLM(fitting_method=method)
    model.setup_data(counts, design_mtx=design)
    model.fit()
    found = torch.cat([model.beta[0], model.bias_eta], 0).flatten()
    errors = model.standard_errors()
    spread = torch.cat([errors["beta"][0], errors["bias_eta"]], 0).flatten()
    np.testing.assert_allclose(found, gold.newton_coef, atol=1e-6, rtol=0)
    np.testing.assert_allclose(spread, gold.newton_se, atol=1e-6, rtol=0)
    assert model().item() == pytest.approx(loglik, abs=1e-6)
    assert model.logger.reason == ["converged"]


def simulate(n_genes=4, n_spots=300, seed=0, depth=6):
    rng = torch.Generator().manual_seed(seed)
    design = torch.randn(n_spots, 2, generator=rng, dtype=torch.float64)
    beta = 0.5 * torch.randn(n_genes, 2, 2, generator=rng, dtype=torch.float64)
    bias = 0.5 * torch.randn(n_genes, 2, generator=rng, dtype=torch.float64)
    totals = torch.poisson(torch.full((n_genes, n_spots), float(depth)), generator=rng).double()
    counts = Multinomial().sample(totals, design @ beta + bias[:, None], generator=rng)
    return counts, design, beta, bias


def fitted(counts, design=None, *, likelihood=None, priors=None, **options):
    model = MultinomGLM(**options, likelihood=likelihood, priors=priors)
    model.setup_data(counts, design_mtx=design)
    model.fit(quiet=True)
    return model


def test_recovers_the_truth_within_its_standard_errors():
    counts, design, beta, bias = simulate(n_genes=200)
    model = fitted(counts, design)
    errors = model.standard_errors()
    z = torch.cat(
        [((model.beta - beta) / errors["beta"]).flatten(), ((model.bias_eta - bias) / errors["bias_eta"]).flatten()]
    )
    assert abs(z.mean().item()) < 4 / len(z) ** 0.5
    assert z.std().item() == pytest.approx(1.0, abs=4 / (2 * len(z)) ** 0.5 + 0.02)
    assert model.logger.converged.all()


@pytest.mark.parametrize("optim", ["adam", "sgd", "lbfgs"])
def test_gradient_methods_reach_newton_s_optimum(optim):
    counts, design, *_ = simulate()
    best = fitted(counts, design)
    model = fitted(counts, design, fitting_method="gd", fitting_configs={"optim": optim, "max_epochs": -1})
    assert model.logger.reason == ["converged"] * 4
    assert (best() - model()).abs().max() < 1e-4  # nats; tol is 1e-5
    assert (best.beta - model.beta).abs().max() < 5e-3
    assert (best.get_isoform_ratio() - model.get_isoform_ratio()).abs().max() < 2e-3


def test_forward_is_the_density_of_the_pyro_model_and_the_guide_is_its_argument():
    counts, design, *_ = simulate(n_genes=2, n_spots=30)
    model = fitted(counts, design, priors={"beta": dist.Normal(0.0, 0.3), "bias_eta": dist.StudentT(3.0, 0.0, 1.0)})
    values = model.guide()
    trace = poutine.trace(poutine.condition(model.model, data=values)).get_trace()
    assert trace.log_prob_sum().item() == pytest.approx(model().sum().item(), abs=1e-6)
    model.requires_grad_(True)
    gradients = torch.autograd.grad(model().sum(), [model.beta, model.bias_eta])
    assert max(g.abs().max().item() for g in gradients) < 1e-4


def test_a_prior_shrinks_and_its_curvature_enters_the_errors():
    counts, design, *_ = simulate(n_genes=2, n_spots=50)
    free, shrunk = fitted(counts, design), fitted(counts, design, priors={"beta": dist.Normal(0.0, 0.05)})
    assert (shrunk.beta.abs() < free.beta.abs()).float().mean() > 0.9
    assert (shrunk.standard_errors()["beta"] < 0.05).all()


class Plain(Likelihood):
    name = "plain"

    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, eta)

    def mean(self, eta):
        return Multinomial().mean(eta)


def test_a_likelihood_with_nothing_but_a_density_gives_the_same_fit():
    counts, design, *_ = simulate(n_genes=2, n_spots=60)
    torch.testing.assert_close(
        fitted(counts, design, likelihood=Plain()).beta, fitted(counts, design).beta, rtol=0, atol=1e-8
    )


def test_spots_without_counts_change_nothing():
    counts, design, *_ = simulate(n_genes=3, n_spots=50)
    empty = torch.zeros(3, 20, 3, dtype=torch.float64)
    more = torch.cat([design, 100 * torch.ones(20, 2, dtype=torch.float64)])
    one, two = fitted(counts, design), fitted(torch.cat([counts, empty], 1), more)
    torch.testing.assert_close(one.beta, two.beta, rtol=0, atol=1e-9)
    torch.testing.assert_close(one(), two(), rtol=0, atol=1e-9)
    assert two.get_isoform_ratio().shape == (3, 70, 3)


def test_equal_covariates_are_added_up_without_changing_the_fit():
    counts, design, *_ = simulate(n_genes=2, n_spots=80)
    groups = (design > 0).double()
    torch.testing.assert_close(
        fitted(counts, groups).vcov(), fitted(counts, groups, likelihood=Plain()).vcov(), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("method", ["iwls", "gd"])
def test_bad_genes_are_named_and_change_no_other(method):
    counts, design, *_ = simulate(n_genes=5, n_spots=100)
    side = design[:, 0] > 0
    design[:, 0] = side
    alone = fitted(counts[:2], design, fitting_method=method)
    counts[2, :, 1] = 0  # never seen
    counts[3] = 0
    counts[4] = torch.stack([side * 3.0, ~side * 3.0, torch.ones(100)], 1)  # perfectly separated
    model = fitted(counts, design, fitting_method=method)
    torch.testing.assert_close(model.beta[:2], alone.beta.data, rtol=0, atol=1e-9)
    assert model.logger.reason[:4] == ["converged", "converged", "separated", "no_counts"]
    if method == "iwls":
        assert model.logger.reason[4] == "separated"
    assert torch.isfinite(model.beta).all()
    assert model.get_isoform_ratio()[2, :, 1].max() < 1e-2


def test_extreme_genes_are_done_in_few_steps_and_change_no_other():
    counts, design, *_ = simulate(n_genes=4, n_spots=60)
    alone = fitted(counts[:1], design)
    counts[1] *= 1e6
    counts[2, 5, 0] = 1e7
    counts[3] = torch.tensor([1e6, 0.0, 0.0]).double()
    counts[3, 0, 2] = 1
    model = fitted(counts, design)
    torch.testing.assert_close(model.beta[:1], alone.beta.data, rtol=0, atol=1e-9)
    assert model.logger.reason == ["converged", "converged", "converged", "separated"]
    assert model.logger.n_iter.max() < 40


def test_a_never_seen_isoform_with_a_prior_is_no_trouble():
    counts, design, *_ = simulate(n_genes=1, n_spots=40)
    counts[0, :, 1] = 0
    prior = dist.Normal(0.0, 2.0)
    model = fitted(counts, design, priors={"beta": prior, "bias_eta": prior})
    assert model.logger.reason == ["converged"]


def test_collinear_covariates_are_named_and_ratios_unaffected():
    counts, design, *_ = simulate(n_genes=2, n_spots=60)
    group = (design[:, :1] > 0).double()
    one_hot = torch.cat([group, 1 - group, torch.ones(60, 1).double()], 1)
    with pytest.warns(UserWarning, match=r"columns \[1, 2\]"):
        full = fitted(counts, one_hot)
    torch.testing.assert_close(full.get_isoform_ratio(), fitted(counts, group).get_isoform_ratio(), rtol=0, atol=1e-8)
    assert torch.isinf(full.standard_errors()["beta"]).all()
    assert full.logger.converged.all()
    assert fitted(counts, one_hot, priors={"beta": dist.Normal(0.0, 1.0)}).standard_errors()["beta"].isfinite().all()


def test_shift_and_unit_of_a_covariate_do_not_matter():
    counts, design, *_ = simulate(n_genes=2, n_spots=60)
    moved = fitted(counts, 1e-3 * design + 50.0)
    plain = fitted(counts, design)
    torch.testing.assert_close(moved.beta * 1e-3, plain.beta, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        moved.standard_errors()["beta"] * 1e-3, plain.standard_errors()["beta"], rtol=1e-6, atol=0
    )


def test_documented_surface():
    counts, design, *_ = simulate(n_genes=3, n_spots=20)
    configs = {"tol": 1e-6}
    model = MultinomGLM(fitting_configs=configs)
    model.setup_data(counts[0].int().numpy())
    assert (model.n_genes, model.n_spots, model.n_isos, model.n_factors) == (1, 20, 3, 0)
    assert model.beta.shape == (1, 0, 2)
    assert model.bias_eta.shape == (1, 2)
    model.setup_data(counts, design_mtx=design.numpy())
    history = model.fit(store_param_history=True)
    assert history["beta"].shape[1:] == (3, 2, 2)
    assert len(history["bias_eta"]) == len(model.logger.loss_history)
    torch.testing.assert_close(history["beta"][-1], model.beta)
    assert model.fit() is None
    assert model.fitting_time > 0
    torch.testing.assert_close(model.logger.best_loss, -model())
    ratio = model.get_isoform_ratio()
    torch.testing.assert_close(ratio.sum(-1), torch.ones(3, 20, dtype=torch.float64))
    assert set(model.state_dict()) == {"beta", "bias_eta"}
    assert configs == {"tol": 1e-6}
    assert model.fitting_configs == {**MultinomGLM().fitting_configs, "tol": 1e-6}
    assert "3 genes × 20 spots × 3 isoforms, 2 covariates" in repr(model)
    assert "3 converged" in repr(model)
    with pytest.warns(DeprecationWarning, match="store_param_history"):
        assert model.fit(diagnose=True) is not None


def test_clone_is_equal_and_independent():
    counts, design, *_ = simulate(n_genes=2, n_spots=20)
    model = fitted(counts, design)
    copy = model.clone()
    assert torch.equal(copy(), model())
    assert copy.logger.reason == model.logger.reason
    copy.update_params_from_dict({"bias_eta": torch.zeros(2, 2)})
    copy.fitting_configs["tol"] = 1.0
    assert model.bias_eta.abs().min() > 0
    assert model.fitting_configs["tol"] == 1e-5
    assert torch.equal(copy.beta, model.beta)


def test_update_params_refuses_and_leaves_the_model_alone():
    counts, design, *_ = simulate(n_genes=2, n_spots=20)
    model = fitted(counts, design)
    before = model.beta.clone()
    with pytest.raises(InvalidArgumentError, match="gamma"):
        model.update_params_from_dict({"beta": torch.zeros(2, 2, 2), "gamma": 1.0})
    with pytest.raises(InvalidArgumentError, match=r"expected shape \(2, 2, 2\)"):
        model.update_params_from_dict({"beta": torch.zeros(2, 2)})
    assert torch.equal(model.beta, before)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fitting_method": "bfgs"}, "fitting_method"),
        ({"fitting_configs": {"epochs": 3}}, "epochs"),
        ({"fitting_configs": {"lr": 0.0}}, "lr"),
        ({"fitting_configs": {"optim": "rmsprop"}}, "rmsprop"),
        ({"fitting_configs": {"max_epochs": -2}}, "max_epochs"),
        ({"fitting_configs": {"patience": 1.5}}, "patience"),
        ({"fitting_configs": {"tol_relative": "no"}}, "tol_relative"),
        ({"fitting_configs": [1]}, "dict"),
        ({"likelihood": "multinomial"}, "likelihood"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(InvalidArgumentError, match=match):
        MultinomGLM(**options)


@pytest.mark.parametrize(
    ("counts", "design", "match"),
    [
        (torch.ones(3), None, "n_spots, n_isos"),
        (torch.ones(2, 0, 3), None, "a spot"),
        (torch.tensor([[1.0, float("nan")]]), None, "finite"),
        (torch.tensor([[1.0, 2.0], [-1.0, 0.0]]), None, "non-negative.* spot 1, isoform 0"),
        (torch.tensor([[1.0, 0.5]]), None, "whole"),
        (torch.ones(4, 2), torch.ones(3, 1), "n_spots = 4"),
        (torch.ones(4, 2), torch.ones(4), "design_mtx"),
        (torch.ones(2, 2), torch.tensor([[1.0], [float("inf")]]), "design_mtx"),
    ],
)
def test_bad_data_are_named_and_the_model_keeps_its_own(counts, design, match):
    good, covariates, *_ = simulate(n_genes=2, n_spots=20)
    model = fitted(good, covariates)
    density = model()
    with pytest.raises(InvalidArgumentError, match=match):
        model.setup_data(counts, design_mtx=design)
    assert torch.equal(model(), density)
    with pytest.raises(InvalidArgumentError, match="device"):
        model.setup_data(good, device="tpu")
    with pytest.raises(NotImplementedError, match="two isoforms"):
        model.setup_data(good[:, :, :1])


def test_bad_priors_are_named_at_setup():
    model = MultinomGLM(priors={"beta": dist.Normal(torch.zeros(7), 1.0)})
    with pytest.raises(InvalidArgumentError, match="priors"):
        model.setup_data(torch.ones(4, 3), design_mtx=torch.arange(4.0).unsqueeze(1))


@pytest.mark.parametrize("ask", ["fit", "forward", "get_isoform_ratio", "vcov", "standard_errors"])
def test_asking_before_setup_is_an_error_that_says_so(ask):
    with pytest.raises(NotReadyError, match="setup_data"):
        getattr(MultinomGLM(), ask)()
