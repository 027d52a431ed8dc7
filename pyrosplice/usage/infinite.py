"""Estimates that are at infinity: coefficients of separated genes, and σ where no spot has two isoforms."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pyrosplice.glmm.glm_objective import StandardCoordinates
from pyrosplice.glmm.separation import separated
from pyrosplice.likelihoods.contract import Likelihood

# σ above it, in a gene without any mixed spot, is on its way to infinity. In others Laplace's method misses how little
# such a gene knows of its coefficients: of 100 null genes of 60 spots, robust Wald tests reject 0 to 5 % at a true σ of
# 5, up to 27 % at 8 and 52 % at 15, ratios up to 5, 17 and 38 %; score tests 3 to 6 % at all of them.
ENDLESS_SIGMA = 5.0


def endless_coefficients(
    counts: Tensor, design: Tensor, beta: Tensor, bias_eta: Tensor, *, flat: Collection[str], likelihood: Likelihood
) -> Tensor:
    """Genes whose coefficients have no finite estimate, ``(G,)``.

    Parameters
    ----------
    counts, design
        ``(G, N, K)`` and ``(N, P)``.
    beta, bias_eta
        Estimates, ``(G, P, Q)`` and ``(G, Q)``.
    flat
        Which of ``beta`` and ``bias_eta`` have a flat prior; a proper one keeps them finite.
    """
    unseen = (counts.sum(1) == 0).any(-1) & ("bias_eta" in flat)
    n_isos = counts.shape[-1] if likelihood.conditional else counts.shape[-1] + 1
    if bias_eta.shape[-1] != n_isos - 1 or (not likelihood.conditional and n_isos > 2):
        return unseen  # predictors that are not one an isoform
    columns = StandardCoordinates.of(design).design
    if "beta" not in flat:
        columns = columns[:, columns.shape[1] - len(flat) :]
    elif "bias_eta" not in flat:
        columns = torch.linalg.qr(design / design.norm(dim=0))[0] * len(design) ** 0.5
    return unseen | separated(counts, columns, design @ beta + bias_eta.unsqueeze(1))


def endless_variance(counts: Tensor, sigma: Tensor, converged: Tensor) -> Tensor:
    """Genes whose σ ``(G, 1 or Q)`` has no finite marginal estimate, ``(G,)``: every spot has one isoform only."""
    mixed = ((counts > 0).sum(-1) > 1).any(-1)
    return ~mixed & ((sigma > ENDLESS_SIGMA).any(-1) | ~converged.to(mixed.device))
