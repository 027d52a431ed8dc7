"""Stepwise EM: statistics that follow a stream of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from pyrosplice._mixture.em.loop import QuadraticExpectation
from pyrosplice._mixture.em.m_step import Penalty, Standardization, maximize
from pyrosplice._mixture.em.missing import MissingExpectation
from pyrosplice._mixture.em.one_fit import Problem
from pyrosplice._mixture.em.row_blocks import RowBlocks, require_finite
from pyrosplice._mixture.em.sufficient_statistics import Moments
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType
from pyrosplice.errors import InvalidArgumentError

FORGETTING = 0.6


class StepwiseEM:
    """Moments per cell, moved a share (t + 1)^−0.6 of the way to those of the t-th block of cells.

    References
    ----------
    Cappé & Moulines (2009), On-line expectation–maximization algorithm for latent data models, JRSS B 71, 593–613.
    """

    def __init__(
        self,
        parameters: MixtureParameters,
        to_standard: Standardization,
        penalty: Penalty,
        moments: Moments,
        seen: float,
    ) -> None:
        self._parameters, self._to_standard, self._penalty = parameters, to_standard, penalty
        self._moments, self._seen, self._blocks = moments, seen, 1

    @classmethod
    def of(cls, problem: Problem, parameters: MixtureParameters) -> Self:
        """Go on from the fit of a first block."""
        lead = parameters.select((None, None))  # type: ignore[arg-type]
        standard = problem.standardization.forward(lead)
        _, moments, sound = problem.expectation(standard)
        _check_sound(sound)
        moments = _about_zero(moments, parameters.covariance_type)
        seen = float(problem.rows.total_weight())
        return cls(standard, problem.standardization, problem.penalty, _scaled(moments, 1 / seen), seen)

    def step(self, rows: RowBlocks, *, missing: bool) -> tuple[MixtureParameters, float]:
        """Parameters after ``rows``, and the mean log likelihood of ``rows`` before."""
        kind = self._parameters.covariance_type
        if missing:
            expectation: MissingExpectation | QuadraticExpectation = MissingExpectation(rows, self._to_standard, kind)
        else:
            mean, covariance = rows.mean_and_covariance()
            gap = (mean - self._to_standard.shift)[..., None]
            expectation = QuadraticExpectation(rows, self._to_standard, kind, covariance + gap @ gap.mT)
        log_likelihood, moments, sound = expectation(self._parameters)
        if not bool((log_likelihood.isfinite() & moments.sums.isfinite().all((-2, -1))).all()):
            for a, b in rows.spans():
                require_finite(rows.block(a, b)[0], a, allow_nan=missing)
        _check_sound(sound)
        moments = _about_zero(moments, kind)
        weight = float(rows.total_weight())
        share = (self._blocks + 1) ** -FORGETTING
        self._moments = _mixed(self._moments, _scaled(moments, 1 / weight), share)
        self._seen += weight
        self._blocks += 1
        self._parameters = maximize(_scaled(self._moments, self._seen), self._parameters, self._penalty)
        first = (torch.tensor(0), torch.tensor(0))
        return self._to_standard.backward(self._parameters).select(first), float(log_likelihood) / weight


def _check_sound(sound: Tensor) -> None:
    if not bool(sound.all()):
        raise InvalidArgumentError(
            "partial_fit: a variance is too small against the spread of the data to be followed block by block; "
            "rescale the features, or give a larger covariance_regularization."
        )


def _about_zero(moments: Moments, kind: CovarianceType) -> Moments:
    """Shift moments to be about zero, so that blocks add up."""
    origin, sums = moments.origin, moments.sums
    if origin is None:
        return moments
    shift = moments.counts[..., None] * origin
    if kind in ("full", "tied"):
        cross = sums[..., None] * origin[..., None, :]
        more = cross + cross.mT + shift[..., None] * origin[..., None, :]
        more = more if kind == "full" else more.sum(-3)
    else:
        more = (2 * sums + shift) * origin
        more = more if kind == "diag" else more.sum(-1)
    return Moments(moments.counts, sums + shift, moments.squares + more)


def _scaled(moments: Moments, by: float) -> Moments:
    return replace(moments, counts=moments.counts * by, sums=moments.sums * by, squares=moments.squares * by)


def _mixed(old: Moments, new: Moments, share: float) -> Moments:
    def mix(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, share)

    return Moments(mix(old.counts, new.counts), mix(old.sums, new.sums), mix(old.squares, new.squares))
