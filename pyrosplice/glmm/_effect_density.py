r"""The Gaussian density of a random effect and its derivatives, for any spatial solver.

.. math:: \log N(\nu_k;\, 0,\, \Sigma_k), \qquad \Sigma_k = a_k^2 V + \operatorname{diag}(c_k^2)

With :math:`\nu_k = a_k s + c_k e` split so that :math:`s' V^{-1} s + e'e` is least,
:math:`\nu_k' \Sigma_k^{-1} \nu_k` is that least value and :math:`\Sigma_k^{-1} \nu_k = e / c_k`: one solve with
:math:`V^{-1} + \operatorname{diag}(a_k^2 / c_k^2)` a logit, stable however small c is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.glmm._joint import effect_logdet
from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.glmm._mode import MixedModel


@dataclass(frozen=True)
class EffectDensity:
    """Log density ``value`` (B,) of a random effect, and its derivatives in ν (B, N, Q), a (B, Q) and c (B, N, Q)."""

    value: Tensor
    nu: Tensor
    spatial: Tensor
    white: Tensor


def split_effect(model: MixedModel, parameters: Parameters, nu: Tensor) -> Latents:
    """The most probable (z, e) with ``ν = a F z + c e``, for ν (B, N, Q) and c > 0."""
    white = parameters.white.expand_as(nu)
    if model.solver is None:
        return Latents(nu.new_zeros(len(nu), 0, nu.shape[2]), nu / white)
    ratio = parameters.spatial[:, None] / white.square()
    columns = (ratio * nu).permute(0, 2, 1).reshape(-1, nu.shape[1], 1)  # each (gene, logit) is a problem of its own
    weights = (ratio * parameters.spatial[:, None]).permute(0, 2, 1).reshape(-1, nu.shape[1], 1, 1)
    latent = model.solver.factorize(weights).solve(model.solver.gather(columns))
    latent = latent.reshape(len(nu), nu.shape[2], -1).permute(0, 2, 1)
    return Latents(latent, (nu - parameters.spatial[:, None] * model.solver.spread(latent)) / white)


def effect_density(model: MixedModel, parameters: Parameters, nu: Tensor) -> EffectDensity:
    """Log density of ν (B, N, Q), summed over logits, constants included; in the coordinates of the model."""
    parts, white = split_effect(model, parameters, nu), parameters.white.expand_as(nu)
    logdet, unexplained = effect_logdet(model, parameters)
    square = parts.noise.square().sum((1, 2))
    weighted = parts.noise / white  # Σ⁻¹ ν
    spatial = torch.zeros_like(parameters.spatial)
    if model.solver is not None:
        square = square + (parts.field * model.solver.prior(parts.field)).sum((1, 2))
        a = torch.where(parameters.spatial == 0, 1.0, parameters.spatial)
        spatial = (weighted * model.solver.spread(parts.field)).sum(1) - (1 - unexplained).sum(1) / a
    return EffectDensity(
        value=-0.5 * (square + logdet.sum(-1) + nu[0].numel() * math.log(2 * math.pi)),
        nu=-weighted,
        spatial=spatial,
        white=(parts.noise.square() - unexplained) / white,
    )
