"""Tests of a smooth dependence on one covariate, and the curves behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression.call_options import known_options
from pyrosplice._expression.engine.endless_contrasts import identified_contrasts
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.mixed.cell_effects import OF_EFFECTS
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.tests import (
    FIT_OPTIONS,
    Names,
    ratio_test,
    refuse_random_terms,
    tested_columns,
    unit_rows,
    wald_repeated,
)
from pyrosplice._expression.thresholds import LOG, log_of
from pyrosplice._tables.names import places_of, text_names
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option, check_switches
from pyrosplice.plotting._expression import heatmap

Array = NDArray[np.float64]


def continuous_1d(  # noqa: PLR0913 (a documented interface)
    data: Any,
    continuous: str,
    factor_loc_totest: Names | None = None,
    formula_loc: str | None = None,
    formula_scale: str | None = "~1",
    df: int = 5,
    spline_basis: str = "bs",
    as_numeric: Names = (),
    test: str = "wald",
    *,
    sample_description: pd.DataFrame | None = None,
    **fit_options: Any,
) -> ContinuousTest:
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
    fit_options
        Options of ``fit.model``, without designs.

    Raises
    ------
    InvalidArgumentError
        Options that do not exist, a covariate that the formula lacks, a basis that is too small.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
    >>> mean = np.column_stack([5 + 5 * np.sin(6 * cells["time"]), np.full(200, 5.0)])
    >>> adata = simulate_expression(cells, n_genes=2, mean=mean, seed=0)
    >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
    >>> test.pval < 0.01
    array([ True, False])
    """
    check_option("test", test, ("wald", "lrt"))
    check_option("spline_basis", spline_basis, ("bs", "cr", "cc"))
    fit_options = known_options("test.continuous_1d", fit_options, FIT_OPTIONS - {"dmat_loc"})
    df = check_integer("df", df, least=3 if spline_basis == "bs" else 2)
    if not isinstance(formula_loc, (str, type(None))):
        raise InvalidArgumentError(f"formula_loc: expected a formula, a text, found {formula_loc!r}.")
    if not isinstance(continuous, str):
        raise InvalidArgumentError(f"continuous: expected the name of a column, found {continuous!r}.")
    if test == "lrt":
        fit_options = known_options("test.continuous_1d", fit_options, FIT_OPTIONS - {"dmat_loc", *OF_EFFECTS})
        refuse_random_terms("lrt", formula_loc)
    smooth, replaced = _with_basis(continuous, formula_loc, spline_basis, df)
    options = {
        "sample_description": sample_description,
        "as_numeric": list(dict.fromkeys([continuous, *text_names(as_numeric, "as_numeric")])),
        **fit_options,
    }
    full = expression_fit.model(data, smooth, formula_scale, **options)
    factors = text_names(factor_loc_totest, "factor_loc_totest") or [continuous]
    terms = [f if f == continuous else replaced(f) for f in factors]
    tested = tested_columns(full.input_data.location, terms, None)
    result = wald_repeated(full, coef_to_test=tested)
    if test == "lrt":
        result = ratio_test(result, full, unit_rows(tested, full.model.design_loc_names))
    columns = np.array([full.model.design_loc_names.index(t) for t in tested])
    return ContinuousTest(**vars(result), covariate=_covariate(full, continuous), columns=columns)


def _with_basis(continuous: str, formula_loc: str | None, spline_basis: str, df: int) -> tuple[str, Any]:
    """The formula with the covariate's spline basis in its place, and what does the same to a term."""
    plain = continuous.isidentifier()
    name = continuous if plain else f"`{continuous}`"
    formula = formula_loc if formula_loc is not None else f"~1+{name}"
    word = re.compile(rf"`{re.escape(continuous)}`|(?<![\w.`]){re.escape(continuous)}(?![\w.`])")
    if not word.search(formula):
        raise InvalidArgumentError(f"continuous: {continuous!r} does not occur in formula_loc {formula!r}.")
    center = "" if spline_basis == "bs" else ", constraints='center'"
    basis = f"{spline_basis}({name}, df={df}{center})"
    return word.sub(lambda _: basis, formula), lambda term: word.sub(lambda _: basis, term)


