"""Random effects and priors in which isoforms have no order: against dense algebra, and what has no such form."""

import itertools

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal
from torch.nn.functional import pad

from pyrosplice import MultinomGLMM, SplisosmGLMM
from pyrosplice.effects._isoform_effect import SoftmaxBasis, check_isoform_effect
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._distributions import EigenCovariance, SpatialEffect
from pyrosplice.glmm._multinomial import MultinomialGLMM, log_density
from pyrosplice.likelihoods import (
    BetaBinomial,
    DirichletMultinomial,
    Likelihood,
    Multinomial,
    NegativeBinomial,
    Poisson,
)
from pyrosplice.likelihoods._recombined import Recombined, of_every_isoform
from pyrosplice.priors import SymmetricNormal, weak_priors
from pyrosplice.priors._prior_tables import describe, prior_from_json, prior_to_json
from tests.usage.conftest import tissue_of

G, N = 3, 6


def between(n_logits):
    """I + 11'."""
    return torch.eye(n_logits).double() + 1


def space(seed=0):
    root = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / N + 0.1 * torch.eye(N).double()


def numbers(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_logits(psi):
    return psi[..., :-1] - psi[..., -1:]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_coordinates_do_not_know_the_order_of_the_isoforms(data):
    """Whatever the counts: ties, isoforms never seen, isoforms of equal counts."""
    k = data.draw(st.integers(2, 5))
    cells = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=k, max_size=k), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(k)))
    counts, psi = torch.tensor(cells).double()[None], numbers(1, len(cells), k)
    basis, other = SoftmaxBasis.of(counts), SoftmaxBasis.of(counts[..., order])
    u, again = basis.coordinates(as_logits(psi)), other.coordinates(as_logits(psi[..., order]))
    torch.testing.assert_close(basis.root @ basis.root.mT, between(k - 1).expand_as(basis.root))
    torch.testing.assert_close(basis.logits(u), as_logits(psi))
    same = len({tuple(column) for column in counts[0].T.tolist()}) == k
    if same:
        torch.testing.assert_close(again, u)
    else:  # isoforms with the same counts: which is which makes no difference to any likelihood
        torch.testing.assert_close(again.square().sum(-1), u.square().sum(-1))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_effect_is_normal_with_covariance_between_the_logits(k):
    sigma, logit, nu = numbers(G, 1).exp(), numbers(G, 1, seed=2), numbers(G, N, k - 1, seed=3)
    effect = SpatialEffect(EigenCovariance.from_dense(space()), sigma, logit, k - 1, isoform_effect="symmetric")
    share = torch.sigmoid(logit)[..., None]
    spots = sigma[..., None] ** 2 * (share * space() + (1 - share) * torch.eye(N).double())
    whole = torch.stack([torch.kron(one.contiguous(), between(k - 1)) for one in spots])
    expected = MultivariateNormal(torch.zeros(N * (k - 1)).double(), whole).log_prob(nu.flatten(1))
    torch.testing.assert_close(effect.log_prob(nu), expected)
    torch.testing.assert_close(effect.colored(effect.whitened(nu)), nu)
    assert effect.expand((2, G)).isoform_effect == "symmetric"
    torch.manual_seed(0)
    drawn = effect.rsample((20000,))[:, 0].flatten(1)
    np.testing.assert_allclose(torch.cov(drawn.T), whole[0], atol=0.06 * float(whole[0].max()))


