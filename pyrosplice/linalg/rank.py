"""Which covariates say nothing that the intercept and the other covariates do not say."""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 1e-10  # relative spread below which a covariate is constant
COLLINEAR = 1e-8  # relative length below which what is left of a covariate, given the others, counts as nothing


def collinear_columns(design: Tensor) -> list[int]:
    """Columns of ``(N, P)`` that are constant or a combination of the intercept and the columns before them."""
    centred = design - design.mean(0)
    length = centred.norm(dim=0)
    constant = length <= CONSTANT * design.norm(dim=0)
    basis, found = centred[:, :0], []
    for i, column in enumerate(centred.T):
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)  # once more, against rounding
        if constant[i] or rest.norm() <= COLLINEAR * length[i]:
            found.append(i)
        else:
            basis = torch.cat([basis, (rest / rest.norm()).unsqueeze(-1)], 1)
    return found
