"""``test.*``: differential expression tests, from one coefficient to all pairs of groups, as documented for diffxpy.

Every function takes the arguments of :func:`pyrosplice._expression.fit.model` that it does not name itself,
by keyword.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression.call_options import defaults_of, known_options
from pyrosplice._expression.conditions import check_canceled
from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._expression.engine.endless_contrasts import identified_contrasts, in_span, largest_log_likelihood
from pyrosplice._expression.engine.gene_fits import GlmFit, fit_glm, score_statistic
from pyrosplice._expression.engine.row_source import RowSource
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.mixed.cell_effects import OF_EFFECTS
from pyrosplice._expression.noise_models import mean_link
from pyrosplice._expression.prepared_inputs import InputData, prepare
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.statistics import likelihood_ratio, wald_chi2, wald_z
from pyrosplice._hypothesis.test_table import unless_ended
from pyrosplice._optimize.convergence import FitCode
from pyrosplice._tables.cells import as_numbers
from pyrosplice._tables.names import by_name, text_names
from pyrosplice._tables.random_terms import split_random_terms
from pyrosplice.errors import InvalidArgumentError, listed
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
Names = str | Sequence[str]
FITTING = ("init_a", "init_b", "batch_size", "training_strategy", "train_args", "quick_scale", "dtype", "device")
FIT_OPTIONS = ({*defaults_of(expression_fit.model)} | {"train_args"}) - {"data", "formula_loc", "formula_scale"}


def wald(
    data: Any,
    factor_loc_totest: Names | None = None,
    coef_to_test: Names | None = None,
    formula_loc: str | None = None,
    formula_scale: str | None = "~1",
    **fit_options: Any,
) -> ExpressionTest:
    """Test location coefficients by estimate over standard error (Wald): z for one, χ² for several.

    A gene that is separated (no counts in a group, or a group's counts alone) has its optimum at infinity, where a
    Wald statistic says nothing: what its counts identify of the coefficients is tested, with as many degrees of
    freedom, and where that is none the p-value is NaN. :func:`lrt` and :func:`score` test such genes too. The p-value
    of a gene whose fit failed is NaN in every test.

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

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> test = de.test.wald(adata, formula_loc="~ 1 + group", factor_loc_totest="group")
    >>> test.qval < 0.05
    array([ True, False, False])
    """
    fit_options = known_options("test.wald", fit_options, FIT_OPTIONS)
    estimator = expression_fit.model(data, formula_loc, formula_scale, **fit_options)
    return wald_repeated(estimator, factor_loc_totest, coef_to_test)


def named_test(test: ExpressionTest, tested: Names | None, method: str) -> ExpressionTest:
    """The test with what tables and files call it: the factors, coefficients or column that were tested, and how."""
    name = " + ".join(text_names(tested, "factor")) or "contrast"
    return replace(test, name=name, groupby=name, method=method)


def wald_repeated(
    det: ExpressionTest | Estimator, factor_loc_totest: Names | None = None, coef_to_test: Names | None = None
) -> ExpressionTest:
    """Test other coefficients of a model that is fitted already (a result of :func:`wald`, or an estimator).

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50), "batch": np.tile(["x", "y"], 50)})
    >>> adata = simulate_expression(cells, n_genes=3, mean=5.0, seed=0)
    >>> test = de.test.wald(adata, formula_loc="~ 1 + group + batch", factor_loc_totest="group")
    >>> de.test.wald_repeated(test, factor_loc_totest="batch").pval.shape  # fitted once
    (3,)
    """
    estimator = det.estimator if isinstance(det, ExpressionTest) else det
    if not isinstance(estimator, Estimator):
        raise InvalidArgumentError("det: expected a result of test.wald or an estimator of fit.model.")
    tested = tested_columns(estimator.input_data.location, factor_loc_totest, coef_to_test)
    result = linear_test(estimator, unit_rows(tested, estimator.model.design_loc_names))
    return named_test(result, coef_to_test if factor_loc_totest is None else factor_loc_totest, "wald")


def linear_test(estimator: Estimator, contrast: Array) -> ExpressionTest:
    """Test ``L a = 0`` by Wald's statistic, for rows L ``(k, P)`` of contrasts of the full location coefficients."""
    fit, data = estimator.fit, estimator.input_data
    result = contrast_test(
        fit,
        data.constraints_loc,
        contrast,
        gene_ids=data.counts.gene_names,
        mean=estimator.gene_means,
        robust=estimator.contrast_law(contrast @ data.constraints_loc.matrix),
    )
    return replace(result, estimator=estimator, link=mean_link(data.likelihood))


