"""Residuals of counts: the form that they make, its permutations, and its law where spots differ much in size."""

import numpy as np
import pytest
import torch

from pyrosplice._hypothesis.variance.count_residuals import count_residuals
from pyrosplice._hypothesis.variance.permutation_law import permutation_law
from pyrosplice._hypothesis.variance.score_test import orthonormal_columns
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from tests.studies.simulation import grid


def moments_of(mean, dispersion):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    return mean, mean + dispersion * mean.square()


def form_by_loops(kernel, mean, variance, design):
    """M ``(N, N)`` of a gene, entry by entry, from the definitions."""
    n = len(mean)
    size = [float(m * m / v) for m, v in zip(mean, variance, strict=True)]
    loading = np.diag(np.sqrt(size)) @ design
    loading = np.linalg.qr(loading)[0]
    project = np.eye(n) - loading @ loading.T
    scaled = np.array([[np.sqrt(size[i] * size[j]) * float(kernel[i, j]) for j in range(n)] for i in range(n)])
    inner = project @ scaled @ project
    removed = np.diag([inner[i, i] / project[i, i] for i in range(n)])
    return project @ (scaled - removed) @ project


@pytest.mark.parametrize("covariates", [0, 2])
def test_the_statistic_and_its_p_value_are_those_of_a_dense_loop_over_permutations(covariates):
    rng, kernel, n = np.random.default_rng(3 + covariates), spatial_kernel(grid(6), damping=0.01), 36
    design = rng.standard_normal((n, covariates))
    mean, variance = moments_of(np.full((3, n), 2.0), 0.4)
    counts = torch.from_numpy(rng.negative_binomial(2.5, 2.5 / 4.5, (3, n)).astype(float))
    counts[0, :9] += 4  # a pattern
    basis = orthonormal_columns(torch.from_numpy(design) if covariates else None, kernel.diagonal)
    residuals = count_residuals(counts, mean, variance, basis)
    statistic, pvalue = permutation_law(residuals, kernel)
    columns = np.column_stack([np.ones(n), design])
    for gene in range(3):
        form = form_by_loops(kernel.matrix, mean[gene], variance[gene], columns)
        weight = (mean / variance)[gene].numpy()
        size = (mean.square() / variance)[gene].numpy()
        residual = weight * (counts[gene] - mean[gene]).numpy()
        slope = np.linalg.solve(columns.T @ (size[:, None] * columns), columns.T @ residual)
        u = (residual - size * (columns @ slope)) / np.sqrt(size)
        np.testing.assert_allclose(residuals.vectors[gene, :, 0], u, atol=1e-10)
        freedom = np.sqrt((n - 1) / (n - 1 - covariates))
        drawn = np.stack([rng.permutation(u - u.mean()) for _ in range(10_000)]) * freedom
        values = ((drawn @ form) * drawn).sum(1)
        observed = u @ form @ u
        assert statistic[gene] == pytest.approx((observed - values.mean()) / values.std(), rel=0.04, abs=0.06)
        assert pvalue[gene] == pytest.approx((values >= observed).mean(), abs=0.02)


def test_where_spots_are_of_one_size_the_weighted_law_is_the_plain_one():
    rng, kernel = np.random.default_rng(0), spatial_kernel(grid(8))
    mean, variance = moments_of(np.full((5, 64), 0.5), 1.0)
    counts = torch.from_numpy(rng.negative_binomial(1.0, 1 / 1.5, (5, 64)).astype(float))
    weighted = count_residuals(counts, mean, variance, orthonormal_columns(None, kernel.diagonal))
    plain = type(weighted)(weighted.vectors, weighted.scale, weighted.loading)
    for ours, theirs in zip(permutation_law(weighted, kernel), permutation_law(plain, kernel), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_law_holds_for_few_counts_in_spots_of_very_unequal_sizes_and_the_plain_one_does_not(seed):
    rng, kernel, n_genes = np.random.default_rng(seed), spatial_kernel(grid(9), damping=0.01), 1_200
    size = np.exp(1.5 * rng.standard_normal(81) - 1.125)
    counts = torch.from_numpy(rng.poisson(0.15 * size, (n_genes, 81)).astype(float))
    counts = counts[counts.sum(1) > 4]
    share = counts.sum(1, keepdim=True) / size.sum()
    mean, variance = moments_of(share * torch.from_numpy(size), 0.0)
    weighted = count_residuals(counts, mean, variance, orthonormal_columns(None, kernel.diagonal))
    plain = type(weighted)(weighted.vectors, weighted.scale, weighted.loading)
    statistic, pvalue = permutation_law(weighted, kernel)
    assert abs(statistic.mean()) < 0.12 and 0.85 < statistic.std() < 1.15
    assert 0.03 < (pvalue < 0.05).double().mean() < 0.07  # three binomial standard errors about .05
    assert (permutation_law(plain, kernel)[1] < 0.05).double().mean() > 0.06


def test_spots_whose_mean_is_fitted_as_nothing_are_not_covered():
    kernel = spatial_kernel(grid(5))
    mean = torch.full((1, 25), 2.0, dtype=torch.float64)
    mean[0, :5] = 1e-20
    counts = torch.zeros(1, 25, dtype=torch.float64)
    counts[0, 5:] = torch.arange(20.0) % 5
    residuals = count_residuals(counts, mean, mean, orthonormal_columns(None, kernel.diagonal))
    assert residuals.n_covered.tolist() == [20] and (residuals.vectors[0, :5] == 0).all()
    assert torch.isfinite(torch.stack(permutation_law(residuals, kernel))).all()


def test_one_spot_far_deeper_than_all_others_does_not_decide():
    rng, kernel = np.random.default_rng(2), spatial_kernel(grid(8), damping=0.01)
    size = np.full(64, 5.0)
    size[20] = 5_000.0
    counts = torch.from_numpy(rng.poisson(size, (800, 64)).astype(float))
    mean = counts.sum(1, keepdim=True) / size.sum() * torch.from_numpy(size)
    residuals = count_residuals(counts, mean, mean, orthonormal_columns(None, kernel.diagonal))
    share = residuals.scale.square().amax(1) / residuals.scale.square().sum(1)
    torch.testing.assert_close(share, torch.full_like(share, 0.05), rtol=1e-6, atol=0.0)
    pvalue = permutation_law(residuals, kernel)[1]
    assert torch.isfinite(pvalue).all() and 0.025 < (pvalue < 0.05).double().mean() < 0.075
