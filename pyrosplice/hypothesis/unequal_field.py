r"""Does the standard deviation of the spatial effect depend on a covariate?

A covariate that is tested for a shift of usage may go with its variance in space instead: domains on one side of a
tissue and none on the other. A field of one standard deviation for all is then too small where it matters, and the test
of the shift rejects too often. At the posterior mean of its variances a working model is compared with those whose
field has the relative standard deviations :math:`e^{d z}` along the standardised covariate z, by the restricted
likelihood ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrosplice.hypothesis.restricted_posterior import Variances, restricted_likelihood
from pyrosplice.hypothesis.working_model import WorkingModel

SLOPE = 0.75
"""d of the alternatives, and −d: 4.5 times the standard deviation two standard deviations of a covariate away."""
FURTHEST = 2.0  # standard deviations of a covariate at which its effect on the field ends


def relative_deviations(covariate: Tensor, slope: float) -> Tensor:
    """Relative standard deviations ``(N, 1)`` of the field, of mean square one."""
    centred = covariate - covariate.mean()
    standard = (centred / centred.square().mean().sqrt()).clamp(-FURTHEST, FURTHEST)
    scale = (slope * standard).exp()
    return (scale / scale.square().mean().sqrt()).unsqueeze(-1)


def slope_ratios(model: WorkingModel, variances: Variances, n_fixed: int, along: Sequence[Tensor]) -> Tensor:
    """Twice the log ratio ``(B, T)`` of the best slope along each covariate ``(N,)`` against none.

    The field is taken along the leading eigenvectors of V with the spectrum of V²; the first ``n_fixed`` columns are in
    the model, those that are tested are not.
    """
    if model.solver is None:
        return torch.zeros(len(model.response), len(along), dtype=torch.float64)
    deviation, n_coefficients = variances.field.sum(1).sqrt(), n_fixed * model.n_logits
    narrow = replace(model, design=model.design[:, :n_fixed])

    def likelihood(scale: Tensor | None) -> Tensor:
        own = narrow if scale is None else narrow.scaled(scale)
        modes = own.with_noise(variances.white.sqrt()).in_modes()
        products, logdet = modes.through_field(model.spectra.values[0], deviation)
        return restricted_likelihood(products, logdet, n_coefficients)

    none = likelihood(None)
    found = []
    for covariate in along:
        each = [likelihood(relative_deviations(covariate, slope)) for slope in (SLOPE, -SLOPE)]
        found.append(2 * (torch.stack(each).amax(0) - none).clamp_min(0.0))
    return torch.stack(found, -1)
