"""The graph of spots: who is whose neighbour, and whether everyone is connected."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from sklearn.neighbors import KDTree

from pyrosplice._tables.containers import as_dense, loaded
from pyrosplice._tables.names import square_by_name
from pyrosplice.errors import InvalidArgumentError, NonSpatialWarning, check_option

Graph = Literal["mutual", "union", "connected"]
TIE = 1e-9  # relative difference below which two distances are the same


def knn_graph(coords: ArrayLike, *, k_neighbors: int = 4, graph: Graph = "mutual") -> sp.csr_matrix:
    r"""Symmetric 0/1 adjacency of the k-nearest-neighbour graph, without self edges.

    Let :math:`i \to j` when *j* is among the k nearest spots of *i*. Spots at the same distance are taken
    together or not at all, whichever leaves the number of neighbours nearer to k (the fewer when equal, but at
    least one), so the graph does not depend on the order of the spots and k = 4 on a square grid is the grid.

    Parameters
    ----------
    coords
        Positions of the spots, ``(N, D)``, any unit.
    k_neighbors
        k, from 1 to N − 1.
    graph
        ``"mutual"``: :math:`i \to j` and :math:`j \to i` (the documented graph; on irregular layouts it falls into
        many components). ``"union"``: either. ``"connected"``: the mutual graph, its components joined by the
        shortest links (a minimum spanning tree over components).

    Returns
    -------
    scipy.sparse.csr_matrix
        ``(N, N)``, float64, sorted indices.

    Raises
    ------
    InvalidArgumentError
        Coordinates that are not a finite matrix; ``k_neighbors`` out of range; unknown ``graph``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.spatial import knn_graph
    >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    >>> graph = knn_graph(spots, k_neighbors=4)
    >>> graph.shape, [int(graph[[spot]].sum()) for spot in (0, 1, 11)]  # of a corner, of an edge, inside
    ((100, 100), [2, 3, 4])
    """
    check_option("graph", graph, get_args(Graph))
    points = check_coords(coords)
    check_k_neighbors(k_neighbors, len(points))
    directed = _nearest(points, k_neighbors)
    mutual, union = directed.minimum(directed.T), directed.maximum(directed.T)
    if graph == "union":
        return _tidy(union)
    return _tidy(mutual if graph == "mutual" else mutual.maximum(_links(points, mutual, k_neighbors)))


def wide_graph(coords: ArrayLike, *, k_neighbors: int = 6) -> sp.csr_matrix:
    """Adjacency of the union k-nearest-neighbour graph, its components joined by the shortest links.

    Unlike the mutual graph of an irregular layout it has no bottlenecks, so that its smoothest patterns are waves over
    the tissue; within a square grid both are the grid. ``k_neighbors`` is lowered where there are fewer spots.
    """
    points = check_coords(coords)
    if len(points) == 1:
        return sp.csr_matrix((1, 1))
    k = min(k_neighbors, len(points) - 1)
    union = knn_graph(points, k_neighbors=k, graph="union")
    return _tidy(union.maximum(_links(points, union, k)))


def adjacency_graph(adjacency: object, *, name: str = "adjacency") -> sp.csr_matrix:
    """Check a given adjacency and average it with its transpose; weights as given.

    Parameters
    ----------
    adjacency
        ``(N, N)``, non-negative weights: dense, sparse, or a DataFrame, whose columns are put in the order of its rows.
    name
        What errors call it.

    Raises
    ------
    InvalidArgumentError
        Not square, negative, not finite, no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.spatial import adjacency_graph
    >>> adjacency_graph(np.eye(3, k=1)).toarray()  # one-sided edges count half either way
    array([[0. , 0.5, 0. ],
           [0.5, 0. , 0.5],
           [0. , 0.5, 0. ]])
    """
    given = loaded(square_by_name(adjacency, None, name, what="spot"), name)
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise InvalidArgumentError(f"{name}: expected a square matrix, found shape {given.shape}.")
    matrix = sp.csr_matrix(given, dtype=np.float64)
    if not np.isfinite(matrix.data).all():
        raise InvalidArgumentError(f"{name}: expected finite weights, found NaN or infinity.")
    if (matrix.data < 0).any():
        raise InvalidArgumentError(f"{name}: expected weights ≥ 0, found {matrix.data.min():g}.")
    return _tidy((matrix + matrix.T) / 2)


def component_labels(adjacency: sp.spmatrix) -> tuple[int, NDArray[np.int32]]:
    """Count connected components and label each spot's, ``(N,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.spatial import component_labels, knn_graph
    >>> spots = np.array([[0.0, 0], [0, 1], [0, 2], [9, 0], [9, 1], [9, 2]])
    >>> number, labels = component_labels(knn_graph(spots, k_neighbors=1))
    >>> number, labels.tolist()
    (2, [0, 0, 0, 1, 1, 1])
    """
    count, labels = connected_components(adjacency, directed=False)
    return int(count), labels


def warn_if_disconnected(adjacency: sp.spmatrix, *, n_sections: int = 1, stacklevel: int = 2) -> None:
    """Issue one :class:`~pyrosplice.errors.NonSpatialWarning` when the graph is in more components than sections.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from pyrosplice.spatial import knn_graph, warn_if_disconnected
    >>> spots = np.array([[0.0, 0], [0, 1], [0, 2], [9, 0], [9, 1], [9, 2]])
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_if_disconnected(knn_graph(spots, k_neighbors=1))
    >>> caught[0].category.__name__
    'NonSpatialWarning'
    """
    count, labels = component_labels(adjacency)
    if count <= n_sections:
        return
    pieces = "the tissue is in one piece" if n_sections == 1 else f"each of the {n_sections} sections is in one piece"
    alone = int((np.bincount(labels) == 1).sum())
    warnings.warn(
        f"The spatial graph of {adjacency.shape[0]} spots falls into {count} components ({alone} of them single "
        f"spots); nothing is shared between components. If {pieces}, use a connected graph "
        "(graph='union' or graph='connected'), more k_neighbors, or min_component_size to drop small pieces.",
        NonSpatialWarning,
        stacklevel=stacklevel + 1,
    )


def check_coords(coords: object, *, name: str = "coords") -> NDArray[np.float64]:
    """Check coordinates: a finite float64 matrix ``(N, D)``, from any container; an error says who lacks them."""
    points = as_dense(coords, name)
    if points.ndim != 2 or points.shape[1] == 0:
        raise InvalidArgumentError(f"{name}: expected a matrix (n_spots, n_dims), found shape {points.shape}.")
    missing = np.flatnonzero(~np.isfinite(points).all(1))
    if len(missing):
        raise InvalidArgumentError(
            f"{name}: expected finite coordinates for every spot, found {len(missing)} spots without "
            f"(first: row {missing[0]}). Remove these spots first."
        )
    return points


def check_k_neighbors(k_neighbors: int, n_spots: int | None = None) -> None:
    """Raise unless ``k_neighbors`` is a whole number from 1 to ``n_spots`` − 1 (when that is known)."""
    whole = isinstance(k_neighbors, int | np.integer) and not isinstance(k_neighbors, bool)
    if not whole or k_neighbors < 1 or (n_spots is not None and k_neighbors >= n_spots):
        limit = "≥ 1" if n_spots is None else f"from 1 to {n_spots - 1} (n_spots - 1)"
        raise InvalidArgumentError(f"k_neighbors: expected a whole number {limit}, found {k_neighbors!r}.")


def _nearest(points: NDArray[np.float64], k: int) -> sp.csr_matrix:
    """Directed graph i → j, distances tied at the k-th neighbour taken together or not at all."""
    tree = KDTree(points)
    reach = tree.query(points, k=k + 1)[0][:, -1]  # the first of the k + 1 is the spot itself
    found, distance = tree.query_radius(points, reach * (1 + TIE), return_distance=True)
    row = np.repeat(np.arange(len(points)), [len(f) for f in found])
    column, distance = np.concatenate(found), np.concatenate(distance)
    other = row != column
    row, column, distance = row[other], column[other], distance[other]
    inner = distance < reach[row] * (1 - TIE)
    n_all = np.bincount(row, minlength=len(points))
    n_inner = np.bincount(row, weights=inner, minlength=len(points))
    with_tied = (n_inner == 0) | (n_all - k < k - n_inner)
    keep = inner | with_tied[row]
    return sp.csr_matrix((np.ones(keep.sum()), (row[keep], column[keep])), shape=(len(points),) * 2)


def _links(points: NDArray[np.float64], graph: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """Shortest edges that join the components of ``graph``: 0/1, symmetric."""
    if component_labels(graph)[0] == 1:
        return sp.csr_matrix(graph.shape)
    tree, n = KDTree(points), len(points)
    candidates = graph
    while component_labels(candidates)[0] > 1:
        k = min(2 * k, n - 1)
        distance, column = tree.query(points, k=k + 1)
        edges = (np.repeat(np.arange(n), k + 1), column.ravel())
        candidates = graph + sp.csr_matrix((np.ones(len(edges[0])), edges), shape=graph.shape)
    # a spanning tree depends on the order of the lengths only: ranks from 2 on, edges of the graph first at 1
    rank = 2.0 + np.unique(distance.ravel(), return_inverse=True)[1].ravel()
    length = sp.csr_matrix((rank, edges), shape=graph.shape)
    length = length.maximum(length.T)
    inside = graph.astype(bool)
    length = length - length.multiply(inside) + graph
    spanning = minimum_spanning_tree(length)
    spanning = spanning - spanning.multiply(inside + inside.T)
    spanning.eliminate_zeros()
    spanning.data[:] = 1.0
    return spanning.maximum(spanning.T)


def _tidy(matrix: sp.spmatrix) -> sp.csr_matrix:
    matrix = sp.csr_matrix(matrix, dtype=np.float64)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix
