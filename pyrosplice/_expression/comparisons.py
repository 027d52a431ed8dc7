"""Results of expression tests of several comparisons: all pairs of groups, each against the rest, parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression import contrast_tables
from pyrosplice._expression.results import Array, ExpressionTest, documented_columns, frame_of
from pyrosplice._expression.thresholds import LOG, clean_log10, log_of, log_unit, rows_within
from pyrosplice._hypothesis.fdr import adjust_jointly
from pyrosplice._hypothesis.test_table import TestTable
from pyrosplice._representation import FDR, Described
from pyrosplice._results.layouts import GeneSymbols
from pyrosplice._tables.labels import comparison_name, label_name
from pyrosplice.errors import InvalidArgumentError, listed

MOST_LISTED = 12  # comparisons in the text


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
    groupby, reference, method : str
        Column that holds the groups, what they are compared with, and the test, as tables and files say it.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
    >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
    >>> tests = de.test.pairwise(adata, "type")
    >>> tests.groups, tests.shape, tests.qval.shape
    (['B', 'NK', 'T'], (3, 3), (3, 3, 3))
    >>> tests.summary()[["gene", "reason"]]
         gene reason
    0  gene_1
    1  gene_2
    2  gene_3
    """

    groups: list[Any]
    tests: dict[tuple[Any, ...], ExpressionTest]
    shape: tuple[int, ...]
    mean: Array
    pval_correction: str = "global"
    groupby: str = ""
    reference: str = ""
    method: str = ""

    @property
    def gene_ids(self) -> NDArray[np.object_]:
        """Names of the genes."""
        return next(iter(self.tests.values())).gene_ids

    @property
    def link(self) -> str | None:
        """How means follow from the predictor in every comparison; fold changes are of ``"log"`` only."""
        return next(iter(self.tests.values())).link

    def _rows(self) -> dict[str, str]:
        correction = "all comparisons at once" if self.pval_correction == "global" else "each comparison on its own"
        corrected = self.qval
        found = {key: corrected[self._place(key)] <= FDR for key in self.tests}
        words = [f"{_contrast_name(key)} ({int(which.sum())})" for key, which in found.items()]
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
        out = np.full((*self.shape, len(self.gene_ids)), np.nan)
        same = range(len(self.groups))
        out[(same, same) if len(self.shape) == 2 and self.shape[0] == len(self.groups) else ...] = diagonal
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
        """Log fold changes, ``shape + (G,)``: entry (i, j) is group j over group i.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> bool(tests.log_fold_change(2.0)[0, 2, 0].round() == 2)  # T over B, of the first gene
        True
        """
        same = 0.0 if self.link == LOG else np.nan
        return self._array({key: test.logfc for key, test in self.tests.items()}, same, -1.0) / log_of(base)

    def log2_fold_change(self) -> Array:
        """Log₂ fold changes, ``shape + (G,)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> bool(tests.log2_fold_change()[0, 2, 0].round() == 2)  # T over B, of the first gene
        True
        """
        return self.log_fold_change(2.0)

    def log10_fold_change(self) -> Array:
        """Log₁₀ fold changes, ``shape + (G,)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.log10_fold_change().shape
        (3, 3, 3)
        """
        return self.log_fold_change(10.0)

    def log10_pval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ p-values, not below the threshold; undefined ones are zero.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.log10_pval_clean(-4).shape
        (3, 3, 3)
        """
        return clean_log10(self.pval, log10_threshold)

    def log10_qval_clean(self, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ q-values, not below the threshold; undefined ones are zero.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> bool(tests.log10_qval_clean(-4)[0, 2, 0].round(6) == -4)  # nothing is below the threshold
        True
        """
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
        """P-values of pairs of groups.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.pval_pairs(["B", "NK"], ["T"]).shape  # B and NK against T
        (2, 1, 3)
        """
        return self._pick(self.pval, groups0, groups1)

    def qval_pairs(self, groups0: Any = None, groups1: Any = None) -> Array:
        """q-values of pairs of groups, those of the whole family of comparisons.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> (tests.qval_pairs(["B", "NK"], ["T"]) < 0.05)[..., 0]  # of the first gene
        array([[ True],
               [ True]])
        """
        return self._pick(self.qval, groups0, groups1)

    def log10_pval_pairs_clean(self, groups0: Any = None, groups1: Any = None, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ p-values of pairs of groups, not below the threshold, undefined ones zero; flat as in the original.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.log10_pval_pairs_clean(["B", "NK"], ["T"]).shape
        (6,)
        """
        return clean_log10(self.pval_pairs(groups0, groups1), log10_threshold).ravel()

    def log10_qval_pairs_clean(self, groups0: Any = None, groups1: Any = None, log10_threshold: float = -30.0) -> Array:
        """Log₁₀ q-values of pairs of groups, as :meth:`log10_pval_pairs_clean`.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.log10_qval_pairs_clean(["B", "NK"], ["T"]).shape
        (6,)
        """
        return clean_log10(self.qval_pairs(groups0, groups1), log10_threshold).ravel()

    def log_fold_change_pairs(self, groups0: Any = None, groups1: Any = None, base: float = math.e) -> Array:
        """Log fold changes of pairs of groups: those of ``groups1`` over those of ``groups0``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.log_fold_change_pairs(["B", "NK"], ["T"], base=2)[..., 0].round()  # T over B and over NK
        array([[2.],
               [2.]])
        """
        return self._pick(self.log_fold_change(base), groups0, groups1)

    def _of_group(self, values: Array, group: Any) -> Array:
        i = self._index(group)
        if (self.groups[i],) not in self.tests:
            raise InvalidArgumentError(f"group: {group!r} was not tested on its own; use the methods for pairs.")
        return values[(0, i) if len(self.shape) == 2 else i]

    def pval_group(self, group: Any) -> Array:
        """P-values of one group or part ``(G,)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.versus_rest(adata, "type")
        >>> tests.pval_group("T").shape
        (3,)
        """
        return self._of_group(self.pval, group)

    def qval_group(self, group: Any) -> Array:
        """q-values of one group or part ``(G,)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.versus_rest(adata, "type")
        >>> tests.qval_group("T") < 0.05
        array([ True, False, False])
        """
        return self._of_group(self.qval, group)

    def log_fold_change_group(self, group: Any, base: float = math.e) -> Array:
        """Log fold changes of one group or part ``(G,)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.versus_rest(adata, "type")
        >>> bool(tests.log_fold_change_group("T", base=2).round()[0] == 2)
        True
        """
        return self._of_group(self.log_fold_change(base), group)

    def summary_pair(self, group1: Any, group2: Any, **thresholds: Any) -> pd.DataFrame:
        """Table of one comparison, group 2 over group 1, with the q-values of the whole family.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.summary_pair("B", "T", qval_thres=0.05)[["gene", "reason"]]
             gene reason
        0  gene_1
        """
        i, j = self._index(group1), self._index(group2)
        key, turned = (self.groups[i], self.groups[j]), (self.groups[j], self.groups[i])
        if key not in self.tests and turned not in self.tests:
            raise InvalidArgumentError(f"group1: {group1!r} and {group2!r} were not compared.")
        test = self.tests[key if key in self.tests else turned]
        if key not in self.tests:
            test = replace(test, effect=-test.effect, statistic=-test.statistic)
        return rows_within(frame_of(test, self.qval[i, j]), self.link, **thresholds)

    def summary_pairs(self, groups0: Any = None, groups1: Any = None, **thresholds: Any) -> pd.DataFrame:
        """Table over some pairs of groups, one row a gene, as :meth:`summary`; group 1 over group 0 of each pair.

        *Differs from* the original: the q-values are those of the whole family of comparisons, whatever is picked,
        and the fold change is that of the pair with the smallest p-value.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.summary_pairs(["B", "NK"], ["T"], qval_thres=0.05)[["gene", "reason"]]
             gene reason
        0  gene_1
        """
        rows, columns = self._indices(groups0), self._indices(groups1)
        self._pick(self.pval, None, None)
        pairs = [(i, j) for i in rows for j in columns if i != j]
        if not pairs:
            raise InvalidArgumentError(f"groups0: no pair of two groups among {groups0!r} and {groups1!r}.")
        names = [_contrast_name((self.groups[i], self.groups[j])) for i, j in pairs]
        return self._smallest(pairs, names, thresholds)

    def summary_group(self, group: Any, **thresholds: Any) -> pd.DataFrame:
        """Table of one group or part, with the q-values of the whole family.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.versus_rest(adata, "type")
        >>> tests.summary_group("T", qval_thres=0.05)[["gene", "reason"]]
             gene reason
        0  gene_1
        """
        q = self.qval_group(group)
        return rows_within(frame_of(self.tests[(self.groups[self._index(group)],)], q), self.link, **thresholds)

    def to_frame(
        self, *, gene_symbols: GeneSymbols = None, layout: str = "pyrosplice", level: float = 0.95
    ) -> pd.DataFrame:
        """Tabulate all comparisons, a row a comparison and gene; arguments as of :meth:`ExpressionTest.to_frame`.

        ``contrast`` is the group (of tests against the rest or a reference) or ``"b vs a"``, b over a; a group whose
        own name would make that ambiguous (``"c vs a"``) stands in quotes. q-values are those of the whole family.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.to_frame().query("pvalue_adj < 0.05")[["gene", "contrast"]]
             gene contrast
        3  gene_1   T vs B
        6  gene_1  T vs NK
        """
        corrected = self.qval
        frames = [
            (_contrast_name(key), frame_of(test, corrected[self._place(key)], level=level))
            for key, test in self.tests.items()
        ]
        return contrast_tables.joined_contrasts(frames, gene_symbols=gene_symbols, layout=layout)

    def against_threshold(self, lfc_threshold: float) -> ExpressionTests:
        """Test whether fold changes exceed a threshold, as :meth:`ExpressionTest.against_threshold` does.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.pairwise(adata, "type")
        >>> tests.against_threshold(0.5).summary_pair("B", "T")["qval"] < 0.05  # more than half a log₂ fold
        0     True
        1    False
        2    False
        Name: qval, dtype: bool
        """
        return replace(self, tests={key: test.against_threshold(lfc_threshold) for key, test in self.tests.items()})

    def one_sided(self, alternative: str, *, lfc_threshold: float = 0.0) -> ExpressionTests:
        """Test every comparison in one direction, as :meth:`ExpressionTest.one_sided` does.

        Raises
        ------
        InvalidArgumentError
            All pairs of groups, of which each has both directions; tests whose statistic has no sign.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.versus_rest(adata, "type", test="t-test").one_sided("greater")
        >>> tests.to_frame().query("pvalue_adj < 0.05")[["gene", "contrast", "alternative"]]
             gene contrast alternative
        6  gene_1        T     greater
        """
        if any(len(key) == 2 for key in self.tests):
            raise InvalidArgumentError(
                "alternative: pairs of groups have two directions each, and these are all pairs; use test.two_sample "
                "for one pair, or test.versus_rest, with a reference= or against all others."
            )
        tests = {key: test.one_sided(alternative, lfc_threshold=lfc_threshold) for key, test in self.tests.items()}
        return replace(self, tests=tests)

    top_table = contrast_tables.top_table
    to_matrix = contrast_tables.to_matrix
    write = contrast_tables.write_tests

    def summary(self, **thresholds: Any) -> pd.DataFrame:
        """Table with one row a gene: the smallest p-value over comparisons, the fold change there, and which it is.

        ``comparison`` has the names of ``contrast`` in :meth:`to_frame`: ``"b vs a"`` is b over a.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
        >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
        >>> tests = de.test.versus_rest(adata, "type")
        >>> tests.summary(qval_thres=0.05).filter(["gene", "group", "comparison", "reason"])
             gene comparison reason
        0  gene_1          T
        """
        places = [self._place(key) for key in self.tests]
        return self._smallest(places, [_contrast_name(key) for key in self.tests], thresholds)

    def _smallest(self, places: Sequence[tuple[int, ...]], names: list[str], given: dict[str, Any]) -> pd.DataFrame:
        at = tuple(np.array(index) for index in zip(*places, strict=True))
        p, q, lfc = self.pval[at], self.qval[at], self.log2_fold_change()[at]
        effect = self._array({key: test.effect for key, test in self.tests.items()}, 0.0, -1.0)[at] / log_unit(
            self.link
        )
        best, genes = np.argmin(np.where(np.isnan(p), np.inf, p), axis=0), np.arange(p.shape[1])
        found = {"pvalue": p[best, genes], "pvalue_adj": q[best, genes], "effect": effect[best, genes]}
        tests = {tuple(sorted(self._place(key))): test for key, test in self.tests.items()}
        why = np.stack([tests[tuple(sorted(place))].why for place in places])[best, genes]
        ours = TestTable(labels={"comparison": [names[b] for b in best]}, **found, why=why)
        documented = documented_columns(
            self.gene_ids, found["pvalue"], found["pvalue_adj"], lfc[best, genes], self.mean
        )
        return rows_within(pd.DataFrame(documented).join(ours.to_frame()), self.link, **given)


def _contrast_name(key: tuple[Any, ...]) -> str:
    """Name of a comparison: its group, or the second of two over the first."""
    return label_name(key[0]) if len(key) == 1 else comparison_name(key[1], key[0])
