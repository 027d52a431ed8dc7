"""The graph that squidpy has left in an AnnData: neighbors that are taken where nobody has asked for others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrosplice._tables.names import square_by_name
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import Graph, adjacency_graph

SPATIAL_CONNECTIVITIES = "spatial_connectivities"  # what squidpy.gr.spatial_neighbors calls it in obsp
SPATIAL = "spatial"  # the coordinates that it is made of


class DefaultNeighbors(int):
    """A number of neighbors that nobody has given: the default of a documented interface, equal to the number."""


DOCUMENTED_NEIGHBORS = DefaultNeighbors(4)  # of SplisosmGLMM


def documented_edges(graph: Graph | None) -> Graph:
    """Which edges SplisosmGLMM's k-NN graph has, where nobody has said."""
    return "mutual" if graph is None else graph


def left_by_squidpy(obsp: Mapping[str, object], spatial_key: object, *given: object) -> str | None:
    """Key of squidpy's graph where it is the one to take; None where it is not there, or another was asked for.

    Parameters
    ----------
    obsp
        Graphs of an AnnData.
    spatial_key
        Where coordinates are: others than those that squidpy takes ask for a graph of their own.
    given
        Numbers of neighbors and kinds of graphs as a person gave them: None and :class:`DefaultNeighbors` for not at
        all. One that was given asks for the graph of the nearest neighbors.
    """
    asked = any(not (value is None or isinstance(value, DefaultNeighbors)) for value in given)
    return None if asked or spatial_key != SPATIAL or SPATIAL_CONNECTIVITIES not in obsp else SPATIAL_CONNECTIVITIES


def stored_graph(obsp: Mapping[str, object], key: str, names: pd.Index | None = None) -> sp.csr_matrix:
    """Adjacency of a key of ``obsp``, weights as given, averaged with its transpose.

    Of :data:`SPATIAL_CONNECTIVITIES` without the diagonal, which squidpy may fill: no spot is its own neighbor.

    Parameters
    ----------
    names
        Names of the spots, by which a DataFrame is put in order.

    Raises
    ------
    InvalidArgumentError
        Not square, negative, not finite, no numbers; names that are not those of the spots; no edge between two spots.
    """
    name = f"adata.obsp[{key!r}]"
    graph = adjacency_graph(square_by_name(obsp[key], names, name, what="spot"), name=name)
    if graph.nnz == np.count_nonzero(graph.diagonal()):
        raise InvalidArgumentError(
            f"{name}: expected neighbors, found a graph without an edge between two spots, beside which nothing is "
            "spatial; make it again (squidpy.gr.spatial_neighbors), or ask for the nearest by k_neighbors."
        )
    if key != SPATIAL_CONNECTIVITIES or not graph.diagonal().any():
        return graph
    graph = sp.csr_matrix(graph - sp.diags(np.asarray(graph.diagonal())))
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph
