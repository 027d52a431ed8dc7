"""The score of coefficients at the estimates of a smaller model, as score tests need it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyrosplice._modes import outside_inference_mode
from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.joint_mode import OuterPoint
from pyrosplice.glmm._arrow.laplace_value import laplace_at
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.glmm._arrow.standard_columns import StandardColumns

MODE = 1e-14  # Newton decrement of the modes, in nats²
BATCH = 64  # genes worked on together


@outside_inference_mode
def coefficient_score(
    problem: EffectsProblem,
    coefficients: Tensor,
    parameters: Tensor,
    sds: Tensor,
    hyper: Mapping[str, Tensor],
    *,
    at_maximum: bool = True,
) -> tuple[Tensor, Tensor]:
    """Differentiate the marginal log likelihood in the coefficients at given values of everything.

    Parameters
    ----------
    problem
        The whole model.
    coefficients
        (G, P, Q), zero for what the smaller model lacks.
    parameters, sds
        Of the effects of groups (G, J) and of the inner ones (G, I).
    hyper
        Of the likelihood, (G, 1) each.
    at_maximum
        Whether the information is that at the coefficients of largest likelihood given these parameters, or at the
        given ones: where the maximum is at infinity there is none.

    Returns
    -------
    The score (G, P Q), and the covariance (G, P Q, P Q) that coefficients have given these parameters: the inverse of
    the information that is left when all effects are integrated. NaN for a gene of which a value is not finite.
    """
    standard = StandardColumns.of(problem)
    layout = SupportLayout.of(problem).turned(standard.fixed, standard.effects)
    eliminator = eliminator_of(problem, layout)
    basis = basis_of(problem.isoform_effect, problem.counts)
    flat = (coefficients if basis is None else basis.coordinates(coefficients)).flatten(1)
    beta, psis = (
        torch.from_numpy(standard.engine_coefficients(flat.numpy())),
        standard.engine_parameters(parameters.numpy()),
    )
    n, p = beta.shape
    logs = torch.cat([beta.new_zeros(n, 0), *(hyper[name].log() for name in eliminator.hyper)], 1)
    sound = torch.isfinite(torch.cat([beta, parameters, sds, logs], 1)).all(1).nonzero()[:, 0]
    score, covariance = torch.full((n, p), torch.nan, dtype=torch.float64), beta.new_full((n, p, p), torch.nan)
    for genes in sound.split(BATCH) if len(sound) else ():
        psi = np.ascontiguousarray(psis[genes.numpy()])
        held = OuterPoint(genes, psi, sds[genes], logs[genes], beta[genes].numpy())
        free = OuterPoint(genes, psi, sds[genes], logs[genes], np.zeros((len(genes), 0)))
        given = Arrow(layout, problem.groups, restricted=False)
        found = laplace_at(given, eliminator, held, (given.zeros(len(genes)), eliminator.zeros(genes)), tolerance=MODE)
        score[genes] = torch.from_numpy(standard.score(found.gradient[:, -p:]))
        arrow = Arrow(layout, problem.groups, restricted=True)
        if at_maximum:
            unknowns = arrow.zeros(len(genes))
            unknowns.border[:, :p] = beta[genes].numpy()
            found = laplace_at(arrow, eliminator, free, (unknowns, eliminator.zeros(genes)), tolerance=MODE)
            own = found.covariance()
        else:
            information = found.mode.system.elimination.information.numpy()
            own = arrow.factor(arrow.map(psi), information).border_covariance[:, :p, :p].copy()
        covariance[genes] = torch.from_numpy(standard.covariance(own))
    if basis is not None:
        q = coefficients.shape[2]
        turn = torch.einsum("pr,gkq->gpkrq", torch.eye(p // q, dtype=torch.float64), basis.root.reshape(-1, q, q))
        turn = turn.reshape(-1, p, p)
        score = torch.linalg.solve(turn.mT, score[..., None])[..., 0]
        covariance = turn @ covariance @ turn.mT
    return score, covariance
