"""Posterior draws against what is known of the posterior, by every method, as the tree that ArviZ reads."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._distributions import SpatialEffect
from pyrosplice.glmm._importance import pareto_k
from pyrosplice.glmm._multinomial import log_density
from pyrosplice.likelihoods import DirichletMultinomial, NegativeBinomial, Poisson
from pyrosplice.posterior._comparison import compare_posteriors
from pyrosplice.posterior._grid import hyper_grid
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._problem import target_of
from pyrosplice.posterior._sampling import WeightedSites, _say_which_to_doubt, resampled, smoothed
from pyrosplice.priors._penalized_complexity import weak_priors
from tests.glmm.test_laplace import grid
from tests.posterior.one_gene import one_gene

SPACE = grid(5)


def data(n_genes=2, *, depth=15.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    design = torch.randn(25, 1, generator=generator, dtype=torch.float64)
    field = SPACE.sample(2 * n_genes, generator).reshape(n_genes, 2, 25).permute(0, 2, 1)
    eta = design @ torch.tensor([[0.6, -0.3]]).double() + 0.6 * field
    totals = torch.full((n_genes, 25), depth, dtype=torch.float64)
    return DirichletMultinomial(50.0).sample(totals, eta, generator=generator), design


def mixed(counts, design, *, priors=None, likelihood=None, **options):
    given = weak_priors(SPACE, likelihood) if priors is None else priors
    settings = {"fitting_method": "marginal_newton", "var_fix_sigma": False} | options
    model = MultinomGLMM(**settings, priors=given, likelihood=likelihood)
    model.setup_data(counts, SPACE, design)
    model.fit()
    return model


@pytest.fixture(scope="module")
def model():
    return mixed(*data())


@pytest.fixture(scope="module")
def tree(model):
    return model.posterior(num_samples=400, hyper="integrate", usage=True, names={"gene": ["a", "b"]})


@pytest.mark.slow
def test_plugged_in_draws_have_the_mean_and_covariance_of_laplace(model):
    tree = model.posterior(num_samples=2000, groups=(), num_chains=1)
    posterior = tree["posterior"]
    assert float(posterior.sigma.std(("chain", "draw")).max()) < 1e-12  # plugged in
    beta = posterior.beta.values[0].reshape(2000, 2, 2)
    target, coefficients, phi = target_of(model.posterior_problem(), torch.arange(2), hyper="plug-in")
    profile = target.profile(coefficients, phi)
    covariance = model._engine.scaling.covariance(torch.linalg.inv(profile.information), 2)[:, :2, :2]
    for gene in range(2):
        np.testing.assert_allclose(np.cov(beta[:, gene].T), covariance[gene], atol=0.1 * float(covariance[gene].max()))
    # the spread of ν: its own given the coefficients, and what they add
    variance = model.random_effect_posterior().variance
    assert (posterior.nu.values[0].var(0) > 0.9 * variance.numpy()).all()
    np.testing.assert_allclose(posterior.nu.values[0].mean(0), model.nu, atol=0.1)


@pytest.mark.slow
def test_weights_are_the_joint_density_over_the_proposal(model):
    """Weights of draws differ as the Pyro model's own log density and the proposal's do: a check by mean one."""
    for hyper in ("plug-in", "integrate"):
        stats = model.posterior(num_samples=600, hyper=hyper, groups=(), num_chains=1)["sample_stats"]
        assert (stats.pareto_k.values < 0.7).all()
        weight = np.exp(stats.log_weight.values[0])
        size = weight.sum(0) ** 2 / (weight**2).sum(0)
        assert (size > 60).all()


@pytest.mark.slow
def test_the_grid_is_the_posterior_density_of_the_hyperparameters(model):
    """At its nodes, against brute force: Laplace over everything but φ, from the Pyro model's own density."""
    target, coefficients, phi = target_of(model.posterior_problem(), torch.tensor([0]), hyper="integrate")
    found = hyper_grid(target, coefficients, phi)
    rows = [(6, 6), (4, 8), (8, 3)]
    values = []
    for i, j in rows:
        sigma, logit = found.axes[0, 0, i].exp(), found.axes[0, 1, j]
        values.append(_brute_force(model, sigma, logit) + float(found.axes[0, 0, i]))  # the scale of log σ
    expected = torch.tensor(values) - values[0]
    ours = torch.stack([found.log_density[0, i, j] for i, j in rows])
    torch.testing.assert_close(ours - ours[0], expected.to(ours), rtol=0, atol=0.05)


def _brute_force(model, sigma, logit):
    program, n = model.model, 4 + 50
    single = one_gene(program, 0)

    def density(flat):
        values = {
            "beta": flat[:2].reshape(1, 1, 2),
            "bias_eta": flat[2:4].reshape(1, 2),
            "nu": flat[4:].reshape(1, 25, 2),
            "sigma": sigma.reshape(1, 1),
            "theta_logit": logit.reshape(1, 1),
        }
        return log_density(single, values).sum()

    at = torch.zeros(n, dtype=torch.float64)
    for _ in range(25):
        slope, bend = torch.autograd.functional.jacobian(density, at), torch.autograd.functional.hessian(density, at)
        step = torch.linalg.solve(bend, slope)
        at = at - step / max(1.0, float(step.abs().max()))
    return float(density(at) - 0.5 * torch.linalg.slogdet(-torch.autograd.functional.hessian(density, at)).logabsdet)


