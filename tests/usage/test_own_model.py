"""A Pyro model of a person's own is what an estimator fits: its optimum, its sites, or a refusal that says why."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrosplice import MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NotReadyError, RefusedModelError
from pyrosplice.glmm._distributions import SpotCounts
from pyrosplice.glmm._multinomial import MultinomialGLM, MultinomialGLMM
from pyrosplice.guides._own_model import integrated_sites, latent_values
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial
from pyrosplice.spatial.car import IdentityCovariance
from tests.guides.simulated import tissue

COUNTS, DESIGN, CAR = tissue(3, 2, isoforms=2, seed=4)
DONORS = torch.arange(9) % 3
MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
WEAK = {"sigma": dist.Exponential(1.0), "theta_logit": dist.Normal(0.0, 1.5)}


class ShiftedGLM(MultinomialGLM):
    def linear_predictor(self, values):
        return super().linear_predictor(values) + 2.0


class ShiftedGLMM(MultinomialGLMM):
    def linear_predictor(self, values):
        return super().linear_predictor(values) + 2.0


class DonorsGLMM(MultinomialGLMM):
    """A random effect of three donors beside the field."""

    def sample_latents(self):
        values, genes = super().sample_latents(), len(self.counts)
        spread = pyro.sample("donor_sd", dist.LogNormal(torch.full((genes,), -1.0).double(), 0.5))
        effect = pyro.sample("donor", dist.Normal(0.0, spread[..., None].expand(genes, 3)).to_event(1))
        return {**values, "donor": effect}

    def linear_predictor(self, values):
        return super().linear_predictor(values) + values["donor"][..., DONORS].unsqueeze(-1)


def zero_inflated(counts, design):
    """Spots in which the first isoform is never seen, whatever its usage; two isoforms."""
    genes, spots, _ = counts.shape
    with pyro.plate("genes", genes, dim=-2):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(genes, 1, 1).double(), 2.0).to_event(1))
        bias = pyro.sample("bias_eta", dist.Normal(torch.zeros(genes, 1).double(), 2.0))
        gate = pyro.sample("gate", dist.Beta(torch.full((genes, 1), 2.0).double(), 4.0))
        with pyro.plate("spots", spots, dim=-1):
            logits = bias + beta[..., 0] * design[:, 0]
            seen = dist.Binomial(counts.sum(-1), logits=logits)
            pyro.sample(
                "counts", dist.ZeroInflatedDistribution(seen, gate=gate.expand(genes, spots)), obs=counts[..., 0]
            )


def made(estimator, *, counts=COUNTS, design=DESIGN, **options):
    model = estimator(**options)
    model.setup_data(counts, *([CAR] if isinstance(model, MultinomGLMM) else []), design_mtx=design)
    return model


def fitted(*args, **options):
    model = made(*args, **options)
    model.fit(quiet=True)
    return model


def slope(program, values):
    """Norm of the gradient of a model's own log density at values of its sites."""
    free = {name: value.detach().clone().requires_grad_(True) for name, value in values.items()}
    total = poutine.trace(poutine.condition(program, data=free)).get_trace().log_prob_sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(free.values()))]).norm()


def laplace(program, outer, inner):
    """Laplace's value of a model's own density, its integrated sites from ``inner`` to their mode by plain Newton."""
    shapes, flat = {k: v.shape for k, v in inner.items()}, torch.cat([v.flatten() for v in inner.values()])

    def joint(point):
        parts = point.split([shape.numel() for shape in shapes.values()])
        sites = {k: part.reshape(shape) for part, (k, shape) in zip(parts, shapes.items(), strict=True)}
        return poutine.trace(poutine.condition(program, data={**outer, **sites})).get_trace().log_prob_sum()

    for _ in range(4):
        point = flat.requires_grad_(True)
        (gradient,) = torch.autograd.grad(joint(point), point)
        hessian = torch.autograd.functional.hessian(joint, point.detach())
        flat = point.detach() - torch.linalg.solve(hessian, gradient)
    return joint(flat) + 0.5 * len(flat) * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(-hessian)[1]


