r"""Residuals of counts for the score test of a spatial variance component of their log mean.

With null mean :math:`\mu_i` and variance :math:`v_i` (negative binomial: :math:`\mu_i + \alpha \mu_i^2`), and an effect
of the spots :math:`u \sim N(0, \sigma^2 K)` added to :math:`\log \mu`, the score for σ² is a quadratic form of

.. math:: e_i = \frac{\mu_i}{v_i} (y_i - \mu_i), \qquad a_i = \operatorname{var} e_i = \frac{\mu_i^2}{v_i},

so that what a spot of large mean adds to is bounded, by :math:`1/\alpha`, where counts are over-dispersed. As in
:mod:`~pyrosplice._hypothesis.variance.score_test`, only pairs of different spots enter, and the covariates' effects are
projected out: :math:`e - A X (X'AX)^{-1} X'e`. No spot has more than a twentieth of the sum of all a (Poisson counts of
a spot far deeper than all others would be all that the covariates are fitted to): larger ones are lowered to that, as
if the spot were noisier. Whatever the counts' true noise, T has mean zero; its variance is taken from the residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice._hypothesis.variance.permutation_law import Residuals
from pyrosplice._hypothesis.variance.score_test import inverse_root_gram

_NOTHING = 1e-8  # share of the largest a below which a spot is not covered: a group whose mean is fitted as 0

_MOST = (
    0.05  # share of Σ a of one spot, or two shares of equal spots where these are more; without it 21 % of genes are
)
# rejected at 5 %, and most have no p-value, where one of 60 spots is 24 times deeper than the next
_STEPS = 60  # of the fixed point below, which contracts by half or more


def count_residuals(counts: Tensor, mean: Tensor, variance: Tensor, basis: Tensor) -> Residuals:
    """Standardised residuals ``e / √a`` of counts, given what the null model says of them.

    Parameters
    ----------
    counts, mean, variance
        y, μ and v, ``(B, N)``.
    basis
        Orthonormal covariates ``(N, P)``, as from
        :func:`~pyrosplice._hypothesis.variance.score_test.orthonormal_columns`.
    """
    size = mean.square() / variance
    seen = size > _NOTHING * size.amax(-1, keepdim=True)
    size = _bounded(torch.where(seen, size, 0.0))
    residual = torch.where(seen, size / mean * (counts - mean), 0.0)
    root = inverse_root_gram(size, basis)
    step = root @ (root.mT @ (residual @ basis).unsqueeze(-1))
    residual = residual - size * (basis @ step).squeeze(-1)
    scale = size.sqrt()
    vectors = torch.where(seen, residual / scale, 0.0)
    loading = scale.unsqueeze(-1) * (basis @ root)
    return Residuals(vectors.unsqueeze(-1), scale, loading, alike=False)


def multiplied_residuals(residuals: Residuals, by: Tensor) -> Residuals:
    """Residuals for an effect that is multiplied by a number of each spot, ``by`` ``(N,)``; none where that is zero."""
    sign = by.sign()
    return Residuals(
        residuals.vectors * sign[:, None], residuals.scale * by.abs(), residuals.loading * sign[:, None], alike=False
    )


def _bounded(size: Tensor) -> Tensor:
    """Sizes a ``(B, N)`` of which none is more than its share of their sum."""
    share = (2 / (size > 0).sum(-1, keepdim=True)).clamp_min(_MOST)
    largest = size.amax(-1, keepdim=True)
    over = (largest > share * size.sum(-1, keepdim=True)).squeeze(-1)
    if not over.any():
        return size
    some, bound, part = size[over], largest[over], share[over]
    for _ in range(_STEPS):
        bound = part * torch.minimum(some, bound).sum(-1, keepdim=True)
    bounded = size.clone()
    bounded[over] = torch.minimum(some, bound)
    return bounded
