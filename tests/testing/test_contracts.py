"""The contract tests: every shipped class passes, and each kind of mistake is named."""

import numpy as np
import pytest
import torch

from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._isoform_shares import BetaBinomial, Binomial, DirichletMultinomial
from pyrosplice.likelihoods._normal import Normal
from pyrosplice.spatial._covariance import GraphMatern, SpatialCovariance
from pyrosplice.spatial.car import CarCovariance
from pyrosplice.testing import check_covariance, check_likelihood
from pyrosplice.testing._problems import ContractError
from tests.glmm.test_laplace import grid

SHIPPED = [Multinomial(), Binomial(), DirichletMultinomial(), DirichletMultinomial(3.0), BetaBinomial()]
SHIPPED += [Poisson(), NegativeBinomial(), NegativeBinomial(0.4), Normal(), Normal(0.7)]
EXPOSED = [Poisson(torch.linspace(0.5, 2, 7)), NegativeBinomial(exposure=torch.linspace(0.5, 2, 7))]


@pytest.mark.parametrize("likelihood", SHIPPED + EXPOSED, ids=repr)
def test_shipped_likelihoods_pass(likelihood):
    check_likelihood(likelihood)


def test_every_number_of_isoforms_passes():
    for k in (2, 5):
        check_likelihood(Multinomial(), n_isos=k)
        check_likelihood(DirichletMultinomial(), n_isos=k)


class OnlyDensity(Likelihood):
    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, eta)


class WrongScore(Multinomial):
    def score(self, counts, eta):
        return -super().score(counts, eta)


class NoConstant(Multinomial):
    def log_prob(self, counts, eta):
        return self.log_kernel(counts, eta)


class Interacting(Multinomial):
    def log_prob(self, counts, eta):
        return super().log_prob(counts, eta) + counts.mean()


class Unstable(Likelihood):
    def log_prob(self, counts, eta):
        odds = torch.cat([eta, 0 * eta[..., :1]], -1).mul(30).exp()
        return (counts * (odds / odds.sum(-1, keepdim=True)).log()).sum(-1)


class FalselyConcave(DirichletMultinomial):
    log_concave = True


class FalselyConditional(Poisson):
    conditional = True


class FalselyAdditive(DirichletMultinomial):
    additive = True


class WrongSample(Multinomial):
    def sample(self, totals, eta, *, generator=None):
        return super().sample(totals, -eta, generator=generator)


class Deaf(Multinomial):
    hyperparameters = {"noise": 1.0}  # noqa: RUF012
    noise = None


class WrongTerms(NegativeBinomial):
    def terms(self, total, weight, eta, zeta):
        terms = super().terms(total, weight, eta, zeta)
        return terms._replace(g_zeta=-terms.g_zeta)


class WrongInformation(Poisson):
    def location_information(self, total, weight, eta, zeta):
        return 2 * super().location_information(total, weight, eta, zeta)


class WrongVariance(Poisson):
    def variance(self, eta):
        return 2 * self.mean(eta)


class FalselySummed(Normal):
    by_totals = True


class WrongSign(Normal):
    scale_sign = 0


class RealNumbers(Normal):
    of_counts = True


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [
        (WrongScore(), "score and the derivative of log_prob"),
        (NoConstant(), "add up to"),
        (Interacting(), "one gene alone and in a batch"),
        (Unstable(), "NaN at predictors"),
        (FalselyConcave(2.0), "log_concave"),
        (FalselyConditional(), "conditional: a spot without counts"),
        (FalselyAdditive(2.0), "additive: two spots"),
        (WrongSample(), "sample and mean"),
        (Deaf(), "noise: log_prob does not change with it"),
        (Likelihood(), "override Likelihood.log_prob or Likelihood.distribution"),
        (WrongTerms(), "terms: g_zeta and that of log_prob"),
        (WrongInformation(), "location_information and that expected"),
        (WrongVariance(), "variance and that of log_prob"),
        (FalselySummed(), "by_totals: terms of the sum of two cells: value"),
        (WrongSign(), "scale_sign: expected 1 or −1"),
        (RealNumbers(), "of_counts = False for real numbers"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Likelihood) else "",
)
def test_mistakes_are_named(likelihood, words):
    with pytest.raises((ContractError, NotImplementedError), match=words):
        check_likelihood(likelihood)


def test_a_density_alone_passes():
    check_likelihood(OnlyDensity())


class Exponential(SpatialCovariance):
    """A covariance as a user writes it: one method."""

    def __init__(self, points, length=2.0, variance=1.0):
        self.points, self.length, self.variance = torch.as_tensor(points), length, variance

    def dense(self):
        return self.variance * torch.exp(-torch.cdist(self.points, self.points) / self.length)


POINTS = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2)


@pytest.mark.parametrize(
    "covariance",
    [
        Exponential(POINTS),
        CarCovariance(grid(6).adjacency),
        GraphMatern(grid(6).adjacency),
        GraphMatern(grid(6).adjacency, range_=2.0, alpha=1),
    ],
)
def test_covariances_pass(covariance):
    check_covariance(covariance, n_spots=36)


def test_wrong_covariances_are_named():
    with pytest.raises(ContractError, match="ones on the diagonal"):
        check_covariance(Exponential(POINTS, variance=2.0))
    with pytest.raises(ContractError, match="found neither"):
        check_covariance(object())
    with pytest.raises(ContractError, match="expected the covariance of 35 spots"):
        check_covariance(Exponential(POINTS), n_spots=35)
    broken = CarCovariance(grid(6).adjacency)
    broken.dense = lambda: torch.eye(36, dtype=torch.float64)
    with pytest.raises(ContractError, match="precision times dense"):
        check_covariance(broken)


def test_the_graph_matern_is_smoother_than_its_first_order_form():
    """Correlation of neighbours, and its value near 0.1 to 0.2 at the range, on a long line away from the ends."""
    n, line = 400, np.zeros((400, 400))
    line[np.arange(n - 1), np.arange(1, n)] = line[np.arange(1, n), np.arange(n - 1)] = 1
    rough, smooth = (GraphMatern(line, range_=10.0, alpha=a).dense()[200] for a in (1, 2))
    assert smooth[201] > rough[201]
    kappa = 8**0.5 / 10  # in one dimension α = 2 is the Matérn of smoothness 3/2: (1 + κd) exp(−κd)
    expected = (1 + kappa * 10) * np.exp(-kappa * 10)
    assert abs(float(smooth[210]) - expected) < 0.02


def test_negative_binomial_derivatives_are_finite_where_the_mean_is_not():
    """A mode search with a wide random effect passes there; one NaN would end the gene."""
    counts, eta = torch.tensor([[0.0], [7.0]]).double(), torch.tensor([[800.0], [800.0]]).double()
    likelihood = NegativeBinomial(0.4)
    torch.testing.assert_close(likelihood.score(counts, eta), torch.full((2, 1), -1 / 0.4).double())
    assert float(likelihood.information(counts, eta).abs().max()) == 0
