"""Closed forms of the Dirichlet-multinomial against autograd through its log density."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._isoform_shares import DirichletMultinomial


class Plain(Likelihood):
    """A likelihood of the same density, all else from the base class."""

    hyperparameters = DirichletMultinomial.hyperparameters

    def __init__(self, concentration: Tensor) -> None:
        self.concentration = concentration

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        alpha = self.concentration[..., None] * torch.softmax(torch.nn.functional.pad(eta, (0, 1)), -1)
        size = self.concentration.expand(counts.shape[:-1])
        whole = torch.lgamma(size) - torch.lgamma(counts.sum(-1) + size)
        return whole + (torch.lgamma(counts + alpha) - torch.lgamma(alpha)).sum(-1)


class Inflated(DirichletMultinomial):
    """A share of the spots has any counts; the rest by autograd, as from the base class."""

    hyperparameters = {"concentration": 20.0, "inflation": 0.1}  # noqa: RUF012
    score, curvature = Likelihood.score, Likelihood.curvature

    def __init__(self, concentration: Tensor | None = None, inflation: Tensor | None = None) -> None:
        super().__init__(concentration)
        self.inflation = inflation

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        flat = (self.inflation / (1 + counts.sum(-1))).log()
        return torch.logaddexp(super().log_kernel(counts, eta), flat)


def test_a_subclass_with_another_density_has_its_own_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((2, 6, 2), 3.0, dtype=torch.float64), generator=generator)
    eta = torch.randn(2, 6, 1, dtype=torch.float64, generator=generator)
    weight = torch.ones(2, 6, 1, 1, dtype=torch.float64)
    values = {
        "concentration": torch.tensor([[4.0], [9.0]]).double(),
        "inflation": torch.tensor([[0.2], [0.7]]).double(),
    }
    bound, names = Inflated().bind(values), tuple(values)

    def trace(eta: Tensor) -> Tensor:
        return bound.information(counts, eta)[..., 0, 0]

    slope = (trace(eta + 1e-5) - trace(eta - 1e-5)) / 2e-5
    torch.testing.assert_close(bound.information_gradient(counts, eta, weight)[..., 0], slope, rtol=1e-5, atol=1e-6)
    found, _ = bound.hyper_gradient(counts, eta, names, None, None)
    for column, name in enumerate(names):
        above, below = (
            Inflated().bind(values | {name: values[name] * np.exp(step)}).log_prob(counts, eta).sum(-1)
            for step in (1e-5, -1e-5)
        )
        torch.testing.assert_close(found[:, column], (above - below) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_isos", [2, 4])
def test_closed_forms_equal_autograd(n_isos: int) -> None:
    generator = torch.Generator().manual_seed(n_isos)
    size = torch.tensor([[0.4], [6.0], [5e3]], dtype=torch.float64)  # the last one from the series
    counts = torch.poisson(torch.full((3, 20, n_isos), 2.0, dtype=torch.float64), generator=generator)
    eta, along = torch.randn(2, 3, 20, n_isos - 1, dtype=torch.float64, generator=generator)
    root = torch.randn(3, 20, n_isos - 1, n_isos - 1, dtype=torch.float64, generator=generator)
    weight, own, plain = root @ root.mT, DirichletMultinomial(size), Plain(size)
    close = {"rtol": 1e-6, "atol": 1e-6}  # torch's trigamma
    torch.testing.assert_close(own.score(counts, eta), plain.score(counts, eta), **close)
    torch.testing.assert_close(own.information(counts, eta), plain.information(counts, eta), **close)
    found, expected = (some.information_gradient(counts, eta, weight) for some in (own, plain))
    torch.testing.assert_close(found, expected, **close)
    for given in ((None, None), (along, None), (along, weight)):
        found, expected = (some.hyper_gradient(counts, eta, ("concentration",), *given) for some in (own, plain))
        torch.testing.assert_close(found, expected, **close)
