import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyrosplice.errors import InvalidArgumentError, NonSpatialWarning
from pyrosplice.spatial.graph import adjacency_graph, component_labels, knn_graph, warn_if_disconnected
from tests.paths import shared


def square_grid(rows: int, columns: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2).astype(float)


def brute_force(points: np.ndarray, k: int) -> np.ndarray:
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    nearest = np.zeros(distance.shape, bool)
    np.put_along_axis(nearest, np.argsort(distance, 1)[:, :k], True, 1)
    return nearest


@pytest.mark.parametrize("k", [1, 4, 9])
def test_without_ties_the_edges_are_those_of_a_full_sort(k):
    points = np.random.default_rng(0).uniform(size=(60, 2))
    nearest = brute_force(points, k)
    np.testing.assert_array_equal(knn_graph(points, k_neighbors=k).toarray(), nearest & nearest.T)
    np.testing.assert_array_equal(knn_graph(points, k_neighbors=k, graph="union").toarray(), nearest | nearest.T)


def test_four_neighbors_of_a_square_grid_are_the_grid():
    expected = np.load(shared("gold", "grid16_W_K.npz"))["W"]
    np.testing.assert_array_equal(knn_graph(square_grid(16, 16)).toarray(), expected)


def test_a_hexagonal_grid_keeps_all_six_neighbors():
    rows, columns = np.divmod(np.arange(120), 10)
    points = np.stack([columns + 0.5 * (rows % 2), rows * np.sqrt(3) / 2], 1)
    interior = (rows > 0) & (rows < 11) & (columns > 0) & (columns < 9)
    degree = knn_graph(points, k_neighbors=6).toarray().sum(1)
    assert (degree[interior] == 6).all()
    four = knn_graph(points, k_neighbors=4).toarray()
    inside = (rows > 1) & (rows < 10) & (columns > 1) & (columns < 8)
    assert (four.sum(1)[inside] == 6).all()  # six at the same distance: all of them rather than none


@pytest.mark.parametrize("graph", ["mutual", "union", "connected"])
def test_the_graph_does_not_depend_on_the_order_of_the_spots(graph):
    rng = np.random.default_rng(1)
    points = np.concatenate([square_grid(7, 8), rng.uniform(20, 30, size=(40, 2))])
    order = rng.permutation(len(points))
    original = knn_graph(points, graph=graph).toarray()
    np.testing.assert_array_equal(knn_graph(points[order], graph=graph).toarray(), original[np.ix_(order, order)])


def test_real_spots_give_the_union_graph_of_the_gold_fits():
    anndata = pytest.importorskip("anndata")
    points = anndata.read_h5ad(shared("data", "mob_rep11_families.h5ad")).obsm["spatial"]
    edges = pd.read_csv(shared("gold", "mob_knn4_edges.csv")).to_numpy()
    expected = sp.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(points),) * 2).toarray()
    expected = np.maximum(expected, expected.T)
    np.testing.assert_array_equal(knn_graph(points, graph="union").toarray(), expected)


def test_connected_adds_only_the_missing_links():
    points = np.random.default_rng(2).uniform(size=(300, 2))
    mutual, connected = knn_graph(points), knn_graph(points, graph="connected")
    count, labels = component_labels(mutual)
    assert count > 10
    assert component_labels(connected)[0] == 1
    added = sp.triu(connected - mutual).tocoo()
    assert added.nnz == count - 1
    assert (labels[added.row] != labels[added.col]).all()
    assert set(connected.data) == {1.0}


def test_links_between_far_islands_and_copies_of_a_spot():
    points = np.concatenate([square_grid(4, 4), square_grid(4, 4) + 100.0, np.zeros((3, 2))])
    connected = knn_graph(points, graph="connected")
    assert component_labels(connected)[0] == 1
    assert (connected != connected.T).nnz == 0


def test_given_weights_are_kept_and_averaged_with_the_transpose():
    weights = np.array([[0.0, 2.0, 0.0], [1.0, 0.5, 0.0], [0.0, 3.0, 0.0]])
    expected = (weights + weights.T) / 2
    np.testing.assert_allclose(adjacency_graph(weights).toarray(), expected)
    np.testing.assert_allclose(adjacency_graph(sp.coo_matrix(weights)).toarray(), expected)


def test_a_disconnected_graph_warns_with_the_number_of_components():
    with pytest.warns(NonSpatialWarning, match="5 spots falls into 3 components .1 of them"):
        warn_if_disconnected(adjacency_graph(np.kron(np.diag([1, 1, 0]), 1 - np.eye(2))[:5, :5]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_disconnected(knn_graph(square_grid(3, 3)))


POINTS = np.random.default_rng(3).uniform(size=(6, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn_graph(POINTS, k_neighbors=0), "k_neighbors: .*1 to 5.*found 0"),
        (lambda: knn_graph(POINTS, k_neighbors=6), "k_neighbors: .*found 6"),
        (lambda: knn_graph(POINTS, k_neighbors=2.5), "k_neighbors: .*found 2.5"),
        (lambda: knn_graph(np.where(POINTS > 0.5, np.nan, POINTS)), "coords: .*without"),
        (lambda: knn_graph(POINTS[:, 0]), "coords: .*shape"),
        (lambda: knn_graph(POINTS, graph="nearest"), "graph: expected one of"),
        (lambda: adjacency_graph(np.ones((3, 2))), "adjacency: .*square"),
        (lambda: adjacency_graph(-np.eye(3)), "adjacency: .*found -1"),
        (lambda: adjacency_graph(np.full((3, 3), np.nan)), "adjacency: .*NaN"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call()


CONTAINERS = [pd.DataFrame, sp.csr_matrix, sp.coo_matrix, torch.tensor, lambda m: m.astype(object)]


@pytest.mark.parametrize("convert", CONTAINERS)
def test_coordinates_and_weights_of_every_container(convert):
    points = np.random.default_rng(3).uniform(size=(30, 2))
    assert (knn_graph(convert(points)) != knn_graph(points)).nnz == 0
    weights = knn_graph(points).toarray()
    assert (adjacency_graph(convert(weights)) != adjacency_graph(weights)).nnz == 0


def test_columns_of_an_adjacency_go_by_the_names_of_its_rows():
    weights = knn_graph(np.random.default_rng(3).uniform(size=(10, 2))).toarray()
    names = [f"spot{i}" for i in range(10)]
    table = pd.DataFrame(weights, index=names, columns=names)
    found = adjacency_graph(table[names[::-1]])
    assert (found != adjacency_graph(weights)).nnz == 0
    with pytest.raises(InvalidArgumentError, match=r"^adjacency: expected all 10 names of the spots"):
        adjacency_graph(table.rename(columns={"spot3": "other"}))


@pytest.mark.parametrize("bad", [np.eye(3) + 0j, np.eye(3).astype(str), np.ma.masked_array(np.eye(3), np.eye(3))])
def test_weights_that_are_no_numbers(bad):
    with pytest.raises(InvalidArgumentError, match=r"^adjacency: expected numbers"):
        adjacency_graph(bad)
