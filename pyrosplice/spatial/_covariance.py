"""Spatial covariances that users write, and one more that is shipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice._linalg.sparse import inverse_diagonal
from pyrosplice._overrides import Extensible
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import adjacency_graph


class SpatialCovariance(Extensible):
    """Correlation matrix V of the spots, unit diagonal.

    ============= ======== ==========================================================
    what to give  required for
    ============= ======== ==========================================================
    ``dense``     one of   V, ``(N, N)``
    ``precision`` both     V⁻¹, sparse: what makes thousands of spots cheap
    ============= ======== ==========================================================

    Any object with one of the two will do; this class derives the rest. A subclass of a shipped covariance that
    overrides ``dense`` alone is the covariance of ``dense``: its parent's ``precision`` is not used.
    :func:`pyrosplice.testing.check_covariance` says in words what a new one gets wrong.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.spatial import SpatialCovariance
    >>> class Exponential(SpatialCovariance):
    ...     def __init__(self, coords, scale):
    ...         self.coords, self.scale = coords, scale
    ...     def dense(self):
    ...         return torch.exp(-torch.cdist(self.coords, self.coords) / self.scale)
    >>> covariance = Exponential(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).double(), scale=2.0)
    >>> covariance.n_spots, covariance.sample(3).shape
    (25, torch.Size([3, 25]))
    """

    closed_forms: ClassVar[Mapping[str, tuple[str, ...]]] = {"eigen": ("dense",), "sample": ("dense",)}
    precision: sp.csc_matrix | None = None

    def dense(self) -> Tensor:
        """Full covariance V, ``(N, N)``, float64.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.spatial import CarCovariance, knn_graph
        >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
        >>> covariance = CarCovariance(knn_graph(spots)).dense()
        >>> covariance.shape, bool(torch.allclose(covariance.diagonal(), torch.ones(100).double()))
        (torch.Size([100, 100]), True)
        """
        if self.precision is None:
            raise NotImplementedError(f"{type(self).__name__}: override dense(), or set precision.")
        covariance = np.linalg.inv(self.precision.toarray())
        return torch.from_numpy((covariance + covariance.T) / 2)

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        return int((self.dense() if self.precision is None else self.precision).shape[0])

    def eigen(self, rank: int | None = None) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues ``(r,)``, descending, and eigenvectors ``(N, r)``; all N when ``rank`` is None.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.spatial import CarCovariance, knn_graph
        >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
        >>> values, vectors = CarCovariance(knn_graph(spots)).eigen(rank=5)
        >>> values.shape, vectors.shape
        (torch.Size([5]), torch.Size([100, 5]))
        """
        values, vectors = torch.linalg.eigh(self.dense())
        size = len(values) if rank is None else min(rank, len(values))
        return values.flip(0)[:size], vectors.flip(1)[:, :size].contiguous()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` fields from N(0, V): ``(n, N)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.spatial import CarCovariance, knn_graph
        >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
        >>> fields = CarCovariance(knn_graph(spots)).sample(3, torch.Generator().manual_seed(0))
        >>> fields.shape
        torch.Size([3, 100])
        """
        values, vectors = self.eigen()
        noise = torch.randn(n, len(vectors), generator=generator, dtype=torch.float64)
        return noise @ (vectors * values.clamp_min(0.0).sqrt()).T


class GraphMatern(SpatialCovariance):
    r"""Matérn-like field on a graph: :math:`V^{-1} \propto (\kappa^2 I + L)^\alpha`, L the graph's Laplacian.

    On a regular grid this is the finite-difference form of the stochastic differential equation whose solution is the
    Matérn field of smoothness α − 1 and range √(8(α − 1))/κ in grid steps (Lindgren, Rue and Lindström 2011,
    J. R. Stat. Soc. B 73:423; on graphs Borovitskiy et al. 2021, AISTATS). Scaled to unit variances.

    Parameters
    ----------
    adjacency
        ``(N, N)`` dense or sparse, weights ≥ 0; symmetrised by averaging.
    range_
        Distance, in steps of the graph, at which correlation is about 0.1; positive.
    alpha
        1 (a proper CAR) or 2 (smoother; the default).

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.spatial import GraphMatern, knn_graph
    >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    >>> near, far = (GraphMatern(knn_graph(spots), range_=steps).dense() for steps in (2.0, 8.0))
    >>> bool(near[0, 3] < far[0, 3])
    True
    """

    def __init__(self, adjacency: object, *, range_: float = 5.0, alpha: int = 2) -> None:
        if not range_ > 0:
            raise InvalidArgumentError(f"range_: expected a positive number, found {range_!r}.")
        if alpha not in (1, 2):
            raise InvalidArgumentError(f"alpha: expected 1 or 2, found {alpha!r}.")
        graph = adjacency_graph(adjacency)
        self.adjacency, self.range_, self.alpha = graph, float(range_), alpha
        degree = np.asarray(graph.sum(1)).ravel()
        base = sp.diags(degree + 8.0 / range_**2) - graph
        unscaled = sp.csc_matrix(base if alpha == 1 else base @ base)
        scale = sp.diags(np.sqrt(inverse_diagonal(unscaled)))
        self.precision = sp.csc_matrix(scale @ unscaled @ scale)
        self.precision.sort_indices()

    def __repr__(self) -> str:
        return f"GraphMatern(n_spots={self.n_spots}, range_={self.range_:g}, alpha={self.alpha})"
