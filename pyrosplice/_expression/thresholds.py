"""Numbers by which tables of results are made and cut: bases of logarithms, coverage, thresholds."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.call_options import known_options
from pyrosplice._hypothesis.beyond_threshold import one_sided_test, threshold_test
from pyrosplice.errors import InvalidArgumentError, check_number, check_option, check_share, is_number

Array = NDArray[np.float64]
LOG = "log"  # the link with which a difference of predictors is the logarithm of a fold change
LOG_2 = math.log(2.0)
BY_ESTIMATE = ("wald", "robust", "glmm")  # methods whose p-value is of an estimate over its standard error
ALTERNATIVES = ("two-sided", "greater", "less")
THRESHOLDS = ("qval_thres", "fc_upper_thres", "fc_lower_thres", "mean_thres")


def log_of(base: Any) -> float:
    """Natural logarithm of the base of a logarithm.

    Raises
    ------
    InvalidArgumentError
        For anything but a finite number above zero other than one.
    """
    if not is_number(base) or not 0 < base < math.inf or base == 1:
        raise InvalidArgumentError(f"base: expected a positive number other than 1, found {base!r}.")
    return math.log(base)


def log_unit(link: str | None) -> float:
    """What a coefficient is divided by in a table: log₂ fold changes with the link ``"log"``, else as it is."""
    return LOG_2 if link == LOG else 1.0


def check_fold_changes(link: str | None, option: str) -> None:
    """Raise where a fold change is asked about and means are no exponentials of the predictor."""
    if link != LOG:
        raise InvalidArgumentError(
            f"{option}: a fold change exists where means are the exponential of the predictor, and those of this "
            "likelihood are not, or it does not say its mean; leave it out and use the column 'effect', the "
            "coefficient."
        )


def check_threshold(lfc_threshold: Any, alternative: Any, method: str, rows: Array, link: str | None) -> None:
    """Raise where a threshold or a direction is asked of a test that has none, before any work is done."""
    check_option("alternative", alternative, ALTERNATIVES)
    if check_number("lfc_threshold", lfc_threshold) != 0:
        check_fold_changes(link, "lfc_threshold")
    elif alternative == "two-sided":
        return
    if method not in BY_ESTIMATE or len(rows) > 1:
        asked = f"method {method!r}" if len(rows) == 1 else f"{len(rows)} coefficients together"
        option = "lfc_threshold" if lfc_threshold else "alternative"
        raise InvalidArgumentError(
            f"{option}: expected one coefficient, tested by one of {list(BY_ESTIMATE)}, found {asked}; the others "
            "are tests of no difference at all, either way. Leave it out, or choose one of these."
        )


class WaldResult(Protocol):
    """One coefficient of every gene, with standard errors and a test."""

    effect: Array
    effect_se: Array | None
    pval: Array
    statistic: Array
    df: Any
    link: str | None
    is_wald: bool
    tails: Array | None
    method: str

    @property
    def kept(self) -> object:
        """Which genes q-values are of, None for all."""


def beyond(test: WaldResult, lfc_threshold: Any) -> tuple[Array, Array]:
    """Distance beyond a log₂ fold change in standard errors, and p-value that it is not exceeded ``(G,)`` each.

    NaN where the test has no p-value; :func:`pyrosplice._hypothesis.beyond_threshold.threshold_test` is the law.

    Raises
    ------
    InvalidArgumentError
        As :meth:`pyrosplice._expression.results.ExpressionTest.against_threshold` says.
    """
    check_fold_changes(test.link, "lfc_threshold")
    threshold = LOG_2 * check_number("lfc_threshold", lfc_threshold)
    _check_unfiltered(test)
    if not test.is_wald or test.effect_se is None:
        raise InvalidArgumentError(
            "lfc_threshold: expected a test of one coefficient by its estimate over its standard error (methods "
            "'wald', 'robust' and 'glmm', Wald tests of groups and those beside random effects); ratio, score, "
            "quasi-likelihood, rank and t tests, and those of several coefficients, are of no difference at all."
        )
    statistic, pval = threshold_test(test.effect, test.effect_se, threshold, test.df)
    tested = np.isfinite(test.pval)
    return np.where(tested, statistic, np.nan), np.where(tested, pval, np.nan)


def one_way(test: WaldResult, alternative: Any, lfc_threshold: Any) -> tuple[Array, Array]:
    """Statistic and p-value of a test in one direction ``(G,)`` each; NaN where the test has no p-value.

    Raises
    ------
    InvalidArgumentError
        As :meth:`pyrosplice._expression.results.ExpressionTest.one_sided` says.
    """
    check_option("alternative", alternative, ALTERNATIVES[1:])
    threshold, greater = LOG_2 * check_number("lfc_threshold", lfc_threshold), alternative == "greater"
    _check_unfiltered(test)
    if threshold:
        check_fold_changes(test.link, "lfc_threshold")
    if test.is_wald and test.effect_se is not None:
        statistic, pval = one_sided_test(test.effect, test.effect_se, threshold, test.df, greater=greater)
    elif test.tails is not None and not threshold:
        statistic, pval = test.statistic, test.tails[0 if greater else 1]
    else:
        raise InvalidArgumentError(
            f"{'lfc_threshold' if threshold else 'alternative'}: expected a test whose statistic has a sign (an "
            "estimate over its standard error: methods 'wald', 'robust' and 'glmm', Wald tests of two groups; without "
            f"a threshold also t and rank tests), found {test.method!r}; ratio, score, quasi-likelihood and 'cluster' "
            "tests, those of several coefficients, and those that are one-sided or against a threshold already, have "
            "none."
        )
    tested = np.isfinite(test.pval)
    return np.where(tested, statistic, np.nan), np.where(tested, pval, np.nan)


def _check_unfiltered(test: WaldResult) -> None:
    """Raise where genes were filtered for other p-values than those asked for now."""
    if test.kept is not None:
        raise InvalidArgumentError(
            "filtered: the cut was chosen for the p-values of the test that was filtered; ask for the threshold or the "
            "direction first, and filter what it gives."
        )


def tail_of(level: Any) -> float:
    """Probability beyond each end of an interval of coverage ``level``."""
    return (1 - check_share("level", level)) / 2


def clean_log10(pval: Array, threshold: Any) -> Array:
    """Log₁₀ of p-values, not below ``threshold``; undefined ones are zero."""
    check_log10("log10_threshold", threshold)
    with np.errstate(divide="ignore"):
        return np.maximum(np.nan_to_num(np.log10(pval), nan=0.0, neginf=threshold), threshold)


def check_log10(name: str, threshold: Any) -> None:
    """Raise unless ``threshold`` is the logarithm of a p-value."""
    if not is_number(threshold) or not threshold <= 0:
        raise InvalidArgumentError(f"{name}: expected a number of at most 0, found {threshold!r}.")


def rows_within(table: pd.DataFrame, link: str | None, /, **thresholds: Any) -> pd.DataFrame:
    """The rows of a table of genes that are within the :data:`THRESHOLDS` given; None asks nothing.

    Raises
    ------
    InvalidArgumentError
        Thresholds that do not exist, that are no numbers, or fold changes that are not positive or do not exist
        (a ``link`` of means other than ``"log"``).
    """
    given = {n: v for n, v in known_options("summary", thresholds, THRESHOLDS, {}).items() if v is not None}
    for name, value in given.items():
        if not is_number(value) or math.isnan(value):
            raise InvalidArgumentError(f"{name}: expected a number, found {value!r}.")
        if name.startswith("fc_"):
            check_fold_changes(link, name)
        if name.startswith("fc_") and value <= 0:
            raise InvalidArgumentError(f"{name}: expected a positive fold change, found {value}.")
    keep, bounds = np.ones(len(table), dtype=bool), []
    if "qval_thres" in given:
        keep &= (table["qval"] <= given["qval_thres"]).to_numpy()
    if "mean_thres" in given:
        keep &= (table["mean"] >= given["mean_thres"]).to_numpy()
    for name, sign in (("fc_upper_thres", 1), ("fc_lower_thres", -1)):
        if name in given:
            bounds.append((sign * table["log2fc"] >= sign * np.log2(given[name])).to_numpy())
    if bounds:
        keep &= np.logical_or.reduce(bounds)
    return table[keep].reset_index(drop=True)
