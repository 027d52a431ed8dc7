"""Stepwise EM: statistics that follow a stream of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.inference.em import QuadraticExpectation
from pyrosplice.inference.em_fit import Problem
from pyrosplice.inference.em_missing import MissingExpectation
from pyrosplice.inference.em_statistics import Moments
from pyrosplice.inference.em_update import Penalty, Standardization, maximize
from pyrosplice.inference.row_blocks import RowBlocks
from pyrosplice.models.gaussian_mixture import MixtureParameters

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
        _, moments, _ = problem.expectation(standard)
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
        log_likelihood, moments, _ = expectation(self._parameters)
        if not bool((log_likelihood.isfinite() & moments.sums.isfinite().all((-2, -1))).all()):
            raise InvalidArgumentError(
                "X: contains NaN or infinity; remove those cells, or marginalise missing values."
            )
        weight = float(rows.total_weight())
        share = (self._blocks + 1) ** -FORGETTING
        self._moments = _mixed(self._moments, _scaled(moments, 1 / weight), share)
        self._seen += weight
        self._blocks += 1
        self._parameters = maximize(_scaled(self._moments, self._seen), self._parameters, self._penalty)
        first = (torch.tensor(0), torch.tensor(0))
        return self._to_standard.backward(self._parameters).select(first), float(log_likelihood) / weight


def _scaled(moments: Moments, by: float) -> Moments:
    return replace(moments, counts=moments.counts * by, sums=moments.sums * by, squares=moments.squares * by)


def _mixed(old: Moments, new: Moments, share: float) -> Moments:
    def mix(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, share)

    return Moments(mix(old.counts, new.counts), mix(old.sums, new.sums), mix(old.squares, new.squares))
