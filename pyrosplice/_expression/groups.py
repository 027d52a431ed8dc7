"""Tests between groups of cells: two samples, all pairs, each against the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression import tests as expression_tests
from pyrosplice._expression.call_options import (
    WITHOUT_EFFECT,
    defaults_of,
    known_options,
    refuse_unused,
)
from pyrosplice._expression.cell_groups import PLAIN_TESTS, GroupedCells, PlainOptions, moments_of_two, two_groups
from pyrosplice._expression.comparisons import ExpressionTests
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.size_factors import resolve_size_factors
from pyrosplice._expression.statistics import Moments, mann_whitney, welch
from pyrosplice._tables.labels import comparison_name, label_name
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches, listed
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
GENES_AT_A_TIME = 256
GROUP_TESTS = {
    "wald": "wald",
    "lrt": "lrt",
    "z-test": "z-test",
    "z_test": "z-test",
    "ztest": "z-test",
    "t-test": "t-test",
    "t_test": "t-test",
    "ttest": "t-test",
    "rank": "rank",
    "rank-test": "rank",
    "rank_test": "rank",
}
SET_HERE = ("data", "formula_loc", "dmat_loc", "dmat_scale", "constraints_loc", "gene_names", "sample_description")


PLAIN = defaults_of(PlainOptions)
FITTED = {name: value for name, value in defaults_of(expression_fit.model).items() if name not in SET_HERE} | {
    "train_args": None
}


def t_test(  # noqa: PLR0913 (a documented interface)
    data: Any,
    grouping: Any,
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    is_logged: bool = False,
    is_sig_zerovar: bool = True,
    *,
    layer: str | None = None,
    missing: str = "raise",
    **options: Any,
) -> ExpressionTest:
    """Test whether a gene's mean differs between two groups, by Welch's t-test of the second over the first.

    A gene without counts has p-value NaN, one that is constant at the same value in both groups 1.

    Parameters
    ----------
    data, gene_names, sample_description, layer
        As for ``fit.model``.
    grouping
        Two groups: labels, or the column that holds them; groups in sorted order.
    is_logged, is_sig_zerovar, options
        Options of :class:`PlainOptions`.
    missing
        ``"drop"`` leaves out cells without a label, which are an error otherwise.

    Raises
    ------
    InvalidArgumentError
        Other than two groups, a group of one cell, an unknown option.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> de.test.t_test(adata, "group").qval < 0.05
    array([ True, False, False])
    """
    options = {**options, "is_logged": is_logged, "is_sig_zerovar": is_sig_zerovar}
    plain = PlainOptions(**known_options("test.t_test", options, PLAIN))
    groups = two_groups(GroupedCells(data, grouping, gene_names, sample_description, layer=layer, missing=missing))
    return _named(_t_test(groups, groups.index, plain), grouping, groups, "t-test")


def _t_test(groups: GroupedCells, index: NDArray[np.intp], options: PlainOptions) -> ExpressionTest:
    first, second = moments_of_two(groups, index, options)
    for moments in (first, second):
        if moments.n < 2:
            raise InvalidArgumentError(f"grouping: the t-test needs two cells a group, found {moments.n}.")
    statistic, pval, se = welch(first, second)
    result = _plain_result(groups, first, second, statistic, pval, options)
    if options.is_logged:
        result.effect_se = se
    sign = np.where(np.isfinite(statistic), np.sign(statistic), np.sign(result.effect))
    return replace(result, tails=_halves(result, sign))


def _halves(test: ExpressionTest, sign: Array) -> Array:
    """P-values of the alternatives higher and lower ``(2, G)`` of a statistic of this sign, whose law is symmetric.

    A gene with one value in all cells has 1 both ways, as it has two-sided.
    """
    half = np.where((sign == 0) & np.asarray(test.zero_variance), test.pval, test.pval / 2)
    return np.stack([np.where(way * sign < 0, 1 - half, half) for way in (1, -1)])


def _plain_result(
    groups: GroupedCells, first: Moments, second: Moments, statistic: Array, pval: Array, options: PlainOptions
) -> ExpressionTest:
    """The result, with what a p-value is where a gene is constant: 1, 0 at different values, NaN without counts."""
    constant = ~(first.variance > 0) & ~(second.variance > 0)
    empty = constant & (first.mean == 0) & (second.mean == 0)
    differs = constant & (first.mean != second.mean)
    pval = np.where(differs & bool(options.is_sig_zerovar), 0.0, np.where(constant & ~differs, 1.0, pval))
    with np.errstate(divide="ignore", invalid="ignore"):
        if options.is_logged:
            logfc, se = second.mean - first.mean, np.sqrt(first.variance / first.n + second.variance / second.n)
        else:
            logfc = np.where(empty, 0.0, np.log(second.mean) - np.log(first.mean))
            parts = [m.variance / m.n / m.mean**2 for m in (first, second)]
            se = np.sqrt(parts[0] + parts[1])
    mean = (first.n * first.mean + second.n * second.mean) / (first.n + second.n)
    unseen = ((first.mean == 0) | (second.mean == 0)) & (not options.is_logged)
    ended = np.where(empty, Reason.NO_COUNTS, np.where(unseen, Reason.SEPARATED, Reason.CONVERGED)).astype(object)
    return ExpressionTest(
        groups.counts.gene_names,
        np.where(empty, np.nan, pval),
        statistic,
        logfc,
        se,
        mean,
        ended,
        constant,
        otherwise=Reason.NOT_FINITE.value,
    )


def rank_test(  # noqa: PLR0913 (a documented interface)
    data: Any,
    grouping: Any,
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    is_logged: bool = False,
    is_sig_zerovar: bool = True,
    *,
    layer: str | None = None,
    missing: str = "raise",
    **options: Any,
) -> ExpressionTest:
    """Test whether the second group's values rank above the first's (Mann–Whitney); arguments as :func:`t_test`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> de.test.rank_test(adata, "group").qval < 0.05
    array([ True, False, False])
    """
    options = {**options, "is_logged": is_logged, "is_sig_zerovar": is_sig_zerovar}
    plain = PlainOptions(**known_options("test.rank_test", options, PLAIN))
    groups = two_groups(GroupedCells(data, grouping, gene_names, sample_description, layer=layer, missing=missing))
    return _named(_rank_test(groups, groups.index, plain), grouping, groups, "rank")


def _rank_test(groups: GroupedCells, index: NDArray[np.intp], options: PlainOptions) -> ExpressionTest:
    n_genes = groups.counts.shape[1]
    factors = resolve_size_factors(options.size_factors, groups.cells)
    statistic, pval, tails = np.empty(n_genes), np.empty(n_genes), np.empty((2, n_genes))
    step = options.block[1] or GENES_AT_A_TIME
    for start in range(0, n_genes, step):
        genes = np.arange(start, min(start + step, n_genes))
        y = groups.counts.genes(genes)
        y = y if factors is None else y / factors
        statistic[genes], pval[genes], tails[:, genes] = mann_whitney(y[:, index == 0], y[:, index == 1])
    first, second = moments_of_two(groups, index, options)
    result = _plain_result(groups, first, second, statistic, pval, options)
    by_mean = _halves(result, np.nan_to_num(np.sign(result.effect)))  # what a constant gene's p-value is taken from
    return replace(result, tails=np.where(np.asarray(result.zero_variance), by_mean, tails))


def _test_name(test: Any) -> str:
    name = GROUP_TESTS.get(test.lower()) if isinstance(test, str) else None
    if name is None:
        check_option("test", test, set(GROUP_TESTS.values()))
    return str(name)


def _options(call: str, test: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a test by the name of its argument: those that it does not use are refused unless they ask nothing."""
    scale = {"formula_scale": "~1"} if test != "lrt" else {"full_formula_scale": "~1", "reduced_formula_scale": "~1"}
    fitted = {name: value for name, value in FITTED.items() if name not in ("formula_scale", "layer")} | scale
    every = fitted | PLAIN
    kept = PLAIN if test in PLAIN_TESTS else fitted
    idle = {"as_numeric"} - set(kept)  # named in the documentation of every test, though groups are never numbers
    used = known_options(call, given, set(every) - idle, {**WITHOUT_EFFECT, "as_numeric": "the groups are labels"})
    refuse_unused(
        call,
        test,
        {n: v for n, v in used.items() if n not in kept},
        every,
        f"leave it out, or choose another test among {sorted(set(GROUP_TESTS.values()))}.",
    )
    return {n: v for n, v in used.items() if n in kept and not (v is None and kept[n] is not None)}


