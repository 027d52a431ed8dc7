"""Domains of tissue: a truth for usage in space that is no random field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra

from pyrosplice._tables.coordinates import spatial_key_of
from pyrosplice.errors import InvalidArgumentError, check_integer, check_number

LENGTHS = (0.5, 1.5)  # of the edges: their spread makes borders irregular, and leaves no spot at equal distance


@dataclass(frozen=True)
class Domains:
    """Usage that is constant in each domain of the tissue but for noise, and jumps between them.

    Attributes
    ----------
    number
        Domains of each gene, placed anew for every gene.
    sd
        Standard deviation of a domain's logits. By default that of the gene's own fitted spatial effect, σ√θ, so that
        only the shape of the spatial variation is another.
    spatial_key
        Coordinates in ``obsm``, or columns of ``obs`` such as ``("x", "y")``, of which neighbours are known; needed
        where the model has no graph.

    Raises
    ------
    InvalidArgumentError
        Fewer than two domains; an sd that is not positive; a key that is no text.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> from pyrosplice.testing import Domains
    >>> model = SplisosmGLMM()
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.fit(print_progress=False)
    >>> check = model.check_calibration("sv", truth=Domains(4, sd=1.0), n_genes=50, print_progress=False)
    >>> check.table["level"].tolist()
    [0.05, 0.01, 0.001]
    """

    number: int = 6
    sd: float | None = None
    spatial_key: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_integer("Domains(number)", self.number, least=2)
        if self.sd is not None and check_number("Domains(sd)", self.sd) == 0:
            raise InvalidArgumentError("Domains(sd): expected a positive number, found 0.")
        if self.spatial_key is not None:
            object.__setattr__(self, "spatial_key", spatial_key_of(self.spatial_key, "Domains(spatial_key)"))


def graph_domains(adjacency: object, number: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Divide spots into domains ``(N,)``: the nearest of ``number`` random spots along edges of random length.

    Components of the graph that none of these spots is in are domains of their own.

    Parameters
    ----------
    adjacency
        ``(N, N)``, sparse and symmetric; an entry other than zero is an edge.
    """
    edges = sp.triu(sp.csr_matrix(adjacency), k=1).tocoo()
    n_spots = edges.shape[0]
    if number > n_spots:
        raise InvalidArgumentError(f"domains: expected at most one a spot, found {number} of {n_spots} spots.")
    centers = rng.choice(n_spots, number, replace=False)
    lengths = sp.csr_matrix((rng.uniform(*LENGTHS, edges.nnz), (edges.row, edges.col)), shape=edges.shape)
    nearest = dijkstra(lengths, directed=False, indices=centers, min_only=True, return_predecessors=True)[2]
    alone = nearest < 0
    if alone.any():
        nearest = np.where(alone, n_spots + connected_components(lengths, directed=False)[1], nearest)
    return np.unique(nearest, return_inverse=True)[1].reshape(n_spots)
