"""Every spatial solver against the dense matrices that it stands for."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyrosplice._linalg.blocks import inverse_and_logdet, last_max, last_sum, matmul, matvec, planar
from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.select import solver_for, sparse_inverse
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._linalg.sparse import SparseSolver, inverse_diagonal
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance

N_SPOTS = 60


def car(seed: int = 0, n: int = N_SPOTS) -> CarCovariance:
    coordinates = np.random.default_rng(seed).random((n, 2))
    return CarCovariance(knn_graph(coordinates, k_neighbors=6, graph="union"))


def kernel(n: int = N_SPOTS) -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(1).random((n, 2)))
    return torch.exp(-(torch.cdist(x, x).square()) / 0.1) + 1e-3 * torch.eye(n, dtype=torch.float64)


SOLVERS = {
    "sparse": lambda: SparseSolver(car().precision),
    "dense": lambda: LowRankSolver.from_dense(car().dense()),
    "kernel": lambda: LowRankSolver.from_dense(kernel()),
    "truncated": lambda: LowRankSolver(*car().eigen(12), variances=torch.ones(N_SPOTS, dtype=torch.float64)),
}


def blocks(n_genes: int, n: int, q: int, seed: int = 0) -> torch.Tensor:
    root = torch.randn(n_genes, n, q, q, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT


def dense_form(solver: SpatialSolver, q: int) -> tuple[torch.Tensor, torch.Tensor]:
    """F ⊗ I and P ⊗ I, read off the solver by applying it to unit vectors."""
    eye = torch.eye(solver.n_latent, dtype=torch.float64).unsqueeze(-1)
    root = solver.spread(eye)[..., 0].T.contiguous()
    prior = solver.prior(eye)[..., 0].T.contiguous()
    return torch.kron(root.contiguous(), torch.eye(q, dtype=torch.float64)), torch.kron(
        prior, torch.eye(q, dtype=torch.float64)
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("n_genes", "q"), [(1, 1), (3, 2), (9, 3), (2, 6)])
def test_newton_matrix(name: str, n_genes: int, q: int) -> None:
    solver = SOLVERS[name]()
    m = blocks(n_genes, N_SPOTS, q)
    root, prior = dense_form(solver, q)
    system = torch.stack([prior + root.T @ torch.block_diag(*gene) @ root for gene in m])
    factor = solver.factorize(planar(m))
    torch.testing.assert_close(factor.logdet(), torch.logdet(system))
    torch.testing.assert_close(torch.tensor(solver.prior_logdet, dtype=torch.float64), torch.logdet(prior) / q)
    rhs = torch.randn(n_genes, solver.n_latent, q, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.solve(system, rhs.reshape(n_genes, -1, 4)).reshape(rhs.shape)
    torch.testing.assert_close(factor.solve(rhs), expected)
    torch.testing.assert_close(factor.solve(rhs[..., 0]), expected[..., 0])
    inverse = root @ torch.linalg.inv(system) @ root.T
    spots = inverse.reshape(n_genes, N_SPOTS, q, N_SPOTS, q).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    torch.testing.assert_close(factor.spot_covariance(), spots)


@pytest.mark.parametrize("name", SOLVERS)
def test_draws_have_the_covariance_they_should(name: str) -> None:
    solver = SOLVERS[name]()
    size = solver.n_latent
    unit = torch.eye(size, dtype=torch.float64)
    field = solver.color(unit.unsqueeze(-1))[..., 0].T  # column j: the draw from the j-th unit vector
    root, prior = dense_form(solver, 1)
    torch.testing.assert_close(field @ field.T, root @ torch.linalg.inv(prior) @ root.T)
    m = blocks(1, N_SPOTS, 2)
    root, prior = dense_form(solver, 2)
    system = prior + root.T @ torch.block_diag(*m[0]) @ root
    half = solver.factorize(planar(m)).color(torch.eye(2 * size, dtype=torch.float64).reshape(1, size, 2, 2 * size))
    half = half.reshape(2 * size, 2 * size)
    torch.testing.assert_close(half @ half.T, torch.linalg.inv(system))


@pytest.mark.parametrize("name", SOLVERS)
def test_covariance_product(name: str) -> None:
    solver = SOLVERS[name]()
    x = torch.randn(2, N_SPOTS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    covariance = {"kernel": kernel(), "truncated": None}.get(name, car().dense())
    if covariance is None:
        values, vectors = car().eigen(12)
        covariance = (vectors * values) @ vectors.T
        covariance = covariance + torch.diag(1 - covariance.diagonal())  # the trace is kept
    torch.testing.assert_close(solver.covariance_product(x), covariance @ x)


def test_an_indefinite_gene_harms_no_other() -> None:
    solver = SparseSolver(car().precision)
    good = blocks(5, N_SPOTS, 2)
    bad = good.clone()
    bad[3, 7] = -1e6 * torch.eye(2, dtype=torch.float64)
    factor, reference = solver.factorize(planar(bad)), solver.factorize(planar(good))
    others = torch.tensor([0, 1, 2, 4])
    assert not torch.isfinite(factor.logdet()[3])
    torch.testing.assert_close(factor.logdet()[others], reference.logdet()[others], rtol=0, atol=0)
    torch.testing.assert_close(factor.spot_covariance()[others], reference.spot_covariance()[others], rtol=0, atol=0)


def test_inverse_diagonal() -> None:
    precision = car(3, 200).precision
    np.testing.assert_allclose(inverse_diagonal(precision), np.diag(np.linalg.inv(precision.toarray())), rtol=1e-10)
    np.testing.assert_allclose(inverse_diagonal(sp.identity(5) * 4.0), 0.25)


def test_a_dense_covariance_with_a_sparse_inverse_is_recognized() -> None:
    covariance = car(0, 300)
    found = solver_for(covariance.dense())
    assert isinstance(found, SparseSolver)
    assert abs(found.precision - covariance.precision).max() < 1e-9
    assert isinstance(solver_for(*[covariance]), SparseSolver)
    values, vectors = covariance.eigen()
    assert isinstance(solver_for(eigenvalues=values, eigenvectors=vectors), SparseSolver)
    assert isinstance(solver_for(kernel()), LowRankSolver)
    assert sparse_inverse(torch.ones(4, 4, dtype=torch.float64)) is None  # singular


def test_a_truncated_covariance_keeps_its_trace() -> None:
    values, vectors = car().eigen(10)
    solver = solver_for(eigenvalues=values, eigenvectors=vectors)
    assert solver.n_latent == 10
    assert solver.remainder is not None
    total = solver.spread(torch.eye(10, dtype=torch.float64).unsqueeze(-1)).square().sum() + solver.remainder.sum()
    assert float(total) == pytest.approx(N_SPOTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither"),
        ({"covariance": torch.ones(3, 4)}, "square"),
        ({"covariance": torch.tensor([[1.0, 0.5], [0.1, 1.0]])}, "symmetric"),
        ({"covariance": torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])}, "finite"),
        ({"covariance": torch.tensor([[0.0, 0.0], [0.0, 1.0]])}, "positive variances"),
        ({"eigenvalues": torch.ones(3)}, "both or neither"),
        ({"eigenvalues": torch.ones(3), "eigenvectors": torch.ones(5, 2)}, "shapes"),
        ({"eigenvalues": torch.tensor([1.0, -1.0]), "eigenvectors": torch.ones(5, 2)}, "negative eigenvalue"),
    ],
)
def test_bad_covariances(arguments: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        solver_for(**arguments)


@pytest.mark.parametrize("q", [1, 2, 5])
def test_block_operations(q: int) -> None:
    m = blocks(3, 7, q) + torch.eye(q, dtype=torch.float64)
    inverse, logdet = inverse_and_logdet(planar(m))
    torch.testing.assert_close(inverse, torch.linalg.inv(m))
    torch.testing.assert_close(logdet, torch.logdet(m))
    torch.testing.assert_close(matmul(planar(m), m), m @ m)
    torch.testing.assert_close(matvec(planar(m), m[..., 0]), (m @ m[..., :1])[..., 0])


@pytest.mark.parametrize("shape", [(3, 4, 1), (3, 4, 2), (2, 5), (2, 3, 4, 3)])
@pytest.mark.parametrize("layout", ["planar", "rows", "swapped"])
def test_sums_and_maxima_of_the_last_dimension(shape: tuple[int, ...], layout: str) -> None:
    """In any layout, missing numbers stay missing, and derivatives are those of torch."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = {"planar": planar, "rows": torch.clone, "swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)}[
        layout
    ](x)
    x[1] = torch.nan
    torch.testing.assert_close(last_sum(x), x.sum(-1), equal_nan=True)
    torch.testing.assert_close(last_max(x), x.amax(-1), equal_nan=True)
    good = x[:1].requires_grad_(True)
    for ours, theirs in ((last_sum, torch.sum), (last_max, torch.amax)):
        slopes = [torch.autograd.grad(f(good).square().sum(), good)[0] for f in (ours, lambda y, g=theirs: g(y, -1))]
        torch.testing.assert_close(*slopes)