def two_sample(  # noqa: PLR0913 (a documented interface)
    data: Any,
    grouping: Any,
    as_numeric: Sequence[str] = (),
    test: str = "t-test",
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    *,
    layer: str | None = None,
    missing: str = "raise",
    **options: Any,
) -> ExpressionTest:
    """Test every gene between two groups of cells, by a test of your choice.

    Parameters
    ----------
    data, grouping, gene_names, sample_description, layer, missing
        As for :func:`t_test`.
    as_numeric
        Columns that a ``formula_scale`` takes as numbers.
    test
        ``"t-test"``, ``"rank"``, ``"wald"`` (or ``"z-test"``, the same for two groups) or ``"lrt"``, in any case.
    options
        For ``"t-test"`` and ``"rank"`` those of :class:`PlainOptions`; for the others those of ``fit.model`` (of
        ``lrt``: ``full_formula_scale`` and ``reduced_formula_scale``).

    Raises
    ------
    InvalidArgumentError
        Other than two groups, unknown options, and options that the test does not use.

    Notes
    -----
    *Differs from* the original: ``noise_model`` need not be given for a fitted test (``"nb"``), and t and rank tests
    divide by ``size_factors``.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> de.test.two_sample(adata, "group", test="lrt").qval < 0.05
    array([ True, False, False])
    """
    test = _test_name(test)
    options = _options("test.two_sample", test, {"as_numeric": as_numeric, **options})
    groups = two_groups(GroupedCells(data, grouping, gene_names, sample_description, layer=layer, missing=missing))
    return _named(_between(groups, groups.index == 0, groups.index == 1, test, options), grouping, groups, test)


