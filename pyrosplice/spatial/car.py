r"""The conditional autoregressive (CAR) covariance of a graph, and the identity that stands for "no space".

.. math:: V = S^{-1} M^{-1} S^{-1}, \quad M = I - \rho D^{-1/2} W D^{-1/2}, \quad S = \operatorname{diag}(M^{-1})^{1/2}

W is the adjacency (a spot without neighbours gets a self-loop), D its row sums; V has unit diagonal and is not
centred. Its inverse :math:`S M S` has the pattern of the graph, which is what makes thousands of spots cheap.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyrosplice._linalg.sparse import SparsePattern, SparseSolver, smallest_eigenpairs
from pyrosplice.errors import InvalidArgumentError, is_number
from pyrosplice.spatial._covariance import SpatialCovariance
from pyrosplice.spatial._graph import Graph, adjacency_graph, knn_graph, warn_if_disconnected


class CarCovariance(SpatialCovariance):
    """Conditional autoregressive (CAR) covariance V of a graph, held as its sparse inverse.

    Parameters
    ----------
    adjacency
        ``(N, N)`` dense or sparse, weights ≥ 0; symmetrised by averaging.
    rho
        Strength ρ of the spatial dependence, in [0, 1); near 1 is smoother, 0 is the identity.

    Attributes
    ----------
    adjacency : scipy.sparse.csr_matrix
        The symmetrised graph, ``(N, N)``.
    precision : scipy.sparse.csc_matrix
        V⁻¹, ``(N, N)``, the graph's pattern and the diagonal, sorted indices.
    n_spots : int
        N.
    rho : float
        ρ.
    pattern : SparsePattern
        Ordering and symbolic factor that V⁻¹ and V⁻¹ + τI share.

    Raises
    ------
    InvalidArgumentError
        ρ outside [0, 1); an adjacency that is not square, finite and non-negative.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    >>> covariance = CarCovariance(knn_graph(spots), rho=0.9)
    >>> covariance.n_spots, covariance.precision.nnz  # sparse: each spot with itself and its neighbours
    (100, 460)
    """

    def __init__(self, adjacency: object, *, rho: float = 0.99) -> None:
        check_rho(rho)
        self.rho = float(rho)
        self.adjacency = adjacency_graph(adjacency)
        normalized = _normalized(self.adjacency)
        unscaled = sp.csc_matrix(sp.identity(self.adjacency.shape[0]) - self.rho * normalized)
        self.pattern = SparsePattern(unscaled)
        scale = sp.diags(np.sqrt(self.pattern.inverse_diagonal()))
        self.precision: sp.csc_matrix = sp.csc_matrix(scale @ unscaled @ scale)
        self.precision.sort_indices()

    @property
    def least_precision(self) -> float:
        """A lower bound of the eigenvalues of V⁻¹: (1 − ρ) times its least diagonal entry."""
        return (1 - self.rho) * float(self.precision.diagonal().min())

    def eigen(self, rank: int | None = None) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues of V, ``(r,)`` descending, and eigenvectors, ``(N, r)``.

        Parameters
        ----------
        rank
            How many; all N when None or ≥ N. The leading ones of V are the smallest of its sparse inverse.
        """
        check_rank(rank)
        if rank is None or rank >= self.n_spots:
            values, vectors = np.linalg.eigh(self.precision.toarray())
        else:
            values, vectors = smallest_eigenpairs(self.precision, rank)
        return torch.from_numpy(1.0 / values), torch.from_numpy(np.ascontiguousarray(vectors))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` fields from N(0, V), by back-substitution with the sparse factor of V⁻¹: ``(n, N)``."""
        noise = torch.randn(1, self.n_spots, n, generator=generator, dtype=torch.float64)
        return SparseSolver(self.precision).color(noise)[0].T.contiguous()

    def __repr__(self) -> str:
        return f"CarCovariance(n_spots={self.n_spots}, n_edges={sp.triu(self.adjacency, 1).nnz}, rho={self.rho:g})"


class IdentityCovariance(SpatialCovariance):
    """Covariance of the model without spatial dependence, V = I. Same interface as :class:`CarCovariance`.

    Examples
    --------
    >>> from pyrosplice.spatial import IdentityCovariance
    >>> IdentityCovariance(3).dense()
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]], dtype=torch.float64)
    """

    def __init__(self, n_spots: int) -> None:
        self.rho = 0.0
        self.precision = sp.csc_matrix(sp.identity(int(n_spots), format="csc"))

    def dense(self) -> Tensor:
        """The identity, ``(N, N)``, float64."""
        return torch.eye(self.n_spots, dtype=torch.float64)

    def eigen(self, rank: int | None = None) -> tuple[Tensor, Tensor]:
        """Ones ``(r,)`` and the first r unit vectors ``(N, r)``."""
        check_rank(rank)
        size = self.n_spots if rank is None else min(rank, self.n_spots)
        return torch.ones(size, dtype=torch.float64), torch.eye(self.n_spots, size, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` fields of independent standard normals: ``(n, N)``."""
        return torch.randn(n, self.n_spots, generator=generator, dtype=torch.float64)

    def __repr__(self) -> str:
        return f"IdentityCovariance(n_spots={self.n_spots})"


def get_cov_sp(coords: ArrayLike, k: int = 4, rho: float = 0.99, *, graph: Graph = "mutual") -> Tensor:
    """Build the CAR covariance of the k-NN graph of ``coords`` as a dense tensor, ``(N, N)``, float64.

    Parameters
    ----------
    coords
        Positions, ``(N, D)``, array or tensor.
    k
        Number of neighbours.
    rho
        ρ in [0, 1).
    graph
        Which k-NN edges to keep, see :func:`~pyrosplice.spatial._graph.knn_graph`.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.spatial import get_cov_sp
    >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    >>> covariance = get_cov_sp(spots, k=4, rho=0.9)
    >>> covariance.shape, bool(covariance[0, 1] > covariance[0, 5])  # neighbours are alike
    (torch.Size([100, 100]), True)
    """
    adjacency = knn_graph(coords, k_neighbors=k, graph=graph)
    warn_if_disconnected(adjacency)
    return CarCovariance(adjacency, rho=rho).dense()


def check_rho(rho: float) -> None:
    """Raise unless 0 ≤ ρ < 1 (at 1 the precision is singular)."""
    if not (is_number(rho) and 0.0 <= rho < 1.0):
        raise InvalidArgumentError(f"rho: expected a number in [0, 1), found {rho!r}.")


def check_rank(rank: int | None) -> None:
    """Raise unless ``rank`` is None or a whole number ≥ 1."""
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1):
        raise InvalidArgumentError(f"rank: expected None or a whole number ≥ 1, found {rank!r}.")


def _normalized(adjacency: sp.csr_matrix) -> sp.csr_matrix:
    """D^-½ W D^-½ with a self-loop for every spot without neighbours."""
    degree = np.asarray(adjacency.sum(1)).ravel()
    alone = (degree == 0).astype(np.float64)
    inverse_root = sp.diags((degree + alone) ** -0.5)
    return inverse_root @ (adjacency + sp.diags(alone)) @ inverse_root
