"""One likelihood in every door: expression and usage fit the same classes, shipped or a person's own."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import pyrosplice.api as de
from pyrosplice import ExpressionGLM, MultinomGLM, MultinomGLMM
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NotStatedError
from pyrosplice.likelihoods import BetaBinomial, Likelihood, Multinomial, NegativeBinomial, Normal, Poisson
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance
from pyrosplice.testing import check_likelihood

RNG = np.random.default_rng(5)
CELLS = pd.DataFrame({"group": ["a", "b"] * 50, "size": RNG.uniform(0.5, 2.0, 100)})
IN_B = (CELLS.group == "b").to_numpy().astype(float)
MEAN = np.exp(np.array([0.5, 1.5, 2.5]) + 0.4 * IN_B[:, None]) * CELLS["size"].to_numpy()[:, None]
COUNTS = RNG.poisson(RNG.gamma(2.0, MEAN / 2.0)).astype(float)
COORDS = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))


class OneCount(Likelihood):
    """What all of these say of themselves."""

    predictors = ("location",)
    conditional = False
    n_categories = (1, 1)


class GeometricDensity(OneCount):
    def log_prob(self, counts, eta):
        y, log_mean = counts[..., 0], eta[..., 0]
        return y * log_mean - (y + 1) * torch.nn.functional.softplus(log_mean)


class GeometricDistribution(OneCount):
    def distribution(self, eta):
        return dist.Geometric(logits=-eta)


class LinearVariance(OneCount):
    """Variance (1 + excess) μ: the negative binomial of a size in proportion to the mean."""

    hyperparameters = {"excess": 1.0}  # noqa: RUF012

    def __init__(self, excess=None):
        self.excess = excess

    def log_prob(self, counts, eta):
        y, excess = counts[..., 0], torch.as_tensor(self.excess).to(eta)
        size = eta[..., 0].exp() / excess
        rising = torch.lgamma(y + size) - torch.lgamma(size) - torch.lgamma(y + 1)
        return rising + y * (excess / (1 + excess)).log() - size * torch.log1p(excess)


class LinearVarianceDistribution(LinearVariance):
    def distribution(self, eta):
        excess = torch.as_tensor(self.excess).to(eta).unsqueeze(-1)
        return dist.GammaPoisson(concentration=eta.exp() / excess, rate=(1 / excess).expand_as(eta))


class SizeDistribution(OneCount):
    """The shipped negative binomial, its dispersion told as its inverse."""

    hyperparameters = {"size": 3.0}  # noqa: RUF012
    size = None

    def distribution(self, eta):
        size = self.size.unsqueeze(-1)
        return dist.GammaPoisson(concentration=size, rate=size * torch.exp(-eta))


class HeavyTailed(OneCount):
    """Real numbers around their predictor."""

    of_counts = False
    hyperparameters = {"width": 1.0}  # noqa: RUF012
    width = None

    def distribution(self, eta):
        return dist.StudentT(5.0, eta, self.width.unsqueeze(-1))


OWN = [
    GeometricDensity,
    GeometricDistribution,
    LinearVariance,
    LinearVarianceDistribution,
    SizeDistribution,
    HeavyTailed,
]


def data_for(kind):
    return COUNTS if kind.of_counts else np.log1p(COUNTS) - 1.0


def expression(noise_model, counts=COUNTS, formula="~1 + group", scale="~1", **options):
    return de.fit.model(counts, formula, scale, noise_model=noise_model, sample_description=CELLS, **options)


def slope(likelihood, estimator):
    """Gradient of the likelihood's own log density at the estimates of expression, in nats a coefficient."""
    inputs = estimator.input_data
    a, b = (torch.tensor(v.T.copy(), requires_grad=True) for v in (estimator.a_var, estimator.b_var))
    eta = a @ torch.tensor(inputs.location.matrix.T.copy()) + torch.tensor(inputs.offset)
    zeta = b @ torch.tensor(inputs.scale.matrix.T.copy())
    values = {name: (likelihood.scale_sign * zeta).exp() for name in likelihood.free}
    counts = torch.from_numpy(inputs.counts.genes(np.arange(len(a)))).unsqueeze(-1)
    total = likelihood.bind(values).log_prob(counts, eta.unsqueeze(-1)).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, [a, b], materialize_grads=True)]).abs().max()


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("scale", ["~1", "~1 + group"])
def test_expression_fits_the_density_that_a_person_wrote(kind, scale, tmp_path):
    counts, own = data_for(kind), kind()
    if scale != "~1" and not own.free:
        with pytest.warns(UserWarning, match="formula_scale.*has no scale"):
            expression(own, counts, scale=scale)
        return
    size = {"size_factors": "size"} if kind.of_counts else {}
    estimator = expression(own, counts, scale=scale, **size)
    assert slope(own, estimator) <= 1e-4 and (estimator.error_codes == 0).all()
    glm = ExpressionGLM("~1 + group", scale, likelihood=own).fit(counts, sample_description=CELLS, **size)
    np.testing.assert_allclose(glm.results.theta, estimator.fit.theta, atol=1e-12)
    assert kind.__name__ in repr(glm) and glm.summary()["se"].between(0, 1).all()
    for method in ("wald", "lrt", "robust"):
        assert np.isfinite(glm.test(coefficient="group[T.b]", method=method).pval).all()
    np.testing.assert_allclose(estimator.model.ll.sum(0), estimator.log_likelihood, rtol=1e-9)
    glm.save(tmp_path / "glm")
    with pytest.raises(ModelFileError, match=rf"load\(path, likelihood={kind.__name__}\(\)\)"):
        ExpressionGLM.load(tmp_path / "glm")
    with pytest.raises(ModelFileError, match=r"likelihood: .* found Poisson"):
        ExpressionGLM.load(tmp_path / "glm", likelihood=Poisson())
    again = ExpressionGLM.load(tmp_path / "glm", likelihood=own)
    pd.testing.assert_frame_equal(again.summary(), glm.summary())


