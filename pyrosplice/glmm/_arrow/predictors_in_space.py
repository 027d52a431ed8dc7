r"""Mean and covariance of linear predictors at other places of a field, in Laplace's posterior at the estimates.

.. math:: \eta_* = x'\beta + \sum_e z_e' u_{l_e} + a\, s_* + c\, e_*, \qquad s_* \mid s \sim N(K s, V_*)

(:mod:`pyrosplice.spatial._new_spots`); a field that multiplies a covariate does so with its value at the new place.
Given b of all supports the field at the fitted spots is Gaussian, and moves
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
from pyrosplice.effects._isoform_effect import basis_of
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


@dataclass(frozen=True)
class LinkMoments:
    """Mean ``(G, n, Q)`` and covariance ``(G, n, Q, Q)`` of predictors, offset not included; NaN without estimates."""

    mean: Array
    covariance: Array

    @property
    def of_one(self) -> PredictorMoments:
        """Moments of the first predictor, for models that have one."""
        return PredictorMoments(self.mean[..., 0], self.covariance[..., 0, 0])


@outside_inference_mode
def predictors_in_space(
    problem: EffectsProblem, fit: EffectsFit, rows: NewRows, places: FieldPlaces | None
) -> LinkMoments:
    """Moments of the predictors of observations at other places; with a field, where these are.

    Parameters
    ----------
    problem, fit
        What was fitted under the restricted likelihood, and its estimates.
    rows, places
        The observations, and where they are; None of a model without a field.
    """
    laid_out, n = LaidOut(problem), len(rows.design)
    q = laid_out.layout.n_predictors
    spots = SpotEliminator(
        problem, torch.from_numpy(laid_out.layout.columns), torch.from_numpy(laid_out.layout.support)
    )
    laid_out.eliminator = spots
    mean, covariance = (np.full((len(problem.counts), n, *[q] * k), np.nan) for k in (1, 2))
    for genes, laplace in laid_out.at_fit(fit):
        outer, map_ = laplace.mode.outer, laplace.mode.system.factor.map
        point = laplace.search.point(outer, map_, laplace.unknowns, laplace.latents)
        given = _Given(laplace, spots.linearize(point), problem.space, laid_out.layout.support)
        for some in np.array_split(np.arange(n), -(-n // AT_ONCE)):
            found = given.moments(rows, some, places)
            sound = np.where(laplace.mode.found[:, None, None], 1.0, np.nan)
            mean[np.ix_(genes.numpy(), some)] = found.mean * sound
            covariance[np.ix_(genes.numpy(), some)] = found.covariance * sound[..., None]
    own = np.einsum("gn,qr->gnqr", of_new_levels(problem, fit, rows), np.eye(q))
    return in_logits(problem, LinkMoments(mean, covariance + own))


def in_logits(problem: EffectsProblem, moments: LinkMoments) -> LinkMoments:
    """Moments of the predictors themselves from those in the coordinates that the engine works in."""
    basis = basis_of(problem.isoform_effect, problem.counts)
    if basis is None:
        return moments
    mean, covariance = torch.from_numpy(moments.mean), torch.from_numpy(moments.covariance)
    return LinkMoments(basis.logits(mean).numpy(), basis.logit_covariance(covariance).numpy())


@dataclass(frozen=True)
class _Given:
    """The posterior of the unknowns of some genes, and of the field given these."""

    laplace: ArrowLaplace
    elimination: SpotElimination
    solver: SpatialSolver | None
    support: NDArray[np.int64]

    def moments(self, rows: NewRows, some: NDArray[np.intp], places: FieldPlaces | None) -> LinkMoments:
        """Moments (b, m, Q) at some of the rows, new levels and cells' own effects not included."""
        factor, arrow = self.laplace.mode.system.factor, self.laplace.search.arrow
        b, q = len(self.laplace.value), arrow.layout.n_predictors
        means, covariances = np.zeros((b, len(some), q)), np.zeros((b, len(some), q, q))
        follow: Array | None = None
        if places is not None and self.solver is not None:
            means, covariances, follow = self._field(rows, some, places, self.solver)
        for k, row in enumerate(some):
            slopes = [self._direct(rows, row, own) for own in range(q)]
            means[:, k] += np.stack([slope.dot(self.laplace.unknowns) for slope in slopes], 1)
            if follow is not None:
                moved = [arrow.pull(factor.map, np.ascontiguousarray(follow[:, k, :, own])) for own in range(q)]
                pairs = zip(slopes, moved, strict=True)
                slopes = [ArrowUnknowns(s.border - m.border, s.private - m.private) for s, m in pairs]
            solved = [factor.solve(slope) for slope in slopes]
            for i, slope in enumerate(slopes):
                covariances[:, k, i] += np.stack([slope.dot(other) for other in solved], 1)
        return LinkMoments(means, covariances)

    def _field(
        self, rows: NewRows, some: NDArray[np.intp], places: FieldPlaces, solver: SpatialSolver
    ) -> tuple[Array, Array, Array]:
        """Mean and covariance of the field's part given b, and how it follows that (b, m, U, Q, w)."""
        step, q = self.elimination.step, self.laplace.search.arrow.layout.n_predictors
        if step.factor is None:
            raise AssertionError("there is a field")
        weights = places.weights(some, solver.n_spots)
        by = torch.ones(len(some)) if rows.space_by is None else torch.from_numpy(rows.space_by[some])
        a = step.parameters.spatial[:, :1] * by  # (b, m)
        unit = torch.einsum("mn,qr->nqmr", weights, torch.eye(q, dtype=weights.dtype))
        pulled = solver.gather(unit.flatten(1).unsqueeze(0)).unflatten(2, (q, -1)).expand(len(a), -1, -1, -1)
        solved = solver.spread(step.factor.solve(pulled.contiguous()).flatten(2)).unflatten(2, unit.shape[1:])
        within = torch.einsum("mn,bnqmr->bmqr", weights, solved)
        left = torch.einsum("m,qr->mqr", torch.from_numpy(places.variance[some]), torch.eye(q, dtype=weights.dtype))
        covariance = a.square()[..., None, None] * (within + left)
        mean = a[..., None] * torch.einsum("mn,bnq->bmq", weights, solver.spread(self.laplace.latents.field))
        follow = a[..., None, None, None] * self._following(weights, solver)
        return mean.numpy().copy(), covariance.numpy().copy(), follow.numpy()

    def _following(self, weights: Tensor, solver: SpatialSolver) -> Tensor:
        """How the expected field at m places falls with b of each support, ``K T``: (b, m, U, Q, w)."""
        q = self.laplace.search.arrow.layout.n_predictors
        absorbed = solver.spread(self.elimination.absorbed.flatten(2)).unflatten(2, (q, -1))  # (b, N, Q, w)
        shape = len(absorbed), len(weights), int(self.support.max()) + 1, *absorbed.shape[2:]
        out = absorbed.new_zeros(shape)
        for u in range(out.shape[2]):
            own = torch.from_numpy(np.flatnonzero(self.support == u))
            out[:, :, u] = torch.einsum("mn,bnqw->bmqw", weights[:, own], absorbed[:, own])
        return out

    def _direct(self, rows: NewRows, row: int, predictor: int) -> ArrowUnknowns:
        """Derivative of a predictor of a row in the unknowns, the field held."""
        arrow, b = self.laplace.search.arrow, len(self.laplace.value)
        q = arrow.layout.n_predictors
        out = arrow.zeros(b)
        out.border[:, predictor : arrow.n_coefficients : q] = rows.design[row]
        rooted = np.zeros_like(out.border)
        for e, scale in enumerate(arrow.scales(self.laplace.mode.outer.psi)):
            level, home = int(rows.levels[row, e]), arrow.homes[e]
            if level < 0 or home.group[level] < 0:
                continue
            columns = np.zeros(arrow.widths[e])
            columns[predictor::q] = rows.columns[e][row]
            at, slope = home.place[level] + np.arange(arrow.widths[e]), columns @ scale
            if home.private:
                out.private[:, home.group[level], at] = slope
            else:
                rooted[:, at] = slope
        rooted = rooted if arrow.root is None else rooted @ arrow.root
        return ArrowUnknowns(out.border + rooted, out.private)


