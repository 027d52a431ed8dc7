"""The engine against the Pyro model, autograd, gold fits and itself on other paths to the same rows."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from pyro.infer import Trace_ELBO

from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.engine.count_table import rising_terms
from pyrosplice._expression.engine.gene_fits import fit_glm
from pyrosplice._expression.engine.joint_newton import derivatives
from pyrosplice._expression.engine.laplace_guide import fit_mode, gene_log_density, log_prior
from pyrosplice._expression.engine.row_source import Design, RowSource
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice._expression.noise_models import NOISE_MODELS
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.likelihoods import Likelihood, NegativeBinomial, Poisson
from tests.paths import shared


def simulate(n=400, g=6, *, seed=0, continuous=False, scale_groups=False):
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), np.arange(n) % 2, rng.normal(size=n) if continuous else (np.arange(n) // 2) % 2])
    z = np.column_stack([np.ones(n), np.arange(n) % 2]) if scale_groups else np.ones((n, 1))
    offset = rng.normal(0, 0.4, n)
    a = np.column_stack([rng.normal(1, 0.5, g), rng.normal(0, 0.5, (g, 2))])
    r = np.exp(z @ np.array([0.5, 0.7])[: z.shape[1]])
    mean = np.exp(a @ x.T + offset)
    y = rng.poisson(rng.gamma(r, mean / r)).T.astype(float)
    return y, Design(x, z, offset, np.zeros(n))


def pyro_model(design, noise, **prior):
    t = [torch.as_tensor(np.ascontiguousarray(v)) for v in (design.x, design.z)]
    return ExpressionModel(*t, likelihood=noise, offset=torch.as_tensor(design.offset), **prior)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("scale_groups", [False, True])
@pytest.mark.parametrize("noise", ["nb", "poisson", "norm"])
def test_density_and_derivatives_are_those_of_the_pyro_model(noise, continuous, scale_groups):
    y, design = simulate(continuous=continuous, scale_groups=scale_groups)
    kind = NOISE_MODELS[noise]()
    rows = RowSource(CountMatrix(y), design, kind).rows(np.arange(y.shape[1]))
    assert (rows.total.shape[1] < len(y)) == (not continuous and noise != "norm")
    theta = torch.tensor(np.random.default_rng(1).normal(0.3, 0.4, (y.shape[1], design.x.shape[1] + design.z.shape[1])))
    model, counts = pyro_model(design, kind), torch.as_tensor(y.T.copy())

    def density(t):
        return gene_log_density(model, counts, t)

    d = derivatives(rows, kind, theta)
    torch.testing.assert_close(d.value, density(theta), rtol=1e-11, atol=1e-9)
    gradient = torch.autograd.functional.jacobian(lambda t: density(t).sum(), theta)
    torch.testing.assert_close(d.gradient, gradient, rtol=1e-9, atol=1e-8)
    hessian = torch.autograd.functional.hessian(lambda t: density(t[None].expand(y.shape[1], -1))[2], theta[2])
    torch.testing.assert_close(
        derivatives(rows, kind, theta[2].expand_as(theta)).information[2], -hessian, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("noise", ["nb", "poisson", "norm"])
def test_closed_form_terms_are_autograds(noise):
    rng = np.random.default_rng(2)
    kind = NOISE_MODELS[noise]()
    y, eta, zeta = (
        torch.tensor(v)
        for v in (rng.poisson(3.0, (2, 40)) * 1.0, rng.normal(1, 1, (2, 40)), rng.normal(0.5, 1, (2, 40)))
    )
    weight = torch.tensor(rng.uniform(0.5, 2, (2, 40)))
    own, auto = kind.terms(weight * y, weight, eta, zeta), Likelihood.terms(kind, weight * y, weight, eta, zeta)
    rising = [t[..., 0] for t in rising_terms(y[..., None], zeta[..., None])]
    table = [t * weight for t in rising] if noise == "nb" else [torch.zeros_like(eta)] * 3
    constant = 0 if noise == "norm" else weight * torch.lgamma(y + 1)
    torch.testing.assert_close(own.value + table[0] - constant, auto.value)
    torch.testing.assert_close(own.g_eta, auto.g_eta)
    torch.testing.assert_close(own.g_zeta + table[1], auto.g_zeta)
    torch.testing.assert_close(own.h_eta, auto.h_eta)
    torch.testing.assert_close(own.h_cross, auto.h_cross)
    torch.testing.assert_close(own.h_zeta + table[2], auto.h_zeta, rtol=1e-6, atol=1e-6)


def test_counts_part_is_free_of_cancellation():
    # sum_j log1p(j / r) exactly, against the gamma functions' difference that would lose every digit
    for zeta in (-3.0, 1.0, 3.3, 3.5, 8.0, 30.0):
        for y in (2.0, 7.0, 250.0):
            j = np.arange(y) * np.exp(-zeta)
            expected = np.log1p(j).sum(), -(j / (1 + j)).sum(), -(j / (1 + j) ** 2).sum()
            found = [
                float(t)
                for t in rising_terms(torch.tensor([y], dtype=torch.float64), torch.tensor([zeta], dtype=torch.float64))
            ]
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10 if zeta < 3.4 else 0)


def gold(name):
    z = np.load(shared("gold", "nb", f"{name}.npz"))
    y, x, offset = z["counts"].astype(float), z["design"].astype(float), np.log(z["size_factors"])
    fit = fit_glm(
        RowSource(CountMatrix(y), Design(x, np.ones((len(x), 1)), offset, np.zeros(len(x))), NegativeBinomial())
    )
    table = pd.read_csv(shared("gold", "nb", f"{name}_glmnb.csv.gz"))
    return y, x, offset, fit, table


@pytest.mark.parametrize("name", ["sim", "pasilla"])
def test_interior_genes_match_gold(name):
    _, x, _, fit, table = gold(name)
    i, p = table["index"].to_numpy(), x.shape[1]
    assert (fit.code[i] == FitCode.CONVERGED).all()
    np.testing.assert_allclose(fit.theta[i, :p], table[[f"ml_b{k}" for k in range(p)]], rtol=0, atol=1e-9)
    np.testing.assert_allclose(-fit.theta[i, p], np.log(table["ml_disp"]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(fit.log_likelihood[i], table["ml_loglik"], rtol=0, atol=1e-7)
    exact = (table["src_eps"] < 1e-9).to_numpy()  # the others' theta is off by up to 2e-4
    se = np.sqrt(np.linalg.inv(fit.fisher[i][exact]).diagonal(axis1=1, axis2=2))
    np.testing.assert_allclose(se, table.loc[exact, [f"se{k}" for k in range(p)]], rtol=1e-5)


@pytest.mark.parametrize("name", ["sim", "pasilla"])
def test_boundary_genes_are_no_worse_than_poisson_and_coded(name):
    y, x, offset, fit, table = gold(name)
    rest = np.setdiff1d(np.arange(y.shape[1]), table["index"])
    design = Design(x, np.ones((len(x), 1)), offset, np.zeros(len(x)))
    poisson = fit_glm(RowSource(CountMatrix(y[:, rest]), design, Poisson()))
    assert (fit.log_likelihood[rest] >= poisson.log_likelihood - 1e-5).all()
    assert np.isfinite(fit.theta).all() and (fit.code != FitCode.FAILED).all()


def test_priors_enter_mode_and_guide():
    y, design = simulate(n=40, g=4)
    model = pyro_model(
        design,
        NegativeBinomial(),
        location_prior=dist.Normal(0.0, 0.5).expand([3]),
        scale_prior=dist.Normal(0.0, 1.0),
    )
    counts = torch.as_tensor(y.T.copy())
    fit, guide = fit_mode(model, counts)
    theta = torch.as_tensor(fit.theta).requires_grad_(True)
    (gradient,) = torch.autograd.grad(gene_log_density(model, counts, theta).sum(), theta)
    assert gradient.abs().max() < 1e-5
    assert log_prior(pyro_model(design, NegativeBinomial())) is None
    hessian = torch.autograd.functional.hessian(
        lambda t: gene_log_density(model, counts, torch.cat([t[None], theta[1:].detach()]))[0], theta[0].detach()
    )
    torch.testing.assert_close(torch.linalg.inv(-hessian), guide.covariance[0], rtol=1e-6, atol=1e-9)
    draws = guide.sample(20_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), guide.theta, rtol=0, atol=0.03)
    sites = guide(counts)
    assert sites["location"].shape == (4, 1, 3) and sites["scale"].shape == (4, 1, 1)


def test_guide_and_model_make_an_elbo():
    y, design = simulate(n=40, g=4)
    normal = dist.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    model = pyro_model(design, NegativeBinomial(), location_prior=normal, scale_prior=normal)
    counts = torch.as_tensor(y.T.copy())
    _, guide = fit_mode(model, counts)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        bound = -Trace_ELBO(num_particles=200).loss(model, guide, counts)
    # Laplace's evidence: log joint at the mode + log volume; the bound lies just below
    mode = gene_log_density(model, counts, guide.theta)
    evidence = (mode + 0.5 * torch.logdet(2 * np.pi * guide.covariance)).sum()
    assert evidence - 0.5 < bound < evidence + 0.5


def test_a_noise_with_only_a_distribution_fits_by_autograd():
    class Plain(Likelihood):
        predictors, conditional = ("location",), False
        hyperparameters, size = {"size": 1.0}, None

        def distribution(self, eta):
            size = self.size.unsqueeze(-1)
            return dist.GammaPoisson(concentration=size, rate=size * torch.exp(-eta))

    y, design = simulate(n=80, g=4)
    reference = fit_glm(RowSource(CountMatrix(y), design, NegativeBinomial()))
    fit = fit_glm(RowSource(CountMatrix(y), design, Plain()))
    np.testing.assert_allclose(fit.theta, reference.theta, atol=1e-7)
    np.testing.assert_allclose(fit.log_likelihood, reference.log_likelihood, atol=1e-8)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "blocks"])
def test_sparse_and_dense_input_agree(kind, monkeypatch):
    y, design = simulate(n=400, g=9)
    reference = fit_glm(RowSource(CountMatrix(y), design, NegativeBinomial()))
    data = y if kind == "blocks" else sp.coo_matrix(y).asformat(kind)
    monkeypatch.setattr("pyrosplice._expression.count_matrix.BLOCK_ENTRIES", 500)
    source = RowSource(CountMatrix(data), design, NegativeBinomial(), block_size=2)
    np.testing.assert_allclose(fit_glm(source).theta, reference.theta, atol=1e-9)


def test_cell_weights_are_repetitions():
    y, design = simulate(n=60, g=5)
    times = np.random.default_rng(0).integers(1, 4, 60)
    again = Design(*(np.repeat(v, times, axis=0) for v in (design.x, design.z, design.offset, design.zeta_offset)))
    repeated = fit_glm(RowSource(CountMatrix(np.repeat(y, times, axis=0)), again, NegativeBinomial()))
    for weights in (times * 1.0, np.repeat(times[:, None] * 1.0, 5, axis=1)):
        weighted = Design(design.x, design.z, design.offset, design.zeta_offset, weights=weights)
        fit = fit_glm(RowSource(CountMatrix(y), weighted, NegativeBinomial()))
        np.testing.assert_allclose(fit.theta, repeated.theta, atol=1e-8)
        np.testing.assert_allclose(fit.log_likelihood, repeated.log_likelihood, atol=1e-8)


def test_coded_genes_leave_the_others_untouched():
    y, design = simulate(n=80, g=5)
    reference = fit_glm(RowSource(CountMatrix(y), design, NegativeBinomial()))
    treated = design.x[:, 1] > 0
    separated = np.where(treated, 0.0, y[:, 0] + 1)
    flat = np.full(80, 3.0)
    all_y = np.column_stack([np.zeros(80), separated, flat, y])
    fit = fit_glm(RowSource(CountMatrix(all_y), design, NegativeBinomial()))
    assert list(fit.code[:3]) == [FitCode.ALL_ZERO, FitCode.SEPARATED, FitCode.POISSON_BOUNDARY]
    assert np.isnan(fit.theta[0]).all() and np.isfinite(fit.theta[1:]).all()
    np.testing.assert_allclose(fit.theta[3:], reference.theta, atol=1e-9)


def test_general_scale_design_matches_separate_fits():
    y, _ = simulate(n=300, g=4)
    half = np.arange(300) % 2
    x = np.column_stack([1 - half, half]) * 1.0
    both = fit_glm(RowSource(CountMatrix(y), Design(x, x, np.zeros(300), np.zeros(300)), NegativeBinomial()))
    for level in (0, 1):
        some = half == level
        one = np.ones((some.sum(), 1))
        alone = fit_glm(
            RowSource(CountMatrix(y[some]), Design(one, one, one[:, 0] * 0, one[:, 0] * 0), NegativeBinomial())
        )
        np.testing.assert_allclose(both.theta[:, [level, 2 + level]], alone.theta, atol=1e-7)
