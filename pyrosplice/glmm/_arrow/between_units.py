r"""How the effects of units vary between predictors, beside how the model says they do.

The modes of a level's effects, :math:`\hat u_l`, have in the model the covariance :math:`L L' - C_l`, the prior's less
the posterior's. Of the columns that a contrast is compared with, summed over levels,

.. math:: R = \Bigl(\sum_l L L' - C_l\Bigr)^{-1} \sum_l \hat u_l \hat u_l'

is a multiple of the identity where the model is right, up to chance; in a balanced normal model R is similar to a
Wishart matrix of the units' degrees of freedom, whose covariance is that of the contrast's estimates in the coordinates
in which the model has them independent and of one size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._modes import outside_inference_mode
from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.first_values import unit_of
from pyrosplice.glmm._arrow.joint_mode import OuterPoint
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace, laplace_at
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.glmm._arrow.standard_columns import StandardColumns

Array = NDArray[np.float64]
LEAST_SD = 1e-3  # of an effect, in units of the data: without any there are no modes, whose ratios have a limit
MODE = 1e-14  # Newton decrement of the modes, in nats²
AT_ONCE = 64  # genes worked on together


@outside_inference_mode
def variation_of_units(problem: EffectsProblem, fit: EffectsFit, compared: Mapping[int, Array]) -> Tensor:
    """R of every gene, (G, Q, Q).

    Parameters
    ----------
    problem, fit
        What was fitted, and its fit; genes without estimates are NaN.
    compared
        Squares (q, q) of the columns of effects (:class:`~pyrosplice.effects._units.ContrastUnits`).
    """
    standard = StandardColumns.of(problem)
    layout = SupportLayout.of(problem).turned(standard.fixed, standard.effects)
    arrow, eliminator = Arrow(layout, problem.groups, restricted=True), eliminator_of(problem, layout)
    logs = torch.cat([fit.sds.new_zeros(len(fit.sds), 0), *(fit.hyper[name].log() for name in eliminator.hyper)], 1)
    basis = basis_of(problem.isoform_effect, problem.counts)
    own = (fit.coefficients if basis is None else basis.coordinates(fit.coefficients)).flatten(1)
    beta = standard.engine_coefficients(own.numpy())
    variances = np.array([np.trace(matrix) > 0 for block in problem.groups for matrix in block.basis], dtype=bool)
    psi, least = standard.engine_parameters(fit.parameters.numpy()), LEAST_SD * unit_of(problem)[:, None]
    psi = np.where(variances & (np.abs(psi) < least), least, psi)
    q = layout.n_predictors
    out = torch.full((len(psi), q, q), torch.nan, dtype=torch.float64)
    sound = np.flatnonzero(np.isfinite(np.concatenate([psi, beta, fit.sds.numpy(), logs.numpy()], 1)).all(1))
    for first in range(0, len(sound), AT_ONCE):
        rows = sound[first : first + AT_ONCE]
        genes = torch.from_numpy(rows)
        outer = OuterPoint(genes, np.ascontiguousarray(psi[rows]), fit.sds[genes], logs[genes], beta[rows, :0])
        unknowns = arrow.zeros(len(rows))
        unknowns.border[:, : beta.shape[1]] = beta[rows]
        found = laplace_at(arrow, eliminator, outer, (unknowns, eliminator.zeros(genes)), tolerance=MODE)
        out[genes] = torch.from_numpy(_variation(found, standard, compared))
    return out


def _variation(found: ArrowLaplace, standard: StandardColumns, compared: Mapping[int, Array]) -> Array:
    """R of some genes at their modes."""
    arrow, q = found.search.arrow, standard.n_predictors
    seen, expected = np.zeros((2, len(found.value), q, q))
    for e, squares in compared.items():
        root = arrow.blocks[e].root
        prior = np.ones(len(arrow.blocks[e].level_names)) if root is None else np.square(root).sum(1)
        scale = standard.expanded(standard.effects[e]) @ arrow.scales(found.mode.outer.psi)[e][:, None]
        u = (scale @ arrow.effects(e, found.unknowns)[..., None])[..., 0]
        left = prior[:, None, None] * np.eye(arrow.widths[e]) - found.moments.effects(e)
        left = scale @ left @ np.swapaxes(scale, -1, -2)
        width = len(squares)
        u = u.reshape(*u.shape[:2], width, q)
        seen += np.einsum("bdjq,jk,bdkr->bqr", u, squares, u, optimize=True)
        expected += np.einsum("bdjqkr,jk->bqr", left.reshape(*left.shape[:2], width, q, width, q), squares)
    good = found.mode.found & (np.linalg.eigvalsh(np.where(np.isfinite(expected), expected, 0.0))[:, 0] > 0)
    out = np.full_like(seen, np.nan)
    out[good] = np.linalg.solve(expected[good], seen[good])
    return out
