"""The posterior of the expression GLM: the same groups, diagnostics and methods as those of the isoform models."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import ExpressionGLM
from pyrosplice._expression.engine.laplace_guide import gene_log_density
from pyrosplice._expression.posterior import data_of
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.posterior import (
    NutsOptions,
    compare_posteriors,
    convergence_table,
    leave_one_out,
    predictive_check,
    prior_sensitivity,
)
from pyrosplice.posterior._tree import GROUPS


def fitted(noise="nb", n=80, g=3, constraints=None):
    rng, group = np.random.default_rng(0), np.arange(n) % 2
    mean = np.exp(1.5 + 0.5 * group)[:, None] * np.ones((1, g))
    y = rng.poisson(rng.gamma(1 / 0.3, mean * 0.3)).astype(float)
    table = pd.DataFrame({"group": np.where(group == 1, "b", "a")})
    return ExpressionGLM("~1+group", noise_model=noise, constraints_loc=constraints).fit(y, sample_description=table)


@pytest.fixture(scope="module")
def glm():
    return fitted()


@pytest.fixture(scope="module")
def tree(glm):
    return glm.posterior(num_samples=1000)


def test_groups_dims_and_diagnostics(tree):
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data", *GROUPS}
    posterior = tree["posterior"]
    assert posterior.location.dims == ("chain", "draw", "gene", "coefficient")
    assert posterior.coefficient.values.tolist() == ["Intercept", "group[T.b]"]
    np.testing.assert_allclose(posterior.dispersion, np.exp(-posterior.scale.isel(scale_coefficient=0)))
    assert tree["posterior_predictive"].counts.dims == ("chain", "draw", "gene", "cell")
    assert leave_one_out(tree)["verdict"].eq("fine").all()
    assert predictive_check(tree)["pvalue"].between(0.01, 0.99).all()
    assert set(prior_sensitivity(tree)["site"]) == {"location", "scale"}
    assert np.isfinite(tree["prior_predictive"].counts).all()


def test_densities_are_those_of_the_pyro_model(glm, tree):
    data = data_of(glm.estimator, None, None)
    draw = tree.isel(chain=0, draw=7)
    theta = np.concatenate([draw["posterior"].location.values, draw["posterior"].scale.values], -1)
    expected = gene_log_density(data.model, data.counts, torch.from_numpy(theta))
    found = draw["log_likelihood"].counts.sum("cell") + draw["log_prior"].lp
    np.testing.assert_allclose(found, expected)


@pytest.mark.slow
def test_laplace_importance_and_nuts_agree(glm):
    nuts = glm.posterior(
        num_samples=100, method="nuts", genes=[1], groups=(), nuts_options=NutsOptions(warmup_steps=100)
    )
    assert nuts["posterior"].location.shape == (4, 100, 1, 2)
    for method in ("laplace", "importance"):
        ours = glm.posterior(num_samples=1000, method=method, genes=[1], groups=())
        table = compare_posteriors(ours, nuts, sites=("location", "scale"))
        assert table["ess_reference"].min() > 100
        assert (table["shift"].abs() < 0.15 + 3 * table["shift_error"]).all(), table
        assert table["sd_ratio"].between(0.8, 1.25).all(), table


def test_a_prior_pulls_and_a_held_coefficient_stays(glm):
    tight = glm.posterior(
        num_samples=200, priors={"location": dist.Normal(torch.tensor([1.5, 0.0]), torch.tensor([5.0, 0.01]))}
    )
    assert float(abs(tight["posterior"].location.sel(coefficient="group[T.b]")).max()) < 0.06
    constrained = fitted(constraints=["group[T.b] = 0.25"])
    effect = constrained.posterior(num_samples=20, groups=())["posterior"].location.sel(coefficient="group[T.b]")
    np.testing.assert_allclose(effect, 0.25)


@pytest.mark.parametrize("noise", ["poisson", "norm"])
def test_other_noise(noise):
    posterior = fitted(noise).posterior(num_samples=50, groups=("log_likelihood",))["posterior"]
    assert ("scale" in posterior) == (noise == "norm") and "dispersion" not in posterior


def test_the_convergence_table_has_reasons(glm):
    table = convergence_table(glm)
    assert table["converged"].all() and table.index.tolist() == list(glm.gene_names)
    y = np.zeros((20, 2))
    y[::2, 1] = 3
    empty = ExpressionGLM("~1+group").fit(y, sample_description=pd.DataFrame({"group": ["a", "b"] * 10}))
    assert convergence_table(empty)["reason"].tolist() == ["no_counts", "separated"]
    assert convergence_table(empty)["means"].str.contains("no counts|infinity").all()


def test_what_cannot_be_drawn_is_refused(glm, tmp_path):
    for bad in ({"method": "vi"}, {"num_samples": 0}, {"groups": ("warmup",)}, {"priors": {"beta": None}}):
        with pytest.raises(InvalidArgumentError):
            glm.posterior(**{"num_samples": 2} | bad)
    glm.save(tmp_path / "glm")
    with pytest.raises(NotReadyError, match="needs the data"):
        ExpressionGLM.load(tmp_path / "glm").posterior()
