r"""Whether a random effect is there: restricted likelihood ratios of variances, gene by gene.

Twice the gain in restricted log likelihood by the effect. The law where it is absent: of one variance the
finite-sample one (:mod:`pyrosplice._hypothesis.variance.single_variance`), else the mixture of χ² that is the limit for
many groups, or a bound of it. ``n_bootstrap`` draws counts from the smaller model instead and fits both again.

Rejected at 5 %, negative-binomial genes whose effect is absent (tests/studies/variance_components.py; 30 cells a donor;
1,000 to 2,000 genes a cell of the table, s.e. 0.5 to 0.7 points):

============================================ ===============================
``(1 | donor)``, 6, 12 and 40 donors          4.1 to 5.8 %, unequal donors too
``(0 + x | donor)`` as a term of its own      3.1 to 5.9 %
``(0 + x | donor)`` of ``(1 + x | donor)``    2.2 to 4.9 %: conservative with few donors
``(1 + x | donor)``, 12 donors                1.1 %: a bound
field on 256 spots, by a covariate or not     4.0 to 4.7 %; 0.9 to 1.5 % at 0.05 counts a spot
``cell``                                      4.7 to 4.8 % beside Poisson, 1.6 % beside negative binomial
============================================ ===============================
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd
import torch

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._hypothesis.variance.component_ratio import (
    ComponentRatios,
    check_component,
    component_ratios,
    ratio_table,
)
from pyrosplice._hypothesis.variance.effect_components import Component, component_of


class WithComponents(Protocol):
    """A fitted model of expression."""

    def _mixed_estimator(self) -> MixedEstimator: ...


def test_component(self: WithComponents, component: str, *, n_bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Test whether a random effect varies at all, by the restricted likelihood ratio of the model without it.

    Parameters
    ----------
    component
        A random term as the formula writes it, ``"(1 | donor)"``; slopes of a longer one, ``"(0 + condition |
        donor)"`` of ``(1 + condition | donor)``; ``"space"``, or ``"cell"``.
    n_bootstrap
        Data sets a gene that are drawn from the model without it and fitted with and without: p-values in steps of
        1 / (n + 1), from 2 n fits. 0 for the law without draws, which is nominal or conservative, see below.
    seed
        Of what is drawn; each gene has its own numbers.

    Returns
    -------
    DataFrame
        By gene ``statistic``, ``pvalue``, ``pvalue_adj``, ``law`` and ``reason``. ``law`` is ``"finite sample"`` for
        one variance, ``"mixture of chi2"`` for covariances, or ``"bootstrap"``.

    Raises
    ------
    InvalidArgumentError
        No such effect; an intercept without its slopes; a field whose ρ was estimated.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"donor": np.repeat(list("uvwxyz"), 20)})
    >>> adata = simulate_expression(cells, n_genes=2, mean=5.0, donors="donor", donor_sd=[0.0, 1.0], seed=0)
    >>> table = ExpressionGLM("~ 1 + (1 | donor)").fit(adata).test_component("1 | donor")
    >>> (table["pvalue"] < 0.01).tolist()
    [False, True]
    """
    estimator = self._mixed_estimator()
    return component_table(estimator, cell_component(estimator, component), n_bootstrap=n_bootstrap, seed=seed)


test_component.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def cell_component(estimator: MixedEstimator, component: str) -> Component:
    """The part of the random effects that a person names."""
    return component_of(estimator.effects, component, noise="cell")


def component_table(estimator: MixedEstimator, part: Component, *, n_bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Tabulate the test of a part of the random effects.

    Raises
    ------
    InvalidArgumentError
        What :func:`~pyrosplice._hypothesis.variance.component_ratio.check_component` refuses.
    """
    check_component(estimator.effects, part, n_bootstrap)
    full, parts = estimator.mixed, []
    for genes in estimator.blocks():
        seeds = [np.random.SeedSequence([seed, gene]) for gene in genes]
        own = estimator.problem(genes), part, full.take(torch.from_numpy(genes))
        parts.append(component_ratios(*own, n_bootstrap=n_bootstrap, seeds=seeds))
    return ratio_table(ComponentRatios.joined(parts), full.reason, part, n_bootstrap=n_bootstrap).set_axis(
        pd.Index(estimator.input_data.counts.gene_names, name="gene")
    )
