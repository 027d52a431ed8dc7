"""Fields that one number tells apart, for it to be estimated: the strength of a dependence, a range."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.spatial.car import CarCovariance

RHO_GRID = tuple(float(k) for k in range(8))
"""−log(1 − ρ): from no dependence to ρ = 0.9991, whose fields reach over some 30 neighbours; steps of 1 cost up to 0.5
nats between them where 1,024 spots have 2 counts each."""
KEPT = 16  # solvers that are kept: a few megabytes each at 10,000 spots


@dataclass(frozen=True, eq=False)
class FieldFamily:
    """Covariances V of a field, one for every value of a number.

    Parameters
    ----------
    name
        What tables call the number.
    covariance
        V of a value of it, unit diagonal: whatever :func:`~pyrosplice._linalg.select.solver_for` takes.
    grid
        Coordinates, evenly spaced and rising, at which its likelihood is evaluated first; the ends are its range. The
        log likelihood should be about a parabola between neighbours.
    value, coordinate
        The number at a coordinate, and the coordinate of a number.
    """

    name: str
    covariance: Callable[[float], object]
    grid: tuple[float, ...]
    value: Callable[[float], float]
    coordinate: Callable[[float], float]

    def at(self, steps: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates that many steps of the grid after its start."""
        return self.grid[0] + (self.grid[1] - self.grid[0]) * np.asarray(steps, dtype=np.float64)

    def solver(self, coordinate: float) -> SpatialSolver:
        """What engines need of the field at a coordinate."""
        return self._solver(float(coordinate))

    def __getstate__(self) -> dict[str, object]:
        """Everything but the solvers that are kept: processes make their own."""
        return {name: value for name, value in vars(self).items() if name != "_solver"}

    @functools.cached_property
    def _solver(self) -> Callable[[float], SpatialSolver]:
        return functools.lru_cache(KEPT)(lambda coordinate: solver_for(self.covariance(self.value(coordinate))))


def car_family(adjacency: sp.csr_matrix) -> FieldFamily:
    """Conditional autoregressions on a graph, by ρ: coordinate −log(1 − ρ), about twice the log of their reach."""
    return FieldFamily(
        "rho",
        lambda rho: CarCovariance(adjacency, rho=rho),
        RHO_GRID,
        value=lambda at: -math.expm1(-at) + 0.0,
        coordinate=lambda rho: -math.log1p(-rho),
    )
