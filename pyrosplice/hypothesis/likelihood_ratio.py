r"""Likelihood-ratio tests: of covariates (regular) and of spatial variance components (on the boundary).

A spatial share θ cannot be negative, so under the null half of the estimates are 0 and the ratio is 0 with them.
With one θ the null law is :math:`\tfrac12 \chi^2_0 + \tfrac12 \chi^2_1`; with k of them it is the chi-bar-square
:math:`\sum_j w_j \chi^2_j`, whose weights depend on their information matrix. These are limits that a spatial field is
far from at any usual size of a tissue: they reject too little. :mod:`pyrosplice.hypothesis.ratio_null` has the law to
use; the limits remain for comparison. Source: Self & Liang (1987) JASA
82:605, cases 5 to 9; Silvapulle & Sen (2005) "Constrained Statistical Inference", section 3.5, for the weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError

_TINY = torch.finfo(torch.float64).tiny


def chi2_sf(statistic: Tensor, dof: Tensor | int) -> Tensor:
    """``P(χ²_dof > statistic)``, at least the smallest normal double; ``dof`` 0 is a point mass at 0."""
    statistic = statistic.to(torch.float64)
    half = torch.as_tensor(dof, dtype=torch.float64, device=statistic.device) / 2
    tail = torch.special.gammaincc(half.clamp_min(0.25), statistic.clamp_min(0.0) / 2).clamp_min(_TINY)
    point = torch.where(statistic > 0, 0.0, 1.0)
    return torch.where(torch.isnan(statistic), torch.nan, torch.where(half > 0, tail, point))


def likelihood_ratio_test(log_full: Tensor, log_null: Tensor, dof: int) -> tuple[Tensor, Tensor]:
    """Statistic ``2 (log_full − log_null)`` and its χ² p-value, for parameters inside their range.

    A full model below its null one has not reached its optimum: statistic and p-value are as computed (p = 1), so that
    the caller sees it.
    """
    statistic = 2 * (log_full.to(torch.float64) - log_null.to(torch.float64))
    return statistic, chi2_sf(statistic, dof)


def spatial_likelihood_ratio_test(
    log_full: Tensor, log_null: Tensor, *, n_components: int = 1, mixing: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Likelihood ratio of θ = 0 against θ ≥ 0, both models at their own marginal optimum.

    Parameters
    ----------
    log_full, log_null
        Log marginal likelihoods ``(B,)``, σ (and all else) re-estimated under each.
    n_components
        Number of θ: 1 when the logits share it, else Q.
    mixing
        Weights ``(k + 1,)`` or ``(B, k + 1)`` of χ²_0 … χ²_k, see :func:`chi_bar_weights`. Default: those of
        independent estimates, binomial(k, ½), exact for one component.

    Returns
    -------
    statistic, pvalue
        ``(B,)``. The p-value is 1 where the ratio is 0, up to rounding (1e-6 nats) of two equal optima.
    """
    if n_components < 1:
        raise InvalidArgumentError(f"n_components: expected at least 1, found {n_components}.")
    statistic = 2 * (log_full.to(torch.float64) - log_null.to(torch.float64))
    if mixing is None:
        mixing = statistic.new_tensor([math.comb(n_components, j) for j in range(n_components + 1)])
        mixing = mixing / 2**n_components
    if mixing.shape[-1] != n_components + 1:
        raise InvalidArgumentError(
            f"mixing: expected {n_components + 1} weights (χ²_0 to χ²_{n_components}), found {mixing.shape[-1]}."
        )
    tails = torch.stack([chi2_sf(statistic, j) for j in range(1, n_components + 1)], -1)
    pvalue = (mixing[..., 1:] * tails).sum(-1).clamp_min(_TINY)
    pvalue = torch.where(statistic <= 2e-6, 1.0, pvalue)
    return statistic, torch.where(torch.isnan(statistic), torch.nan, pvalue)


def chi_bar_weights(information: Tensor) -> Tensor:
    r"""Weights of :math:`\chi^2_0, …, \chi^2_k` for k ≤ 3 non-negative parameters with this information matrix.

    Parameters
    ----------
    information
        Efficient information of the k parameters at the null (nuisance parameters projected out), ``(..., k, k)``.

    Returns
    -------
    Tensor
        ``(..., k + 1)``, from orthant probabilities: the angles between the estimates and, for k = 3, their partial
        correlations.
    """
    k = information.shape[-1]
    if not 1 <= k <= 3:
        raise InvalidArgumentError(f"information: closed-form weights exist for 1 to 3 parameters, found {k}.")
    half = torch.full(information.shape[:-2], 0.5, dtype=torch.float64, device=information.device)
    if k == 1:
        return torch.stack([half, half], -1)
    correlation = _correlation(torch.linalg.inv(information.to(torch.float64)))
    if k == 2:
        none = torch.arccos(correlation[..., 0, 1].clamp(-1, 1)) / (2 * math.pi)
        return torch.stack([none, half, half - none], -1)
    pairs = ((0, 1), (0, 2), (1, 2))
    partial = -_correlation(information.to(torch.float64))
    angle = torch.stack([torch.arccos(correlation[..., i, j].clamp(-1, 1)) for i, j in pairs]).sum(0)
    partial_angle = torch.stack([torch.arccos(partial[..., i, j].clamp(-1, 1)) for i, j in pairs]).sum(0)
    all_positive = (2 * math.pi - angle) / (4 * math.pi)
    two_positive = (3 * math.pi - partial_angle) / (4 * math.pi)
    return torch.stack([half - two_positive, half - all_positive, two_positive, all_positive], -1)


def _correlation(matrix: Tensor) -> Tensor:
    root = torch.diagonal(matrix, dim1=-2, dim2=-1).rsqrt()
    return matrix * root.unsqueeze(-1) * root.unsqueeze(-2)
