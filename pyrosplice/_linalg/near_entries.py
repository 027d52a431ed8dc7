"""Entries of the inverse of a sparse matrix between spots that are near each other on its graph.

Colour the spots so that two of a colour are ``spacing`` steps apart or more, and put a random sign on each: the product
of the inverse with one colour's signs shows, at every spot, its entry with the nearest spot of that colour, up to what
the others of the colour add from further away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._linalg.compiled import compiled

_FAST = {"contract", "reassoc", "nsz"}
_LINE = 16  # numbers of a cache line
_SMALL = 0.2  # of a spot's largest entry: below, products of two or more entries are left out


class Inverse(Protocol):
    """What multiplies with the inverse of a sparse matrix."""

    def product(self, x: NDArray[Any]) -> NDArray[Any]:
        """Product ``P⁻¹ x`` for columns ``(N, R)``."""
        ...


@dataclass(frozen=True)
class NearEntries:
    """Entries of an inverse between each spot and the nearest other spot of every colour.

    Attributes
    ----------
    spots
        ``(N, colors)``, int32; −1 where the spot itself has the colour, or none can be reached.
    values
        ``(N, colors)``, float32; 0 there.
    colour
        Colour of each spot, ``(N,)``.
    """

    spots: NDArray[np.int32]
    values: NDArray[np.float32]
    color: NDArray[np.int32]

    @classmethod
    def of(cls, inverse: Inverse, matrix: sp.spmatrix, *, spacing: int, seed: int = 0) -> NearEntries:
        """Find entries of the inverse of ``matrix``, by as many products as colours (76 on a grid at spacing 11)."""
        graph = sp.csr_matrix(matrix)
        n = graph.shape[0]
        color, n_colors = _colors(graph.indptr, graph.indices, spacing)
        sign = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), n)
        probes = np.zeros((n, n_colors), np.float32)
        probes[np.arange(n), color] = sign
        values = inverse.product(probes)
        spots = _nearest(graph.indptr, graph.indices, color, n_colors)
        spots[np.arange(n), color] = -1
        values *= np.where(spots >= 0, sign[spots], 0)
        return cls(spots, values, color)

    def between(self, spots: NDArray[np.intp]) -> NDArray[np.float64]:
        """Entries between all pairs of some spots ``(B, m)``: ``(B, m, m)``, 0 if far; without the diagonal."""
        rows, columns = spots[..., :, None], spots[..., None, :]
        color = self.color[columns]
        near = self.spots[rows, color] == columns
        entries = np.where(near, self.values[rows, color], 0).astype(np.float64)
        known = near.astype(np.int8) + np.swapaxes(near, -1, -2)
        return (entries + np.swapaxes(entries, -1, -2)) / np.maximum(known, 1)

    def pair_sums(self, sizes: NDArray[np.float64]) -> PairSums:
        """Sums over near pairs, for G genes with ``sizes`` a ``(G, N)``."""
        columns = np.ascontiguousarray(sizes.T, dtype=np.float32)
        rows, cubes, triples = np.empty_like(columns), np.zeros(len(sizes)), np.zeros(len(sizes))
        _pair_sums(
            self.spots, self.values, columns, columns * np.sqrt(columns), np.float32(_SMALL), rows, cubes, triples
        )
        return PairSums(rows.T.astype(np.float64), cubes, triples)


@dataclass(frozen=True)
class PairSums:
    """Sums over pairs of spots of powers of the entries W between them and of sizes a.

    Attributes
    ----------
    rows
        ``a_i Σ_j W_ij² a_j``, ``(G, N)``.
    cubes
        ``Σ_ij W_ij³ (a_i a_j)^{3/2}``, ``(G,)``.
    triples
        ``Σ_i a_i`` times the mean of ``a_j a_k`` over pairs near i, weighted by the squares of their entries, ``(G,)``.
    """

    rows: NDArray[np.float64]
    cubes: NDArray[np.float64]
    triples: NDArray[np.float64]


@compiled()
def _colors(pointers, columns, spacing):  # type: ignore[no-untyped-def]
    """Greedy colouring in which equal colours are ``spacing`` steps apart or more."""
    n = len(pointers) - 1
    color, seen, queue = np.full(n, -1, np.int32), np.full(n, -1, np.int32), np.empty(n, np.int32)
    taken = np.full(n + 1, -1, np.int32)
    n_colors = 0
    for i in range(n):
        seen[i], queue[0] = i, i
        head, tail = 0, 1
        for _ in range(spacing - 1):
            end = tail
            while head < end:
                u = queue[head]
                head += 1
                for p in range(pointers[u], pointers[u + 1]):
                    j = columns[p]
                    if seen[j] != i:
                        seen[j] = i
                        queue[tail] = j
                        tail += 1
                        if color[j] >= 0:
                            taken[color[j]] = i
        c = 0
        while taken[c] == i:
            c += 1
        color[i] = c
        n_colors = max(n_colors, c + 1)
    return color, n_colors


@compiled()
def _nearest(pointers, columns, color, n_colors):  # type: ignore[no-untyped-def]
    """The nearest spot of every colour, by a search from all spots of the colour at once."""
    n = len(pointers) - 1
    nearest, queue = np.empty((n, n_colors), np.int32), np.empty(n, np.int32)
    some = np.empty((_LINE, n), np.int32)  # searches in memory of their own, written as whole cache lines
    order, at = np.argsort(color, kind="mergesort"), 0
    for first in range(0, n_colors, _LINE):
        size = min(_LINE, n_colors - first)
        for c in range(size):
            found = some[c]
            found[:] = -1
            tail = 0
            while at < n and color[order[at]] == first + c:
                i = order[at]
                found[i], queue[tail] = i, i
                tail += 1
                at += 1
            head = 0
            while head < tail:
                u = queue[head]
                head += 1
                for p in range(pointers[u], pointers[u + 1]):
                    j = columns[p]
                    if found[j] < 0:
                        found[j] = found[u]
                        queue[tail] = j
                        tail += 1
        for i in range(n):
            for c in range(size):
                nearest[i, first + c] = some[c, i]
    return nearest


@compiled(nogil=True, fastmath=_FAST, error_model="numpy")
def _pair_sums(spots, values, a, root, small, rows, cubes, triples):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    n, n_colors = spots.shape
    n_genes = a.shape[1]
    once, cube, squares = np.empty(n_genes, a.dtype), np.empty(n_genes, a.dtype), np.empty(n_genes, a.dtype)
    for i in range(n):
        once[:] = 0
        cube[:] = 0
        squares[:] = 0
        near = near_twice = largest = np.float32(0)
        for c in range(n_colors):
            largest = max(largest, abs(values[i, c]))
        for c in range(n_colors):
            j = spots[i, c]
            if j < 0:
                continue
            value = values[i, c]
            weight = value * value
            near += weight
            if abs(value) < small * largest:
                for g in range(n_genes):
                    once[g] += weight * a[j, g]
                continue
            third = weight * value
            near_twice += weight * weight
            for g in range(n_genes):
                part = weight * a[j, g]
                once[g] += part
                squares[g] += part * part
                cube[g] += third * root[j, g]
        pairs = near * near - near_twice
        inverse = 1 / pairs if pairs > 0 else np.float32(0)
        for g in range(n_genes):
            rows[i, g] = a[i, g] * once[g]
            cubes[g] += cube[g] * root[i, g]
            triples[g] += a[i, g] * (once[g] * once[g] - squares[g]) * inverse
