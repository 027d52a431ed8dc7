r"""Likelihood-ratio tests: of covariates (regular) and of spatial variance components (on the boundary).

A spatial share θ cannot be negative, so under the null half of the estimates are 0 and the ratio is 0 with them.
With one θ the limit of the null law is :math:`\tfrac12 \chi^2_0 + \tfrac12 \chi^2_1`; with k independent ones it is
:math:`\sum_j 2^{-k} \binom kj \chi^2_j`. A spatial field is far from these limits at any usual size of a tissue: they
reject too little. :mod:`pyrosplice._hypothesis.variance.ratio_null` has the law to use; the limits remain for
comparison. Source: Self & Liang (1987) JASA 82:605, cases 5 to 9.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError

_TINY = torch.finfo(torch.float64).tiny


def chi2_sf(statistic: Tensor, dof: Tensor | int) -> Tensor:
    """Chance ``P(χ²_dof > statistic)``, at least the smallest normal double; ``dof`` 0 is a point mass at 0."""
    statistic = statistic.to(torch.float64)
    half = torch.as_tensor(dof, dtype=torch.float64, device=statistic.device) / 2
    tail = torch.special.gammaincc(half.clamp_min(0.25), statistic.clamp_min(0.0) / 2).clamp_min(_TINY)
    point = torch.where(statistic > 0, 0.0, 1.0)
    return torch.where(torch.isnan(statistic), torch.nan, torch.where(half > 0, tail, point))


def likelihood_ratio_test(log_full: Tensor, log_null: Tensor, dof: Tensor | int) -> tuple[Tensor, Tensor]:
    """Statistic ``2 (log_full − log_null)`` and its χ² p-value, for parameters inside their range.

    A full model below its null one has not reached its optimum: statistic and p-value are as computed (p = 1), so that
    the caller sees it.
    """
    statistic = 2 * (log_full.to(torch.float64) - log_null.to(torch.float64))
    return statistic, chi2_sf(statistic, dof)


def spatial_likelihood_ratio_test(
    log_full: Tensor, log_null: Tensor, *, n_components: int = 1
) -> tuple[Tensor, Tensor]:
    """Likelihood ratio of θ = 0 against θ ≥ 0, both models at their own marginal optimum.

    Parameters
    ----------
    log_full, log_null
        Log marginal likelihoods ``(B,)``, σ (and all else) re-estimated under each.
    n_components
        Number of θ: 1 when the logits share it, else Q.

    Returns
    -------
    statistic, pvalue
        ``(B,)``. The p-value is 1 where the ratio is 0, up to rounding (1e-6 nats) of two equal optima.
    """
    if n_components < 1:
        raise InvalidArgumentError(f"n_components: expected at least 1, found {n_components}.")
    statistic = 2 * (log_full.to(torch.float64) - log_null.to(torch.float64))
    weights = [math.comb(n_components, j) / 2**n_components for j in range(1, n_components + 1)]
    pvalue = sum(weight * chi2_sf(statistic, j) for j, weight in enumerate(weights, 1)).clamp_min(_TINY)
    pvalue = torch.where(statistic <= 2e-6, 1.0, pvalue)
    return statistic, torch.where(torch.isnan(statistic), torch.nan, pvalue)