def contrast_rows(design: DesignMatrix, contrast: Any, factor: Any, coefficient: Any) -> Array:
    """Rows ``(k, P)`` of a contrast, of a factor's coefficients, or of coefficients by name; exactly one is given."""
    if sum(v is not None for v in (contrast, factor, coefficient)) != 1:
        raise InvalidArgumentError("contrast: expected exactly one of contrast, factor and coefficient.")
    names = design.names
    if contrast is None:
        chosen = tested_columns(design, factor, coefficient, ("factor", "coefficient"))
        return unit_rows(chosen, names)
    if isinstance(contrast, (pd.Series, pd.DataFrame)):
        turned = by_name(contrast.T, pd.Index(names), "contrast", what="coefficient")
        contrast = turned.to_numpy().T
    try:
        rows = np.atleast_2d(as_numbers(contrast, "contrast"))
    except InvalidArgumentError as error:
        terms = listed(dict.fromkeys(t for t in design.terms if t != "1"))
        raise InvalidArgumentError(
            f"contrast: expected numbers, as from cond, found {contrast!r}; terms are tested with factor= (among "
            f"{terms}), coefficients with coefficient= (among {listed(names, near=str(contrast))})."
        ) from error
    if rows.ndim != 2 or rows.shape[1] != len(names) or not np.isfinite(rows).all() or not np.abs(rows).max(1).all():
        raise InvalidArgumentError(
            f"contrast: expected finite rows, not all zero, over {listed(names)}, found shape {rows.shape}."
        )
    check_canceled(contrast, rows, design)
    return rows


def contrast_test(
    fit: GlmFit,
    constraints: Constraints,
    contrast: Array,
    *,
    gene_ids: NDArray[np.object_],
    mean: Array,
    robust: RobustCovariance | None = None,
) -> ExpressionTest:
    """Test contrasts as :func:`linear_test` does, from its parts; the ``link`` of the result is its caller's to say.

    ``robust``: covariance of the free location coefficients ``(G, F, F)`` where not the inverse expected information,
    and degrees of freedom for t and F in place of normal and χ².
    """
    p = fit.n_location
    rows = contrast @ constraints.matrix
    estimate = fit.theta[:, :p] @ rows.T + contrast @ constraints.shift
    v, df = (fit.inner_covariance, None) if robust is None else (robust.covariance, robust.df)
    inner = rows @ fit.basis.matrix[:p, :p] if robust is None else rows
    v_l = inner @ np.nan_to_num(v, posinf=0.0) @ inner.T
    v_l[~np.isfinite(v).all((1, 2))] = np.nan
    known = None if robust is None else robust.identified
    identified = identified_contrasts(fit, rows) if known is None else known
    with np.errstate(invalid="ignore"):
        se = np.sqrt(v_l.diagonal(axis1=1, axis2=2))
    for gene, kept in identified.items():
        se[gene, ~in_span(kept)] = np.inf
    largest = np.argmax(np.abs(np.nan_to_num(estimate)), axis=1)
    genes = np.arange(len(estimate))
    if len(rows) == 1:
        statistic, pval = wald_z(estimate[:, 0], se[:, 0], df=df)
    else:
        statistic, pval = wald_chi2(estimate, v_l, df=df)
    for gene, kept in identified.items():
        statistic[gene] = pval[gene] = np.nan
        if len(kept):
            own = None if df is None else df[[gene]]
            found = wald_chi2(estimate[[gene]] @ kept.T, kept @ v_l[[gene]] @ kept.T, df=own)
            statistic[gene], pval[gene] = (value[0] for value in found)
    statistic, pval = (np.where(fit.code >= FitCode.FAILED, np.nan, value) for value in (statistic, pval))
    effect, effect_se = estimate[genes, largest], se[genes, largest]
    gradient = np.abs(fit.gradient[:, :p]).max(1)
    extra = {"grad": gradient, "coef_mle": effect, "coef_sd": effect_se, "ll": fit.log_likelihood}
    if robust is not None and robust.units is not None:
        unit, n_units = robust.units
        extra |= {"df": robust.df, "unit": np.full(len(effect), unit), "n_units": np.full(len(effect), n_units)}
    tested = ExpressionTest(gene_ids, pval, statistic, effect, effect_se, mean, fit.reason, extra=extra, df=df)
    return replace(tested, is_wald=len(rows) == 1, method="wald")


