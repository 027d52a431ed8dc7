"""Shrunken effects of a fitted expression model, and dispersions by Cox and Reid's adjustment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.dispersion import cox_reid
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.engine.shrink import prior_scale, shrink_coefficient
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.noise_models import estimates_dispersion
from pyrosplice._expression.quasi_test import QuasiFit, fit_at
from pyrosplice._expression.thresholds import log_unit
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.errors import InvalidArgumentError, check_option, listed
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]


class WithoutEffects(Protocol):
    """A fitted model of expression without random effects."""

    gene_names: NDArray[np.object_]
    quasi: Callable[[], QuasiFit]
    _constraints: Constraints

    @property
    def results(self) -> GlmFit: ...

    @property
    def _link(self) -> str | None: ...

    def _data(self) -> Estimator: ...


def shrink(
    self: WithoutEffects, coefficient: str, *, scale: float | None = None, dispersions: str = "fitted"
) -> pd.DataFrame:
    """Shrink a coefficient by a Cauchy prior: ``effect`` and ``se``, posterior mode and SD (log₂ of a fold change).

    ``scale`` (natural log) is estimated from all genes where None. ``dispersions="shrunken"`` holds each gene's at
    the one that :meth:`quasi` shrinks to the trend, which pays with few samples. Errors beside other libraries':
    :mod:`pyrosplice._expression.engine.shrink`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> samples = pd.DataFrame({"group": np.repeat(["a", "b"], 4)})
    >>> adata = simulate_expression(samples, n_genes=50, mean=20.0, dispersion=0.2, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> shrunken = glm.shrink("group[T.b]")["effect"]
    >>> bool(shrunken.abs().mean() < abs(glm.test(factor="group").log2_fold_change()).mean())
    True
    """
    check_option("dispersions", dispersions, ("fitted", "shrunken"))
    names = self._constraints.free_names
    if coefficient not in names:
        known = listed(names, near=str(coefficient))
        raise InvalidArgumentError(f"coefficient: expected one of {known}, found {coefficient!r}.")
    k, fit = names.index(coefficient), self.results
    if dispersions == "shrunken":
        fit = fit_at(self._data().source, fit, self.quasi().dispersions.shrunk)
    se = np.sqrt(fit.covariance[:, k, k])
    scale = prior_scale(fit.theta[:, k], se) if scale is None else scale
    mode, sd = shrink_coefficient(self._data().source, fit, k, scale=scale)
    unit, why = log_unit(self._link), unless_ended(fit.reason, Reason.NOT_FINITE.value)
    labels, more = {"gene": self.gene_names}, {"effect_mle": self.results.theta[:, k] / unit, "prior_scale": scale}
    return TestTable(labels=labels, effect=mode / unit, se=sd / unit, why=why, more=more).to_frame()


def adjusted_dispersion(self: WithoutEffects) -> Array:
    """Estimate each gene's dispersion ``(G,)`` by Cox and Reid's adjustment; 0 at the boundary, one scale only.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> samples = pd.DataFrame({"group": np.repeat(["a", "b"], 4)})
    >>> adata = simulate_expression(samples, n_genes=50, mean=20.0, dispersion=0.2, seed=0)
    >>> glm = ExpressionGLM("~ group").fit(adata)
    >>> glm.adjusted_dispersion().shape, bool(abs(np.median(glm.adjusted_dispersion()) - 0.2) < 0.05)
    ((50,), True)
    """
    estimator = self._data()
    if estimator.source.design.z.shape[1] != 1 or not estimates_dispersion(estimator.source.likelihood):
        raise InvalidArgumentError(
            "formula_scale: the adjusted dispersion needs negative-binomial noise, estimated, and '~1'."
        )
    theta, code = cox_reid(estimator.source, self.results)
    return np.where(code == FitCode.POISSON_BOUNDARY, 0.0, np.exp(-theta[:, -1]))
