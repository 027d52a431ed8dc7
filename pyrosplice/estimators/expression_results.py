"""Results of expression tests: p-values, fold changes and the tidy table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.estimators.representation import FDR, Described, describe_codes, describe_genes
from pyrosplice.hypothesis.expression_statistics import adjust_jointly
from pyrosplice.inference.nb_newton import FitCode

Array = NDArray[np.float64]
LOG_2 = float(np.log(2.0))
MOST_LISTED = 12  # comparisons in the text


@dataclass(repr=False)
class ExpressionTest(Described):
    """One test of every gene.

    Attributes
    ----------
    gene_ids, pval, statistic : (G,)
        Names, p-values and statistics.
    logfc, logfc_se : (G,)
        Natural-log fold change (of a test of several coefficients: the largest in size) and its standard error.
    mean : (G,)
        Mean of the data over the cells tested.
    code : (G,)
        :class:`FitCode` of the fit behind the test.
    extra : dict
        Further columns of the table.
    df : float or (G,), optional
        Degrees of freedom of Student's t behind the interval; normal where None.
    """

    gene_ids: NDArray[np.object_]
    pval: Array
    statistic: Array
    logfc: Array
    logfc_se: Array
    mean: Array
    code: NDArray[np.int64]
    zero_variance: NDArray[np.bool_] | None = None
    extra: dict[str, Array] = field(default_factory=dict)
    estimator: Any = None
    df: Any = None

    def _rows(self) -> dict[str, str]:
        return {**describe_genes(self.pval, self.gene_ids), "fits": describe_codes(self.code)}

    @property
    def qval(self) -> Array:
        """Benjamini–Hochberg q-values ``(G,)``."""
        return adjust_jointly(self.pval)

    def log_fold_change(self, base: float = np.e) -> Array:
        """Log fold change in any base ``(G,)``; positive where expression is higher in the later level."""
        return self.logfc / np.log(base)

    def log2_fold_change(self) -> Array:
        """Log₂ fold change ``(G,)``."""
        return self.log_fold_change(2.0)

    def log10_fold_change(self) -> Array:
        """Log₁₀ fold change ``(G,)``."""
        return self.log_fold_change(10.0)

    def log10_pval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ p-values, not below the threshold; undefined ones are zero."""
        return _clean(self.pval, log10_threshold)

    def log10_qval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ q-values, not below the threshold; undefined ones are zero."""
        return _clean(self.qval, log10_threshold)

    def summary(
        self, qval_thres: float | None = None, fc_upper_thres: float | None = None,
        fc_lower_thres: float | None = None, mean_thres: float | None = None, *, level: float = 0.95,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a gene.

        Parameters
        ----------
        qval_thres, mean_thres
            Keep genes with at most this q-value, at least this mean.
        fc_upper_thres, fc_lower_thres
            Keep genes whose fold change (not its log) is at least, or at most, this; with both, either.
        level
            Coverage of the interval of the fold change.
        """
        tail = (1 - level) / 2
        quantile = stats.norm.isf(tail) if self.df is None else stats.t.isf(tail, self.df)
        half = quantile * self.logfc_se / LOG_2
        lfc = self.log2_fold_change()
        table = pd.DataFrame(
            {
                "gene": self.gene_ids, "pval": self.pval, "qval": self.qval, "log2fc": lfc, "mean": self.mean,
                "zero_mean": self.mean == 0, "statistic": self.statistic, "log2fc_se": self.logfc_se / LOG_2,
                "log2fc_lower": lfc - half, "log2fc_upper": lfc + half,
                "code": pd.Categorical([FitCode(c).name.lower() for c in self.code],
                                       categories=[c.name.lower() for c in FitCode]), **self.extra,
            }
        )  # fmt: skip
        if self.zero_variance is not None:
            table.insert(6, "zero_variance", self.zero_variance)
        return _filter(table, qval_thres, fc_upper_thres, fc_lower_thres, mean_thres)

    def plot_volcano(
        self, *, corrected_pval: bool = True, alpha: float = 0.05, min_fc: float = 1.0,
        highlight_ids: Sequence[str] = (), log10_p_threshold: float = -30.0, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """:func:`pyrosplice.plotting.volcano` of the table, by q-values or p-values.

        Genes at or below ``alpha`` with at least the fold change ``min_fc``, either way, are coloured, those of
        ``highlight_ids`` named; p-values below 10 to the ``log10_p_threshold`` are drawn there.
        """
        from pyrosplice.plotting import volcano  # matplotlib is optional

        column = "qval" if corrected_pval else "pval"
        options = {**_drawn(alpha, min_fc, highlight_ids), "floor": 10.0**log10_p_threshold, **kwargs}
        return volcano(self.summary(), pvalue=column, pvalue_adj=column, **options)

    def plot_ma(
        self, *, corrected_pval: bool = True, alpha: float = 0.05, min_fc: float = 1.0,
        highlight_ids: Sequence[str] = (), **kwargs: Any,
    ) -> Any:  # fmt: skip
        """:func:`pyrosplice.plotting.ma` of the table; arguments as for :meth:`plot_volcano`."""
        from pyrosplice.plotting import ma  # matplotlib is optional

        column = "qval" if corrected_pval else "pval"
        return ma(self.summary(), pvalue_adj=column, **{**_drawn(alpha, min_fc, highlight_ids), **kwargs})


def _drawn(alpha: float, min_fc: float, highlight_ids: Sequence[str]) -> dict[str, Any]:
    """Options that volcano and MA share."""
    names = {"effect": "log2fc", "effect_name": "log₂ fold change"}
    return {**names, "alpha": alpha, "min_effect": abs(float(np.log2(min_fc))), "names": list(highlight_ids)}


def _clean(pval: Array, threshold: float) -> Array:
    with np.errstate(divide="ignore"):
        return np.maximum(np.nan_to_num(np.log10(pval), nan=0.0, neginf=threshold), threshold)


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
    pval_correction : str
        ``"global"`` over all comparisons at once, or ``"by_test"``.
    """

    groups: list[Any]
    tests: dict[tuple[Any, ...], ExpressionTest]
    shape: tuple[int, ...]
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

    def _array(self, attribute: str, diagonal: float, flip: float) -> Array:
        out = np.full((*self.shape, len(self.gene_ids)), diagonal)
        for key, test in self.tests.items():
            at, value = self._place(key), getattr(test, attribute)
            out[at] = value
            if len(key) == 2:
                out[at[::-1]] = flip * value
        return out

    @property
    def pval(self) -> Array:
        """P-values, ``shape + (G,)``; one on the diagonal of all-against-all."""
        return self._array("pval", 1.0, 1.0)

    @property
    def qval(self) -> Array:
        """q-values, ``shape + (G,)``, corrected once for each comparison made."""
        keys = list(self.tests)
        raw = np.stack([self.tests[k].pval for k in keys])
        corrected = (
            adjust_jointly(raw) if self.pval_correction == "global" else np.stack([adjust_jointly(r) for r in raw])
        )
        out = np.full((*self.shape, raw.shape[1]), 1.0)
        for key, value in zip(keys, corrected, strict=True):
            at = self._place(key)
            out[at] = value
            if len(key) == 2:
                out[at[::-1]] = value
        return out

    def log_fold_change(self, base: float = np.e) -> Array:
        """Log fold changes, ``shape + (G,)``: entry (i, j) is group j over group i."""
        return self._array("logfc", 0.0, -1.0) / np.log(base)

    def log2_fold_change(self) -> Array:
        """Log₂ fold changes, ``shape + (G,)``."""
        return self.log_fold_change(2.0)

    def _pick(self, values: Array, groups0: Any, groups1: Any) -> Array:
        if len(self.shape) != 2 or self.shape[0] == 1:
            raise InvalidArgumentError("groups0: pairs of groups exist for pairwise tests only.")
        rows, columns = (
            [self._index(g) for g in (self.groups if gs is None else gs if isinstance(gs, (list, tuple)) else [gs])]
            for gs in (groups0, groups1)
        )
        return values[np.ix_(rows, columns)]

    def _index(self, group: Any) -> int:
        if group not in self.groups:
            raise InvalidArgumentError(f"group: expected one of {self.groups}, found {group!r}.")
        return self.groups.index(group)

    def pval_pairs(self, groups0: Any = None, groups1: Any = None) -> Array:
        """P-values of pairs of groups."""
        return self._pick(self.pval, groups0, groups1)

    def qval_pairs(self, groups0: Any = None, groups1: Any = None) -> Array:
        """q-values of pairs of groups."""
        return self._pick(self.qval, groups0, groups1)

    def log_fold_change_pairs(self, groups0: Any = None, groups1: Any = None, base: float = np.e) -> Array:
        """Log fold changes of pairs of groups."""
        return self._pick(self.log_fold_change(base), groups0, groups1)

    def summary_pair(self, group1: Any, group2: Any, **thresholds: Any) -> pd.DataFrame:
        """Table of one comparison, group 2 over group 1, with the q-values of the whole family."""
        i, j = self._index(group1), self._index(group2)
        key = (group1, group2) if (group1, group2) in self.tests else (group2, group1)
        if key not in self.tests:
            raise InvalidArgumentError(f"group1: {group1!r} and {group2!r} were not compared.")
        table = self.tests[key].summary()
        if key != (group1, group2):
            table[["log2fc", "statistic"]] *= -1
            table[["log2fc_lower", "log2fc_upper"]] = -table[["log2fc_upper", "log2fc_lower"]].to_numpy()
        table["qval"] = self.qval[i, j]
        return _filter(table, **thresholds)

    def summary_group(self, group: Any, **thresholds: Any) -> pd.DataFrame:
        """Table of one group or part, with the q-values of the whole family."""
        i = self._index(group)
        if (group,) not in self.tests:
            raise InvalidArgumentError(f"group: {group!r} was not tested on its own; use summary_pair.")
        table = self.tests[(group,)].summary()
        table["qval"] = self.qval[(0, i) if len(self.shape) == 2 else i]
        return _filter(table, **thresholds)

    def summary(self, **thresholds: Any) -> pd.DataFrame:
        """One row a gene: the smallest p-value over comparisons, the fold change there, and the comparison."""
        keys: Sequence[tuple[Any, ...]] = list(self.tests)
        raw = np.stack([self.tests[k].pval for k in keys])
        best = np.argmin(np.where(np.isnan(raw), np.inf, raw), axis=0)
        at, genes = [tuple(self.groups.index(k) for k in key) for key in keys], np.arange(raw.shape[1])
        index = [(0, *a) if len(a) == 1 and len(self.shape) == 2 else a for a in at]
        q, lfc = self.qval, self.log2_fold_change()
        table = pd.DataFrame(
            {
                "gene": self.gene_ids, "pval": raw[best, genes],
                "qval": [q[(*index[b], g)] for g, b in enumerate(best)],
                "log2fc": [lfc[(*index[b], g)] for g, b in enumerate(best)],
                "mean": next(iter(self.tests.values())).mean,
                "comparison": [" vs ".join(str(k) for k in keys[b]) for b in best],
            }
        )  # fmt: skip
        return _filter(table, **thresholds)


def _filter(
    table: pd.DataFrame, qval_thres: float | None = None, fc_upper_thres: float | None = None,
    fc_lower_thres: float | None = None, mean_thres: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    keep = np.ones(len(table), bool)
    keep &= (table["qval"] <= qval_thres).to_numpy() if qval_thres is not None else True
    keep &= (table["mean"] >= mean_thres).to_numpy() if mean_thres is not None else True
    bounds = []
    for name, value, sign in (("fc_upper_thres", fc_upper_thres, 1), ("fc_lower_thres", fc_lower_thres, -1)):
        if value is not None:
            if value <= 0:
                raise InvalidArgumentError(f"{name}: expected a positive fold change, found {value}.")
            bounds.append((sign * table["log2fc"] >= sign * np.log2(value)).to_numpy())
    if bounds:
        keep &= np.logical_or.reduce(bounds)
    return table[keep].reset_index(drop=True)
