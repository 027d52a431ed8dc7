r"""What a fit without an effect says of how well the data know its levels, as the null law of its variance needs it.

With M the information about the levels' standardised effects that is left when all else is integrated, and H the
Newton matrix of the whole model with the mode of the smaller one, :math:`\log|H(t)| - \log|H(0)| = \log|I + t M|` at a
variance t. Its first two derivatives at zero are :math:`\operatorname{tr} M` and :math:`-\operatorname{tr} M^2`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._modes import outside_inference_mode
from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.joint_mode import ModeSearch, OuterPoint
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of

Array = NDArray[np.float64]
MODE = 1e-10  # Newton decrement of the modes, in nats²
FIRST, STEP = 1e-7, 2e-3  # variance of a first look; then STEP over tr M, which is off by 0.4 % of tr M² at most
BATCH = 64  # genes worked on together


@outside_inference_mode
def component_freedom(problem: EffectsProblem, effect: int, null: EffectsFit) -> Array:
    r"""Effective number :math:`(\operatorname{tr} M)^2 / \operatorname{tr} M^2` of levels of an effect, ``(G,)``.

    Parameters
    ----------
    problem
        The model with the effect, which has one parameter.
    effect
        Which of its groups.
    null
        The restricted fit without it; genes without estimates are NaN.
    """
    layout = SupportLayout.of(problem)
    arrow, eliminator = Arrow(layout, problem.groups, restricted=True), eliminator_of(problem, layout)
    place = sum(len(block.basis) for block in problem.groups[:effect])
    psi = np.insert(null.parameters.numpy(), place, 0.0, axis=1)
    beta, none = null.coefficients.flatten(1).numpy(), np.zeros((len(psi), 0))
    logs = torch.cat([null.sds.new_zeros(len(psi), 0), *(null.hyper[name].log() for name in eliminator.hyper)], 1)
    out = np.full(len(psi), np.nan)
    sound = np.flatnonzero(np.isfinite(np.concatenate([psi, beta, null.sds.numpy(), logs.numpy()], 1)).all(1))
    for genes in np.split(sound, range(BATCH, len(sound), BATCH)) if len(sound) else ():
        at = torch.from_numpy(genes)
        outer = OuterPoint(at, psi[genes], null.sds[at], logs[at], none[genes])
        unknowns = arrow.zeros(len(genes))
        unknowns.border[:, : beta.shape[1]] = beta[genes]
        mode = ModeSearch(arrow, eliminator).find(outer, unknowns, eliminator.zeros(at), tolerance=MODE)
        factor = mode.system.factor

        def gained(variance: Array, outer: OuterPoint = outer, factor=factor) -> Array:  # type: ignore[no-untyped-def]
            moved = outer.psi.copy()
            moved[:, place] = np.sqrt(variance)
            return arrow.factor(arrow.map(moved), factor.information).logdet - factor.logdet

        step = STEP * FIRST / gained(np.full(len(genes), FIRST))
        once, twice = gained(step), gained(2 * step)
        freedom = 0.25 * (4 * once - twice) ** 2 / (2 * once - twice)
        out[genes] = np.where(mode.found & (step > 0) & (freedom > 0), freedom, np.nan)
    return out
