"""A Pyro model of a person's own is what ``ExpressionGLM`` fits: its optimum, sites and Wald tests, or a refusal."""

from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyrosplice import ExpressionGLM
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NotReadyError, RefusedModelError
from pyrosplice.likelihoods import CellCounts

RNG = np.random.default_rng(3)
CELLS = pd.DataFrame({"group": ["a", "b"] * 30, "depth": RNG.uniform(0.5, 2.0, 60)})
COUNTS = RNG.poisson(RNG.gamma(3.0, 2.0, (60, 3)) * np.where(CELLS.group == "b", 1.5, 1.0)[:, None]).astype(float)
DONORS = torch.arange(60) % 5
FORMULA = "~1 + group"
EFFECT = "group[T.b]"


class Shifted(ExpressionModel):
    def __init__(self, location, scale, *, offset, **options):
        super().__init__(location, scale, offset=offset + 1.0, **options)


def zero_inflated(counts, location, scale):
    """Some counts are zero whatever the mean."""
    genes, cells = counts.shape
    flat = dist.ImproperUniform(dist.constraints.real_vector, (), (location.shape[1],))
    with pyro.plate("genes", genes, dim=-2):
        coefficients = pyro.sample("location", flat.expand((genes, 1)))
        gate = pyro.sample("gate", dist.Beta(torch.ones(genes, 1).double(), 1.0))
        with pyro.plate("cells", cells, dim=-1):
            rate = (coefficients.squeeze(-2) @ location.T).exp()
            pyro.sample("counts", dist.ZeroInflatedPoisson(rate, gate=gate.expand(genes, cells)), obs=counts)


class WithDonors(ExpressionModel):
    """A level of each of five donors."""

    def __call__(self, counts=None, *, n_genes=None):
        with pyro.plate("genes", len(counts), dim=-2):
            location = pyro.sample("location", self.location_prior)
            scale = pyro.sample("scale", self.scale_prior)
            donor = pyro.sample("donor", dist.Normal(torch.zeros(len(counts), 1, 5).double(), 0.3).to_event(1))
            eta = location.squeeze(-2) @ self.location.T + self.offset + donor[:, 0, DONORS]
            zeta = scale.squeeze(-2) @ self.scale.T
            with pyro.plate("cells", len(self.location), dim=-1):
                pyro.sample("counts", CellCounts(self.likelihood, eta, zeta), obs=counts)


def fitted(counts=COUNTS, *, options=None, **settings):
    return ExpressionGLM(FORMULA, **settings).fit(counts, sample_description=CELLS, **(options or {}))


def slope(glm, counts=COUNTS):
    """Norm of the gradient of a model's own log density at the estimates."""
    free = {name: value.clone().requires_grad_(True) for name, value in glm.sites.items()}
    total = poutine.trace(poutine.condition(glm.model, data=free)).get_trace(torch.from_numpy(counts.T)).log_prob_sum()
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(total, list(free.values()), materialize_grads=True)]
    ).norm()