def _named(test: ExpressionTest, grouping: Any, groups: GroupedCells, method: str) -> ExpressionTest:
    """The test with what tables and files call it: the second group over the first, as of all pairs."""
    first, second = groups.names
    name = comparison_name(second, first)
    return replace(test, name=name, groupby=_grouping_name(grouping), reference=label_name(first), method=method)


def _between(
    groups: GroupedCells, first: NDArray[np.bool_], second: NDArray[np.bool_], test: str, options: dict[str, Any]
) -> ExpressionTest:
    if test in PLAIN_TESTS:
        index = np.where(first, 0, np.where(second, 1, -1))
        return (_t_test if test == "t-test" else _rank_test)(groups, index, PlainOptions(**options))
    name, arguments = groups.pair(first, second, options)
    if test == "lrt":
        return expression_tests.lrt(full_formula_loc=f"~1+{name}", reduced_formula_loc="~1", **arguments)
    return expression_tests.wald(factor_loc_totest=name, formula_loc=f"~1+{name}", **arguments)


def pairwise(  # noqa: PLR0913 (a documented interface)
    data: Any,
    grouping: Any,
    as_numeric: Sequence[str] = (),
    test: str = "z-test",
    lazy: bool = False,
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    pval_correction: str = "global",
    *,
    keep_full_test_objs: bool = True,
    layer: str | None = None,
    missing: str = "raise",
    reference: Any = None,
    **options: Any,
) -> ExpressionTests:
    """Test every pair of groups, or all against a ``reference`` group; arguments as :func:`two_sample`.

    ``"z-test"`` fits one model with a mean a group and a common dispersion, and compares its coefficients; the other
    tests fit each pair on its own. ``lazy`` and ``keep_full_test_objs`` are accepted: the pairs of a z-test cost
    nothing once the model is fitted, and the tests of all comparisons are always kept, in ``tests``.
    ``pval_correction`` is ``"global"``, over all comparisons at once, or ``"by_test"``. With a ``reference`` the pairs
    without it are not tested, and NaN.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
    >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
    >>> tests = de.test.pairwise(adata, "type")
    >>> tests.pval.shape  # group, group, gene
    (3, 3, 3)
    >>> tests.summary_pair("B", "T")["qval"] < 0.05
    0     True
    1    False
    2    False
    Name: qval, dtype: bool
    """
    test = _test_name(test)
    check_switches(lazy=lazy, keep_full_test_objs=keep_full_test_objs)
    check_option("pval_correction", pval_correction, ("global", "by_test"))
    options = _options("test.pairwise", test, {"as_numeric": as_numeric, **options})
    groups = GroupedCells(data, grouping, gene_names, sample_description, layer=layer, missing=missing)
    k = len(groups.names)
    tests: dict[tuple[Any, ...], ExpressionTest] = {}
    base = _place_of(reference, groups.names)
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    pairs = pairs if base is None else [(base, j) for j in range(k) if j != base]
    if test == "z-test":
        estimator = _group_means_model(groups, options)
        for i, j in pairs:
            contrast = np.zeros((1, k))
            contrast[0, [i, j]] = -1.0, 1.0
            tests[groups.names[i], groups.names[j]] = expression_tests.linear_test(estimator, contrast)
    else:
        for i, j in pairs:
            tests[groups.names[i], groups.names[j]] = _between(
                groups, groups.index == i, groups.index == j, test, options
            )
    tested = ExpressionTests(groups.names, tests, (k, k), groups.mean(test, options), pval_correction)
    return _described(tested, grouping, "pairs" if base is None else label_name(reference), test)


