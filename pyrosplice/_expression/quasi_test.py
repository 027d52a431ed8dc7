"""The quasi-likelihood F-test from an estimator: trended dispersions, moderated quasi-dispersions, F."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from pyrosplice._expression.engine.dispersion import Dispersions, adjusted_profile, trend_and_shrink
from pyrosplice._expression.engine.gene_fits import GlmFit, default_starter, fit_glm
from pyrosplice._expression.engine.joint_newton import NewtonOptions
from pyrosplice._expression.engine.row_source import RowSource
from pyrosplice._expression.engine.sparse_rows import FitRows
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.noise_models import estimates_dispersion
from pyrosplice._expression.quasi_likelihood import SqueezedVariance, expected_unit_deviance, quasi_f, squeeze_variance
from pyrosplice._expression.tests import comparable
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
FITTED_ZERO = 1e-4


@dataclass(frozen=True)
class QuasiFit:
    """A fit at trended dispersions with its deviances.

    Attributes
    ----------
    fit
        Coefficients at the trend.
    dispersions
        Trend and shrunken dispersions.
    deviance, df : (G,)
        Deviance and residual degrees of freedom, without cells that a fit explains by a mean of zero.
    squeezed
        Moderated quasi-dispersions.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> samples = pd.DataFrame({"group": np.repeat(["a", "b"], 4)})
    >>> adata = simulate_expression(samples, n_genes=50, mean=20.0, dispersion=0.2, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> quasi = glm.quasi()
    >>> quasi.deviance.shape, quasi.df[:3].tolist()  # eight samples less two coefficients
    ((50,), [6.0, 6.0, 6.0])
    """

    fit: GlmFit
    dispersions: Dispersions
    deviance: Array
    df: Array
    squeezed: SqueezedVariance


def quasi_fit(estimator: Estimator, *, adjusted: bool = True) -> QuasiFit:
    """Trend the dispersions over mean expression, refit there, and moderate the quasi-dispersions.

    Parameters
    ----------
    adjusted
        Divide deviances by what the model expects of them: right for small counts and large dispersions. False is the
        published test of 2012.

    Raises
    ------
    InvalidArgumentError
        For another noise than the negative binomial, a dispersion that is held, a scale design beyond an intercept,
        observation weights, or no residual degree of freedom.
    """
    source, n = estimator.source, estimator.input_data.counts.shape[0]
    design = source.design
    if not estimates_dispersion(source.likelihood) or design.z.shape[1] != 1 or np.ptp(design.z) > 0:
        raise InvalidArgumentError(
            "formula_scale: the quasi-likelihood test needs negative-binomial noise, estimated, and '~1'."
        )
    if design.weights is not None:
        raise InvalidArgumentError("weights: the quasi-likelihood test takes no observation weights.")
    if n <= design.x.shape[1]:
        raise InvalidArgumentError(f"formula_loc: {design.x.shape[1]} coefficients leave no residual among {n} cells.")
    if not np.isfinite(estimator.fit.theta).all(1).any():
        raise InvalidArgumentError("data: no gene has counts that a dispersion could be estimated from.")
    log_mean = mean_rate(source)
    profile = adjusted_profile(source, estimator.fit)
    dispersions = trend_and_shrink(profile, log_mean, residual_df=n - design.x.shape[1])
    held = fit_at(source, estimator.fit, dispersions.trend)
    deviance = deviances(source, held.theta)
    df = residual_df(source, held.theta)
    expected = expected_unit_deviance(np.exp(log_mean), dispersions.trend) if adjusted else 1.0
    s2 = np.where(df > 0, deviance / np.maximum(df, 1) / expected, np.nan)
    return QuasiFit(held, dispersions, deviance, df, squeeze_variance(s2, df, covariate=log_mean))


def quasi_test(estimator: Estimator, quasi: QuasiFit, contrast: Array) -> tuple[Array, Array, Array]:
    """Test ``L a = 0`` for rows L ``(k, F)`` of free coefficients: F, p-value and lower degrees of freedom."""
    kept = scipy.linalg.null_space(contrast)
    if kept.shape[1] == 0:
        raise InvalidArgumentError("contrast: nothing is left of the model under the null hypothesis.")
    source = estimator.source.with_location(kept)
    begin, p = default_starter(source), kept.shape[1]

    def start(rows: FitRows, which: NDArray[np.intp]) -> torch.Tensor:
        theta = begin(rows, which)
        theta[:, p:] = torch.as_tensor(quasi.fit.theta[which, quasi.fit.n_location :], device=theta.device)
        return theta

    good = np.flatnonzero(np.isfinite(quasi.fit.theta).all(1))
    reduced = fit_glm(source, start=start, options=NewtonOptions(fit_scale=False), genes=good)
    full, null = comparable(quasi.fit, reduced)
    return quasi_f(2 * (full - null), len(contrast), quasi.squeezed, quasi.df)


def fit_at(source: RowSource, fit: GlmFit, dispersion: Array) -> GlmFit:
    """Location coefficients at given dispersions ``(G,)``; genes where they are NaN are left out."""
    start = fit.theta.copy()
    start[:, -1] = -np.log(dispersion)
    good = np.flatnonzero(np.isfinite(start).all(1))
    return fit_glm(
        source,
        start=lambda rows, which: torch.as_tensor(start[which], device=rows.x.device),
        options=NewtonOptions(fit_scale=False),
        genes=good,
    )


def mean_rate(source: RowSource) -> Array:
    """Log of each gene's total count over its total exposure ``(G,)``."""
    out = np.full(source.counts.shape[1], np.nan)
    for which, rows in source.blocks():
        rate = (rows.total.sum(1) + 0.5) / (rows.weight * rows.offset.exp()).sum(1)
        out[which] = rate.log().cpu().numpy()
    return out


def deviances(source: RowSource, theta: Array) -> Array:
    """Twice the log likelihood between means that equal the counts and the fitted ones ``(G,)``."""
    out = np.full(len(theta), np.nan)
    p = source.design.x.shape[1]
    for which, rows in source.blocks(np.flatnonzero(np.isfinite(theta).all(1))):
        at = torch.as_tensor(theta[which], device=rows.x.device)
        zeta = rows.zeta(at[:, p:])
        fitted = source.likelihood.terms(rows.total, rows.weight, rows.eta(at[:, :p]), zeta).value.sum(1)
        assert rows.table is not None
        out[which] = (2 * (rows.table.saturated(zeta) - fitted)).clamp_min(0.0).cpu().numpy()
    return out


def residual_df(source: RowSource, theta: Array) -> Array:
    """Cells less coefficients, both counted without cells of all-zero groups whose fitted mean is zero too ``(G,)``."""
    x, group = source.design.x, torch.as_tensor(source.group, device=source.device)
    n_groups = int(group.max()) + 1
    cells = np.ones(n_groups) if source.compression is None else np.bincount(source.compression.group)
    first = np.arange(n_groups) if source.compression is None else source.compression.first
    columns = x[first] @ source.basis.matrix[: x.shape[1], : x.shape[1]]
    df = np.full(len(theta), float(x.shape[0] - x.shape[1]))
    for which, rows in source.blocks(np.flatnonzero(np.isfinite(theta).all(1))):
        at = torch.as_tensor(theta[which], device=rows.x.device)
        mean = rows.eta(at[:, : x.shape[1]]).exp()
        total = rows.total.new_zeros(len(which), n_groups).index_add_(1, group, rows.total)
        fitted = mean.new_zeros(len(which), n_groups).index_add_(1, group, mean)
        zero = ((total < FITTED_ZERO) & (fitted < FITTED_ZERO)).cpu().numpy()
        for k in np.flatnonzero(zero.any(1)):
            some = ~zero[k]
            df[which[k]] = cells[some].sum() - (np.linalg.matrix_rank(columns[some], rtol=1e-9) if some.any() else 0)
    return df
