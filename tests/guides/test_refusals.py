"""What the guides refuse, and that the message names the part."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from pyrosplice.guides import AutoMarginalLaplace, AutoNewtonMAP, AutoUnitNormal, FitOptions
from tests.guides.test_closed_forms import draws, normal_normal

y = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.6], dtype=torch.float64)


def ones(like):
    return torch.ones(len(like), dtype=torch.float64)


def shared(y):
    mu = pyro.sample("mu", dist.Normal(0.0 * ones(y)[0], 1.0))
    with pyro.plate("genes", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("b", dist.Normal(mu, 1.0)), 1.0), obs=y)


def coupled(y):
    with pyro.plate("genes", len(y)):
        b = pyro.sample("b", dist.Normal(0 * ones(y), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(b.cumsum(0), 1.0), obs=y)


def weakly_coupled(y):
    with pyro.plate("genes", len(y)):
        b = pyro.sample("b", dist.Normal(0 * ones(y), 1.0))
        pyro.sample("obs", dist.Normal(b + 1e-4 * b.roll(1), 1.0), obs=y)


def coupled_in_a_factor(y):
    with pyro.plate("genes", len(y)):
        b = pyro.sample("b", dist.Normal(0 * ones(y), 1.0))
        pyro.sample("obs", dist.Normal(b, 1.0), obs=y)
    pyro.factor("penalty", -b.sum().square())


def subsampled(y):
    with pyro.plate("genes", len(y), subsample_size=2) as rows:
        b = pyro.sample("b", dist.Normal(0 * ones(y)[:2], 1.0))
        pyro.sample("obs", dist.Normal(b, 1.0), obs=y[rows])


def sequential(y):
    for i in pyro.plate("genes", len(y)):
        pyro.sample(f"obs{i}", dist.Normal(pyro.sample(f"b{i}", dist.Normal(0.0, 1.0)), 1.0), obs=y[i])


def poisson_latent(y):
    with pyro.plate("genes", len(y)):
        k = pyro.sample("k", dist.Poisson(ones(y)))
        pyro.sample("obs", dist.Normal(pyro.sample("b", dist.Normal(0 * ones(y), 1.0)) + k, 1.0), obs=y)


def parameter(y):
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("genes", len(y)):
        pyro.sample("obs", dist.Normal(pyro.sample("b", dist.Normal(0 * ones(y), 1.0)), scale), obs=y)


def nothing_latent(y):
    with pyro.plate("genes", len(y)):
        pyro.sample("obs", dist.Normal(0 * ones(y), 1.0), obs=y)


def outside_support(y):
    with pyro.plate("genes", len(y)):
        pyro.sample("obs", dist.LogNormal(pyro.sample("b", dist.Normal(0 * ones(y), 1.0)), 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (shared, "mu: .*shared by all of its units.*units=None"),
        (coupled, "obs: .*couples its units.*units=None"),
        (weakly_coupled, "obs: .*couples its units"),
        (coupled_in_a_factor, "penalty: .*is in no plate"),
        (subsampled, "plate 'genes': subsampled, 2 of 5"),
        (poisson_latent, "k: .*cannot be enumerated"),
        (parameter, "scale: pyro.param"),
        (nothing_latent, "no continuous latent site"),
    ],
)
def test_parts_of_a_model_are_named(model, words):
    pyro.clear_param_store()
    with pytest.raises(RefusedModelError, match=words):
        AutoNewtonMAP(model).fit(y)


def test_sequential_plates():
    with pytest.raises(NotImplementedError, match="sequential"):
        AutoNewtonMAP(sequential).fit(y)


def test_a_first_point_without_a_density():
    with (
        pyro.validation_enabled(False),
        pytest.raises(RefusedModelError, match=r"obs: .*not finite at the first point"),
    ):
        AutoNewtonMAP(outside_support).fit(y)


@pytest.mark.parametrize("model", [shared, coupled, weakly_coupled, coupled_in_a_factor])
def test_what_is_refused_by_unit_is_fitted_as_one_problem(model):
    guide = AutoNewtonMAP(model, units=None).fit(y)
    assert guide.converged.all() and len(guide.report()) == 1
    at = {name: value.requires_grad_(True) for name, value in guide.median().items()}
    total = pyro.poutine.trace(pyro.poutine.condition(model, data=at)).get_trace(y).log_prob_sum()
    assert max(float(slope.abs().max()) for slope in torch.autograd.grad(total, list(at.values()))) < 1e-9


def test_names_of_sites_and_plates():
    data = draws()
    with pytest.raises(RefusedModelError, match=r"'efect' is no latent site.*'effect'"):
        AutoMarginalLaplace(normal_normal, ["efect"]).fit(data)
    with pytest.raises(RefusedModelError, match="'y' is no latent site"):
        AutoMarginalLaplace(normal_normal, ["y"]).fit(data)
    with pytest.raises(RefusedModelError, match=r"units: .*'genes'.*found 'gene'"):
        AutoMarginalLaplace(normal_normal, ["effect"], units="gene").fit(data)
    for names in ("effect", []):
        with pytest.raises(InvalidArgumentError, match="marginalize: expected a list"):
            AutoMarginalLaplace(normal_normal, names)
    with pytest.raises(InvalidArgumentError, match="outer"):
        AutoMarginalLaplace(normal_normal, ["effect"], outer="normal")


def test_paths():
    with pytest.raises(InvalidArgumentError, match="path"):
        AutoNewtonMAP(normal_normal).fit(draws(), path="fast")
    with pytest.raises(RefusedModelError, match=r"path='engine': .*AutoNewtonMAP integrates nothing.*path='generic'"):
        AutoNewtonMAP(normal_normal).fit(draws(), path="engine")
    guide = AutoNewtonMAP(normal_normal)
    with pytest.raises(NotReadyError):
        guide.median()
    with pytest.raises(NotReadyError):
        guide.path  # noqa: B018


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"max_iter": 0}, {"restarts": -1}, {"starts": 1.5}])
def test_options(wrong):
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        FitOptions(**wrong)


def test_values_of_log_marginal():
    guide = AutoMarginalLaplace(normal_normal, ["effect"]).fit(draws())
    at = {name: value for name, value in guide.median().items() if name != "effect"}
    with pytest.raises(InvalidArgumentError, match="values: expected the sites"):
        guide.log_marginal({"sd": at["sd"]})
    with pytest.raises(InvalidArgumentError, match=r"'sd'.*shape"):
        guide.log_marginal({**at, "sd": at["sd"][:1]})
    with pytest.raises(InvalidArgumentError, match="quantiles"):
        guide.quantiles([1.5])


def test_a_guide_without_data_says_how_one_with_them_is_made():
    def plain(y):
        with pyro.plate("genes", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0 * ones(y), 1.0)), 1.0), obs=y)

    fitted = AutoNewtonMAP(plain).fit(y)
    with pytest.raises(NotReadyError, match=r"AutoUnitNormal.take: .* call laplace_approximation\(\*data\)"):
        AutoUnitNormal(plain).take(fitted)
    gaussian = fitted.laplace_approximation(y)
    gaussian.take(fitted)
    assert torch.equal(gaussian.optimum.value, fitted.optimum.value)
    with pytest.raises(NotReadyError, match="call fit first"):
        gaussian.take(AutoNewtonMAP(plain))
