"""Several sections of tissue in one model: a graph whose edges stay within sections, so that V is block-diagonal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import by_name, names_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import Graph, check_coords, knn_graph, wide_graph

MOST_AT_ONE_POSITION = 1000  # they are all each other's neighbours: a million edges


def section_graph(
    coords: object,
    sections: object,
    *,
    k_neighbors: int = 4,
    graph: Graph = "mutual",
    name: str = "sections",
    least: int = 1,
) -> sp.csr_matrix:
    """Join neighbours within every section; spots of different sections are none, whatever their coordinates.

    Parameters
    ----------
    coords
        Positions ``(N, D)``; sections may overlap in them.
    sections
        Section of each spot, ``(N,)``, any labels; a Series goes by name where ``coords`` has the spots' names.
    k_neighbors, graph
        As for :func:`~pyrosplice.spatial._graph.knn_graph`, for each section by itself.
    name
        What errors call the sections.
    least
        Sections of fewer spots may be too small for a graph: they have no edges.

    Returns
    -------
    scipy.sparse.csr_matrix
        0/1 adjacency ``(N, N)`` in the order of the spots.

    Raises
    ------
    InvalidArgumentError
        A section with no more than ``k_neighbors`` spots; spots without a section; what ``knn_graph`` refuses.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.spatial import component_labels, section_graph
    >>> spots = np.tile(np.stack(np.divmod(np.arange(16), 4), 1), (2, 1))  # two sections at the same place
    >>> graph = section_graph(spots, np.repeat(["S1", "S2"], 16))
    >>> component_labels(graph)[0]
    2
    """
    points = check_coords(coords)
    labels = read_labels(by_name(sections, names_of(coords), name, what="spot"), name)
    if len(labels.codes) != len(points):
        raise InvalidArgumentError(f"{name}: expected {len(points)} labels (spots), found {len(labels.codes)}.")
    graphs = []
    for code, section in enumerate(labels.levels):
        spots = np.flatnonzero(labels.codes == code)
        if len(spots) <= k_neighbors and len(spots) < least:
            continue
        if len(spots) <= k_neighbors:
            raise InvalidArgumentError(
                f"{name}: section {section!r} has {len(spots)} spots, too few for k_neighbors={k_neighbors}; leave the "
                "section out or lower k_neighbors."
            )
        graphs.append((spots, knn_graph(points[spots], k_neighbors=k_neighbors, graph=graph)))
    return _side_by_side(graphs, len(points))


def wide_section_graph(coords: object, sections: object | None, *, k_neighbors: int = 6) -> sp.csr_matrix:
    """Join the spots of every section by :func:`~pyrosplice.spatial._graph.wide_graph`; ``sections`` None is one."""
    points = check_coords(coords)
    if sections is None:
        return wide_graph(points, k_neighbors=k_neighbors)
    codes = np.asarray(read_labels(sections, "sections").codes)
    members = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    return _side_by_side(
        [(spots, wide_graph(points[spots], k_neighbors=k_neighbors)) for spots in members], len(points)
    )


def _side_by_side(graphs: Sequence[tuple[NDArray[np.intp], sp.csr_matrix]], n_spots: int) -> sp.csr_matrix:
    """0/1 adjacency ``(N, N)`` of graphs of some of the spots each."""
    rows, columns = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.intp)]
    for spots, graph in graphs:
        edges = graph.tocoo()
        rows.append(spots[edges.row])
        columns.append(spots[edges.col])
    row, column = np.concatenate(rows), np.concatenate(columns)
    found = sp.csr_matrix((np.ones(len(row)), (row, column)), shape=(n_spots, n_spots))
    found.sort_indices()
    return found


def within_sections(
    adjacency: sp.csr_matrix, sections: object, *, name: str = "sections", stacklevel: int = 2
) -> sp.csr_matrix:
    """Drop the edges between sections from a symmetric adjacency; warns how many there were.

    Raises
    ------
    InvalidArgumentError
        Spots without a section.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from pyrosplice.spatial import adjacency_graph, within_sections
    >>> line = adjacency_graph(np.eye(4, k=1) + np.eye(4, k=-1))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # one edge is dropped, it says
    ...     graph = within_sections(line, ["S1", "S1", "S2", "S2"])
    >>> graph.toarray().astype(int)
    array([[0, 1, 0, 0],
           [1, 0, 0, 0],
           [0, 0, 0, 1],
           [0, 0, 1, 0]])
    """
    labels = read_labels(sections, name)
    if len(labels.codes) != adjacency.shape[0]:
        raise InvalidArgumentError(f"{name}: expected {adjacency.shape[0]} labels (spots), found {len(labels.codes)}.")
    codes, names = labels.codes, labels.levels
    edges = adjacency.tocoo()
    between = codes[edges.row] != codes[edges.col]
    if not between.any():
        return adjacency
    n_between = int((between & (edges.row < edges.col)).sum())
    n_edges = int((edges.row < edges.col).sum())
    warnings.warn(
        f"{name}: {n_between} of the graph's {n_edges} edges are between its {len(names)} sections and are left out.",
        stacklevel=stacklevel + 1,
    )
    kept = (edges.data[~between], (edges.row[~between], edges.col[~between]))
    found = sp.csr_matrix(kept, shape=adjacency.shape)
    found.sort_indices()
    return found


def warn_if_shared(
    coords: NDArray[np.float64], sections: NDArray[np.object_] | None, names: tuple[str, str], *, stacklevel: int = 2
) -> None:
    """Warn of spots of a section that are at one position; refuse so many that their coordinates must be missing.

    ``names`` are what errors call coordinates and sections.
    """
    codes = np.zeros(len(coords)) if sections is None else pd.factorize(sections)[0]
    shared = np.unique(np.column_stack([codes, coords]), axis=0, return_counts=True)[1]
    if shared.max() == 1:
        return
    hint = f"; if the spots are of several sections, name them by {names[1]}" if sections is None else ""
    if shared.max() > MOST_AT_ONE_POSITION:
        raise InvalidArgumentError(
            f"{names[0]}: expected the position of every spot, found {shared.max()} spots at one position{hint}."
        )
    warnings.warn(
        f"{names[0]}: {int(shared[shared > 1].sum())} of {len(coords)} spots share their position with another{hint}.",
        stacklevel=stacklevel + 1,
    )
