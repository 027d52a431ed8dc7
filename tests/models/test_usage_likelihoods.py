"""Closed forms of the Dirichlet-multinomial against autograd through its log density."""

import pytest
import torch
from torch import Tensor

from pyrosplice.models.likelihoods import Likelihood
from pyrosplice.models.usage_likelihoods import DirichletMultinomial


class Plain(Likelihood):
    """The same density, all else from the base class."""

    hyperparameters = DirichletMultinomial.hyperparameters

    def __init__(self, concentration: Tensor) -> None:
        self.concentration = concentration

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        alpha = self.concentration[..., None] * torch.softmax(torch.nn.functional.pad(eta, (0, 1)), -1)
        size = self.concentration.expand(counts.shape[:-1])
        whole = torch.lgamma(size) - torch.lgamma(counts.sum(-1) + size)
        return whole + (torch.lgamma(counts + alpha) - torch.lgamma(alpha)).sum(-1)


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
