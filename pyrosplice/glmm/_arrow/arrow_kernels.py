"""Loops over the supports of each gene: small matrices in places that no library call would gather faster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrosplice._linalg.compiled import compiled

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
LOOSE = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order; numbers that are not finite stay so


@compiled(fastmath=LOOSE, nogil=True)
def place(support: Indices, slot: Indices, select: Array, scale: Array, out: Array) -> None:
    """Add ``select @ scale`` (R, w, q), (b, q, q) to the columns from ``slot`` on of ``out`` (b, U, w, c)."""
    n, w, q = select.shape
    for a in range(len(scale)):
        for r in range(n):
            for k in range(w):
                for i in range(q):
                    if select[r, k, i] != 0.0:
                        for j in range(q):
                            out[a, support[r], k, slot[r] + j] += select[r, k, i] * scale[a, i, j]


@compiled(fastmath=LOOSE, nogil=True)
def displace(support: Indices, slot: Indices, select: Array, slope: Array, out: Array) -> None:
    """Derivative in ``scale`` of what has the derivative ``slope`` in ``out`` of :func:`place`; added to (b, q, q)."""
    n, w, q = select.shape
    for a in range(len(out)):
        for r in range(n):
            for k in range(w):
                for i in range(q):
                    if select[r, k, i] != 0.0:
                        for j in range(q):
                            out[a, i, j] += select[r, k, i] * slope[a, support[r], k, slot[r] + j]


@compiled(fastmath=LOOSE, nogil=True)
def assemble(  # noqa: PLR0913
    map_: Array, information: Array, index: Indices, group: Indices, private: Array, mixed: Array, border: Array
) -> None:
    """Add ``F' M F`` of every support to private (b, D, m, m), mixed (b, D, m, B) and border (b, B, B) blocks."""
    n_genes, n_supports, w, c = map_.shape
    n_border = index.shape[1]
    product = np.empty((w, c))
    for a in range(n_genes):
        for u in range(n_supports):
            d = group[u]
            for k in range(w):
                for j in range(c):
                    product[k, j] = 0.0
                for i in range(w):
                    m = information[a, u, k, i]
                    for j in range(c):
                        product[k, j] += m * map_[a, u, i, j]
            for i in range(c):
                if i < n_border and index[u, i] < 0:
                    continue
                for j in range(c):
                    if j < n_border and index[u, j] < 0:
                        continue
                    total = 0.0
                    for k in range(w):
                        total += map_[a, u, k, i] * product[k, j]
                    if i < n_border and j < n_border:
                        border[a, index[u, i], index[u, j]] += total
                    elif i >= n_border and j < n_border:
                        mixed[a, d, i - n_border, index[u, j]] += total
                    elif i >= n_border:
                        private[a, d, i - n_border, j - n_border] += total


@compiled(nogil=True)
def eliminate_private(private: Array, mixed: Array, through: Array, border: Array, logdet: Array) -> None:
    """Invert ``private + I`` in place, ``through`` its product with ``mixed``; take what that explains off ``border``.

    ``logdet`` (b,) gets the sum of the logs of determinants, NaN where a block is not positive definite.
    """
    n_genes, n_groups, m, n_border = mixed.shape
    for a in range(n_genes):
        total = 0.0
        for d in range(n_groups):
            block = private[a, d]
            for k in range(m):
                block[k, k] += 1.0
            for k in range(m):  # Gauss-Jordan sweeps, which a positive definite matrix needs no pivots for
                pivot = block[k, k]
                if not pivot > 0.0:
                    total = np.nan
                    pivot = 1.0
                total += np.log(pivot)
                for i in range(m):
                    if i != k:
                        factor = block[i, k] / pivot
                        for j in range(m):
                            if j != k:
                                block[i, j] -= factor * block[k, j]
                for j in range(m):
                    if j != k:
                        block[k, j] /= pivot
                for i in range(m):
                    if i != k:
                        block[i, k] /= -pivot
                block[k, k] = 1.0 / pivot
            for i in range(m):
                for j in range(n_border):
                    value = 0.0
                    for k in range(m):
                        value += block[i, k] * mixed[a, d, k, j]
                    through[a, d, i, j] = value
            for k in range(m):
                for i in range(n_border):
                    value = mixed[a, d, k, i]
                    if value != 0.0:
                        for j in range(n_border):
                            border[a, i, j] -= value * through[a, d, k, j]
        logdet[a] = total


