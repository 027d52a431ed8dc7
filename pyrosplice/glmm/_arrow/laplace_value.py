r"""Laplace's value of a list of effects, its exact gradient, and how the mode moves with the parameters.

With z all unknowns of groups (and the coefficients, under the restricted likelihood), standardised,

.. math::
    \text{value} = \log p(y, \hat z) - \tfrac12 \log|H| + \tfrac{P Q}{2} \log 2\pi \; \text{(restricted)}, \qquad
    H = \textstyle\sum_u F_u' M_u F_u + \text{prior} .

The gradient is by the adjoint (:mod:`pyrosplice.glmm._arrow.eliminator`): one solve whatever the number of parameters,
and a product with the derivative of F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice.glmm._arrow.arrow import Arrow, ArrowMoments, ArrowUnknowns
from pyrosplice.glmm._arrow.eliminator import Eliminator, InnerMeasure
from pyrosplice.glmm._arrow.joint_mode import JointMode, ModeSearch, OuterPoint
from pyrosplice.glmm._latents import Latents

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Derivatives of the mode in the d outer parameters: of the unknowns and of the inner effects, one each."""

    unknowns: list[ArrowUnknowns]
    latents: list[Latents]


class ArrowLaplace:
    """Laplace's value at a joint mode, and its derivatives.

    Attributes
    ----------
    value : (b,)
        NaN for a gene without a mode.
    gradient : (b, d)
        In psi, inner sds, logs of hyper-parameters, and coefficients that are not integrated; carried to the mode, to
        first order, by the last step.
    unknowns, latents
        The mode itself, one last Newton step from where the system was factorised.
    moments
        Posterior covariances.
    """

    def __init__(self, search: ModeSearch, mode: JointMode):
        self.search, self.mode = search, mode
        arrow, system = search.arrow, mode.system
        self.moments: ArrowMoments = system.factor.moments()
        self.measure: InnerMeasure = system.elimination.measure(torch.from_numpy(self.moments.blocks))
        tilt = arrow.pull(system.factor.map, self.measure.tilt.numpy())
        # with the last step added the adjoint's gradient is that of the mode it leads to, to first order
        self.adjoint = system.factor.solve(tilt).moved(system.step, np.ones(len(tilt.border)))
        moved = search.arrow.blocks_of(system.factor.map, system.step)
        one = np.ones(len(moved))
        self.unknowns = mode.unknowns.moved(system.step, one)
        self.latents = mode.latents.moved(system.elimination.advance(torch.from_numpy(moved)))
        prior = mode.unknowns.dot(arrow.prior_slope(mode.unknowns))
        value = self.measure.value.numpy() - 0.5 * (prior + system.factor.logdet)
        value = value + 0.5 * arrow.n_coefficients * math.log(2 * math.pi)
        # the last step is not measured again: what it changes, to first order in the determinants
        value = value + 0.5 * system.decrement + tilt.dot(system.step)
        self.value = np.where(mode.found, value, np.nan)

    @cached_property
    def gradient(self) -> Array:
        """Derivatives (b, d) of the value in psi, inner sds, logs of hyper-parameters, and coefficients held."""
        arrow, system = self.search.arrow, self.mode.system
        map_ = system.factor.map
        inner = self.measure.gradient(torch.from_numpy(arrow.blocks_of(map_, self.adjoint)))
        blocks, raw = inner.blocks.numpy(), self.measure.raw_score.numpy()
        slope = blocks[..., None] * arrow.local(self.mode.unknowns)[:, :, None]
        slope += raw[..., None] * arrow.local(self.adjoint)[:, :, None]
        slope -= system.factor.information @ np.swapaxes(self.moments.cross, -1, -2)
        parts = [arrow.map_gradient(slope), inner.sds.numpy(), inner.log_hyper.numpy()]
        if self.mode.outer.coefficients.shape[1]:
            parts.append(np.einsum("uwp,buw->bp", arrow.layout.fixed, blocks))
        return np.concatenate(parts, 1)

    def covariance(self) -> Array:
        """Posterior covariance (b, P Q, P Q) of the coefficients under the restricted likelihood."""
        n = self.search.arrow.n_coefficients
        return self.mode.system.factor.border_covariance[:, :n, :n]

    def inner_information(self) -> Array:
        """Average information (b, I, I) of the inner standard deviations."""
        first, system = self.search.arrow.n_parameters, self.mode.system
        inner = slice(first, first + self.mode.outer.sds.shape[1])
        blocks = [self.search.arrow.blocks_of(system.factor.map, step) for step in self.prediction.unknowns[inner]]
        steps = [torch.from_numpy(own) for own in blocks]
        return system.elimination.average_information(steps, self.prediction.latents[inner]).numpy()

    @cached_property
    def prediction(self) -> Prediction:
        """How the mode moves with each of the outer parameters."""
        arrow, outer, system = self.search.arrow, self.mode.outer, self.mode.system
        map_, raw = system.factor.map, self.measure.raw_score.numpy()
        n_inner, n_hyper = outer.sds.shape[1], outer.log_hyper.shape[1]
        n_outer = outer.coefficients.shape[1]
        out = Prediction([], [])
        local = arrow.local(self.mode.unknowns)
        for j in range(arrow.n_parameters + n_inner + n_hyper + n_outer):
            k = j - arrow.n_parameters
            sds, log_hyper = torch.zeros_like(outer.sds), torch.zeros_like(outer.log_hyper)
            blocks, rhs = np.zeros(map_.shape[:3]), arrow.zeros(len(map_))
            if k < 0:
                change = arrow.map_derivative(j, len(map_))
                blocks, rhs = arrow.product(change, local), arrow.pull(change, raw)
            elif k < n_inner:
                sds[:, k] = 1.0
            elif k < n_inner + n_hyper:
                log_hyper[:, k - n_inner] = 1.0
            else:
                blocks = np.broadcast_to(arrow.layout.fixed[..., k - n_inner - n_hyper], blocks.shape).copy()
            response = system.elimination.respond(torch.from_numpy(blocks), sds, log_hyper)
            own = arrow.pull(map_, response.score.numpy())
            step = system.factor.solve(ArrowUnknowns(own.border + rhs.border, own.private + rhs.private))
            out.unknowns.append(step)
            out.latents.append(response.advance(torch.from_numpy(arrow.blocks_of(map_, step))))
        return out


def laplace_at(
    arrow: Arrow,
    eliminator: Eliminator,
    outer: OuterPoint,
    start: tuple[ArrowUnknowns, Latents],
    *,
    tolerance: float | Array,
) -> ArrowLaplace:
    """Laplace's value at given parameters, its mode sought from ``start``."""
    search = ModeSearch(arrow, eliminator)
    return ArrowLaplace(search, search.find(outer, *start, tolerance=tolerance))
