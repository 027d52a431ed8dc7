"""With a symmetric effect nothing depends on the order of a gene's isoforms; what it is, against dense algebra."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad

from pyrosplice import MultinomGLMM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.glmm._multinomial import log_density
from pyrosplice.likelihoods import BetaBinomial, DirichletMultinomial, Likelihood, Multinomial
from pyrosplice.posterior import compare_posteriors
from pyrosplice.posterior._nuts import NutsOptions
from tests.glmm.test_laplace import grid
from tests.paths import shared

SIDE, K = 6, 4
N = SIDE * SIDE
ORDERS = list(itertools.permutations(range(K)))
BACK = [np.argsort(order) for order in ORDERS]
SYMMETRIC = {"fitting_method": "marginal_newton", "var_fix_sigma": False, "isoform_effect": "symmetric"}
QUIET = {"print_progress": False}
CLOSE = 1e-8


class Sharper(Likelihood):
    """A user's own: log density alone."""

    def log_prob(self, counts, eta):
        usage = torch.softmax(torch.nn.functional.pad(1.2 * eta, (0, 1)), -1)
        total = counts.sum(-1)
        return torch.lgamma(total + 1) - torch.lgamma(counts + 1).sum(-1) + torch.xlogy(counts, usage).sum(-1)


def isoforms(seed=0, *, depth=8.0, sigma=1.0):
    """Counts (1, N, 4) of one gene, a covariate (N, 1), and the space."""
    made = simulate_isoforms(
        n_spots=N,
        n_genes=1,
        n_isoforms=K,
        depth=depth,
        sigma=sigma,
        covariates=("iid",),
        beta=0.5,
        seed=seed,
        isoform_effect="symmetric",
    )
    counts = torch.from_numpy(made.layers["counts"].toarray()).double()[None]
    return counts, torch.from_numpy(made.obs[["iid"]].to_numpy()), grid(SIDE)


def every_order(counts):
    """Each order as a gene of its own."""
    return torch.cat([counts[..., list(order)] for order in ORDERS])


def spread(values):
    values = np.asarray(values, dtype=float)
    return float(np.abs(values - values[:1]).max())


def fitted(counts, design, solver, **options):
    model = MultinomGLMM(**{**SYMMETRIC, **options})
    model.setup_data(counts, solver, design)
    model.fit(quiet=True)
    return model


