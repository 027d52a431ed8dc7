r"""Leave-group-out densities ``p(y_I | y_-I)`` from one fit: its Gaussian with the group's likelihood taken out.

With m, C mean and covariance of η at the group I in Laplace's posterior, g and W (block-diagonal) score and information
of the group's counts at the mode,

.. math:: \eta_I \mid y_{-I} \;\approx\; N(m - \Lambda^{-1} g,\; \Lambda^{-1}), \qquad \Lambda = C^{-1} - W

Variances and hyper-parameters, and the curvature at the other spots, are those of all counts; the group's own counts
are then integrated over η exactly (:mod:`pyrosplice.glmm._predictive_density`), as in the group.cv of INLA (Liu and Rue
2023, arXiv:2210.04482).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import matvec, nan_where_indefinite
from pyrosplice.glmm._link_posterior import LinkPosterior, Places
from pyrosplice.glmm._predictive_density import SpotGroups, log_predictive


def group_densities(
    posterior: LinkPosterior, groups: Sequence[Tensor], *, counts: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Log density of each group's counts given all others, ``(B, M)``; NaN for a gene without a Gaussian posterior.

    Parameters
    ----------
    posterior
        Laplace's posterior.
    groups
        Positions of the spots of M groups, at least one each.
    counts
        Counts ``(B, N, K)`` to score; those of the model by default. A posterior that was found without a group's
        counts (its spots are empty) is scored on them as it is.
    seed
        Of the draws that groups of more than three predictors are integrated by.
    """
    given, likelihood = posterior.model.counts if counts is None else counts, posterior.model.likelihood
    alone = all(len(group) == 1 for group in groups)
    found = []
    for spots in [torch.cat(list(groups)).unsqueeze(1)] if alone else [group.unsqueeze(0) for group in groups]:
        held_out = SpotGroups(likelihood, given[:, spots.flatten()].unflatten(1, spots.shape))
        found.append(log_predictive(held_out, *without_groups(posterior, spots), seed=seed))
    return torch.cat(found, 1)


def without_groups(posterior: LinkPosterior, spots: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, M, I, Q) and a root (B, M, I Q, I Q) of the covariance of η at groups ``(M, I)``, each one's counts out.

    Groups of more than one spot one at a time, M = 1.
    """
    mode, flat, shape = posterior.mode, spots.flatten(), spots.shape
    if shape[1] == 1:
        covariance = posterior.covariance(Places(posterior.design[flat], flat))
    else:
        covariance = posterior.joint_covariance(flat).unsqueeze(1)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(covariance))
    root = (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT  # symmetric, R R = C: unique
    information = mode.step.information[:, flat].unflatten(1, shape)
    weighted = information @ root.unflatten(2, (shape[1], -1))
    left = torch.eye(root.shape[-1], dtype=root.dtype) - root.mT @ weighted.flatten(2, 3)
    factor = nan_where_indefinite((left + left.mT) / 2)
    root = torch.linalg.solve_triangular(factor, root.mT, upper=False).mT  # Λ⁻¹ = R (I − R' W R)⁻¹ R'
    score = mode.score[:, flat].unflatten(1, shape).flatten(2)
    mean = mode.eta[:, flat].unflatten(1, shape)
    return mean - matvec(root, matvec(root.mT, score)).reshape(mean.shape), root
