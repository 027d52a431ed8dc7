r"""The field at new spots, given that at the spots a model was fitted to.

The CAR of the graph of old and new spots together, with precision P in unit variance, gives the new spots' law given
the old ones, and the fit the law of these:

.. math:: s_* \mid s \sim N(K s,\; P_{**}^{-1}), \qquad K = -P_{**}^{-1} P_{*o}, \qquad s \sim N(0, V)

so that the joint law of the old spots is the one that was fitted, whatever is asked about, and a spot in the middle of
a hole is reached over the new spots around it: the farther, the less certain. (A CAR is not consistent: that of the
joint graph alone would have changed the fit.) No edge is longer than the longest one of the fitted graph, in its
section; a new spot from which no path leads to an old one has the field's prior. Predictions at a spot depend a little
on which others are predicted with it, as they do on the spots that a graph is made of. Over both laws the variance of
s_* is near that of the old spots (.73 to 1.0 where a quarter of a grid is new), not quite the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import Graph, component_labels, knn_graph
from pyrosplice.spatial.car import CarCovariance


@dataclass(frozen=True)
class Positions:
    """Where spots are: ``coords`` ``(N, D)`` and the codes of their ``sections`` ``(N,)``."""

    coords: NDArray[np.float64]
    sections: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.coords)

    def take(self, spots: NDArray[np.bool_]) -> Positions:
        """Take some of the spots."""
        return Positions(self.coords[spots], self.sections[spots])

    def __add__(self, other: Positions) -> Positions:
        coords = np.concatenate([self.coords, other.coords])
        return Positions(coords, np.concatenate([self.sections, other.sections]))


@dataclass(frozen=True)
class NewSpots:
    """Law of the field at M new spots given that at the N old ones.

    Attributes
    ----------
    solver
        Solver for the covariance of what the old spots do not say, ``P**⁻¹``.
    links
        ``−P*o``, ``(M, N)``.
    variance
        Diagonal of that covariance, ``(M,)``.
    joined
        Whether a path leads to an old spot, ``(M,)``.
    """

    solver: SparseSolver
    links: sp.csr_matrix
    variance: Tensor
    joined: NDArray[np.bool_]

    def __len__(self) -> int:
        return self.solver.n_spots

    def expected(self, field: Tensor) -> Tensor:
        """Expected field ``K s`` at the new spots: (B, N, Q) to (B, M, Q)."""
        flat = field.permute(1, 0, 2).flatten(1).numpy()
        linked = torch.from_numpy(self.links @ flat).unflatten(1, (field.shape[0], -1)).permute(1, 0, 2)
        return self.solver.covariance_product(linked)

    def weights(self, spots: Tensor) -> Tensor:
        """Rows of K for some of the new spots, (n, N)."""
        unit = torch.zeros(1, len(self), len(spots), dtype=torch.float64)
        unit[0, spots, torch.arange(len(spots))] = 1.0
        return torch.from_numpy(self.links.T @ self.solver.covariance_product(unit)[0].numpy()).T

    def noise(self, normal: Tensor) -> Tensor:
        """Draws of what the old spots do not say, from standard normal (B, M, Q)."""
        return self.solver.color(normal)


@dataclass(frozen=True)
class FieldPlaces:
    """Where a field is asked for: n spots, each a fitted one or a new one.

    Attributes
    ----------
    fitted
        Which fitted spot each is, ``(n,)``; −1 for a new one.
    new
        The field at the new ones, in their order; None where none is.
    """

    fitted: NDArray[np.intp]
    new: NewSpots | None

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance of the field of unit variance that the fitted spots do not say, ``(n,)``."""
        out = np.zeros(len(self.fitted))
        if self.new is not None:
            out[self.fitted < 0] = self.new.variance.numpy()
        return out

    @property
    def unjoined(self) -> NDArray[np.bool_]:
        """Which have the field of the prior, ``(n,)``."""
        out = np.zeros(len(self.fitted), dtype=bool)
        if self.new is not None:
            out[self.fitted < 0] = ~self.new.joined
        return out

    def weights(self, some: NDArray[np.intp], n_spots: int) -> Tensor:
        """Expected field at some of the spots as weights ``(m, N)`` of that at the fitted ones."""
        out = torch.zeros(len(some), n_spots, dtype=torch.float64)
        fitted = self.fitted[some]
        old = np.flatnonzero(fitted >= 0)
        out[old, fitted[old]] = 1.0
        if self.new is not None and len(old) < len(some):
            place = np.cumsum(self.fitted < 0) - 1
            rest = np.flatnonzero(fitted < 0)
            out[rest] = self.new.weights(torch.from_numpy(place[some[rest]]))
        return out


