"""Tests between groups of cells: two samples, all pairs, each against the rest, within parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.data.count_matrix import CountMatrix
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.estimators import expression_fit, expression_tests
from pyrosplice.estimators.expression_fit import Partition, cell_labels
from pyrosplice.estimators.expression_results import ExpressionTest, ExpressionTests
from pyrosplice.hypothesis.expression_statistics import Moments, group_moments, mann_whitney, welch
from pyrosplice.inference.nb_newton import FitCode

Array = NDArray[np.float64]
GROUP_TESTS = ("wald", "z-test", "lrt", "t-test", "rank")
GENES_AT_A_TIME = 256


class Groups:
    """Cells of a data set in groups: labels checked, groups sorted, data read in blocks."""

    def __init__(
        self, data: Any, grouping: Any, gene_names: Sequence[str] | None, sample_description: pd.DataFrame | None
    ) -> None:
        self.data = data
        self.counts = CountMatrix(data, gene_names=gene_names, counts=False)
        if sample_description is None and isinstance(data, ad.AnnData):
            sample_description = data.obs
        self.sample_description = sample_description
        labels = cell_labels("grouping", grouping, sample_description, self.counts.shape[0])
        self.names: list[Any] = sorted(set(labels))
        if len(self.names) < 2:
            raise InvalidArgumentError(f"grouping: expected at least two groups, found {self.names}.")
        self.index = np.array([self.names.index(v) for v in labels])

    def moments(self, index: NDArray[np.intp], n: int, *, logged: bool) -> list[Moments]:
        """Moments of the cells with ``index`` 0..n−1; log1p first where the data is not ``logged``."""
        return group_moments(self.counts.cell_blocks(), index, n, log=not logged)

    def means(self) -> Array:
        """Mean of each gene over all cells."""
        return self.moments(np.zeros_like(self.index), 1, logged=True)[0].mean

    def pair(self, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
        """Arguments of a fit on the cells of two groups, with their 0/1 column ``group``."""
        cells = np.flatnonzero(first | second)
        table = pd.DataFrame({"group": np.where(second[cells], "1", "0")})
        if self.sample_description is not None:
            rest = self.sample_description.iloc[cells].reset_index(drop=True)
            table = pd.concat([rest.drop(columns="group", errors="ignore"), table], axis=1)
        matrix = self.counts.matrix if len(cells) == len(self.index) else self.counts.matrix[cells]
        return {"data": matrix, "sample_description": table, "gene_names": list(self.counts.gene_names)}


def t_test(
    data: Any, grouping: Any, gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None, is_logged: bool = False, is_sig_zerovar: bool = True,
) -> ExpressionTest:  # fmt: skip
    """Welch's t-test of the second group's mean over the first's.

    Parameters
    ----------
    grouping
        Two groups: labels, or the column that holds them; groups in sorted order.
    is_logged
        Whether the data is on the log scale; the fold change is then the difference, else the log ratio of means.
    is_sig_zerovar
        Whether a gene that is constant in both groups at different values has p-value 0 (else NaN).
    """
    groups = _two(Groups(data, grouping, gene_names, sample_description))
    return _t_test(groups, groups.index, is_logged, is_sig_zerovar)


def _t_test(groups: Groups, index: NDArray[np.intp], is_logged: bool, is_sig_zerovar: bool) -> ExpressionTest:
    chosen = index >= 0
    blocks = ((rows, block) for rows, block in groups.counts.cell_blocks())
    first, second = group_moments(blocks, np.where(chosen, index, 2), 3)[:2]
    return moments_test(groups, first, second, is_logged, is_sig_zerovar)


def moments_test(
    groups: Groups, first: Moments, second: Moments, is_logged: bool, is_sig_zerovar: bool
) -> ExpressionTest:
    """Welch's test from the moments of two groups."""
    for moments in (first, second):
        if moments.n < 2:
            raise InvalidArgumentError(f"grouping: the t-test needs two cells a group, found {moments.n}.")
    statistic, pval, se = welch(first, second)
    constant = (first.variance == 0) & (second.variance == 0)
    differs = constant & (first.mean != second.mean)
    pval = np.where(differs & is_sig_zerovar, 0.0, np.where(constant & ~differs, 1.0, pval))
    logfc, logfc_se = _fold_change(first.mean, second.mean, is_logged, first, second)
    mean = (first.n * first.mean + second.n * second.mean) / (first.n + second.n)
    code = np.where((first.mean == 0) & (second.mean == 0), FitCode.ALL_ZERO, FitCode.CONVERGED)
    return ExpressionTest(
        groups.counts.gene_names, pval, statistic, logfc, se if is_logged else logfc_se, mean, code, constant
    )


