"""Sums over every cell and over non-zero counts, against numpy and against the rows that hold every count."""

from contextlib import nullcontext

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.engine import row_source
from pyrosplice._expression.engine.cell_sums import add_cells, add_counts, by_stratum
from pyrosplice._expression.engine.gene_fits import default_starter, fit_glm, score_statistic
from pyrosplice._expression.engine.joint_newton import BOUNDARY_ZETA, NewtonOptions
from pyrosplice._expression.engine.row_source import Design, RowSource
from pyrosplice._expression.engine.shrink import shrink_coefficient
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.likelihoods import NegativeBinomial, Poisson

SEEDS = list(range(8))


class Subclass(NegativeBinomial):
    """Somebody's own."""


def random_design(rng, n=1300):
    """A design of 0 to 2 factors and 0 to 4 continuous columns, near-collinear and huge ones among them."""
    columns = [np.ones(n)] if rng.random() < 0.85 else []
    for _ in range(rng.integers(0, 3)):
        level = rng.integers(0, rng.integers(2, 4), n)
        columns += [(level == k) * 1.0 for k in range(1, level.max() + 1)]
    d = rng.integers(0 if len(columns) else 1, 5)
    for _ in range(d):
        columns.append(rng.normal(rng.choice([0.0, 300.0]), 1.0, n) * rng.choice([0.2, 1.0]))
    if d > 1 and rng.random() < 0.5:
        columns[-1] = columns[-2] + 0.05 * columns[-1]
    offset = rng.normal(0, rng.choice([0.0, 0.4]), n)
    return Design(np.column_stack(columns), np.full((n, 1), rng.choice([1.0, 2.0])), offset, np.zeros(n))


def counts_of(design, rng, g=7):
    """Counts from very sparse to over 255, then a gene without, one that a factor separates, one with less spread."""
    n, x = design.x.shape[0], design.x
    slopes = rng.normal(0, 0.25, (g, x.shape[1])) / np.maximum(np.abs(x).std(0), 0.2)
    eta = (x - x.mean(0)) @ slopes.T + np.log(np.geomspace(0.02, 150, g)) + design.offset[:, None]
    r = 1 / np.geomspace(0.05, 3, g)[rng.permutation(g)]
    y = rng.poisson(rng.gamma(r, np.exp(np.clip(eta, -20, 8)) / r)).astype(float)
    few = np.where(x[:, -1] > np.median(x[:, -1]), 0.0, rng.poisson(1.0, n))
    return np.column_stack([y, np.zeros(n), few, rng.binomial(4, 0.5, n)])


def sources(y, design, monkeypatch, likelihood=None, **options):
    """The same counts with sparse rows and with dense ones; dense means that no cells are summed."""
    out = []
    monkeypatch.setattr(row_source, "compress", lambda *_: None)
    for least in (1, 10**9):
        monkeypatch.setattr(row_source, "SPARSE_CELLS", least)
        source = RowSource(CountMatrix(y), design, likelihood or NegativeBinomial(), **options)
        assert source.conditioned.sparse == source.sparse == (least == 1)
        out.append(source)
    return out


def only_block(source):
    ((_, rows),) = source.conditioned.blocks(fitted=True)
    return rows