def new_spots(fitted: CarCovariance, old: Positions, new: Positions, *, k_neighbors: int, graph: Graph) -> NewSpots:
    """Join new spots to the fitted ones, at ``old``; sections with the same code are one.

    ``k_neighbors`` and ``graph`` are those of the fitted graph.
    """
    joint = _joint_graph(fitted, old, new, k_neighbors=k_neighbors, graph=graph)
    precision = CarCovariance(joint, rho=fitted.rho).precision.tocsr()
    n_old = len(old)
    solver = SparseSolver(precision[n_old:][:, n_old:])
    labels = component_labels(joint)[1]
    variance = torch.from_numpy(solver.pattern.inverse_diagonal())
    joined = np.isin(labels[n_old:], labels[:n_old])
    return NewSpots(solver, sp.csr_matrix(-precision[n_old:][:, :n_old]), variance, joined)


def same_spots(
    old: Positions, new: Positions, names: tuple[NDArray[np.object_], NDArray[np.object_]], argument: str
) -> NDArray[np.intp]:
    """Which fitted spot each is: the one at its position, of its name where several are there; −1 for none.

    ``names`` are those of old and new spots; errors begin with ``argument``.
    """
    old_names, new_names = names
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, (section, point) in enumerate(zip(old.sections, old.coords, strict=True)):
        places.setdefault((section, *point), []).append(i)
    out = np.full(len(new), -1, dtype=np.intp)
    for i, (section, point) in enumerate(zip(new.sections, new.coords, strict=True)):
        here = places.get((section, *point), [])
        named = [spot for spot in here if len(here) == 1 or old_names[spot] == new_names[i]]
        if here and len(named) != 1:
            raise InvalidArgumentError(
                f"{argument}: spot {new_names[i]!r} is where {len(here)} fitted spots are; name the one that it is."
            )
        out[i] = named[0] if named else -1
    return out


def _joint_graph(
    fitted: CarCovariance, old: Positions, new: Positions, *, k_neighbors: int, graph: Graph
) -> sp.csr_matrix:
    """Adjacency of old and new spots: the fitted one between old ones, neighbours of the same kind for the others."""
    every, n_old = old + new, len(old)
    edges = fitted.adjacency.tocoo()
    lengths = np.linalg.norm(old.coords[edges.row] - old.coords[edges.col], axis=1)
    rows, columns, weights = [edges.row], [edges.col], [edges.data]
    for section in np.unique(new.sections):
        members = np.flatnonzero(every.sections == section)
        if len(members) < 2:
            continue
        reach = lengths[old.sections[edges.row] == section]
        near = knn_graph(every.coords[members], k_neighbors=min(k_neighbors, len(members) - 1), graph=graph).tocoo()
        row, column = members[near.row], members[near.col]
        length = np.linalg.norm(every.coords[row] - every.coords[column], axis=1)
        kept = np.maximum(row, column) >= n_old
        if len(reach):
            kept &= length <= reach.max() * (1 + 1e-9)
        rows.append(row[kept])
        columns.append(column[kept])
        weights.append(np.ones(int(kept.sum())))
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sp.csr_matrix(entries, shape=(len(every),) * 2)
