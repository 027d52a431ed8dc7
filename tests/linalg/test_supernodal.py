"""Factors by supernodes against those of eight genes in lanes and dense matrices, on graphs of every kind."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from pyrosplice._linalg import elimination, sparse
from pyrosplice._linalg.sparse import SparseSolver, inverse_diagonal
from pyrosplice._linalg.supernodal import OrderedMatrix, SupernodalFactor, Supernodes
from pyrosplice.spatial._graph import knn_graph


def hexagons(rows: int, columns: int) -> sp.csr_matrix:
    """Neighbours at distance 1 of a hexagonal layout."""
    at = np.array([(c + r % 2 / 2, r * 3**0.5 / 2) for r in range(rows) for c in range(columns)])
    near = np.linalg.norm(at[:, None] - at, axis=-1) < 1.01
    return sp.csr_matrix(near & ~np.eye(len(at), dtype=bool), dtype=float)


def nearest(n: int, k: int, seed: int) -> sp.csr_matrix:
    return knn_graph(np.random.default_rng(seed).random((n, 2)), k_neighbors=k, graph="union")


def star(n: int) -> sp.csr_matrix:
    arms = np.ones(n - 1)
    return sp.csr_matrix((arms, (np.zeros(n - 1, int), np.arange(1, n))), (n, n))


GRAPHS = {
    "one spot": lambda: sp.csr_matrix((1, 1)),
    "two spots": lambda: sp.csr_matrix([[0, 1.0], [1, 0]]),
    "no edges": lambda: sp.csr_matrix((40, 40)),
    "path": lambda: sp.diags([np.ones(49)], [1], format="csr"),
    "star": lambda: star(60),
    "all with all": lambda: sp.csr_matrix(np.ones((150, 150)) - np.eye(150)),  # wider than a supernode may be
    "hexagons": lambda: hexagons(14, 11),
    "nearest 4": lambda: nearest(300, 4, 0),
    "nearest 9": lambda: nearest(700, 9, 1),
    "random": lambda: sp.random(120, 120, 0.03, random_state=np.random.default_rng(2), format="csr"),
    "pieces": lambda: sp.block_diag([nearest(90, 3, 3), sp.csr_matrix((7, 7)), star(30), hexagons(5, 5)], format="csr"),
}


def precision(name: str, seed: int = 0) -> sp.csc_matrix:
    """A positive definite matrix on the graph, of random entries, its spots in random order."""
    rng = np.random.default_rng(seed)
    graph = sp.triu(GRAPHS[name](), 1).tocsr()
    graph.data = rng.uniform(-1, 0.3, graph.nnz)
    graph = graph + graph.T
    order = rng.permutation(graph.shape[0])
    full = graph + sp.diags(np.asarray(abs(graph).sum(1)).ravel() + rng.uniform(0.05, 1.0, graph.shape[0]))
    return sp.csc_matrix(full)[order][:, order].tocsc()


def system(matrix: sp.csc_matrix, blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    dense = np.kron(matrix.toarray(), np.eye(len(blocks)))
    for i, block in enumerate(np.moveaxis(blocks, -1, 0)):
        at = slice(i * len(block), (i + 1) * len(block))
        dense[at, at] += block
    return dense


def close(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * abs(expected).max())


@pytest.mark.parametrize("q", [1, 2, 5])
@pytest.mark.parametrize("name", GRAPHS)
def test_is_the_dense_matrix(name: str, q: int) -> None:
    matrix, rng = precision(name), np.random.default_rng(1)
    n = matrix.shape[0]
    root = rng.normal(size=(n, q, q))
    blocks = np.moveaxis(root @ root.transpose(0, 2, 1), 0, -1)
    nodes = Supernodes.of(matrix)
    factor = SupernodalFactor(nodes, OrderedMatrix.of(matrix, nodes.order), blocks, q)
    dense = system(matrix, blocks)
    inverse = np.linalg.inv(dense)
    close(factor.logdet(), np.linalg.slogdet(dense)[1])
    rhs = rng.normal(size=(3, q, n, 1))
    flat = rhs[..., 0].transpose(2, 1, 0).reshape(n * q, 3)
    close(factor.solve(rhs)[..., 0], (inverse @ flat).reshape(n, q, 3).transpose(2, 1, 0))
    units = np.eye(n * q).reshape(n * q, n, q).transpose(0, 2, 1)[..., None]
    half = factor.solve(units, lower=False)[..., 0].transpose(0, 2, 1).reshape(n * q, n * q)
    close(half.T @ half, inverse)
    spots = inverse.reshape(n, q, n, q)[np.arange(n), :, np.arange(n)]
    close(factor.inverse_blocks()[..., 0], spots.transpose(1, 2, 0))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("n_genes", [1, 3, 11])
def test_is_the_factor_in_lanes(name: str, n_genes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, q = precision(name), 2
    root = torch.randn(n_genes, matrix.shape[0], q, q, generator=torch.Generator().manual_seed(0)).double()
    rhs = torch.randn(n_genes, matrix.shape[0], q, 2, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for spots_a_gene in (0, 10**9):
        monkeypatch.setattr(sparse, "SPOTS_A_GENE", spots_a_gene)
        solver = SparseSolver(matrix)
        assert len(solver.pattern.groups(n_genes)) == (-(-n_genes // 8) if spots_a_gene else n_genes)
        factor = solver.factorize(root @ root.mT)
        parts = [factor.logdet(), factor.solve(rhs), factor.solve(rhs[..., 0]), factor.color(rhs)]
        field = torch.randn(2, matrix.shape[0], 3, generator=torch.Generator().manual_seed(2)).double()
        found.append([*parts, factor.spot_covariance(), solver.color(field), torch.tensor(solver.prior_logdet)])
    for by_gene, in_lanes in zip(*found, strict=True):
        torch.testing.assert_close(by_gene, in_lanes, rtol=1e-9, atol=1e-10)


def test_a_gene_is_the_same_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SPOTS_A_GENE", 100)  # of 300 spots one to three genes go by themselves
    solver = SparseSolver(precision("nearest 4"))
    blocks = torch.rand(11, 300, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    assert [group.stop - group.start for group in solver.pattern.groups(11)] == [8, 1, 1, 1]
    together = solver.factorize(blocks).spot_covariance()
    alone = torch.cat([solver.factorize(blocks[g : g + 1]).spot_covariance() for g in range(11)])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=0)


def test_an_indefinite_matrix_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SPOTS_A_GENE", 0)
    solver = SparseSolver(precision("nearest 4"))
    blocks = torch.zeros(3, 300, 2, 2).double()
    blocks[1, 123] = -1e3 * torch.eye(2).double()
    factor = solver.factorize(blocks)
    assert torch.isfinite(factor.logdet()).tolist() == [True, False, True]
    assert torch.isfinite(factor.spot_covariance()).flatten(1).all(1)[[0, 2]].all()


@pytest.mark.parametrize("merged", [((2**62, 0.0),), ((2**62, 1.0),), elimination.MERGED])
@pytest.mark.parametrize("widest", [1, 3, 64])
@pytest.mark.parametrize("name", ["all with all", "hexagons", "nearest 9", "pieces", "star"])
def test_supernodes_may_be_of_any_size(
    name: str, merged: tuple[tuple[int, float], ...], widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "MERGED", merged)
    monkeypatch.setattr(elimination, "WIDEST", widest)
    matrix = precision(name, 5)
    nodes = Supernodes.of(matrix)
    assert np.diff(nodes.first).max() <= widest and nodes.first[-1] == matrix.shape[0]
    assert sorted(nodes.order) == list(range(matrix.shape[0]))
    close(inverse_diagonal(matrix), np.linalg.inv(matrix.toarray()).diagonal())


def test_a_matrix_on_part_of_the_pattern_will_do() -> None:
    matrix = precision("nearest 9")
    pattern = SparseSolver(matrix).pattern
    part = sp.triu(matrix, 1).tocsr()
    part.data[np.random.default_rng(0).random(part.nnz) < 0.5] = 0.0
    part.eliminate_zeros()
    part = sp.csc_matrix(part + part.T + sp.diags(matrix.diagonal()))
    close(pattern.inverse_diagonal(part), np.linalg.inv(part.toarray()).diagonal())
