"""The guides on the library's own models: the optimum and the value of its engines."""

import pyro
import pytest
import torch

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice.guides import AutoMarginalLaplace, AutoNewtonMAP
from pyrosplice.likelihoods import DirichletMultinomial
from tests.guides.simulated import tissue


@pytest.mark.parametrize("isoforms", [2, 4])
@pytest.mark.parametrize("priors", [None, "weak"])
def test_glm(isoforms, priors):
    counts, design, _ = tissue(6, 5, isoforms=isoforms, seed=isoforms)
    fitted = MultinomGLM(priors=priors)
    fitted.setup_data(counts, design_mtx=design)
    fitted.fit(quiet=True)
    guide = AutoNewtonMAP(fitted.model).fit()
    assert guide.converged.all() and guide.report().identified.all()
    torch.testing.assert_close(guide.objective, fitted.forward().detach(), rtol=0, atol=1e-9)
    for name, value in guide.median().items():
        torch.testing.assert_close(value, getattr(fitted, name).detach(), rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["independent", "symmetric"])
def test_glmm(effect):
    counts, design, car = tissue(4, 2, seed=1)
    fitted = MultinomGLMM(
        fitting_method="marginal_newton",
        var_fix_sigma=False,
        priors="weak",
        isoform_effect=effect,
        fitting_configs={"tol": 1e-9},
    )
    fitted.setup_data(counts, corr_sp=car, design_mtx=design)
    fitted.fit(quiet=True)
    guide = AutoMarginalLaplace(fitted.model, marginalize=["nu"]).fit(path="generic")
    assert guide.converged.all()
    assert "precision of nu known" in guide.path and "2 products" in guide.path
    torch.testing.assert_close(guide.objective, fitted.forward().detach(), rtol=0, atol=1e-6)
    for name, value in guide.median().items():
        torch.testing.assert_close(value, getattr(fitted, name).detach(), rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["generic", "engine"])
def test_free_hyper_parameter(path):
    counts, design, car = tissue(3, 2, isoforms=2, seed=2)
    fitted = MultinomGLMM(
        fitting_method="marginal_newton",
        var_fix_sigma=False,
        priors="weak",
        likelihood=DirichletMultinomial(),
        fitting_configs={"tol": 1e-9},
    )
    fitted.setup_data(counts, corr_sp=car, design_mtx=design)
    fitted.fit(quiet=True)
    guide = AutoMarginalLaplace(fitted.model, marginalize=["nu"]).fit(path=path)
    assert guide.converged.all()
    torch.testing.assert_close(guide.objective, fitted.forward().detach(), rtol=0, atol=1e-6)


def test_expression_model():
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.ones(80), torch.arange(80.0) % 2], 1).double()
    rate = torch.distributions.Gamma(2.0, 2.0)
    torch.manual_seed(0)
    mean = torch.tensor([[3.0], [8.0]]).double() * (0.5 * x[:, 1]).exp()
    counts = torch.poisson(mean * rate.sample((2, 80)), generator=generator)
    model = ExpressionModel(x, x[:, :1])
    guide = AutoNewtonMAP(model).fit(counts)
    assert guide.converged.all()
    values = {name: value.clone().requires_grad_(True) for name, value in guide.median().items()}
    total = pyro.poutine.trace(pyro.poutine.condition(model, data=values)).get_trace(counts).log_prob_sum()
    slopes = torch.autograd.grad(total, list(values.values()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-6
