"""Tests of coefficients beside random effects: Wald, ratio and score, by t and F of the units' degrees of freedom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.unit_law import UnitLaw
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.tests import contrast_test, with_statistic
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.glmm._arrow.coefficient_score import coefficient_score
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
METHODS = ("wald", "lrt", "score")
NEAREST = 1e-6  # how near a score statistic may come to its bound, which it passes where counts are far from normal


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
        robust, units = self.law.of(free, df, stacklevel=5)
        wald = contrast_test(self.fit, self.constraints, rows, gene_ids=self.genes, mean=self.mean, robust=robust)
        wald = replace(wald, otherwise=Reason.NOT_IDENTIFIED.value)
        fewest = min(units, key=lambda one: one.df)
        wald.extra.pop("grad")
        wald.extra.update(
            df=robust.df, unit=np.full(len(self.genes), fewest.unit), n_units=np.full(len(self.genes), fewest.n_units)
        )
        if method == "wald":
            return wald
        if self.estimator is None:
            raise NotReadyError(f"method {method!r} needs the counts, which a loaded model has not; call fit.")
        if np.abs(rows @ self.constraints.shift).any():
            raise InvalidArgumentError(f"contrast: method {method!r} takes no coefficient bound to a constant.")
        if method == "lrt":
            statistic, ended = _ratio(self.estimator, free)
            pvalue = ratio_tail(statistic, len(rows), robust.df, robust.df + fewest.n_units - fewest.df)
        else:
            statistic, ended = _score(self.estimator, free)
            pvalue = score_tail(statistic, len(rows), robust.df)
        return with_statistic(wald, statistic, pvalue, otherwise=ended)


def ratio_tail(statistic: Array, k: int, df: Array, n_units: Array) -> Array:
    r"""P-values (G,) of likelihood ratios of k coefficients, by the F that they are in the balanced normal model.

    There :math:`LR = n \log(1 + k F / \nu)` exactly, with n units and ν degrees of freedom; χ² for infinite ν.
    """
    known = np.isfinite(df)
    with np.errstate(over="ignore", invalid="ignore"):
        f = np.expm1(statistic / n_units) * df / k
        return np.where(known, stats.f.sf(f, k, np.where(known, df, 1.0)), stats.chi2.sf(statistic, k))


def score_tail(statistic: Array, k: int, df: Array) -> Array:
    r"""P-values (G,) of score statistics of k coefficients at restricted null fits, by the F that they are there.

    In the balanced normal model :math:`S = (\nu + k) k F / (\nu + k F)`, which is below ν + k; χ² for infinite ν.
    """
    known = np.isfinite(df)
    most = (np.where(known, df, 1.0) + k) * (1 - NEAREST)
    own = np.where(known, np.minimum(statistic, most), 0.0)
    f = own / (most / (1 - NEAREST) - own) * np.where(known, df, 1.0) / k
    pvalue = np.where(known, stats.f.sf(f, k, np.where(known, df, 1.0)), stats.chi2.sf(statistic, k))
    return np.where(np.isnan(statistic), np.nan, pvalue)


def _null_fits(estimator: MixedEstimator, free: Array, *, restricted: bool) -> list[EffectsFit]:
    """Fits of all genes under ``free @ a = 0``, in the blocks of the estimator."""
    kept = scipy.linalg.null_space(free)
    problems = (estimator.problem(genes) for genes in estimator.blocks())
    return [fit_effects(replace(p, design=p.design @ kept), restricted=restricted) for p in problems]


def _ratio(estimator: MixedEstimator, free: Array) -> tuple[Array, NDArray[np.object_]]:
    """Twice the difference of maximum log likelihoods, and how the null fits ended."""
    nulls = _null_fits(estimator, free, restricted=False)
    reduced = np.concatenate([null.log_likelihood.numpy() for null in nulls])
    full = estimator.maximum
    ended = _worse(full.reason, np.concatenate([null.reason for null in nulls]))
    statistic = np.maximum(2 * (full.log_likelihood.numpy() - reduced), 0.0)
    return np.where(ended == "", statistic, np.nan), ended


def _score(estimator: MixedEstimator, free: Array) -> tuple[Array, NDArray[np.object_]]:
    """The score statistic at the restricted null fits, and how these ended."""
    kept, parts, reasons = scipy.linalg.null_space(free), [], []
    for genes, null in zip(estimator.blocks(), _null_fits(estimator, free, restricted=True), strict=True):
        coefficients = torch.einsum("fp,gpq->gfq", torch.from_numpy(kept), null.coefficients)
        parts_of_null = null.parameters, null.sds, null.hyper
        found = coefficient_score(estimator.problem(genes), coefficients, *parts_of_null)
        score, covariance = (values.numpy() for values in found)
        step = np.einsum("gpq,gq->gp", covariance, score) @ free.T
        variance = free @ covariance @ free.T
        good = np.isfinite(step).all(1) & np.isfinite(variance).all((1, 2))
        statistic = np.full(len(genes), np.nan)
        statistic[good] = (step[good] * np.linalg.solve(variance[good], step[good][..., None])[..., 0]).sum(1)
        parts.append(statistic)
        reasons.append(null.reason)
    ended = _worse(np.concatenate(reasons))
    return np.where(ended == "", np.concatenate(parts), np.nan), ended


def _worse(*reasons: Sequence[str] | NDArray[np.object_]) -> NDArray[np.object_]:
    """The first of the reasons of each gene that is no optimum; "" where all are."""
    out = np.full(len(reasons[0]), "", dtype=object)
    for words in reasons:
        lost = ~np.isin(words, [Reason.CONVERGED.value, Reason.BOUNDARY.value]) & (out == "")
        out[lost] = np.asarray(words, dtype=object)[lost]
    return out
