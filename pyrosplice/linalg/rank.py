"""Which covariates say nothing that the intercept and the other covariates do not say."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 8 * torch.finfo(torch.float64).eps  # relative error of a number: a few units in the last place
COLLINEAR = 1e-8  # relative length below which what is left of a covariate, given the others, counts as nothing


def constant_columns(design: Tensor) -> list[int]:
    """Columns of ``(N, P)`` that vary by no more than rounding, whatever their distance from zero."""
    if not len(design):
        return list(range(design.shape[1]))
    spread = design.max(0).values - design.min(0).values
    return torch.nonzero(spread <= ROUNDING * design.abs().max(0).values).squeeze(-1).tolist()


def collinear_columns(design: Tensor) -> list[int]:
    """Columns of ``(N, P)`` that are constant or a combination of the intercept and the columns before them.

    Numbers are taken to be rounded: what is left of a column is nothing if the rounding of the column and of those
    before it can leave as much. A date, a position on a genome and the like, far from zero, are not constant.
    """
    if not len(design):
        return list(range(design.shape[1]))
    constant = set(constant_columns(design))
    shifted = design - design[:1]  # exact for numbers that are near each other
    centered = shifted - shifted.mean(0)
    length = centered.norm(dim=0)
    rounding = ROUNDING * design.norm(dim=0)  # error of each column, as a length
    basis, errors, found = centered[:, :0], length[:0], []
    for i, column in enumerate(centered.T):
        weights = basis.T @ column
        rest = column - basis @ weights
        rest = rest - basis @ (basis.T @ rest)  # once more, against rounding
        error = rounding[i] + weights.abs() @ errors
        if i in constant or rest.norm() <= torch.maximum(error, COLLINEAR * length[i]):
            found.append(i)
        else:
            basis = torch.cat([basis, (rest / rest.norm()).unsqueeze(-1)], 1)
            errors = torch.cat([errors, (error / rest.norm()).unsqueeze(0)])
    return found
