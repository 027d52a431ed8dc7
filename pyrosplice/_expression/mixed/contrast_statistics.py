"""Ratio and score statistics of contrasts beside random effects, of separated genes as well, and their laws.

A contrast that a separated gene identifies is tested in what is left of it. One that runs to infinity has a likelihood
ratio, of suprema, and a score at the null's estimates. Percent of genes found at 5 / 1 / .1 % among 1,500 without
effect of 3 or more counts, means of .003 to .1 a cell, about 100 cells a donor (Poisson–lognormal donors of standard
deviation τ, dispersion .5), 2 to 7 % of which have no count in one condition:

=================  ================  ==================
donors             ratio             score at the null
=================  ================  ==================
3 v 3, τ = 0       .6 / .0 / .0      .0 / .0 / .0
3 v 3, τ = .4      1.4 / .2 / .0     .0 / .0 / .0
3 v 3, τ = .8      2.8 / .3 / .0     .2 / .0 / .0
4 v 4, τ = .4      3.9 / .2 / .0     .7 / .0 / .0
6 v 6, τ = 0       2.7 / .3 / .0     1.5 / .1 / .0
6 v 6, τ = .3      3.2 / .3 / .0     1.2 / .1 / .0
6 v 6, τ = .8      5.5 / 1.0 / .1    3.3 / .3 / .1
=================  ================  ==================

The score is bounded by about the number of donors less one and says little of few: at 3 v 3 never below .05.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.mixed_record import ContrastLaw
from pyrosplice._hypothesis.coefficients.unit_statistics import (
    Reasons,
    ratio_of_suprema,
    ratio_of_units,
    ratio_tail,
    score_at_null,
    score_of_units,
    wald_tail,
    worse_of,
)
from pyrosplice.effects._reference_df import DfRule, degrees_of_freedom

Array = NDArray[np.float64]


@dataclass
class TestedGenes:
    """Statistics, p-values and degrees of freedom ``(G,)``, and how fits ended that give none, else ""."""

    statistic: Array
    pvalue: Array
    df: Array
    ended: Reasons


@dataclass(frozen=True)
class UnitStatistics:
    """A test of contrasts of every gene, by ratio or score.

    Attributes
    ----------
    estimator
        The fit.
    method
        ``"lrt"`` or ``"score"``.
    free
        Contrasts ``(k, F)`` of the free coefficients.
    df
        Rule of the degrees of freedom, or a number.
    law
        Of the contrasts.
    """

    estimator: MixedEstimator
    method: str
    free: Array
    df: DfRule | float
    law: ContrastLaw

    def all_genes(self) -> TestedGenes:
        """Test every gene."""
        estimator, k = self.estimator, len(self.free)
        statistic_of = ratio_of_units if self.method == "lrt" else score_of_units
        freedom = self.law.robust.df
        if self.method == "lrt" and self.df == "clip":
            freedom = np.minimum(freedom, self.law.between_within)
        out = TestedGenes(
            np.full(len(freedom), np.nan),
            np.full(len(freedom), np.nan),
            freedom.copy(),
            worse_of(estimator.mixed.reason),
        )
        for genes in estimator.blocks():
            fit = estimator.mixed.take(torch.from_numpy(genes))
            out.statistic[genes], out.ended[genes] = statistic_of(estimator.problem(genes), self.free, fit)
        endless = set(self.law.robust.identified or {})
        for limit in estimator.limits:
            genes = limit.genes.limit.genes
            if not endless & set(genes.tolist()):
                rows = self.free @ limit.genes.limit.basis
                out.statistic[genes], out.ended[genes] = statistic_of(limit.problem, rows, limit.fit)
        out.pvalue = wald_tail(out.statistic, k, freedom)
        if endless and estimator.effects.family is None:
            for genes in estimator.blocks():
                self._endless(out, np.array([gene for gene in genes if gene in endless], dtype=np.intp))
        return out

    def _endless(self, out: TestedGenes, genes: NDArray[np.intp]) -> None:
        """Test genes in which contrasts have no finite estimate."""
        if not len(genes):
            return
        units, problem, k = self.law.units, self.estimator.problem(genes), len(self.free)
        freedom = degrees_of_freedom(np.full(len(genes), np.nan), units.df, self.df)
        if self.method == "lrt":
            statistic, ended = ratio_of_suprema(problem, self.free)
            pvalue = ratio_tail(statistic, k, freedom, freedom + units.spent)
        else:
            statistic, ended = score_at_null(problem, self.free)
            pvalue = wald_tail(statistic, k, freedom)
        out.statistic[genes], out.df[genes] = statistic, freedom
        out.pvalue[genes] = np.where(np.isnan(freedom), np.nan, pvalue)
        out.ended[genes] = ended
