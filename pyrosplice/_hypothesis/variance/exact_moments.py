r"""Exact moments of a quadratic form when its units are permuted at random.

.. math:: T = \sum_{uv} B_{uv}\, G_{\pi(u)\pi(v)}, \qquad B 1 = 0, \quad G 1 = 0

over all permutations π of n units. :math:`T^r` is a sum over r edges between units; grouping the edges' ends by which
of them are the same unit gives sums over *distinct* units, and Möbius inversion over set partitions gives those from
sums over all units, one for each multigraph with r edges. Centring leaves only graphs whose vertices have two ends of
edges or more, eight for r = 3, so that three moments need eight numbers of B and eight of G:

.. math:: E\,T^r = \sum_{k} \frac{1}{n (n-1) \cdots (n-k+1)} \sum_{pq} U_p(B)\, C^{(k)}_{pq}\, U_q(G)

with C integers that depend on r only. Sources: Mantel (1967) Cancer Res. 27:209 for the first two; Kazi-Aoual, Hitier,
Sabatier & Lebreton (1995) Comput. Stat. Data Anal. 20:643 for the third, in another form.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

Edges = tuple[tuple[int, int], ...]
SINGLE = 64
"""Units from which the trace of the cube is taken in single precision."""
LOOP, TWO_LOOPS, DOUBLE = ((0, 0),), ((0, 0), (0, 0)), ((0, 1), (0, 1))
THREE_LOOPS, BARBELL = ((0, 0), (0, 0), (0, 0)), ((0, 0), (0, 1), (1, 1))
LOOP_ON_DOUBLE, TRIANGLE, TRIPLE = ((0, 0), (0, 1), (0, 1)), ((0, 1), (0, 2), (1, 2)), ((0, 1), (0, 1), (0, 1))


@dataclass(frozen=True)
class GraphSums:
    """Sums of products of entries of a centred symmetric matrix over the units, ``(...)`` each.

    Attributes
    ----------
    trace, diagonal2, diagonal3
        Sums of the diagonal d and of its squares and cubes.
    square, cube
        Sums of the squares and cubes of all entries.
    barbell
        d'Bd.
    loop_double
        Sum of d_i B_ij².
    triangle
        Trace of B³.
    """

    trace: Tensor
    diagonal2: Tensor
    diagonal3: Tensor
    square: Tensor
    cube: Tensor
    barbell: Tensor
    loop_double: Tensor
    triangle: Tensor

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> GraphSums:
        """Sums over the entries of matrices ``(..., n, n)``.

        The trace of the cube, a product with itself, is in single precision from ``SINGLE`` units on (6 digits, and the
        one sum that does not enter the variance).
        """
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        factor = matrix if matrix.shape[-1] < SINGLE else matrix.to(torch.float32)
        triangle = ((factor @ factor).mul_(factor)).sum((-2, -1), dtype=matrix.dtype)
        square = matrix * matrix
        rows = square.sum(-1)
        barbell = (diagonal.unsqueeze(-2) @ matrix @ diagonal.unsqueeze(-1)).squeeze((-2, -1))
        return cls(
            diagonal.sum(-1),
            diagonal.square().sum(-1),
            (diagonal**3).sum(-1),
            rows.sum(-1),
            square.mul_(matrix).sum((-2, -1)),
            barbell,
            (diagonal * rows).sum(-1),
            triangle,
        )

    @classmethod
    def cat(cls, parts: Sequence[GraphSums]) -> GraphSums:
        """Join the sums of all matrices of ``parts``, one after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def of_vectors(cls, vectors: Tensor) -> GraphSums:
        """Sums over the entries of ``G = u u'`` for ``(..., n, k)`` with centred columns, without forming G."""
        norm = vectors.square().sum(-1)
        gram = vectors.mT @ vectors
        third = torch.einsum("...ni,...nj,...nk->...ijk", vectors, vectors, vectors)
        return cls(
            norm.sum(-1),
            norm.square().sum(-1),
            (norm**3).sum(-1),
            gram.square().sum((-2, -1)),
            third.square().sum((-3, -2, -1)),
            (norm.unsqueeze(-2) @ vectors).square().sum((-2, -1)),
            (norm * ((vectors @ gram) * vectors).sum(-1)).sum(-1),
            ((gram @ gram) * gram).sum((-2, -1)),
        )

    @classmethod
    def of_products(cls, n: Tensor, sums: tuple[Tensor, Tensor], means: Sequence[Tensor]) -> GraphSums:
        """Sums over the entries of ``G = u u'`` for one u of sum zero, from means over *different* units.

        Parameters
        ----------
        n
            Number of units, ``(...)``.
        sums
            Of u² and of u³ over the units.
        means
            Of ``u_i² u_j²``, of ``u_i³ u_j³``, and of ``u_i² u_j² u_k²``, over different units.
        """
        (square, cube), (pairs, cubes, triples) = sums, means
        fourth = square.square() - n * (n - 1) * pairs
        sixth = cube.square() - n * (n - 1) * cubes
        mixed = (square**3 + 2 * sixth - n * (n - 1) * (n - 2) * triples) / 3
        return cls(square, fourth, sixth, square.square(), cube.square(), cube.square(), mixed, square**3)

    def of(self, graph: Edges) -> Tensor:
        """The sum of one connected graph."""
        return {
            LOOP: self.trace,
            TWO_LOOPS: self.diagonal2,
            DOUBLE: self.square,
            THREE_LOOPS: self.diagonal3,
            BARBELL: self.barbell,
            LOOP_ON_DOUBLE: self.loop_double,
            TRIANGLE: self.triangle,
            TRIPLE: self.cube,
        }[graph]