@pytest.mark.parametrize("given", ["argument", "property"])
@pytest.mark.parametrize("space", [False, True])
def test_a_shift_is_followed(space, given):
    kind, model = (MultinomGLMM, ShiftedGLMM) if space else (MultinomGLM, ShiftedGLM)
    options = {**MARGINAL, "priors": WEAK, "fitting_configs": {"tol": 1e-9}} if space else {}

    class Mine(kind):
        @property
        def model(self):
            known = super().model
            own = {"likelihood": self.likelihood, "priors": self.priors}
            own |= {"covariance": known.covariance, "fixed": known.fixed} if space else {}
            return model(self.counts, self.design_mtx, **own)

    plain = fitted(kind, **options)
    mine = fitted(Mine, **options) if given == "property" else fitted(kind, **options, model=model)
    assert mine.logger.converged.all() and type(mine.model) is model
    torch.testing.assert_close(mine.bias_eta, plain.bias_eta - 2.0, rtol=0, atol=1e-5)
    for name in {"beta", "sigma", "theta_logit", "nu"} & dict(plain.named_parameters()).keys():
        torch.testing.assert_close(getattr(mine, name), getattr(plain, name), rtol=0, atol=2e-5)
    for call in ("forward", "vcov", "get_isoform_ratio", "linear_predictor"):
        torch.testing.assert_close(getattr(mine, call)(), getattr(plain, call)(), rtol=1e-3, atol=1e-5)
    assert plain.engine == "closed-form engine" and model.__name__ in mine.engine and model.__name__ in repr(mine)
    assert model.__name__ not in repr(plain) and mine.guide().keys() >= mine.sites.keys() == plain.sites.keys()


@pytest.mark.slow
def test_a_second_random_effect_is_integrated_out():
    priors = {**WEAK, "sigma": dist.LogNormal(-0.5, 0.5)}
    mine = fitted(MultinomGLMM, **MARGINAL, priors=priors, model=DonorsGLMM)
    assert mine.logger.converged.all() and mine.guide.marginalize == ("nu", "donor")
    assert mine.sites["donor"].shape == (2, 3) and mine.sites["donor_sd"].shape == (2,)
    sites = mine.sites
    inner = {name: sites.pop(name) for name in ("nu", "donor")}
    torch.testing.assert_close(mine.forward().sum(), laplace(mine.model, sites, inner), rtol=0, atol=1e-6)
    for name, value in sites.items():
        for place in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = value.clone()
                moved.flatten()[place] += sign * 1e-4
                ends.append(laplace(mine.model, {**sites, name: moved}, inner))
            assert abs(float(ends[0] - ends[1]) / 2e-4) <= 1e-4


def test_a_random_effect_about_another_site_is_integrated_out():
    class About(DonorsGLMM):
        def sample_latents(self):
            values, genes = MultinomialGLMM.sample_latents(self), len(self.counts)
            mean = pyro.sample("mean", dist.Normal(torch.zeros(genes).double(), 2.0))
            effect = pyro.sample("donor", dist.Normal(mean[..., None].expand(genes, 3), 0.7).to_event(1))
            return {**values, "donor": effect}

    model = About(COUNTS, DESIGN, CAR)
    assert integrated_sites(model, "About", latent_values(model, "About"), ("beta", "bias_eta")) == ["nu", "donor"]


def test_a_model_that_has_become_the_shipped_one_has_its_predictor():
    moved = []

    class Sometimes(MultinomialGLMM):
        def linear_predictor(self, values):
            return super().linear_predictor(values) + sum(moved)

    plain, mine = (made(MultinomGLMM, priors=WEAK, fitting_method="joint_newton", model=m) for m in (None, Sometimes))
    moved.append(2.0)
    mine.fit(quiet=True)
    assert "Sometimes" in mine.engine
    moved.clear()
    for model in (mine, plain):
        model.fit(quiet=True)
    assert mine.engine == plain.engine and repr(mine) == repr(plain).replace(plain._status(), mine._status())
    torch.testing.assert_close(mine.linear_predictor(), plain.linear_predictor())


def test_zero_inflated_usage():
    counts = COUNTS.clone()
    counts[:, ::3, 0] = 0
    mine = fitted(MultinomGLM, counts=counts, model=zero_inflated)
    assert mine.logger.converged.all() and slope(mine.model, mine.sites) <= 1e-4
    assert mine.beta.shape == (2, 1, 1) and mine.sites["gate"].min() > 0.1 and mine.sites["gate"].max() < 0.6
    assert torch.isfinite(mine.vcov()).all()
    for call in (mine.linear_predictor, mine.get_isoform_ratio):
        with pytest.raises(RefusedModelError, match="zero_inflated observes"):
            call()


