"""Expected counts or predictors of cells of one's choice, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.new_cells import moments_of_fitted, moments_of_new
from pyrosplice._expression.mixed.new_places import FittedPlaces
from pyrosplice._expression.positions import Spots
from pyrosplice._expression.size_factors import resolve_size_factors
from pyrosplice._hypothesis.test_table import unless_ended
from pyrosplice._tables.cells import Cells, obs_of
from pyrosplice._tables.coordinates import SpatialKey
from pyrosplice._tables.names import places_of
from pyrosplice.errors import InvalidArgumentError, call_hint, check_option, check_share
from pyrosplice.glmm._arrow.predictor_moments import PredictorMoments
from pyrosplice.glmm._bound_effects import NEW_LEVELS
from pyrosplice.guides._own_model import SHIPPED_ENGINE
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
PredictedScale = Literal["mean", "link"]


class FittedExpression(Protocol):
    """A fitted model of expression."""

    estimator: Estimator | None
    gene_names: NDArray[np.object_]
    spatial_key: SpatialKey
    section_key: str | None
    _location: DesignMatrix
    _constraints: Constraints
    _spots: Spots | None

    @property
    def engine(self) -> str: ...

    @property
    def results(self) -> GlmFit: ...

    @property
    def _link(self) -> str | None: ...

    def _data(self) -> Estimator: ...

    def _has_effects(self) -> bool: ...

    def _mixed_estimator(self) -> MixedEstimator: ...


def predict_cells(  # noqa: PLR0913 (options of a table, all by keyword)
    self: FittedExpression,
    new: ad.AnnData | pd.DataFrame | None = None,
    *,
    what: PredictedScale = "mean",
    level: float = 0.9,
    genes: str | Sequence[str | int] | None = None,
    size_factors: Any = None,
    new_levels: str = "population",
) -> pd.DataFrame:
    r"""Predict expected counts of new cells, or of the fitted ones, with what is not known of them.

    The predictor of a cell, :math:`\eta_* = x_*'\beta + \log s_* + \sum_e z_e' u_e`, is Gaussian: coefficients and
    random effects as they are known from the counts together, at the estimates of variances and dispersion. A cell of a
    fitted level (donor, section) has that level's effects; one of another level those of any of the population, with
    mean zero and the effect's variance, and its interval is Student's with the degrees of freedom that this variance
    has. Intervals of 90 % covered 92 and 91 % of predictors of a new donor beside 6 and 12 of 60 cells, mean 2, donors'
    standard deviation .4 (81 and 86 % by the normal law, 500 genes), and 88 and 89 % of those of fitted donors, whose
    intervals leave out that variances are estimated. A new cell has an effect of its own, where
    cells have; a field is that of the graph over fitted and new cells together, given that at the fitted ones, as
    :meth:`pyrosplice.SplisosmGLMM.predict` says, and that of a fitted cell at its position.

    Parameters
    ----------
    new
        The cells: an AnnData, whose ``obs`` has the columns of the formula and the grouping factors, or such a table;
        of fits with a field an AnnData with positions (and sections). Counts are not read. None: the fitted cells.
    what
        ``"mean"``: expected counts; ``"link"``: the linear predictor. Both with size factors.
    level
        Probability inside of ``lower`` and ``upper``: of the expected count, not of counts around it.
    genes
        Names or positions; all by default.
    size_factors
        Of new cells: numbers, a Series by name or a column of the table; 1 by default.
    new_levels
        ``"population"``, or ``"raise"`` for levels of random effects that the fit never saw.

    Returns
    -------
    DataFrame
        A row a gene and cell: ``gene``, ``cell``, ``mean`` and ``sd``, ``lower`` and ``upper`` (equal tails), and
        ``reason``: "", why the gene's fit is none to rely on or has no uncertainty, or ``"no_neighbors"`` of a cell
        from which no path over neighbors leads to a fitted one.

    Raises
    ------
    InvalidArgumentError
        Columns or levels of the formula that are missing or new; a field that multiplies a column or was given as a
        covariance, at new cells; a likelihood whose mean is neither the predictor nor its exponential times a number.
    NotReadyError
        Before ``fit``; of a loaded model, at fitted cells or with random effects.
    RefusedModelError
        A model of your own.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=3, mean=3.0, seed=0))
    >>> new = pd.DataFrame({"group": ["b"]}, index=["new"])
    >>> glm.predict(new)[["gene", "cell"]]
         gene cell
    0  gene_1  new
    1  gene_2  new
    2  gene_3  new
    >>> list(glm.predict(new).columns)
    ['gene', 'cell', 'mean', 'sd', 'lower', 'upper', 'reason']
    """
    check_option("what", what, get_args(PredictedScale))
    check_option("new_levels", new_levels, NEW_LEVELS)
    check_share("level", level)
    if self.engine != SHIPPED_ENGINE:
        self._data()  # which says why not
    fit, link = self.results, self._link
    if what == "mean" and link is None:
        raise InvalidArgumentError("what: expected counts of this likelihood follow no known link; ask for 'link'.")
    which = places_of(genes, self.gene_names, "genes")
    if new is None:
        _refuse_size_factors(size_factors, "fitted cells have those of the fit")
        cells = _at_fitted(self, which)
    else:
        cells = _at_new(self, which, new, size_factors, new_levels)
    columns, names = _summaries(cells.moments, what == "mean" and link == "log", level), ["gene", "cell"]
    table = pd.MultiIndex.from_product([self.gene_names[which], cells.names], names=names).to_frame(index=False)
    table = table.assign(**{name: values.ravel() for name, values in columns.items()})
    lonely = np.tile(np.broadcast_to(cells.unjoined, len(cells.names)), len(which))
    here = np.where(lonely, Reason.NO_NEIGHBORS.value, "")
    here = np.where(np.isfinite(table["sd"]), here, Reason.NOT_IDENTIFIED.value)
    ended = np.repeat(unless_ended(fit.reason[which], ""), len(cells.names))
    return table.assign(reason=np.where(ended == "", here, ended))


@dataclass(frozen=True)
class PredictedCells:
    """Cells that are asked about: their n names, moments of their predictors, and which have a field of the prior."""

    names: pd.Index
    moments: PredictorMoments
    unjoined: NDArray[np.bool_] | bool = False


def _summaries(moments: PredictorMoments, exponential: bool, level: float) -> dict[str, Array]:
    """Mean, sd and interval of Gaussian predictors, or of their exponentials, (g, n) each."""
    sd = np.sqrt(moments.variance)
    tail = (1 + level) / 2
    reach = sd * (stats.norm.ppf(tail) if moments.df is None else stats.t.ppf(tail, moments.df))
    lower, upper = moments.mean - reach, moments.mean + reach
    if not exponential:
        return {"mean": moments.mean, "sd": sd, "lower": lower, "upper": upper}
    with np.errstate(over="ignore"):
        mean = np.exp(moments.mean + 0.5 * moments.variance)
        spread = mean * np.sqrt(np.expm1(moments.variance))
        return {"mean": mean, "sd": spread, "lower": np.exp(lower), "upper": np.exp(upper)}


def _at_fitted(self: FittedExpression, genes: NDArray[np.intp]) -> PredictedCells:
    estimator = self._mixed_estimator() if self._has_effects() else self._data()
    index = estimator.input_data.cells.index
    names = pd.RangeIndex(len(estimator.input_data.location.matrix)) if index is None else index
    if isinstance(estimator, MixedEstimator):
        return PredictedCells(names, moments_of_fitted(estimator, genes))
    design = estimator.source.design
    offset = design.offset if design.offset.ndim == 1 else design.offset[:, genes].T
    return PredictedCells(names, _of_coefficients(self.results, genes, design.x, offset))


def _at_new(
    self: FittedExpression, genes: NDArray[np.intp], new: Any, size_factors: Any, new_levels: str
) -> PredictedCells:
    if not isinstance(new, (ad.AnnData, pd.DataFrame)):
        raise InvalidArgumentError(
            f"new: expected an AnnData or a table of cells, found {type(new).__name__}{call_hint(new, pd.DataFrame)}."
        )
    table = obs_of(new) if isinstance(new, ad.AnnData) else new
    if not len(table):
        raise InvalidArgumentError("new: expected a cell or more, found none.")
    if self.estimator is not None and self.estimator.input_data.offset.ndim == 2:
        raise InvalidArgumentError("new: the fit has an offset for every gene and cell, which is not known of others.")
    if size_factors is not None and self._link != "log":
        _refuse_size_factors(size_factors, "they multiply means that are exp(eta), and this likelihood has others")
    factors = resolve_size_factors(size_factors, Cells(len(table), table.index, table))
    whole = self._location.for_new(table, "new")
    offset = whole @ self._constraints.shift + (0.0 if factors is None else np.log(factors))
    design = np.asarray(whole @ self._constraints.matrix, dtype=np.float64)
    if not self._has_effects():
        return PredictedCells(table.index, _of_coefficients(self.results, genes, design, offset))
    estimator, places = self._mixed_estimator(), None
    if estimator.effects.field is not None:
        places = FittedPlaces(self._spots, self.spatial_key, self.section_key).of_new(estimator, new)
    found = moments_of_new(estimator, genes, design, table, places, new_levels=new_levels)
    unjoined = False if places is None else places.unjoined
    return PredictedCells(table.index, replace(found, mean=found.mean + offset), unjoined)


def _of_coefficients(fit: GlmFit, genes: NDArray[np.intp], design: Array, offset: Array) -> PredictorMoments:
    """Moments (g, n) at rows of the free coefficients; no variance where a coefficient is not identified."""
    p = fit.n_location
    covariance, rows = fit.inner_covariance[genes], design @ fit.basis.matrix[:p, :p]
    known = np.isfinite(covariance).all((1, 2))
    variance = np.full((len(genes), len(design)), np.nan)
    variance[known] = np.einsum("np,gpq,nq->gn", rows, covariance[known], rows)
    return PredictorMoments(fit.theta[genes, :p] @ design.T + offset, variance)


def _refuse_size_factors(size_factors: Any, why: str) -> None:
    if size_factors is not None:
        raise InvalidArgumentError(f"size_factors: {why}; leave them out.")
