"""Surrogates have the covariate's own energy at every scale, and statistics are those of the score test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from pyrosplice._hypothesis.coefficients import surrogates as module
from pyrosplice._hypothesis.coefficients.averaged_covariance import averaged
from pyrosplice._hypothesis.coefficients.restricted_posterior import Variances
from pyrosplice._hypothesis.coefficients.score import score_test
from pyrosplice._hypothesis.coefficients.surrogates import Patterns, Surrogates, surrogate_test
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance
from tests.hypothesis.coefficients.test_averaged_covariance import N_GENES, working

Layout = tuple[Patterns, torch.Tensor]


@pytest.fixture(scope="module", params=["square", "random"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """Patterns of a tissue, and its positions; the square has equal eigenvalues."""
    xy = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), -1).reshape(-1, 2)
    if request.param == "random":
        xy = np.random.default_rng(0).uniform(size=(70, 2))
    solver = SparseSolver(CarCovariance(knn_graph(xy, k_neighbors=4, graph="mutual")).precision)
    return Patterns.of(solver), torch.from_numpy(xy)


def test_patterns_are_a_basis_of_what_is_centered(layout: Layout) -> None:
    vectors, values = layout[0].vectors, layout[0].values
    n_spots = len(vectors)
    assert vectors.shape == (n_spots, n_spots - 1)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(n_spots - 1, dtype=torch.float64))
    assert float(vectors.sum(0).abs().max()) < 1e-8
    assert bool((values[:-1] >= values[1:]).all())


@pytest.mark.parametrize("width", [1, 3])
def test_surrogates_have_the_size_and_the_smoothness_of_the_covariate(layout: Layout, width: int) -> None:
    patterns, xy = layout
    rng = np.random.default_rng(width)
    columns = torch.from_numpy(rng.standard_normal((len(xy), width)))
    columns[:, 0] = torch.sin(3 * xy[:, 0] / xy.max())
    columns = columns - columns.mean(0)
    drawn = Surrogates(patterns, 4000, 1).draw(columns)
    assert drawn.shape == (4000, len(xy), width)
    found = torch.einsum("snc,snd->scd", drawn, drawn).mean(0)
    scale = columns.square().sum(0).sqrt()
    assert float(((found - columns.T @ columns) / (scale[:, None] * scale)).abs().max()) < 0.1
    share = (patterns.vectors[:, :6].T @ columns).square().sum(0) / columns.square().sum(0)
    drawn_share = (patterns.vectors[:, :6].T @ drawn).square().sum((0, 1)) / drawn.square().sum((0, 1))
    assert float(drawn_share[0]) > 0.6 * float(share[0])
    assert bool((drawn_share[1:] < 0.5 * drawn_share[0]).all())


def test_energies_do_not_depend_on_which_eigenvectors_of_equal_eigenvalues_were_found(layout: Layout) -> None:
    patterns, xy = layout
    column = torch.from_numpy(np.random.default_rng(0).standard_normal((len(xy), 1)))
    same = torch.nonzero((patterns.values[:-1] - patterns.values[1:]) < 1e-9).squeeze(-1)
    vectors = patterns.vectors.clone()
    for first in same[::2].tolist():
        pair = vectors[:, first : first + 2].clone()
        vectors[:, first], vectors[:, first + 1] = (0.6 * pair + 0.8 * pair.flip(1) * torch.tensor([1.0, -1.0])).T
    turned = Patterns(vectors, patterns.values)
    torch.testing.assert_close(turned.energy(column), patterns.energy(column), rtol=0, atol=1e-9)


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("width", [1, 2])
def test_statistics_are_those_of_the_score_test_by_the_model(
    q: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = working(40, q, seed=q)
    variances = Variances(torch.full((N_GENES, 4), 0.3).double(), torch.full((N_GENES,), 0.2).double())
    fit = averaged(model, variances, model.design.shape[1])
    own = torch.from_numpy(np.random.default_rng(width).standard_normal((40, width)))
    base = torch.linalg.qr(model.design)[0]
    own = own - base @ (base.T @ own)
    patterns = Patterns.of(model.solver)
    statistic, pvalue = surrogate_test(fit, model.design, {"x": own}, Surrogates(patterns, 39, 0))
    design = torch.cat([model.design[:, 1:], own], 1)
    terms, beside = [tuple(range(2, 2 + width))], [(0, 1)]
    wanted = score_test(fit, design, terms=terms, nuisance=beside)
    torch.testing.assert_close(statistic, wanted.statistic, rtol=1e-5, atol=1e-8)
    assert bool(((pvalue * 40) % 1 < 1e-9).all() | (((pvalue * 40) % 1) > 1 - 1e-9).all())
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    for one, other in zip(
        (statistic, pvalue), surrogate_test(fit, model.design, {"x": own}, Surrogates(patterns, 39, 0)), strict=True
    ):
        torch.testing.assert_close(one, other)
    units = own @ torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e3
    again = surrogate_test(fit, model.design, {"x": units}, Surrogates(patterns, 39, 0))[0]
    torch.testing.assert_close(again, statistic, rtol=1e-4, atol=1e-8)


def test_pvalues_are_uniform_where_the_covariate_is_a_draw_of_what_varies_like_it() -> None:
    model = working(60, 1, seed=4)
    variances = Variances(torch.full((N_GENES, 4), 0.5).double(), torch.full((N_GENES,), 0.2).double())
    fit = averaged(model, variances, model.design.shape[1])
    patterns, rng = Patterns.of(model.solver), np.random.default_rng(3)
    base = torch.linalg.qr(model.design)[0]
    found = []
    for seed in range(150):
        own = patterns.vectors @ (patterns.values.sqrt() * torch.from_numpy(rng.standard_normal(59)))
        own = (own - base @ (base.T @ own)).unsqueeze(1)
        found.append(surrogate_test(fit, model.design, {"x": own}, Surrogates(patterns, 59, seed))[1][:, 0])
    pvalues = torch.stack(found)[:, 0].numpy() - 0.5 / 60 * rng.uniform(size=150)
    assert kstest(pvalues, "uniform").pvalue > 0.001


def test_more_spots_than_patterns_are_worked_out_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SPOTS", 8)
    graph = knn_graph(np.random.default_rng(0).uniform(size=(9, 2)), k_neighbors=3, graph="mutual")
    with pytest.raises(InvalidArgumentError, match=r"at most 8 spots.*found 9"):
        Patterns.of(SparseSolver(CarCovariance(graph).precision))
