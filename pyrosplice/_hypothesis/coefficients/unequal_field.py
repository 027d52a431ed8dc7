r"""Does the standard deviation of the spatial effect depend on a covariate?

A covariate that is tested for a shift of usage may go with its variance in space instead: domains on one side of a
tissue and none on the other. A field of one standard deviation for all is then too small where it matters, and the test
of the shift rejects too often. A working model is compared with those whose field has the relative standard deviations
:math:`e^{d z}` along the standardised covariate z, by the restricted likelihood ratio, each with the size of the field
that suits it best, up to its posterior mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.identified import Coverage
from pyrosplice._hypothesis.coefficients.restricted_posterior import Variances, restricted_likelihood
from pyrosplice._hypothesis.coefficients.working_model import SQUARE, WorkingModel

SLOPE = 0.75
"""d of the alternatives, and −d: 4.5 times the standard deviation two standard deviations of a covariate away."""
SHARES = 1.0, 0.7, 0.5, 0.25, 0.0
"""Shares of the field's standard deviation that are tried: the field of a null fit has taken up the covariate's effect.

With that field as it is, of genes whose log-odds follow a smooth covariate with β = .5 and 1, 2 and 18 % of 150 on 400
spots were taken for ones with an unequal field, and 22 and 52 % of 60 on 1,600; with its best share none of them, and
59 instead of 62 % of 240 genes with a field of .2 in one half and 1.6 in the other (256 spots, five counts each).
"""
FURTHEST = 2.0  # standard deviations of a covariate at which its effect on the field ends


def relative_deviations(covariate: Tensor, slope: float) -> Tensor:
    """Relative standard deviations ``(N, 1)`` of the field, of mean square one."""
    centered = covariate - covariate.mean()
    standard = (centered / centered.square().mean().sqrt()).clamp(-FURTHEST, FURTHEST)
    scale = (slope * standard).exp()
    return (scale / scale.square().mean().sqrt()).unsqueeze(-1)


def slope_ratios(model: WorkingModel, variances: Variances, n_fixed: int, along: Sequence[Tensor]) -> Tensor:
    """Twice the log ratio ``(B, T)`` of the best slope along each covariate ``(N,)`` against none.

    The field is taken along the leading eigenvectors of V with the spectrum of V². In the model are its first
    ``n_fixed`` columns and the covariate itself, so that a shift of usage is not taken for a field that differs.
    """
    if model.solver is None:
        return torch.zeros(len(model.response), len(along), dtype=torch.float64)
    deviation, white, found = variances.field.sum(1).sqrt(), variances.white.sqrt(), []
    model = replace(model, spectra=model.spectra.leading_along(SQUARE))
    informed = torch.diagonal(model.weight, dim1=-2, dim2=-1).sum(-1) > 0
    for covariate in along:
        columns = _beside(model.design, n_fixed, covariate)
        own = replace(model, design=columns, kept=Coverage.of(columns, informed).independent())

        def likelihood(own: WorkingModel) -> Tensor:
            modes, size = own.with_noise(white).in_modes(), own.design.shape[1] * own.n_logits
            at = (modes.through_field(own.spectra.values[SQUARE], share * deviation) for share in SHARES)
            return torch.stack([restricted_likelihood(*products, size) for products in at]).amax(0)

        each = [likelihood(own.scaled(relative_deviations(covariate, slope))) for slope in (SLOPE, -SLOPE)]
        found.append(2 * (torch.stack(each).amax(0) - likelihood(own)).clamp_min(0.0))
    return torch.stack(found, -1)


def _beside(design: Tensor, n_fixed: int, covariate: Tensor) -> Tensor:
    """The fixed columns with the covariate, unless it is among them: all columns are fixed then."""
    fixed = design[:, :n_fixed]
    if n_fixed == design.shape[1]:
        return fixed
    centered = covariate - covariate.mean()
    return torch.cat([fixed, (centered / centered.square().mean().sqrt()).unsqueeze(1)], 1)
