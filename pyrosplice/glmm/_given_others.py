r"""Law of the random effect at each spot given that at all other spots, which is what a spot left out is predicted by.

.. math::
    \nu_i \mid \nu_{-i} \sim N\!\left(\nu_i - \frac{(\Sigma^{-1} \nu)_i}{(\Sigma^{-1})_{ii}},\;
    \frac{1}{(\Sigma^{-1})_{ii}}\right), \qquad \Sigma = a^2 V + c^2 I

independently over logits: the field around the spot says where, and its own i.i.d. effect how far from there. One
sparse factor of :math:`V^{-1} + a^2 / c^2` gives both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import MixedModel

# c is kept at this share of the total or more: (Σ⁻¹)ᵢᵢ is a difference that rounding would eat below, and this changes
# it by a millionth.
LEAST_WHITE = 1e-3


def left_out_effect(model: MixedModel, parameters: Parameters, nu: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(B, N, Q, R)`` and variance ``(B, N, Q)`` of the effect at each spot given that at the others.

    In the coordinates of the model; ``nu`` ``(B, N, Q, R)`` are R random effects with the same parameters.
    """
    n_genes, n_spots, q = nu.shape[:3]
    spatial = parameters.spatial[:, None].expand(n_genes, n_spots, q)
    white = parameters.white.expand(n_genes, n_spots, q).square()
    white = torch.maximum(white, LEAST_WHITE**2 * (spatial.square() + white))
    if model.solver is None:
        return torch.zeros_like(nu), white

    def problems(x: Tensor) -> Tensor:
        """Each (gene, logit) is a problem of its own: ``(B Q, N, ...)``."""
        return x.transpose(1, 2).flatten(0, 1)

    ratio = spatial.square() / white
    factor = model.solver.factorize(problems(ratio)[..., None, None])
    columns = problems((spatial / white).unsqueeze(-1) * nu)
    latent = factor.solve(model.solver.gather(columns).unsqueeze(2)).squeeze(2)
    field = model.solver.spread(latent).unflatten(0, (n_genes, q)).transpose(1, 2)
    spots = factor.spot_covariance()[..., 0, 0].unflatten(0, (n_genes, q)).transpose(1, 2)
    variance = white / (1 - ratio * spots)
    residual = (nu - spatial.unsqueeze(-1) * field) / white.unsqueeze(-1)  # Σ⁻¹ ν
    return nu - variance.unsqueeze(-1) * residual, variance
