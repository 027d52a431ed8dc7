"""The averaged covariance against dense algebra and brute-force integration, over layouts, weights and predictors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyrosplice._hypothesis.coefficients.averaged_covariance import AveragedPrecision, averaged
from pyrosplice._hypothesis.coefficients.identified import Coverage, independent_columns
from pyrosplice._hypothesis.coefficients.restricted_posterior import (
    PRIOR_DEVIATION,
    Variances,
    restricted_likelihood,
    restricted_posterior,
)
from pyrosplice._hypothesis.coefficients.working_model import SQUARE, STEEPER, GivenNoise, Spectra, WorkingModel
from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice._usage.gene_tests.covariate_law import contrast_target, schur_target
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance

N_GENES = 3


def working(n_spots: int, q: int, seed: int, *, dense: bool = False, scale: bool = False) -> WorkingModel:
    """Random weights, some of them zero, and responses of three genes."""
    rng = np.random.default_rng(seed)
    car = CarCovariance(knn_graph(rng.uniform(size=(n_spots, 2)), k_neighbors=4, graph="mutual"))
    root = torch.from_numpy(rng.standard_normal((N_GENES, n_spots, q, q + 1)))
    weight = root @ root.mT * torch.from_numpy(rng.gamma(1.0, 1.0, (N_GENES, n_spots, 1, 1)))
    weight[:, ::5] = 0.0
    columns = torch.cat([torch.ones(n_spots, 1), torch.from_numpy(rng.standard_normal((n_spots, 2)))], 1).double()
    solver = LowRankSolver.from_dense(car.dense()) if dense else SparseSolver(car.precision)
    spot_scale = torch.from_numpy(rng.uniform(0.3, 2.0, (1, n_spots, 1))) if scale else None
    response = torch.from_numpy(rng.standard_normal((N_GENES, n_spots, q)))
    logit_scale = torch.from_numpy(rng.uniform(0.5, 1.5, (N_GENES, 1, q)))
    spectra = Spectra.of(solver, n_spots).for_predictors(q)
    return WorkingModel(weight, response, columns, solver, spectra, logit_scale, all_kept(columns), spot_scale)


def all_kept(columns: torch.Tensor) -> torch.Tensor:
    return torch.ones(N_GENES, columns.shape[1], dtype=torch.bool)


def dense_field(model: WorkingModel, gene: int, values: np.ndarray | None) -> np.ndarray:
    """Covariance ``(N Q, N Q)`` of a field of standard deviation one: of V itself, or of some eigenvalues."""
    n_spots, q = model.response.shape[1:]
    vectors = model.spectra.vectors.numpy()
    eye = torch.eye(n_spots, dtype=torch.float64)[None]
    covariance = model.solver.covariance_product(eye)[0].numpy() if values is None else (vectors * values) @ vectors.T
    scale = model.field_scale(torch.ones(N_GENES, dtype=torch.float64))[gene].expand(n_spots, q).reshape(-1).numpy()
    return scale[:, None] * np.kron(covariance, np.eye(q)) * scale


def dense_precision(model: WorkingModel, gene: int, field: np.ndarray, white: float) -> np.ndarray:
    """``S⁻¹`` as ``W − W (W + Σ⁻¹)⁻¹ W``, which needs no inverse of W."""
    n_spots, q = model.response.shape[1:]
    weight = np.zeros((n_spots * q, n_spots * q))
    for i in range(n_spots):
        weight[i * q : (i + 1) * q, i * q : (i + 1) * q] = model.weight[gene, i]
    scale = np.tile(model.logit_scale[gene, 0].numpy(), n_spots)
    sigma = field + np.diag(white**2 * scale**2)
    return weight - weight @ np.linalg.solve(np.eye(len(sigma)) + sigma @ weight, sigma @ weight)


def columns_of(model: WorkingModel, gene: int) -> np.ndarray:
    q = model.n_logits
    design = np.kron(model.design.numpy(), np.eye(q))
    return np.column_stack([design, model.response[gene].reshape(-1).numpy()])


@pytest.mark.parametrize(("q", "dense", "scale"), [(1, False, False), (2, False, True), (3, True, False)])
@pytest.mark.parametrize("seed", [0, 1])
def test_products_and_determinants_are_those_of_dense_matrices(q: int, dense: bool, scale: bool, seed: int) -> None:
    model = working(30, q, seed, dense=dense, scale=scale)
    white, deviation = (torch.from_numpy(np.random.default_rng(seed).uniform(0, 1.5, N_GENES)) for _ in range(2))
    noise = model.with_noise(white)
    found = [(None, noise.through_field(deviation))]
    found += [(values, noise.in_modes().through_field(values, deviation)) for values in model.spectra.values]
    for values, (products, logdet) in found:
        for gene in range(N_GENES):
            field = dense_field(model, gene, None if values is None else values.numpy()) * float(deviation[gene]) ** 2
            precision = dense_precision(model, gene, field, float(white[gene]))
            columns = columns_of(model, gene)
            np.testing.assert_allclose(products[gene], columns.T @ precision @ columns, rtol=1e-8, atol=1e-8)
            weight = np.zeros_like(field)
            for i in range(30):
                weight[i * q : (i + 1) * q, i * q : (i + 1) * q] = model.weight[gene, i]
            scale_of = np.tile(model.logit_scale[gene, 0].numpy(), 30)
            sigma = field + np.diag(float(white[gene]) ** 2 * scale_of**2)
            expected = np.linalg.slogdet(np.eye(len(sigma)) + sigma @ weight)[1]
            assert float(logdet[gene]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("q", "dense", "scale"), [(1, False, True), (2, False, False), (2, True, True)])
def test_averaged_precision_is_that_of_the_mean_covariance(q: int, dense: bool, scale: bool) -> None:
    model = working(30, q, 3, dense=dense, scale=scale)
    variances = Variances(
        torch.rand(N_GENES, 1 + len(STEEPER), dtype=torch.float64), torch.rand(N_GENES, dtype=torch.float64)
    )
    precision = AveragedPrecision(model, variances)
    fields = torch.randn(N_GENES, 30, q, 2, dtype=torch.float64)
    fit = averaged(model, variances, 2)
    for gene in range(N_GENES):
        field = float(variances.field[gene, 0]) * dense_field(model, gene, None)
        for share, values in zip(variances.field[gene, 1:], model.spectra.values, strict=True):
            field = field + float(share) * dense_field(model, gene, values.numpy())
        dense_one = dense_precision(model, gene, field, float(variances.white[gene].sqrt()))
        images = dense_one @ fields[gene].reshape(30 * q, 2).numpy()
        np.testing.assert_allclose(precision.product(fields)[gene].reshape(-1, 2), images, rtol=1e-8, atol=1e-9)
        blocks = np.stack([dense_one[i * q : (i + 1) * q, i * q : (i + 1) * q] for i in range(30)])
        np.testing.assert_allclose(precision.spot_precision[gene], blocks, rtol=1e-8, atol=1e-9)
        columns = columns_of(model, gene)
        design, response = columns[:, : 2 * q], columns[:, -1]
        weights = np.linalg.solve(design.T @ dense_one @ design, design.T @ dense_one @ response)
        residual = dense_one @ (response - design @ weights)
        np.testing.assert_allclose(fit.residual[gene].reshape(-1), residual, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_posterior_means_are_those_of_brute_force(seed: int) -> None:
    model, target = working(40, 1, seed), schur_target(torch.ones(N_GENES, 3, dtype=torch.bool), 1, 1, [1, 1])
    largest = torch.ones(N_GENES, dtype=torch.float64), torch.ones(N_GENES, dtype=torch.float64)
    found = restricted_posterior(model, 1, target, largest=largest)
    grid = np.linspace(0.01, 6.0, 40)
    weights, squares, logs = [], [], []
    for c in grid:
        noise = model.with_noise(torch.full((N_GENES,), c, dtype=torch.float64))
        modes = noise.in_modes()
        for a in grid:
            deviation = torch.full((N_GENES,), a, dtype=torch.float64)
            each = [noise.through_field(deviation)]
            each += [modes.through_field(values, deviation) for values in model.spectra.values]
            prior = -0.5 * (a**2 + c**2) / PRIOR_DEVIATION**2
            weights.append(torch.stack([restricted_likelihood(p, d, 1) + prior for p, d in each], -1))
            logs.append(torch.stack([target(p[:, :-1, :-1], torch.arange(N_GENES)) for p, _ in each], -2))
            squares.append((a**2, c**2))
    weight = torch.softmax(torch.stack(weights, 1).flatten(1), 1).unflatten(1, (-1, 1 + len(STEEPER)))
    field, white = (torch.tensor(values, dtype=torch.float64) for values in zip(*squares, strict=True))
    expected = (weight * field[:, None]).sum(1), (weight.sum(-1) * white).sum(1)
    torch.testing.assert_close(found.variances.field, expected[0], rtol=0.1, atol=0.03)
    torch.testing.assert_close(found.variances.white, expected[1], rtol=0.1, atol=0.03)
    log_variance = torch.stack(logs, 1)
    mean = (weight.unsqueeze(-1) * log_variance).sum((1, 2), keepdim=True)
    spread = (weight.unsqueeze(-1) * (log_variance - mean).square()).sum((1, 2))
    torch.testing.assert_close(found.uncertainty, spread, rtol=0.3, atol=1e-3)


def sharp(n_spots: int, truth: str) -> WorkingModel:
    """Fields of standard deviation 1.3 with noise of .37, seen nearly without error."""
    rng, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    car = CarCovariance(knn_graph(rng.uniform(size=(n_spots, 2)), k_neighbors=4, graph="mutual"))
    solver = SparseSolver(car.precision)
    spectra = Spectra.of(solver, n_spots)
    field = car.sample(N_GENES, noise)
    if truth == "steep":
        weights = torch.randn(N_GENES, spectra.vectors.shape[1], generator=noise, dtype=torch.float64)
        field = (weights * spectra.values[SQUARE].sqrt()) @ spectra.vectors.T
    signal = 1.3 * field * (truth != "noise") + 0.37 * torch.randn(N_GENES, n_spots, generator=noise).double()
    return replace(
        working(n_spots, 1, 5),
        weight=torch.full((N_GENES, n_spots, 1, 1), 1e4, dtype=torch.float64),
        response=signal.unsqueeze(-1),
        solver=solver,
        spectra=spectra,
        logit_scale=torch.ones(N_GENES, 1, 1, dtype=torch.float64),
    )


def test_a_narrow_posterior_is_found_on_a_second_grid() -> None:
    model, target = sharp(400, "field"), schur_target(torch.ones(N_GENES, 3, dtype=torch.bool), 1, 1, [1, 1])
    largest = torch.full((N_GENES,), 1.3, dtype=torch.float64), torch.full((N_GENES,), 0.4, dtype=torch.float64)
    found = restricted_posterior(model, 1, target, largest=largest)
    assert found.weight[:, 0].sum((1, 2)).min() > 0.99  # the spectrum is that of V
    assert (found.variances.white.sqrt() - 0.37).abs().max() < 0.12
    assert (found.variances.field[:, 0].sqrt() - 1.3).abs().max() < 0.35


@pytest.mark.parametrize("truth", ["field", "steep", "noise"])
def test_the_spectrum_that_matters_is_found_first_among_many_spots(truth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out what is hopeless changes nothing, and where it is not clear nothing is left out."""
    model = sharp(600, truth)
    largest = torch.full((N_GENES,), 1.45, dtype=torch.float64), torch.full((N_GENES,), 0.37, dtype=torch.float64)
    target = schur_target(torch.ones(N_GENES, 3, dtype=torch.bool), 1, 1, [1, 1])
    factorized, found = [], []
    through = GivenNoise.through_field
    monkeypatch.setattr(GivenNoise, "through_field", lambda *a: factorized.append(len(a[1])) or through(*a))
    for many in (10**6, 100):
        monkeypatch.setattr("pyrosplice._hypothesis.coefficients.restricted_posterior._MANY_SPOTS", many)
        factorized.clear()
        found.append((restricted_posterior(model, 1, target, largest=largest), sum(factorized)))
    (whole, all_of_them), (some, fewer) = found
    # less than one posterior standard deviation, from splines through other points
    torch.testing.assert_close(some.variances.field, whole.variances.field, rtol=0.1, atol=0.003)
    torch.testing.assert_close(some.variances.white, whole.variances.white, rtol=0.1, atol=0.003)
    torch.testing.assert_close(some.uncertainty, whole.uncertainty, rtol=0.2, atol=1e-3)
    assert fewer < 0.1 * all_of_them if truth == "steep" else fewer <= all_of_them + N_GENES