def usage(likelihood, counts=COUNTS, *, space=False):
    options = {"fitting_method": "marginal_newton", "var_fix_sigma": False} if space else {}
    priors = {"sigma": dist.Exponential(5.0)} if space else None
    model = (MultinomGLMM if space else MultinomGLM)(likelihood=likelihood, priors=priors, **options)
    where = {"corr_sp": CarCovariance(knn_graph(COORDS))} if space else {}
    model.setup_data(torch.from_numpy(counts.T.copy()).unsqueeze(-1), design_mtx=IN_B[:, None], **where)
    model.fit(quiet=True)
    assert model.logger.converged.all()
    return model


@pytest.mark.parametrize("kind", OWN)
def test_a_glm_of_usage_has_the_fit_of_expression(kind):
    model, estimator = usage(kind(), data_for(kind)), expression(kind(), data_for(kind))
    torch.testing.assert_close(model.beta[:, 0, 0], torch.tensor(estimator.a_var[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(model(), torch.tensor(estimator.log_likelihood), rtol=0, atol=1e-5)
    for name in kind.hyperparameters:
        expected = torch.tensor(np.exp(estimator.b_var[0]))
        torch.testing.assert_close(getattr(model, name)[:, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", OWN)
def test_a_mixed_model_is_at_the_optimum_of_its_own_density(kind):
    model, step = usage(kind(), data_for(kind), space=True), 1e-4
    at = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name in ("bias_eta", "beta", *kind.hyperparameters):
        values = []
        for move in (step, -step):
            change = at[name] * np.exp(move) if name in kind.hyperparameters else at[name] + move
            model.update_params_from_dict({**at, name: change})
            values.append(model().detach())
        assert ((values[0] - values[1]) / (2 * step)).abs().max() <= 2e-3, name


@pytest.mark.slow
def test_the_same_density_has_the_same_mixed_model_however_it_is_said():
    for one, other in (
        (GeometricDensity(), NegativeBinomial(1.0)),
        (GeometricDistribution(), NegativeBinomial(1.0)),
        (LinearVariance(), LinearVarianceDistribution()),
        (SizeDistribution(), NegativeBinomial()),
    ):
        mine, known = usage(one, space=True), usage(other, space=True)
        for name in ("bias_eta", "beta", "sigma"):
            torch.testing.assert_close(getattr(mine, name), getattr(known, name), rtol=0, atol=2e-3)
        torch.testing.assert_close(mine(), known(), rtol=0, atol=1e-4)
    size = usage(SizeDistribution()).size[:, 0]
    torch.testing.assert_close(1 / size, usage(NegativeBinomial()).dispersion[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("word", "kind"), [("nb", NegativeBinomial), ("poisson", Poisson), ("norm", Normal)])
def test_a_shipped_one_is_its_word_and_is_taken_everywhere(word, kind, tmp_path):
    counts = COUNTS if kind.of_counts else COUNTS - 3.5
    named, given = expression(word, counts), expression(kind(), counts)
    for name in ("a_var", "b_var", "log_likelihood", "fisher_inv"):
        np.testing.assert_array_equal(getattr(given, name), getattr(named, name))
    glm = ExpressionGLM("~1 + group", likelihood=kind()).fit(counts, sample_description=CELLS)
    glm.save(tmp_path / "glm")
    np.testing.assert_array_equal(glm.results.theta, named.fit.theta)
    again = ExpressionGLM.load(tmp_path / "glm")
    pd.testing.assert_frame_equal(again.summary(), glm.summary())
    assert type(again.noise_model) is kind
    model = usage(kind(), counts)
    torch.testing.assert_close(model(), torch.tensor(named.log_likelihood), rtol=0, atol=1e-5)
    assert torch.isfinite(usage(kind(), counts, space=True).beta).all()


def test_de_tests_take_them():
    for kind in (SizeDistribution, NegativeBinomial):
        for call in (
            lambda how: de.test.wald(COUNTS, "group", formula_loc="~1 + group", **how),
            lambda how: de.test.lrt(COUNTS, "~1 + group", "~1", **how),
            lambda how: de.test.score(COUNTS, "group", formula_loc="~1 + group", **how),
        ):
            found, expected = (call({"noise_model": m, "sample_description": CELLS}).pval for m in (kind(), "nb"))
            np.testing.assert_allclose(found, expected, rtol=0.1, atol=1e-3)  # observed information here


@pytest.mark.parametrize("own", [NegativeBinomial(dispersion=0.3), Normal(sd=2.0)], ids=repr)
def test_what_is_held_stays_in_every_fit(own):
    name = next(iter(own.hyperparameters))
    estimator = expression(own)
    scale = getattr(own, name) ** float(own.scale_sign)
    np.testing.assert_allclose(np.exp(estimator.b_var[0]), scale, rtol=1e-12)
    np.testing.assert_allclose(estimator.model.scale, scale, rtol=1e-12)
    eta = torch.from_numpy(estimator.model.eta_loc.T.copy()).unsqueeze(-1)
    value = own.log_prob(torch.from_numpy(COUNTS.T.copy()).unsqueeze(-1), eta).sum(-1)
    np.testing.assert_allclose(value, estimator.log_likelihood, rtol=1e-10)
    free = expression(type(own)())
    assert (free.log_likelihood > estimator.log_likelihood).all()
    torch.testing.assert_close(usage(own)(), value, rtol=0, atol=1e-6)

    gene = slice(1, 2)
    alike = type(own)(float(np.exp(own.scale_sign * free.b_var[0, 1])))  # held where the gene has it anyway
    glm, held, other = (
        ExpressionGLM("~1 + group", likelihood=one).fit(counts, sample_description=CELLS)
        for one, counts in ((own, COUNTS), (alike, COUNTS[:, gene]), (type(own)(), COUNTS[:, gene]))
    )
    np.testing.assert_allclose(held.results.theta, other.results.theta, atol=1e-6)
    for method in ("wald", "robust", "cluster", "glmm", "lrt"):
        who = {"donors": np.arange(100) % 10} if method in ("cluster", "glmm") else {}
        found, free = (one.test(coefficient="group[T.b]", method=method, **who) for one in (held, other))
        np.testing.assert_allclose(found.statistic, free.statistic, rtol=0.1 if method in ("glmm", "lrt") else 1e-5)
    tree = glm.posterior(num_samples=300, method="laplace")
    assert "scale" not in tree["posterior"] and name not in tree["posterior"]
    mean = tree["posterior"]["location"].mean(("chain", "draw"))
    np.testing.assert_allclose(mean, estimator.a_var.T, atol=0.1)
    drawn = glm.sample_counts(slice(None), seed=0)
    assert drawn.shape == COUNTS.shape and abs(drawn.mean() / COUNTS.mean() - 1) < 0.3
    for call in (glm.quasi, glm.adjusted_dispersion):
        with pytest.raises(InvalidArgumentError, match="estimated"):
            call()


def test_a_hyper_parameter_of_ones_own_is_held_too():
    own = LinearVariance(0.7)
    estimator = expression(own)
    np.testing.assert_allclose(np.exp(estimator.b_var), 0.7, rtol=1e-12)
    assert slope(own, estimator) <= 1e-4
    torch.testing.assert_close(usage(own)(), torch.tensor(estimator.log_likelihood), rtol=0, atol=1e-5)


class TwoPredictors(OneCount):
    predictors = ("location", "scale")

    def log_prob(self, counts, eta):
        return Normal(1.0).log_prob(counts, eta[..., :1])


class TwoHyperparameters(SizeDistribution):
    hyperparameters = {"size": 3.0, "gate": 0.5}  # noqa: RUF012
    gate = None


class WrongTerms(SizeDistribution):
    def terms(self, total, weight, eta, zeta):
        return super().terms(total, weight, eta, zeta)._replace(g_zeta=0 * eta)


class GivenTotals(GeometricDensity):
    conditional = True


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Multinomial(), r"has 0 predictors of one count \(K − 1 logits\)"),
        (BetaBinomial(), "usage of isoforms is fitted by MultinomGLM"),
        (TwoPredictors(), r"has 2 predictors of one count \(location, scale\)"),
        (TwoHyperparameters(), "2 hyper-parameters to estimate .size, gate.*hold the others"),
        (GivenTotals(), "conditional = False"),
        (WrongTerms(), r"terms of which g_zeta do not follow from its log_prob"),
        (NegativeBinomial(exposure=torch.ones(100)), "give them as size_factors"),
        (NegativeBinomial(dispersion=torch.full((3, 1), 0.3)), "one positive number for all genes"),
        (NegativeBinomial(dispersion=-1.0), "holds dispersion.*found -1.0"),
        (NegativeBinomial, r"call it: NegativeBinomial\(\)"),
        ("zinb", "expected one of .'nb', 'norm', 'poisson'"),
        (3, "found 3"),
    ],
)
def test_what_is_no_likelihood_of_a_cell_is_refused(wrong, words):
    for call in (lambda: expression(wrong), lambda: ExpressionGLM("~1", likelihood=wrong)):
        with pytest.raises(InvalidArgumentError, match=f"noise_model: .*{words}"):
            call()


def test_contradictions_are_refused():
    held = NegativeBinomial(dispersion=0.3)
    with pytest.raises(InvalidArgumentError, match=r"formula_scale: .*holds its scale"):
        expression(held, scale="~1 + group")
    for start in ("standard", np.zeros((1, 3))):
        with pytest.raises(InvalidArgumentError, match=r"init_b: .*holds its scale"):
            expression(held, init_b=start)
    with pytest.raises(InvalidArgumentError, match="likelihood: it is another name of noise_model"):
        ExpressionGLM("~1", noise_model="poisson", likelihood=held)
    with pytest.raises(InvalidArgumentError, match="data: expected counts, found -"):
        expression("nb", COUNTS - 5)
    with pytest.raises(InvalidArgumentError, match="counts: expected non-negative"):
        usage(Poisson(), COUNTS - 5)


def test_a_density_that_is_not_of_each_cell_is_refused():
    class Unsummed(OneCount):
        def log_prob(self, counts, eta):
            return counts * eta - eta.exp()

    class Flat(OneCount):
        def distribution(self, eta):
            return dist.Poisson(eta[..., 0].exp())

    for kind in (Unsummed, Flat):
        with pytest.raises(InvalidArgumentError, match=f"expected (log_prob|mean) of {kind.__name__} to be a Tensor"):
            expression(kind())


def test_what_follows_from_a_distribution():
    eta = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(3, 10, 1)
    own, known = SizeDistribution().bind({"size": torch.full((3, 1), 2.0)}), NegativeBinomial(0.5)
    for method in ("mean", "variance"):
        torch.testing.assert_close(getattr(own, method)(eta), getattr(known, method)(eta).double())
    many = eta.expand(4000, 3, 10, 1)
    drawn = own.draw(many[..., 0], many, generator=torch.Generator().manual_seed(0))
    again = own.draw(many[..., 0], many, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again) and not torch.equal(drawn, own.draw(many[..., 0], many))
    torch.testing.assert_close(drawn.mean(0), own.mean(eta), rtol=0.2, atol=0.05)

    class Other(SizeDistribution):
        def log_prob(self, counts, eta):
            return super().log_prob(counts, eta + 1)

    class Again(NegativeBinomial):
        def distribution(self, eta):
            return dist.Poisson(eta.exp())

    for method in ("mean", "sample", "variance"):
        assert not Other().states(method) and Again().states(method)
    with pytest.raises(NotStatedError, match=r"Other does not say how it varies; override Likelihood.variance"):
        Other().bind_start(3, eta).variance(eta)
    counts = torch.ones(3, 10, 1).double()
    torch.testing.assert_close(Again(0.5).log_prob(counts, eta), Poisson().log_prob(counts, eta))
    torch.testing.assert_close(Again(0.5).mean(eta), Poisson().mean(eta))
    assert not Again.by_totals and not Again.is_negative_binomial and Again.terms is Likelihood.terms
    torch.testing.assert_close(
        Other().bind_start(3, eta).log_prob(counts, eta),
        SizeDistribution().bind_start(3, eta).log_prob(counts, eta + 1),
    )


def test_a_multinomial_said_by_a_distribution():
    class Said(Likelihood):
        def distribution(self, eta):
            return dist.Multinomial(logits=torch.nn.functional.pad(eta, (0, 1)))

    counts = torch.poisson(torch.full((2, 30, 3), 5.0), generator=torch.Generator().manual_seed(0))
    found = []
    for likelihood in (Said(), Multinomial()):
        model = MultinomGLM(likelihood=likelihood)
        model.setup_data(counts)
        model.fit(quiet=True)
        found.append(model)
    torch.testing.assert_close(found[0].bias_eta, found[1].bias_eta, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0].get_isoform_ratio(), found[1].get_isoform_ratio(), rtol=0, atol=1e-4)
    assert not Said().states("sample")


@pytest.mark.parametrize("kind", OWN)
def test_the_contract_holds(kind):
    check_likelihood(kind())
