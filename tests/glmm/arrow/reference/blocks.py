"""Effects of groups by hand, for tests and studies that share no code with the reader of formulas."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyrosplice.effects._group_block import GroupBlock


def group_block(name: str, by: ArrayLike, columns: ArrayLike | None = None, *, diagonal: bool = False) -> GroupBlock:
    """Intercepts of the levels of a factor, or what ``columns`` ``(N, q)`` hold, with a full or diagonal covariance."""
    level_names, levels = np.unique(np.asarray(by, str), return_inverse=True)
    z = np.ones((len(levels), 1)) if columns is None else np.asarray(columns, float)
    q = z.shape[1]
    entries = [(k, j) for k in range(q) for j in range(k + 1) if k == j or not diagonal]
    basis = np.zeros((len(entries), q, q))
    for parameter, entry in enumerate(entries):
        basis[(parameter, *entry)] = 1
    names = tuple(f"sd({k})" if k == j else f"L({k}, {j})" for k, j in entries)
    columns_of = tuple(f"z{k}" for k in range(q))
    return GroupBlock(name, levels, z, basis, names, tuple(level_names), columns_of)