def lrt(
    data: Any,
    full_formula_loc: str,
    reduced_formula_loc: str,
    full_formula_scale: str = "~1",
    reduced_formula_scale: str = "~1",
    **fit_options: Any,
) -> ExpressionTest:
    """Test two nested models by their likelihood ratio.

    Parameters
    ----------
    data, fit_options
        As for ``fit.model``, without designs.
    full_formula_loc, full_formula_scale
        Formulas of the larger model.
    reduced_formula_loc, reduced_formula_scale
        Formulas of the smaller model.

    Raises
    ------
    InvalidArgumentError
        For models that are not nested, and options that do not exist.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> de.test.lrt(adata, full_formula_loc="~ 1 + group", reduced_formula_loc="~ 1").qval < 0.05
    array([ True, False, False])
    """
    fit_options = known_options("test.lrt", fit_options, FIT_OPTIONS - {"dmat_loc", "dmat_scale", *OF_EFFECTS})
    refuse_random_terms("lrt", full_formula_loc, reduced_formula_loc)
    full = expression_fit.model(data, full_formula_loc, full_formula_scale, **fit_options)
    fit_options |= same_cells(full.input_data)
    reduced = expression_fit.model(data, reduced_formula_loc, reduced_formula_scale, **fit_options)
    _check_nested(full, reduced)
    return compare_fits(full, reduced)


def same_cells(inputs: InputData) -> dict[str, Any]:
    """The option that makes another fit leave out the cells that were left out of this one."""
    return {} if inputs.cells.used is None else {"missing": inputs.cells.used}


def compare_fits(full: Estimator, reduced: Estimator) -> ExpressionTest:
    """Test two estimators, the second nested in the first, by their likelihood ratio."""
    df = full.fit.theta.shape[1] - reduced.fit.theta.shape[1]
    statistic, pval = likelihood_ratio(*comparable(full.fit, reduced.fit), df)
    new = [n for n in full.model.design_loc_names if n not in reduced.model.design_loc_names]
    result = wald_repeated(full, coef_to_test=new or full.model.design_loc_names[-1:])
    result = named_test(result, tested_terms(full.input_data.location, new) or "scale", "lrt")
    if not new:  # the models differ in their scales only: there is no fold change
        none = np.full(len(pval), np.nan)
        result = replace(result, effect=none, effect_se=None, extra=result.extra | {"coef_mle": none, "coef_sd": none})
    return with_statistic(result, statistic, pval, otherwise=reduced.reason)


def tested_terms(design: DesignMatrix, columns: Sequence[str]) -> list[str]:
    """The terms that some columns are of, each once, those without one under their own names."""
    of = dict(zip(design.names, design.terms, strict=True))
    return list(dict.fromkeys(name if of[name] == "1" else of[name] for name in columns))


def _check_nested(full: Estimator, reduced: Estimator) -> None:
    for part in ("location", "scale"):
        big, small = (getattr(e.source.design, {"location": "x", "scale": "z"}[part]) for e in (full, reduced))
        residual = small - big @ np.linalg.lstsq(big, small, rcond=None)[0]
        if np.abs(residual).max() > 1e-8 * max(np.abs(small).max(), 1.0):
            raise InvalidArgumentError(f"reduced_formula: its {part} design is not nested in the full model's.")