@pytest.mark.parametrize("n_columns", [0, 1, 2, 3, 6])
def test_sums_are_numpys(n_columns):
    rng = np.random.default_rng(n_columns)
    n, g, n_strata = 1111, 9, 3
    starts = np.array([0, 100, 100 + 513, n])
    columns, offset = rng.normal(size=(n_columns, n)), rng.normal(0, 0.5, n)
    constant, slopes = rng.normal(-1, 1, (g, n_strata)), rng.normal(0, 0.5, (g, n_columns))
    alpha = np.array([1e-30, 1e-13, 1e-6, 9e-4, 1.1e-3, 0.3, 5.0, 1e3, 1.0])
    near = alpha < 6e-3
    constant[-2], constant[-1] = 40.0, 5.0  # products of logs that overflow, and large means
    u = 1 + n_columns
    pairs = u * (u + 1) // 2
    out, counted = np.zeros((g, n_strata, 2 + 3 * u + 2 * pairs)), np.zeros((g, n_strata, 2 + 2 * u + pairs))
    add_cells(columns, offset, starts, constant, slopes, alpha, near, True, out)
    y = sp.random_array((n, g), density=0.3, rng=rng, format="csc")
    stratum = np.repeat(np.arange(n_strata), np.diff(starts))
    sort = by_stratum(y.indptr.astype(int), y.indices.astype(int), y.data, stratum, np.arange(n), n_strata)
    add_counts(np.arange(g), *sort, columns, offset, constant, slopes, alpha, counted)
    ones = np.vstack([np.ones(n), columns])
    products = np.array([ones[j] * ones[k] for j in range(u) for k in range(j, u)])
    mu = np.exp(constant[:, stratum] + slopes @ columns + offset).astype(np.longdouble)
    v = alpha[:, None] * mu
    q = 1 / (1 + v)
    gap = np.where(v < 1e-3, mu * v * (1 / 2 - v * (2 / 3 - v * (3 / 4 - v * (4 / 5 - v * 5 / 6)))), 0)
    gap = np.where(v < 1e-3, gap, (np.log1p(v) - v * q) / alpha[:, None])
    dense = y.toarray().T
    for k in range(n_strata):
        some = stratum == k
        m, w, one, two = (mu * q)[:, some], (mu * q * q)[:, some], ones[:, some].T, products[:, some].T
        expected = [(gap + mu * q)[:, some].sum(1)[:, None], gap[:, some].sum(1)[:, None]]
        c = np.where(near, 1, 0)[:, None] * (mu * v * q * q)[:, some]
        expected = np.hstack([*expected, m @ one, c @ one, w @ two, m @ two, mu[:, some] @ one]).astype(float)
        size = np.hstack(
            [expected[:, :2], m @ abs(one), c @ abs(one), w @ abs(two), m @ abs(two), mu[:, some] @ abs(one)]
        )
        logs_rounding = np.where(near, 0, 1e-16 * some.sum() / alpha)  # of 1 + v, before the log is taken
        rounding = np.pad(logs_rounding[:, None], [(0, 0), (1, size.shape[1] - 2)]) + 1e-11 * abs(size.astype(float))
        assert (abs(out[:, k] - expected) <= rounding).all()
        m, w = dense[:, some] * (v * q)[:, some], dense[:, some] * (v * q * q)[:, some]
        logs = (dense * np.log1p(v))[:, some].sum(1)[:, None]
        expected = np.hstack([logs, 0 * logs, m @ one, 0 * (m @ one), w @ two]).astype(float)
        size = np.hstack([logs + dense[:, some].sum(1)[:, None], 0 * logs, m @ abs(one), m @ abs(one), w @ abs(two)])
        assert (abs(counted[:, k] - expected) <= 1e-13 * abs(size.astype(float))).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_derivatives_are_those_of_dense_rows(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    design = random_design(rng)
    y = counts_of(design, rng) + (0.5 * rng.integers(0, 2, (len(design.x), 10)) if seed == 3 else 0)
    with pytest.warns(UserWarning, match="fractional") if seed == 3 else nullcontext():
        pair = sources(y, design, monkeypatch)
        sparse, dense = (only_block(s) for s in pair)
    kind, p = NegativeBinomial(), design.x.shape[1]
    theta = torch.tensor(rng.normal(0, 0.3, (10, p + 1)))
    theta[:, :p] *= 8 / (theta[:, :p].abs() @ dense.x.abs().amax(0)).clamp_min(8)[:, None]  # no means beyond e^9
    at_optimum = pair[1].basis.inward(fit_glm(pair[1]).theta)
    optimum_or_theta = torch.where(torch.as_tensor(np.isfinite(at_optimum)), torch.as_tensor(at_optimum), theta)
    points = [theta, optimum_or_theta]
    for point in points:
        for zeta in (None, -2.0, 9.0, BOUNDARY_ZETA):
            at = point.clone()
            if zeta is not None:
                at[:, -1] = zeta / float(dense.z[0, 0])
            mine, theirs = sparse.derivatives(kind, at), dense.derivatives(kind, at)
            torch.testing.assert_close(mine.value, theirs.value, rtol=1e-11, atol=1e-8)
            size = theirs.information.diagonal(dim1=1, dim2=2).abs().sqrt().clamp_min(1e-6)
            rounding = 1e-8 * (1 + size) * (1 + size) + 1e-13 * theirs.gradient.abs().amax(1, keepdim=True)
            assert ((mine.gradient - theirs.gradient).abs() <= rounding).all()
            gap = (mine.information - theirs.information).abs() / (size[:, :, None] * size[:, None, :] + 1e-6)
            assert gap.max() < 1e-7
            torch.testing.assert_close(sparse.fisher(kind, at), dense.fisher(kind, at), rtol=1e-9, atol=1e-9)
            optimum = sparse.optimum(kind, at)
            edge = at.clone()
            edge[:, -1] = BOUNDARY_ZETA / float(dense.z[0, 0])
            there = dense.derivatives(kind, edge)
            gain = torch.linalg.solve(there.information[:, :p, :p], there.gradient[:, :p]).mul(there.gradient[:, :p])
            assert (optimum.poisson_bound >= there.value + gain.sum(1) - 1e-7 * (1 + there.value.abs())).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("held", [False, True])
def test_fits_are_those_of_dense_rows(seed, held, monkeypatch):
    rng = np.random.default_rng(100 + seed)
    design = random_design(rng)
    y = counts_of(design, rng)
    kind = NegativeBinomial(0.7) if held else NegativeBinomial()
    mine, theirs = (fit_glm(s) for s in sources(y, design, monkeypatch, kind, block_size=rng.choice([3, 100])))
    np.testing.assert_array_equal(mine.code, theirs.code)
    assert {int(FitCode.ALL_ZERO), int(FitCode.CONVERGED)} <= set(mine.code)
    np.testing.assert_allclose(mine.log_likelihood, theirs.log_likelihood, rtol=1e-11, atol=1e-7)
    inside = np.isin(mine.code, [FitCode.CONVERGED, FitCode.POISSON_BOUNDARY])
    p = design.x.shape[1]
    inner = [f.basis.inward(f.theta[inside])[:, :p] for f in (mine, theirs)]
    np.testing.assert_allclose(*inner, rtol=0, atol=1e-8)
    free = mine.code == FitCode.CONVERGED
    np.testing.assert_allclose(mine.theta[free, p], theirs.theta[free, p], rtol=0, atol=1e-7)
    for name in ("fisher", "covariance"):
        a, b = getattr(mine, name)[free], getattr(theirs, name)[free]
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        size = np.sqrt(np.abs(np.nan_to_num(b, posinf=0.0).diagonal(axis1=1, axis2=2)))
        gap = np.abs(np.where(np.isfinite(b), a, 0.0) - np.where(np.isfinite(b), b, 0.0))
        assert (gap <= 1e-6 * size[:, :, None] * size[:, None, :]).all()


def test_options_priors_and_score_tests_are_those_of_dense_rows(monkeypatch):
    rng = np.random.default_rng(5)
    design = Design(np.column_stack([np.ones(1200), rng.normal(size=(1200, 2))]), np.ones((1200, 1)), np.zeros(1200),
                    np.zeros(1200))  # fmt: skip
    y = counts_of(design, rng)[:, [2, 3, 4, 9]]
    pair = sources(y, design, monkeypatch)
    for options in (
        NewtonOptions(fit_scale=False),
        NewtonOptions(fit_location=False),
        NewtonOptions(max_iter=2),
        NewtonOptions(tol=1e-3),
    ):
        mine, theirs = (fit_glm(s, options=options) for s in pair)
        np.testing.assert_array_equal(mine.code, theirs.code)
        np.testing.assert_allclose(mine.theta[:3], theirs.theta[:3], rtol=0, atol=1e-8)
        np.testing.assert_array_equal(mine.n_iter, theirs.n_iter)
    mine, theirs = (fit_glm(s) for s in pair)
    for a, b in zip(*(shrink_coefficient(s, f, 1, scale=0.1) for s, f in zip(pair, (mine, theirs), strict=True)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    null = mine.theta.copy()
    null[:, 1] = 0.0
    for a, b in zip(*(score_statistic(s, null, np.array([1])) for s in pair), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7)
    kept = [fit_glm(s.with_location(np.eye(3)[:, [0, 2]])) for s in pair]
    np.testing.assert_allclose(kept[0].log_likelihood, kept[1].log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("start", ["closed_form", "standard", "all_zero"])
def test_starts_are_those_of_dense_rows(start, monkeypatch):
    rng = np.random.default_rng(8)
    for _ in range(3):
        design = random_design(rng)
        y = counts_of(design, rng)
        pair = sources(y, design, monkeypatch)
        found = [default_starter(s, location=start)(only_block(s), np.arange(10)) for s in pair]
        torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)


def on_disk(y, folder, kind):
    ad.AnnData(kind(y)).write_h5ad(folder / "counts.h5ad")
    return ad.io.sparse_dataset(h5py.File(folder / "counts.h5ad")["X"])


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_array, sp.coo_matrix, "csr on disk", "csc on disk"])
def test_containers_make_no_difference(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(row_source, "SPARSE_CELLS", 1)
    rng = np.random.default_rng(11)
    design = Design(np.column_stack([np.ones(600), rng.normal(size=600)]), np.ones((600, 1)), np.zeros(600),
                    np.zeros(600))  # fmt: skip
    y = counts_of(design, rng)
    held = kind(y) if callable(kind) else on_disk(y, tmp_path, sp.csr_matrix if "csr" in kind else sp.csc_matrix)
    source = RowSource(CountMatrix(held), design, NegativeBinomial(), block_size=4)
    assert source.sparse
    reference = fit_glm(RowSource(CountMatrix(y), design, NegativeBinomial()))
    np.testing.assert_allclose(fit_glm(source).theta, reference.theta, rtol=0, atol=1e-9)


def test_what_is_covered_follows_from_the_design_alone():
    n = row_source.SPARSE_CELLS
    rng = np.random.default_rng(0)
    one, x, zero = np.ones((n, 1)), np.column_stack([np.ones(n), rng.normal(size=n)]), np.zeros(n)
    y = rng.poisson(1.0, (n, 2)).astype(float)
    plain = Design(x, one, zero, zero)

    def covered(design, likelihood=None, cells=n, **options):
        return RowSource(CountMatrix(y[:cells]), design, likelihood or NegativeBinomial(), **options).sparse

    assert covered(plain) and covered(plain, NegativeBinomial(0.5))
    assert not covered(Design(x[:-1], one[:-1], zero[:-1], zero[:-1]), cells=n - 1)
    assert not covered(Design(one, one, zero, zero))  # pseudo-cells
    assert not covered(Design(x, x, zero, zero)) and not covered(Design(x, one, zero, x[:, 1]))
    assert not covered(Design(x, one, np.zeros((n, 2)), zero))
    assert not covered(Design(x, one, zero, zero, np.ones(n))) and not covered(plain, Poisson())
    assert not covered(plain, Subclass())
