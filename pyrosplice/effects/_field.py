"""Random effects of single observations: a field in space, and independent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._tables.columns import is_numeric, numbers, one_column
from pyrosplice._tables.labels import read_labels
from pyrosplice.effects._field_family import FieldFamily, car_family
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.spatial._covariance import SpatialCovariance
from pyrosplice.spatial._graph import Graph, check_coords, check_k_neighbors, knn_graph, warn_if_disconnected
from pyrosplice.spatial._sections import section_graph, warn_if_shared
from pyrosplice.spatial.car import CarCovariance, check_rho

ESTIMATE = "estimate"
K_NEIGHBORS, RHO = 6, 0.99
GRAPH: Graph = "union"  # hexagons have six; the union leaves no spot without neighbours


@dataclass(frozen=True)
class Independent:
    """An effect of every observation by itself: more variation than the likelihood's, none of it shared.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> from pyrosplice.effects import Independent
    >>> adata = simulate_expression(pd.DataFrame(index=range(100)), n_genes=2, mean=20.0, dispersion=0.5, seed=0)
    >>> glm = ExpressionGLM("~ 1", likelihood="poisson", effects=[Independent()]).fit(adata)
    >>> table = glm.variance_components()
    >>> table["effect"].tolist(), (table["estimate"] > 0.3).tolist()  # log-normal noise beside Poisson's
    (['cell', 'cell'], [True, True])
    """


@dataclass(frozen=True, repr=False, eq=False)
class Field:
    r"""A smooth effect in space: neighbouring spots are alike.

    Parameters
    ----------
    k_neighbors, graph
        Who is whose neighbour, see :func:`~pyrosplice.spatial.knn_graph`; within sections where there are several. None
        for both, the default: the graph that squidpy has left in ``obsp["spatial_connectivities"]`` of an AnnData whose
        coordinates are ``obsm["spatial"]``, weights as given, averaged with its transpose; without one, 6 and
        ``"union"``, as where one of the two is given.
    rho
        Strength of the spatial dependence in [0, 1) of the conditional autoregression on these neighbours. Or
        ``"estimate"``: each gene's own, by the profile of its restricted likelihood. All else is
        then given that estimate: standard errors, degrees of freedom and tests take it as known.
    covariance
        A covariance of the spots instead, with unit diagonal: an object with a sparse ``precision`` or ``dense()``
        (:class:`~pyrosplice.spatial.SpatialCovariance`).
    by
        Column of the table that multiplies the field, numbers or booleans: a coefficient that varies in space.

    Raises
    ------
    InvalidArgumentError
        Values out of range; neighbours, ρ or a graph beside a covariance, which has its own.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> from pyrosplice.effects import Field
    >>> spots = np.stack(np.divmod(np.arange(100), 10), 1)  # ten by ten
    >>> adata = simulate_expression(pd.DataFrame(index=range(100)), n_genes=2, mean=5.0, seed=0)
    >>> adata.obsm["spatial"] = spots
    >>> glm = ExpressionGLM("~ 1", space=Field(k_neighbors=4)).fit(adata)
    >>> glm.variance_components()[["gene", "effect", "parameter"]]
         gene effect parameter
    0  gene_1  space        sd
    1  gene_2  space        sd
    """

    k_neighbors: int | None = None
    rho: float | Literal["estimate"] = RHO
    graph: Graph | None = None
    covariance: object | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        check_k_neighbors(self.n_nearest)
        if isinstance(self.rho, str):
            check_option("rho", self.rho, (ESTIMATE,))
        else:
            check_rho(self.rho)
        check_option("graph", self.edges, get_args(Graph))
        if self.by is not None and (not isinstance(self.by, str) or not self.by.strip()):
            raise InvalidArgumentError(f"by: expected the name of a column, or None, found {self.by!r}.")
        if self.covariance is None:
            return
        unused = [part for part in self._parts() if not part.startswith(("covariance", "by"))]
        if unused:
            raise InvalidArgumentError(f"covariance: it is used instead of neighbours; leave out {', '.join(unused)}.")
        if not any(getattr(self.covariance, name, None) is not None for name in ("precision", "dense")):
            raise InvalidArgumentError(
                f"covariance: expected an object with precision or dense(), found {self.covariance!r}."
            )

    @property
    def n_nearest(self) -> int:
        """Nearest neighbours of a spot in the field's own graph."""
        return K_NEIGHBORS if self.k_neighbors is None else self.k_neighbors

    @property
    def edges(self) -> Graph:
        """Which edges the field's own graph has."""
        return GRAPH if self.graph is None else self.graph

    def __repr__(self) -> str:
        return f"Field({', '.join(self._parts())})"

    def _parts(self) -> list[str]:
        """Arguments that are not the default."""
        defaults = {"k_neighbors": None, "rho": RHO, "graph": None, "covariance": None, "by": None}
        return [
            f"{name}={value!r}"
            for name, default in defaults.items()
            if (value := getattr(self, name)) is not default and (name == "covariance" or value != default)
        ]

    def adjacency(
        self,
        coords: object,
        sections: object = None,
        *,
        names: tuple[str, str] = ("coords", "sections"),
        least: int = 1,
        stacklevel: int = 2,
    ) -> sp.csr_matrix:
        """Neighbours of the spots at ``coords`` ``(N, D)``, within ``sections`` (N labels) where these are given.

        Parameters
        ----------
        names
            What errors call the two.
        least
            Sections of fewer spots may be too small for a graph.
        stacklevel
            Of a warning of spots at one position.

        Raises
        ------
        InvalidArgumentError
            Coordinates that are missing; fewer spots than neighbours; a field with a covariance of its own.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice.effects import Field
        >>> spots = np.stack(np.divmod(np.arange(100), 10), 1)  # ten by ten
        >>> graph = Field(k_neighbors=4).adjacency(spots)
        >>> graph.shape, int(graph.sum(1).max())
        ((100, 100), 5)
        """
        if self.covariance is not None:
            raise InvalidArgumentError("Field: neighbours are not known of a field with a covariance of its own.")
        points = check_coords(coords, name=names[0])
        check_k_neighbors(self.n_nearest, len(points))
        labels = None if sections is None else read_labels(sections, names[1]).names
        if labels is not None and len(labels) != len(points):
            raise InvalidArgumentError(f"{names[1]}: expected {len(points)} labels, found {len(labels)}.")
        warn_if_shared(points, labels, names, stacklevel=stacklevel + 1)
        if sections is None:
            return knn_graph(points, k_neighbors=self.n_nearest, graph=self.edges)
        k, graph = self.n_nearest, self.edges
        return section_graph(points, sections, k_neighbors=k, graph=graph, name=names[1], least=least)

    def covariance_at(
        self,
        coords: object,
        sections: object = None,
        *,
        adjacency: sp.csr_matrix | None = None,
        stacklevel: int = 2,
    ) -> SpatialCovariance:
        """Covariance of the field at these spots.

        Parameters
        ----------
        coords
            Positions ``(N, D)``; not read of a field with a covariance of its own.
        sections
            Section of each spot, N labels; a given covariance is taken as it is.
        adjacency
            Neighbours ``(N, N)`` in the place of the field's own graph; coordinates are then not read.
        stacklevel
            Of warnings of spots at one position, and of graphs in pieces.

        Raises
        ------
        InvalidArgumentError
            ρ that is to be estimated.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice.effects import Field
        >>> spots = np.stack(np.divmod(np.arange(100), 10), 1)  # ten by ten
        >>> covariance = Field(k_neighbors=4, rho=0.9).covariance_at(spots)
        >>> covariance.n_spots, covariance.rho
        (100, 0.9)
        """
        if self.covariance is not None:
            return cast(SpatialCovariance, self.covariance)
        if isinstance(self.rho, str):
            raise InvalidArgumentError(
                f"rho: expected a number, found {self.rho!r}, which ExpressionGLM, fit.model and SplisosmGLMM do. Give "
                f"a number in [0, 1), such as {RHO}."
            )
        return CarCovariance(self._checked_adjacency(coords, sections, adjacency, stacklevel + 1), rho=self.rho)

    def family_at(
        self,
        coords: object,
        sections: object = None,
        *,
        adjacency: sp.csr_matrix | None = None,
        stacklevel: int = 2,
    ) -> FieldFamily | None:
        """Fields at these spots that differ in the ρ that is to be estimated; None where it is known.

        Arguments as for :meth:`covariance_at`.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice.effects import Field
        >>> spots = np.stack(np.divmod(np.arange(100), 10), 1)  # ten by ten
        >>> Field(rho=0.9).family_at(spots) is None, Field(rho="estimate").family_at(spots) is None
        (True, False)
        """
        if self.rho != ESTIMATE:
            return None
        return car_family(self._checked_adjacency(coords, sections, adjacency, stacklevel + 1))

    def _checked_adjacency(
        self, coords: object, sections: object, adjacency: sp.csr_matrix | None, stacklevel: int
    ) -> sp.csr_matrix:
        """Neighbours, with a warning where a section is in pieces."""
        if adjacency is None:
            adjacency = self.adjacency(coords, sections, stacklevel=stacklevel + 1)
        n_sections = 1 if sections is None else len(read_labels(sections, "sections").levels)
        warn_if_disconnected(adjacency, n_sections=n_sections, stacklevel=stacklevel + 1)
        return adjacency

    def solver(self, coords: object, sections: object = None, *, device: torch.device | str = "cpu") -> SpatialSolver:
        """What engines need of the field at these spots; arguments as for :meth:`covariance_at`.

        Raises
        ------
        InvalidArgumentError
            A covariance of another number of spots.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice.effects import Field
        >>> spots = np.stack(np.divmod(np.arange(100), 10), 1)  # ten by ten
        >>> Field(k_neighbors=4).solver(spots).n_spots
        100
        """
        solver = solver_for(self.covariance_at(coords, sections, stacklevel=3), device=device)
        expected = None if coords is None else len(check_coords(coords))
        if expected is not None and solver.n_spots != expected:
            raise InvalidArgumentError(f"covariance: expected that of {expected} spots, found one of {solver.n_spots}.")
        return solver

    def multiplier(self, table: pd.DataFrame) -> NDArray[np.float64] | None:
        """What multiplies the field at every spot ``(N,)``; None for 1.

        Raises
        ------
        InvalidArgumentError
            No such column, labels, missing values, or one value at every spot.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Field
        >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
        >>> Field(by="age").multiplier(cells).tolist(), Field().multiplier(cells)
        ([20.0, 30.0, 40.0, 50.0, 60.0, 70.0], None)
        """
        if self.by is None:
            return None
        values = self.multiplier_of(table)
        if np.ptp(values) == 0:
            raise InvalidArgumentError(
                f"Field, by: column {self.by!r} is {values[0]:g} at every spot; leave by out for one field of all."
            )
        return values

    def multiplier_of(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Values ``(n,)`` of the column that multiplies the field in any table, all the same too.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Field
        >>> Field(by="tumor").multiplier_of(pd.DataFrame({"tumor": [True, False]}))
        array([1., 0.])
        """
        column = one_column(table, str(self.by), "Field, by")
        if not (is_numeric(column) or pd.api.types.is_bool_dtype(column)):
            raise InvalidArgumentError(
                f"Field, by: expected numbers or booleans in column {self.by!r}, found labels. Make a column of 0 "
                "and 1 for each level that is to have a field."
            )
        return numbers(column.astype("Float64"), str(self.by), "Field, by")