def permutation_cumulants(kernel: GraphSums, data: GraphSums, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and third cumulant of T over all permutations of n units, ``(...)`` each."""
    raw = []
    for power in (1, 2, 3):
        graphs, weights = _coefficients(power)
        left = torch.stack([_product(kernel, graph) for graph in graphs], -1)
        right = torch.stack([_product(data, graph) for graph in graphs], -1)
        total, falling = torch.zeros_like(kernel.trace), torch.ones_like(kernel.trace)
        for k in range(1, 2 * power + 1):
            falling = falling * (n - k + 1)
            term = torch.einsum("...p,pq,...q->...", left, weights[k - 1].to(left), right)
            total = total + torch.where(falling > 0, term / falling, 0.0)
        raw.append(total)
    mean, second, third = raw
    return mean, second - mean**2, third - 3 * mean * second + 2 * mean**3


def _product(sums: GraphSums, components: tuple[Edges, ...]) -> Tensor:
    return torch.stack([sums.of(graph) for graph in components]).prod(0)


@cache
def _coefficients(power: int) -> tuple[list[tuple[Edges, ...]], Tensor]:
    """Multigraphs with ``power`` edges as their connected components, and C ``(2 power, graphs, graphs)``."""
    graphs: dict[tuple[Edges, ...], int] = {}
    entries: dict[tuple[int, int, int], float] = defaultdict(float)
    for ends in _set_partitions(2 * power):
        blocks = max(ends) + 1
        weights: dict[int, float] = defaultdict(float)
        for merged in _set_partitions(blocks):
            components = _components([merged[block] for block in ends])
            if components is not None:
                sizes = [merged.count(block) for block in range(max(merged) + 1)]
                sign = math.prod((-1) ** (size - 1) * math.factorial(size - 1) for size in sizes)
                weights[graphs.setdefault(components, len(graphs))] += sign
        for p, left in weights.items():
            for q, right in weights.items():
                entries[blocks - 1, p, q] += left * right
    table = torch.zeros(2 * power, len(graphs), len(graphs), dtype=torch.float64)
    for place, value in entries.items():
        table[place] = value
    return list(graphs), table


def _set_partitions(n: int) -> Iterator[list[int]]:
    """Partitions of n things, as the block that each is in."""
    if n == 0:
        yield []
        return
    for head in _set_partitions(n - 1):
        for block in range(max(head, default=-1) + 2):
            yield [*head, block]


def _components(ends: list[int]) -> tuple[Edges, ...] | None:
    """Connected components of the graph with edges (ends 0, 1), (2, 3), …; None where a vertex has a single end."""
    if any(ends.count(vertex) < 2 for vertex in ends):
        return None
    groups: list[list[tuple[int, int]]] = []
    for edge in zip(ends[::2], ends[1::2], strict=True):
        touched = [group for group in groups if any(set(edge) & set(other) for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append([edge, *(other for group in touched for other in group)])
    return tuple(sorted(_canonical(group) for group in groups))


def _canonical(edges: list[tuple[int, int]]) -> Edges:
    """Rename the vertices of a connected graph, so that graphs that differ in names only are equal."""
    vertices = sorted({vertex for edge in edges for vertex in edge})
    renamed = (dict(zip(vertices, order, strict=True)) for order in permutations(range(len(vertices))))
    return min(tuple(sorted(_edge(name[a], name[b]) for a, b in edges)) for name in renamed)


def _edge(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a <= b else (b, a)
