r"""Mean and variance of linear predictors at other places of a field, in Laplace's posterior at the estimates.

.. math:: \eta_* = x'\beta + \sum_e z_e' u_{l_e} + a\, s_* + c\, e_*, \qquad s_* \mid s \sim N(K s, V_*)

(:mod:`pyrosplice.spatial._new_spots`). Given b of all supports the field at the fitted spots is Gaussian, and moves
along with b by the linear response T that eliminated it; so, with r the derivative of the predictor in all unknowns,
:math:`r = (x, L z) - a F' T' K'`,

.. math:: \operatorname{var} \eta_* = r' H^{-1} r + a^2 (K S^{-1} K' + V_*)_{**} + c^2 .
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._modes import outside_inference_mode
from pyrosplice.glmm._arrow.arrow import ArrowUnknowns
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.laid_out import LaidOut
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace
from pyrosplice.glmm._arrow.predictor_moments import NewRows, PredictorMoments, of_new_levels
from pyrosplice.glmm._arrow.spots import SpotElimination, SpotEliminator
from pyrosplice.spatial._new_spots import FieldPlaces

Array = NDArray[np.float64]
AT_ONCE = 64  # spots whose variances are solved for together


@outside_inference_mode
def predictors_in_space(
    problem: EffectsProblem, fit: EffectsFit, rows: NewRows, places: FieldPlaces
) -> PredictorMoments:
    """Moments of the predictors of observations at other places; of one predictor, and a field of all observations.

    Parameters
    ----------
    problem, fit
        What was fitted under the restricted likelihood, with a field, and its estimates.
    rows, places
        The observations, and where they are.
    """
    solver = problem.space
    if solver is None or problem.space_by is not None:
        raise AssertionError("a field of all observations is asked for where there is none")
    laid_out, n = LaidOut(problem), len(rows.design)
    spots = SpotEliminator(
        problem, torch.from_numpy(laid_out.layout.columns), torch.from_numpy(laid_out.layout.support)
    )
    laid_out.eliminator = spots
    mean, variance = (np.full((len(problem.counts), n), np.nan) for _ in range(2))
    for genes, laplace in laid_out.at_fit(fit):
        outer, map_ = laplace.mode.outer, laplace.mode.system.factor.map
        point = laplace.search.point(outer, map_, laplace.unknowns, laplace.latents)
        field = _FieldGiven(laplace, spots.linearize(point), solver, laid_out.layout.support)
        for some in np.array_split(np.arange(n), -(-n // AT_ONCE)):
            found = field.moments(rows, some, places)
            sound = np.where(laplace.mode.found[:, None], 1.0, np.nan)
            mean[np.ix_(genes.numpy(), some)] = found.mean * sound
            variance[np.ix_(genes.numpy(), some)] = found.variance * sound
    return PredictorMoments(mean, variance + of_new_levels(problem, fit, rows))


@dataclass(frozen=True)
class _FieldGiven:
    """The posterior of the unknowns of some genes, and of the field given these."""

    laplace: ArrowLaplace
    elimination: SpotElimination
    solver: SpatialSolver
    support: NDArray[np.int64]

    def moments(self, rows: NewRows, some: NDArray[np.intp], places: FieldPlaces) -> PredictorMoments:
        """Moments (b, m) at some of the rows, new levels and cells' own effects not included."""
        step, factor = self.elimination.step, self.laplace.mode.system.factor
        weights = places.weights(some, self.solver.n_spots)
        a = step.parameters.spatial[:, :1]  # (b, 1)
        if step.factor is None:
            raise AssertionError("there is a field")
        pulled = self.solver.gather(weights.T.unsqueeze(0)).unflatten(2, (1, -1)).expand(len(a), -1, -1, -1)
        solved = self.solver.spread(step.factor.solve(pulled.contiguous()).flatten(2))  # S⁻¹ K', (b, N, m)
        variance = a.square() * (torch.einsum("mn,bnm->bm", weights, solved) + torch.from_numpy(places.variance[some]))
        mean = a * torch.einsum("mn,bn->bm", weights, self.solver.spread(self.laplace.latents.field)[..., 0])
        means, variances = mean.numpy().copy(), variance.numpy().copy()
        follow = self._following(weights).numpy() * a[..., None, None].numpy()
        for k, row in enumerate(some):
            slope = self._direct(rows, row)
            means[:, k] += slope.dot(self.laplace.unknowns)
            own = self.laplace.search.arrow.pull(factor.map, follow[:, k])
            slope = ArrowUnknowns(slope.border - own.border, slope.private - own.private)
            variances[:, k] += slope.dot(factor.solve(slope))
        return PredictorMoments(means, variances)

    def _following(self, weights: Tensor) -> Tensor:
        """How the expected field at m places falls with b of each support, ``K T``: (b, m, U, w)."""
        absorbed = self.solver.spread(self.elimination.absorbed.flatten(2))  # (b, N, w)
        out = absorbed.new_zeros(len(absorbed), len(weights), int(self.support.max()) + 1, absorbed.shape[2])
        for u in range(out.shape[2]):
            own = torch.from_numpy(np.flatnonzero(self.support == u))
            out[:, :, u] = weights[:, own] @ absorbed[:, own]
        return out

    def _direct(self, rows: NewRows, row: int) -> ArrowUnknowns:
        """Derivative of a row's predictor in the unknowns, the field held."""
        arrow, b = self.laplace.search.arrow, len(self.laplace.value)
        out = arrow.zeros(b)
        out.border[:, : arrow.n_coefficients] = rows.design[row]
        rooted = np.zeros_like(out.border)
        for e, scale in enumerate(arrow.scales(self.laplace.mode.outer.psi)):
            level, home = int(rows.levels[row, e]), arrow.homes[e]
            if level < 0 or home.group[level] < 0:
                continue
            at, slope = home.place[level] + np.arange(arrow.widths[e]), rows.columns[e][row] @ scale
            if home.private:
                out.private[:, home.group[level], at] = slope
            else:
                rooted[:, at] = slope
        rooted = rooted if arrow.root is None else rooted @ arrow.root
        return ArrowUnknowns(out.border + rooted, out.private)
