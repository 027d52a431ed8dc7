"""A likelihood, a prior and a covariance of the user through SplisosmGLMM, with no change inside the library."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import SplisosmGLMM
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.likelihoods import DirichletMultinomial, Likelihood
from pyrosplice.posterior import NutsOptions, leave_one_out
from pyrosplice.priors._penalized_complexity import weak_priors
from pyrosplice.spatial._covariance import GraphMatern, SpatialCovariance

QUIET = {"print_progress": False}


class Zealous(Likelihood):
    """Multinomial whose molecules ignore the predictor with chance 1 in 20: one method and its mean."""

    def log_prob(self, counts, eta):
        coefficient = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
        return coefficient + (counts * self.mean(eta).log()).sum(-1)

    def mean(self, eta):
        usage = torch.softmax(torch.nn.functional.pad(eta, (0, 1)), -1)
        return 0.95 * usage + 0.05 / usage.shape[-1]


class Shrinking(dist.Normal):
    """A prior that no library knows."""


class Exponential(SpatialCovariance):
    def __init__(self, points, length=2.0):
        self.points, self.length = torch.as_tensor(points), length

    def dense(self):
        return torch.exp(-torch.cdist(self.points, self.points) / self.length)


def fitted(adata, *, likelihood=None, priors=None, covariance=None, with_design=True, **options):
    model = SplisosmGLMM(
        fitting_method="marginal_newton", var_fix_sigma=False, likelihood=likelihood, priors=priors, **options
    )
    model.setup_data(adata, design_mtx="smooth", covariance=covariance)
    model.fit(batch_size=4, with_design_mtx=with_design, **QUIET)
    return model


@pytest.mark.slow
def test_everything_of_the_users_own(tissue, tmp_path):
    parts = {"likelihood": Zealous(), "priors": {"beta": Shrinking(0.0, 0.2)}}
    covariance = Exponential(tissue.obsm["spatial"])
    model = fitted(tissue, **parts, covariance=covariance)
    assert model.get_training_summary()["converged"].all()
    assert "Exponential of 36 spots" in repr(model) and "beta ~ Shrinking" in repr(model)
    flat = fitted(tissue, likelihood=Zealous(), covariance=covariance)
    shrunk, free = (torch.cat([gene.beta.flatten() for gene in m.get_fitted_models()]) for m in (model, flat))
    assert shrunk.abs().mean() < 0.9 * free.abs().mean()
    model.test_differential_usage("wald", **QUIET)
    model.test_spatial_variability(method="score", **QUIET)
    assert model.get_formatted_test_results("du")["pvalue"].between(0, 1).all()
    ratios = model.get_fitted_ratios_anndata().layers["fitted_ratios"]
    assert ratios.min() > 0.05 / 4.5
    model.save(tmp_path / "model")
    with pytest.raises(ModelFileError) as error:
        SplisosmGLMM.load(tmp_path / "model")
    for missing in ("likelihood=Zealous()", "priors={'beta': Shrinking", "covariance=<the Exponential of its spots>"):
        assert missing in str(error.value)
    given = {**parts, "covariance": covariance}
    for missing in given:
        some = {name: value for name, value in given.items() if name != missing}
        with pytest.raises(ModelFileError, match=f"{missing}=") as error:
            SplisosmGLMM.load(tmp_path / "model", **some)
        assert not any(f"{name}=" in str(error.value) for name in some)
    again = SplisosmGLMM.load(tmp_path / "model", **given)
    before, after = (
        m.get_fitted_models()[0].posterior(num_samples=40, groups=("log_likelihood", "log_prior"))
        for m in (model, again)
    )
    assert float(before["posterior"].beta.std()) > 0 and np.isfinite(before["log_likelihood"].counts).all()
    np.testing.assert_allclose(after["posterior"].beta, before["posterior"].beta)
    np.testing.assert_allclose(again.get_fitted_ratios_anndata().layers["fitted_ratios"], ratios)
    with pytest.raises(ModelFileError, match="was saved with Zealous"):
        SplisosmGLMM.load(tmp_path / "model", likelihood=DirichletMultinomial(), covariance=covariance)


@pytest.mark.slow
def test_the_posterior_of_the_users_own_with_hyperparameters_integrated_over(tissue):
    """Laplace, importance and NUTS need nothing else of a likelihood than its density, of a covariance than itself."""
    covariance = Exponential(tissue.obsm["spatial"])
    priors = {**weak_priors(covariance), "beta": Shrinking(0.0, 0.5)}
    one = tissue[:, :3].copy()
    gene = fitted(one, likelihood=Zealous(), priors=priors, covariance=covariance).get_fitted_models()[0]
    laplace = gene.posterior(num_samples=200, hyper="integrate", groups=("log_likelihood", "prior"))
    assert float(laplace["posterior"].theta.std()) > 0.05 and "prior" in laplace.children
    assert leave_one_out(laplace)["elpd"].notna().all()
    short = NutsOptions(warmup_steps=30, max_tree_depth=5)
    nuts = gene.posterior(num_samples=30, method="nuts", nuts_options=short, groups=())
    shift = float((laplace["posterior"].beta.mean() - nuts["posterior"].beta.mean()) / nuts["posterior"].beta.std())
    assert abs(shift) < 1
    with pytest.raises(NotImplementedError, match=r"Zealous does not say how to sample; override Likelihood\.sample"):
        gene.posterior(num_samples=2, groups=("posterior_predictive",))


@pytest.mark.slow
def test_shipped_extensions_come_back_by_themselves(tissue, tmp_path):
    space = GraphMatern(tissue.obsp["connectivities"], range_=3.0)
    likelihood = DirichletMultinomial()
    model = fitted(tissue, likelihood=likelihood, priors=weak_priors(space, likelihood), covariance=space)
    concentrations = [gene.concentration for gene in model.get_fitted_models()]
    assert all(bool((value > 0).all()) for value in concentrations)
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    assert repr(again.likelihood) == repr(likelihood) and again.sp_kernel.range_ == 3.0
    torch.testing.assert_close(again.get_fitted_models()[0].concentration, concentrations[0])
    torch.testing.assert_close(again.get_fitted_models()[0].forward(), model.get_fitted_models()[0].forward())


@pytest.mark.slow
def test_the_glm_and_ratio_tests_take_a_likelihood(tissue):
    for model_type in ("glm", "glmm-full"):
        model = SplisosmGLMM(model_type, likelihood=DirichletMultinomial(), fitting_configs={"max_epochs": 100})
        model.setup_data(tissue[:, :5].copy(), design_mtx="smooth")
        model.fit(batch_size=8, from_null=model_type == "glmm-full", **QUIET)
        model.test_differential_usage("score", **QUIET)
        if model_type == "glmm-full":
            model.test_spatial_variability(method="llr", **QUIET)
            assert model.get_formatted_test_results("sv")["pvalue"].between(0, 1).all()


def test_a_covariance_of_other_spots_is_refused(tissue):
    model = SplisosmGLMM()
    with pytest.raises(InvalidArgumentError, match="covariance: expected that of the 36 spots left, found one of 9"):
        model.setup_data(tissue, covariance=Exponential(tissue.obsm["spatial"][:9]))
    with pytest.raises(InvalidArgumentError, match=r"covariance: expected an object with precision or dense\(\)"):
        model.setup_data(tissue, covariance="matern")