class ContinuousTest(ExpressionTest):
    """A test of a smooth effect, with the fitted curve of each gene over the observed values of the covariate.

    Every method takes ``genes``, all by default: names, positions, a slice or a mask; and ``non_numeric``: whether the
    other terms of the formula are part of the curve.

    *Differs from* the original: curves, ``max`` and ``min`` are on the scale of the predictor (log) and, without
    ``non_numeric``, leave out the intercept; a gene that does not exist is an error, not left out; size factors are
    never part of a curve. Of a gene that is separated along the covariate the fold change is infinite, and the curve
    says how far the search went.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
    >>> mean = 1 + 20 * np.exp(-50 * (cells[["time"]].to_numpy() - 0.5) ** 2)
    >>> adata = simulate_expression(cells, n_genes=1, mean=mean, seed=0)
    >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
    >>> test.curve().shape, test.argmax().round(1)  # where the gene is expressed most
    ((200, 1), array([0.5]))
    """

    def __init__(self, *, covariate: Array, columns: NDArray[np.intp], **result: Any) -> None:
        super().__init__(**result)
        self.covariate, self.columns = covariate, columns
        rows = np.eye(len(self.estimator.model.a))[columns] @ self.estimator.input_data.constraints_loc.matrix
        self.endless = np.isin(np.arange(len(self.gene_ids)), list(identified_contrasts(self.estimator.fit, rows)))
        self.effect, self.effect_se = self._spread(), None

    def curve(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Log fitted effect of the covariate at each cell ``(N, g)``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
        >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, seed=0)
        >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
        >>> test.curve("gene_2").shape
        (200, 1)
        """
        check_switches(non_numeric=non_numeric)
        model, which = self.estimator.model, places_of(genes, self.gene_ids, "genes")
        if non_numeric:
            return model.design_loc @ model.a[:, which]
        return model.design_loc[:, self.columns] @ model.a[self.columns][:, which]

    def max(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Largest value of the curve, natural log.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
        >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, seed=0)
        >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
        >>> (test.max() == test.curve().max(0)).tolist()
        [True, True]
        """
        return self.curve(genes, non_numeric).max(0)

    def min(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Smallest value of the curve, natural log.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
        >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, seed=0)
        >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
        >>> (test.min() == test.curve().min(0)).tolist()
        [True, True]
        """
        return self.curve(genes, non_numeric).min(0)

    def argmax(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Value of the covariate where the curve is largest.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
        >>> mean = 1 + 20 * np.exp(-50 * (cells[["time"]].to_numpy() - 0.5) ** 2)
        >>> adata = simulate_expression(cells, n_genes=1, mean=mean, seed=0)
        >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
        >>> test.argmax().round(1)
        array([0.5])
        """
        return self._at(self.curve(genes, non_numeric), largest=True)

    def argmin(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Value of the covariate where the curve is smallest.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
        >>> mean = 1 + 20 * (cells[["time"]].to_numpy() - 0.5) ** 2
        >>> adata = simulate_expression(cells, n_genes=1, mean=mean, seed=0)
        >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
        >>> abs(test.argmin() - 0.5) < 0.15
        array([ True])
        """
        return self._at(self.curve(genes, non_numeric), largest=False)

    def _spread(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Largest less smallest value of the curve ``(g,)``, infinite where a coefficient of it is."""
        spread = self.max(genes, non_numeric) - self.min(genes, non_numeric)
        return np.where(self.endless[places_of(genes, self.gene_ids, "genes")], np.inf, spread)

    def _at(self, curve: Array, *, largest: bool) -> Array:
        where = curve.argmax(0) if largest else curve.argmin(0)
        return np.where(np.isnan(curve).any(0), np.nan, self.covariate[where])

    def log_fold_change(self, base: float = math.e, genes: Any = None, non_numeric: bool = False) -> Array:
        """Log of the largest over the smallest value of the curve, in any base ``(g,)``; NaN without a log link."""
        spread = self._spread(genes, non_numeric)
        return (spread if self.link == LOG else np.full_like(spread, np.nan)) / log_of(base)

    def log2_fold_change(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Log₂ of the largest over the smallest value of the curve ``(g,)``."""
        return self.log_fold_change(2.0, genes, non_numeric)

    def log10_fold_change(self, genes: Any = None, non_numeric: bool = False) -> Array:
        """Log₁₀ of the largest over the smallest value of the curve ``(g,)``."""
        return self.log_fold_change(10.0, genes, non_numeric)

    def summary(self, *thresholds: Any, non_numeric: bool = False, **options: Any) -> pd.DataFrame:
        """Table with one row a gene, as :meth:`ExpressionTest.summary`; the fold change is that of the curve."""
        if not non_numeric:
            return super().summary(*thresholds, **options)
        own = {f.name: getattr(self, f.name) for f in fields(ExpressionTest)}
        own["effect"] = self._spread(non_numeric=True)
        return ExpressionTest(**own).summary(*thresholds, **options)

    def plot_heatmap(self, gene_ids: Sequence[str], **kwargs: Any) -> Any:
        """Draw some genes' curves as a heat map, by :func:`pyrosplice.plotting.heatmap`.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"time": np.linspace(0, 1, 200)})
        >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, seed=0)
        >>> test = de.test.continuous_1d(adata, "time", formula_loc="~ time")
        >>> axes = test.plot_heatmap(["gene_2", "gene_1"])
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['gene_2', 'gene_1']
        """
        genes = text_names(gene_ids, "gene_ids")
        return heatmap(self.covariate, self.curve(genes), genes, **kwargs)


def _covariate(estimator: Estimator, name: str) -> Array:
    table = estimator.input_data.sample_description
    assert table is not None  # the formula was evaluated on it
    return table[name].to_numpy(dtype=np.float64)
