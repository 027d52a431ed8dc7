"""What columns span within each group of observations: the linear algebra of units and of what can be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = Sequence[NDArray[np.intp]]  # of each group, the places of its observations
NOTHING = 1e-9  # singular values, relative to the largest, below which there is nothing: dates, 1e5 ± 10, are 1e-4
DEPENDENT = 1e-10  # part of a column outside of those before it, below which it is rounding


def rows_of_levels(levels: NDArray[np.intp]) -> Rows:
    """Observations of each group; those of none (−1) are left out."""
    order = np.argsort(levels, kind="stable")
    ends = np.searchsorted(levels[order], np.arange(levels.max(initial=-1) + 2))
    return [order[start:stop] for start, stop in pairwise(ends)]


def range_and_rows(matrix: Array) -> tuple[Array, Array]:
    """Orthonormal bases of the column space ``(n, r)`` and of the row space ``(q, r)``."""
    size = np.sqrt(np.square(matrix).sum(0))
    if not size.any():
        return matrix[:, :0], np.zeros((matrix.shape[1], 0))
    scale = np.where(size > 0, size, 1.0)
    u, s, vt = np.linalg.svd(matrix / scale, full_matrices=False)
    rank = int((s > NOTHING * s[0]).sum())
    return u[:, :rank], np.linalg.qr(scale[:, None] * vt[:rank].T)[0]


def without(groups: Rows, columns: Array, design: Array) -> Array:
    """What is left of a design ``(N, P)`` once every group has an effect of its own of the columns ``(N, q)``.

    Rounding is taken away: what is less than a part in 10⁹ of a column within the group is zero.
    """
    out = design.copy()
    for rows in groups:
        space = range_and_rows(columns[rows])[0]
        left = design[rows] - space @ (space.T @ design[rows])
        left -= space @ (space.T @ left)
        out[rows] = np.where(np.abs(left).max(0) > NOTHING * np.abs(design[rows]).max(0), left, 0.0)
    return out


def spanned(groups: Rows, columns: Array, column: Array) -> bool:
    """Whether nothing is left of one column."""
    return not bool(without(groups, columns, column[:, None]).any())


def rank_within(groups: Rows, columns: Array) -> NDArray[np.intp]:
    """Rank of the columns within each group."""
    return np.array([range_and_rows(columns[rows])[0].shape[1] for rows in groups], dtype=np.intp)


def distinguishable(groups: Rows, columns: Array, basis: Array) -> bool:
    r"""Whether counts of these groups can tell the parameters ψ of the covariance Σ = L(ψ) L(ψ)' apart.

    The data of a group depend on Z Σ Z'. Its derivatives in ψ, at a ψ in general position, must be independent over
    all groups together.
    """
    psi = np.random.default_rng(0).standard_normal(len(basis)) + 2.0
    root = np.einsum("j,jkl->kl", psi, basis)
    slopes = basis @ root.T
    slopes = slopes + slopes.transpose(0, 2, 1)
    gram = np.zeros((len(basis), len(basis)))
    scale = np.sqrt(np.square(columns).mean(0))
    seen = set[bytes]()
    for rows in groups:
        space = range_and_rows(columns[rows] / scale)[1]
        projector = np.round(space @ space.T, 12)
        if projector.tobytes() not in seen:  # groups of the same layout add nothing
            seen.add(projector.tobytes())
            visible = np.einsum("ak,jkl,lb->jab", space.T, slopes, space).reshape(len(basis), -1)
            gram += visible @ visible.T
    size = np.sqrt(np.diag(gram))
    if not size.all():
        return False
    return int(np.linalg.matrix_rank(gram / size / size[:, None], tol=NOTHING, hermitian=True)) == len(basis)


def scaling_turn(columns: Array) -> Array:
    """Diagonal T with Z T of mean square 1."""
    size = np.sqrt(np.square(columns).mean(0)) if len(columns) else np.ones(columns.shape[1])
    return np.diag(1 / np.where(size > 0, size, 1.0))


def orthogonal_turn(columns: Array) -> Array | None:
    """Upper triangle T with Z T uncorrelated, of mean square 1 and positive diagonal; None for dependent columns."""
    if len(columns) < columns.shape[1]:
        return None
    scales = scaling_turn(columns)
    root = np.asarray(np.linalg.qr(columns @ scales, mode="r")) / math.sqrt(max(len(columns), 1))
    diagonal = np.diag(root)
    if not (np.abs(diagonal) > DEPENDENT).all():
        return None
    return np.asarray(scales @ np.linalg.inv(root * np.sign(diagonal)[:, None]), dtype=np.float64)
