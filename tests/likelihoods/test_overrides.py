"""What a subclass overrides is what is fitted: its own density, mean, covariance or Pyro model, or a refusal."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice._expression.engine.laplace_guide import fit_mode
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice._linalg.select import solver_for
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotStatedError
from pyrosplice.glmm._distributions import SpotCounts
from pyrosplice.glmm._multinomial import MultinomialGLM, MultinomialGLMM
from pyrosplice.likelihoods import (
    BetaBinomial,
    Binomial,
    DirichletMultinomial,
    Multinomial,
    NegativeBinomial,
    Normal,
    Poisson,
)
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.spatial._covariance import GraphMatern, SpatialCovariance
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance
from pyrosplice.testing import check_likelihood

LIKELIHOODS = [
    (Multinomial, {}),
    (Binomial, {}),
    (DirichletMultinomial, {"concentration": 8.0}),
    (DirichletMultinomial, {}),
    (BetaBinomial, {"concentration": 8.0}),
    (Poisson, {}),
    (NegativeBinomial, {"dispersion": 0.4}),
    (NegativeBinomial, {}),
]
N_SPOTS = 36
COORDS = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))


def counts_for(kind: type[Likelihood], n_genes: int = 2) -> torch.Tensor:
    """More variable than Poisson, as many columns as the likelihood is for."""
    generator = torch.Generator().manual_seed(3)
    n_isos = kind.n_categories[1] or 3
    rate = 8 * torch.rand(n_genes, N_SPOTS, n_isos, generator=generator, dtype=torch.float64) + 1
    return torch.poisson(rate, generator=generator)


def shifted(kind: type[Likelihood], by: float = 0.5) -> type[Likelihood]:
    """The required method alone: the density at another predictor, whose mode is that much lower."""

    class Shifted(kind):
        def log_prob(self, counts, eta):
            return super().log_prob(counts, eta + by)

    return Shifted


def fitted(likelihood, counts, *space, **options):
    estimator = MultinomGLMM if space else MultinomGLM
    settings = {"fitting_method": "marginal_newton", "var_fix_sigma": False} if space else {}
    model = estimator(likelihood=likelihood, **settings, **options)
    model.setup_data(counts, *space)
    model.fit(quiet=True)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "given"), LIKELIHOODS, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("space", [False, True])
def test_the_density_alone_reaches_its_own_optimum(kind, given, space):
    covariance = (CarCovariance(knn_graph(COORDS)),) if space else ()
    counts, priors = counts_for(kind), {"sigma": dist.Exponential(2.0)} if space else None
    plain = fitted(kind(**given), counts, *covariance, priors=priors)
    for own in (shifted(kind), shifted(shifted(kind, 0.2), 0.3)):
        mine = fitted(own(**given), counts, *covariance, priors=priors)
        torch.testing.assert_close(mine.bias_eta, plain.bias_eta - 0.5, rtol=0, atol=2e-3)
        torch.testing.assert_close(mine(), plain(), rtol=0, atol=1e-4)
        torch.testing.assert_close(mine.vcov(), plain.vcov(), rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize(("kind", "given"), LIKELIHOODS, ids=lambda value: getattr(value, "__name__", None))
def test_the_gradient_of_another_density_vanishes(kind, given):
    class Blurred(kind):
        """One spot in ten says nothing."""

        def log_prob(self, counts, eta):
            return torch.logaddexp(np.log(0.9) + super().log_prob(counts, eta), torch.tensor(np.log(0.1) - 5.0))

    counts = counts_for(kind)
    model = fitted(Blurred(**given), counts)
    eta = model.linear_predictor().detach().requires_grad_(True)
    (score,) = torch.autograd.grad(model.bound_likelihood.log_prob(counts, eta).sum(), eta)
    assert model.logger.converged.all() and score.sum(1).abs().max() < 1e-2


@pytest.mark.parametrize(("kind", "given"), LIKELIHOODS, ids=lambda value: getattr(value, "__name__", None))
def test_the_mean_alone_is_the_link_of_the_density(kind, given):
    class Steeper(kind):
        def mean(self, eta):
            return super().mean(2 * eta)

    counts = counts_for(kind)
    plain, mine = fitted(kind(**given), counts), fitted(Steeper(**given), counts)
    torch.testing.assert_close(mine.bias_eta, plain.bias_eta / 2, rtol=0, atol=1e-3)
    torch.testing.assert_close(mine.get_isoform_ratio(), plain.get_isoform_ratio(), rtol=1e-3, atol=1e-3)
    if kind.conditional:  # the check adds up counts to 400, which is not enough for e^2η
        check_likelihood(Steeper(**given))


@pytest.mark.parametrize(("kind", "given"), LIKELIHOODS, ids=lambda value: getattr(value, "__name__", None))
def test_the_mean_and_the_samples_of_another_density_are_not_its_parents(kind, given):
    own, counts = shifted(kind)(**given), counts_for(kind)
    model = fitted(own, counts)
    likelihood, eta = model.bound_likelihood, model.linear_predictor()
    for call in (
        model.get_isoform_ratio,
        lambda: model.posterior(num_samples=2),
        lambda: model.posterior(num_samples=2, groups=(), usage=True),
        lambda: SpotCounts(likelihood, counts.sum(-1), eta, counts.shape[-1]).sample(),
        lambda: SpotCounts(likelihood, counts.sum(-1), eta, counts.shape[-1]).mean,
    ):
        with pytest.raises(NotStatedError, match=r"override Likelihood\.(mean|sample)"):
            call()
    if counts.shape[-1] > 1:
        with pytest.raises(NotStatedError):
            simulate_isoforms(n_spots=9, n_genes=1, n_isoforms=counts.shape[-1], likelihood=own.bind_start(1, counts))
    tree = model.posterior(num_samples=20, num_chains=1, groups=("log_likelihood",))
    beta = torch.from_numpy(tree["posterior"].bias_eta.values)[0].unsqueeze(-2).expand(-1, -1, N_SPOTS, -1)
    if not own.free:
        density = torch.from_numpy(tree["log_likelihood"].counts.values)[0]
        torch.testing.assert_close(density, own.log_prob(counts, beta), rtol=1e-9, atol=1e-9)


def test_what_a_subclass_gives_itself_is_kept():
    class Both(Multinomial):
        additive = True

        def log_prob(self, counts, eta):
            return super().log_prob(counts, eta + 0.5)

        def score(self, counts, eta):
            return super().score(counts, eta + 0.5)

        def mean(self, eta):
            return super().mean(eta + 0.5)

    class Again(Both):
        """Nothing new: all that its parent says holds."""

    class Other(Both):
        def log_prob(self, counts, eta):
            return super().log_prob(counts, eta - 0.5)

    assert Both.score is Again.score and Both.additive and Again.additive and not Both.log_concave
    assert Both.information is Likelihood.information and Other.score is Likelihood.score and not Other.additive
    assert Again().states("mean") and not Again().states("sample") and not Other().states("mean")
    check_likelihood(Both())
    check_likelihood(Other())
    counts, eta = counts_for(Multinomial), torch.randn(2, N_SPOTS, 2, dtype=torch.float64)
    torch.testing.assert_close(Other().log_prob(counts, eta), Multinomial().log_prob(counts, eta))


def test_a_method_set_on_an_object_is_refused():
    likelihood = Multinomial()
    likelihood.log_prob = lambda counts, eta: eta.sum(-1)
    with pytest.raises(InvalidArgumentError, match="log_prob set on a Multinomial object"):
        MultinomGLM(likelihood=likelihood)


@pytest.mark.parametrize("kind", [NegativeBinomial, Poisson, Normal])
@pytest.mark.parametrize("cells", ["alike", "apart"])
def test_a_noise_of_another_distribution(kind, cells):
    class Shifted(kind):
        def log_prob(self, counts, eta):
            return super().log_prob(counts, eta + 1)

    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(12 * torch.rand(2, 60, generator=generator, dtype=torch.float64), generator=generator)
    x = torch.ones(60, 1, dtype=torch.float64)
    if cells == "apart":
        x = torch.cat([x, torch.randn(60, 1, generator=generator, dtype=torch.float64)], 1)
    z = x[:, : len(kind.hyperparameters)]
    plain, mine = (fit_mode(ExpressionModel(x, z, likelihood=own()), counts)[0].theta for own in (kind, Shifted))
    plain[:, 0] -= 1
    np.testing.assert_allclose(mine, plain, atol=1e-5)
    assert not Shifted.by_totals and not Shifted.is_negative_binomial


def test_a_covariance_is_that_of_dense():
    graph, equal = knn_graph(COORDS), torch.full((N_SPOTS, N_SPOTS), 0.5, dtype=torch.float64)
    equal.fill_diagonal_(1.0)
    identity = torch.eye(N_SPOTS, dtype=torch.float64).unsqueeze(0)

    def of_dense(parent):
        return type("Equal", (parent,), {"dense": lambda self: equal})

    for kind, given in ((CarCovariance, graph), (GraphMatern, graph), (IdentityCovariance, N_SPOTS)):
        own = of_dense(of_dense(kind))(given)
        torch.testing.assert_close(solver_for(own).covariance_product(identity)[0], equal)
        torch.testing.assert_close(own.eigen(1)[0], torch.linalg.eigvalsh(equal)[-1:])
        torch.testing.assert_close(spatial_kernel(own).values, spatial_kernel(equal).values)
        draws = own.sample(4000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(torch.cov(draws.T), equal, rtol=0, atol=0.15)
        assert kind(given).precision is not None
    found = fitted(None, counts_for(Multinomial), of_dense(IdentityCovariance)(N_SPOTS))
    expected = fitted(None, counts_for(Multinomial), equal)
    torch.testing.assert_close(found.sigma, expected.sigma)

    class Unsure(CarCovariance):
        def __init__(self, graph):
            super().__init__(graph)

        def dense(self):
            return equal

    class Sure(Unsure):
        precision = None

        def __init__(self, graph):
            super().__init__(graph)
            self.precision = None

    with pytest.raises(InvalidArgumentError, match="overrides dense"):
        solver_for(Unsure(graph))
    torch.testing.assert_close(solver_for(Sure(graph)).covariance_product(identity)[0], equal)
    assert issubclass(CarCovariance, SpatialCovariance)


class OtherPredictor:
    def linear_predictor(self, values):
        return super().linear_predictor(values) * 1.1


class OneMoreSite:
    def sample_latents(self):
        extra = dist.Normal(torch.zeros(len(self.counts), dtype=torch.float64), 1.0)
        return {**super().sample_latents(), "extra": pyro.sample("extra", extra)}


class OneMoreFactor:
    def __call__(self):
        eta = super().__call__()
        pyro.factor("penalty", -eta.square().sum())
        return eta


class Unchanged:
    def note(self):
        return "nothing that the density knows of"


@pytest.mark.parametrize("change", [OtherPredictor, OneMoreSite, OneMoreFactor, Unchanged])
@pytest.mark.parametrize("space", [False, True])
def test_a_pyro_model_is_followed(change, space):
    program = type("Mine", (change, MultinomialGLMM if space else MultinomialGLM), {})
    estimator, graph = MultinomGLMM if space else MultinomGLM, knn_graph(COORDS)

    class Estimator(estimator):
        @property
        def model(self):
            known = super().model
            own = {"likelihood": self.likelihood, "priors": self.priors}
            own |= {"covariance": known.covariance, "fixed": known.fixed} if space else {}
            return program(known.counts, known.design, **own)

    counts = counts_for(Multinomial, 1)  # one gene, so that a factor of all genes is of one problem
    model = Estimator(priors="weak")
    model.setup_data(counts, *([CarCovariance(graph)] if space else []))
    model.fit(quiet=True)
    assert model.logger.converged.all() and ("Mine" in model.engine) is (change is not Unchanged)
    free = {name: value.requires_grad_(True) for name, value in model.sites.items()}
    assert ("extra" in free) is (change is OneMoreSite)
    total = pyro.poutine.trace(pyro.poutine.condition(model.model, data=free)).get_trace().log_prob_sum()
    slopes = torch.autograd.grad(total, list(free.values()))
    assert max(float(slope.norm()) for slope in slopes) <= (2e-3 if change is Unchanged else 1e-4)


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("name", ["forward", "linear_predictor"])
def test_an_estimators_objective_and_predictor_too(space, name):
    estimator = MultinomGLMM if space else MultinomGLM
    own = type("Mine", (estimator,), {name: lambda self: getattr(super(own, self), name)() + 1})
    model = own()
    model.setup_data(counts_for(Multinomial), *([CarCovariance(knn_graph(COORDS))] if space else []))
    with pytest.raises(InvalidArgumentError, match=f"{name}: Mine overrides it"):
        model.fit(quiet=True)


def test_a_pyro_model_of_expression():
    class Penalized(ExpressionModel):
        def __call__(self, counts=None, *, n_genes=None):
            drawn = super().__call__(counts, n_genes=n_genes)
            pyro.factor("penalty", torch.tensor(-3.0))
            return drawn

    ones, counts = torch.ones(30, 1, dtype=torch.float64), counts_for(Poisson)[..., 0][:, :30]
    with pytest.raises(InvalidArgumentError, match="Penalized overrides __call__"):
        fit_mode(Penalized(ones, ones), counts)
    same = type("Same", (ExpressionModel,), {})
    found, expected = (fit_mode(kind(ones, ones), counts)[0].theta for kind in (same, ExpressionModel))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("space", [False, True])
def test_what_is_handed_out_is_a_copy(space):
    model = fitted(None, counts_for(Multinomial), *([CarCovariance(knn_graph(COORDS))] if space else []))
    before = {name: value.clone() for name, value in model.named_parameters()}
    counts, design = model.counts.clone(), model.design_mtx.clone()
    guide = model.guide
    first = {name: value.clone() for name, value in guide().items()}
    handed = [*guide().values(), model.get_isoform_ratio(), model.linear_predictor(), model.vcov()]
    handed += [*model.standard_errors().values(), *getattr(model.model, "fixed", {}).values()]
    tree = model.posterior(num_samples=3)
    for dataset in tree.children.values():
        for value in dataset.data_vars.values():
            value.values[...] = 7
    for value in handed:
        value.detach().fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert torch.equal(model.counts, counts) and torch.equal(model.design_mtx, design)
    torch.testing.assert_close(guide()["bias_eta"], first["bias_eta"])


def test_data_that_change_later_change_no_fit():
    counts, design = counts_for(Multinomial), torch.randn(N_SPOTS, 1, dtype=torch.float64)
    model = MultinomGLM()
    model.setup_data(counts, design)
    kept = counts.clone(), design.clone()
    counts.zero_()
    design.zero_()
    assert torch.equal(model.counts, kept[0]) and torch.equal(model.design_mtx, kept[1])


@pytest.mark.parametrize("kind", [Multinomial, Likelihood])
@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("mean", lambda eta: Multinomial().mean(eta)[..., :1]),
        ("mean", lambda eta: 5 * Multinomial().mean(eta)),
        ("mean", lambda eta: None),
        ("score", lambda counts, eta: Multinomial().score(counts, eta)[..., :1]),
        ("information", lambda counts, eta: Multinomial().information(counts, eta)[..., :1]),
        ("start", lambda counts: torch.zeros(1)),
        ("sample", lambda totals, eta, *, generator=None: totals),
        ("sample", lambda totals, eta, *, generator=None: None),
    ],
)
def test_what_a_method_returns_is_of_the_shape_and_kind_that_it_is_asked_for(kind, method, wrong):
    right = {
        "log_prob": lambda counts, eta: Multinomial().log_prob(counts, eta),
        "mean": lambda eta: Multinomial().mean(eta),
        "sample": lambda totals, eta, *, generator=None: Multinomial().sample(totals, eta, generator=generator),
    }
    own = {name: staticmethod(call) for name, call in {**right, method: wrong}.items()}
    model = MultinomGLM(likelihood=type("Mine", (kind,), own)())
    model.setup_data(counts_for(Multinomial))
    with pytest.raises(InvalidArgumentError, match=f"likelihood: expected {method} of Mine"):
        model.fit(quiet=True)
        model.get_isoform_ratio()
        model.posterior(num_samples=2)
