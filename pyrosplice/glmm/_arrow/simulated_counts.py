"""Counts drawn from a fitted model with a list of effects, effects and all."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem


def simulated_counts(problem: EffectsProblem, fit: EffectsFit, n: int, generator: torch.Generator) -> Tensor:
    """Draw n tables of counts of one gene, ``(n, N, K)``, each with effects of its own.

    Parameters
    ----------
    problem, fit
        Of that gene, whose estimates are taken for the truth.
    n
        How many.
    generator
        Random numbers.
    """
    q = fit.coefficients.shape[2]

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, q, generator=generator, dtype=torch.float64)

    effects = torch.zeros(n, len(problem.design), q, dtype=torch.float64)
    for e, block in enumerate(problem.groups):
        root = torch.linalg.cholesky_ex(fit.effect_covariance(e)[0] + 1e-14 * torch.eye(block.columns.shape[1]))[0]
        u = torch.einsum("kl,ndlq->ndkq", root, normal(len(block.level_names), block.columns.shape[1]))
        if block.root is not None:
            u = torch.einsum("de,nekq->ndkq", torch.as_tensor(block.root), u)
        levels = torch.as_tensor(block.levels)
        columns = torch.as_tensor(block.columns * (block.levels >= 0)[:, None])
        effects += torch.einsum("ik,nikq->niq", columns, u[:, levels.clamp_min(0)])
    for k, name in enumerate(fit.inner):
        if name == "noise":
            own = normal(len(problem.design))
        elif problem.space is not None:
            own = problem.space.color(normal(problem.space.n_latent))
            own = own if problem.space_by is None else own * torch.as_tensor(problem.space_by)[:, None]
        effects += fit.sds[0, k] * own
    basis = basis_of(problem.isoform_effect, problem.counts)
    eta = effects if basis is None else basis.logits(effects)
    eta = eta + torch.as_tensor(problem.design) @ fit.coefficients[0]
    if problem.offset is not None:
        offset = torch.as_tensor(problem.offset)
        eta = eta + (offset[:, None] if offset.ndim == 1 else offset[0])
    hyper = {name: value.expand(n, 1) for name, value in fit.hyper.items()}
    return problem.likelihood.bind(hyper).draw(problem.counts.sum(-1).expand(n, -1), eta, generator=generator)
