"""Where the cells of an expression data set are in a tissue, and the covariance of its spots that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._tables.cells import Cells, obs_of
from pyrosplice._tables.coordinates import (
    SpatialKey,
    coordinates_name,
    has_coordinates,
    read_coordinates,
    spatial_key_of,
)
from pyrosplice._tables.names import by_name
from pyrosplice.effects._field import Field
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._connectivities import left_by_squidpy, stored_graph
from pyrosplice.spatial._graph import check_coords
from pyrosplice.spatial._sections import within_sections
from pyrosplice.spatial.car import CarCovariance

SPATIAL_KEY = "spatial"


@dataclass(frozen=True)
class SpotOptions:
    """What makes spots neighbours.

    Attributes
    ----------
    spatial_key
        Key of the coordinates in ``obsm``, or columns of ``obs``.
    adj_key
        Key of a graph in ``obsp``, in the place of that of the nearest neighbours.
    k_neighbors
        Nearest neighbours of a spot, those that have it among theirs being neighbours too. None for squidpy's graph
        where the data have one, else six.
    section_key
        Column of ``obs`` with the section of each spot: spots of different sections are no neighbours.
    """

    spatial_key: SpatialKey = SPATIAL_KEY
    adj_key: str | None = None
    k_neighbors: int | None = None
    section_key: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "spatial_key", spatial_key_of(self.spatial_key))
        if self.adj_key is not None and (self.spatial_key, self.k_neighbors) != (SPATIAL_KEY, None):
            raise InvalidArgumentError(
                f"adj_key: {self.adj_key!r} is the graph of the spots, and spatial_key={self.spatial_key!r}, "
                f"k_neighbors={self.k_neighbors!r} would make another; leave either out."
            )


@dataclass(frozen=True)
class Spots:
    """What an AnnData says of the places of its cells: ``obsm``, ``obsp``, ``obs`` as they were when it was read."""

    positions: Mapping[str, Any]
    graphs: Mapping[str, Any]
    table: pd.DataFrame

    @classmethod
    def of(cls, data: Any) -> Spots | None:
        """The places of an AnnData; None of anything else, which has none."""
        return cls(dict(data.obsm), dict(data.obsp), obs_of(data)) if isinstance(data, ad.AnnData) else None

    def covariance(self, cells: Cells, options: SpotOptions) -> CarCovariance:
        """CAR covariance (ρ = .99) of the cells in use.

        Raises
        ------
        InvalidArgumentError
            Keys that are not there; coordinates that are NaN; sections of no more than ``k_neighbors`` spots; cells
            without a section.
        """
        section_key = options.section_key
        sections = None if section_key is None else cells.levels(section_key, "section_key").names
        key = options.adj_key or self.squidpys(options.spatial_key, options.k_neighbors)
        if key is None:
            return CarCovariance(self._neighbors(cells, sections, options))
        return CarCovariance(self.given_graph(cells, key, sections, stacklevel=6))

    def graph_name(self, options: SpotOptions) -> str:
        """Say which neighbours :meth:`covariance` takes."""
        key = options.adj_key or self.squidpys(options.spatial_key, options.k_neighbors)
        if key is not None:
            return f"obsp[{key!r}]"
        nearest = Field(k_neighbors=options.k_neighbors).n_nearest
        return f"{nearest} nearest neighbors of {coordinates_name(options.spatial_key)}"

    def squidpys(self, spatial_key: SpatialKey, *given: object) -> str | None:
        """Key of squidpy's graph, where it is there and no other was asked for; ``given`` as a person gave them."""
        return left_by_squidpy(self.graphs, spatial_key, *given)

    def points(self, cells: Cells, key: SpatialKey) -> NDArray[np.float64]:
        """Positions of the cells in use, ``(N, D)``."""
        name = coordinates_name(key)
        if isinstance(key, str) and key in self.positions:  # whose names may be those of a table beside the data
            points = read_coordinates(key, {key: by_name(self.positions[key], cells.names, name, what="spot")}, None)
        else:
            points = read_coordinates(key, self.positions, self.table)
        return check_coords(points if cells.used is None else points[cells.used], name=name)

    def has(self, key: SpatialKey) -> bool:
        """Whether there are coordinates of that key."""
        return has_coordinates(key, self.positions, self.table)

    def given_graph(
        self, cells: Cells, key: str, sections: NDArray[np.object_] | None, *, stacklevel: int
    ) -> sp.csr_matrix:
        """Neighbours of the cells in use by a key of ``obsp``, within sections."""
        _check_key("adj_key", key, self.graphs, "obsp")
        graph = stored_graph(self.graphs, key, cells.names)
        graph = graph if cells.used is None else graph[cells.used][:, cells.used]
        if sections is None:
            return graph
        return within_sections(graph, sections, name="section_key", stacklevel=stacklevel + 1)

    def _neighbors(self, cells: Cells, sections: NDArray[np.object_] | None, options: SpotOptions) -> sp.csr_matrix:
        field = Field(k_neighbors=options.k_neighbors, graph="union")
        names = coordinates_name(options.spatial_key), "section_key"
        return field.adjacency(self.points(cells, options.spatial_key), sections, names=names, stacklevel=7)


def _check_key(argument: str, key: Any, there: Mapping[str, Any], where: str) -> None:
    if not isinstance(key, str) or key not in there:
        raise InvalidArgumentError(f"{argument}: adata.{where} has no {key!r}; it has {sorted(map(str, there))}.")
