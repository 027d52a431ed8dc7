"""E-step about the components' own means: slower, for variances that are tiny against the spread of the data.

Quadratic features cancel where a component's variance is below rounding of the data's squares: a feature that is one
number in all cells of a component beside thousands elsewhere. Here differences come first, squares after.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyrosplice._mixture.em.loop import QuadraticExpectation
from pyrosplice._mixture.em.m_step import Standardization
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.sufficient_statistics import NEVER, Moments, nearest_, responsibilities_
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType

GATHER_ELEMENTS = 4_000_000
CENTERED_SMALLEST = 1e-24
"""Variance, as a share of the data's, below which rounding of the data is 1e-4 standard deviations or more."""


class CenteredExpectation(QuadraticExpectation):
    """E-step by differences from the means, float64 throughout; the features kept are 1 and y alone.

    ``standardization`` must scale features one by one: mixing them would lose the smallest in the largest.
    """

    def __init__(
        self, rows: RowBlocks, standardization: Standardization, covariance_type: CovarianceType, covariance: Tensor
    ) -> None:
        super().__init__(rows, standardization, covariance_type, covariance)
        self.dtype = torch.float64

    @property
    def _kept(self) -> CovarianceType:
        return "tied"

    def hard_moments(self, table: Tensor) -> Moments:
        """Moments, about their own means, of cells given to their nearest mean as ``table`` ranks them."""
        _, sums = self.statistics(table)
        center = sums[..., 1:] / sums[..., :1].clamp_min(1e-300)

        def ranks(y: Tensor, _gap: Tensor, _start: int) -> Tensor:
            return table[..., :1] + table[..., 1:] @ y[:, None]

        return self._pass(ranks, center, hard=True)[1]

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """Run an E-step over all cells."""
        return self.expect(parameters, None)

    def expect(
        self,
        parameters: MixtureParameters,
        log_weights: Tensor | None,
        used: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, Moments, Tensor]:
        """Run an E-step with log weights ``(M, N)`` of their own for each cell, besides the components'.

        ``used`` is called with the first cell of a block and the responsibilities ``(B, J, M, n)`` in it.
        """
        dim, covariances = self.rows.dim, parameters.covariances
        if parameters.covariance_type in ("full", "tied"):
            factor, info = torch.linalg.cholesky_ex(covariances)
            pivots = factor.diagonal(dim1=-2, dim2=-1).square()
            sound = (info == 0) & pivots.isfinite().all(-1)
            eye = torch.eye(dim, dtype=factor.dtype, device=factor.device)
            factor = torch.where(sound[..., None, None], factor, eye)
            root = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            if parameters.covariance_type == "tied":
                root, log_det, sound, pivots = (t.unsqueeze(2) for t in (root, log_det, sound, pivots))
        else:
            pivots = covariances if parameters.covariance_type == "diag" else covariances[..., None]
            sound = ((pivots > 0) & pivots.isfinite()).all(-1)
            pivots = torch.where(sound[..., None], pivots, 1.0)
            root, log_det = pivots.rsqrt()[..., None], 0.5 * pivots.expand_as(parameters.means).log().sum(-1)
        constant = parameters.weights.log().clamp_min(NEVER) - log_det - 0.5 * dim * math.log(2 * math.pi)

        def joint(_: Tensor, gap: Tensor, start: int) -> Tensor:
            scaled = root @ gap if root.shape[-1] > 1 or dim == 1 else root * gap
            scores = constant[..., None] - 0.5 * scaled.square().sum(-2)
            return scores if log_weights is None else scores + log_weights[:, start : start + gap.shape[-1]]

        log_likelihood, moments = self._pass(joint, parameters.means, used)
        sound = sound & (pivots >= CENTERED_SMALLEST).all(-1)
        return log_likelihood + self.log_det, moments, (sound | (parameters.weights <= 0)).all(-1)

    def _pass(
        self,
        scores_of: Callable[[Tensor, Tensor, int], Tensor],
        origin: Tensor,
        used: Callable[[int, Tensor], None] | None = None,
        *,
        hard: bool = False,
    ) -> tuple[Tensor, Moments]:
        """Log normalisers ``(B, J)`` and moments about ``origin`` ``(B, J, M, D)``.

        ``scores_of`` is given y ``(B, D, n)``, y less the origin ``(B, J, M, D, n)``, and the first cell's number.
        """
        kind, (sets, problems, components, dim) = self.covariance_type, origin.shape
        total, sums = origin.new_zeros(sets, problems), torch.zeros_like(origin)
        counts, squares = sums.sum(-1), _no_squares(origin, kind)
        first, step = 0, max(1, GATHER_ELEMENTS // (problems * components * dim))
        for block, weights in self.features():
            for a in range(0, block.shape[-1], step):
                y = block[:, 1:, a : a + step]
                gap = y[:, None, None] - origin[..., None]
                scores = scores_of(y, gap, first + a).clone()
                logs = nearest_(scores) if hard else responsibilities_(scores)
                if weights is not None:
                    own = weights[:, a : a + step]
                    logs, scores = logs * own[:, None], scores * own[:, None, None]
                if used is not None:
                    used(first + a, scores)
                total += logs.sum(-1)
                counts += scores.sum(-1)
                weighted = scores[..., None, :] * gap
                sums += weighted.sum(-1)
                squares += _squares(weighted, gap, kind)
            first += block.shape[-1]
        return total, Moments(counts, sums, squares, origin)


def _no_squares(origin: Tensor, kind: CovarianceType) -> Tensor:
    sets, problems, _, dim = origin.shape
    if kind == "full":
        return origin.new_zeros(*origin.shape, dim)
    return origin.new_zeros({"tied": (sets, problems, dim, dim), "diag": origin.shape}.get(kind, origin.shape[:-1]))


def _squares(weighted: Tensor, gap: Tensor, kind: CovarianceType) -> Tensor:
    """Sums over cells of the products of ``weighted`` and ``gap`` ``(B, J, M, D, n)`` that the type keeps."""
    if kind in ("full", "tied"):
        every = weighted @ gap.mT
        return every if kind == "full" else every.sum(2)
    own = (weighted * gap).sum(-1)
    return own if kind == "diag" else own.sum(-1)