@outside_inference_mode
def fitted_predictors(problem: EffectsProblem, fit: EffectsFit) -> LinkMoments:
    """Moments of the predictors of the fitted observations, effects of single ones among them."""
    laid_out = LaidOut(problem)
    laid_out.eliminator = spots = SpotEliminator(
        problem, torch.from_numpy(laid_out.layout.columns), torch.from_numpy(laid_out.layout.support)
    )
    q = laid_out.layout.n_predictors
    mean, covariance = (np.full((*problem.counts.shape[:2], *[q] * k), np.nan) for k in (1, 2))
    offset = spots.offset_of(problem)
    for genes, laplace in laid_out.at_fit(fit):
        outer, map_ = laplace.mode.outer, laplace.mode.system.factor.map
        point = laplace.search.point(outer, map_, laplace.unknowns, laplace.latents)
        elimination = spots.linearize(point)
        measure = elimination.measure(torch.from_numpy(laplace.moments.blocks))
        sound = np.where(laplace.mode.found[:, None, None], 1.0, np.nan)
        eta = elimination.step.eta
        if offset is not None:
            eta = eta - (offset if len(offset) == 1 else offset[genes])
        mean[genes.numpy()] = eta.numpy() * sound
        covariance[genes.numpy()] = measure.covariance.numpy() * sound[..., None]
    return in_logits(problem, LinkMoments(mean, covariance))