@pytest.mark.parametrize("space", [False, True])
def test_a_model_equal_to_the_shipped_one_has_its_fit(space):
    kind, parent = (MultinomGLMM, MultinomialGLMM) if space else (MultinomGLM, MultinomialGLM)

    class Constant(parent):
        """Another number of nats, and so another density to the check; the same optimum."""

        def __call__(self):
            eta = super().__call__()
            with pyro.plate("genes_again", len(self.counts), dim=-2):
                pyro.factor("constant", torch.ones(len(self.counts), 1).double())
            return eta

    options = {**MARGINAL, "priors": WEAK, "fitting_configs": {"tol": 1e-13}} if space else {}
    plain, mine = fitted(kind, **options), fitted(kind, **options, model=Constant)
    same = fitted(kind, **options, model=type("Same", (parent,), {}))
    assert "Constant" in mine.engine and same.engine == plain.engine
    torch.testing.assert_close(mine.forward(), plain.forward() + 1.0, rtol=0, atol=1e-8)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(getattr(mine, name), value, rtol=0, atol=1e-6)
        assert torch.equal(getattr(same, name), value)


def test_joint_methods_take_the_joint_mode_and_hold_sigma():
    def own(counts, design, covariance):
        return MultinomialGLMM(counts, design, covariance, priors={**WEAK, "bias_eta": dist.Normal(1.0, 1.0)})()

    mine = fitted(MultinomGLMM, model=own, fitting_method="joint_newton")
    held = made(MultinomGLMM).sigma
    assert torch.equal(mine.sigma, held) and "sigma" not in mine.sites and "AutoNewtonMAP" in mine.engine
    assert mine.logger.converged.all() and slope(mine.model, mine.sites) <= 1e-4


def test_a_gene_that_fails_changes_no_other():
    def model(counts, design):
        """Where a gene has more than 1,000 molecules its level has no best value."""
        genes, spots, _ = counts.shape
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        with pyro.plate("genes", genes, dim=-2):
            level = pyro.sample("level", flat.expand((genes, 1)))
            run = torch.where(counts.sum((1, 2)) > 1000, 1.0, 0.0)[:, None]
            pyro.factor("away", (run * level).double())
            with pyro.plate("spots", spots, dim=-1):
                pyro.sample(
                    "counts", dist.Poisson(level.double().exp().expand(genes, spots)), obs=counts[..., 0] * (1 - run)
                )

    many = torch.cat([COUNTS, 100 * COUNTS[:1]])
    both = fitted(MultinomGLM, counts=many, design=None, model=model)
    alone = fitted(MultinomGLM, counts=COUNTS, design=None, model=model)
    assert both.logger.converged.tolist()[:2] == [True, True]
    torch.testing.assert_close(both.sites["level"][:2], alone.sites["level"], rtol=0, atol=1e-8)
    assert torch.isnan(both.bias_eta).all() and both.sites.keys() == {"level"}
    with pytest.raises(RefusedModelError, match=r"bias_eta: model has no site"):
        both.vcov()


def test_what_is_no_model_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"model: expected a Pyro model.* found int"):
        MultinomGLM(model=3)
    bound = MultinomialGLM(COUNTS, DESIGN)
    cases = {
        "samples no latent site": lambda counts, design: counts,
        "MultinomialGLM takes no argument 'counts'": bound,
        "observes nothing": lambda counts, design: pyro.sample("a", dist.Normal(0.0, 1.0)),
        "needs 'donors'": lambda counts, design, donors: None,
        "takes no argument 'design'": lambda counts: None,
        "to be something to call": type("Empty", (), {"__init__": lambda self, counts, design: None}),
    }
    for words, model in cases.items():
        with pytest.raises(InvalidArgumentError, match=words):
            made(MultinomGLM, model=model).fit(quiet=True)

    class Number(MultinomGLM):
        model = property(lambda self: 3)

    with pytest.raises(InvalidArgumentError, match="something to call, found int"):
        made(Number).fit(quiet=True)

    def shared(counts, design):
        rate = pyro.sample("rate", dist.Exponential(torch.ones(()).double()))
        pyro.sample("counts", dist.Poisson(rate.expand(counts.shape)).to_event(3), obs=counts)

    with pytest.raises(RefusedModelError, match=r"rate: shared has this latent site in no plate of the 2 genes"):
        made(MultinomGLM, model=shared).fit(quiet=True)
    with pytest.raises(RefusedModelError, match="zero_inflated has none"):
        apart = MultinomGLMM(**MARGINAL, model=zero_inflated)
        apart.setup_data(COUNTS, IdentityCovariance(9), design_mtx=DESIGN)
        apart.fit()