@compiled(fastmath=LOOSE, nogil=True)
def pull(map_: Array, score: Array, index: Indices, group: Indices, border: Array, private: Array) -> None:
    """Add ``F' g`` of every support to border (b, B) and private (b, D, m)."""
    n_genes, n_supports, w, c = map_.shape
    n_border = index.shape[1]
    for a in range(n_genes):
        for u in range(n_supports):
            for j in range(c):
                total = 0.0
                for k in range(w):
                    total += map_[a, u, k, j] * score[a, u, k]
                if j >= n_border:
                    private[a, group[u], j - n_border] += total
                elif index[u, j] >= 0:
                    border[a, index[u, j]] += total


@compiled(fastmath=LOOSE, nogil=True)
def gather(index: Indices, group: Indices, border: Array, private: Array, out: Array) -> None:
    """ArrowUnknowns of each support, ``out`` (b, U, c)."""
    n_genes, n_supports, c = out.shape
    n_border = index.shape[1]
    for a in range(n_genes):
        for u in range(n_supports):
            for j in range(c):
                if j >= n_border:
                    out[a, u, j] = private[a, group[u], j - n_border]
                else:
                    out[a, u, j] = border[a, index[u, j]] if index[u, j] >= 0 else 0.0


@compiled(fastmath=LOOSE, nogil=True)
def before_border(inverse: Array, mixed: Array, border: Array, private: Array) -> None:
    """Solve the private part at fixed border, in place, and take what it explains off the border's right-hand side."""
    n_genes, n_groups, m, n_border = mixed.shape
    x = np.empty(m)
    for a in range(n_genes):
        for d in range(n_groups):
            for i in range(m):
                x[i] = 0.0
                for k in range(m):
                    x[i] += inverse[a, d, i, k] * private[a, d, k]
            for i in range(m):
                private[a, d, i] = x[i]
                for j in range(n_border):
                    border[a, j] -= mixed[a, d, i, j] * x[i]


@compiled(fastmath=LOOSE, nogil=True)
def after_border(through: Array, border: Array, private: Array) -> None:
    """Carry a solution of the border back to the private part, in place."""
    n_genes, n_groups, m, n_border = through.shape
    for a in range(n_genes):
        for d in range(n_groups):
            for i in range(m):
                for j in range(n_border):
                    private[a, d, i] -= through[a, d, i, j] * border[a, j]


@compiled(fastmath=LOOSE, nogil=True)
def covariances(  # noqa: PLR0913
    map_: Array, index: Indices, group: Indices, border: Array, mixed: Array, private: Array, cross: Array, out: Array
) -> None:
    """Covariance of the unknowns of each support with its b, ``cross`` (b, U, c, w), and of b, ``out`` (b, U, w, w).

    Given the covariances of border (b, B, B), private with border (b, D, m, B) and private (b, D, m, m) unknowns.
    """
    n_genes, n_supports, w, c = map_.shape
    n_border = index.shape[1]
    for a in range(n_genes):
        for u in range(n_supports):
            d = group[u]
            for i in range(c):
                for k in range(w):
                    cross[a, u, i, k] = 0.0
                if i < n_border and index[u, i] < 0:
                    continue
                for j in range(c):
                    if j < n_border and index[u, j] < 0:
                        continue
                    if i < n_border:
                        if j < n_border:
                            v = border[a, index[u, i], index[u, j]]
                        else:
                            v = mixed[a, d, j - n_border, index[u, i]]
                    elif j < n_border:
                        v = mixed[a, d, i - n_border, index[u, j]]
                    else:
                        v = private[a, d, i - n_border, j - n_border]
                    for k in range(w):
                        cross[a, u, i, k] += v * map_[a, u, k, j]
            for k in range(w):
                for n in range(w):
                    total = 0.0
                    for i in range(c):
                        total += map_[a, u, k, i] * cross[a, u, i, n]
                    out[a, u, k, n] = total


@compiled(fastmath=LOOSE, nogil=True)
def through_map(map_: Array, unknowns: Array, out: Array) -> None:
    """Product ``F z`` of every support, (b, U, w)."""
    n_genes, n_supports, w, c = map_.shape
    for a in range(n_genes):
        for u in range(n_supports):
            for k in range(w):
                total = 0.0
                for j in range(c):
                    total += map_[a, u, k, j] * unknowns[a, u, j]
                out[a, u, k] = total
