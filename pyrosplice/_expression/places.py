"""Where the cells of an expression data set are in a tissue, and the covariance of its spots that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._tables.cells import Cells
from pyrosplice._tables.containers import as_dense
from pyrosplice._tables.names import by_name
from pyrosplice.effects._field import Field
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import adjacency_graph, check_coords
from pyrosplice.spatial._sections import within_sections
from pyrosplice.spatial.car import CarCovariance

SPATIAL_KEY, K_NEIGHBORS = "spatial", 6


@dataclass(frozen=True)
class SpotOptions:
    """What makes spots neighbours.

    Attributes
    ----------
    spatial_key
        Key of the coordinates in ``obsm``.
    adj_key
        Key of a graph in ``obsp``, in the place of that of the nearest neighbours.
    k_neighbors
        Nearest neighbours of a spot, those that have it among theirs being neighbours too.
    section_key
        Column of ``obs`` with the section of each spot: spots of different sections are no neighbours.
    """

    spatial_key: str = SPATIAL_KEY
    adj_key: str | None = None
    k_neighbors: int = K_NEIGHBORS
    section_key: str | None = None

    def __post_init__(self) -> None:
        if self.adj_key is not None and (self.spatial_key, self.k_neighbors) != (SPATIAL_KEY, K_NEIGHBORS):
            raise InvalidArgumentError(
                f"adj_key: {self.adj_key!r} is the graph of the spots, and spatial_key={self.spatial_key!r}, "
                f"k_neighbors={self.k_neighbors!r} would make another; leave either out."
            )


@dataclass(frozen=True)
class Spots:
    """What an AnnData says of the places of its cells: ``obsm`` and ``obsp`` as they were when it was read."""

    positions: Mapping[str, Any]
    graphs: Mapping[str, Any]

    @classmethod
    def of(cls, data: Any) -> Spots | None:
        """The places of an AnnData; None of anything else, which has none."""
        return cls(dict(data.obsm), dict(data.obsp)) if isinstance(data, ad.AnnData) else None

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
        if options.adj_key is None:
            return CarCovariance(self._neighbors(cells, sections, options))
        graph = self._given(cells, options.adj_key)
        return CarCovariance(
            graph if sections is None else within_sections(graph, sections, name="section_key", stacklevel=6)
        )

    def points(self, cells: Cells, key: str) -> NDArray[np.float64]:
        """Positions of the cells in use, ``(N, D)``."""
        _check_key("spatial_key", key, self.positions, "obsm")
        name = f"adata.obsm[{key!r}]"
        points = as_dense(by_name(self.positions[key], cells.names, name, what="spot"), name)
        return check_coords(points if cells.used is None else points[cells.used], name=name)

    def _neighbors(self, cells: Cells, sections: NDArray[np.object_] | None, options: SpotOptions) -> sp.csr_matrix:
        field = Field(k_neighbors=options.k_neighbors, graph="union")
        names = f"adata.obsm[{options.spatial_key!r}]", "section_key"
        return field.adjacency(self.points(cells, options.spatial_key), sections, names=names, stacklevel=7)

    def _given(self, cells: Cells, key: str) -> sp.csr_matrix:
        _check_key("adj_key", key, self.graphs, "obsp")
        graph = adjacency_graph(self.graphs[key], name=f"adata.obsp[{key!r}]")
        return graph if cells.used is None else graph[cells.used][:, cells.used]


def _check_key(argument: str, key: Any, there: Mapping[str, Any], where: str) -> None:
    if not isinstance(key, str) or key not in there:
        raise InvalidArgumentError(f"{argument}: adata.{where} has no {key!r}; it has {sorted(map(str, there))}.")
