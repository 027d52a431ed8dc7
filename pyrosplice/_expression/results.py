"""Results of expression tests: p-values, fold changes and the tidy table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._expression.fit_rows import describe_genes
from pyrosplice._expression.thresholds import check_log10, clean_log10, log_of, rows_within, tail_of
from pyrosplice._hypothesis.fdr import adjust_jointly
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._optimize.convergence import FitCode
from pyrosplice._representation import FDR, Described
from pyrosplice._tables.labels import label_name
from pyrosplice.errors import InvalidArgumentError, check_number, check_switches, listed
from pyrosplice.plotting import ma, volcano
from pyrosplice.reasons import Reason, describe_reasons

Array = NDArray[np.float64]
LOG_2 = float(np.log(2.0))
MOST_LISTED = 12  # comparisons in the text


@dataclass(repr=False)
class ExpressionTest(Described):
    """Results of one test of every gene.

    Attributes
    ----------
    gene_ids, pval, statistic : (G,)
        Names, p-values and statistics.
    logfc, logfc_se : (G,)
        Natural-log fold change (of a test of several coefficients: the largest in size) and its standard error; None
        where there is none of any gene.
    mean : (G,)
        Mean of the data over the cells tested.
    fit_ended : (G,)
        How the fit behind the test ended: words of :class:`~pyrosplice.reasons.Reason`.
    extra : dict
        Further columns of the table.
    df : float or (G,), optional
        Degrees of freedom of Student's t behind the interval; normal where None.
    otherwise : Reason or (G,)
        Why a result is missing, should it be, where the fit is at an optimum.
    """

    gene_ids: NDArray[np.object_]
    pval: Array
    statistic: Array
    logfc: Array
    logfc_se: Array | None
    mean: Array
    fit_ended: NDArray[np.object_]
    zero_variance: NDArray[np.bool_] | None = None
    extra: dict[str, Array] = field(default_factory=dict)
    estimator: Any = None
    df: Any = None
    otherwise: Any = Reason.NOT_IDENTIFIED.value

    def _rows(self) -> dict[str, str]:
        return {**describe_genes(self.pval, self.gene_ids), "fits": describe_reasons(self.fit_ended)}

    @property
    def model_estim(self) -> Any:
        """The estimator behind the test, by the name that the original gives it."""
        return self.estimator

    @property
    def code(self) -> NDArray[np.int64]:
        """How each fit ended, as the number that ``model_estim.error_codes`` has ``(G,)``."""
        return np.array([min(FitCode.of(Reason(word)), FitCode.FAILED) for word in self.fit_ended], dtype=np.int64)

    @property
    def qval(self) -> Array:
        """Benjamini–Hochberg q-values ``(G,)``; NaN where there is no p-value."""
        return adjust_jointly(self.pval)

    @property
    def why(self) -> NDArray[np.object_]:
        """Why each gene has no result, should it have none ``(G,)``; the table's ``reason`` is "" where it has."""
        return unless_ended(self.fit_ended, self.otherwise)

    def log_fold_change(self, base: float = math.e) -> Array:
        """Log fold change in any base ``(G,)``; positive where expression is higher in the later level."""
        return self.logfc / log_of(base)

    def log2_fold_change(self) -> Array:
        """Log₂ fold change ``(G,)``."""
        return self.log_fold_change(2.0)

    def log10_fold_change(self) -> Array:
        """Log₁₀ fold change ``(G,)``."""
        return self.log_fold_change(10.0)

    def log10_pval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ p-values, not below the threshold; undefined ones are zero."""
        return clean_log10(self.pval, log10_threshold)

    def log10_qval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ q-values, not below the threshold; undefined ones are zero."""
        return clean_log10(self.qval, log10_threshold)

    def summary(
        self,
        qval_thres: float | None = None,
        fc_upper_thres: float | None = None,
        fc_lower_thres: float | None = None,
        mean_thres: float | None = None,
        *,
        level: float = 0.95,
    ) -> pd.DataFrame:
        """Table with one row a gene, the documented columns first.

        ``effect``, ``se``, ``lower`` and ``upper`` are of the log₂ fold change; ``reason`` is "" or why the p-value or
        the standard error is missing or infinite, ``fit_ended`` how the fit behind the test ended: words of
        :class:`~pyrosplice.reasons.Reason`.

        Parameters
        ----------
        qval_thres, mean_thres
            Keep genes with at most this q-value, at least this mean.
        fc_upper_thres, fc_lower_thres
            Keep genes whose fold change (not its log) is at least, or at most, this; with both, either.
        level
            Coverage of the interval of the fold change.
        """
        thresholds = {"qval_thres": qval_thres, "fc_upper_thres": fc_upper_thres, "fc_lower_thres": fc_lower_thres}
        return rows_within(frame_of(self, self.qval, level=level), **thresholds, mean_thres=mean_thres)

    def plot_volcano(
        self,
        *,
        corrected_pval: bool = True,
        alpha: float = 0.05,
        min_fc: float = 1.0,
        highlight_ids: Sequence[str] = (),
        log10_p_threshold: float = -30.0,
        **kwargs: Any,
    ) -> Any:
        """Draw effects against evidence, q-values or p-values, by :func:`pyrosplice.plotting.volcano`.

        Genes at or below ``alpha`` with at least the fold change ``min_fc``, either way, are coloured, those of
        ``highlight_ids`` named; p-values below 10 to the ``log10_p_threshold`` are drawn there.
        """
        check_switches(corrected_pval=corrected_pval)
        column = "qval" if corrected_pval else "pval"
        check_log10("log10_p_threshold", log10_p_threshold)
        options = {**_drawn(alpha, min_fc, highlight_ids), "floor": 10.0**log10_p_threshold, **kwargs}
        return volcano(self.summary(), pvalue=column, pvalue_adj=column, **options)

    def plot_ma(
        self,
        *,
        corrected_pval: bool = True,
        alpha: float = 0.05,
        min_fc: float = 1.0,
        highlight_ids: Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Draw effects against means, by :func:`pyrosplice.plotting.ma`; arguments as for :meth:`plot_volcano`."""
        check_switches(corrected_pval=corrected_pval)
        options = {"pvalue_adj": "qval" if corrected_pval else "pval", **_drawn(alpha, min_fc, highlight_ids)}
        return ma(self.summary(), **{**options, **kwargs})


def frame_of(test: ExpressionTest, qval: Array, *, level: float = 0.95) -> pd.DataFrame:
    """The table of a test with q-values ``(G,)`` that may be of more comparisons than its own."""
    tail, lfc, interval = tail_of(level), test.log2_fold_change(), dict[str, Any]()
    if test.logfc_se is not None:
        se = test.logfc_se / LOG_2
        half = (stats.norm.isf(tail) if test.df is None else stats.t.isf(tail, test.df)) * se
        interval = {"se": se, "lower": lfc - half, "upper": lfc + half}
    outcome = {"statistic": test.statistic, "pvalue": test.pval, "pvalue_adj": qval, "why": test.why}
    effect, ended = None if np.isnan(lfc).all() else lfc, {"fit_ended": test.fit_ended}
    ours = TestTable(labels={}, effect=effect, **interval, **outcome, more=ended)
    documented = _documented(test.gene_ids, test.pval, qval, lfc, test.mean) | {"zero_mean": test.mean == 0}
    constant = {} if test.zero_variance is None else {"zero_variance": test.zero_variance}
    return pd.DataFrame(documented | constant | test.extra).join(ours.to_frame())


def _documented(genes: Any, pval: Array, qval: Array, log2fc: Array, mean: Array) -> dict[str, Any]:
    """The columns that the documented interface has under names of its own."""
    return {"gene": genes, "pval": pval, "qval": qval, "log2fc": log2fc, "mean": mean}


def _drawn(alpha: float, min_fc: float, highlight_ids: Sequence[str]) -> dict[str, Any]:
    """Options that volcano and MA share."""
    if check_number("min_fc", min_fc) == 0:
        raise InvalidArgumentError("min_fc: expected a positive fold change, found 0.")
    named = [highlight_ids] if isinstance(highlight_ids, str) else list(highlight_ids)
    names = {"effect": "log2fc", "effect_name": "log₂ fold change"}
    return {**names, "alpha": alpha, "min_effect": abs(float(np.log2(min_fc))), "names": named}


@dataclass(repr=False)
class ExpressionTests(Described):
    """Tests of every gene for several comparisons, all against all or each on its own.

    Attributes
    ----------
    groups : list
        Groups (or parts) compared.
    tests : dict
        One :class:`ExpressionTest` a comparison: key (group1, group2), or (group,).
    shape : tuple
        Shape of the arrays before genes: (K, K), (1, K) or (K,).
    mean : (G,)
        Mean of the data over the cells of all groups.
    pval_correction : str
        ``"global"`` over all comparisons at once, or ``"by_test"``.
    """

    groups: list[Any]
    tests: dict[tuple[Any, ...], ExpressionTest]
    shape: tuple[int, ...]
    mean: Array
    pval_correction: str = "global"

    @property
    def gene_ids(self) -> NDArray[np.object_]:
        """Names of the genes."""
        return next(iter(self.tests.values())).gene_ids

    def _rows(self) -> dict[str, str]:
        correction = "all comparisons at once" if self.pval_correction == "global" else "each comparison on its own"
        corrected = self.qval
        found = {key: corrected[self._place(key)] <= FDR for key in self.tests}
        words = [f"{' : '.join(map(str, key))} ({int(which.sum())})" for key, which in found.items()]
        listed = ", ".join(words[:MOST_LISTED]) + (", …" if len(words) > MOST_LISTED else "")
        return {"tested": f"{len(self.gene_ids)} genes", f"found at FDR {FDR:.0%}": listed, "corrected": correction}

    def _place(self, key: tuple[Any, ...]) -> tuple[int, ...]:
        at = tuple(self.groups.index(k) for k in key)
        return (0, *at) if len(at) == 1 and len(self.shape) == 2 else at

    @property
    def model_estim(self) -> Any:
        """The estimator behind all comparisons where one model was fitted for them, else None."""
        estimators = {id(test.estimator): test.estimator for test in self.tests.values()}
        return next(iter(estimators.values())) if len(estimators) == 1 else None

    def _array(self, values: dict[tuple[Any, ...], Array], diagonal: Any, flip: float) -> Array:
        out = np.empty((*self.shape, len(self.gene_ids)))
        out[:] = diagonal
        for key, value in values.items():
            at = self._place(key)
            out[at] = value
            if len(key) == 2:
                out[at[::-1]] = flip * value
        return out

    @property
    def _diagonal(self) -> Array:
        """P-value of a group against itself: one, and NaN for genes that no comparison tests."""
        return np.where(np.isnan([test.pval for test in self.tests.values()]).all(0), np.nan, 1.0)

    @property
    def pval(self) -> Array:
        """P-values, ``shape + (G,)``; one on the diagonal of all-against-all, NaN for genes without counts."""
        return self._array({key: test.pval for key, test in self.tests.items()}, self._diagonal, 1.0)

    @property
    def qval(self) -> Array:
        """q-values, ``shape + (G,)``, corrected once for each comparison made."""
        raw = np.stack([test.pval for test in self.tests.values()])
        corrected = adjust_jointly(raw) if self.pval_correction == "global" else [adjust_jointly(row) for row in raw]
        return self._array(dict(zip(self.tests, corrected, strict=True)), self._diagonal, 1.0)

    def log_fold_change(self, base: float = math.e) -> Array:
        """Log fold changes, ``shape + (G,)``: entry (i, j) is group j over group i."""
        return self._array({key: test.logfc for key, test in self.tests.items()}, 0.0, -1.0) / log_of(base)

    def log2_fold_change(self) -> Array:
        """Log₂ fold changes, ``shape + (G,)``."""
        return self.log_fold_change(2.0)

    def log10_fold_change(self) -> Array:
        """Log₁₀ fold changes, ``shape + (G,)``."""
        return self.log_fold_change(10.0)

    def log10_pval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ p-values, not below the threshold; undefined ones are zero."""
        return clean_log10(self.pval, log10_threshold)

    def log10_qval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ q-values, not below the threshold; undefined ones are zero."""
        return clean_log10(self.qval, log10_threshold)

    def _index(self, group: Any) -> int:
        """Place of a group, given by its label or by the label's text."""
        if np.ndim(group) == 0 and group in self.groups:
            return self.groups.index(group)
        text = [label_name(g) for g in self.groups]
        if isinstance(group, str) and group in text:
            return text.index(group)
        raise InvalidArgumentError(f"group: expected one of {listed(self.groups)}, found {group!r}.")

    def _indices(self, groups: Any) -> list[int]:
        if groups is None:
            return list(range(len(self.groups)))
        several = isinstance(groups, (list, tuple, set, np.ndarray, pd.Index, pd.Series))
        return [self._index(g) for g in (groups if several else [groups])]

    def _pick(self, values: Array, groups0: Any, groups1: Any) -> Array:
        if len(self.shape) != 2 or self.shape[0] == 1:
            raise InvalidArgumentError("groups0: pairs of groups exist for pairwise tests only.")
        return values[np.ix_(self._indices(groups0), self._indices(groups1))]

    def pval_pairs(self, groups0: Any = None, groups1: Any = None) -> Array:
        """P-values of pairs of groups."""
        return self._pick(self.pval, groups0, groups1)

    def qval_pairs(self, groups0: Any = None, groups1: Any = None) -> Array:
        """q-values of pairs of groups, those of the whole family of comparisons."""
        return self._pick(self.qval, groups0, groups1)

    def log10_pval_pairs_clean(self, groups0: Any = None, groups1: Any = None, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ p-values of pairs of groups, not below the threshold, undefined ones zero; flat as in the original."""
        return clean_log10(self.pval_pairs(groups0, groups1), log10_threshold).ravel()

    def log10_qval_pairs_clean(self, groups0: Any = None, groups1: Any = None, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ q-values of pairs of groups, as :meth:`log10_pval_pairs_clean`."""
        return clean_log10(self.qval_pairs(groups0, groups1), log10_threshold).ravel()

    def log_fold_change_pairs(self, groups0: Any = None, groups1: Any = None, base: float = math.e) -> Array:
        """Log fold changes of pairs of groups: those of ``groups1`` over those of ``groups0``."""
        return self._pick(self.log_fold_change(base), groups0, groups1)

    def _of_group(self, values: Array, group: Any) -> Array:
        i = self._index(group)
        if (self.groups[i],) not in self.tests:
            raise InvalidArgumentError(f"group: {group!r} was not tested on its own; use the methods for pairs.")
        return values[(0, i) if len(self.shape) == 2 else i]

    def pval_group(self, group: Any) -> Array:
        """P-values of one group or part ``(G,)``."""
        return self._of_group(self.pval, group)

    def qval_group(self, group: Any) -> Array:
        """q-values of one group or part ``(G,)``."""
        return self._of_group(self.qval, group)

    def log_fold_change_group(self, group: Any, base: float = math.e) -> Array:
        """Log fold changes of one group or part ``(G,)``."""
        return self._of_group(self.log_fold_change(base), group)

    def summary_pair(self, group1: Any, group2: Any, **thresholds: Any) -> pd.DataFrame:
        """Table of one comparison, group 2 over group 1, with the q-values of the whole family."""
        i, j = self._index(group1), self._index(group2)
        key, turned = (self.groups[i], self.groups[j]), (self.groups[j], self.groups[i])
        if key not in self.tests and turned not in self.tests:
            raise InvalidArgumentError(f"group1: {group1!r} and {group2!r} were not compared.")
        test = self.tests[key if key in self.tests else turned]
        if key not in self.tests:
            test = replace(test, logfc=-test.logfc, statistic=-test.statistic)
        return rows_within(frame_of(test, self.qval[i, j]), **thresholds)

    def summary_pairs(self, groups0: Any = None, groups1: Any = None, **thresholds: Any) -> pd.DataFrame:
        """Table over some pairs of groups, one row a gene, as :meth:`summary`; group 1 over group 0 of each pair.

        *Differs from* the original: the q-values are those of the whole family of comparisons, whatever is picked,
        and the fold change is that of the pair with the smallest p-value.
        """
        rows, columns = self._indices(groups0), self._indices(groups1)
        self._pick(self.pval, None, None)
        pairs = [(i, j) for i in rows for j in columns if i != j]
        if not pairs:
            raise InvalidArgumentError(f"groups0: no pair of two groups among {groups0!r} and {groups1!r}.")
        return self._smallest(pairs, [f"{self.groups[i]} vs {self.groups[j]}" for i, j in pairs], thresholds)

    def summary_group(self, group: Any, **thresholds: Any) -> pd.DataFrame:
        """Table of one group or part, with the q-values of the whole family."""
        q = self.qval_group(group)
        return rows_within(frame_of(self.tests[(self.groups[self._index(group)],)], q), **thresholds)

    def summary(self, **thresholds: Any) -> pd.DataFrame:
        """Table with one row a gene: the smallest p-value over comparisons, the fold change there, and which it is."""
        places = [self._place(key) for key in self.tests]
        return self._smallest(places, [" vs ".join(str(k) for k in key) for key in self.tests], thresholds)

    def _smallest(self, places: Sequence[tuple[int, ...]], names: list[str], given: dict[str, Any]) -> pd.DataFrame:
        at = tuple(np.array(index) for index in zip(*places, strict=True))
        p, q, lfc = self.pval[at], self.qval[at], self.log2_fold_change()[at]
        best, genes = np.argmin(np.where(np.isnan(p), np.inf, p), axis=0), np.arange(p.shape[1])
        found = {"pvalue": p[best, genes], "pvalue_adj": q[best, genes], "effect": lfc[best, genes]}
        tests = {tuple(sorted(self._place(key))): test for key, test in self.tests.items()}
        why = np.stack([tests[tuple(sorted(place))].why for place in places])[best, genes]
        ours = TestTable(labels={"comparison": [names[b] for b in best]}, **found, why=why)
        documented = _documented(self.gene_ids, found["pvalue"], found["pvalue_adj"], found["effect"], self.mean)
        return rows_within(pd.DataFrame(documented).join(ours.to_frame()), **given)