def test_the_density_of_the_model_is_that_of_independent_effects_of_the_isoforms():
    """The joint density of counts and ψ, the common part of which integrates to a known number."""
    counts, design, k = torch.poisson(torch.full((G, N, 4), 2.0).double()), numbers(N, 1), 4
    values = {
        "beta": numbers(G, 1, 3),
        "bias_eta": numbers(G, 3, seed=4),
        "sigma": numbers(G, 1).exp(),
        "theta_logit": numbers(G, 1, seed=5),
        "nu": numbers(G, N, 3, seed=6),
    }
    covariance = EigenCovariance.from_dense(space())
    found = log_density(MultinomialGLMM(counts, design, covariance, isoform_effect="symmetric"), values)
    apart = SpatialEffect(covariance, values["sigma"], values["theta_logit"], k)
    psi = pad(values["nu"], (0, 1))
    psi = psi - psi.mean(-1, keepdim=True)
    whole = apart.log_prob(psi)  # of ψ that add up to zero: less the density of √K times their mean, at zero
    mean = SpatialEffect(covariance, values["sigma"], values["theta_logit"], 1).log_prob(psi[..., :1] * 0)
    eta = design @ values["beta"] + values["bias_eta"][:, None] + values["nu"]
    expected = Multinomial().log_prob(counts, eta).sum(-1) + whole - mean - N * 0.5 * np.log(k)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("likelihood", [Multinomial(), DirichletMultinomial(7.0)], ids=["multinomial", "dirichlet"])
def test_derivatives_of_a_likelihood_of_other_predictors(likelihood):
    counts = torch.poisson(torch.full((G, N, 4), 2.0).double())
    basis = SoftmaxBasis.of(counts)
    other = Recombined(likelihood.bind({"concentration": torch.full((G, 1), 7.0).double()}), basis.root)
    u, weight = numbers(G, N, 3), numbers(G, N, 3, 3)
    weight, names = weight + weight.mT, tuple(likelihood.hyperparameters)
    for method, rest in (("score", ()), ("information", ()), ("information_gradient", (weight,))):
        torch.testing.assert_close(
            getattr(other, method)(counts, u, *rest), getattr(Likelihood, method)(other, counts, u, *rest)
        )
    if names:
        for found, expected in zip(
            other.hyper_gradient(counts, u, names, numbers(G, N, 3, seed=8), weight),
            Likelihood.hyper_gradient(other, counts, u, names, numbers(G, N, 3, seed=8), weight),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(basis.logits(other.start(counts)[:, None])[:, 0], likelihood.start(counts))
    each, eta = of_every_isoform(likelihood, basis.logits(u))
    torch.testing.assert_close(each.score(counts, eta).sum(-1), torch.zeros(G, N).double())
    torch.testing.assert_close(each.score(counts, eta)[..., :-1], likelihood.score(counts, basis.logits(u)))


@pytest.mark.parametrize("k", [2, 4])
def test_the_symmetric_prior_says_the_same_of_any_two_isoforms(k):
    prior = SymmetricNormal(1.5).of_logits(k - 1)
    known = MultivariateNormal(torch.zeros(k - 1).double(), 1.5**2 / 2 * between(k - 1))
    value = numbers(7, k - 1)
    torch.testing.assert_close(prior.log_prob(value), known.log_prob(value))
    torch.testing.assert_close(SymmetricNormal(1.5).log_prob(value), dist.Normal(0.0, 1.5).log_prob(value))
    torch.manual_seed(0)
    psi = pad(prior.sample((40000,)), (0, 1))
    for one, other in itertools.combinations(range(k), 2):
        assert float((psi[:, one] - psi[:, other]).std()) == pytest.approx(1.5, rel=0.02)


def test_the_symmetric_prior_of_each_covariate_and_in_files():
    scale = torch.tensor([[1.0], [0.1]])
    counts = torch.poisson(torch.full((G, N, 3), 2.0).double())
    model = MultinomialGLMM(counts, numbers(N, 2), space(), priors={"beta": SymmetricNormal(scale)})
    beta = numbers(G, 2, 2)
    expected = sum(SymmetricNormal(scale[p, 0]).of_logits(2).log_prob(beta[:, p]) for p in range(2))
    torch.testing.assert_close(model.priors["beta"].log_prob(beta), expected)
    again = prior_from_json(prior_to_json(SymmetricNormal(scale)))
    assert isinstance(again, SymmetricNormal)
    assert torch.equal(again.scale, SymmetricNormal(scale).scale)
    assert describe(SymmetricNormal(2.0)) == "SymmetricNormal(scale=2)"
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgumentError, match="scale"):
            SymmetricNormal(wrong)
    with pytest.raises(InvalidArgumentError, match="all logits"):
        MultinomialGLMM(counts, numbers(N, 2), space(), priors={"bias_eta": SymmetricNormal(torch.tensor([1.0, 2.0]))})


