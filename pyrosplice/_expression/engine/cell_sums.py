r"""Sums over cells of what the negative-binomial log density of one common dispersion is made of, compiled.

With :math:`v = \alpha\mu` and :math:`q = 1 / (1 + v)`, log density, gradient and information of a gene are sums over
*every* cell that touch no counts (``add_cells``) and sums over its non-zero counts (``add_counts``). Both come for each
stratum of cells whose discrete covariates are equal, over :math:`u`, the constant 1 and the D continuous columns:
one row of Q numbers holds

.. math::
    \Big[\ell,\ \gamma,\ \textstyle\sum m u,\ \sum c u,\ \sum w u_j u_k\ (j \le k),\ \sum m u_j u_k\ (j \le k),
    \ \sum \mu u\Big]

where over every cell :math:`m = \mu q`, :math:`w = \mu q^2`, :math:`\ell = \sum \log(1 + v) / \alpha`,
:math:`\gamma = \ell - \sum m` and, near the Poisson alone (else zero), :math:`c = m - w`; over the non-zeros
:math:`m = y v q`, :math:`w = y v q^2`, :math:`\ell = \sum y \log(1 + v)` and :math:`\gamma = c = 0`.

Cells go by tiles that stay in the first cache; a tile's sum of logs is the log of a few products. The exponential
and the logarithm are polynomials without branches, which the compiler vectorizes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyrosplice._linalg.compiled import compiled

TILE = 256  # cells: products of pairs for three columns fill half of a first cache of 48 kB
LANES = 16  # partial products of 1 + v in a tile, each of TILE / LANES factors
FAST = {"reassoc", "contract", "nsz", "arcp"}  # not-a-number and infinity stay what they are
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10
MAGIC = 6755399441055744.0  # 1.5 · 2^52: adding it rounds to the nearest integer, left in the low bits
ONE_BITS, MANTISSA = 0x3FF0000000000000, 0x000FFFFFFFFFFFFF  # of 1.0, and the mask of a significand
LOWEST, HIGHEST = -700.0, 300.0  # predictors beyond these are taken as these; likelihoods cap theirs at 300 too
SERIES_BELOW = 1e-2  # v of the series then


@intrinsic
def _bits_of(context: Any, x: Any) -> Any:
    """The 64 bits of a float64 as an int64."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def _float_of(context: Any, bits: Any) -> Any:
    """The float64 of these 64 bits."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@compiled(error_model="numpy", fastmath={"contract"}, nogil=True)  # inlined by LLVM, with these flags
def exponential(x):  # type: ignore[no-untyped-def]
    """exp(x), without a branch or a call; not a number stays so."""
    v = LOWEST if x < LOWEST else x
    v = HIGHEST if v > HIGHEST else v
    t = v * LOG2E + MAGIC
    k = t - MAGIC
    f = (v - k * LN2_HIGH) - k * LN2_LOW
    p = 1 / 479001600.0 * f + 1 / 39916800.0
    p = p * f + 1 / 3628800.0
    p = p * f + 1 / 362880.0
    p = p * f + 1 / 40320.0
    p = p * f + 1 / 5040.0
    p = p * f + 1 / 720.0
    p = p * f + 1 / 120.0
    p = p * f + 1 / 24.0
    p = p * f + 1 / 6.0
    p = p * f + 0.5
    p = p * f + 1.0
    p = p * f + 1.0
    return p * _float_of((_bits_of(t) << 52) + ONE_BITS)


@compiled(error_model="numpy", fastmath={"contract"}, nogil=True)  # inlined by LLVM, with these flags
def logarithm(x):  # type: ignore[no-untyped-def]
    """log(x) of finite x ≥ 1, without a branch or a call."""
    bits = _bits_of(x)
    m = _float_of((bits & MANTISSA) | ONE_BITS)
    big = m > 1.4142135623730951
    m = m * 0.5 if big else m
    e = np.float64(np.int32(bits >> 52) - 1023) + (1.0 if big else 0.0)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1 / 17.0 + z * (1 / 19.0)
    p = 1 / 15.0 + z * p
    p = 1 / 13.0 + z * p
    p = 1 / 11.0 + z * p
    p = 1 / 9.0 + z * p
    p = 1 / 7.0 + z * p
    p = 1 / 5.0 + z * p
    p = 1 / 3.0 + z * p
    p = 1.0 + z * p
    return e * LN2_HIGH + (2.0 * s * p + e * LN2_LOW)


@compiled(error_model="numpy", fastmath=FAST, nogil=True)
def weighted_sums(weight, rows, n_rows, n, out, at):  # type: ignore[no-untyped-def]
    """Add the sums of ``weight`` times each of the first ``n_rows`` rows to ``out`` from place ``at`` on."""
    k = 0
    while k + 4 <= n_rows:
        r0, r1, r2, r3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        s0 = s1 = s2 = s3 = 0.0
        for j in range(n):
            w = weight[j]
            s0 += w * r0[j]
            s1 += w * r1[j]
            s2 += w * r2[j]
            s3 += w * r3[j]
        out[at + k] += s0
        out[at + k + 1] += s1
        out[at + k + 2] += s2
        out[at + k + 3] += s3
        k += 4
    if n_rows - k >= 2:
        r0, r1 = rows[k], rows[k + 1]
        s0 = s1 = 0.0
        for j in range(n):
            s0 += weight[j] * r0[j]
            s1 += weight[j] * r1[j]
        out[at + k] += s0
        out[at + k + 1] += s1
        k += 2
    if n_rows > k:
        r0 = rows[k]
        s0 = 0.0
        for j in range(n):
            s0 += weight[j] * r0[j]
        out[at + k] += s0


@compiled(error_model="numpy", nogil=True)
def pair_products(columns, n_columns, n, out):  # type: ignore[no-untyped-def]
    """Write the products of pairs of [1, columns], upper triangle by rows, to ``out``."""
    out[0, :n] = 1.0
    for k in range(n_columns):
        out[1 + k, :n] = columns[k, :n]
    at = 1 + n_columns
    for k in range(n_columns):
        for m in range(k, n_columns):
            for j in range(n):
                out[at, j] = columns[k, j] * columns[m, j]
            at += 1


@compiled(error_model="numpy", fastmath=FAST, nogil=True)
def log_of_products(one_more, n, products):  # type: ignore[no-untyped-def]
    """Sum of the logs of the first ``n`` of a tile of numbers ≥ 1; those beyond are overwritten."""
    for j in range(n, TILE):
        one_more[j] = 1.0
    for j in range(LANES):
        products[j] = one_more[j]
    for i in range(1, TILE // LANES):
        for j in range(LANES):
            products[j] *= one_more[LANES * i + j]
    total = 0.0
    for j in range(LANES // 4):
        total += math.log(products[j] * products[j + 4] * products[j + 8] * products[j + 12])
    if total < math.inf:
        return total
    total = 0.0  # means of 1e4 and more times 1 / α
    for j in range(LANES):
        total += math.log(products[j])
    if total < math.inf:
        return total
    total = 0.0  # of 1e19
    for j in range(n):
        total += math.log(one_more[j])
    return total


@compiled(error_model="numpy", fastmath=True, nogil=True)
def largest_of(values, n):  # type: ignore[no-untyped-def]
    """Largest of the first ``n`` positive values; any number where one of them is none."""
    largest = 0.0
    for j in range(n):
        largest = max(largest, values[j])
    return largest


@compiled(error_model="numpy", fastmath=FAST, nogil=True)
def nearly_poisson_gap(mu, alpha, n):  # type: ignore[no-untyped-def]
    """Sum of ``(log(1 + v) − v q) / α`` without cancellation where v is small."""
    total = 0.0
    if alpha * largest_of(mu, n) < SERIES_BELOW:
        for j in range(n):
            v = alpha * mu[j]
            s = 0.8 - v * (5 / 6.0 - v * (6 / 7.0 - v * 0.875))
            total += mu[j] * v * (0.5 - v * (2 / 3.0 - v * (0.75 - v * s)))
        return total
    for j in range(n):
        v = alpha * mu[j]
        if v < SERIES_BELOW:
            s = 0.8 - v * (5 / 6.0 - v * (6 / 7.0 - v * 0.875))
            total += mu[j] * v * (0.5 - v * (2 / 3.0 - v * (0.75 - v * s)))
        else:
            total += (math.log1p(v) - v / (1.0 + v)) / alpha
    return total


@compiled(error_model="numpy", fastmath=FAST, nogil=True)
def cell_weights(eta, alpha, n, mu, one_more, m, w):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Write the mean, 1 + v, m and w of every cell of a tile, and return the sums of m and w."""
    m_total = w_total = 0.0
    for j in range(n):
        mean = exponential(eta[j])
        d = 1.0 + alpha * mean
        q = 1.0 / d
        a = mean * q
        b = a * q
        mu[j] = mean
        one_more[j] = d
        m[j] = a
        w[j] = b
        m_total += a
        w_total += b
    return m_total, w_total


