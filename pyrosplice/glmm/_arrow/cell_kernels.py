r"""Passes over the cells of each gene: negative-binomial counts, and Poisson ones with a dispersion α of zero.

Rows are cells, or ``number`` cells of equal predictor with ``total`` counts in all, sorted by support. With μ of a
cell, :math:`q = 1 / (1 + \alpha\mu)`:

.. math::
    \ell = t\eta - (t + n/\alpha) \log(1 + \alpha\mu), \quad s = (t - n\mu) q, \quad w = \mu q^2 (n + \alpha t),
    \quad \frac{dw}{d\eta} = w (2q - 1)

and what depends on a gene's counts and α alone is :func:`rising`. Blocks of a few hundred rows stay in the first cache;
exponentials and logarithms are polynomials without branches, which compilers vectorise (1 ulp).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyrosplice._linalg.compiled import compiled

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
LOOSE = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order; numbers that are not finite stay so
CHUNK = 256  # rows of a block: eight arrays of them are 16 kB
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10
SQRT2 = 1.4142135623730951
FAR = 700.0  # exp of it is finite


@compiled(fastmath={"contract"}, inline="never")
def exp_into(x: Array, out: Array, bits: Indices, n: int) -> None:
    """Exponential of n numbers, which are lost; ``bits`` is the view of ``out`` as integers."""
    for j in range(n):
        v = min(max(x[j], -FAR), FAR)
        k = math.floor(v * LOG2E + 0.5)
        f = (v - k * LN2_HIGH) - k * LN2_LOW
        p = 1.0 + f * (1 / 13.0)
        p = 1.0 + f * p * (1 / 12.0)
        p = 1.0 + f * p * (1 / 11.0)
        p = 1.0 + f * p * (1 / 10.0)
        p = 1.0 + f * p * (1 / 9.0)
        p = 1.0 + f * p * (1 / 8.0)
        p = 1.0 + f * p * (1 / 7.0)
        p = 1.0 + f * p * (1 / 6.0)
        p = 1.0 + f * p * (1 / 5.0)
        p = 1.0 + f * p * (1 / 4.0)
        p = 1.0 + f * p * (1 / 3.0)
        p = 1.0 + f * p * 0.5
        x[j] = 1.0 + f * p
        bits[j] = np.int64(np.int32(k) + 1023) << 52
    for j in range(n):
        out[j] = out[j] * x[j]


@compiled(fastmath={"contract"}, inline="never")
def log_into(x: Array, out: Array, bits: Indices, mantissa: Array, mantissa_bits: Indices, n: int) -> None:
    """Logarithm of n positive normal numbers; ``bits`` and ``mantissa_bits`` are views as integers."""
    for j in range(n):
        b = bits[j]
        out[j] = np.float64(np.int32(b >> 52) - 1023)
        mantissa_bits[j] = (b & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000
    for j in range(n):
        m, e = mantissa[j], out[j]
        big = m > SQRT2
        m = m * 0.5 if big else m
        e = e + 1.0 if big else e
        s = (m - 1.0) / (m + 1.0)
        z = s * s
        p = 1 / 19.0
        p = 1 / 17.0 + z * p
        p = 1 / 15.0 + z * p
        p = 1 / 13.0 + z * p
        p = 1 / 11.0 + z * p
        p = 1 / 9.0 + z * p
        p = 1 / 7.0 + z * p
        p = 1 / 5.0 + z * p
        p = 1 / 3.0 + z * p
        p = 1.0 + z * p
        out[j] = e * LN2_HIGH + (2.0 * s * p + e * LN2_LOW)


@compiled(fastmath=LOOSE, nogil=True)
def predictor(columns: Array, offset: Array, b: Array, start: int, n: int, out: Array) -> None:
    """Linear predictor of n rows of one support."""
    for j in range(n):
        out[j] = offset[start + j]
    for k in range(len(b)):
        bk = b[k]
        for j in range(n):
            out[j] += bk * columns[k, start + j]


@compiled(fastmath=LOOSE, nogil=True)
def variances(columns: Array, covariance: Array, start: int, n: int, out: Array) -> None:
    """Variances ``c' covariance c`` of the predictors of n rows of one support."""
    for j in range(n):
        out[j] = 0.0
    for k in range(len(covariance)):
        for i in range(k, len(covariance)):
            c = covariance[k, i] if i == k else 2.0 * covariance[k, i]
            for j in range(n):
                out[j] += c * columns[k, start + j] * columns[i, start + j]


