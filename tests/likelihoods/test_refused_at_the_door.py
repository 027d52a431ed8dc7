"""Likelihoods of one's own that say too little, or what cannot be, are refused by name in both families."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrosplice import ExpressionGLM, MultinomGLM
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import Likelihood, NegativeBinomial, Normal, Poisson

COUNTS = np.random.default_rng(0).poisson(4.0, (40, 3)).astype(float)
CELLS = pd.DataFrame({"g": np.repeat(["a", "b"], 20)})


class Soft(Likelihood):
    """Poisson counts whose mean is the softplus of the predictor."""

    predictors, conditional, n_categories = ("location",), False, (1, None)

    def distribution(self, eta: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(torch.nn.functional.softplus(eta))


class Unset(Soft):
    hyperparameters = {"q": 1.0}  # noqa: RUF012


class Negative(Unset):
    hyperparameters = {"q": -1.0}  # noqa: RUF012
    q = None


class NoDistribution(Soft):
    def distribution(self, eta: Tensor) -> dist.TorchDistribution:
        return eta  # type: ignore[return-value]


def in_expression(likelihood: Likelihood) -> None:
    ExpressionGLM("~1+g", likelihood=likelihood).fit(COUNTS, sample_description=CELLS)


def in_usage(likelihood: Likelihood) -> None:
    model = MultinomGLM(likelihood=likelihood)
    model.setup_data(torch.from_numpy(COUNTS.T[..., None].copy()))
    model.fit(quiet=True)


@pytest.mark.parametrize("fit", [in_expression, in_usage])
@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (Unset(), "Unset names the hyper-parameter 'q' and has no attribute"),
        (Negative(), "expected a positive number to start 'q' from, found -1"),
    ],
)
def test_refused_by_name(fit: Callable[[Likelihood], None], likelihood: Likelihood, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        fit(likelihood)


def test_what_is_no_distribution_is_refused_and_in_usage_said_of_every_gene() -> None:
    message = "expected distribution.eta. to be a Pyro distribution, found Tensor"
    with pytest.raises(InvalidArgumentError, match=message):
        in_expression(NoDistribution())
    with pytest.warns(UserWarning, match=message):
        in_usage(NoDistribution())


def test_size_factors_multiply_means_or_are_refused() -> None:
    factors = np.linspace(0.5, 2.0, 40)
    for likelihood in (Poisson(), NegativeBinomial(), Normal()):
        ExpressionGLM("~1+g", likelihood=likelihood).fit(COUNTS, sample_description=CELLS, size_factors=factors)
    glm = ExpressionGLM("~1+g", likelihood=Soft())
    with pytest.raises(InvalidArgumentError, match=r"size_factors: they multiply means that are exp\(eta\), and Soft"):
        glm.fit(COUNTS, sample_description=CELLS, size_factors=factors)


def test_two_likelihoods_are_refused_whichever_they_are() -> None:
    for word in ("nb", "poisson"):
        with pytest.raises(InvalidArgumentError, match="leave one out"):
            ExpressionGLM("~1", noise_model=word, likelihood=Poisson())
    assert ExpressionGLM("~1").noise_model == "nb"
