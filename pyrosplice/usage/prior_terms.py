"""What the priors of the coefficients add to the information of a fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrosplice.glmm.glm_objective import StandardCoordinates
from pyrosplice.priors.sites import log_prior


def prior_information(
    priors: Mapping[str, TorchDistribution], design: Tensor, beta: Tensor, bias_eta: Tensor
) -> Tensor:
    """Minus the second derivative of the log prior in the coefficients of orthonormal columns, ``(G, D, D)``.

    ``priors`` are completed ones of ``beta`` and ``bias_eta``, those of which are not flat.
    """
    matrix = StandardCoordinates.of(design).matrix
    weights = torch.linalg.solve(matrix, torch.cat([beta, bias_eta.unsqueeze(1)], 1)).detach()
    blank = weights.new_zeros(len(weights), weights[0].numel(), weights[0].numel())
    if not priors:
        return blank
    with torch.enable_grad():
        point = weights.flatten(1).requires_grad_(True)
        given = matrix @ point.unflatten(1, weights.shape[1:])
        values = {"beta": given[:, :-1], "bias_eta": given[:, -1]}
        density = log_prior(priors, {name: values[name] for name in priors}).sum()
        (gradient,) = torch.autograd.grad(density, point, create_graph=True)
        if not gradient.requires_grad:  # a density that is linear in them
            return blank
        columns = [torch.autograd.grad(g.sum(), point, retain_graph=True)[0] for g in gradient.unbind(-1)]
    return -torch.stack(columns, -1)
