"""Tables of random effects of expression: variances of genes, effects of levels, and the units of coefficients."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.separated_genes import SeparatedGenes, known_of_contrasts
from pyrosplice._hypothesis.group_tables import block_named, table_of_variances
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._units import Coefficients, describe_units
from pyrosplice.errors import NotReadyError
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.reasons import Reason


class MixedFit(Protocol):
    """Effects of groups of a fit, and its estimates."""

    @property
    def groups(self) -> tuple[GroupBlock, ...]: ...

    @property
    def mixed(self) -> EffectsFit: ...

    @property
    def coefficients(self) -> Coefficients: ...

    @property
    def separated(self) -> tuple[SeparatedGenes, ...]: ...


class WithEffects(Protocol):
    """A fitted model of expression."""

    gene_names: NDArray[np.object_]
    _constraints: Constraints

    def _mixed_fit(self) -> MixedFit: ...


def coefficients_known(self: WithEffects) -> RobustCovariance:
    """Covariance of the free coefficients given the variances, and which of all coefficients each gene identifies."""
    fit = self._mixed_fit()
    return known_of_contrasts(fit.mixed.covariance, fit.mixed.reason, fit.separated, self._constraints.matrix)


def variance_components(self: WithEffects) -> pd.DataFrame:
    """Tabulate how much random effects vary, a row a gene and standard deviation or correlation.

    Returns
    -------
    DataFrame
        ``gene``, ``effect`` (a term of the formula, ``"space"`` or ``"cell"``), ``parameter`` (``"sd(1)"``,
        ``"correlation(1, age)"``), ``estimate`` on the scale of the predictor (natural log) and ``reason``, "" or why
        there is none. Zero where the data show no variance. Of a field with ``rho="estimate"`` also ``"rho"``, whose
        ``reason`` is ``"at_range_end"`` where no end was in sight between 0 and 0.9991, and ``"not_identified"`` where
        nothing varies in space.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without random effects.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"donor": np.repeat(list("uvwxyz"), 20)})
    >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, donors="donor", donor_sd=[0.0, 1.0], seed=0)
    >>> glm = ExpressionGLM("~ 1 + (1 | donor)").fit(adata)
    >>> table = glm.variance_components().set_index("gene")
    >>> table[["effect", "parameter"]]
               effect parameter
    gene
    gene_1  1 | donor     sd(1)
    gene_2  1 | donor     sd(1)
    >>> bool(table["estimate"]["gene_2"] > table["estimate"]["gene_1"])
    True
    """
    fit = self._mixed_fit()
    return table_of_variances(fit.mixed, fit.groups, self.gene_names, "cell")


def level_effects(self: WithEffects, effect: str | None = None) -> pd.DataFrame:
    """Tabulate the effects of every level of a grouping factor, a row a gene, level and column.

    Parameters
    ----------
    effect
        A random term as the formula writes it, ``"1 | donor"``, or its grouping factor where that has one term; may be
        left out where there is one.

    Returns
    -------
    DataFrame
        ``gene``, ``level``, ``column``, ``effect`` (mode of the effect, natural log), ``se`` (its posterior standard
        deviation, given the variances) and ``reason``.

    Raises
    ------
    InvalidArgumentError
        Another name, or none of several.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"donor": np.repeat(list("uvwxyz"), 20)})
    >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, donors="donor", donor_sd=1.0, seed=0)
    >>> levels = ExpressionGLM("~ 1 + (1 | donor)").fit(adata).random_effects()
    >>> levels.shape, levels["level"].unique().tolist()
    ((12, 6), ['u', 'v', 'w', 'x', 'y', 'z'])
    """
    fit, genes = self._mixed_fit(), self.gene_names
    found = block_named(fit.groups, effect)
    block, mixed = fit.groups[found], fit.mixed
    mode, sd = (values[found][..., 0].numpy() for values in (mixed.group_modes, mixed.group_sds))
    d, q = mode.shape[1:]
    return TestTable(
        labels={
            "gene": np.repeat(genes, d * q),
            "level": np.tile(np.repeat(block.level_names, q), len(genes)),
            "column": np.tile(block.column_names, len(genes) * d),
        },
        effect=mode.ravel(),
        se=sd.ravel(),
        why=np.repeat(unless_ended(mixed.reason, Reason.NOT_IDENTIFIED.value), d * q),
    ).to_frame()


def units(self: WithEffects) -> pd.DataFrame:
    """Say what the units of each coefficient are: cells, or the groups that it is compared between.

    Returns
    -------
    DataFrame
        ``coefficient``, ``unit``, ``n_units`` and ``df``, between–within degrees of freedom.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without random effects.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"donor": np.repeat(list("uvwxyz"), 20)})
    >>> cells["group"] = np.where(cells["donor"].isin(["u", "v", "w"]), "a", "b")
    >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, donors="donor", donor_sd=0.5, seed=0)
    >>> ExpressionGLM("~ group + (1 | donor)").fit(adata).units()  # six donors, however many cells
      coefficient   unit  n_units   df
    0   Intercept  donor        6  4.0
    1  group[T.b]  donor        6  4.0
    """
    fit = self._mixed_fit()
    return describe_units(fit.coefficients, fit.groups)


def require_effects(estimator: object) -> MixedEstimator:
    """The estimator of a fit with random effects.

    Raises
    ------
    NotReadyError
        There is none, or it has none.
    """
    if not isinstance(estimator, MixedEstimator):
        raise NotReadyError(
            "This is of random effects and needs the data: call fit with a formula such as '~ condition + (1 | donor)'."
        )
    return estimator