def _place_of(reference: Any, names: Sequence[Any]) -> int | None:
    """Where the reference is among the groups, by its label or the label's text; None where none is asked for.

    Raises
    ------
    InvalidArgumentError
        Another label.
    """
    if reference is None:
        return None
    found = [i for i, name in enumerate(names) if label_name(name) == label_name(reference)]
    if len(found) != 1:
        raise InvalidArgumentError(f"reference: expected one of the groups {listed(names)}, found {reference!r}.")
    return found[0]


def _described(tested: ExpressionTests, grouping: Any, reference: str, test: str) -> ExpressionTests:
    """The tests with the words that tables and files say of them."""
    return replace(tested, groupby=_grouping_name(grouping), reference=reference, method=test)


def _grouping_name(grouping: Any) -> str:
    """The column that holds the groups, by its name where it has one."""
    return grouping if isinstance(grouping, str) else str(getattr(grouping, "name", None) or "groups")


def _group_means_model(groups: GroupedCells, options: dict[str, Any]) -> Any:
    cells = np.flatnonzero(groups.index >= 0)
    arguments = groups.fit_arguments(cells, options)
    columns = {str(name): (groups.index[cells] == i) * 1.0 for i, name in enumerate(groups.names)}
    dmat = pd.DataFrame(columns, index=arguments["sample_description"].index)
    return expression_fit.model(dmat_loc=dmat, **arguments)


def versus_rest(  # noqa: PLR0913 (a documented interface)
    data: Any,
    grouping: Any,
    as_numeric: Sequence[str] = (),
    test: str = "wald",
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    pval_correction: str = "global",
    *,
    keep_full_test_objs: bool = True,
    layer: str | None = None,
    missing: str = "raise",
    reference: Any = None,
    **options: Any,
) -> ExpressionTests:
    """Test every group against all other cells, or against those of a ``reference`` group; arguments as pairwise.

    The reference group itself is not tested: its p-values are 1, its fold changes 0. Every test is of the two sets of
    cells alone, where :func:`pairwise` with ``"z-test"`` has one dispersion for all groups.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"type": np.repeat(["B", "NK", "T"], 40)})
    >>> mean = np.where((cells["type"] == "T").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)  # the first gene is higher in T cells
    >>> tests = de.test.versus_rest(adata, "type")
    >>> tests.summary_group("T")["qval"] < 0.05
    0     True
    1    False
    2    False
    Name: qval, dtype: bool
    """
    test = _test_name(test)
    check_switches(keep_full_test_objs=keep_full_test_objs)
    check_option("pval_correction", pval_correction, ("global", "by_test"))
    options = _options("test.versus_rest", test, {"as_numeric": as_numeric, **options})
    groups = GroupedCells(data, grouping, gene_names, sample_description, layer=layer, missing=missing)
    base = _place_of(reference, groups.names)

    def others(i: int) -> NDArray[np.bool_]:
        return groups.index == base if base is not None else (groups.index != i) & (groups.index >= 0)

    tests: dict[tuple[Any, ...], ExpressionTest] = {
        (name,): _between(groups, others(i), groups.index == i, test, options)
        for i, name in enumerate(groups.names)
        if i != base
    }
    shape = (1, len(groups.names))
    tested = ExpressionTests(groups.names, tests, shape, groups.mean(test, options), pval_correction)
    return _described(tested, grouping, "rest" if base is None else label_name(reference), test)
