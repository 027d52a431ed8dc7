"""Blocks of neighboring spots of about the same size, which spatial cross-validation leaves out together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spatial_blocks(coords: NDArray[np.float64], sections: NDArray[np.intp], n_blocks: int) -> NDArray[np.intp]:
    """Which block each spot is of, ``(N,)``: blocks stay within sections.

    The largest block is halved at the median of its longer side until there are ``n_blocks`` of them, or as many as
    sections if these are more; blocks of one position stay whole.
    """
    blocks = [np.flatnonzero(sections == section) for section in np.unique(sections)]
    whole: list[NDArray[np.intp]] = []
    while blocks and len(blocks) + len(whole) < n_blocks:
        largest = blocks.pop(int(np.argmax([len(block) for block in blocks])))
        here = coords[largest]
        along = here[:, int(np.argmax(np.ptp(here, axis=0)))]
        upper = along > np.median(along) if (along > np.median(along)).any() else along == along.max()
        if upper.all():
            whole.append(largest)
        else:
            blocks += [largest[~upper], largest[upper]]
    out = np.empty(len(coords), dtype=np.intp)
    for number, block in enumerate(sorted([*whole, *blocks], key=lambda block: int(block[0]))):
        out[block] = number
    return out
