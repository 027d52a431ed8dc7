"""MultinomGLMM: the objective is the Pyro model's, every method reaches its optimum, input in every form, bad input."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive

from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.glmm._multinomial import log_density
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance
from tests.paths import shared

SIDE, G = 8, 4
N = SIDE**2
METHODS = [("newton", "adam"), ("gd", "adam"), ("gd", "sgd"), ("gd", "lbfgs")]


def adjacency(side):
    index = np.arange(side * side).reshape(side, side)
    matrix = np.zeros((side * side, side * side))
    for one, two in ((index[:, :-1], index[:, 1:]), (index[:-1], index[1:])):
        matrix[one.ravel(), two.ravel()] = matrix[two.ravel(), one.ravel()] = 1
    return matrix


CAR = CarCovariance(adjacency(SIDE), rho=0.95)


@pytest.fixture(scope="module")
def data():
    rng = torch.Generator().manual_seed(5)
    solver = SparseSolver(CAR.precision)
    theta = torch.tensor([0.9, 0.5, 0.0, 0.9]).double()[:, None, None]
    field = solver.color(torch.randn(G, N, 2, generator=rng, dtype=torch.float64))
    noise = torch.randn(G, N, 2, generator=rng, dtype=torch.float64)
    design = torch.randn(N, 1, generator=rng, dtype=torch.float64)
    eta = 0.8 * (theta.sqrt() * field + (1 - theta).sqrt() * noise) + 0.4 * design
    totals = torch.poisson(torch.full((G, N), 10.0), generator=rng).double()
    return Multinomial().sample(totals, eta, generator=rng), design


def fitted(counts, design=None, corr=CAR, *, start=None, eigen=None, **options):
    model = MultinomGLMM(**{"fitting_method": "marginal_newton", "var_fix_sigma": False, **options})
    values, vectors = eigen or (None, None)
    model.setup_data(counts, corr, design, corr_sp_eigvals=values, corr_sp_eigvecs=vectors)
    if start is not None:
        model.update_params_from_dict(start)
    model.fit(quiet=True)
    return model


def at_random(model, seed=0):
    """Parameters away from any optimum."""
    rng = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(p.shape, generator=rng, dtype=torch.float64) for name, p in model.named_parameters()}
    noise["sigma"] = (0.3 * noise["sigma"]).exp()
    model.update_params_from_dict({name: 0.5 * value if name != "sigma" else value for name, value in noise.items()})
    return {name: getattr(model, name).detach().clone() for name in noise}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("prior", ["none", "gamma", "inv_gamma"])
@pytest.mark.parametrize("kind", ["sparse", "dense", "truncated", "identity"])
def test_joint_objective_and_its_gradient_are_the_pyro_model_s(data, share, prior, kind):
    counts, design = data
    model = MultinomGLMM(share, False, prior, priors={"beta": dist.Normal(0.0, 1.0)})
    if kind == "truncated":
        values, vectors = CAR.eigen(10)
        model.setup_data(counts, None, design, corr_sp_eigvals=values, corr_sp_eigvecs=vectors)
    else:
        rough = torch.randn(N, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        corr = {"sparse": CAR, "dense": (rough @ rough.T / N), "identity": IdentityCovariance(N)}[kind]
        model.setup_data(counts, corr, design)
    values = {name: value.clone().requires_grad_(True) for name, value in at_random(model).items()}
    expected = log_density(model.model, values)
    model.requires_grad_(True)
    torch.testing.assert_close(model(), expected, rtol=1e-7, atol=1e-6)
    names = [name for name in values if kind != "identity" or name != "theta_logit"]
    ours = torch.autograd.grad(model().sum(), [getattr(model, name) for name in names])
    theirs = torch.autograd.grad(expected.sum(), [values[name] for name in names])
    for name, mine, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("share", [True, False])
def test_marginal_gradient_is_the_slope_of_the_marginal(data, share):
    counts, design = data
    model = MultinomGLMM(share, False, "gamma", fitting_method="marginal_newton")
    model.setup_data(counts, CAR, design)
    values = at_random(model)
    model.requires_grad_(True)
    names = ["beta", "bias_eta", "sigma", "theta_logit"]
    slopes = torch.autograd.grad(model().sum(), [getattr(model, name) for name in names])
    for name, slope in zip(names, slopes, strict=True):
        step = torch.zeros_like(values[name])
        step.flatten(1)[:, -1] = 1e-4
        model.update_params_from_dict({name: values[name] + step})
        above = model().detach()
        model.update_params_from_dict({name: values[name] - step})
        difference = (above - model().detach()) / 2e-4
        model.update_params_from_dict({name: values[name]})
        torch.testing.assert_close(slope.flatten(1)[:, -1], difference, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "fixed"), [(True, False), (False, False), (True, True)])
def test_every_marginal_method_reaches_the_same_optimum(data, share, fixed):
    counts, design = data
    fits = [
        fitted(
            counts[1:3],
            design,
            share_variance=share,
            var_fix_sigma=fixed,
            fitting_method=f"marginal_{method}",
            fitting_configs={"optim": optim, "max_epochs": -1},
        )
        for method, optim in METHODS
    ]
    for fit in fits:
        assert fit.logger.converged.all(), fit.logger.reason
        torch.testing.assert_close(fit(), -fit.logger.best_loss, rtol=0, atol=1e-6)
        assert (fits[0]() - fit()).abs().max() < 1e-4  # nats; tol is 1e-5
        assert (fits[0].beta - fit.beta).abs().max() < 5e-3
        assert (fits[0].var_total() - fit.var_total()).abs().max() < 5e-3
        assert (fit() >= fit.log_marginal_null - 1e-4).all()


@pytest.mark.parametrize(("fixed", "prior"), [(True, "none"), (False, "inv_gamma")])
def test_every_joint_method_reaches_the_same_optimum(data, fixed, prior):
    counts, design = data
    options = {"var_fix_sigma": fixed, "var_prior_model": prior}
    fits = [
        fitted(
            counts[:2],
            design,
            fitting_method=f"joint_{method}",
            fitting_configs={"optim": optim, "max_epochs": -1},
            **options,
        )
        for method, optim in METHODS
    ]
    for fit in fits:
        assert fit.logger.converged.all(), fit.logger.reason
        torch.testing.assert_close(fit(), -fit.logger.best_loss, rtol=0, atol=1e-5)
        assert (fits[0]() - fit()).abs().max() < 1e-3  # nats
        assert (fits[0].nu - fit.nu).abs().max() < 1e-2


@pytest.mark.parametrize("method", ["joint_newton", "joint_gd"])
def test_a_joint_density_without_a_maximum_is_reported(data, method):
    counts, design = data
    model = fitted(counts[:2], design, fitting_method=method)  # σ free, flat at 0
    assert model.logger.reason == ["unbounded"] * 2
    assert torch.isfinite(model.get_isoform_ratio()).all()


def test_joint_mode_is_the_mode_of_the_pyro_model(data):
    counts, design = data
    model = fitted(counts, design, fitting_method="joint_newton", var_prior_model="inv_gamma")
    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    best = log_density(model.model, values)
    rng = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1e-2):
        moved = {
            name: value + scale * torch.randn(value.shape, generator=rng, dtype=torch.float64) * (name != "theta_logit")
            for name, value in values.items()
        }
        assert (log_density(model.model, moved) < best).all()


def test_marginal_optimum_is_stationary_in_the_unconstrained_directions(data):
    model = fitted(*data)
    model.requires_grad_(True)
    slopes = torch.autograd.grad(model().sum(), [model.beta, model.bias_eta, model.sigma, model.theta_logit])
    assert max(slope.abs().max().item() for slope in slopes) < 2e-3
    assert (model.gradient_norm < 1e-3).all()


def test_covariance_in_every_form_gives_the_same_fit(data):
    counts, design = data
    reference = fitted(counts[:2], design)
    forms = [{"corr": CAR.dense()}, {"corr": solver_for(CAR)}, {"corr": None, "eigen": CAR.eigen()}]
    for form in forms:
        other = fitted(counts[:2], design, **form)
        torch.testing.assert_close(other(), reference(), rtol=0, atol=1e-5)
        torch.testing.assert_close(other.nu.data, reference.nu.data, rtol=0, atol=1e-3)


def test_a_truncated_covariance_keeps_the_meaning_of_sigma_and_theta(data):
    counts, _ = data
    full = fitted(counts)
    short = fitted(counts, corr=None, eigen=CAR.eigen(24))
    torch.testing.assert_close(torch.diagonal(short._engine.dense_covariance()), torch.ones(N).double())
    assert (short.var_total() / full.var_total() - 1).abs().max() < 0.25
    assert (short() - full()).abs().max() < 3.0


def test_without_space_theta_is_zero_and_the_fit_is_the_null_of_the_spatial_one(data):
    counts, design = data
    null = fitted(counts, design, IdentityCovariance(N))
    assert (null.var_sp_prop() < 1e-15).all()
    torch.testing.assert_close(null(), fitted(counts, design).log_marginal_null, rtol=0, atol=1e-6)
    torch.testing.assert_close(fitted(counts, design, torch.eye(N))(), null(), rtol=0, atol=1e-9)


def test_spots_without_counts_change_nothing(data):
    counts, design = data
    empty = torch.tensor([3, 17, 40, 41])
    holed = counts.clone()
    holed[:, empty] = 0
    kept = torch.tensor([i for i in range(N) if i not in empty.tolist()])
    covariance = CAR.dense()
    one = fitted(holed, design, covariance)
    two = fitted(holed[:, kept], design[kept], covariance[kept][:, kept])
    torch.testing.assert_close(one(), two(), rtol=0, atol=1e-5)
    torch.testing.assert_close(one.beta.data, two.beta.data, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.nu[:, kept], two.nu.data, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["marginal_newton", "marginal_gd", "joint_newton", "joint_gd"])
def test_bad_genes_are_named_and_change_no_other(data, method):
    counts, design = data
    options = {"fitting_method": method, "var_fix_sigma": True, "fitting_configs": {"optim": "lbfgs"}}
    alone = fitted(counts[:2], design, **options)
    bad = counts.clone()
    bad[2, :, 0] = 0  # never seen
    bad[3] = 0
    model = fitted(bad, design, **options)
    assert model.logger.reason == [*alone.logger.reason, "separated", "no_counts"]
    torch.testing.assert_close(model.nu[:2], alone.nu.data, rtol=0, atol=1e-6)
    torch.testing.assert_close(model()[:2], alone(), rtol=0, atol=1e-8)
    assert torch.isfinite(model.get_isoform_ratio()).all()


def test_extreme_genes_are_fitted_and_change_no_other(data):
    counts, design = data
    alone = fitted(counts[:1], design)
    extreme = counts.clone()
    extreme[1] *= 1e4
    extreme[2] = 0
    extreme[2, 3] = torch.tensor([5.0, 3.0, 2.0])  # one spot only
    extreme[3] = 0
    extreme[3, torch.arange(N), torch.arange(N) % 3] = 50  # every spot pure
    model = fitted(extreme, design)
    assert model.logger.reason == ["converged"] * 3 + ["all_or_nothing"]
    torch.testing.assert_close(model()[:1], alone(), rtol=0, atol=1e-8)
    assert (model() >= model.log_marginal_null - 1e-6).all()
    assert torch.isfinite(model.vcov()[:2]).all()


@pytest.mark.parametrize(
    ("name", "kind", "share"),
    [("grid16_low", "theta_free", True), ("grid16_multinomial3", "separate_theta_free", False)],
)
def test_gold_estimates_and_standard_errors(name, kind, share):
    table = pd.read_csv(shared("gold", f"{name.replace('_low', '_binomial')}.csv"))
    if "y3" in table:
        counts = table[["y1", "y2", "y3"]].to_numpy(float)
    else:
        counts = np.stack([table["y1_low"], table["n_low"] - table["y1_low"]], 1)
    gold = pd.read_csv(shared("gold", "b_tmb_fits.csv")).query("set == @name and model == @kind")
    beta = gold[gold["param"].str.startswith("beta")]
    car = CarCovariance(adjacency(16), rho=0.99)
    model = fitted(torch.tensor(counts), torch.tensor(table[["x"]].to_numpy()), car, share_variance=share)
    errors = model.standard_errors()
    found = torch.stack([model.bias_eta[0], model.beta[0, 0]], 1).flatten()
    spread = torch.stack([errors["bias_eta"][0], errors["beta"][0, 0]], 1).flatten()
    assert model().item() == pytest.approx(gold["loglik"].iloc[0], abs=1e-5)
    np.testing.assert_allclose(found, beta["est"], atol=1e-3)
    np.testing.assert_allclose(spread, beta["se"], rtol=2e-3)
    if share:
        sigma = gold.set_index("param").loc["logs21", "est"]
        assert model.var_total().log().item() == pytest.approx(sigma, abs=5e-3)


def test_joint_errors_are_those_given_the_variances(data):
    counts, design = data
    model = fitted(counts, design)
    joint = MultinomGLMM(fitting_method="joint_newton", var_fix_sigma=False)
    joint.setup_data(counts, CAR, design)
    joint.update_params_from_dict(dict(model.named_parameters()))
    ratio = joint.standard_errors()["beta"] / model.standard_errors()["beta"]
    assert ((ratio > 0.8) & (ratio < 1.02)).all()


def test_recovers_the_truth():
    rng = torch.Generator().manual_seed(2)
    n_genes, car = 40, CarCovariance(adjacency(16), rho=0.95)
    n_spots, solver = 256, SparseSolver(car.precision)
    field = solver.color(torch.randn(n_genes, n_spots, 2, generator=rng, dtype=torch.float64))
    noise = torch.randn(n_genes, n_spots, 2, generator=rng, dtype=torch.float64)
    design = torch.randn(n_spots, 1, generator=rng, dtype=torch.float64)
    effect = 0.8 * (0.6**0.5 * field + 0.4**0.5 * noise)
    totals = torch.full((n_genes, n_spots), 12.0, dtype=torch.float64)
    counts = Multinomial().sample(totals, effect + 0.5 * design, generator=rng)
    model = fitted(counts, design, car)
    assert model.sigma.median().item() == pytest.approx(0.8, abs=0.08)
    assert model.var_sp_prop().median().item() == pytest.approx(0.6, abs=0.12)
    z = (model.beta - 0.5) / model.standard_errors()["beta"]
    assert z.mean().abs() < 4 / z.numel() ** 0.5
    assert z.std().item() == pytest.approx(1.0, abs=0.3)
    assert torch.corrcoef(torch.stack([model.nu.flatten(), effect.flatten()]))[0, 1] > 0.7


@pytest.mark.slow
def test_start_values_are_the_documented_ones(data):
    counts, design = data
    model = MultinomGLMM(share_variance=False, init_ratio="observed")
    model.setup_data(counts, CAR, design)
    fano = counts.numpy().var(1, ddof=1).mean(1) / np.maximum(1.0, counts.sum(-1).mean(1).numpy())
    np.testing.assert_allclose(model.sigma[:, 1], np.sqrt(np.clip(fano, 1e-4, 0.9)))
    assert (model.theta_logit == -3).all()
    ratio = (counts[..., :2] + 1e-5) / (counts[..., 2:] + 1e-5)
    torch.testing.assert_close(model.nu.data, ratio.log())
    uniform = MultinomGLMM(share_variance=False)
    uniform.setup_data(counts, CAR, design)
    assert not uniform.nu.any()
    for other in (model, uniform):
        other.fit()
    torch.testing.assert_close(model(), uniform())


def test_a_held_sigma_is_held_where_the_user_put_it(data):
    counts, design = data
    sigma = torch.tensor([[0.3], [0.5], [0.7], [0.9]]).double()
    model = fitted(counts, design, var_fix_sigma=True, start={"sigma": sigma})
    assert torch.equal(model.sigma.data, sigma)
    assert torch.equal(model.var_total(), sigma.square())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["marginal_newton", "joint_gd"])
def test_history_ends_at_the_estimates(data, method):
    counts, design = data
    model = MultinomGLMM(fitting_method=method)
    model.setup_data(counts, CAR, design)
    history = model.fit(store_param_history=True)
    assert set(history) == {"beta", "bias_eta", "nu", "sigma", "theta_logit"}
    assert history["nu"].shape[1:] == (G, N, 2)
    assert torch.equal(history["beta"][-1], model.beta.data)
    torch.testing.assert_close(history["sigma"][-2], model.sigma.data, rtol=0, atol=0.2)
    assert len(model.logger.loss_history) > 2
    assert model.fit() is None


def test_clone_is_equal_and_independent(data):
    model = fitted(*data)
    copy = model.clone()
    assert torch.equal(copy(), model())
    copy.update_params_from_dict({"sigma": 2 * model.sigma})
    copy.fit()
    torch.testing.assert_close(copy(), model(), rtol=0, atol=1e-6)
    assert repr(copy).startswith("MultinomGLMM: 4 genes × 64 spots × 3 isoforms, 1 covariates")
    assert set(model.state_dict()) == {"beta", "bias_eta", "nu", "sigma", "theta_logit"}


def test_guides_run_in_pyro_and_joint_ones_are_points(data):
    counts, design = data
    joint = fitted(counts[:2], design, fitting_method="joint_newton", var_fix_sigma=True)
    trace = poutine.trace(poutine.condition(joint.model, data=joint.guide())).get_trace()
    assert trace.log_prob_sum().item() == pytest.approx(joint().sum().item(), abs=1e-4)
    model = fitted(counts[:2], design)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = Predictive(
            poutine.uncondition(model.model), guide=model.guide, num_samples=200, return_sites=["counts", "nu"]
        )()
    assert drawn["counts"].shape == (200, 1, 2, N, 3) or drawn["counts"].shape == (200, 2, N, 3)
    usage = drawn["counts"].reshape(200, 2, N, 3).mean(0) / counts[:2].sum(-1, keepdim=True).clamp_min(1)
    seen = counts[:2].sum(-1) > 0
    assert (usage - model.get_isoform_ratio())[seen].abs().mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("row", [2, 14])
def test_importance_sampling_from_the_guide_gives_the_exact_evidence(row):
    table = pd.read_csv(shared("gold", "tiny12_binomial.csv"))
    exact = pd.read_csv(shared("gold", "b_tiny12_exact.csv")).iloc[row]
    edges = pd.read_csv(shared("gold", "tiny12_edges.csv")).to_numpy()
    matrix = np.zeros((12, 12))
    matrix[edges[:, 0], edges[:, 1]] = matrix[edges[:, 1], edges[:, 0]] = 1
    counts = torch.tensor(np.stack([table["y1"], table["n"] - table["y1"]], 1)).double()
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(counts, CarCovariance(matrix, rho=0.99), torch.tensor(table[["x"]].to_numpy()))
    point = {
        "bias_eta": torch.full((1, 1), exact["b0"]),
        "beta": torch.full((1, 1, 1), exact["b1"]),
        "sigma": torch.full((1, 1), exact["sigma2"] ** 0.5),
        "theta_logit": torch.logit(torch.full((1, 1), exact["theta"], dtype=torch.float64)),
    }
    model.update_params_from_dict(point)
    posterior, pyro_model = model.random_effect_posterior(), model.model
    draws = posterior.sample((800,), generator=torch.Generator().manual_seed(0))
    sites = {name: getattr(model, name).detach() for name in point}
    joint = torch.stack([log_density(pyro_model, {**sites, "nu": nu}) for nu in draws])
    weights = (joint - posterior.log_prob(draws)).flatten()
    estimate = torch.logsumexp(weights, 0).item() - np.log(len(weights))
    error = ((weights - estimate).exp().std() / len(weights) ** 0.5).item()
    assert estimate == pytest.approx(exact["exact"], abs=4 * error + 1e-3)
    assert error < 0.04


class Plain(Likelihood):
    name = "plain"

    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, eta)

    def mean(self, eta):
        return Multinomial().mean(eta)


def test_a_likelihood_with_nothing_but_a_density_gives_the_same_fit(data):
    counts, design = data
    plain = fitted(counts[:1], design, likelihood=Plain())
    torch.testing.assert_close(plain(), fitted(counts[:1], design)(), rtol=0, atol=1e-6)


def test_priors_of_every_site_enter_the_marginal_fit(data):
    counts, design = data
    priors = {
        "beta": dist.Normal(0.0, 0.1),
        "bias_eta": dist.Normal(0.0, 1.0),
        "sigma": dist.LogNormal(-1.0, 0.3),
        "theta_logit": dist.Normal(0.0, 1.0),
    }
    model, free = fitted(counts, 5.0 + 3.0 * design, priors=priors), fitted(counts, 5.0 + 3.0 * design)
    assert (model.theta_logit.abs() < 3).all()
    assert model.logger.converged.all()
    model.requires_grad_(True)
    names = ("beta", "bias_eta", "sigma", "theta_logit")
    slopes = torch.autograd.grad(model().sum(), [getattr(model, name) for name in names])
    assert max(slope.abs().max().item() for slope in slopes) < 2e-2
    assert (model.sigma < free.sigma + 0.1).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share_variance": "yes"}, "share_variance"),
        ({"var_fix_sigma": 2}, "var_fix_sigma"),
        ({"var_prior_model": "beta"}, "var_prior_model"),
        ({"var_prior_model": "gamma", "var_prior_model_params": {"rate": 1}}, "rate"),
        ({"init_ratio": "random"}, "init_ratio"),
        ({"fitting_method": "iwls"}, "fitting_method"),
        ({"fitting_configs": {"update_nu_every_k": 0}}, "update_nu_every_k"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(InvalidArgumentError, match=match):
        MultinomGLMM(**options)


def test_bad_covariances_are_named_and_the_model_keeps_its_data(data):
    counts, design = data
    model = fitted(counts[:1], design)
    density = model()
    values, vectors = CAR.eigen(5)
    wrong = CAR.dense()
    wrong[0, 1] += 1.0
    for arguments, match in (
        ({}, "corr_sp"),
        ({"corr_sp": torch.eye(N + 1)}, f"n_spots = {N}"),
        ({"corr_sp": CarCovariance(adjacency(3))}, f"n_spots = {N}"),
        ({"corr_sp": torch.ones(N, 3)}, "square"),
        ({"corr_sp": wrong}, "symmetric"),
        ({"corr_sp_eigvals": values}, "both"),
        ({"corr_sp_eigvals": values[:2], "corr_sp_eigvecs": vectors}, "corr_sp_eigvals"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            model.setup_data(counts, design_mtx=design, **arguments)
        assert torch.equal(model(), density)


@pytest.mark.parametrize(
    "ask", ["fit", "forward", "get_isoform_ratio", "var_total", "var_sp_prop", "vcov", "random_effect_posterior"]
)
def test_asking_before_setup_is_an_error_that_says_so(ask):
    with pytest.raises(NotReadyError, match="setup_data"):
        getattr(MultinomGLMM(), ask)()
