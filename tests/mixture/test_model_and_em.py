"""The engine equals the Pyro model; EM equals its gradient; both equal independent software."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import invwishart

from pyrosplice import GaussianMixture
from pyrosplice._mixture.em.loop import EMOptions
from pyrosplice._mixture.em.missing import missing_log_joint
from pyrosplice._mixture.em.one_fit import MixtureForm, Problem
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.starts import nearest_mean_table
from pyrosplice._mixture.em.sufficient_statistics import bounded_responsibilities_, inner_products, responsibilities_
from pyrosplice._mixture.em.triangular import TriangularExpectation
from pyrosplice._mixture.gaussian_mixture import log_joint, log_prior
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.priors._inverse_wishart import InverseWishart
from tests.mixture.helpers import F64, brute_force, clouds, some_parameters
from tests.paths import shared

PRIOR = MixturePrior(
    concentration=2.0,
    mean=torch.tensor([0.5, -0.5, 1.0], dtype=F64),
    mean_strength=1.5,
    covariance_dof=6.0,
    covariance_scale=torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 1.5]], dtype=F64),
)


def problem(x, kind, *, prior=None, regularization=0.0, size=64, missing=False, weights=None):
    rows = RowBlocks.from_tensor(torch.as_tensor(x, dtype=F64), size=size, weights=weights)
    return Problem.of(rows, MixtureForm(kind, prior, regularization), missing=missing)


def lead(parameters):
    return parameters.select((None, None))


def first(parameters):
    return parameters.select((torch.tensor(0), torch.tensor(0)))


def sites(parameters):
    return {n: getattr(parameters, n) for n in ("weights", "means", "covariances")}


def test_inverse_wishart_density_and_draws_agree_with_scipy():
    scale = PRIOR.covariance_scale
    ours = InverseWishart(7.0, scale)
    generator = torch.Generator().manual_seed(0)
    draws = ours.draw((20000,), generator=generator)
    theirs = invwishart(df=7, scale=scale.numpy())
    expected = [theirs.logpdf(d.numpy()) for d in draws[:5]]
    np.testing.assert_allclose(ours.log_prob(draws[:5]).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(draws.mean(0).numpy(), scale.numpy() / 3, atol=0.03)


@pytest.mark.parametrize("dim", [1, 3])
def test_moments_of_inverse_wisharts_are_those_of_scipy_or_missing(dim):
    scale = torch.eye(dim, dtype=F64) + 0.3
    dof = torch.tensor([dim + 1.5, dim + 4.0, dim + 1.0, dim - 0.5, -(dim + 1.0)], dtype=F64)
    prior = InverseWishart(dof, scale)
    for k in range(2):
        known = invwishart(float(dof[k]), scale.numpy())
        np.testing.assert_allclose(prior.mean[k], np.reshape(known.mean(), (dim, dim)))
        np.testing.assert_allclose(prior.mode[k], np.reshape(known.mode(), (dim, dim)))
    assert prior.mean[2:].isnan().all() and prior.mode[4].isnan().all() and prior.mode[3].isfinite().all()
    for k, step in ((3, 1.001), (3, 0.999)):  # a penalty has its mode there too
        density = InverseWishart(dof[k], scale)
        assert density.log_prob(density.mode) > density.log_prob(density.mode * step)
    assert InverseWishart(dim + 3.0, scale.float()).mean.dtype == torch.float32


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float64])
def test_noise_of_any_type_is_placed_in_that_of_the_model(kind, dtype, model_dtype):
    x = np.random.default_rng(0).normal(size=(60, 2)) + 8 * (np.arange(60)[:, None] % 2)
    mixture = GaussianMixture(2, covariance_type=kind, random_state=0).fit(x)
    model = mixture.model_.to(model_dtype)
    noise = torch.linspace(-1, 1, 10).reshape(5, 2).to(dtype)
    component = torch.tensor([0, 1, 0, 1, 1])
    cells = model.place(component, noise)
    assert cells.dtype == model_dtype
    torch.testing.assert_close(cells, model.place(component, noise.to(model_dtype)))


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("prior", [MixturePrior(), PRIOR], ids=["flat", "conjugate"])
def test_engine_is_the_log_joint_of_the_pyro_model(kind, prior):
    x, _ = clouds(150, 3, 3)
    parameters = some_parameters(kind, 3, 3)
    p = problem(x, kind, prior=prior)
    standard = p.standardization.forward(lead(parameters))
    engine = float(p.expectation(standard)[0]) + float(log_prior(parameters, prior))
    specified = float(log_joint(sites(parameters), torch.tensor(x), covariance_type=kind, prior=prior))
    assert engine == pytest.approx(specified, abs=1e-9, rel=1e-12)
    if prior.is_flat:
        assert engine - float(log_prior(parameters, prior)) == pytest.approx(brute_force(parameters, x).sum(), abs=1e-8)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_penalty_is_the_log_prior_up_to_a_constant(kind):
    x, _ = clouds(80, 3, 3)
    p = problem(x, kind, prior=PRIOR)
    gaps = []
    for seed in (1, 2):
        parameters = some_parameters(kind, 3, 3, seed=seed)
        kernel = p.penalty.log_density(p.standardization.forward(lead(parameters)))
        gaps.append(float(kernel) - float(log_prior(parameters, PRIOR)))
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-9)


def _unconstrained(parameters):
    kind = parameters.covariance_type
    matrix = kind in ("full", "tied")
    shape = torch.linalg.cholesky(parameters.covariances) if matrix else parameters.covariances.log()
    return [
        t.clone(memory_format=torch.contiguous_format).requires_grad_(True)
        for t in (parameters.weights.log(), parameters.means, shape)
    ]


def _constrained(free, kind):
    logits, means, shape = free
    covariances = shape.tril() @ shape.tril().mT if kind in ("full", "tied") else shape.exp()
    return {"weights": logits.softmax(-1), "means": means, "covariances": covariances}


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("prior", [MixturePrior(), PRIOR], ids=["flat", "conjugate"])
def test_em_stops_where_the_gradient_of_the_model_does(kind, prior):
    x, labels = clouds(120, 3, 2, seed=3)
    p = problem(x, kind, prior=prior)
    fitted = first(p.run(p.standardization.forward(lead(_rough_start(x, labels, kind))), TIGHT).parameters)
    data = torch.tensor(x)
    start = some_shift(fitted)
    free = _unconstrained(start)
    optimizer = torch.optim.LBFGS(
        free, max_iter=400, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -log_joint(_constrained(free, kind), data, covariance_type=kind, prior=prior)
        value.backward()
        return value

    optimizer.step(loss)
    found = _constrained([f.detach() for f in free], kind)
    at_gradient = float(log_joint(found, data, covariance_type=kind, prior=prior))
    at_em = float(log_joint(sites(fitted), data, covariance_type=kind, prior=prior))
    assert at_em == pytest.approx(at_gradient, abs=1e-6)
    torch.testing.assert_close(found["means"], fitted.means, atol=1e-4, rtol=1e-4)


TIGHT = EMOptions(max_iter=5000, tolerance=1e-14)


def _rough_start(x, labels, kind):
    k = labels.max() + 1
    means = torch.tensor(np.stack([x[labels == j].mean(0) for j in range(k)]))
    template = some_parameters(kind, x.shape[1], k)
    return type(template)(torch.full((k,), 1 / k, dtype=F64), means, template.covariances, kind)


def some_shift(parameters):
    return type(parameters)(
        parameters.weights, parameters.means + 0.1, parameters.covariances * 1.3, parameters.covariance_type
    )


def gold_start(frame, kind):
    """Problem and start from the hard labels of a gold data set."""
    x = torch.tensor(frame.filter(regex=r"^v\d").to_numpy(float))
    labels = torch.tensor(frame["init_label"].to_numpy())
    p = problem(x, kind, size=100)
    k, total = int(labels.max()) + 1, len(x)
    members = [x[labels == j] for j in range(k)]
    full = torch.stack([torch.cov(m.T, correction=0) for m in members])
    weights = torch.tensor([len(m) / total for m in members], dtype=F64)
    values = {
        "full": full,
        "tied": (weights[:, None, None] * full).sum(0),
        "diag": full.diagonal(dim1=1, dim2=2),
        "spherical": full.diagonal(dim1=1, dim2=2).mean(1),
    }
    template = some_parameters(kind, x.shape[1], k)
    start = type(template)(weights, torch.stack([m.mean(0) for m in members]), values[kind], kind)
    return p, p.standardization.forward(lead(start))


def test_log_likelihood_and_means_of_every_gold_row():
    fits = pd.read_csv(shared("gold", "c_gmm_sklearn_fit.csv"))
    means = pd.read_csv(shared("gold", "c_gmm_mclust_params.csv")).query("what == 'mean'")
    for row in fits.itertuples():
        frame = pd.read_csv(shared("gold", f"gmm_{row.set}.csv"))
        p, start = gold_start(frame, row.cov)
        result = p.run(start, EMOptions(max_iter=5000, tolerance=1e-15))
        assert float(result.log_likelihood) == pytest.approx(row.sklearn_loglik, abs=1e-6), (row.set, row.cov)
        assert bool(result.converged)
        found = first(result.parameters).means.numpy()
        for entry in means[(means["set"] == row.set) & (means["cov"] == row.cov)].itertuples():
            gap = np.abs(found[:, entry.i] - entry.value).min()
            assert gap < 1e-4, (row.set, row.cov, entry.comp, entry.i)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_blocks_add_up_to_the_same_fit(kind):
    x, labels = clouds(500, 4, 3)
    x = x[np.argsort(labels)]
    fits = []
    for size in (500, 64, 7):
        p = problem(x, kind, size=size)
        start = p.standardization.forward(lead(some_parameters(kind, 4, 3)))
        fits.append(first(p.run(start, EMOptions(max_iter=30, tolerance=0.0)).parameters))
    for other in fits[1:]:
        torch.testing.assert_close(fits[0].means, other.means, rtol=0, atol=1e-9)
        torch.testing.assert_close(fits[0].covariances, other.covariances, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_cells_out_of_the_range_of_exponentials_are_exact(kind):
    x, _ = clouds(201, 3, 2)
    x[::50] += 1e5
    parameters = some_parameters(kind, 3, 2)
    p = problem(x, kind)
    total = float(p.expectation(p.standardization.forward(lead(parameters)))[0])
    assert total == pytest.approx(brute_force(parameters, x).sum(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_responsibilities_without_the_largest_score_are_those_with_it(dtype):
    values = [[0.0, -300.0, -900.0, 800.0, -60.0], [-1.0, -290.0, -905.0, 799.0, -1e30]]
    table, features = torch.tensor([values], dtype=dtype), torch.eye(5, dtype=dtype)[None]
    careful, fast = table[None].clone(), table[None].clone()
    logs = responsibilities_(careful)
    torch.testing.assert_close(bounded_responsibilities_(fast, table, features), logs)
    torch.testing.assert_close(fast, careful)


@pytest.mark.parametrize(("sets", "cells", "width"), [(1, 3, 4), (1, 1001, 4), (1, 64, 60), (3, 100, 4)])
def test_products_in_pieces_are_the_products(sets, cells, width):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(sets, m, cells, dtype=F64, generator=generator) for m in (2, width))
    torch.testing.assert_close(inner_products(a, b), torch.einsum("smn,spn->smp", a, b), rtol=1e-13, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_triangular_e_step_is_the_quadratic_one(weighted):
    x, _ = clouds(300, 5, 3, seed=2)
    weights = torch.linspace(0, 2, 300, dtype=F64) if weighted else None
    quadratic = problem(x, "full", weights=weights)
    own = quadratic.starter
    triangular = TriangularExpectation(own.rows, own.standardization, "full", own.total_squares(1)[:, 0] / 300)
    parameters = quadratic.standardization.forward(lead(some_parameters("full", 5, 3)))
    for a, b in zip(own(parameters)[:2], triangular(parameters)[:2], strict=True):
        for ours, theirs in zip(*(vars(m).values() if not torch.is_tensor(m) else [m] for m in (a, b)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)
    means = torch.randn(1, 2, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    table = nearest_mean_table(means, torch.ones(1, 2, 3, dtype=torch.bool), own)
    for ours, theirs in zip(
        vars(own.hard_moments(table)).values(), vars(triangular.hard_moments(table)).values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


def test_many_dimensions_take_the_triangular_way():
    x, labels = clouds(600, 70, 2, seed=2)
    p = problem(x, "full", regularization=1e-3)
    assert isinstance(p.expectation, TriangularExpectation)
    template = some_parameters("full", 70, 2)
    means = torch.tensor(np.stack([x[labels == j].mean(0) for j in (0, 1)]))
    start = type(template)(template.weights, means, torch.eye(70, dtype=F64).expand(2, 70, 70), "full")
    result = p.run(p.standardization.forward(lead(start)), EMOptions(max_iter=5, tolerance=0))
    expected = brute_force(first(result.parameters), x).sum()
    assert float(result.log_likelihood) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_missing_values_are_marginalized(kind):
    x, _ = clouds(60, 3, 2, seed=5)
    rng = np.random.default_rng(6)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[0] = np.nan
    parameters = some_parameters(kind, 3, 2)
    joint = missing_log_joint(parameters, torch.tensor(x)).logsumexp(1)
    np.testing.assert_allclose(joint.numpy(), brute_force(parameters, x), atol=1e-9)
    p = problem(x, kind, missing=True)
    total = float(p.expectation(p.standardization.forward(lead(parameters)))[0])
    assert total == pytest.approx(brute_force(parameters, x).sum(), abs=1e-8)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_missing_e_step_without_missing_values_is_the_fast_one(kind):
    x, _ = clouds(90, 3, 2, seed=5)
    parameters = lead(some_parameters(kind, 3, 2))
    results = [problem(x, kind, missing=m, regularization=1e-3) for m in (False, True)]
    fits = [
        first(p.run(p.standardization.forward(parameters), EMOptions(max_iter=5, tolerance=0)).parameters)
        for p in results
    ]
    torch.testing.assert_close(fits[0].means, fits[1].means, rtol=0, atol=1e-9)
    torch.testing.assert_close(fits[0].covariances, fits[1].covariances, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_em_with_missing_values_only_ever_climbs(kind):
    x, _ = clouds(200, 3, 2, seed=8)
    x[np.random.default_rng(1).random(x.shape) < 0.25] = np.nan
    p = problem(x, kind, missing=True)
    parameters = p.standardization.forward(lead(some_parameters(kind, 3, 2)))
    path = [float(p.run(parameters, EMOptions(max_iter=n, tolerance=-1.0)).log_likelihood) for n in (0, 1, 2, 5, 15)]
    assert all(b > a for a, b in pairwise(path))


def test_a_weight_of_two_is_a_cell_twice():
    x, _ = clouds(80, 2, 2)
    weights = torch.ones(80, dtype=F64)
    weights[::3] = 2
    start = lead(some_parameters("full", 2, 2))
    weighted = problem(x, "full", weights=weights)
    repeated = problem(np.repeat(x, weights.int().numpy(), axis=0), "full")
    fits = [p.run(p.standardization.forward(start), EMOptions(max_iter=20, tolerance=0)) for p in (weighted, repeated)]
    torch.testing.assert_close(fits[0].log_likelihood, fits[1].log_likelihood, rtol=1e-12, atol=0)
    torch.testing.assert_close(first(fits[0].parameters).means, first(fits[1].parameters).means, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"covariance_dof": 3.0},
        {"mean_strength": 1.0},
        {"concentration": 0.0},
    ],
)
def test_half_a_prior_is_refused(options):
    with pytest.raises(InvalidArgumentError):
        MixturePrior(**options)


def test_an_improper_prior_is_a_penalty_with_the_mode_it_says():
    x, _ = clouds(40, 3, 1, seed=2)
    scale = torch.eye(3, dtype=F64)
    prior = MixturePrior(covariance_dof=-2.0, covariance_scale=2 * scale)
    p = problem(x, "full", prior=prior)
    start = p.standardization.forward(lead(some_parameters("full", 3, 1)))
    found = first(p.run(start, EMOptions(tolerance=0.0, max_iter=2)).parameters).covariances[0]
    scatter = torch.tensor(40 * np.cov(x.T, bias=True))
    torch.testing.assert_close(found, (2 * scale + scatter) / 42, rtol=1e-9, atol=1e-9)
    with pytest.raises(InvalidArgumentError, match="covariance_dof"):
        problem(x, "full", prior=MixturePrior(covariance_dof=-4.0, covariance_scale=scale))
    with pytest.raises(InvalidArgumentError, match="covariance_dof"):
        problem(x, "diag", prior=MixturePrior(covariance_dof=-1.0, covariance_scale=scale))


def test_prior_sites_are_pyro_distributions():
    for kind, shape in (("full", (3, 3)), ("tied", (3, 3)), ("diag", (3,)), ("spherical", ())):
        known = PRIOR.by_site(2, 3, kind)
        assert isinstance(known["weights"], dist.Dirichlet) and known["weights"].event_shape == (2,)
        assert isinstance(known["covariances"], InverseWishart if len(shape) == 2 else dist.InverseGamma)
        assert known["covariances"].shape() == shape and known["means"].shape() == (3,)
