"""The field at new spots given that at old ones, against the dense CAR of the graph of both."""

import numpy as np
import pytest
import torch

from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial._new_spots import Positions, new_spots
from pyrosplice.spatial._spatial_blocks import spatial_blocks
from pyrosplice.spatial.car import CarCovariance

GRID = np.stack(np.meshgrid(np.arange(9.0), np.arange(8.0)), -1).reshape(-1, 2)
WHOLE = CarCovariance(knn_graph(GRID, k_neighbors=4), rho=0.97)


def one_section(coords):
    return Positions(coords, np.zeros(len(coords), dtype=np.intp))


def held_out(seed, share=0.25):
    return np.random.default_rng(seed).random(len(GRID)) < share


def of_grid(held):
    fitted = CarCovariance(WHOLE.adjacency[~held][:, ~held], rho=WHOLE.rho)
    return fitted, new_spots(fitted, one_section(GRID[~held]), one_section(GRID[held]), k_neighbors=4, graph="mutual")


@pytest.mark.parametrize("seed", range(3))
def test_new_spots_given_old_ones_are_those_of_the_car_of_all(seed):
    held = held_out(seed)
    _, field = of_grid(held)
    v = WHOLE.dense()
    weights = v[held][:, ~held] @ torch.linalg.inv(v[~held][:, ~held])
    left = v[held][:, held] - weights @ v[~held][:, held]
    n_new = int(held.sum())
    torch.testing.assert_close(field.weights(torch.arange(n_new)), weights, atol=1e-9, rtol=0)
    torch.testing.assert_close(field.variance, left.diagonal(), atol=1e-9, rtol=0)
    root = field.noise(torch.eye(n_new, dtype=torch.float64).unsqueeze(0))[0]
    torch.testing.assert_close(root @ root.T, left, atol=1e-9, rtol=0)
    some = torch.randn(2, int((~held).sum()), 3, generator=torch.Generator().manual_seed(seed)).double()
    torch.testing.assert_close(field.expected(some), weights @ some, atol=1e-9, rtol=0)
    assert field.joined.all() and len(field) == n_new


@pytest.mark.parametrize("seed", range(3))
def test_the_field_varies_at_new_spots_about_as_at_old_ones(seed):
    fitted, field = of_grid(held_out(seed))
    weights = field.weights(torch.arange(len(field)))
    variance = (weights @ fitted.dense() * weights).sum(1) + field.variance
    assert float(variance.min()) > 0.7 and float(variance.max()) < 1.1  # a quarter of the spots is missing


def test_the_farther_from_old_spots_the_less_is_known():
    held = np.abs(GRID - [4, 4]).max(1) <= 2
    _, field = of_grid(held)
    depth = 2 - np.abs(GRID[held] - [4, 4]).max(1)
    known = field.weights(torch.arange(len(field)))
    spread = 1 - (known @ WHOLE.dense()[~held][:, ~held] * known).sum(1)  # of what old spots do not say
    means = [float(spread[depth == d].mean()) for d in (0, 1, 2)]
    assert means[0] < means[1] < means[2]


def test_spots_that_nothing_leads_to_have_the_prior():
    fitted = CarCovariance(knn_graph(GRID, k_neighbors=4), rho=0.97)
    far = np.array([[4.5, 3.5], [30.0, 30.0], [4.5, 3.5]])
    new = Positions(far, np.array([0, 0, 7]))
    field = new_spots(fitted, one_section(GRID), new, k_neighbors=4, graph="union")
    assert field.joined.tolist() == [True, False, False]
    weights = field.weights(torch.arange(3))
    assert float(weights[1:].abs().max()) == 0.0
    torch.testing.assert_close(field.variance[1:], torch.ones(2).double())
    assert float(field.variance[0]) < 0.7


@pytest.mark.parametrize("n_blocks", [2, 7, 16])
def test_blocks_cover_all_spots_evenly_and_stay_within_sections(n_blocks):
    coords = np.random.default_rng(0).random((300, 2))
    sections = np.repeat([0, 1], [200, 100])
    blocks = spatial_blocks(coords, sections, n_blocks)
    sizes = np.bincount(blocks)
    assert len(sizes) == n_blocks and sizes.max() <= 2.1 * sizes.min()
    assert all(len(set(sections[blocks == block])) == 1 for block in range(n_blocks))


def test_blocks_of_one_position_stay_whole():
    coords = np.repeat([[0.0, 0.0], [1.0, 0.0]], 5, axis=0)
    assert spatial_blocks(coords, np.zeros(10, dtype=np.intp), 6).tolist() == [0] * 5 + [1] * 5
