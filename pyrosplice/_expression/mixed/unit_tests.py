"""Tests of coefficients beside random effects: Wald, ratio and score, by t and F of the units' degrees of freedom."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.tests import contrast_test, with_statistic
from pyrosplice._hypothesis.coefficients.unit_law import UnitLaw
from pyrosplice._hypothesis.coefficients.unit_statistics import (
    Reasons,
    ratio_of_units,
    ratio_tail,
    score_of_units,
    wald_tail,
)
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
METHODS = ("wald", "lrt", "score")
MOST_EXCESS = 1.2  # variance over a Poisson mean: standard errors are 10 % too small, 5 % tests reject 7 %


@dataclass(frozen=True)
class MixedResults:
    """What tests of a fit with random effects rest on.

    Attributes
    ----------
    fit, constraints, law
        Estimates, how all coefficients follow from the free ones, and laws of contrasts of these.
    genes, mean
        Names of the genes and mean of each.
    estimator
        The estimator; None of a loaded model, which has Wald tests.
    """

    fit: GlmFit
    constraints: Constraints
    law: UnitLaw
    genes: NDArray[np.object_]
    mean: Array
    estimator: MixedEstimator | None = None

    def test(self, rows: Array, method: str, df: DfRule | float) -> ExpressionTest:
        """Test contrasts ``(k, P)`` of all location coefficients, as :meth:`pyrosplice.ExpressionGLM.test` says."""
        if method not in METHODS:
            raise InvalidArgumentError(
                f"method: expected one of {METHODS}, found {method!r}; the random effects are in the formula."
            )
        free = rows @ self.constraints.matrix
        rank = int(np.linalg.matrix_rank(free))
        if rank < len(free):
            raise InvalidArgumentError(f"contrast: expected independent rows, found {len(free)} of rank {rank}.")
        freedom, fewest = self.law.of(free, df, stacklevel=6)
        if fewest.of_observations and self.estimator is not None:
            _warn_of_poisson(self.estimator, stacklevel=6)
        robust = RobustCovariance(self.law.covariance.covariance.numpy(), freedom, (fewest.unit, fewest.n_units))
        wald = contrast_test(self.fit, self.constraints, rows, gene_ids=self.genes, mean=self.mean, robust=robust)
        wald = replace(wald, otherwise=Reason.NOT_IDENTIFIED.value)
        wald.extra.pop("grad")
        if method == "wald":
            return wald
        if self.estimator is None:
            raise NotReadyError(f"method {method!r} needs the counts, which a loaded model has not; call fit.")
        if np.abs(rows @ self.constraints.shift).any():
            raise InvalidArgumentError(f"contrast: method {method!r} takes no coefficient bound to a constant.")
        if method == "lrt":
            statistic, ended = _ratio(self.estimator, free)
            pvalue = ratio_tail(statistic, len(rows), robust.df, robust.df + fewest.spent)
        else:
            statistic, ended = _score(self.estimator, free)
            pvalue = wald_tail(statistic, len(rows), robust.df)
        return with_statistic(wald, statistic, pvalue, otherwise=ended)


def _warn_of_poisson(estimator: MixedEstimator, *, stacklevel: int) -> None:
    """Warn where cells are the units of a test whose Poisson noise is less than that of most genes."""
    excess = estimator.poisson_excess
    if excess is None or not (np.isfinite(excess).any() and np.nanmedian(excess) > MOST_EXCESS):
        return
    warnings.warn(
        f"noise_model: around donors and covariates counts vary {np.nanmedian(excess):.1f} times as much as Poisson's, "
        "in the median gene, and cells are the units of this test: too many genes are found. Use noise_model='nb', or "
        "add effects=pyrosplice.effects.Independent().",
        UserWarning,
        stacklevel=stacklevel,
    )


def _joined(parts: Iterable[tuple[Array, Reasons]]) -> tuple[Array, Reasons]:
    """Statistics of all genes, and how their fits ended, from those of blocks."""
    statistic, ended = zip(*parts, strict=True)
    return np.concatenate(statistic), np.concatenate(ended)


def _ratio(estimator: MixedEstimator, free: Array) -> tuple[Array, Reasons]:
    """Ratio statistics of all genes, in the blocks of the estimator."""
    full = estimator.maximum
    return _joined(
        ratio_of_units(estimator.problem(genes), free, full.take(torch.from_numpy(genes)))
        for genes in estimator.blocks()
    )


def _score(estimator: MixedEstimator, free: Array) -> tuple[Array, Reasons]:
    """Score statistics of all genes, in the blocks of the estimator."""
    return _joined(
        score_of_units(estimator.problem(genes), free, estimator.mixed.take(torch.from_numpy(genes)))
        for genes in estimator.blocks()
    )
