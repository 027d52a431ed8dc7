"""A likelihood of one's own with faults: closed forms that are wrong, starts between two optima."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyrosplice import ExpressionGLM, MultinomGLM, MultinomGLMM
from pyrosplice._expression.engine.gene_fits import FitCode
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import DirichletMultinomial, Likelihood, Multinomial
from pyrosplice.likelihoods._cell_terms import Terms
from pyrosplice.spatial import IdentityCovariance

GENERATOR = torch.Generator().manual_seed(0)
COUNTS = torch.poisson(torch.full((3, 30, 3), 5.0, dtype=torch.float64), generator=GENERATOR)
SINGLE = torch.poisson(torch.full((3, 36, 1), 4.0, dtype=torch.float64), generator=GENERATOR)


class Shrunk(Multinomial):
    """Its score is of another density, whose optimum lies on the way."""

    def score(self, counts, eta):
        return super().score(counts, eta) - eta


class Nothing(DirichletMultinomial):
    """Its information has lost a factor."""

    def information(self, counts, eta):
        return 0.5 * super().information(counts, eta)


class Exact(Multinomial):
    """Closed forms of its own that are right."""

    def score(self, counts, eta):
        return counts[..., :-1] - torch.cat([eta, 0 * eta[..., :1]], -1).softmax(-1)[..., :-1] * counts.sum(-1, True)


@pytest.mark.parametrize("kind", [MultinomGLM, MultinomGLMM])
@pytest.mark.parametrize(("likelihood", "wrong"), [(Shrunk(), "score"), (Nothing(), "information")], ids=["a", "b"])
def test_a_closed_form_that_is_not_the_derivative_is_refused_by_fits(kind, likelihood, wrong):
    space = {} if kind is MultinomGLM else {"corr_sp": IdentityCovariance(30)}
    model = kind(likelihood=likelihood)
    model.setup_data(COUNTS, **space)
    name = type(likelihood).__name__
    with pytest.raises(InvalidArgumentError, match=f"likelihood: {name} gives {wrong}, which does not follow"):
        model.fit(quiet=True)
    right = kind(likelihood=Exact())
    right.setup_data(COUNTS, **space)
    right.fit(quiet=True)
    assert right.logger.best_loss.isfinite().all()


class Symmetric(Likelihood):
    """Counts of mean eta² + 1/10: zero, where searches start, is a minimum between two optima."""

    predictors, n_categories, conditional = ("location",), (1, 1), False

    def distribution(self, eta):
        return dist.Poisson(eta.square() + 0.1)


class SymmetricCounts(Symmetric):
    """The same with a hyper-parameter."""

    hyperparameters, excess = {"excess": 1.0}, None

    def distribution(self, eta):
        rate = 1 / self.excess.unsqueeze(-1)
        return dist.GammaPoisson((eta.square() + 0.1) * rate, rate)


@pytest.mark.parametrize("likelihood", [Symmetric(), SymmetricCounts()], ids=["poisson", "with a hyper-parameter"])
@pytest.mark.parametrize("method", ["newton", "gd"])
def test_a_start_between_two_optima_is_a_saddle_and_no_fit(likelihood, method):
    model = MultinomGLM(likelihood=likelihood, fitting_method=method)
    model.setup_data(SINGLE)
    model.fit(quiet=True)
    assert not model.logger.converged.any()
    assert set(model.logger.reason) <= {"saddle", "max_epochs", "stalled"}


@pytest.mark.parametrize("likelihood", [Symmetric(), SymmetricCounts()], ids=["poisson", "with a hyper-parameter"])
def test_expression_names_a_saddle(likelihood):
    glm = ExpressionGLM("~1", likelihood=likelihood).fit(SINGLE[..., 0].T.numpy())
    assert set(glm.summary()["fit_ended"]) == {"saddle"} == set(glm.summary()["reason"])
    assert (glm.results.code == FitCode.SADDLE).all()


class Raising(Likelihood):
    """Raises for every gene, in one of its methods."""

    predictors, n_categories, conditional = ("location",), (1, 1), False

    def __init__(self, where):
        self.where = where

    def _raise(self, where):
        if where == self.where:
            raise ValueError("no such table")

    def mean(self, eta):
        self._raise("mean")
        return eta.exp()

    def start(self, counts):
        self._raise("start")
        return counts.mean(1)

    def log_prob(self, counts, eta):
        self._raise("log_prob")
        return dist.Poisson(eta.exp()).log_prob(counts).sum(-1)


class RaisingTerms(Raising):
    """And in its closed form."""

    def terms(self, total, weight, eta, zeta):
        self._raise("terms")
        return super().terms(total, weight, eta, zeta)


@pytest.mark.parametrize(
    "likelihood", [Raising("log_prob"), Raising("mean"), RaisingTerms("terms")], ids=["a", "b", "c"]
)
def test_a_likelihood_that_raises_for_every_gene_is_named_by_expression(likelihood):
    name = type(likelihood).__name__
    with pytest.raises(
        InvalidArgumentError, match=rf"likelihood: {name} raised ValueError\('no such table'\), for every"
    ):
        ExpressionGLM("~1", likelihood=likelihood).fit(SINGLE[..., 0].T.numpy())


class SummedTerms(Raising):
    """Terms of cells summed, which it does not say."""

    def terms(self, total, weight, eta, zeta):
        mu, zero = weight * eta.exp(), torch.zeros_like(eta)
        return Terms(total * eta - mu, total - mu, zero, mu, zero, zero)


class SaidSummed(SummedTerms):
    """And which it says."""

    by_totals = True


def test_terms_of_summed_cells_that_are_not_said_to_be_are_told_what_to_set():
    with pytest.raises(InvalidArgumentError, match=r"SummedTerms gives terms of which value .*set by_totals = True"):
        ExpressionGLM("~1", likelihood=SummedTerms("never"))
    glm = ExpressionGLM("~1", likelihood=SaidSummed("never")).fit(SINGLE[..., 0].T.numpy())
    torch.testing.assert_close(torch.from_numpy(glm.results.theta[:, 0]), SINGLE[..., 0].mean(1).log())