@compiled(fastmath=LOOSE, nogil=True)
def add_sums(columns: Array, x: Array, start: int, n: int, out: Array) -> None:
    """Add ``Σ x c`` of n rows to ``out`` (w,)."""
    for k in range(len(out)):
        total = 0.0
        for j in range(n):
            total += x[j] * columns[k, start + j]
        out[k] += total


@compiled(fastmath=LOOSE, nogil=True)
def score_pass(  # noqa: PLR0913
    columns: Array,
    offset: Array,
    number: Array,
    starts: Indices,
    totals: Array,
    genes: Indices,
    b: Array,
    alpha: Array,
    score: Array,
    information: Array,
) -> None:
    """Score (b, U, w) and information (b, U, w, w) of every support's coefficients b (b, U, w).

    ``columns`` (w, R), ``offset`` (1 or G, R), ``totals`` (G, R); ``alpha`` (b,).
    """
    w = columns.shape[0]
    x, mu, v, t = np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK)
    bits = mu.view(np.int64)
    for a in range(genes.size):
        y, own, al = totals[genes[a]], offset[genes[a] if len(offset) > 1 else 0], alpha[a]
        score[a] = 0.0
        information[a] = 0.0
        for u in range(starts.size - 1):
            for first in range(starts[u], starts[u + 1], CHUNK):
                n = min(CHUNK, starts[u + 1] - first)
                predictor(columns, own, b[a, u], first, n, x)
                exp_into(x, mu, bits, n)
                for j in range(n):
                    q = 1.0 / (1.0 + al * mu[j])
                    m, total = number[first + j], y[first + j]
                    x[j] = (total - m * mu[j]) * q
                    v[j] = mu[j] * q * q * (m + al * total)
                for k in range(w):
                    acc = 0.0
                    for j in range(n):
                        acc += x[j] * columns[k, first + j]
                        t[j] = v[j] * columns[k, first + j]
                    score[a, u, k] += acc
                    for i in range(k, w):
                        acc = 0.0
                        for j in range(n):
                            acc += t[j] * columns[i, first + j]
                        information[a, u, k, i] += acc
            for k in range(w):
                for i in range(k):
                    information[a, u, k, i] = information[a, u, i, k]


@compiled(fastmath=LOOSE, nogil=True)
def value_pass(  # noqa: PLR0913
    columns: Array,
    offset: Array,
    number: Array,
    starts: Indices,
    totals: Array,
    genes: Indices,
    b: Array,
    alpha: Array,
    value: Array,
) -> None:
    """Log density (b,) without what depends on counts and α alone."""
    x, mu, eta = np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK)
    rest, logs, mantissa = np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK)
    bits, rest_bits, mantissa_bits = mu.view(np.int64), rest.view(np.int64), mantissa.view(np.int64)
    for a in range(genes.size):
        y, own, al = totals[genes[a]], offset[genes[a] if len(offset) > 1 else 0], alpha[a]
        acc = 0.0
        for u in range(starts.size - 1):
            for first in range(starts[u], starts[u + 1], CHUNK):
                n = min(CHUNK, starts[u + 1] - first)
                predictor(columns, own, b[a, u], first, n, eta)
                for j in range(n):
                    x[j] = eta[j]
                exp_into(x, mu, bits, n)
                if al > 0.0:
                    for j in range(n):
                        rest[j] = 1.0 + al * mu[j]
                    log_into(rest, logs, rest_bits, mantissa, mantissa_bits, n)
                    for j in range(n):
                        acc += y[first + j] * eta[j] - (y[first + j] + number[first + j] / al) * logs[j]
                else:
                    for j in range(n):
                        acc += y[first + j] * eta[j] - number[first + j] * mu[j]
        value[a] = acc