def test_weak_priors_are_of_the_effect():
    for name in ("beta", "bias_eta"):
        plain, even = (weak_priors(isoform_effect=kind)[name] for kind in ("independent", "symmetric"))
        assert float(plain.scale) == float(even.scale)
        assert isinstance(even, SymmetricNormal)
    with pytest.raises(InvalidArgumentError, match="isoform_effect"):
        weak_priors(isoform_effect="even")


class StickBreaking(Multinomial):
    """Predictors are the log odds of an isoform against all that come after it."""

    def mean(self, eta):
        taken = torch.sigmoid(eta)
        left = torch.cumprod(pad(1 - taken, (1, 0), value=1.0), -1)
        return left * pad(taken, (0, 1), value=1.0)


class OfLengths(Multinomial):
    """Longer isoforms are seen more often."""

    def mean(self, eta):
        return torch.softmax(pad(eta, (0, 1)) + torch.tensor([0.3, -0.2, 0.5]).double(), -1)


class Mistaken(Multinomial):
    """One molecule in ten is called at random."""

    def mean(self, eta):
        return 0.9 * torch.softmax(pad(eta, (0, 1)), -1) + 0.1 / (eta.shape[-1] + 1)


class WithoutMean(Multinomial):
    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, eta) - 1e-3 * counts.sum(-1) * eta.square().sum(-1)


class TwoPredictors(Multinomial):
    def n_predictors(self, n_isos):
        return 2


def test_only_logits_have_a_symmetric_effect():
    counts = torch.poisson(torch.full((G, N, 3), 2.0).double())
    for likelihood in (Multinomial(), DirichletMultinomial(), OfLengths(), Mistaken(), WithoutMean(), TwoPredictors()):
        check_isoform_effect("symmetric", share_variance=True, likelihood=likelihood, counts=counts)
    check_isoform_effect("symmetric", share_variance=True, likelihood=BetaBinomial(), counts=counts[..., :2])
    refused = [(StickBreaking(), counts), (TwoPredictors(), counts[..., :2]), (Poisson(), counts[..., :1])]
    for likelihood, table in refused:
        with pytest.raises(InvalidArgumentError, match=f"logits.*{type(likelihood).__name__}"):
            check_isoform_effect("symmetric", share_variance=True, likelihood=likelihood, counts=table)
        check_isoform_effect("independent", share_variance=False, likelihood=likelihood, counts=table)


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(), TwoPredictors()], ids=lambda one: one.name)
def test_what_has_no_symmetric_effect_is_refused_before_there_are_data(likelihood):
    for kind in (MultinomGLMM, SplisosmGLMM):
        with pytest.raises(InvalidArgumentError, match=r"isoform_effect.*logits"):
            kind(likelihood=likelihood, isoform_effect="symmetric")


def test_options_that_exclude_each_other():
    counts = torch.poisson(torch.full((G, N, 3), 2.0).double())
    for make in (MultinomGLMM, SplisosmGLMM, lambda **rest: MultinomialGLMM(counts, numbers(N, 0), space(), **rest)):
        with pytest.raises(InvalidArgumentError, match="share_variance=True, found False"):
            make(share_variance=False, isoform_effect="symmetric")
        with pytest.raises(InvalidArgumentError, match="'independent', 'symmetric'"):
            make(isoform_effect="Symmetric")
    with pytest.raises(InvalidArgumentError, match="isoform_effect"):
        SplisosmGLMM("glm", isoform_effect="no")
    model = SplisosmGLMM(isoform_effect="symmetric", likelihood=StickBreaking())
    with pytest.raises(InvalidArgumentError, match="StickBreaking has a mean"):
        model.setup_data(tissue_of(seed=1), adj_key="connectivities")
    assert model.n_genes == 0
