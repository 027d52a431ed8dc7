"""E-step of full covariances in many dimensions: a triangular product a component instead of D²/2 features a cell."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrosplice._mixture.em.loop import FLOAT64_SMALLEST, QuadraticExpectation
from pyrosplice._mixture.em.sufficient_statistics import NEVER, Moments, nearest_, responsibilities_
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType

FEATURES_UP_TO = 64
"""Dimensions beyond which the quadratic features cost more to make than they save."""


class TriangularExpectation(QuadraticExpectation):
    r"""E-step by :math:`|L_m^{-1}(y - \mu_m)|^2` and :math:`\sum_i r_{im} y_i y_i^\top`, batched over components.

    Twice the arithmetic of the quadratic features and none of their memory; the features kept are 1 and y alone.
    """

    @property
    def _kept(self) -> CovarianceType:
        return "tied"

    def hard_moments(self, table: Tensor) -> Moments:
        """Moments of cells given to their nearest mean; ``table`` ``(B, J, M, 1 + D)`` ranks the means."""
        return self._pass(lambda block: table @ block[:, None], hard=True, like=table)[1]

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """Run an E-step over all cells."""
        means, dim = parameters.means, self.rows.dim
        factor, info = torch.linalg.cholesky_ex(parameters.covariances)
        sound = (info == 0) & factor.isfinite().flatten(-2).all(-1)
        eye = torch.eye(dim, dtype=means.dtype, device=means.device)
        factor = torch.where(sound[..., None, None], factor, eye)
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        self.promoted(sound, pivots.square())
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        offset = (inverse @ means[..., None]).to(self.dtype)
        log_weights = parameters.weights.clamp_min(1e-300).log()
        constant = log_weights - pivots.log().sum(-1) - 0.5 * dim * math.log(2 * math.pi)
        constant = torch.where(parameters.weights > 0, constant, constant.new_tensor(NEVER)).to(self.dtype)
        root = inverse.to(self.dtype)

        def joint(block: Tensor) -> Tensor:
            scaled = root @ block[:, None, None, 1:] - offset
            return constant[..., None] - 0.5 * scaled.square_().sum(-2)

        log_likelihood, moments = self._pass(joint, hard=False, like=constant)
        log_likelihood = log_likelihood + self.log_det
        sound = sound & (pivots.square() >= FLOAT64_SMALLEST).all(-1)
        return log_likelihood, moments, (sound | (parameters.weights <= 0)).all(-1)

    def _pass(self, scores_of, *, hard: bool, like: Tensor) -> tuple[Tensor, Moments]:  # type: ignore[no-untyped-def]
        """Log normalisers ``(B, J)`` and moments over all blocks, given a function of linear features."""
        sets, problems, components = like.shape[:3]
        dim, total = self.rows.dim, torch.zeros(sets, problems, dtype=torch.float64, device=like.device)
        sums = total.new_zeros(sets, problems, components, 1 + dim)
        squares = total.new_zeros(sets, problems, components, dim, dim)
        for block, weights in self.features():
            scores = scores_of(block.to(self.dtype))
            logs = nearest_(scores) if hard else responsibilities_(scores)
            if weights is not None:
                logs = logs * weights[:, None].to(self.dtype)
                scores = scores * weights[:, None, None].to(self.dtype)
            total += logs.sum(-1, dtype=torch.float64)
            sums += scores @ block.mT[:, None]
            y = block[:, None, None, 1:]
            squares += (scores[..., None, :] * y) @ y.mT
        return total, Moments(sums[..., 0], sums[..., 1:], squares)
