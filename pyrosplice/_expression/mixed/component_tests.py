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

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._expression.mixed.components import Component, component_of
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._hypothesis.variance.single_variance import ZERO, mixture_sf, single_variance_sf
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.component_freedom import component_freedom
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.field_parameter import genes_of
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.simulated_counts import simulated_counts
from pyrosplice.reasons import OPTIMA, Reason

Array = NDArray[np.float64]


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
    if isinstance(n_bootstrap, bool) or not isinstance(n_bootstrap, int) or n_bootstrap < 0:
        raise InvalidArgumentError(f"n_bootstrap: expected a whole number ≥ 0, found {n_bootstrap!r}.")
    return component_table(estimator, component_of(estimator.effects, component), n_bootstrap=n_bootstrap, seed=seed)


test_component.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def component_table(estimator: MixedEstimator, part: Component, *, n_bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Tabulate the test of a part of the random effects.

    Raises
    ------
    InvalidArgumentError
        A field whose ρ was estimated: the largest of several ratios has another law.
    """
    if part.name == "space" and estimator.effects.family is not None:
        raise InvalidArgumentError(
            "component: the field's rho was estimated, which no law of the ratio knows of; fit with a given one, such "
            "as Field(), or use test_spatial_variability(), the score test."
        )
    full, one_variance = estimator.mixed, part.n_parameters == 1 and not part.kept
    statistics, pvalues, ended, laws = [], [], [], {True: "finite sample", False: "mixture of chi2"}
    for genes in estimator.blocks():
        problem = estimator.problem(genes)
        null = fit_effects(part.without(problem))
        statistic = ratio(full.take(torch.from_numpy(genes)), null)
        if n_bootstrap:
            pvalue = _bootstrapped(
                problem, part, null, statistic, [np.random.SeedSequence([seed, g]) for g in genes], n_bootstrap
            )
        elif one_variance:
            inner = "noise" if part.name == "cell" else part.name
            freedom = component_freedom(problem, inner if part.effect is None else part.effect, null)
            pvalue = single_variance_sf(statistic, freedom)
        else:
            pvalue = mixture_sf(statistic, part.n_parameters)
        statistics.append(statistic)
        pvalues.append(pvalue)
        ended.append(null.reason)
    pvalue = np.concatenate(pvalues)
    why = unless_ended(full.reason, unless_ended(np.concatenate(ended), Reason.NOT_FINITE.value))
    table = TestTable(
        labels={},
        statistic=np.concatenate(statistics),
        pvalue=pvalue,
        pvalue_adj=adjust_pvalues(pvalue),
        why=why,
        more={"law": "bootstrap" if n_bootstrap else laws[one_variance]},
    ).to_frame()
    return table.set_axis(pd.Index(estimator.input_data.counts.gene_names, name="gene"))


def ratio(full: EffectsFit, null: EffectsFit) -> Array:
    """Twice the gain in log likelihood (G,), not negative; NaN where one of the two is at no optimum."""
    optima = [reason.value for reason in OPTIMA]
    good = np.isin(full.reason, optima) & np.isin(null.reason, optima)
    gain = 2 * (full.log_likelihood - null.log_likelihood).numpy()
    return np.where(good, np.maximum(gain, 0.0), np.nan)


def _bootstrapped(
    problem: EffectsProblem,
    part: Component,
    null: EffectsFit,
    statistic: Array,
    seeds: Sequence[np.random.SeedSequence],
    n_bootstrap: int,
) -> Array:
    """P-values ``(1 + #{drawn ≥ observed}) / (n + 1)``; draws without a fit count as larger."""
    smaller, out = part.without(problem), np.full(len(statistic), np.nan)
    for gene in np.flatnonzero(np.isfinite(statistic)).tolist():
        if statistic[gene] <= ZERO:
            out[gene] = 1.0
            continue
        state = seeds[gene].generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        alone = genes_of(problem, np.array([gene]))
        counts = simulated_counts(
            genes_of(smaller, np.array([gene])), null.take(torch.tensor([gene])), n_bootstrap, generator
        )
        drawn = [_drawn(alone, counts), _drawn(part.without(alone), counts)]
        gains = ratio(*(fit_effects(one) for one in drawn))
        out[gene] = (1 + np.sum(~(gains < statistic[gene]))) / (n_bootstrap + 1)
    return out


def _drawn(alone: EffectsProblem, counts: torch.Tensor) -> EffectsProblem:
    """The problem of one gene with counts ``(n, N, K)`` in the place of its own."""
    many = genes_of(alone, np.zeros(len(counts), dtype=np.intp))
    return EffectsProblem(**{**vars(many), "counts": counts})
