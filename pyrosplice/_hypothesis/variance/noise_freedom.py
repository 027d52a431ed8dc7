r"""How far a likelihood's own over-dispersion stands in for an independent variance between spots.

A hyper-parameter that is estimated (a concentration) changes the noise of the counts, as an independent variance σ² of
the logits does, which is the same for every spot. What tells the two apart are spots of different depth. Of the
information about σ² the share

.. math:: \rho^2 = \operatorname{cor}^2(u_i, d_i), \qquad
    u_i = \tfrac12 (D_i^2 s_i^2 - D_i w_i), \quad d_i = D_i^2\, \partial \ell_i / \partial \log A

is lost when A is estimated too, a correlation over the spots (several hyper-parameters: a multiple one): s and w are
the score and the information of a spot's logit, u the derivative of its log likelihood in σ², and
:math:`D = 1 / (1 + w \sigma^2)` is what is left of them at σ² > 0, to first order. It is near 1 where most spots have
several counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.likelihoods._contract import Likelihood

_FAR = 8.0  # in logs of hyper-parameters, to where their least noise is
_NEWTON = 3


@dataclass(frozen=True)
class NoiseFreedom:
    """How freely the noise of each gene and variance component may change: ``(B, 1)`` or ``(B, Q)``.

    Attributes
    ----------
    share
        ρ², 0 to 1.
    floor
        Log of the least noise that the hyper-parameters allow, over that at their estimates: ≤ 0.
    """

    share: Tensor
    floor: Tensor


def noise_freedom(
    likelihood: Likelihood, names: Sequence[str], counts: Tensor, eta: Tensor, sigma: Tensor
) -> NoiseFreedom:
    """Work out how freely the noise may change, at the fit without space.

    ``likelihood`` is bound to the estimates, ``names`` are those of its estimated hyper-parameters, ``counts``
    (B, N, K), ``eta`` (B, N, Q) the fixed part, ``sigma`` (B, 1) or (B, Q). A logit's information is its own.
    """

    def known(bound: Likelihood) -> Tensor:
        return torch.diagonal(bound.information(counts, eta), dim1=-2, dim2=-1)

    own = known(likelihood)
    left = 1 / (1 + own.clamp_min(0.0) * sigma.square().unsqueeze(1))
    along = 0.5 * ((left * likelihood.score(counts, eta)).square() - left * own)
    if sigma.shape[1] == 1:
        along, left = along.sum(-1, keepdim=True), left.mean(-1, keepdim=True)
    slopes = left.square().unsqueeze(-1) * likelihood.hyper_score(counts, eta, names).unsqueeze(-2)  # (B, N, C, H)
    along, slopes = along - along.mean(1, keepdim=True), slopes - slopes.mean(1, keepdim=True)
    slopes = slopes / slopes.square().sum(1, keepdim=True).sqrt().clamp_min(1e-300)
    product = torch.einsum("bnc,bnch->bch", along, slopes)
    gram = torch.einsum("bnch,bncg->bchg", slopes, slopes)
    explained = torch.einsum("bch,bchg,bcg->bc", product, torch.linalg.pinv(gram, hermitian=True), product)
    share = torch.nan_to_num(explained / along.square().sum(1).clamp_min(1e-300)).clamp(0.0, 1.0)
    total = own.sum((1, 2)).clamp_min(1e-300)
    far = [{name: getattr(likelihood, name) * math.exp(way)} for name in names for way in (-_FAR, _FAR)]
    ends = torch.stack([known(likelihood.bind(end)).sum((1, 2)) for end in far])
    floor = (total / torch.nan_to_num(ends, posinf=0.0).amax(0).maximum(total)).log()
    return NoiseFreedom(share, floor[:, None].expand_as(share))


def freely_scaled(quadratic: Tensor, n_values: float, pull: Tensor, share: float, floor: float) -> Tensor:
    r"""Least deviance ``min over δ ≥ floor of e^{−δ} quadratic + n (δ + r δ² / 2 − pull δ)``, ``r = (1 − ρ²) / ρ²``.

    Minus twice a log likelihood whose variances have a common factor :math:`e^\delta`, of which other data know r
    times what these n values do, and ``pull`` (of the shape of ``quadratic``, or one a row) what they say.
    """
    stiff = (1 - share) / share
    quadratic = quadratic.clamp_min(1e-6 * n_values)
    delta = ((quadratic / n_values).log() + pull) / (1 + stiff)
    for _ in range(_NEWTON):
        fitted = quadratic * torch.exp(-delta)
        delta = delta - (n_values * (1 + stiff * delta - pull) - fitted) / (fitted + n_values * stiff)
    delta = delta.clamp_min(floor)
    return quadratic * torch.exp(-delta) + n_values * (delta * (1 - pull) + 0.5 * stiff * delta.square())