def score(
    data: Any,
    factor_loc_totest: Names | None = None,
    coef_to_test: Names | None = None,
    formula_loc: str | None = None,
    formula_scale: str | None = "~1",
    **fit_options: Any,
) -> ExpressionTest:
    """Test location coefficients by the score: only the model without them is fitted.

    The fold change is the one-step estimate from there. Arguments as for :func:`wald`; starting values are those of the
    model that is fitted.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 0.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean + 1e-9, seed=0)  # one group has no count
    >>> de.test.score(adata, formula_loc="~ 1 + group", factor_loc_totest="group").summary()[["gene", "reason"]]
         gene     reason
    0  gene_1
    1  gene_2  no_counts
    2  gene_3  no_counts
    """
    fit_options = known_options("test.score", fit_options, FIT_OPTIONS - {*OF_EFFECTS})
    refuse_random_terms("score", formula_loc)
    inputs_of = {k: v for k, v in fit_options.items() if k not in FITTING}
    full = prepare(data, formula_loc=formula_loc, formula_scale=formula_scale, **inputs_of)
    if not np.array_equal(full.constraints_loc.matrix, np.eye(len(full.location.names))):
        raise InvalidArgumentError("constraints_loc: the score test takes no constraints; use test.wald or test.lrt.")
    tested = tested_columns(full.location, factor_loc_totest, coef_to_test)
    kept = [n for n in full.location.names if n not in tested]
    if not kept:
        raise InvalidArgumentError("coef_to_test: the score test needs a coefficient that is not tested.")
    dmat = pd.DataFrame(full.location.matrix, columns=full.location.names, index=full.cells.index)
    options = {k: v for k, v in fit_options.items() if k not in ("dmat_loc", "constraints_loc")}
    options |= same_cells(full)
    reduced = expression_fit.model(data, None, formula_scale, dmat_loc=dmat[kept], **options)
    how = {k: v for k, v in fit_options.items() if k in ("batch_size", "device")}
    big = Estimator(full, **how)
    which = [full.location.names.index(n) for n in tested]
    where = [full.location.names.index(n) for n in kept]
    n_all = len(full.location.names)
    theta = np.zeros((len(reduced.fit.theta), n_all + reduced.fit.theta.shape[1] - len(kept)))
    theta[:, where], theta[:, n_all:] = reduced.fit.theta[:, : len(kept)], reduced.fit.theta[:, len(kept) :]
    statistic, pval, step, se = score_statistic(big.source, theta, np.array(which))
    largest, genes = np.argmax(np.abs(np.nan_to_num(step)), axis=1), np.arange(len(step))
    found = ExpressionTest(
        gene_ids=full.counts.gene_names,
        pval=pval,
        statistic=statistic,
        effect=step[genes, largest],
        effect_se=se[genes, largest],
        mean=big.gene_means,
        fit_ended=reduced.fit.reason,
        link=mean_link(full.likelihood),
    )
    return named_test(found, coef_to_test if factor_loc_totest is None else factor_loc_totest, "score")


def refuse_random_terms(method: str, *formulas: str | None) -> None:
    """Raise for random terms: such fits are of restricted likelihoods, which tests of two models cannot compare."""
    for formula in formulas:
        if formula is not None and split_random_terms(formula, "formula_loc")[1]:
            raise InvalidArgumentError(
                f"formula_loc: this {method} test is of models without random effects, found {formula!r}; call "
                f"ExpressionGLM(formula).fit(data).test(factor=..., method={method!r}), or test.wald."
            )


