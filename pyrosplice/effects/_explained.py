r"""Effects that the fixed coefficients explain, of whose variance the restricted likelihood knows nothing.

With Q an orthonormal basis of the design's columns, what is left of a column of an effect over all of its levels is
:math:`\operatorname{tr} Z'(I - QQ')Z = \sum_l (\|z_l\|^2 - \|Q'z_l\|^2)`: sums by level, never an N × D matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._level_spaces import range_and_rows
from pyrosplice.effects._units import Coefficients
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
NONE = 1e-11  # share of a column's sum of squares that is rounding


def check_unexplained(coefficients: Coefficients, blocks: Sequence[GroupBlock]) -> None:
    """Raise where the variance of an effect is one that no data tell, since coefficients explain all of its levels.

    Raises
    ------
    InvalidArgumentError
        Names the effect, its column, the terms that explain it, and what to leave out.
    """
    for block in blocks:
        for k, name in enumerate(block.column_names):
            column = _column(block, k)
            if _left(coefficients.matrix, block.levels, column) > NONE:
                continue
            terms = list(coefficients.terms or coefficients.names)
            constant = np.ptp(coefficients.matrix, axis=0) == 0
            needed = [
                term
                for term in dict.fromkeys(np.array(terms, dtype=object)[~constant].tolist())
                if _left(coefficients.matrix[:, [own != term for own in terms]], block.levels, column) > NONE
            ]
            what = "" if len(block.column_names) == 1 else f" of {name!r}"
            raise InvalidArgumentError(
                f"effect ({block.name}): expected levels whose effects{what} coefficients leave something of, found "
                f"that those of {needed or list(dict.fromkeys(terms))} explain them all, so that nothing is known of "
                "their variance. Leave the effect out, or these terms; a test needs more levels than coefficients."
            )


def _column(block: GroupBlock, k: int) -> Array:
    """Column (N,) of an effect, zero without a level; less its mean beside a constant, which spans the same."""
    used = block.levels >= 0
    columns = block.columns[used]
    constant = np.ptp(columns, axis=0) == 0
    out = np.zeros(len(used))
    out[used] = columns[:, k] - (columns[:, k].mean() if constant.any() and not constant[k] else 0.0)
    return out


def _left(design: Array, levels: NDArray[np.intp], column: Array) -> float:
    """Share of a column's sum of squares, over all levels, that the design leaves."""
    whole = float(column @ column)
    if whole == 0:
        return 1.0
    space = range_and_rows(design)[0]
    sums = np.stack([np.bincount(levels + 1, column * own) for own in space.T], 1) if space.shape[1] else np.zeros(1)
    return 1 - float(np.square(sums).sum()) / whole