@compiled(fastmath=LOOSE, nogil=True)
def measure_pass(  # noqa: PLR0913
    columns: Array,
    offset: Array,
    number: Array,
    starts: Indices,
    totals: Array,
    genes: Indices,
    b: Array,
    alpha: Array,
    covariance: Array,
    value: Array,
    tilt: Array,
    pulled: Array,
    explicit: Array,
) -> None:
    """All that Laplace's value and gradient need at the mode, with h = c' ``covariance`` c of each row.

    ``value`` as :func:`value_pass`; ``tilt`` (b, U, w) sums ``−½ h w' c``; ``pulled`` (b, U, w) the derivative of the
    score in log α; ``explicit`` (b,) that of ``value − ½ h w``.
    """
    x, mu, eta, h = np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK)
    rest, logs, mantissa = np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK)
    bits, rest_bits, mantissa_bits = mu.view(np.int64), rest.view(np.int64), mantissa.view(np.int64)
    for a in range(genes.size):
        y, own, al = totals[genes[a]], offset[genes[a] if len(offset) > 1 else 0], alpha[a]
        acc, slope = 0.0, 0.0
        tilt[a] = 0.0
        pulled[a] = 0.0
        for u in range(starts.size - 1):
            cov = covariance[a, u]
            for first in range(starts[u], starts[u + 1], CHUNK):
                n = min(CHUNK, starts[u + 1] - first)
                predictor(columns, own, b[a, u], first, n, eta)
                for j in range(n):
                    x[j] = eta[j]
                exp_into(x, mu, bits, n)
                variances(columns, cov, first, n, h)
                if al > 0.0:
                    for j in range(n):
                        rest[j] = 1.0 + al * mu[j]
                    log_into(rest, logs, rest_bits, mantissa, mantissa_bits, n)
                    for j in range(n):
                        m, total, q = number[first + j], y[first + j], 1.0 / rest[j]
                        odds = al * mu[j] * q
                        acc += total * eta[j] - (total + m / al) * logs[j]
                        slope += m / al * logs[j] - (total + m / al) * odds
                        width = mu[j] * q * q * (m + al * total)
                        slope -= 0.5 * h[j] * (mu[j] * q * q * al * total - 2.0 * odds * width)
                        x[j] = -0.5 * h[j] * width * (2.0 * q - 1.0)
                        h[j] = -(total - m * mu[j]) * q * odds
                else:
                    for j in range(n):
                        m = number[first + j]
                        acc += y[first + j] * eta[j] - m * mu[j]
                        x[j] = -0.5 * h[j] * m * mu[j]
                        h[j] = 0.0
                add_sums(columns, x, first, n, tilt[a, u])
                add_sums(columns, h, first, n, pulled[a, u])
        value[a] = acc
        explicit[a] = slope


@compiled(nogil=True)
def tail_counts(counts: Array, top: int) -> Array:
    """How many of a gene's counts are above j, for j below its largest, ``top``."""
    out = np.zeros(top + 1)
    for v in counts:
        out[int(v)] += 1.0
    for j in range(top - 1, -1, -1):
        out[j] += out[j + 1]
    return out[1:].copy()


@compiled(nogil=True)
def rising(tails: Array, starts: Indices, genes: Indices, alpha: Array, value: Array, slope: Array) -> None:
    """Sums (b,) over counts of ``Σ_{j < y} log(1 + α j)``, and their derivative in log α."""
    for a in range(genes.size):
        acc, der = 0.0, 0.0
        first = starts[genes[a]]
        for j in range(1, starts[genes[a] + 1] - first):
            z = alpha[a] * j
            acc += tails[first + j] * math.log1p(z)
            der += tails[first + j] * z / (1.0 + z)
        value[a] = acc
        slope[a] = der
