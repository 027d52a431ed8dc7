"""Ratio and score statistics of contrasts beside random effects, of separated genes as well, and their laws.

A contrast that a separated gene identifies is tested in what is left of it. One that runs to infinity has a likelihood
ratio, of suprema, by the law of the balanced normal model, and a score at the null's estimates, whose F has the
between–within degrees of freedom of the design. Percent of genes without effect found at 5 / 1 % (about 1,450 of three
counts or more, means of .003 to .1 a cell, about 100 cells a donor, negative binomial, donors' standard deviation τ),
in brackets how much of it separated genes are: ``python -m tests.studies.effects_methods``.

=================  =========  ======================  ======================
donors             separated  ratio                   score
=================  =========  ======================  ======================
3 v 3, τ = 0       5.8        .6 / .0 (.4 / .0)       1.8 / .3 (.0 / .0)
3 v 3, τ = .4      3.1        1.8 / .1 (.3 / .0)      4.3 / 1.3 (.0 / .0)
3 v 3, τ = .8      4.0        2.9 / .1 (.4 / .1)      5.6 / 1.1 (.0 / .0)
4 v 4, τ = .4      2.6        3.1 / .1 (.8 / .1)      5.8 / 1.5 (.0 / .0)
6 v 6, τ = .3      2.2        2.9 / .2 (.9 / .1)      4.3 / .8 (.3 / .0)
6 v 6, τ = .8      1.6        4.4 / .5 (.7 / .2)      5.7 / 1.4 (.1 / .0)
=================  =========  ======================  ======================

The score of such a contrast is bounded by about the number of donors less one, and says little of few of them: at 3 v 3
it is never below .05. A score test that has what is tested in the variance but the law of a bounded statistic, exact in
the balanced normal model, found 1.3 to 2.5 % at 1 % and up to 1.3 % at .1 % there.
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
