"""Densities and responsibilities of cells under a fitted mixture, block by block."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.mixture.density_module import GaussianMixtureModel
from pyrosplice.mixture.em.missing import missing_log_joint
from pyrosplice.mixture.em.row_blocks import RowBlocks, require_finite


def evaluate(model: GaussianMixtureModel, rows: RowBlocks, *, marginalize: bool) -> list[tuple[Tensor, Tensor]]:
    """Log responsibilities ``(n, M)`` and log densities ``(n,)`` of each block of cells.

    A block is computed in the precision of the model, or in float64 where a density is too small for that.

    Parameters
    ----------
    model
        On the device of the cells.
    rows
        The cells.
    marginalize
        Whether NaN is a value missing at random.

    Raises
    ------
    InvalidArgumentError
        A cell is not finite, or so far from all components that it belongs to none in any precision.
    """
    out = []
    for a, b in rows.spans():
        cells = rows.block(a, b)[0]
        require_finite(cells, a, allow_nan=marginalize)
        found = _marginal(model, cells) if marginalize else model(cells.to(model.means.dtype))
        if not (marginalize or bool(found[1].isfinite().all())):
            found = deepcopy(model).double()(cells)
        lost = (~found[1].isfinite()).nonzero()[:, 0]
        if len(lost):
            raise InvalidArgumentError(
                f"X: the cell in row {a + int(lost[0])} is so far from every component that its density cannot be "
                "computed; leave it out, or fit with cells of that scale."
            )
        out.append(found)
    return out


def _marginal(model: GaussianMixtureModel, cells: Tensor) -> tuple[Tensor, Tensor]:
    joint = missing_log_joint(model.parameters_of(), cells)
    return joint.log_softmax(1), joint.logsumexp(1)


def drawn_cells(model: GaussianMixtureModel, n_cells: int, seed: int | None) -> Tensor:
    """Cells ``(n, D)`` drawn from a mixture; the same ones each time for a seed."""
    generator = torch.Generator()
    _ = generator.seed() if seed is None else generator.manual_seed(seed)
    labels = torch.multinomial(model.component_probs.cpu(), n_cells, replacement=True, generator=generator)
    noise = torch.randn((n_cells, model.means.shape[1]), dtype=model.means.dtype, generator=generator)
    return model.place(labels.to(model.means.device), noise.to(model.means.device))
