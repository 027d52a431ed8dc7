"""Results of expression tests: p-values, fold changes and the tidy table."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._expression import contrast_tables
from pyrosplice._expression.fit_rows import describe_genes
from pyrosplice._expression.thresholds import (
    LOG,
    beyond,
    check_fold_changes,
    check_log10,
    clean_log10,
    log_of,
    log_unit,
    one_way,
    rows_within,
    tail_of,
)
from pyrosplice._hypothesis.fdr import adjust_jointly
from pyrosplice._hypothesis.independent_filter import FilterCut, cut_for_most, numbers_of
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._optimize.convergence import FitCode
from pyrosplice._representation import Described
from pyrosplice._results.layouts import GeneSymbols, symbols_of, with_symbols
from pyrosplice.errors import InvalidArgumentError, check_number, check_share, check_switches
from pyrosplice.plotting import ma, volcano
from pyrosplice.reasons import Reason, describe_reasons

Array = NDArray[np.float64]


@dataclass(repr=False)
class ExpressionTest(Described):
    """Results of one test of every gene.

    Attributes
    ----------
    gene_ids, pval, statistic : (G,)
        Names, p-values and statistics.
    effect, effect_se : (G,)
        Estimate on the scale of the predictor (of a test of several coefficients: the largest in size) and its standard
        error; None where there is none of any gene. With the link ``"log"`` it is the natural-log fold change.
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
    link : str, optional
        How means follow from the predictor: fold changes are of ``"log"`` only, and NaN elsewhere.
    is_wald : bool
        Whether the p-value is that of one estimate over its standard error, which :meth:`against_threshold` needs.
    tails : (2, G), optional
        P-values of the alternatives that the second group is higher, and lower, of other tests that have them.
    kept : FilterCut, optional
        Which genes q-values are of, and the cut they are above: :meth:`filtered`.
    name, groupby, reference, method : str
        What was compared, between what, against what and how, as tables and files say it.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> test = de.test.t_test(adata, "group")
    >>> test.gene_ids.tolist(), test.qval < 0.05
    (['gene_1', 'gene_2', 'gene_3'], array([ True, False, False]))
    >>> list(test.summary().columns[:5])
    ['gene', 'pval', 'qval', 'log2fc', 'mean']
    """

    gene_ids: NDArray[np.object_]
    pval: Array
    statistic: Array
    effect: Array
    effect_se: Array | None
    mean: Array
    fit_ended: NDArray[np.object_]
    zero_variance: NDArray[np.bool_] | None = None
    extra: dict[str, Array] = field(default_factory=dict)
    estimator: Any = None
    df: Any = None
    otherwise: Any = Reason.NOT_IDENTIFIED.value
    link: str | None = LOG
    is_wald: bool = False
    tails: Array | None = None
    kept: FilterCut | None = None
    name: str = "contrast"
    groupby: str = ""
    reference: str = ""
    method: str = ""

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
        """Benjamini–Hochberg q-values ``(G,)``; NaN where there is no p-value, or the gene was :meth:`filtered` out."""
        return adjust_jointly(self.pval if self.kept is None else np.where(self.kept.passes, self.pval, np.nan))

    @property
    def why(self) -> NDArray[np.object_]:
        """Why each gene has no result, should it have none ``(G,)``; the table's ``reason`` is "" where it has."""
        return unless_ended(self.fit_ended, self.otherwise)

    @property
    def logfc(self) -> Array:
        """Natural-log fold change ``(G,)``: :attr:`effect`, and NaN where means are no exponentials of a predictor."""
        return self.effect if self.link == LOG else np.full_like(self.effect, np.nan)

    def log_fold_change(self, base: float = math.e) -> Array:
        """Log fold change in any base ``(G,)``; positive where expression is higher in the later level.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> bool(test.log_fold_change(2.0).round()[0] == 2)  # four times as much of the first gene
        True
        """
        return self.logfc / log_of(base)

    def log2_fold_change(self) -> Array:
        """Log₂ fold change ``(G,)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> bool(test.log2_fold_change().round()[0] == 2)  # four times as much of the first gene
        True
        """
        return self.log_fold_change(2.0)

    def log10_fold_change(self) -> Array:
        """Log₁₀ fold change ``(G,)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> bool(abs(test.log10_fold_change()[0] - np.log10(4)) < 0.2)
        True
        """
        return self.log_fold_change(10.0)

    def log10_pval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ p-values, not below the threshold; undefined ones are zero.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> bool((10.0 ** test.log10_pval_clean(-4) >= 0.9999e-4).all())  # nothing is below the threshold
        True
        """
        return clean_log10(self.pval, log10_threshold)

    def log10_qval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ q-values, not below the threshold; undefined ones are zero.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> bool(test.log10_qval_clean(-4).round(6)[0] == -4)  # nothing is below the threshold
        True
        """
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

        ``effect``, ``se``, ``lower`` and ``upper`` are of the log₂ fold change, or, where means are no exponentials of
        the predictor (``log2fc`` is NaN), of the coefficient itself; ``reason`` is "" or why the p-value or
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

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> test.summary(qval_thres=0.05, fc_upper_thres=2.0)[["gene", "reason"]]
             gene reason
        0  gene_1
        """
        thresholds = {"qval_thres": qval_thres, "fc_upper_thres": fc_upper_thres, "fc_lower_thres": fc_lower_thres}
        table = frame_of(self, self.qval, level=level)
        return rows_within(table, self.link, **thresholds, mean_thres=mean_thres)

    def to_frame(
        self, *, gene_symbols: GeneSymbols = None, layout: str = "pyrosplice", level: float = 0.95
    ) -> pd.DataFrame:
        """Tabulate the test, a row a gene.

        Parameters
        ----------
        gene_symbols
            Symbols by gene, a Series such as ``adata.var["symbol"]`` or a mapping: a column ``symbol`` beside ``gene``.
        layout
            ``"pyrosplice"``: ``gene``, ``contrast``, ``mean``, ``log2fc``, ``effect``, ``se``, ``lower``, ``upper``,
            ``statistic``, ``score`` (standard normal, with the sign of the effect), ``pvalue``, ``pvalue_adj``,
            ``reason``; or ``"pertpy"``: ``variable``, ``contrast``, ``log_fc``, ``p_value``, ``adj_p_value``, the rest.
        level
            Coverage of the interval.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.wald(adata, formula_loc="~ group", factor_loc_totest="group")
        >>> symbols = {"gene_1": "CD3E", "gene_2": "ACTB", "gene_3": "GAPDH"}
        >>> test.to_frame(gene_symbols=symbols)[["gene", "symbol", "reason"]]
             gene symbol reason
        0  gene_1   CD3E
        1  gene_2   ACTB
        2  gene_3  GAPDH
        """
        frame = frame_of(self, self.qval, level=level)
        return contrast_tables.joined_contrasts([(self.name, frame)], gene_symbols=gene_symbols, layout=layout)

    def against_threshold(self, lfc_threshold: float) -> ExpressionTest:
        """Test whether the fold change exceeds a threshold, either way: the null is ``|log2fc| <= lfc_threshold``.

        The p-value is that of an estimate as far out at either end of the null, ``sf((|b| - c) / se) + sf((|b| + c) /
        se)``, as in limma's treat and for the question of DESeq2's ``greaterAbs``; with a threshold of 0 it is the test
        itself. Interval and effect stay; the statistic is the distance beyond the threshold in standard errors.

        Parameters
        ----------
        lfc_threshold
            Log₂ fold change, 0 or more.

        Raises
        ------
        InvalidArgumentError
            A test of several coefficients, or by another statistic than an estimate over its standard error; no fold
            changes; a negative threshold.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.wald(adata, formula_loc="~ group", factor_loc_totest="group")
        >>> test.against_threshold(1.0).qval < 0.05, test.against_threshold(4.0).qval < 0.05  # fourfold is 2
        (array([ True, False, False]), array([False, False, False]))
        """
        statistic, pval = beyond(self, lfc_threshold)
        extra = self.extra | {"lfc_threshold": np.full(len(pval), float(lfc_threshold))}
        return replace(self, statistic=statistic, pval=pval, extra=extra, is_wald=False)

    def one_sided(self, alternative: str, *, lfc_threshold: float = 0.0) -> ExpressionTest:
        """Test in one direction: that expression is higher (``"greater"``) or lower (``"less"``) in the later level.

        The null of ``"greater"`` is ``log2fc <= lfc_threshold``, that of ``"less"`` is ``log2fc >= -lfc_threshold``;
        p-values are one tail of the law of the two-sided test (normal or t; of rank tests with the continuity
        correction of that tail). The direction is to be chosen before the data are seen. Intervals stay two-sided; the
        table says the ``alternative``.

        Where counts are few and groups unequal the two tails of a Wald test are not alike: of 3,000 null genes with 500
        and 20 cells, mean 0.2, dispersion 0.5, 5.5 and 1.6 % were below 5 and 1 % for "higher in the 20 cells", 0.03
        and 0 % for "lower" (``"robust"``: 5.3, 1.5, 0.03, 0); with 200 and 200 cells of mean 2: 5.3, 0.7, 5.0, 1.0.
        With 6 and 6 samples of mean 50, dispersion 0.2, the Wald test's normal law is too narrow, one-sided as
        two-sided: 8.8 and 3.4, 8.0 and 3.0 % (two-sided 10.7 and 4.0); Student's t of log counts (``t_test``) has 5.2
        and 4.2 % at 5.

        Parameters
        ----------
        alternative
            ``"greater"`` or ``"less"``.
        lfc_threshold
            Log₂ fold change, 0 or more; above 0 of Wald tests only.

        Raises
        ------
        InvalidArgumentError
            A test whose statistic has no sign: of several coefficients, by likelihood ratio, score, quasi-likelihood or
            ``"cluster"``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> test.one_sided("greater").qval < 0.05, test.one_sided("less").qval < 0.05
        (array([ True, False, False]), array([False, False, False]))
        """
        statistic, pval = one_way(self, alternative, lfc_threshold)
        extra = self.extra | {"alternative": np.full(len(pval), alternative, dtype=object)}
        extra |= {"lfc_threshold": np.full(len(pval), float(lfc_threshold))} if lfc_threshold else {}
        return replace(self, statistic=statistic, pval=pval, extra=extra, is_wald=False, tails=None)

    def filtered(self, *, alpha: float = 0.05, by: Any = None) -> ExpressionTest:
        """Adjust p-values over the genes above a cut only, chosen for most discoveries (independent filtering).

        Genes of low mean have little power, and add to the tests that are corrected for. As in DESeq2 the discoveries
        at ``alpha`` are counted for 50 cuts, quantiles of ``by``, and smoothed (lowess, span 1/5); the cut is the first
        with more than the largest smoothed number less the root mean square of what is beside the curve, and the lowest
        one where no cut gives more than ten. P-values stay; q-values change, and are NaN (``filtered`` is True) below
        the cut, which ``attrs["independent_filtering"]`` of the tables has. Under the null ``by`` is to be independent
        of the p-value, as the mean over all cells is.

        Parameters
        ----------
        alpha
            The false discovery rate that will be asked for.
        by
            What to cut: ``(G,)``, or a Series by gene; :attr:`mean` by default.

        Raises
        ------
        InvalidArgumentError
            ``by`` of other genes, or not finite; a test that is filtered already.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> table = de.test.t_test(adata, "group").filtered(alpha=0.1).summary()
        >>> table["filtered"].tolist(), table.attrs["independent_filtering"]["n_filtered"]
        ([False, False, False], 0)
        """
        if self.kept is not None:
            raise InvalidArgumentError("filtered: this test is filtered already; filter the test that it was made of.")
        of = "mean" if by is None else str(getattr(by, "name", None) or "by")
        values = self.mean if by is None else numbers_of(by, self.gene_ids)
        found = copy.copy(self)
        found.kept = cut_for_most(self.pval, values, check_share("alpha", alpha), by=of)
        return found

    top_table = contrast_tables.top_table
    to_matrix = contrast_tables.to_matrix
    write = contrast_tables.write_tests

    def plot_volcano(
        self,
        *,
        corrected_pval: bool = True,
        alpha: float = 0.05,
        min_fc: float = 1.0,
        highlight_ids: Sequence[str] = (),
        log10_p_threshold: float = -30.0,
        gene_symbols: GeneSymbols = None,
        **kwargs: Any,
    ) -> Any:
        """Draw effects against evidence, q-values or p-values, by :func:`pyrosplice.plotting.volcano`.

        Genes at or below ``alpha`` with at least the fold change ``min_fc``, either way, are coloured, those of
        ``highlight_ids`` named; p-values below 10 to the ``log10_p_threshold`` are drawn there. With ``gene_symbols``
        (as in :meth:`to_frame`) these are written, and genes are still named by their identifiers.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> axes = test.plot_volcano(alpha=0.01, min_fc=1.5, highlight_ids=["gene_2"])
        >>> axes.get_xlabel()
        'log₂ fold change'
        """
        check_switches(corrected_pval=corrected_pval)
        column = "qval" if corrected_pval else "pval"
        check_log10("log10_p_threshold", log10_p_threshold)
        table, labels = _labelled(self.summary(), highlight_ids, gene_symbols)
        options = _drawn(self.link, alpha, min_fc) | labels | {"floor": 10.0**log10_p_threshold} | kwargs
        return volcano(table, pvalue=column, pvalue_adj=column, **options)

    def plot_ma(
        self,
        *,
        corrected_pval: bool = True,
        alpha: float = 0.05,
        min_fc: float = 1.0,
        highlight_ids: Sequence[str] = (),
        gene_symbols: GeneSymbols = None,
        **kwargs: Any,
    ) -> Any:
        """Draw effects against means, by :func:`pyrosplice.plotting.ma`; arguments as for :meth:`plot_volcano`.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
        >>> test = de.test.t_test(adata, "group")
        >>> axes = test.plot_ma(min_fc=1.5)
        >>> axes.get_ylabel()
        'log₂ fold change'
        """
        check_switches(corrected_pval=corrected_pval)
        table, labels = _labelled(self.summary(), highlight_ids, gene_symbols)
        options = _drawn(self.link, alpha, min_fc) | labels | {"pvalue_adj": "qval" if corrected_pval else "pval"}
        return ma(table, **options | kwargs)


def frame_of(test: ExpressionTest, qval: Array, *, level: float = 0.95) -> pd.DataFrame:
    """The table of a test with q-values ``(G,)`` that may be of more comparisons than its own."""
    tail, value, interval = tail_of(level), test.effect / log_unit(test.link), dict[str, Any]()
    if test.effect_se is not None:
        se = test.effect_se / log_unit(test.link)
        half = (stats.norm.isf(tail) if test.df is None else stats.t.isf(tail, test.df)) * se
        interval = {"se": se, "lower": value - half, "upper": value + half}
    outcome = {"statistic": test.statistic, "pvalue": test.pval, "pvalue_adj": qval, "why": test.why}
    effect, ended = None if np.isnan(value).all() else value, {"fit_ended": test.fit_ended}
    ours = TestTable(labels={}, effect=effect, **interval, **outcome, more=ended)
    log2fc = test.log2_fold_change()
    documented = documented_columns(test.gene_ids, test.pval, qval, log2fc, test.mean) | {"zero_mean": test.mean == 0}
    constant = {} if test.zero_variance is None else {"zero_variance": test.zero_variance}
    below = {} if test.kept is None else {"filtered": ~test.kept.passes}
    table = pd.DataFrame(documented | constant | test.extra | below).join(ours.to_frame())
    table.attrs |= {} if test.kept is None else {"independent_filtering": test.kept.record()}
    return table


def documented_columns(genes: Any, pval: Array, qval: Array, log2fc: Array, mean: Array) -> dict[str, Any]:
    """The columns that the documented interface has under names of its own."""
    return {"gene": genes, "pval": pval, "qval": qval, "log2fc": log2fc, "mean": mean}


def _labelled(
    table: pd.DataFrame, highlight_ids: Sequence[str], gene_symbols: GeneSymbols
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table with symbols if there are any, and which genes to name in it, by what."""
    named = [highlight_ids] if isinstance(highlight_ids, str) else list(highlight_ids)
    if gene_symbols is None:
        return table, {"names": named}
    table = with_symbols(table, gene_symbols)
    return table, {"names": [symbols_of([name], gene_symbols)[0] for name in named], "label": "symbol"}


def _drawn(link: str | None, alpha: float, min_fc: float) -> dict[str, Any]:
    """Options that volcano and MA share."""
    if check_number("min_fc", min_fc) == 0:
        raise InvalidArgumentError("min_fc: expected a positive fold change, found 0.")
    if min_fc != 1:
        check_fold_changes(link, "min_fc")
    names = {"effect": "log2fc", "effect_name": "log₂ fold change"}
    names = names if link == LOG else {"effect": "effect", "effect_name": "coefficient"}
    return {**names, "alpha": alpha, "min_effect": abs(float(np.log2(min_fc)))}