def test_targets_are_variances_of_effects() -> None:
    root = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    information = root @ root.T
    covariance = torch.linalg.inv(information)
    information, first = information[None], torch.zeros(1, dtype=torch.int64)
    found = schur_target(torch.ones(1, 3, dtype=torch.bool), 1, 2, [2])(information, first)
    assert float(found[0]) == pytest.approx(float(torch.logdet(covariance[2:, 2:])) / 4, abs=1e-6)
    contrast = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64) / 2**0.5
    rows = torch.kron(contrast, torch.eye(2, dtype=torch.float64))
    expected = float(torch.logdet(rows @ covariance @ rows.T)) / 2
    coverage = Coverage.of(torch.eye(3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool))
    assert float(contrast_target([contrast], 2, coverage)(information, first)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("q", [1, 3])
def test_what_spots_do_not_identify_is_not_in_the_model(q: int) -> None:
    """The posterior of a gene that is not seen where a column varies is that without the column."""
    model = working(40, q, 3)
    hidden = torch.zeros(40, 1, dtype=torch.float64)
    hidden[::5] = torch.arange(8.0).double().unsqueeze(1)
    columns = model.design - model.design.mean(0) * (torch.arange(3) > 0)
    informed = torch.diagonal(model.weight, dim1=-2, dim2=-1).sum(-1) > 0
    largest = torch.ones(N_GENES, dtype=torch.float64), torch.ones(N_GENES, dtype=torch.float64)
    with_it = torch.cat([columns[:, :2], hidden, columns[:, 2:], hidden], 1)
    found = []
    for design, n_fixed, widths in ((columns, 2, [1]), (with_it, 3, [2])):
        kept = independent_columns(design, informed, n_fixed, widths)
        assert (kept.sum(1) == 3).all()
        target = schur_target(kept, n_fixed, q, widths)
        own = replace(model, design=design, kept=kept)
        found.append(restricted_posterior(own, n_fixed, target, largest=largest))
    plain, more = found
    torch.testing.assert_close(more.variances.field, plain.variances.field, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(more.variances.white, plain.variances.white, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(more.uncertainty, plain.uncertainty, rtol=1e-6, atol=1e-9)
    rows = torch.eye(5, dtype=torch.float64)[[2, 3]]  # a column that is not identified, and one that is
    coverage = Coverage.of(with_it, informed)
    everything = coverage.independent()
    own = replace(model, design=with_it, kept=everything)
    several = restricted_posterior(own, 5, contrast_target([rows], q, coverage), largest=largest)
    plain_coverage = Coverage.of(columns, informed)
    target = contrast_target([torch.eye(3, dtype=torch.float64)[[2]]], q, plain_coverage)
    one = restricted_posterior(replace(model, design=columns), 3, target, largest=largest)
    torch.testing.assert_close(several.uncertainty, one.uncertainty, rtol=1e-6, atol=1e-9)


def test_steep_spectra_have_mean_variance_one_around_the_mean_of_the_field() -> None:
    car = CarCovariance(knn_graph(np.random.default_rng(0).uniform(size=(50, 2)), k_neighbors=4, graph="connected"))
    for solver in (SparseSolver(car.precision), LowRankSolver.from_dense(car.dense())):
        spectra = Spectra.of(solver, 50)
        centered = spectra.vectors - spectra.vectors.mean(0)
        variance = torch.einsum("nk,sk->sn", centered.square(), spectra.values).mean(1)
        torch.testing.assert_close(variance, torch.ones(len(STEEPER), dtype=torch.float64), rtol=1e-9, atol=1e-9)
