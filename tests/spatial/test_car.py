import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyrosplice.errors import InvalidArgumentError, NonSpatialWarning
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance, get_cov_sp
from tests.paths import shared


def from_edges(path, n_spots):
    edges = pd.read_csv(path).to_numpy()
    upper = sp.coo_matrix((np.ones(len(edges)), edges.T), shape=(n_spots, n_spots))
    return upper.maximum(upper.T)


def documented(adjacency: np.ndarray, rho: float) -> np.ndarray:
    """The definition, dense: an isolated spot gets a self-loop."""
    w = adjacency + np.diag((adjacency.sum(1) == 0).astype(float))
    root = np.diag(w.sum(1) ** -0.5)
    k = np.linalg.inv(np.eye(len(w)) - rho * root @ w @ root)
    d = np.diag(k) ** -0.5
    return d[:, None] * k * d


def weighted_graph(n: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    w = rng.uniform(0.2, 2.0, size=(n, n)) * (rng.uniform(size=(n, n)) < 0.1)
    w = (w + w.T) / 2
    w[:, 3] = w[3] = 0.0  # one spot alone
    return w


def test_grid_covariance_is_the_gold_one():
    gold = np.load(shared("gold", "grid16_W_K.npz"))
    np.testing.assert_allclose(CarCovariance(gold["W"]).dense().numpy(), gold["K"], atol=1e-10)


def test_tiny_covariance_is_the_gold_one():
    gold = pd.read_csv(shared("gold", "tiny12_K.csv"), header=None).to_numpy()
    covariance = CarCovariance(from_edges(shared("gold", "tiny12_edges.csv"), 12)).dense().numpy()
    np.testing.assert_allclose(covariance, gold, atol=1e-10)


def test_real_graph_agrees_with_the_definition():
    adjacency = from_edges(shared("gold", "mob_knn4_edges.csv"), 260)
    covariance = CarCovariance(adjacency).dense().numpy()
    np.testing.assert_allclose(covariance, documented(adjacency.toarray(), 0.99), atol=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.99])
def test_weights_and_isolated_spots_agree_with_the_definition(rho):
    adjacency = weighted_graph()
    covariance = CarCovariance(adjacency, rho=rho)
    expected = documented(adjacency, rho)
    np.testing.assert_allclose(covariance.dense().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(np.diag(covariance.dense()), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(expected), covariance.precision.toarray(), atol=1e-9)
    assert covariance.precision.has_sorted_indices
    assert covariance.precision.nnz <= np.count_nonzero(adjacency) + len(adjacency)


def test_leading_eigenpairs_agree_with_the_full_ones():
    covariance = CarCovariance(weighted_graph(60))
    values, vectors = covariance.eigen()
    np.testing.assert_allclose((vectors * values @ vectors.T).numpy(), covariance.dense().numpy(), atol=1e-11)
    assert (values[:-1] >= values[1:]).all()
    few, few_vectors = covariance.eigen(rank=7)
    np.testing.assert_allclose(few, values[:7], rtol=1e-10)
    np.testing.assert_allclose(covariance.dense() @ few_vectors, few_vectors * few, atol=1e-10)
    assert covariance.eigen(rank=1000)[0].shape == (60,)


def test_samples_have_the_covariance():
    covariance = CarCovariance(weighted_graph(20), rho=0.9)
    draws = covariance.sample(40_000, torch.Generator().manual_seed(0))
    assert draws.shape == (40_000, 20)
    expected = covariance.dense().numpy()
    error = np.cov(draws.numpy().T) - expected
    standard_error = np.sqrt((1 + expected**2) / 40_000)  # of a covariance of unit-variance normals
    assert np.abs(error / standard_error).max() < 4.5
    again = covariance.sample(40_000, torch.Generator().manual_seed(0))
    assert torch.equal(draws, again)


def test_identity_has_the_same_interface():
    identity = IdentityCovariance(5)
    assert torch.equal(identity.dense(), torch.eye(5, dtype=torch.float64))
    values, vectors = identity.eigen(rank=2)
    assert values.tolist() == [1.0, 1.0]
    assert torch.equal(vectors.T @ vectors, torch.eye(2, dtype=torch.float64))
    assert (identity.precision != sp.identity(5)).nnz == 0
    draws = identity.sample(5_000, torch.Generator().manual_seed(1))
    assert abs(draws.var().item() - 1) < 0.05


def test_get_cov_sp_takes_tensors_and_warns_about_components():
    rows, columns = np.divmod(np.arange(30), 6)
    points = torch.tensor(np.stack([rows, columns], 1), dtype=torch.float32)
    expected = CarCovariance(knn_graph(points.numpy()), rho=0.9).dense()
    assert torch.equal(get_cov_sp(points, k=4, rho=0.9), expected)
    scattered = np.random.default_rng(0).uniform(size=(100, 2))
    with pytest.warns(NonSpatialWarning, match="components"):
        get_cov_sp(scattered)
    assert get_cov_sp(scattered, graph="connected").shape == (100, 100)


@pytest.mark.parametrize("rho", [-0.1, 1.0, 1.5, float("nan")])
def test_rho_must_leave_the_precision_positive_definite(rho):
    with pytest.raises(InvalidArgumentError, match="rho"):
        CarCovariance(weighted_graph(), rho=rho)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True])
def test_rank_must_be_a_positive_whole_number(rank):
    with pytest.raises(InvalidArgumentError, match="rank"):
        CarCovariance(weighted_graph()).eigen(rank)