def test_the_tree_has_the_groups_and_dims_that_arviz_reads(tree):
    expected = {"posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "log_prior"}
    assert set(tree.children) == expected | {"sample_stats", "observed_data", "constant_data"}
    posterior = tree["posterior"]
    assert posterior.beta.dims == ("chain", "draw", "gene", "covariate", "logit")
    assert posterior.usage.dims == ("chain", "draw", "gene", "spot", "isoform")
    assert posterior.gene.values.tolist() == ["a", "b"]
    np.testing.assert_allclose(posterior.usage.sum("isoform"), 1)
    np.testing.assert_allclose(posterior.effect_on_usage.sum("isoform"), 0, atol=1e-12)
    assert (tree["posterior_predictive"].counts.sum("isoform") == 15).all()
    assert float(posterior.theta.std()) > 0.05
    assert tree["log_prior"].lp.dims == ("chain", "draw", "gene")
    assert np.isfinite(tree["log_likelihood"].counts).all()


def test_log_likelihood_and_log_prior_are_those_of_the_pyro_model(model, tree):
    draw = tree["posterior"].isel(chain=0, draw=3)
    sites = ("beta", "bias_eta", "sigma", "theta_logit", "nu")
    values = {name: torch.from_numpy(draw[name].values.copy()) for name in sites}
    effect = model.model
    whole = log_density(effect, values)
    nu = SpatialEffect(effect.covariance, values["sigma"], values["theta_logit"], 2).log_prob(values["nu"])
    parts = tree["log_likelihood"].counts.isel(chain=0, draw=3).sum("spot") + tree["log_prior"].lp.isel(chain=0, draw=3)
    np.testing.assert_allclose(parts + nu.numpy(), whole)


@pytest.mark.slow
def test_importance_moves_towards_nuts_where_counts_are_low():
    options = NutsOptions(warmup_steps=100, max_tree_depth=6, num_chains=2)
    model = mixed(*data(1, depth=3.0))
    nuts = model.posterior(num_samples=75, method="nuts", nuts_options=options, groups=())
    exact = model.posterior(num_samples=300, method="importance", hyper="integrate", groups=())
    assert nuts["posterior"].nu.shape == (2, 75, 1, 25, 2)
    assert not nuts["sample_stats"].diverging.values.all()
    table = compare_posteriors(exact, nuts)
    assert (table["shift"].abs() < 0.15 + 4 * table["shift_error"]).all(), table
    assert table["sd_ratio"].between(0.5, 1.7).all(), table


@pytest.mark.slow
def test_the_glm_and_other_likelihoods():
    counts, design = data(3)
    glm = MultinomGLM()
    glm.setup_data(counts, design)
    glm.fit()
    drawn = glm.posterior(num_samples=4000)["posterior"]
    np.testing.assert_allclose(drawn.beta.std(("chain", "draw")), glm.standard_errors()["beta"], rtol=0.06)
    own = DirichletMultinomial()
    over = MultinomGLM(likelihood=own, priors={"concentration": dist.LogNormal(3.0, 1.5)})
    over.setup_data(counts, design)
    over.fit()
    tree = over.posterior(num_samples=500, hyper="integrate")
    assert tree["posterior"].concentration.dims == ("chain", "draw", "gene")
    assert float(np.log(tree["posterior"].concentration).std()) > 0.1
    assert (tree["sample_stats"].pareto_k < 0.7).all()


def test_a_spatial_negative_binomial_model_has_a_posterior():
    counts, design = data(2)
    model = mixed(counts[..., :1], design, likelihood=NegativeBinomial(0.1))
    tree = model.posterior(num_samples=100, hyper="integrate", groups=("posterior_predictive", "log_likelihood"))
    assert tree["posterior_predictive"].counts.shape == (4, 25, 2, 25, 1)
    assert (tree["sample_stats"].pareto_k < 0.9).all()


def test_a_model_without_covariates_has_a_posterior_and_a_prior():
    tree = mixed(data(2)[0], None).posterior(num_samples=30, genes=[1])
    for group in ("prior", "posterior"):
        assert tree[group].beta.shape == (3, 10, 1, 0, 2)
    assert tree["prior_predictive"].counts.shape == (3, 10, 1, 25, 3)


def test_what_cannot_be_drawn_is_refused_by_name(model):
    counts, design = data(1)
    flat = mixed(counts, design, priors={})
    with pytest.raises(InvalidArgumentError, match="proper priors of sigma, theta_logit"):
        flat.posterior(hyper="integrate")
    assert "prior" not in flat.posterior(num_samples=5).children
    with pytest.raises(InvalidArgumentError, match="expected a marginal fit"):
        mixed(counts, design, fitting_method="joint_newton", var_fix_sigma=True).posterior()
    with pytest.raises(InvalidArgumentError, match=r"names\['covariate'\]: expected 1 names, one each, found 2"):
        model.posterior(num_samples=2, names={"covariate": ["a", "b"]})
    for bad in ({"method": "vi"}, {"hyper": "grid"}, {"num_samples": 0}, {"groups": ("warmup",)}):
        with pytest.raises(InvalidArgumentError):
            model.posterior(**{"num_samples": 2} | bad)


def test_genes_and_seeds(model):
    both, second = (model.posterior(num_samples=20, genes=genes, groups=()) for genes in (None, [1]))
    assert second["posterior"].gene.values.tolist() == [1]
    again = model.posterior(num_samples=20, groups=())
    np.testing.assert_array_equal(both["posterior"].beta, again["posterior"].beta)


def test_weights_of_one_draw_alone_have_an_infinite_shape():
    weights = torch.full((100, 1), -1e4, dtype=torch.float64) - torch.arange(100)[:, None]
    weights[3] = 0.0
    assert float(pareto_k(weights)) == np.inf
    assert float(torch.softmax(smoothed(weights), 0)[3]) == 1


@pytest.mark.slow
def test_the_grid_is_not_fooled_by_what_a_step_promises_from_afar():
    """σ = 1.6 and counts to thousands: from the fit's coefficients, a Newton step at σ = 0.01 promises the moon."""
    space, generator = grid(6), torch.Generator().manual_seed(5)
    eta = 1.6 * torch.randn(20, 36, 1, generator=generator, dtype=torch.float64)
    exposure = torch.full((36,), 20.0, dtype=torch.float64)
    counts = torch.poisson(20 * eta.exp(), generator=generator)
    model = MultinomGLMM(
        fitting_method="marginal_newton", var_fix_sigma=False, priors=weak_priors(space), likelihood=Poisson(exposure)
    )
    model.setup_data(counts, space, torch.randn(36, 1, generator=generator, dtype=torch.float64))
    model.fit()
    target, coefficients, phi = target_of(model.posterior_problem(), torch.arange(20), hyper="integrate")
    found = hyper_grid(target, coefficients, phi)
    low, high = found.axes[:, 0, 0].exp(), found.axes[:, 0, -1].exp()
    assert ((low < model.sigma[:, 0]) & (model.sigma[:, 0] < high)).all(), (low, high)
    assert (model.posterior(num_samples=99, hyper="integrate", groups=())["sample_stats"].pareto_k < 1).all()


@pytest.mark.parametrize(
    ("genes", "said"),
    [
        ([], "expected different positions below 2, found"),
        ([2], "no gene 2; expected positions below 2"),
        ([-1], "no gene -1; expected positions below 2"),
        ([0, 0], "expected different positions below 2, found"),
        (["absent"], "no gene 'absent'; expected positions below 2"),
    ],
)
def test_positions_that_are_not_genes_are_refused(model, genes, said):
    with pytest.raises(InvalidArgumentError, match=f"genes: {said}"):
        model.posterior(num_samples=10, genes=genes)


def test_the_log_says_for_how_many_genes_the_draws_are_doubtful(caplog):
    _say_which_to_doubt(torch.tensor([0.2, 0.9, torch.nan, torch.inf]), "laplace")
    assert [record.getMessage() for record in caplog.records] == [
        "k̂ > 0.7 for 2 of 4 genes: for these, use method='importance', or nuts."
    ]
    caplog.clear()
    _say_which_to_doubt(torch.tensor([0.2, torch.nan]), "laplace")
    assert not caplog.records


def test_resampled_draws_have_the_weighted_mean_however_uneven_the_weights():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    log_weights = torch.stack([1.5 * draws[:, 0], 0.1 * draws[:, 1]], 1)
    weighted = WeightedSites({"x": draws}, log_weights)
    means, rows = [], set()
    for _ in range(200):
        values, kept, _ = resampled(weighted, 100, "importance", generator)
        means.append(values["x"].mean(0))
        rows.add(len(values["x"][:, 1].unique()))
        assert kept.shape == (100, 2)
    expected = (torch.softmax(smoothed(log_weights), 0) * draws).sum(0)
    torch.testing.assert_close(torch.stack(means).mean(0), expected, rtol=0, atol=0.02)
    assert rows == {100}  # no draw twice where none has a hundredth of the weight


def test_smoothed_weights_keep_their_order_and_shorten_the_tail():
    generator = torch.Generator().manual_seed(0)
    weights = 2 * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    smooth = smoothed(weights)
    assert torch.equal(smooth.argsort(0), weights.argsort(0))
    size = [torch.softmax(w, 0).square().sum(0).reciprocal() for w in (weights, smooth)]
    assert (size[1] >= 0.8 * size[0]).all()
