r"""Restricted likelihood ratios of parts of the random effects, gene by gene, and their laws where a part is absent.

Of one variance the finite-sample law (:mod:`pyrosplice._hypothesis.variance.single_variance`), else the mixture of χ²
that is the limit for many groups, or a bound of it; or counts drawn from the smaller model and fitted with both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._hypothesis.variance.effect_components import Component
from pyrosplice._hypothesis.variance.single_variance import ZERO, mixture_sf, single_variance_sf
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.component_freedom import component_freedom
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.field_parameter import genes_of
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.simulated_counts import simulated_counts
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.reasons import OPTIMA, Reason

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ComponentRatios:
    """Statistics and p-values ``(G,)``, and how the fits without the part ended."""

    statistic: Array
    pvalue: Array
    null_reason: NDArray[np.object_]

    @classmethod
    def joined(cls, parts: Sequence[ComponentRatios]) -> ComponentRatios:
        """Join those of batches of genes."""
        names = ("statistic", "pvalue", "null_reason")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, genes: NDArray[np.intp]) -> ComponentRatios:
        """Take some of the genes, in an order."""
        return ComponentRatios(self.statistic[genes], self.pvalue[genes], self.null_reason[genes])


def check_component(effects: BoundEffects, part: Component, n_bootstrap: object) -> None:
    """Raise where a part has no law of its ratio.

    Raises
    ------
    InvalidArgumentError
        A field whose ρ was estimated: the largest of several ratios has another law. A number of draws that is none.
    """
    if isinstance(n_bootstrap, bool) or not isinstance(n_bootstrap, int) or n_bootstrap < 0:
        raise InvalidArgumentError(f"n_bootstrap: expected a whole number ≥ 0, found {n_bootstrap!r}.")
    if part.effect == "space" and effects.family is not None:
        raise InvalidArgumentError(
            "component: the field's rho was estimated, which no law of the ratio knows of; fit with a given one, such "
            "as Field(), or use test_spatial_variability(), the score test."
        )


def law_of_component(part: Component, n_bootstrap: int) -> str:
    """What tables call the law."""
    if n_bootstrap:
        return "bootstrap"
    return "finite sample" if part.n_parameters == 1 and not part.kept else "mixture of chi2"


def component_ratios(
    problem: EffectsProblem,
    part: Component,
    full: EffectsFit,
    *,
    n_bootstrap: int = 0,
    seeds: Sequence[np.random.SeedSequence] = (),
) -> ComponentRatios:
    """Test a part of the random effects of a batch of genes.

    Parameters
    ----------
    problem, full
        The model with it, and its restricted fit.
    n_bootstrap, seeds
        Data sets a gene that are drawn from the model without it, and a seed for each gene; 0 for the law.
    """
    null = fit_effects(part.without(problem))
    statistic, law = ratio(full, null), law_of_component(part, n_bootstrap)
    if law == "bootstrap":
        pvalue = _bootstrapped(problem, part, null, statistic, seeds, n_bootstrap)
    elif law == "finite sample":
        pvalue = single_variance_sf(statistic, component_freedom(problem, part.effect, null))
    else:
        pvalue = mixture_sf(statistic, part.n_parameters)
    return ComponentRatios(statistic, pvalue, null.reason)


def ratio_table(
    found: ComponentRatios, full_reason: NDArray[np.object_], part: Component, *, n_bootstrap: int
) -> pd.DataFrame:
    """Tabulate ratios, a row a gene: ``statistic``, ``pvalue``, ``pvalue_adj``, ``law`` and ``reason``.

    ``full_reason`` is how the fits with the part ended.
    """
    why = unless_ended(full_reason, unless_ended(found.null_reason, Reason.NOT_FINITE.value))
    return TestTable(
        labels={},
        statistic=found.statistic,
        pvalue=found.pvalue,
        pvalue_adj=adjust_pvalues(found.pvalue),
        why=why,
        more={"law": law_of_component(part, n_bootstrap)},
    ).to_frame()


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
