"""Types and sizes of what a model holds: float32 sites beside float64 covariances, covariates far from one."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import ExpressionGLM, MultinomGLM
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm import EigenCovariance, SpatialEffect
from pyrosplice.guides import AutoNewtonMAP

N = 12
GENERATOR = torch.Generator().manual_seed(0)
COUNTS = torch.poisson(torch.full((2, N), 4.0), generator=GENERATOR)
PLACES = torch.arange(N, dtype=torch.float64)[:, None]
SPACE = EigenCovariance(*torch.linalg.eigh(torch.exp(-torch.cdist(PLACES, PLACES))))


def effects(counts, dtype):
    with pyro.plate("genes", len(counts), dim=-1):
        sigma = torch.ones(len(counts), 1, dtype=dtype)
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
        u = pyro.sample("u", SpatialEffect(SPACE, sigma, torch.zeros_like(sigma), 1))
        rate = torch.nn.functional.softplus(level[..., None] + u[..., 0])
        pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=counts)


def test_a_float32_model_has_the_mode_of_the_float64_one_beside_a_covariance_in_float64():
    single, double = (
        AutoNewtonMAP(effects).fit(COUNTS.to(dtype), dtype=dtype).median() for dtype in (torch.float32, torch.float64)
    )
    for name in ("level", "u"):
        torch.testing.assert_close(single[name].double(), double[name].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("like", ["independent", "symmetric"])
def test_an_effect_takes_values_of_either_type(like):
    value = torch.randn(2, N, 2, generator=GENERATOR)
    one = torch.ones(2, 1)
    laws = [
        SpatialEffect(SPACE, one.to(t), 0 * one.to(t), 2, isoform_effect=like) for t in (torch.float32, torch.double)
    ]
    expected = laws[1].log_prob(value.double())
    for law in laws:
        torch.testing.assert_close(law.log_prob(value).double(), expected, rtol=1e-5, atol=1e-4)
        assert law.colored(value).shape == law.whitened(value).shape == value.shape


def zero_inflated(counts, location, likelihood, offset):
    with pyro.plate("genes", len(counts), dim=-2):
        a = pyro.sample("location", dist.ImproperUniform(dist.constraints.real_vector, (), (location.shape[1],)))
        with pyro.plate("cells", counts.shape[1], dim=-1):
            mean = ((a @ location.T).squeeze(-2) + offset).exp()
            pyro.sample("counts", dist.ZeroInflatedPoisson(mean, gate=torch.tensor(0.01).double()), obs=counts)


def _fitted(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = rng.poisson(np.exp(1 + 0.3 * x)[:, None], (60, 2))
    glm = ExpressionGLM("~1+x", as_numeric="x", model=zero_inflated)
    return glm.fit(y, sample_description=pd.DataFrame({"x": size * x})).summary()


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_covariates_far_from_one_are_named_where_a_model_of_ones_own_cannot_be_fitted(size):
    with pytest.raises(InvalidArgumentError, match=r"zero_inflated raised .*far from one .column 1.*deviation"):
        _fitted(size)


@pytest.mark.parametrize("size", [1e-3, 50.0])
def test_other_sizes_make_no_difference(size):
    found, expected = _fitted(size), _fitted(1.0)
    np.testing.assert_allclose(found["effect"][1::2] * size, expected["effect"][1::2], rtol=1e-5)
    assert set(found["fit_ended"]) == {"converged"}


def test_a_usage_model_that_does_not_converge_names_the_covariates_far_from_one():
    counts = torch.poisson(torch.full((2, 30, 2), 4.0), generator=GENERATOR).double()
    design = torch.randn(30, 1, generator=GENERATOR).double() * 1e6

    def model(counts, design, likelihood=None):
        with pyro.plate("genes", len(counts), dim=-1):
            beta = pyro.sample("beta", dist.Normal(torch.zeros(1, 1).double(), 10.0).to_event(2))
            level = pyro.sample("bias_eta", dist.Normal(torch.zeros(1).double(), 5.0).to_event(1))
            eta = design @ beta + level[..., None, :]
            share = 0.02 + 0.96 * torch.sigmoid(eta[..., 0])
            pyro.sample("counts", dist.Binomial(counts.sum(-1), share).to_event(1), obs=counts[..., 0])

    glm = MultinomGLM(model=model)
    glm.setup_data(counts, design_mtx=design)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            glm.fit(quiet=True)
        except InvalidArgumentError as error:
            assert "far from one (column 0: " in str(error)
            return
    assert glm.logger.converged.all() or any("far from one (column 0: " in str(w.message) for w in told)
