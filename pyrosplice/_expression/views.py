"""A fitted expression model as tables, in an AnnData, and by information criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.engine.endless_contrasts import largest_log_likelihood
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._results.annotations import Annotations, storable_table
from pyrosplice._results.layouts import GeneSymbols, with_symbols
from pyrosplice.errors import NotReadyError, check_switches
from pyrosplice.reasons import OPTIMA

Array = NDArray[np.float64]


class ViewedExpression(Protocol):
    """A fitted model of expression."""

    formula_loc: str | None
    formula_scale: str
    gene_names: NDArray[np.object_]
    estimator: Estimator | None

    @property
    def test(self) -> Callable[..., ExpressionTest]: ...

    @property
    def variance_components(self) -> Callable[[], pd.DataFrame]: ...

    @property
    def fitted_field(self) -> Callable[[], pd.DataFrame]: ...

    def summary(self) -> pd.DataFrame: ...

    def _has_effects(self) -> bool: ...

    def _data(self) -> Estimator: ...

    def _mixed_estimator(self) -> MixedEstimator: ...


def to_frame(self: ViewedExpression, *, gene_symbols: GeneSymbols = None) -> pd.DataFrame:
    """Tabulate the coefficients, a row a gene and coefficient: :meth:`summary`, with symbols beside the genes.

    Parameters
    ----------
    gene_symbols
        Symbols by gene, a Series such as ``adata.var["symbol"]`` or a mapping.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> glm.to_frame()[["gene", "coefficient", "reason"]].head(2)
         gene coefficient reason
    0  gene_1   Intercept
    1  gene_1  group[T.b]
    """
    return with_symbols(self.summary(), gene_symbols)


def top_genes(  # noqa: PLR0913 (a test and its table in one call)
    self: ViewedExpression,
    n: int | None = 10,
    *,
    contrast: Array | None = None,
    factor: str | Sequence[str] | None = None,
    coefficient: str | Sequence[str] | None = None,
    method: str = "wald",
    sort_by: str = "pvalue",
    alpha: float | None = None,
    lfc_threshold: float = 0.0,
    gene_symbols: GeneSymbols = None,
    **options: Any,
) -> pd.DataFrame:
    """Test, and tabulate the first genes: :meth:`test` and :meth:`ExpressionTest.top_table` in one call.

    ``options`` are the others of :meth:`test`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> glm.top_table(1, factor="group")[["gene", "reason"]]
         gene reason
    0  gene_1
    """
    asked = {"contrast": contrast, "factor": factor, "coefficient": coefficient, "method": method}
    tested = self.test(**asked, lfc_threshold=lfc_threshold, **options)
    return tested.top_table(n, sort_by=sort_by, alpha=alpha, gene_symbols=gene_symbols)


def write_fit(
    self: ViewedExpression, adata: ad.AnnData, key_added: str = "expression", *, layers: bool = True
) -> pd.DataFrame:
    """Write the fit to an AnnData, cells and genes paired by name.

    ``layers[<key>_mean]``: fitted means, size factors and random effects at their modes included, and
    ``layers[<key>_field]``: the field of a fit in space, on the scale of the predictor; NaN for cells that were not
    fitted and genes without a fit. ``var[<key>_fit_ended]``, ``[<key>_log_likelihood]``, and ``[<key>_aic]``;
    ``uns[key]``: ``coefficients``, and of random effects ``variance_components``. Survives h5ad and zarr files.

    Parameters
    ----------
    adata
        Has all cells and genes that were fitted, in any order.
    key_added
        Key of ``uns``, and prefix of the others.
    layers
        Whether to write layers, cells × genes numbers each.

    Returns
    -------
    DataFrame
        What was written: ``part``, ``key``, ``missing``.

    Raises
    ------
    InvalidArgumentError
        A view; cells or genes that are not in ``adata``; a key that is not of an earlier fit; a fit of tables without
        names.
    NotReadyError
        Before ``fit``, and after ``load``.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> _ = glm.write(adata)
    >>> adata.layers["expression_mean"].shape, adata.var["expression_fit_ended"].tolist()
    ((100, 3), ['converged', 'converged', 'converged'])
    """
    check_switches(layers=layers)
    estimator = _estimator(self)
    matrices: dict[str, Any] = {}
    if layers:
        matrices["mean"] = estimator.model.location_j(None)
        if isinstance(estimator, MixedEstimator) and estimator.effects.space is not None:
            matrices["field"] = self.fitted_field().to_numpy()
    tables = {"coefficients": storable_table(self.summary())}
    if isinstance(estimator, MixedEstimator):
        tables["variance_components"] = storable_table(self.variance_components())
    likelihood = estimator.fit.log_likelihood
    return Annotations(
        kind="ExpressionGLM",
        cells=estimator.input_data.cells.index,
        genes=pd.Index(self.gene_names),
        var={"fit_ended": estimator.fit.reason, "log_likelihood": likelihood, "aic": aic(self)},
        layers=matrices,
        uns=tables,
        settings={
            "formula_loc": self.formula_loc,
            "formula_scale": self.formula_scale,
            "likelihood": repr(estimator.input_data.likelihood),
            "effects": str(estimator.input_data.effects) if isinstance(estimator, MixedEstimator) else None,
        },
    ).write(adata, key_added)


def aic(self: ViewedExpression) -> Array:
    """Akaike's information criterion of each gene ``(G,)``; smaller is better, NaN without a fit.

    ``2 k - 2 log L`` with the largest likelihood L. Beside random effects that is the **marginal** one, by Laplace's
    method, at its maximum (not the restricted likelihood of the estimates), and the k parameters are coefficients, the
    noise's, and every standard deviation and correlation of the effects; the levels are none, as they are integrated
    out: it compares models for new groups. The conditional criterion, whose k is a number of effective parameters of
    the levels, is not offered. A dispersion or a variance at zero counts as a parameter, which errs on the side of
    the smaller model.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> bool((ExpressionGLM("~ 1").fit(adata).aic() > glm.aic())[0])  # the first gene needs its groups
    True
    """
    value, k, _ = _likelihoods(self)
    return 2.0 * k - 2 * value


def bic(self: ViewedExpression) -> Array:
    """Schwarz's (Bayesian) information criterion ``k log n - 2 log L`` of each gene ``(G,)``, n the number of cells.

    L and k as of :meth:`aic`. Cells of one donor are no independent observations, of which the criterion takes them
    to be: beside random effects it favours small models more than the number of donors would.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
    >>> adata = simulate_expression(cells, n_genes=3, mean=mean, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> bool((ExpressionGLM("~ 1").fit(adata).bic() > glm.bic())[0])  # the first gene needs its groups
    True
    """
    value, k, n = _likelihoods(self)
    return np.log(n) * k - 2 * value


def _estimator(self: ViewedExpression) -> Estimator:
    return self._mixed_estimator() if self._has_effects() else self._data()


def _likelihoods(self: ViewedExpression) -> tuple[Array, int, float]:
    """Largest log likelihood of each gene, number of parameters, and of cells."""
    estimator = _estimator(self)
    design, free = estimator.source.design, estimator.input_data.likelihood.free
    n, p = float(len(design.x)), design.x.shape[1]
    if not isinstance(estimator, MixedEstimator):
        n = n if design.weights is None else float(np.sum(design.weights))
        return largest_log_likelihood(estimator.fit), p + (design.z.shape[1] if free else 0), n
    fit = estimator.maximum
    if fit.restricted:
        raise NotReadyError("The criterion is of the maximum likelihood.")
    own = fit.parameters.shape[1] + fit.sds.shape[1] + estimator.mixed.space_values.shape[1]
    known = np.isin(fit.reason, [reason.value for reason in OPTIMA])
    return np.where(known, fit.log_likelihood.numpy(), np.nan), p + len(fit.hyper) + own, n