def tested_columns(
    design: DesignMatrix,
    factors: Names | None,
    coefficients: Names | None,
    arguments: tuple[str, str] = ("factor_loc_totest", "coef_to_test"),
) -> list[str]:
    """Columns of the location design that a test is about; errors begin with the name of one of the ``arguments``."""
    if (factors is None) == (coefficients is None):
        raise InvalidArgumentError(f"{arguments[0]}: expected either it or {arguments[1]}.")
    names = text_names(factors if coefficients is None else coefficients, arguments[coefficients is not None])
    if not names:
        raise InvalidArgumentError(f"{arguments[coefficients is not None]}: expected at least one name, found none.")
    if coefficients is None:
        return list(dict.fromkeys(c for f in names for c in design.columns_of(f, arguments[0])))
    unknown = [n for n in names if n not in design.names]
    if unknown:
        factor = any(n.startswith(f"{unknown[0]}[") for n in design.names)
        hint = f" {unknown[0]!r} is a factor: name it in {arguments[0]}." if factor else ""
        raise InvalidArgumentError(
            f"{arguments[1]}: no coefficient {unknown[0]!r}; expected some of "
            f"{listed(design.names, near=str(unknown[0]))}.{hint}"
        )
    return list(dict.fromkeys(names))


def unit_rows(chosen: Sequence[str], names: Sequence[str]) -> Array:
    """A contrast ``(k, P)`` of some of the coefficients ``names``, each alone."""
    rows = np.zeros((len(chosen), len(names)))
    rows[np.arange(len(chosen)), [names.index(name) for name in chosen]] = 1.0
    return rows


def null_fit(source: RowSource, constraints: Constraints, contrast: Array) -> tuple[GlmFit, int]:
    """The fit under ``L a = 0`` for rows L ``(k, P)`` of the full coefficients, and how many it takes away.

    Raises
    ------
    InvalidArgumentError
        Where the null hypothesis leaves nothing to fit, or the constraints contradict it.
    """
    free, value = contrast @ constraints.matrix, -(contrast @ constraints.shift)
    _, size, basis = np.linalg.svd(free)
    rank = int((size > 1e-10).sum())
    if rank == free.shape[1]:
        raise InvalidArgumentError("contrast: nothing is left of the model under the null hypothesis.")
    kept = basis[rank:].T
    if not np.abs(value).any():
        return fit_glm(source.with_location(kept)), rank
    fixed = np.linalg.lstsq(free, value, rcond=None)[0]
    if np.abs(free @ fixed - value).max() > 1e-8:
        raise InvalidArgumentError("contrast: the constraints say that it is not zero.")
    design = source.design
    moved = design.x @ fixed
    offset = design.offset + (moved if design.offset.ndim == 1 else moved[:, None])
    under = replace(design, x=design.x @ kept, offset=offset)
    return fit_glm(RowSource(source.counts, under, source.likelihood, source.device, source.block_size)), rank


def ratio_test(result: ExpressionTest, estimator: Estimator, contrast: Array) -> ExpressionTest:
    """Replace statistic and p-value of ``result`` by those of the likelihood ratio of a contrast."""
    reduced, rank = null_fit(estimator.source, estimator.input_data.constraints_loc, contrast)
    return with_statistic(
        result, *likelihood_ratio(*comparable(estimator.fit, reduced), rank), otherwise=reduced.reason
    )


def comparable(full: GlmFit, reduced: GlmFit) -> tuple[Array, Array]:
    """Largest log likelihoods of two models, at infinity too, NaN where either is not known: it failed."""
    best, null = largest_log_likelihood(full), largest_log_likelihood(reduced)
    return np.where(np.isnan(null), np.nan, best), null


def with_statistic(result: ExpressionTest, statistic: Array, pval: Array, *, otherwise: Any) -> ExpressionTest:
    """Copy ``result`` with another statistic and p-value, NaN for genes without counts.

    ``otherwise`` says why there is none where the fit behind ``result`` is at an optimum: a reason, or how another fit
    that the statistic needs ended.
    """
    empty = result.fit_ended == Reason.NO_COUNTS.value
    statistic, pval = (np.where(empty, np.nan, value) for value in (statistic, pval))
    why = np.where(np.isnan(pval), unless_ended(otherwise, Reason.NOT_FINITE.value), result.otherwise)
    return replace(result, statistic=statistic, pval=pval, otherwise=why, is_wald=False)
