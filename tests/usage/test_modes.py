"""Fits of every family inside ``torch.inference_mode()`` and ``no_grad()``: the same numbers as outside."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import ExpressionGLM, GaussianMixture, MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.likelihoods import DirichletMultinomial
from pyrosplice.posterior import NutsOptions
from pyrosplice.spatial.car import get_cov_sp

MODES = [torch.inference_mode, torch.no_grad]
SHORT = {"method": "nuts", "nuts_options": NutsOptions(warmup_steps=3, max_tree_depth=2), "groups": ()}


def data():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((2, 25, 3), 4.0, dtype=torch.float64), generator=generator)
    return counts, torch.randn(25, 1, generator=generator, dtype=torch.float64)


def numbers(model):
    named = {**dict(model.named_parameters()), "vcov": model.vcov(), "objective": model()}
    return {name: value.detach() for name, value in named.items()}


def glm(**options):
    counts, design = data()
    model = MultinomGLM(**options)
    model.setup_data(counts, design)
    model.fit(quiet=True)
    return model


def glmm(**options):
    counts, design = data()
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    model = MultinomGLMM(**options)
    model.setup_data(counts, get_cov_sp(grid), design)
    model.fit(quiet=True)
    return model


def own_prior():
    return {"bias_eta": dist.Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))}


USAGE = {
    "iwls": lambda: glm(),
    "gd": lambda: glm(fitting_method="gd", fitting_configs={"optim": "lbfgs"}),
    "own prior": lambda: glm(priors=own_prior()),
    "own dispersion": lambda: glm(likelihood=DirichletMultinomial(torch.full((2, 1), 5.0, dtype=torch.float64))),
    "dispersion": lambda: glm(likelihood=DirichletMultinomial(), priors="weak"),
    "joint": lambda: glmm(fitting_method="joint_newton"),
    "marginal": lambda: glmm(fitting_method="marginal_newton", var_fix_sigma=False, priors="weak"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", USAGE)
def test_models_of_usage(mode, which):
    expected = numbers(USAGE[which]())
    with mode():
        model = USAGE[which]()
        found = numbers(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
        assert not found[name].is_inference()
    after = numbers(model)  # and goes on outside
    torch.testing.assert_close(after["vcov"], expected["vcov"], rtol=1e-9, atol=1e-9)
    model.fit(quiet=True)


@pytest.mark.parametrize("mode", MODES)
def test_posteriors(mode):
    with mode():
        model = glm(priors="weak")
        tree = model.posterior(num_samples=5)
        assert torch.equal(torch.from_numpy(tree["posterior"].beta.values).isfinite(), torch.ones(1, 5, 2, 1, 2) > 0)
        model.posterior(num_samples=4, **SHORT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model_type", ["glm", "glmm-full", "glmm-null"])
def test_analyses(mode, model_type):
    adata = simulate_isoforms(n_spots=36, n_genes=2, seed=0, covariates=("iid",))

    def pvalues():
        model = SplisosmGLMM(model_type)
        model.setup_data(adata, design_mtx="iid")
        model.fit(print_progress=False, with_design_mtx=True)
        model.test_differential_usage("wald", print_progress=False)
        if model_type == "glmm-full":
            model.test_spatial_variability("score", print_progress=False)
        tests = ("du", "sv") if model_type == "glmm-full" else ("du",)
        return [model.get_formatted_test_results(test)["pvalue"].to_numpy() for test in tests]

    expected = pvalues()
    with mode():
        found = pvalues()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_expression(mode):
    counts = np.random.default_rng(0).poisson(5, (30, 3)).astype(float)
    cells = pd.DataFrame({"group": ["a", "b"] * 15})

    def fitted():
        glm = ExpressionGLM("~1+group")
        glm.fit(counts, sample_description=cells)
        return glm

    expected = fitted().summary()
    with mode():
        glm = fitted()
        pd.testing.assert_frame_equal(glm.summary(), expected)
        glm.posterior(num_samples=5)
        glm.posterior(num_samples=4, **SHORT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_mixtures(mode, kind):
    cells = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    expected = GaussianMixture(2, covariance_type=kind, random_state=0).fit(cells).score(cells)
    with mode():
        model = GaussianMixture(2, covariance_type=kind, random_state=0).fit(cells)
        assert model.score(cells) == pytest.approx(expected)
        model.posterior(cells, num_samples=3, warmup_steps=2)
