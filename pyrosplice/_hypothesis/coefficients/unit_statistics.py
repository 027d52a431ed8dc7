"""Wald, ratio and score statistics of coefficients beside random effects, and their laws by the units' freedom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pyrosplice._hypothesis.coefficients.sphericity import share_of
from pyrosplice.glmm._arrow.coefficient_score import coefficient_score
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects, log_likelihood_given
from pyrosplice.glmm._arrow.limits import supremum_log_likelihood
from pyrosplice.reasons import OPTIMA

Array = NDArray[np.float64]
Reasons = NDArray[np.object_]


def ratio_tail(statistic: Array, k: int, df: Array, in_all: Array, *, sphericity: Array | float = 1.0) -> Array:
    r"""P-values (G,) of likelihood ratios of k coefficients, by the F that they are in the balanced normal model.

    There :math:`LR = n \log(1 + k F / \nu)` exactly, where units have n degrees of freedom ``in_all`` (less
    those of the groups that they are nested in), of which ν are left beside the coefficients; χ² for infinite ν.
    """
    known = np.isfinite(df)
    with np.errstate(over="ignore", invalid="ignore"):
        f = np.expm1(statistic / in_all) * df / k
        return np.where(known, _f_tail(f, k, df, sphericity), stats.chi2.sf(statistic, k))


def wald_tail(statistic: Array, k: int, df: Array, *, sphericity: Array | float = 1.0) -> Array:
    """P-values (G,) of Wald and score statistics of k coefficients, whose k-th part is an F; χ² for infinite ``df``."""
    return np.where(np.isfinite(df), _f_tail(statistic / k, k, df, sphericity), stats.chi2.sf(statistic, k))


def _f_tail(f: Array, k: int, df: Array, sphericity: Array | float) -> Array:
    """Upper tail of F of ε k and ε ν degrees of freedom, ε the ``sphericity`` (G,) of what varies between units."""
    left = np.where(np.isfinite(df), share_of(df, sphericity), 1.0)
    return np.asarray(stats.f.sf(f, k * np.asarray(sphericity), left), dtype=np.float64)


def wald_of_units(fit: EffectsFit, rows: Array) -> Array:
    """Wald statistic ``(G,)`` that contrasts ``(k, P)`` are zero in every predictor, given the variances."""
    q = fit.coefficients.shape[2]
    whole = torch.from_numpy(np.kron(rows, np.eye(q)))
    value = torch.einsum("rp,gp->gr", whole, fit.coefficients.flatten(1)).unsqueeze(-1)
    factor, info = torch.linalg.cholesky_ex(torch.nan_to_num(whole @ fit.covariance @ whole.T))
    statistic = (value * torch.cholesky_solve(value, factor)).sum((-2, -1))
    return torch.where(info == 0, statistic, torch.nan).numpy()


def fit_without(problem: EffectsProblem, free: Array, *, restricted: bool) -> EffectsFit:
    """Fit of the model in which contrasts ``(k, P)`` of the coefficients are zero, in all predictors."""
    return fit_effects(replace(problem, design=problem.design @ scipy.linalg.null_space(free)), restricted=restricted)


def ratio_of_units(problem: EffectsProblem, free: Array, fit: EffectsFit) -> tuple[Array, Reasons]:
    """Likelihood ratios ``(G,)`` of contrasts ``(k, P)`` given the variances, and how fits ended without an optimum.

    Twice the difference of the marginal log likelihoods, each at its largest in the coefficients, variances and
    hyper-parameters those of the whole restricted ``fit``: in the balanced normal model an F of the units' degrees of
    freedom, as Wald's is. With variances of maximum likelihood, which are zero in most genes where one donor has nearly
    all cells, 6 to 10 % of genes were found at 5 % there, and 5 to 6 % in this way.
    """
    null = replace(problem, design=problem.design @ scipy.linalg.null_space(free))
    found = [log_likelihood_given(one, fit) for one in (problem, null)]
    (full, full_ended), (small, small_ended) = found
    ended = worse_of(fit.reason, full_ended, small_ended)
    statistic = np.maximum(2 * (full - small).numpy(), 0.0)
    return np.where(ended == "", statistic, np.nan), ended


def ratio_of_suprema(problem: EffectsProblem, free: Array) -> tuple[Array, Reasons]:
    """Twice the difference of suprema of log likelihoods ``(G,)``, of all parameters, and how fits ended without one.

    It is finite also where the estimate of a contrast is not.
    """
    null = replace(problem, design=problem.design @ scipy.linalg.null_space(free))
    (full, full_ended), (small, small_ended) = map(supremum_log_likelihood, (problem, null))
    ended = worse_of(full_ended, small_ended)
    return np.where(ended == "", np.maximum(2 * (full - small).numpy(), 0.0), np.nan), ended


def score_at_null(problem: EffectsProblem, free: Array) -> tuple[Array, Reasons]:
    """The score statistic ``(G,)`` of contrasts ``(k, P)``, all at the null's estimates, and how its fits ended.

    For contrasts without a finite estimate. The variance of the units has in it what is tested, and the statistic is
    bounded: by about n - 1 for n units.
    """
    null = fit_without(problem, free, restricted=True)
    coefficients = torch.einsum("fp,gpq->gfq", torch.from_numpy(scipy.linalg.null_space(free)), null.coefficients)
    found = coefficient_score(problem, coefficients, null.parameters, null.sds, null.hyper, at_maximum=False)
    return _score_statistic(free, found, worse_of(null.reason))


def score_of_units(problem: EffectsProblem, free: Array, fit: EffectsFit) -> tuple[Array, Reasons]:
    """The score statistic ``(G,)`` of contrasts ``(k, P)`` at the null's coefficients, and how fits ended.

    Variances and hyper-parameters are those of the whole restricted ``fit``: at the null's the variance of the units
    has what is tested in it, and the statistic of normal data a bound, which counts do not know of.
    """
    null = fit_without(problem, free, restricted=True)
    kept = torch.from_numpy(scipy.linalg.null_space(free))
    coefficients = torch.einsum("fp,gpq->gfq", kept, null.coefficients)
    found = coefficient_score(problem, coefficients, fit.parameters, fit.sds, fit.hyper)
    return _score_statistic(free, found, worse_of(fit.reason, null.reason))


def _score_statistic(free: Array, found: tuple[Tensor, Tensor], ended: Reasons) -> tuple[Array, Reasons]:
    """Statistics ``(G,)`` of contrasts from the score and the covariance of all coefficients."""
    score, covariance = (values.numpy() for values in found)
    rows = np.kron(free, np.eye(score.shape[1] // free.shape[1]))
    step = np.einsum("gpq,gq->gp", covariance, score) @ rows.T
    variance = rows @ covariance @ rows.T
    good = np.isfinite(step).all(1) & np.isfinite(variance).all((1, 2))
    statistic = np.full(len(step), np.nan)
    statistic[good] = (step[good] * np.linalg.solve(variance[good], step[good][..., None])[..., 0]).sum(1)
    return np.where(ended == "", statistic, np.nan), ended


def worse_of(*reasons: Sequence[str] | Reasons) -> Reasons:
    """The first of the reasons of each gene that is no optimum; "" where all are."""
    out = np.full(len(reasons[0]), "", dtype=object)
    for words in reasons:
        lost = ~np.isin(words, [reason.value for reason in OPTIMA]) & (out == "")
        out[lost] = np.asarray(words, dtype=object)[lost]
    return out