def test_options_that_a_model_leaves_unread_are_refused():
    priors = {"beta": dist.Normal(0.0, 1.0)}
    with pytest.raises(InvalidArgumentError, match="priors: of beta: zero_inflated takes no argument 'priors'"):
        made(MultinomGLM, model=zero_inflated, priors=priors).fit()
    with pytest.raises(InvalidArgumentError, match="likelihood=Dirichlet"):
        made(MultinomGLM, model=zero_inflated, likelihood=DirichletMultinomial(5.0)).fit()

    class Deaf(ShiftedGLM):
        def __init__(self, counts, design, *, likelihood=None, priors=None):
            super().__init__(counts, design)

    for options, words in (
        ({"priors": priors}, r"priors\['beta'\]: the model Deaf does not use it"),
        ({"likelihood": DirichletMultinomial(5.0)}, "likelihood=.*: the model Deaf does not use it"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            made(MultinomGLM, model=Deaf, **options).fit()

    class Mine(MultinomGLM):
        @property
        def model(self):
            return ShiftedGLM(self.counts, self.design_mtx, likelihood=self.likelihood)

    with pytest.raises(InvalidArgumentError, match=r"priors\['beta'\]: the model ShiftedGLM does not use it"):
        made(Mine, priors=priors).fit()
    for options, words in (
        ({}, "corr_sp: a covariance"),
        ({"share_variance": False}, "share_variance=False|corr_sp"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            made(MultinomGLMM, model=zero_inflated, **options).fit()
    apart = MultinomGLMM(model=zero_inflated, fitting_method="joint_newton")
    apart.setup_data(COUNTS, IdentityCovariance(9), design_mtx=DESIGN)
    apart.fit(quiet=True)
    assert slope(apart.model, apart.sites) <= 1e-4 and torch.isnan(apart.nu).all()


@pytest.mark.parametrize("unread", ["counts", "design_mtx", "corr_sp", "share_variance"])
def test_arguments_that_a_model_swallows_are_refused(unread):
    counts, design, space = tissue(3, 2, isoforms=3, seed=4)
    name = {"design_mtx": "design", "corr_sp": "covariance"}.get(unread, unread)
    own = {"counts": counts, "design": design, "covariance": space, "share_variance": True, "fixed": {}}

    def deaf(**given):
        return ShiftedGLMM(**{**given, name: own[name]})()

    options = {"share_variance": unread != "share_variance", "fitting_method": "joint_newton", "var_fix_sigma": False}
    model = MultinomGLMM(model=deaf, **options)
    model.setup_data(counts, space, design_mtx=design)
    with pytest.raises(InvalidArgumentError, match=f"{unread}.*: the model deaf does not use it"):
        model.fit()


def test_options_of_the_search_are_followed_or_refused():
    for configs in ({"lr": 0.1}, {"optim": "sgd"}, {"tol_relative": True}, {"patience": 9}, {"max_epochs": 0}):
        with pytest.raises(InvalidArgumentError, match=f"fitting_configs\\['{next(iter(configs))}'\\]"):
            made(MultinomGLM, model=ShiftedGLM, fitting_method="gd", fitting_configs=configs).fit()
    model = made(MultinomGLM, model=ShiftedGLM)
    with pytest.raises(InvalidArgumentError, match="store_param_history"):
        model.fit(store_param_history=True)
    both = type("Both", (MultinomGLM,), {"forward": lambda self: MultinomGLM.forward(self) + 1})
    with pytest.raises(InvalidArgumentError, match="forward: Both overrides it beside a model"):
        made(both, model=ShiftedGLM).fit()
    model.device = torch.device("cuda")
    with pytest.raises(InvalidArgumentError, match="device: a model of your own is fitted on 'cpu'"):
        model.fit()
    short = fitted(MultinomGLM, model=ShiftedGLM, fitting_configs={"max_epochs": 1})
    assert "max_epochs" in short.logger.reason
    exact = fitted(MultinomGLM, model=ShiftedGLM, fitting_method="gd", fitting_configs={"tol": 1e-14})
    assert slope(exact.model, exact.sites) <= 1e-6


def test_what_only_the_shipped_model_has_is_refused_by_name():
    model = made(MultinomGLMM, **MARGINAL, priors=WEAK, model=ShiftedGLMM)
    with pytest.raises(NotReadyError, match="ShiftedGLMM is not fitted yet"):
        model.forward()
    model = fitted(MultinomGLM, model=ShiftedGLM)
    for name in ("posterior", "posterior_problem", "prior_information", "log_prior_density"):
        with pytest.raises(RefusedModelError, match=f"{name}: .* this estimator's is ShiftedGLM"):
            getattr(model, name)()
    mixed = made(MultinomGLMM, **MARGINAL, priors=WEAK, model=ShiftedGLMM)
    for name in ("posterior_mode", "importance", "refine", "random_effect_posterior"):
        with pytest.raises(RefusedModelError, match=f"{name}: .* this estimator's is ShiftedGLMM"):
            getattr(mixed, name)()


def test_values_that_are_put_in_are_followed():
    model = fitted(MultinomGLM, model=ShiftedGLM)
    best, copied = model.forward(), model.clone()
    copied.update_params_from_dict({"bias_eta": model.bias_eta + 0.3})
    assert (copied.forward() < best).all() and torch.equal(model.forward(), best)
    torch.testing.assert_close(copied.linear_predictor(), model.linear_predictor() + 0.3)
    copied.bias_eta.requires_grad_(True)
    (gradient,) = torch.autograd.grad(copied.forward().sum(), copied.bias_eta)
    assert gradient.abs().min() > 0.1
    model.setup_data(COUNTS[:1], design_mtx=DESIGN)
    with pytest.raises(NotReadyError):
        model.vcov()


def test_weak_priors_by_name_and_free_hyper_parameters():
    for options in (
        {"priors": "weak"},
        {"likelihood": DirichletMultinomial(), "priors": {"concentration": dist.Gamma(2.0, 0.1)}},
    ):
        mine = fitted(MultinomGLM, model=ShiftedGLM, **options)
        assert mine.logger.converged.all() and slope(mine.model, mine.sites) <= 1e-4
        assert isinstance(poutine.trace(mine.model).get_trace().nodes["counts"]["fn"], SpotCounts)
    assert mine.concentration.shape == (2, 1)


def test_what_is_ones_own_is_bound():
    def scaled(counts, design, scale):
        return MultinomialGLM(counts, scale * design)()

    plain, mine = fitted(MultinomGLM), fitted(MultinomGLM, model=partial(scaled, scale=2.0))
    torch.testing.assert_close(2 * mine.beta, plain.beta.data, rtol=0, atol=1e-6)
    assert "scaled" in mine.engine


def test_an_analysis_of_many_genes_fits_it(tmp_path):
    adata = simulate_isoforms(n_spots=36, n_genes=2, covariates=("iid",), seed=0)
    mine, plain = SplisosmGLMM("glm", model=ShiftedGLM), SplisosmGLMM("glm")
    for analysis in (mine, plain):
        analysis.setup_data(adata, design_mtx="iid")
        analysis.fit(with_design_mtx=True, print_progress=False)
    assert mine.get_training_summary()["converged"].all() and "ShiftedGLM" in repr(mine)
    for name in mine.gene_names:
        found, expected = mine.get_gene_model(name), plain.get_gene_model(name)
        torch.testing.assert_close(found.bias_eta, expected.bias_eta - 2.0, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.get_isoform_ratio(), expected.get_isoform_ratio(), rtol=0, atol=1e-6)
        assert "ShiftedGLM" in found.engine
    for name in (
        "test_spatial_variability",
        "test_differential_usage",
        "covariate_modes",
        "get_effects",
        "check_calibration",
        "posterior",
        "get_fitted_ratios_anndata",
    ):
        with pytest.raises(RefusedModelError, match=f"{name}: .* this analysis is of ShiftedGLM"):
            getattr(mine, name)()
    mine.save(tmp_path / "own")
    again = SplisosmGLMM.load(tmp_path / "own", model=ShiftedGLM)
    assert again.get_training_summary().equals(mine.get_training_summary()) and repr(again) == repr(mine)
    for model, words in ((None, r"load\(path, model=ShiftedGLM\)"), (zero_inflated, "saved with ShiftedGLM, found")):
        with pytest.raises(ModelFileError, match=words):
            SplisosmGLMM.load(tmp_path / "own", model=model)
    plain.save(tmp_path / "plain")
    with pytest.raises(ModelFileError, match="saved with the shipped model"):
        SplisosmGLMM.load(tmp_path / "plain", model=ShiftedGLM)
    adata.obs["half"] = ["u", "v"] * 18
    mine.setup_data(adata, design_mtx="half")
    with pytest.raises(RefusedModelError, match="design_mtx: expected columns of numbers with ShiftedGLM"):
        mine.fit(with_design_mtx=True, print_progress=False)


@pytest.mark.parametrize("bounds", [dist.constraints.positive, dist.constraints.interval(-9.0, 0.1)])
def test_a_bounded_flat_prior_is_another_model(bounds):
    class Bounded(MultinomialGLM):
        def _sample(self, name):
            if name != "beta":
                return super()._sample(name)
            flat = dist.ImproperUniform(dist.constraints.independent(bounds, 2), (2,), self.priors["beta"].event_shape)
            return pyro.sample("beta", flat)

    for design in (DESIGN, -DESIGN):
        model = fitted(MultinomGLM, design=design, model=Bounded)
        assert "Bounded" in model.engine and bounds.check(model.beta).all()


class RenamedSigma(MultinomialGLMM):
    """σ under another name, so that one that is held is not read."""

    def sample_latents(self):
        values = {name: self._sample(name) for name in self.priors if name != "sigma"}
        prior = dist.Exponential(torch.ones(len(self.counts), 1, dtype=torch.float64)).to_event(1)
        values["sigma"] = pyro.sample("deviation", prior)
        return {**values, "nu": pyro.sample("nu", self.effect(values))}


def test_a_held_site_that_the_model_does_not_read_is_no_number():
    model = MultinomGLMM(fitting_method="marginal_newton", model=RenamedSigma)
    model.setup_data(COUNTS, CAR)
    model.fit(quiet=True)
    assert model.sigma.isnan().all() and model.var_total().isnan().all()
    assert torch.isfinite(model.sites["deviation"]).all()


def transposed(counts, design):
    """Coefficients as logits times covariates."""
    genes, _, isoforms = counts.shape
    logits, covariates = isoforms - 1, design.shape[1]
    with pyro.plate("genes", genes, dim=-1):
        bias = pyro.sample("bias_eta", dist.Normal(torch.zeros(genes, logits).double(), 30.0).to_event(1))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(genes, logits, covariates).double(), 30.0).to_event(2))
    with pyro.plate("rows", genes, dim=-2), pyro.plate("spots", counts.shape[1], dim=-1):
        eta = bias.unsqueeze(-2) + design @ beta.mT
        pyro.sample("counts", SpotCounts(Multinomial(), counts.sum(-1), eta, isoforms), obs=counts)


def test_coefficients_in_another_order_have_no_standard_errors():
    counts = torch.poisson(torch.full((1, 30, 4), 5.0, dtype=torch.float64))
    model = MultinomGLM(model=transposed)
    model.setup_data(counts, design_mtx=torch.randn(30, 2, dtype=torch.float64))
    model.fit(quiet=True)
    with pytest.raises(RefusedModelError, match="beta: expected"):
        model.vcov()


def test_genes_without_an_optimum_have_the_reason_of_the_shipped_fit():
    counts = torch.poisson(torch.full((3, 30, 3), 5.0, dtype=torch.float64))
    counts[1, :, 0], counts[2] = 0, 0
    for kind in (None, ShiftedGLM):
        model = MultinomGLM(model=kind)
        model.setup_data(counts)
        model.fit(quiet=True)
        assert model.logger.reason == ["converged", "separated", "no_counts"], kind


@pytest.mark.parametrize("unit", [1e-6, 1.0])
def test_the_unit_of_a_covariate_separates_no_gene(unit):
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((2, 60, 3), 5.0, dtype=torch.float64), generator=generator)
    counts[1, :, 0] = 0
    model = MultinomGLM(model=ShiftedGLM)
    model.setup_data(counts, design_mtx=unit * torch.randn(60, 1, dtype=torch.float64, generator=generator))
    model.fit(quiet=True)
    assert model.logger.reason == ["converged", "separated"]