def _fold_change(a: Array, b: Array, is_logged: bool, first: Moments, second: Moments) -> tuple[Array, Array]:
    if is_logged:
        return b - a, np.sqrt(first.variance / first.n + second.variance / second.n)
    with np.errstate(divide="ignore", invalid="ignore"):
        logfc = np.where((a == 0) & (b == 0), 0.0, np.log(b) - np.log(a))
        se = np.sqrt(first.variance / first.n / a**2 + second.variance / second.n / b**2)
    return logfc, se


def rank_test(
    data: Any, grouping: Any, gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None, is_logged: bool = False, is_sig_zerovar: bool = True,
) -> ExpressionTest:  # fmt: skip
    """Mann–Whitney rank test of the second group over the first; arguments as :func:`t_test`."""
    groups = _two(Groups(data, grouping, gene_names, sample_description))
    return _rank_test(groups, groups.index, is_logged, is_sig_zerovar)


def _rank_test(groups: Groups, index: NDArray[np.intp], is_logged: bool, is_sig_zerovar: bool) -> ExpressionTest:
    n_genes = groups.counts.shape[1]
    statistic, pval = np.empty(n_genes), np.empty(n_genes)
    for start in range(0, n_genes, GENES_AT_A_TIME):
        genes = np.arange(start, min(start + GENES_AT_A_TIME, n_genes))
        y = groups.counts.genes(genes)
        statistic[genes], pval[genes] = mann_whitney(y[:, index == 0], y[:, index == 1])
    first, second = group_moments(groups.counts.cell_blocks(), np.where(index >= 0, index, 2), 3)[:2]
    constant = (first.variance == 0) & (second.variance == 0)
    pval = np.where(constant & (first.mean != second.mean) & is_sig_zerovar, 0.0, np.where(np.isnan(pval), 1.0, pval))
    logfc, se = _fold_change(first.mean, second.mean, is_logged, first, second)
    mean = (first.n * first.mean + second.n * second.mean) / (first.n + second.n)
    code = np.where((first.mean == 0) & (second.mean == 0), FitCode.ALL_ZERO, FitCode.CONVERGED)
    return ExpressionTest(groups.counts.gene_names, pval, statistic, logfc, se, mean, code, constant)


def _two(groups: Groups) -> Groups:
    if len(groups.names) != 2:
        raise InvalidArgumentError(f"grouping: expected two groups, found {groups.names}.")
    return groups


def two_sample(
    data: Any, grouping: Any, as_numeric: Sequence[str] = (), test: str = "t-test",
    gene_names: Sequence[str] | None = None, sample_description: pd.DataFrame | None = None, **options: Any,
) -> ExpressionTest:  # fmt: skip
    """One test between two groups: ``"t-test"``, ``"rank"``, ``"wald"`` or ``"lrt"``."""
    check_option("test", test, GROUP_TESTS)
    groups = _two(Groups(data, grouping, gene_names, sample_description))
    return _between(groups, groups.index == 0, groups.index == 1, test, {"as_numeric": as_numeric, **options})


def _between(
    groups: Groups, first: NDArray[np.bool_], second: NDArray[np.bool_], test: str, options: dict[str, Any]
) -> ExpressionTest:
    options = dict(options)
    logged, zerovar = options.pop("is_logged", False), options.pop("is_sig_zerovar", True)
    index = np.where(first, 0, np.where(second, 1, -1))
    if test in ("t-test", "rank"):
        return (_t_test if test == "t-test" else _rank_test)(groups, index, logged, zerovar)
    cells = np.flatnonzero(first | second)
    for name in ("size_factors", "weights", "offsets"):
        if isinstance(options.get(name), (np.ndarray, pd.Series)):
            options[name] = np.asarray(options[name])[cells]
    options = {**options, **groups.pair(first, second)}
    if test == "lrt":
        return expression_tests.lrt(full_formula_loc="~1+group", reduced_formula_loc="~1", **options)
    return expression_tests.wald(factor_loc_totest="group", formula_loc="~1+group", **options)