@compiled(error_model="numpy", fastmath=FAST, nogil=True)
def location_predictor(offset, constant, slopes, columns, n, eta):  # type: ignore[no-untyped-def]
    """Write the predictor of the first ``n`` cells of a tile to ``eta``."""
    k, n_columns = 1, len(slopes)
    if n_columns == 0:
        for j in range(n):
            eta[j] = offset[j] + constant
        return
    b, column = slopes[0], columns[0]
    for j in range(n):
        eta[j] = offset[j] + constant + b * column[j]
    while k + 2 <= n_columns:
        b, column, c, other = slopes[k], columns[k], slopes[k + 1], columns[k + 1]
        for j in range(n):
            eta[j] += b * column[j] + c * other[j]
        k += 2
    if k < n_columns:
        b, column = slopes[k], columns[k]
        for j in range(n):
            eta[j] += b * column[j]


@compiled(error_model="numpy", nogil=True)
def add_cells(columns, offset, starts, constant, slopes, alpha, near, final, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Add the sums over every cell of every gene and stratum to ``out`` ``(G, L, Q)``.

    Parameters
    ----------
    columns, offset
        Continuous columns ``(D, N)`` and offsets ``(N,)``, cells sorted by stratum; stratum l starts at ``starts[l]``.
    constant, slopes, alpha
        What the discrete columns add to the predictor ``(G, L)``, coefficients of the continuous ones ``(G, D)`` and
        dispersions ``(G,)``.
    near
        Genes near the Poisson ``(G,)``, whose γ and c are not to be differences of sums.
    final
        Whether the last two kinds of sums are wanted.
    """
    n_columns = len(columns)
    u, n_pairs = 1 + n_columns, (n_columns + 1) * (n_columns + 2) // 2
    pairs, eta, mu = np.empty((n_pairs, TILE)), np.empty(TILE), np.empty(TILE)
    one_more, m, w, products = np.empty(TILE), np.empty(TILE), np.empty(TILE), np.empty(LANES)
    wide = 2 + 2 * u + n_pairs
    for stratum in range(len(starts) - 1):
        for start in range(starts[stratum], starts[stratum + 1], TILE):
            n = min(TILE, starts[stratum + 1] - start)
            pair_products(columns[:, start : start + n], n_columns, n, pairs)
            tile, others, base = pairs[1:u], pairs[1:], offset[start : start + n]
            for gene in range(len(alpha)):
                a, sums = alpha[gene], out[gene, stratum]
                location_predictor(base, constant[gene, stratum], slopes[gene], tile, n, eta)
                m_total, w_total = cell_weights(eta, a, n, mu, one_more, m, w)
                if near[gene]:
                    gap = nearly_poisson_gap(mu, a, n)
                    sums[0] += gap + m_total
                    for j in range(n):
                        one_more[j] = a * mu[j] * w[j]
                    weighted_sums(one_more, pairs, u, n, sums, 2 + u)
                else:
                    logs = log_of_products(one_more, n, products) / a
                    sums[0] += logs
                    gap = logs - m_total
                sums[1] += gap
                sums[2] += m_total
                sums[2 + 2 * u] += w_total
                weighted_sums(m, others, n_columns, n, sums, 3)
                weighted_sums(w, others, n_pairs - 1, n, sums, 3 + 2 * u)
                if final:
                    weighted_sums(m, pairs, n_pairs, n, sums, wide)
                    weighted_sums(mu, pairs, u, n, sums, wide + n_pairs)


@compiled(error_model="numpy", fastmath=FAST, nogil=True)
def count_weights(eta, y, alpha, n, m, w):  # type: ignore[no-untyped-def]
    """Write m and w of some non-zero counts, and return the sums of ``y log(1 + v)``, m and w."""
    logs = m_total = w_total = 0.0
    for j in range(n):
        v = alpha * exponential(eta[j])
        d = 1.0 + v
        q = 1.0 / d
        a = y[j] * (v * q)
        b = a * q
        m[j] = a
        w[j] = b
        logs += y[j] * logarithm(d)
        m_total += a
        w_total += b
    return logs, m_total, w_total


@compiled(error_model="numpy", nogil=True)
def add_counts(genes, bounds, cells, values, columns, offset, constant, slopes, alpha, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Add the sums over non-zero counts to ``out``, as :func:`add_cells` does over every cell.

    ``genes`` are those wanted ``(G,)``; the counts of ``values`` and their places ``cells`` in the sorted order lie
    between ``bounds[genes[g], l]`` and ``bounds[genes[g], l + 1]``.
    """
    n_columns = len(columns)
    u, n_pairs = 1 + n_columns, (n_columns + 1) * (n_columns + 2) // 2
    pairs, tile, eta = np.empty((n_pairs, TILE)), np.empty((n_columns, TILE)), np.empty(TILE)
    base, m, w = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    for g in range(len(genes)):
        for stratum in range(bounds.shape[1] - 1):
            sums, stop = out[g, stratum], bounds[genes[g], stratum + 1]
            for start in range(bounds[genes[g], stratum], stop, TILE):
                n = min(TILE, stop - start)
                for j in range(n):
                    cell = cells[start + j]
                    base[j] = offset[cell]
                    for k in range(n_columns):
                        tile[k, j] = columns[k, cell]
                pair_products(tile, n_columns, n, pairs)
                location_predictor(base, constant[g, stratum], slopes[g], tile, n, eta)
                logs, m_total, w_total = count_weights(eta, values[start : start + n], alpha[g], n, m, w)
                sums[0] += logs
                sums[2] += m_total
                sums[2 + 2 * u] += w_total
                weighted_sums(m, pairs[1:], n_columns, n, sums, 3)
                weighted_sums(w, pairs[1:], n_pairs - 1, n, sums, 3 + 2 * u)


@compiled(error_model="numpy", nogil=True)
def by_stratum(indptr, cells, values, stratum, place, n_strata):  # type: ignore[no-untyped-def]
    """Sort each gene's non-zero counts by stratum of the cell: their bounds ``(G, L + 1)``, places and values."""
    n_genes = len(indptr) - 1
    bounds = np.zeros((n_genes, n_strata + 1), np.int64)
    places, sorted_values = np.empty(len(cells), np.int64), np.empty(len(cells))
    for gene in range(n_genes):
        for t in range(indptr[gene], indptr[gene + 1]):
            bounds[gene, stratum[cells[t]] + 1] += 1
        bounds[gene, 0] = indptr[gene]
        for k in range(n_strata):
            bounds[gene, k + 1] += bounds[gene, k]
        free = bounds[gene, :-1].copy()
        for t in range(indptr[gene], indptr[gene + 1]):
            k = stratum[cells[t]]
            places[free[k]], sorted_values[free[k]] = place[cells[t]], values[t]
            free[k] += 1
    return bounds, places, sorted_values