@pytest.mark.parametrize("noise_model", ["nb", "poisson", "norm"])
def test_a_shift_is_followed_with_its_wald_tests(noise_model, tmp_path):
    plain, mine = fitted(noise_model=noise_model), fitted(noise_model=noise_model, model=Shifted)
    assert slope(mine) <= 1e-4 and "Shifted" in mine.engine and plain.engine == "closed-form engine"
    torch.testing.assert_close(mine.sites["location"][..., 0], plain.sites["location"][..., 0] - 1.0, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine.sites["location"][..., 1:], plain.sites["location"][..., 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(mine.sites["scale"], plain.sites["scale"], rtol=0, atol=1e-5)
    contrast = mine.cond(group="b") - mine.cond(group="a")
    for found, expected in (
        (mine.test(contrast).pval, plain.test(contrast).pval),
        (mine.test(coefficient=EFFECT).pval, plain.test(coefficient=EFFECT).pval),
        (mine.summary()["se"], plain.summary()["se"]),
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-2)  # observed information here, the expected one there
    assert "Shifted" in repr(mine) and "3 converged" in repr(mine) and "AutoNewtonMAP" in mine._repr_html_()
    mine.save(tmp_path / "glm")
    again = ExpressionGLM.load(tmp_path / "glm", model=Shifted)
    assert again.engine == mine.engine and "Shifted" in repr(again)
    pd.testing.assert_frame_equal(again.test(contrast).summary(), mine.test(contrast).summary())
    for name, value in mine.sites.items():
        assert torch.equal(again.sites[name], value)
    with pytest.raises(ModelFileError, match=r"with the model Shifted.* load\(path, model=Shifted\)"):
        ExpressionGLM.load(tmp_path / "glm")
    with pytest.raises(ModelFileError, match="saved with Shifted, found zero_inflated"):
        ExpressionGLM.load(tmp_path / "glm", model=zero_inflated)
    with pytest.raises(NotReadyError, match="guide"):
        _ = again.guide
    plain.save(tmp_path / "plain")
    with pytest.raises(ModelFileError, match="saved with the shipped model; leave it out"):
        ExpressionGLM.load(tmp_path / "plain", model=Shifted)


def test_a_zero_inflated_count():
    zeros = COUNTS * (RNG.random(COUNTS.shape) > 0.3)
    glm = fitted(zeros, model=zero_inflated)
    assert slope(glm, zeros) <= 1e-4 and glm.guide.converged.all()
    assert glm.sites["gate"].min() > 0.1 and glm.sites["gate"].max() < 0.5
    table = glm.summary()
    assert table["fit_ended"].eq("converged").all() and table["se"].between(0.01, 0.3).all()
    assert glm.test(factor="group").pval.shape == (3,)


def test_a_second_random_effect_at_its_mode():
    glm = fitted(model=WithDonors)
    assert slope(glm) <= 1e-4 and glm.sites["donor"].shape == (3, 1, 5)
    assert np.isfinite(glm.summary()["se"]).all()


def test_a_model_equal_to_the_shipped_one_has_its_fit():
    class Constant(ExpressionModel):
        """One nat more for every gene: another density to the check, the same optimum."""

        def __call__(self, counts=None, *, n_genes=None):
            with pyro.plate("again", len(counts), dim=-2):
                pyro.factor("constant", torch.ones(len(counts), 1).double())
            return super().__call__(counts, n_genes=n_genes)

    plain, mine, same = fitted(), fitted(model=Constant), fitted(model=type("Same", (ExpressionModel,), {}))
    for name, value in plain.sites.items():
        torch.testing.assert_close(mine.sites[name], value, rtol=0, atol=1e-6)
        assert torch.equal(same.sites[name], value)
    assert "Constant" in mine.engine and same.engine == plain.engine
    np.testing.assert_allclose(mine.results.log_likelihood, plain.results.log_likelihood + 1.0, atol=1e-8)


def test_the_property_and_size_factors():
    class Mine(ExpressionGLM):
        @property
        def model(self):
            known = super().model
            own = {"offset": known.offset, "likelihood": known.likelihood}
            return Shifted(known.location, known.scale, **own)

    factors = {"size_factors": CELLS["depth"]}
    mine = Mine(FORMULA).fit(COUNTS, sample_description=CELLS, **factors)
    plain = fitted(options=factors)
    torch.testing.assert_close(mine.sites["location"][..., 0], plain.sites["location"][..., 0] - 1.0, rtol=0, atol=1e-6)

    class Deaf(Mine):
        @property
        def model(self):
            known = ExpressionGLM.model.fget(self)
            return Shifted(known.location, known.scale, offset=torch.zeros(60).double())

    with pytest.raises(InvalidArgumentError, match="size_factors, offsets: the model Shifted does not use it"):
        Deaf(FORMULA).fit(COUNTS, sample_description=CELLS, **factors)
    with pytest.raises(InvalidArgumentError, match="noise_model: Normal\(\): the model Shifted does not use it"):
        Deaf(FORMULA, noise_model="norm").fit(COUNTS, sample_description=CELLS)


def test_the_shipped_model_and_guide_are_shown():
    counts = torch.from_numpy(COUNTS.T)
    for noise_model in ("nb", "poisson", "norm"):
        glm = fitted(noise_model=noise_model)
        loss = Trace_ELBO().loss(glm.model, glm.guide, counts)
        assert loss == pytest.approx(-glm.results.log_likelihood.sum(), abs=1e-6)
        assert slope(glm) <= 1e-4
    with pytest.raises(NotReadyError):
        _ = ExpressionGLM(FORMULA).sites


@pytest.mark.slow
def test_a_gene_that_fails_changes_no_other():
    """A gene without zeros beyond its noise has no gate inside, one of constant zeros no mean."""
    many = np.column_stack([COUNTS, np.zeros(60)])
    both, alone = fitted(many, model=zero_inflated), fitted(model=zero_inflated)
    torch.testing.assert_close(both.sites["location"][:3], alone.sites["location"], rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(both.summary().iloc[:6], alone.summary(), rtol=1e-3)


def test_options_that_are_not_followed_are_refused():
    for option, value in (
        ("init_a", "standard"),
        ("training_strategy", "QUICK"),
        ("quick_scale", True),
        ("dtype", "float32"),
        ("batch_size", 10),
        ("weights", np.full(60, 2.0)),
        ("train_args", {"max_iter": 3}),
    ):
        with pytest.raises(InvalidArgumentError, match=f"{option}: it is an option of the engine"):
            fitted(model=Shifted, options={option: value})
    for settings, words in (
        ({"noise_model": "norm"}, "noise_model: Normal\(\): zero_inflated takes no argument 'likelihood'"),
        ({"options": {"size_factors": CELLS["depth"]}}, "size_factors, offsets: zero_inflated takes no argument"),
        ({"model": lambda counts: None}, "formula_loc: .* takes no argument 'location'"),
        ({"model": 3}, "model: expected a Pyro model"),
        ({"model": lambda counts, location: counts}, "samples no latent site"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            fitted(**{"model": zero_inflated, **settings})


def test_what_only_the_shipped_model_has_is_refused_and_an_earlier_fit_stays():
    glm = fitted(model=Shifted)
    row = glm.cond(group="b") - glm.cond(group="a")
    for call in (
        lambda: glm.test(row, method="lrt"),
        glm.variance_ratio,
        glm.quasi,
        glm.posterior,
        glm.adjusted_dispersion,
        lambda: glm.sample_counts([0], seed=0),
    ):
        with pytest.raises(RefusedModelError, match="this fit is of Shifted"):
            call()
    before = glm.sites["location"]
    with pytest.raises(InvalidArgumentError):
        glm.fit(COUNTS, sample_description=CELLS, dtype="float32")
    assert torch.equal(glm.sites["location"], before) and glm.estimator is None

    def level_only(counts, location):
        with pyro.plate("genes", len(counts), dim=-2):
            level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1).double(), 5.0))
            with pyro.plate("cells", counts.shape[1], dim=-1):
                pyro.sample("counts", dist.Poisson((level + 0.5 * location[:, -1]).exp()), obs=counts)

    other = fitted(model=level_only)
    assert slope(other) <= 1e-4 and "level_only" in repr(other)
    for call in (other.summary, lambda: other.test(coefficient=EFFECT)):
        with pytest.raises(RefusedModelError, match="location: level_only has no site of this name"):
            call()


class Bounded(ExpressionModel):
    """Coefficients that the flat prior bounds."""

    def __init__(self, location, scale, **options):
        super().__init__(location, scale, **options)
        bounds = dist.constraints.independent(dist.constraints.interval(-9.0, 0.1), 1)
        self.location_prior = dist.ImproperUniform(bounds, (), (location.shape[1],))


def test_a_bounded_flat_prior_is_another_model():
    glm = fitted(model=Bounded)
    assert "Bounded" in glm.engine and glm.sites["location"].max() <= 0.1


def poisson(counts, location, likelihood, scale, offset):
    """The shipped Poisson model, in the words of a function, without its empty site ``scale``."""
    genes, cells = counts.shape
    with pyro.plate("genes", genes, dim=-2):
        flat = dist.ImproperUniform(dist.constraints.real_vector, (), (location.shape[1],))
        eta = pyro.sample("location", flat).squeeze(-2) @ location.T + offset
        with pyro.plate("cells", cells, dim=-1):
            pyro.sample("counts", dist.Poisson(eta.exp()), obs=counts)


def test_poisson_models_need_not_sample_the_empty_scale():
    plain = fitted(noise_model="poisson")
    for model in (poisson, ExpressionModel):
        same = fitted(noise_model="poisson", model=model)
        assert same.engine == plain.engine and torch.equal(same.sites["location"], plain.sites["location"])

    def shifted(counts, location, likelihood, scale, offset):
        poisson(counts, location, likelihood, scale, offset + 1.0)

    mine = fitted(noise_model="poisson", model=shifted)
    torch.testing.assert_close(mine.sites["location"][..., 0], plain.sites["location"][..., 0] - 1.0, rtol=0, atol=1e-6)


def in_single_precision(counts, location, scale):
    genes, cells = counts.shape
    with pyro.plate("genes", genes, dim=-2):
        values = [
            pyro.sample(name, dist.Normal(torch.zeros(genes, 1, size), 3.0).to_event(1)).squeeze(-2)
            for name, size in (("location", location.shape[1]), ("scale", scale.shape[1]))
        ]
        mean, spread = (v @ design.float().T for v, design in zip(values, (location, scale), strict=True))
        with pyro.plate("cells", cells, dim=-1):
            pyro.sample("counts", dist.NegativeBinomial(spread.exp(), logits=mean - spread), obs=counts.float())


def test_a_model_in_single_precision_may_have_the_shipped_names():
    glm = fitted(model=in_single_precision)
    assert "in_single_precision" in glm.engine and glm.guide.converged.all()


def test_the_arguments_of_a_module_are_those_of_forward():
    class Layer(torch.nn.Module):
        def forward(self, counts, location, likelihood, scale, offset, shift=0.0):
            poisson(counts, location, likelihood, scale, offset + shift)

    plain = fitted(noise_model="poisson")
    for model, shift in ((Layer(), 0.0), (partial(Layer(), shift=1.0), 1.0)):
        level = fitted(noise_model="poisson", model=model).sites["location"][..., 0]
        torch.testing.assert_close(level, plain.sites["location"][..., 0] - shift, rtol=0, atol=1e-6)


def test_estimates_at_infinity_are_not_converged():
    def flat(counts, location, offset):
        poisson(counts, location, None, None, offset)

    counts = COUNTS.copy()
    counts[:, 1] = 0
    counts[CELLS.group == "b", 2] = 0
    glm = fitted(counts, model=flat)
    assert glm.summary()["fit_ended"].tolist()[::2] == ["converged", "no_counts", "separated"]
    pval = glm.test(factor="group").pval
    assert pval[0] < 0.5 and np.isnan(pval[1])


@pytest.mark.parametrize(
    "formulas", [{"formula_loc": "~ 1 + group"}, {"formula_loc": "~ 1", "formula_scale": "~ 1 + group"}]
)
def test_a_design_that_the_model_leaves_unread_is_refused(formulas):
    def one_level(counts, location, scale, **others):
        with pyro.plate("genes", len(counts), dim=-2):
            level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1).double(), 5.0))
            with pyro.plate("cells", counts.shape[1], dim=-1):
                pyro.sample("counts", dist.Poisson(level.exp().expand(counts.shape)), obs=counts)

    cells = pd.DataFrame({"group": ["a", "b"] * 20})
    counts = np.random.default_rng(0).poisson(4.0, (40, 2))
    with pytest.raises(InvalidArgumentError, match="does not use it"):
        ExpressionGLM(**formulas, model=one_level).fit(counts, sample_description=cells)