def pairwise(
    data: Any, grouping: Any, as_numeric: Sequence[str] = (), test: str = "z-test", lazy: bool = False,
    gene_names: Sequence[str] | None = None, sample_description: pd.DataFrame | None = None,
    pval_correction: str = "global", **options: Any,
) -> ExpressionTests:  # fmt: skip
    """Every pair of groups.

    ``"z-test"`` fits one model with a mean a group and a common dispersion, and compares its coefficients; the other
    tests fit each pair on its own. ``lazy`` is accepted: the pairs of a z-test cost nothing once the model is fitted.
    """
    check_option("test", test, GROUP_TESTS)
    check_option("pval_correction", pval_correction, ("global", "by_test"))
    groups = Groups(data, grouping, gene_names, sample_description)
    k = len(groups.names)
    tests: dict[tuple[Any, ...], ExpressionTest] = {}
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    if test == "z-test":
        estimator = _group_means_model(groups, {"as_numeric": as_numeric, **options})
        for i, j in pairs:
            contrast = np.zeros((1, k))
            contrast[0, [i, j]] = -1.0, 1.0
            tests[groups.names[i], groups.names[j]] = expression_tests.linear_test(estimator, contrast)
    else:
        for i, j in pairs:
            tests[groups.names[i], groups.names[j]] = _between(
                groups, groups.index == i, groups.index == j, test, {"as_numeric": as_numeric, **options}
            )
    return ExpressionTests(groups.names, tests, (k, k), pval_correction)


def _group_means_model(groups: Groups, options: dict[str, Any]) -> Any:
    dmat = pd.DataFrame({str(name): (groups.index == i) * 1.0 for i, name in enumerate(groups.names)})
    return expression_fit.model(
        groups.data, dmat_loc=dmat, gene_names=list(groups.counts.gene_names),
        sample_description=groups.sample_description, **options,
    )  # fmt: skip


def versus_rest(
    data: Any, grouping: Any, as_numeric: Sequence[str] = (), test: str = "wald",
    gene_names: Sequence[str] | None = None, sample_description: pd.DataFrame | None = None,
    pval_correction: str = "global", **options: Any,
) -> ExpressionTests:  # fmt: skip
    """Every group against all other cells."""
    check_option("test", test, GROUP_TESTS)
    check_option("pval_correction", pval_correction, ("global", "by_test"))
    groups = Groups(data, grouping, gene_names, sample_description)
    options = {"as_numeric": as_numeric, **options}
    tests: dict[tuple[Any, ...], ExpressionTest] = {
        (name,): _between(groups, groups.index != i, groups.index == i, test, options)
        for i, name in enumerate(groups.names)
    }
    return ExpressionTests(groups.names, tests, (1, len(groups.names)), pval_correction)


class TestPartition(Partition):
    """Tests within each part of the cells; every method takes the arguments of the test of its name."""

    __test__ = False  # not a test of pytest's

    def _each(self, test: Any, options: dict[str, Any]) -> ExpressionTests:
        tests: dict[tuple[Any, ...], ExpressionTest] = {(part,): test(**{**some, **options}) for part, some in self}
        return ExpressionTests(self.partitions, tests, (len(self.partitions),))

    def wald(self, **options: Any) -> ExpressionTests:
        """:func:`pyrosplice.estimators.expression_tests.wald` in each part."""
        return self._each(expression_tests.wald, options)

    def lrt(self, **options: Any) -> ExpressionTests:
        """:func:`pyrosplice.estimators.expression_tests.lrt` in each part."""
        return self._each(expression_tests.lrt, options)

    def t_test(self, **options: Any) -> ExpressionTests:
        """:func:`t_test` in each part."""
        return self._each(t_test, options)

    def rank_test(self, **options: Any) -> ExpressionTests:
        """:func:`rank_test` in each part."""
        return self._each(rank_test, options)

    def two_sample(self, **options: Any) -> ExpressionTests:
        """:func:`two_sample` in each part."""
        return self._each(two_sample, options)


def partition(
    data: Any, parts: Any, gene_names: Sequence[str] | None = None, sample_description: pd.DataFrame | None = None
) -> TestPartition:
    """Divide the cells by ``parts`` for tests within each."""
    return TestPartition(data, parts, gene_names, sample_description)