def usage_of_isoforms(model):
    return torch.stack([one[:, back] for one, back in zip(model.get_isoform_ratio(), BACK, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priors": "weak"},
        {"var_fix_sigma": True},
        {"fitting_method": "marginal_gd"},
        {"fitting_method": "joint_newton", "var_fix_sigma": True},
        {"fitting_method": "joint_gd", "var_prior_model": "inv_gamma"},
        {"likelihood": DirichletMultinomial(), "priors": "weak"},
    ],
    ids=str,
)
def test_fits_of_all_orders_are_the_same(options):
    counts, design, solver = isoforms()
    model = fitted(every_order(counts), design, solver, **options)
    found = {"objective": model().detach(), "sigma": model.sigma, "theta": model.var_sp_prop(), "usage": None}
    found["usage"] = usage_of_isoforms(model)
    found |= {name: getattr(model, name) for name in model.likelihood.free}
    for name, values in found.items():
        assert spread(values.detach()) < CLOSE, name
    torch.testing.assert_close(model.logger.best_loss, -model().detach(), rtol=0, atol=1e-3)
    assert spread(usage_of_isoforms(fitted(every_order(counts), design, solver, isoform_effect="independent"))) > 1e-3


def test_a_users_likelihood_and_no_space():
    counts, design, solver = isoforms()
    model = fitted(every_order(counts), design, solver, likelihood=Sharper())
    eta = torch.nn.functional.pad(model.linear_predictor().detach(), (0, 1))
    eta = torch.stack([one[:, back] for one, back in zip(eta, BACK, strict=True)])
    assert spread(eta - eta.mean(-1, keepdim=True)) < CLOSE
    assert spread(model.sigma) < CLOSE
    alone = fitted(every_order(counts), design, torch.eye(N).double())
    assert spread(alone.sigma) < CLOSE
    assert spread(usage_of_isoforms(alone)) < CLOSE


def laplace(counts, eta, effect):
    """Laplace's log marginal likelihood of one gene by Newton's method on ν (N, Q), dense."""
    precision, q = torch.linalg.inv(effect), eta.shape[-1]

    def joint(nu):
        return Multinomial().log_prob(counts, eta + nu).sum() - 0.5 * nu.flatten() @ precision @ nu.flatten()

    nu = torch.zeros(N, q).double()
    for _ in range(100):
        gradient = torch.autograd.functional.jacobian(joint, nu).flatten()
        hessian = precision + torch.block_diag(*Multinomial().information(counts, eta + nu))
        nu = nu + 0.5 * torch.linalg.solve(hessian, gradient).reshape(N, q)
    return joint(nu) - 0.5 * torch.linalg.slogdet(hessian)[1] - 0.5 * torch.linalg.slogdet(effect)[1]


def test_the_marginal_likelihood_is_that_of_a_dense_covariance_between_the_logits():
    counts, design, solver = isoforms()
    model = fitted(counts, design, solver)
    sigma, theta = float(model.sigma), 0.4
    model.update_params_from_dict({"theta_logit": torch.logit(torch.tensor([[theta]]))})
    spots = sigma**2 * (theta * grid(SIDE).dense() + (1 - theta) * torch.eye(N).double())
    effect = torch.kron(spots.contiguous(), torch.eye(K - 1).double() + 1)
    fixed = (model.design_mtx @ model.beta + model.bias_eta[:, None])[0].detach()
    np.testing.assert_allclose(float(model()), float(laplace(counts[0], fixed, effect)), atol=1e-8)
    posterior = model.random_effect_posterior()
    hessian = torch.linalg.inv(effect) + torch.block_diag(
        *Multinomial().information(counts[0], fixed + posterior.loc[0])
    )
    known = torch.distributions.MultivariateNormal(posterior.loc[0].flatten(), precision_matrix=hessian)
    away = posterior.loc + 0.3 * torch.randn(1, N, K - 1, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(posterior.log_prob(away)[0], known.log_prob(away.flatten()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.variance.flatten(), known.variance, rtol=1e-6, atol=1e-9)
    drawn = posterior.sample((4000,), generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(drawn.std(0).flatten(), known.stddev, rtol=0.08)


@pytest.mark.parametrize("likelihood", [Multinomial(), DirichletMultinomial(), Sharper()], ids=lambda one: one.name)
def test_the_engine_is_the_model_that_the_person_sees(likelihood):
    """Joint density and its derivatives at any values of the sites: the Pyro model's own."""
    counts, design, solver = isoforms()
    model = MultinomGLMM(likelihood=likelihood, isoform_effect="symmetric", priors="weak", var_fix_sigma=False)
    model.setup_data(counts, solver, design)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        values = {}
        for name, value in model.named_parameters():
            drawn = 0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
            values[name] = drawn if name in ("beta", "bias_eta", "nu", "theta_logit") else drawn.exp()
        model.update_params_from_dict(values)
        model.requires_grad_()
        density = log_density(model.model, dict(model.named_parameters()))
        torch.testing.assert_close(model(), density)
        own, known = (torch.autograd.grad(x.sum(), list(model.parameters())) for x in (model(), density))
        for name, one, other in zip(values, own, known, strict=True):
            torch.testing.assert_close(one, other, msg=name, rtol=1e-6, atol=1e-6)
        model.requires_grad_(False)


def test_two_isoforms_are_the_documented_model_with_another_sigma():
    counts, design, solver = isoforms()
    pair = torch.stack([counts[..., :2].sum(-1), counts[..., 2:].sum(-1)], -1)
    for likelihood in (Multinomial(), BetaBinomial(15.0)):
        even, plain = (
            fitted(pair, design, solver, likelihood=likelihood, isoform_effect=kind, fitting_configs={"tol": 1e-12})
            for kind in ("symmetric", "independent")
        )
        torch.testing.assert_close(even(), plain())
        torch.testing.assert_close(even.sigma * 2**0.5, plain.sigma, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(even.nu, plain.nu, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(even.vcov(), plain.vcov(), rtol=1e-3, atol=1e-6)


def tissue_of_orders(seed=3):
    """The 24 orders of the isoforms of a gene as 24 genes."""
    made = simulate_isoforms(
        n_spots=N, n_genes=1, n_isoforms=K, depth=20.0, sigma=1.2, theta=1.0, covariates=("smooth",), seed=seed
    )
    table = made.layers["counts"].toarray()
    columns = np.hstack([table[:, list(order)] for order in ORDERS])
    names = [f"g{g}" for g in range(len(ORDERS)) for _ in range(K)]
    var = pd.DataFrame({"gene_symbol": names}, index=[f"g{g}_{k}" for g, order in enumerate(ORDERS) for k in order])
    adata = AnnData(obs=made.obs, var=var, layers={"counts": columns}, obsm=dict(made.obsm), obsp=dict(made.obsp))
    adata.obs["kind"] = np.array(["a", "b", "c"])[np.arange(N) % 3]
    return adata


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["glm", "glmm-null", "glmm-full"])
def test_no_test_knows_the_order(model_type):
    options = {**SYMMETRIC, "fitting_method": "iwls"} if model_type == "glm" else SYMMETRIC
    model = SplisosmGLMM(model_type, **options)
    model.setup_data(tissue_of_orders(), design_mtx=["smooth", "kind"], adj_key="connectivities")
    model.fit(batch_size=24, from_null=model_type == "glmm-full", **QUIET)
    ask, found = {"return_results": True, **QUIET}, {}
    for variance in ("robust", "model"):
        for method in ("score", "lrt"):
            found[method, variance] = model.test_differential_usage(method, by="factor", variance=variance, **ask)
    if model_type == "glmm-full":
        found["space score"] = model.test_spatial_variability("score", **ask)
        for law in ("finite-sample", "boundary"):
            found["space llr", law] = model.test_spatial_variability("llr", null_law=law, **ask)
    model.fit(batch_size=24, with_design_mtx=True, **QUIET)
    for variance in ("robust", "model"):
        found["wald", variance] = model.test_differential_usage("wald", by="factor", variance=variance, **ask)
    for test, result in found.items():
        assert spread(result["pvalue"]) < CLOSE, test
        assert 1e-12 < np.min(result["pvalue"]) <= np.max(result["pvalue"]) < 1, test
    effects = model.get_effects().select_dtypes("number").to_numpy().reshape(len(ORDERS), -1, K, 8)
    assert spread([own[:, back] for own, back in zip(effects, BACK, strict=True)]) < 1e-6


def test_the_law_of_the_likelihood_ratio_with_a_concentration():
    model = SplisosmGLMM(**SYMMETRIC, likelihood=DirichletMultinomial())
    model.setup_data(tissue_of_orders()[:, : 6 * K].copy(), adj_key="connectivities")
    model.fit(batch_size=24, from_null=True, **QUIET)
    result = model.test_spatial_variability("llr", return_results=True, **QUIET)
    assert spread(result["pvalue"]) < CLOSE
    assert 1e-6 < min(result["pvalue"]) < 1


@pytest.mark.parametrize(
    "options", [{"use_perm_null": True, "n_perms_per_gene": 5}, {"importance": True, "n_draws": 50}], ids=str
)
def test_permutations_and_importance_sampling(options):
    """With the seed of the same gene."""
    found = []
    for order in (0, 23):
        model = SplisosmGLMM(**SYMMETRIC)
        own = tissue_of_orders()[:, order * K : (order + 1) * K]
        model.setup_data(own.copy(), adj_key="connectivities")
        model.fit(from_null=True, **QUIET)
        found.append(model.test_spatial_variability("llr", return_results=True, **QUIET, **options))
    assert spread([one["statistic"] for one in found]) < 1e-6
    assert spread([one["pvalue"] for one in found]) < CLOSE


def test_the_bootstrap_draws_from_the_symmetric_model():
    """Its p-value is a random number that the same law has whatever the order."""
    model = SplisosmGLMM(**SYMMETRIC)
    model.setup_data(tissue_of_orders()[:, : 2 * K].copy(), adj_key="connectivities")
    model.fit(batch_size=2, from_null=True, **QUIET)
    ask = {"return_results": True, **QUIET}
    drawn = model.test_spatial_variability("llr", n_bootstrap=40, **ask)["pvalue"]
    law = model.test_spatial_variability("llr", **ask)["pvalue"]
    assert np.abs(np.subtract(drawn, law)).max() < 0.06


@pytest.mark.parametrize("how", [{}, {"method": "importance"}, {"hyper": "integrate"}, {"hyper": "ccd"}], ids=str)
def test_draws_of_a_seed_are_the_same_for_every_order(how):
    counts, design, solver = isoforms(depth=15.0)
    found = []
    for order, back in list(zip(ORDERS, BACK, strict=True))[::11]:
        model = fitted(counts[..., list(order)], design, solver, priors="weak")
        tree = model.posterior(num_samples=40, usage=True, groups=("log_likelihood", "log_prior"), **how)
        own = tree["posterior"]
        found.append(
            {"usage": own.usage.values[..., back], "sigma": own.sigma.values, "theta": own.theta.values}
            | {"density": tree["log_likelihood"].counts.values, "prior": tree["log_prior"].lp.values}
        )
        eta = own.beta.values[..., None, :, :] * design.numpy()[:, :, None]
        eta = eta.sum(-2) + own.bias_eta.values[..., None, :] + own.nu.values
        np.testing.assert_allclose(own.usage, Multinomial().mean(torch.from_numpy(eta)), atol=1e-10)
    for name in found[0]:
        assert spread([one[name] for one in found]) < 1e-6, name


@pytest.mark.slow
def test_draws_are_those_of_the_posterior_that_nuts_finds():
    counts, design, _ = isoforms(depth=25.0)
    model = fitted(counts[..., :3][:, :9], design[:9], grid(3), priors="weak")
    near = model.posterior(num_samples=500, method="importance", hyper="integrate", groups=())
    options = NutsOptions(warmup_steps=80, max_tree_depth=4)
    exact = model.posterior(num_samples=50, method="nuts", groups=(), nuts_options=options)
    table = compare_posteriors(near, exact, sites=("beta", "bias_eta", "sigma", "nu"))
    assert (table["shift"].abs() < 0.15 + 4 * table["shift_error"]).all()
    assert ((table["sd_ratio"] - 1).abs() < 0.15 + 4 * table["sd_ratio_error"]).all()
    # the Pyro model and its guide are of the same sites
    assert set(model.guide()) <= set(model.model.latent_shapes())


def test_files(tmp_path):
    model = SplisosmGLMM(**SYMMETRIC, priors="weak")
    model.setup_data(tissue_of_orders()[:, : 2 * K].copy(), adj_key="connectivities")
    model.fit(batch_size=2, **QUIET)
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    assert again.isoform_effect == "symmetric"
    assert "every isoform alike" in repr(again)
    assert repr(again) == repr(model)
    one, other = again.get_fitted_models()[0], model.get_fitted_models()[0]
    torch.testing.assert_close(one(), other())
    assert float(one()) == pytest.approx(-float(one.logger.best_loss[0]), abs=1e-3)


def test_what_a_model_says_of_itself():
    counts, design, solver = isoforms()
    for kind, words in (("symmetric", "of every isoform alike"), ("independent", "of independent logits")):
        assert words in repr(fitted(counts, design, solver, isoform_effect=kind))


@pytest.mark.slow
def test_real_families():
    adata = read_h5ad(shared("data", "mob_rep11_families.h5ad"))
    names = adata.var["gene_symbol"].astype(str).to_numpy()
    families = [family for family in dict.fromkeys(names) if (names == family).sum() == 4][:2]
    found = {}
    for shift in range(12):
        order = ORDERS[2 * shift]
        columns = np.concatenate([np.flatnonzero(names == family)[list(order)] for family in families])
        model = SplisosmGLMM(**SYMMETRIC)
        model.setup_data(adata[:, columns].copy(), layer="counts_thinned", group_gene_by_n_iso=True)
        model.fit(batch_size=8, **QUIET)
        genes = model.get_fitted_models()
        own = {"theta": [float(gene.var_sp_prop()) for gene in genes], "objective": [float(gene()) for gene in genes]}
        own["usage"] = [gene.get_isoform_ratio()[0, :, np.argsort(order)].numpy() for gene in genes]
        for name, value in own.items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        assert spread(values) < CLOSE, name
