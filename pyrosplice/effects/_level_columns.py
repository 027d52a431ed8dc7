"""Levels of random effects as fixed ones: a column for each, so that nothing of them is left in what is tested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._linalg.rank import collinear_columns
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]


def columns_with_levels(fixed: Array, groups: Sequence[GroupBlock], observations: str) -> Array:
    """Fixed columns ``(N, P)`` and those of every level of every effect, as far as they are independent.

    Raises
    ------
    InvalidArgumentError
        They are half as many as the observations, or more, which leaves too little to test.
    """
    columns = np.concatenate([fixed, *(_indicators(block) for block in groups)], 1)
    both = torch.from_numpy(np.concatenate([columns, -columns]))  # about zero, so that no intercept is taken for given
    dependent = collinear_columns(both)
    kept = columns[:, [k for k in range(columns.shape[1]) if k not in dependent]]
    if kept.shape[1] >= len(kept) // 2:
        raise InvalidArgumentError(
            f"method: the random effects have {kept.shape[1]} levels for {len(kept)} {observations}, which leaves too "
            "little."
        )
    return kept


def _indicators(block: GroupBlock) -> Array:
    """Columns of an effect, one set for each level, ``(N, D q)``."""
    levels = np.eye(len(block.level_names) + 1)[block.levels][:, :-1]
    return np.einsum("nd,nq->ndq", levels, block.columns).reshape(len(levels), -1)
