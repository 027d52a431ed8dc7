"""Where the spots of an analysis are, and who is whose neighbor."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from pyrosplice._tables.coordinates import SpatialKey, coordinates_name, read_coordinates, spatial_key_of
from pyrosplice.effects._field import Field
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._connectivities import left_by_squidpy, stored_graph
from pyrosplice.spatial._graph import Graph
from pyrosplice.spatial._sections import within_sections

NO_SPACE = " model_type='glm' needs no coordinates."


def graph_key(
    adata: AnnData, adj_key: str | None, spatial_key: object, k_neighbors: int | None, graph: Graph | None
) -> str | None:
    """Key of the graph in ``obsp`` to take: the given one, or squidpy's where no other was asked for; None for none."""
    return adj_key or left_by_squidpy(adata.obsp, spatial_key, k_neighbors, graph)


def key_of_places(given: object, adata: AnnData) -> SpatialKey:
    """Read ``spatial_key``, which has to be given where a graph is made of it."""
    if given is None:
        raise InvalidArgumentError(f"spatial_key: expected a key of adata.obsm, one of {sorted(adata.obsm.keys())}.")
    return spatial_key_of(given)


def given_adjacency(
    adata: AnnData, key: str, spots: NDArray[np.bool_], sections: NDArray[np.object_] | None
) -> sp.csr_matrix:
    """Adjacency of a key of ``obsp`` for some spots, within sections."""
    given = stored_graph(adata.obsp, key, pd.Index(adata.obs_names))[spots][:, spots]
    return given if sections is None else within_sections(given, sections, name="section_key", stacklevel=6)


def nearest_adjacency(
    places: tuple[AnnData, pd.DataFrame, SpatialKey],
    spots: NDArray[np.bool_],
    sections: NDArray[np.object_] | None,
    field: Field,
    *,
    least: int,
) -> sp.csr_matrix:
    """A field's nearest neighbors of some spots, within sections; those of fewer than ``least`` may have none."""
    adata, obs, key = places
    coords = read_coordinates(key, adata.obsm, obs, hint=NO_SPACE)
    names = coordinates_name(key), "section_key"
    return field.adjacency(coords[spots], sections, names=names, least=least, stacklevel=6)
