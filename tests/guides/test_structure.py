"""What the guides find out about a model: units, precisions, sparsity, coordinates, floating point."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosplice.guides import AutoMarginalLaplace, AutoNewtonMAP, DiagonalPrecision, FitOptions, precision
from pyrosplice.guides._bijections import bijection
from pyrosplice.guides._curvature import Curvature
from pyrosplice.guides._first_points import init_to_center
from pyrosplice.guides._separate_units import unit_density
from pyrosplice.guides._sparsity import dependence
from pyrosplice.guides._unit_density import ModelCall
from tests.guides.test_closed_forms import draws


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["positive_definite", "lower_cholesky"])
def test_coordinates_of_matrices(kind, size):
    transform = bijection(getattr(dist.constraints, kind))
    x = torch.randn(size * (size + 1) // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x)
    rows, columns = torch.tril_indices(size, size)
    jacobian = torch.autograd.functional.jacobian(lambda z: transform(z)[rows, columns], x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(40, 8), (5, 12)])
def test_dependence_is_the_pattern_of_the_jacobian(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    n_columns = shape[1]
    weights = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    weights *= torch.rand(shape, generator=generator) < (0.1, 0.3, 0.5, 0.9, 0.02)[seed]
    x = torch.randn(3, n_columns, generator=generator, dtype=torch.float64).requires_grad_(True)
    term = (weights * x[:, None]).sum(-1).sin()
    found = dependence(term, x, torch.arange(n_columns)).toarray()
    assert (found == (weights != 0).any(0).numpy()).all()


def crossed(y, batch, donor):
    genes = len(y)
    with pyro.plate("genes", genes, dim=-2):
        sd = pyro.sample("sd", dist.HalfNormal(torch.ones(genes, 1).double()))
        with pyro.plate("batches", 2, dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, sd))
        with pyro.plate("donors", 4, dim=-1):
            b = pyro.sample("b", dist.Normal(0.0, 0.5 + 0 * sd))
        with pyro.plate("cells", y.shape[1], dim=-1):
            pyro.sample("y", dist.Poisson((a[:, batch] + b[:, donor]).exp()), obs=y)


def nested(y):
    genes = len(y)
    with pyro.plate("genes", genes, dim=-2):
        sd = pyro.sample("sd", dist.HalfNormal(torch.ones(genes, 1).double()))
        with pyro.plate("cells", y.shape[1], dim=-1):
            u = pyro.sample("u", dist.Normal(0.0, sd))
            t = pyro.sample("t", dist.Normal(u, 0.3))
            pyro.sample("y", dist.Poisson(t.exp()), obs=y)


def density_of(model, *args):
    return unit_density(ModelCall(model, args), "auto", frozenset(), init=init_to_center)


@pytest.mark.parametrize("inner", [("a", "b"), ("a",), ("sd", "a", "b")])
def test_the_hessian_is_that_of_autograd(inner):
    y = torch.poisson(torch.full((3, 24), 2.0), generator=torch.Generator().manual_seed(0)).double()
    density = density_of(crossed, y, torch.arange(24) % 2, torch.arange(24) // 6)
    fine, plain = (Curvature(density, inner, use_structure=use) for use in (True, False))
    assert fine.layout.n_products == (1 if inner == ("a",) else plain.layout.n_products)
    point = density.start + 0.2 * torch.randn(density.start.shape, generator=torch.Generator().manual_seed(1))
    outer, at = point[:, fine.rest], point[:, fine.columns]
    a, b = fine.expand(outer, at), plain.expand(outer, at)
    torch.testing.assert_close(fine.dense(a.hessian), plain.dense(b.hessian))
    torch.testing.assert_close(a.gradient, b.gradient)
    right = torch.randn(3, fine.size, 2, dtype=torch.float64)
    torch.testing.assert_close(fine.solve(a.hessian, right), plain.solve(b.hessian, right))


@pytest.mark.slow
def test_a_precision_that_is_not_the_curvature_is_noticed():
    y = torch.poisson(torch.ones(3, 10), generator=torch.Generator().manual_seed(0)).double()
    guide = AutoMarginalLaplace(nested, ["u", "t"]).fit(y)
    assert "precision of u known" in guide.path and "t: the registered precision of Normal" in guide.path
    assert "10 blocks of up to 2" in guide.path and guide.converged.all()


class Wrong(dist.Normal):
    """A distribution whose registered precision is wrong."""


precision.register(Wrong)(lambda fn: DiagonalPrecision(2 * fn.scale**-2))


def test_a_wrong_registered_precision_is_not_used():
    def model(y):
        with pyro.plate("genes", len(y), dim=-2), pyro.plate("cells", y.shape[1], dim=-1):
            effect = pyro.sample("effect", Wrong(torch.zeros(y.shape).double(), torch.ones(y.shape).double()))
            pyro.sample("y", dist.Normal(effect, 0.5), obs=y)

    y = draws()
    guide = AutoMarginalLaplace(model, ["effect"]).fit(y)
    assert "registered precision of Wrong is not the curvature" in guide.path
    torch.testing.assert_close(guide.median()["effect"], y / 1.25)


@pytest.mark.parametrize("units", ["auto", "donors", "genes", None])
def test_nested_plates(units):
    def model(y):
        with pyro.plate("donors", 3, dim=-2), pyro.plate("genes", 4, dim=-1):
            mean = pyro.sample("mean", dist.Normal(torch.zeros(3, 4).double(), 2.0))
            pyro.sample("y", dist.Normal(mean, 1.0).expand([3, 4]), obs=y)

    y = torch.randn(3, 4, dtype=torch.float64)
    guide = AutoNewtonMAP(model, units=units).fit(y)
    assert len(guide.report()) == {"auto": 4, "donors": 3, "genes": 4, None: 1}[units]
    torch.testing.assert_close(guide.median()["mean"], 0.8 * y)


def test_no_plate():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2).to(x), 10.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ slope, 1.0).to_event(1), obs=y)

    x, y = torch.randn(20, 2, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    guide = AutoNewtonMAP(model).fit(x, y)
    assert "one problem" in guide.path
    exactly = torch.linalg.solve(x.T @ x + torch.eye(2) / 100, x.T @ y)
    torch.testing.assert_close(guide.median()["slope"], exactly)


def test_float32_is_worked_on_in_float64():
    def model(x, y):
        genes = len(y)
        with pyro.plate("genes", genes, dim=-2):
            slope = pyro.sample("slope", dist.Normal(torch.zeros(genes, 1, 2), 3.0).to_event(1))
            eta = slope.squeeze(-2) @ x.T
            with pyro.plate("cells", y.shape[1], dim=-1):
                pyro.sample("y", dist.Poisson(eta.exp()), obs=y)

    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(50, 1), torch.randn(50, 1, generator=generator)], 1)
    y = torch.poisson((x @ torch.tensor([[2.0, 1.0], [0.5, 0.3]])).exp().T, generator=generator)
    guide = AutoNewtonMAP(model).fit(x, y)
    assert guide.median()["slope"].dtype == torch.float32
    assert guide.converged.all() and float(guide.report().gradient_norm.max()) < 1e-8
    double = torch.float64
    torch.set_default_dtype(double)
    try:
        exactly = AutoNewtonMAP(model).fit(x.double(), y.double())
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(guide.loc.detach(), exactly.loc.detach(), atol=1e-10, rtol=0)
    drawn = pyro.infer.Predictive(pyro.poutine.uncondition(model), guide=guide, num_samples=2)(x, y)
    assert drawn["y"].dtype == torch.float32


@pytest.mark.slow
def test_units_that_fail_do_not_disturb_others():
    def model(y):
        with pyro.plate("genes", len(y), dim=-2):
            mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
            sd = pyro.sample("sd", dist.ImproperUniform(dist.constraints.positive, (), ()))
            with pyro.plate("cells", y.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(mean, sd), obs=y)

    y = draws(3, 10)
    alone = AutoNewtonMAP(model).fit(y[:2])
    y[2] = 1.0  # without a spread, of which the density grows without bound
    together = AutoNewtonMAP(model).fit(y, options=FitOptions(restarts=1))
    assert together.converged.tolist() == [True, True, False]
    assert together.report().attempts.tolist() == [1, 1, 2]
    torch.testing.assert_close(together.objective[:2], alone.objective)
