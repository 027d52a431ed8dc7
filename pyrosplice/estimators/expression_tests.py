"""``test.*``: differential expression tests, from one coefficient to all pairs of groups, as documented for diffxpy.

Every function takes the arguments of :func:`pyrosplice.estimators.expression_fit.model` that it does not name itself,
by keyword.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.data.constraints import Constraints
from pyrosplice.data.expression_design import DesignMatrix
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.estimators import expression_fit
from pyrosplice.estimators.expression_estimator import Estimator
from pyrosplice.estimators.expression_results import ExpressionTest
from pyrosplice.hypothesis.expression_statistics import likelihood_ratio, wald_chi2, wald_z
from pyrosplice.inference.nb_fit import GlmFit, score_statistic
from pyrosplice.inference.nb_newton import FitCode

Array = NDArray[np.float64]
Names = str | Sequence[str]


def wald(
    data: Any, factor_loc_totest: Names | None = None, coef_to_test: Names | None = None,
    formula_loc: str | None = None, formula_scale: str | None = "~1", **fit_options: Any,
) -> ExpressionTest:  # fmt: skip
    """Wald test of location coefficients: z for one, χ² for several.

    Parameters
    ----------
    data, formula_loc, formula_scale, fit_options
        As for ``fit.model``.
    factor_loc_totest
        Factor(s) of the formula whose coefficients are tested together.
    coef_to_test
        Columns of the location design, instead of factors.

    Raises
    ------
    InvalidArgumentError
        Where neither or both are given, or they name nothing.
    """
    estimator = expression_fit.model(data, formula_loc, formula_scale, **fit_options)
    return wald_repeated(estimator, factor_loc_totest, coef_to_test)


def wald_repeated(
    det: ExpressionTest | Estimator, factor_loc_totest: Names | None = None, coef_to_test: Names | None = None
) -> ExpressionTest:
    """Wald test of other coefficients of a model that is fitted already (a result of :func:`wald`, or an estimator)."""
    estimator = det if isinstance(det, Estimator) else det.estimator
    if estimator is None:
        raise InvalidArgumentError("det: expected a result of test.wald or an estimator of fit.model.")
    tested = tested_columns(estimator.input_data.location, factor_loc_totest, coef_to_test)
    names = estimator.model.design_loc_names
    select = np.zeros((len(tested), len(names)))
    select[np.arange(len(tested)), [names.index(t) for t in tested]] = 1.0
    return linear_test(estimator, select)


def linear_test(
    estimator: Estimator, contrast: Array, *, covariance: Array | None = None, df: Any = None
) -> ExpressionTest:
    """Wald test of ``L a = 0`` for rows L ``(k, P)`` of contrasts of the full location coefficients.

    Parameters
    ----------
    covariance
        Of the free location coefficients ``(G, F, F)`` where not the inverse expected information (a sandwich, say).
    df
        Residual degrees of freedom, for t and F in place of normal and χ².
    """
    fit, data = estimator.fit, estimator.input_data
    result = contrast_test(
        fit, data.constraints_loc, contrast, gene_ids=data.counts.gene_names, mean=estimator.gene_means,
        covariance=covariance, df=df,
    )  # fmt: skip
    result.estimator = estimator
    return result


def contrast_test(
    fit: GlmFit, constraints: Constraints, contrast: Array, *, gene_ids: NDArray[np.object_], mean: Array,
    covariance: Array | None = None, df: Any = None,
) -> ExpressionTest:  # fmt: skip
    """:func:`linear_test` from its parts."""
    p = fit.n_location
    rows = contrast @ constraints.matrix
    estimate = fit.theta[:, :p] @ rows.T + contrast @ constraints.shift
    v = fit.inner_covariance if covariance is None else covariance
    inner = rows @ fit.basis.matrix[:p, :p] if covariance is None else rows
    v_l = inner @ np.nan_to_num(v, posinf=0.0) @ inner.T
    v_l[~np.isfinite(v).all((1, 2))] = np.nan
    se = np.sqrt(v_l.diagonal(axis1=1, axis2=2))
    largest = np.argmax(np.abs(np.nan_to_num(estimate)), axis=1)
    genes = np.arange(len(estimate))
    if len(rows) == 1:
        statistic, pval = wald_z(estimate[:, 0], se[:, 0], df=df)
    else:
        statistic, pval = wald_chi2(estimate, v_l, df=df)
    logfc, logfc_se = estimate[genes, largest], se[genes, largest]
    gradient = np.abs(fit.gradient[:, :p]).max(1)
    extra = {"grad": gradient, "coef_mle": logfc, "coef_sd": logfc_se, "ll": fit.log_likelihood}
    return ExpressionTest(gene_ids, pval, statistic, logfc, logfc_se, mean, fit.code, extra=extra, df=df)


def lrt(
    data: Any, full_formula_loc: str, reduced_formula_loc: str, full_formula_scale: str = "~1",
    reduced_formula_scale: str = "~1", **fit_options: Any,
) -> ExpressionTest:  # fmt: skip
    """Likelihood-ratio test of two nested models."""
    full = expression_fit.model(data, full_formula_loc, full_formula_scale, **fit_options)
    options = {**fit_options, "missing": full.input_data.cells.fitted}
    reduced = expression_fit.model(data, reduced_formula_loc, reduced_formula_scale, **options)
    _check_nested(full, reduced)
    return compare_fits(full, reduced)


def compare_fits(full: Estimator, reduced: Estimator) -> ExpressionTest:
    """Likelihood-ratio test of two estimators, the second nested in the first."""
    df = full.fit.theta.shape[1] - reduced.fit.theta.shape[1]
    statistic, pval = likelihood_ratio(full.fit.log_likelihood, reduced.fit.log_likelihood, df)
    new = [n for n in full.model.design_loc_names if n not in reduced.model.design_loc_names]
    result = wald_repeated(full, coef_to_test=new or full.model.design_loc_names[-1:])
    empty = full.fit.code == FitCode.ALL_ZERO
    result.statistic, result.pval = np.where(empty, np.nan, statistic), np.where(empty, np.nan, pval)
    return result


def _check_nested(full: Estimator, reduced: Estimator) -> None:
    for part in ("location", "scale"):
        big, small = (getattr(e.source.design, {"location": "x", "scale": "z"}[part]) for e in (full, reduced))
        residual = small - big @ np.linalg.lstsq(big, small, rcond=None)[0]
        if np.abs(residual).max() > 1e-8 * max(np.abs(small).max(), 1.0):
            raise InvalidArgumentError(f"reduced_formula: its {part} design is not nested in the full model's.")


def score(
    data: Any, factor_loc_totest: Names | None = None, coef_to_test: Names | None = None,
    formula_loc: str | None = None, formula_scale: str | None = "~1", **fit_options: Any,
) -> ExpressionTest:  # fmt: skip
    """Score test of location coefficients: only the model without them is fitted.

    The fold change is the one-step estimate from there.
    """
    inputs_of = {k: v for k, v in fit_options.items() if k not in FITTING}
    full = expression_fit.prepare(data, formula_loc=formula_loc, formula_scale=formula_scale, **inputs_of)
    if not np.array_equal(full.constraints_loc.matrix, np.eye(len(full.location.names))):
        raise InvalidArgumentError("constraints_loc: the score test takes no constraints; use test.wald or test.lrt.")
    tested = tested_columns(full.location, factor_loc_totest, coef_to_test)
    kept = [n for n in full.location.names if n not in tested]
    if not kept:
        raise InvalidArgumentError("coef_to_test: the score test needs a coefficient that is not tested.")
    dmat = pd.DataFrame(full.location.matrix, columns=full.location.names, index=full.cells.index)
    options = {k: v for k, v in fit_options.items() if k not in ("dmat_loc", "constraints_loc")}
    options["missing"] = full.cells.fitted
    reduced = expression_fit.model(data, None, formula_scale, dmat_loc=dmat[kept], **options)
    big = Estimator(full, batch_size=fit_options.get("batch_size"))
    which = [full.location.names.index(n) for n in tested]
    where = [full.location.names.index(n) for n in kept]
    n_all = len(full.location.names)
    theta = np.zeros((len(reduced.fit.theta), n_all + reduced.fit.theta.shape[1] - len(kept)))
    theta[:, where], theta[:, n_all:] = reduced.fit.theta[:, : len(kept)], reduced.fit.theta[:, len(kept) :]
    statistic, pval, step, se = score_statistic(big.source, theta, np.array(which))
    largest, genes = np.argmax(np.abs(np.nan_to_num(step)), axis=1), np.arange(len(step))
    return ExpressionTest(
        gene_ids=full.counts.gene_names, pval=pval, statistic=statistic, logfc=step[genes, largest],
        logfc_se=se[genes, largest], mean=big.gene_means, code=reduced.fit.code, estimator=None,
    )  # fmt: skip


FITTING = ("init_a", "init_b", "batch_size", "training_strategy", "quick_scale", "dtype", "device")


def continuous_1d(
    data: Any, continuous: str, factor_loc_totest: Names | None = None, formula_loc: str | None = None,
    formula_scale: str | None = "~1", df: int = 5, test: str = "wald", spline_basis: str = "bs",
    sample_description: pd.DataFrame | None = None, as_numeric: Names = (), **fit_options: Any,
) -> ContinuousTest:  # fmt: skip
    """Test of a smooth dependence on one continuous covariate (pseudotime, space).

    Parameters
    ----------
    continuous
        Column of the covariate; it stands in ``formula_loc`` and is replaced by its spline basis.
    factor_loc_totest
        What to test, the covariate where None.
    df
        Size of the basis; ``spline_basis`` is ``"bs"`` (B-splines), ``"cr"`` (natural cubic) or ``"cc"`` (cyclic).
    test
        ``"wald"`` or ``"lrt"``.
    """
    check_option("test", test, ("wald", "lrt"))
    check_option("spline_basis", spline_basis, ("bs", "cr", "cc"))
    if df < (3 if spline_basis == "bs" else 2):
        raise InvalidArgumentError(f"df: expected at least 3 ('bs') or 2, found {df}.")
    formula = formula_loc if formula_loc is not None else f"~1+{continuous}"
    word = re.compile(rf"(?<![\w.]){re.escape(continuous)}(?![\w.])")
    if not word.search(formula):
        raise InvalidArgumentError(f"continuous: {continuous!r} does not occur in formula_loc {formula!r}.")
    basis = f"{spline_basis}({continuous}, df={df})"
    if spline_basis != "bs":
        basis = f"{spline_basis}({continuous}, df={df}, constraints='center')"
    smooth = word.sub(basis, formula)
    numeric = list(dict.fromkeys([continuous, *((as_numeric,) if isinstance(as_numeric, str) else as_numeric)]))
    factors = [factor_loc_totest] if isinstance(factor_loc_totest, str) else list(factor_loc_totest or [continuous])
    options = {"sample_description": sample_description, "as_numeric": numeric, **fit_options}
    full = expression_fit.model(data, smooth, formula_scale, **options)
    tested = tested_columns(full.input_data.location, [word.sub(basis, f) for f in factors], None)
    if test == "wald":
        result = wald_repeated(full, coef_to_test=tested)
    else:
        design = full.input_data.location
        cells = full.input_data.cells
        kept = pd.DataFrame(design.matrix, columns=design.names, index=cells.index).drop(columns=tested)
        reduced = expression_fit.model(data, None, formula_scale, dmat_loc=kept, **{**options, "missing": cells.fitted})
        result = compare_fits(full, reduced)
    columns = [full.model.design_loc_names.index(t) for t in tested]
    return ContinuousTest(**{**vars(result)}, covariate=_covariate(full, continuous), columns=np.array(columns))


class ContinuousTest(ExpressionTest):
    """A test of a smooth effect, with the fitted curve of each gene over the observed values of the covariate."""

    def __init__(self, *, covariate: Array, columns: NDArray[np.intp], **fields: Any) -> None:
        super().__init__(**fields)
        self.covariate, self.columns = covariate, columns
        low, high = self.min(), self.max()
        self.logfc = high - low
        self.logfc_se = np.full(len(self.logfc), np.nan)

    def curve(self, genes: Any = slice(None)) -> Array:
        """Log fitted effect of the covariate at each cell ``(N, g)``, other terms left out."""
        model = self.estimator.model
        return model.design_loc[:, self.columns] @ model.a[self.columns][:, genes]

    def max(self, genes: Any = slice(None)) -> Array:
        """Largest value of the curve, natural log."""
        return self.curve(genes).max(0)

    def min(self, genes: Any = slice(None)) -> Array:
        """Smallest value of the curve, natural log."""
        return self.curve(genes).min(0)

    def argmax(self, genes: Any = slice(None)) -> Array:
        """Value of the covariate where the curve is largest."""
        return self.covariate[self.curve(genes).argmax(0)]

    def argmin(self, genes: Any = slice(None)) -> Array:
        """Value of the covariate where the curve is smallest."""
        return self.covariate[self.curve(genes).argmin(0)]

    def plot_heatmap(self, gene_ids: Sequence[str], **kwargs: Any) -> Any:
        """:func:`pyrosplice.plotting.expression.heatmap` of some genes' curves."""
        from pyrosplice.plotting.expression import heatmap  # matplotlib is optional

        names = list(self.gene_ids)
        where = [names.index(g) for g in gene_ids]
        return heatmap(self.covariate, self.curve(where), list(gene_ids), **kwargs)


def _covariate(estimator: Estimator, name: str) -> Array:
    table = estimator.input_data.sample_description
    assert table is not None  # the formula was evaluated on it
    return table[name].to_numpy(dtype=np.float64)


def tested_columns(design: DesignMatrix, factors: Names | None, coefficients: Names | None) -> list[str]:
    """Columns of the location design that a test is about."""
    if (factors is None) == (coefficients is None):
        raise InvalidArgumentError("factor_loc_totest: expected either it or coef_to_test.")
    if coefficients is not None:
        names = [coefficients] if isinstance(coefficients, str) else list(coefficients)
        unknown = [n for n in names if n not in design.names]
        if unknown or not names:
            raise InvalidArgumentError(f"coef_to_test: {unknown} are not columns of the design {design.names}.")
        return names
    listed = [factors] if isinstance(factors, str) else list(factors or ())
    return list(dict.fromkeys(c for f in listed for c in design.columns_of(f)))
