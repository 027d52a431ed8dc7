r"""What a fit without an effect says of how well the data know its levels, as the null law of its variance needs it.

With M the information about the levels' standardised effects that is left when all else is integrated, and H the
Newton matrix of the whole model with the mode of the smaller one, :math:`\log|H(t)| - \log|H(0)| = \log|I + t M|` at a
variance t. Its first two derivatives at zero are :math:`\operatorname{tr} M` and :math:`-\operatorname{tr} M^2`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._modes import outside_inference_mode
from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import Eliminator
from pyrosplice.glmm._arrow.joint_mode import JointMode, ModeSearch, OuterPoint
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.glmm._arrow.standard_columns import StandardColumns

Array = NDArray[np.float64]
MODE = 1e-10  # Newton decrement of the modes, in nats²
FIRST, STEP = 1e-7, 2e-3  # variance of a first look; then STEP over tr M, which is off by 0.4 % of tr M² at most
BATCH = 64  # genes worked on together


@outside_inference_mode
def component_freedom(problem: EffectsProblem, component: int | str, null: EffectsFit) -> Array:
    r"""Effective number :math:`(\operatorname{tr} M)^2 / \operatorname{tr} M^2` of levels of an effect, ``(G,)``.

    Parameters
    ----------
    problem
        The model with the effect, which has one parameter.
    component
        Number of one of its groups, or the name of an inner effect, ``"space"`` or ``"noise"``.
    null
        The restricted fit without it; genes without estimates are NaN.
    """
    standard = StandardColumns.of(problem)
    layout = SupportLayout.of(problem).turned(standard.fixed, standard.effects)
    arrow, eliminator = Arrow(layout, problem.groups, restricted=True), eliminator_of(problem, layout)
    psi, sds, beta = null.parameters.numpy(), null.sds.numpy(), null.coefficients.flatten(1).numpy()
    if isinstance(component, str):
        place = eliminator.inner.index(component)
        sds = np.insert(sds, place, 0.0, axis=1)
    else:
        place = sum(len(block.basis) for block in problem.groups[:component])
        psi = np.insert(psi, place, 0.0, axis=1)
    psi, beta = standard.engine_parameters(psi), standard.engine_coefficients(beta)
    logs = np.concatenate([np.zeros((len(psi), 0)), *(null.hyper[name].log().numpy() for name in eliminator.hyper)], 1)
    out = np.full(len(psi), np.nan)
    sound = np.flatnonzero(np.isfinite(np.concatenate([psi, beta, sds, logs], 1)).all(1))
    for genes in np.split(sound, range(BATCH, len(sound), BATCH)) if len(sound) else ():
        at = torch.from_numpy(genes)
        inner, hyper = torch.from_numpy(sds[genes]), torch.from_numpy(logs[genes])
        outer = OuterPoint(at, psi[genes], inner, hyper, np.zeros((len(genes), 0)))
        unknowns = arrow.zeros(len(genes))
        unknowns.border[:, : beta.shape[1]] = beta[genes]
        mode = ModeSearch(arrow, eliminator).find(outer, unknowns, eliminator.zeros(at), tolerance=MODE)
        out[genes] = np.where(mode.found, _freedom(arrow, eliminator, mode, (component, place)), np.nan)
    return out


def _freedom(arrow: Arrow, eliminator: Eliminator, mode: JointMode, varied: tuple[int | str, int]) -> Array:
    """The effective number of genes (b,) at the modes of the smaller model; NaN where it is not above zero."""
    component, place = varied
    search = ModeSearch(arrow, eliminator)

    def logdet(variance: Array) -> Array:
        psi, sds = mode.outer.psi.copy(), mode.outer.sds.clone()
        if isinstance(component, str):
            sds[:, place] = torch.from_numpy(np.sqrt(variance))
        else:
            psi[:, place] = np.sqrt(variance)
        outer, map_ = replace(mode.outer, psi=psi, sds=sds), arrow.map(psi)
        elimination = eliminator.linearize(search.point(outer, arrow.map(mode.outer.psi), mode.unknowns, mode.latents))
        inner = elimination.logdet.numpy()
        return inner + arrow.factor(map_, elimination.information.numpy()).logdet

    none = np.zeros(len(mode.found))
    start = logdet(none)
    step = STEP * FIRST / (logdet(none + FIRST) - start)
    step = np.where(step > 0, step, np.nan)
    once, twice = logdet(np.nan_to_num(step)) - start, logdet(2 * np.nan_to_num(step)) - start
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = 0.25 * (4 * once - twice) ** 2 / (2 * once - twice)
    return np.where(np.isfinite(step) & (freedom > 0), freedom, np.nan)
