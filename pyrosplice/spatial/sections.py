"""Several sections of tissue in one model: a graph whose edges stay within sections, so that V is block-diagonal."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial.graph import Graph, check_coords, knn_graph


def section_codes(labels: Any, *, name: str = "sections") -> tuple[NDArray[np.intp], list[str]]:
    """Section of each spot as a number, ``(N,)``, and the sections' names in order of first appearance.

    Raises
    ------
    InvalidArgumentError
        Spots without a section.
    """
    codes, found = pd.factorize(np.asarray(labels))
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise InvalidArgumentError(
            f"{name}: expected a section for every spot, found {len(missing)} without (first: row {missing[0]})."
        )
    return codes, [str(section) for section in found]


def section_graph(
    coords: ArrayLike, sections: Any, *, k_neighbors: int = 4, graph: Graph = "mutual", name: str = "sections"
) -> sp.csr_matrix:
    """k-NN graph within every section: spots of different sections are never neighbours, whatever their coordinates.

    Parameters
    ----------
    coords
        Positions ``(N, D)``; sections may overlap in them.
    sections
        Section of each spot, ``(N,)``, any labels.
    k_neighbors, graph
        As for :func:`~pyrosplice.spatial.graph.knn_graph`, for each section by itself.
    name
        What errors call the sections.

    Returns
    -------
    scipy.sparse.csr_matrix
        0/1 adjacency ``(N, N)`` in the order of the spots.

    Raises
    ------
    InvalidArgumentError
        A section with no more than ``k_neighbors`` spots; spots without a section; what ``knn_graph`` refuses.
    """
    points = check_coords(coords)
    codes, names = section_codes(sections, name=name)
    if len(codes) != len(points):
        raise InvalidArgumentError(f"{name}: expected {len(points)} labels (spots), found {len(codes)}.")
    rows, columns = [], []
    for code, section in enumerate(names):
        spots = np.flatnonzero(codes == code)
        if len(spots) <= k_neighbors:
            raise InvalidArgumentError(
                f"{name}: section {section!r} has {len(spots)} spots, too few for k_neighbors={k_neighbors}; leave the "
                "section out or lower k_neighbors."
            )
        edges = knn_graph(points[spots], k_neighbors=k_neighbors, graph=graph).tocoo()
        rows.append(spots[edges.row])
        columns.append(spots[edges.col])
    row, column = np.concatenate(rows), np.concatenate(columns)
    found = sp.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(points),) * 2)
    found.sort_indices()
    return found


def within_sections(
    adjacency: sp.csr_matrix, sections: Any, *, name: str = "sections", stacklevel: int = 2
) -> sp.csr_matrix:
    """A symmetric adjacency without the edges between sections; warns how many there were.

    Raises
    ------
    InvalidArgumentError
        Spots without a section.
    """
    codes, names = section_codes(sections, name=name)
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
