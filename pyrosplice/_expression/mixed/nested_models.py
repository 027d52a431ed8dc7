"""``test.lrt`` and ``test.score`` of the documented interface, with random terms in their formulas too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression import tests as expression_tests
from pyrosplice._expression.call_options import known_options
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.unit_tests import MixedResults
from pyrosplice._expression.noise_models import mean_link
from pyrosplice._expression.prepared_inputs import prepare
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.tests import (
    FIT_OPTIONS,
    FITTING,
    Names,
    named_test,
    tested_columns,
    tested_terms,
    unit_rows,
)
from pyrosplice._tables.random_terms import split_random_terms
from pyrosplice.errors import InvalidArgumentError

OF_SCALES = "~1"


def nested_ratio(
    data: Any,
    full_formula_loc: str,
    reduced_formula_loc: str,
    full_formula_scale: str = OF_SCALES,
    reduced_formula_scale: str = OF_SCALES,
    **fit_options: Any,
) -> ExpressionTest:
    """Test two nested models by their likelihood ratio.

    Parameters
    ----------
    data, fit_options
        As for ``fit.model``, without designs.
    full_formula_loc, full_formula_scale
        Formulas of the larger model. It may have random terms, ``(1 | donor)``, if the smaller one has the same: the
        ratio of the marginal likelihoods at the larger one's variances is then held to the F law of the units
        (:meth:`pyrosplice.ExpressionGLM.test` with ``"lrt"``).
    reduced_formula_loc, reduced_formula_scale
        Formulas of the smaller model; beside random terms the larger one's without some of its columns.

    Raises
    ------
    InvalidArgumentError
        For models that are not nested, random terms that differ, and options that do not exist.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"donor": np.repeat(list("uvwxyz"), 20), "group": np.repeat(["a", "b"], 60)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(2) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=2, mean=mean, donors="donor", donor_sd=0.1, seed=0)
    >>> full, reduced = "~ group + (1 | donor)", "~ 1 + (1 | donor)"
    >>> de.test.lrt(adata, full_formula_loc=full, reduced_formula_loc=reduced).qval < 0.05
    array([ True, False])
    """
    terms = [_random_terms(formula) for formula in (full_formula_loc, reduced_formula_loc)]
    if not any(terms):
        scales = {"full_formula_scale": full_formula_scale, "reduced_formula_scale": reduced_formula_scale}
        return expression_tests.lrt(data, full_formula_loc, reduced_formula_loc, **scales, **fit_options)
    if sorted(map(repr, terms[0])) != sorted(map(repr, terms[1])):
        raise InvalidArgumentError(
            f"reduced_formula_loc: expected the random terms of {full_formula_loc!r}, found {reduced_formula_loc!r}; "
            "whether a variance is zero is asked by ExpressionGLM(...).fit(data).test_component()."
        )
    for name, scale in (("full_formula_scale", full_formula_scale), ("reduced_formula_scale", reduced_formula_scale)):
        if scale != OF_SCALES:
            raise InvalidArgumentError(f"{name}: beside random terms a gene has one dispersion, found {scale!r}.")
    options = known_options("test.lrt", fit_options, FIT_OPTIONS - {"dmat_loc", "dmat_scale"})
    full = expression_fit.model(data, full_formula_loc, OF_SCALES, **options)
    names = full.input_data.location.names
    read = {name: value for name, value in options.items() if name not in (*FITTING, "effects", "space", "spatial_key")}
    read.pop("section_key", None)
    rest = prepare(data, formula_loc=reduced_formula_loc, **read | expression_tests.same_cells(full.input_data))
    kept = rest.location.names
    if not set(kept) < set(names):
        raise InvalidArgumentError(
            f"reduced_formula_loc: beside random terms expected some of the columns {names} and no others, found "
            f"{kept}; contrasts are tested by ExpressionGLM(...).fit(data).test(contrast, method='lrt')."
        )
    new = [name for name in names if name not in kept]
    return named_test(_tested(full, new, "lrt"), tested_terms(full.input_data.location, new), "lrt")


def effects_score(
    data: Any,
    factor_loc_totest: Names | None = None,
    coef_to_test: Names | None = None,
    formula_loc: str | None = None,
    formula_scale: str | None = OF_SCALES,
    **fit_options: Any,
) -> ExpressionTest:
    """Test location coefficients by the score: only the model without them is fitted.

    The fold change is the one-step estimate from there. Arguments as for :func:`wald`; starting values are those of the
    model that is fitted. With random terms in the formula, ``(1 | donor)``, as
    :meth:`pyrosplice.ExpressionGLM.test` with ``"score"``, where the whole model is fitted for its variances, and the
    fold change is its estimate.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 40)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> test = de.test.score(adata, formula_loc="~ group", factor_loc_totest="group")
    >>> test.qval < 0.05
    array([ True, False, False])
    """
    if formula_loc is None or not _random_terms(formula_loc):
        return expression_tests.score(data, factor_loc_totest, coef_to_test, formula_loc, formula_scale, **fit_options)
    options = known_options("test.score", fit_options, FIT_OPTIONS)
    full = expression_fit.model(data, formula_loc, formula_scale, **options)
    found = _tested(full, tested_columns(full.input_data.location, factor_loc_totest, coef_to_test), "score")
    return named_test(found, coef_to_test if factor_loc_totest is None else factor_loc_totest, "score")


def _random_terms(formula: Any) -> tuple[Any, ...]:
    return split_random_terms(formula, "formula_loc")[1] if isinstance(formula, str) else ()


def _tested(full: Any, columns: list[str], method: str) -> ExpressionTest:
    """Test columns of a fit with random effects."""
    if not isinstance(full, MixedEstimator):
        raise AssertionError("random terms make a fit with random effects")
    data = full.input_data
    given = data.constraints_loc, full.record, data.counts.gene_names, full.gene_means, full
    found = MixedResults(full.fit, *given).test(unit_rows(columns, data.location.names), method, "clip")
    return replace(found, link=mean_link(data.likelihood), estimator=full)
