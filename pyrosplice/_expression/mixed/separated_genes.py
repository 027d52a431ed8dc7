"""Separated genes beside random effects: the fits of what is left of them, and what these know of contrasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._hypothesis.coefficients.unit_law import freedom_of
from pyrosplice._io.codec import check_sizes
from pyrosplice.effects._explained import check_unexplained
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.effects._units import ContrastUnits, DesignUnits
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.limits import Limit, limits_of, problem_of_genes
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw, covariance_law
from pyrosplice.reasons import OPTIMA, Reason

Array = NDArray[np.float64]
Genes = NDArray[np.intp]
FAR = 20.0  # how far the estimates given have predictors fall that run to minus infinity: e⁻²⁰ is no count


@dataclass(frozen=True)
class SeparatedGenes:
    """Genes of which the same cells have means that run to zero, and what is known of the rest.

    Attributes
    ----------
    limit
        The genes, by their positions in the fit, and the model that is left of them.
    law
        Covariances of its coefficients γ.
    """

    limit: Limit
    law: CovarianceLaw

    def units(self, whole: DesignUnits, combined: Array, df: DfRule | float) -> ContrastUnits | None:
        """Units of contrasts ``(q, P)`` over the cells that are left; None for no more units than coefficients."""
        key, sections = whole.sections or ("", None)
        own = DesignUnits(
            self.limit.coefficients(whole.coefficients),
            self.limit.groups(whole.blocks),
            whole.observations,
            None if sections is None else (key, sections[self.limit.kept]),
        )
        fewest = min((own.describe(row) for row in combined @ self.limit.basis), key=lambda one: one.df)
        return None if fewest.df < 1 and df in ("clip", "between-within") else fewest

    def freedom(self, combined: Array, units: ContrastUnits, df: DfRule | float) -> Array:
        """Degrees of freedom ``(g,)`` of contrasts ``(q, P)`` that are identified."""
        return freedom_of(self.law, combined @ self.limit.basis, units, df)

    def check(self, n_genes: int, coefficients: Sequence[str], n_cells: int) -> None:
        """Raise :class:`~pyrosplice.errors.ModelFileError` where parts of a file are of different sizes."""
        limit, law = self.limit, self.law
        check_sizes(
            names=(coefficients, "P"),
            identified=(limit.identified, "Pr"),
            basis=(limit.basis, "Pr"),
            turn=(limit.turn, "PP"),
            separated=(limit.genes, "g"),
            law=(law.covariance, "grr"),
            slopes=(law.slopes, "gkrr"),
            parameter_covariance=(law.parameter_covariance, "gkk"),
        )
        if len(limit.kept) != n_cells:
            raise ModelFileError(f"separated: expected {n_cells} cells, found {len(limit.kept)}.")
        if not np.isin(limit.genes, np.arange(n_genes)).all():
            raise ModelFileError(f"separated: expected positions of {n_genes} genes, found others.")

    @property
    def covariance(self) -> Array:
        """Covariance ``(g, P, P)`` of what is identified of all coefficients."""
        basis = self.limit.basis
        return np.asarray(basis @ self.law.covariance.numpy() @ basis.T, dtype=np.float64)


def known_of_contrasts(
    covariance: Tensor, reason: NDArray[np.object_], separated: Sequence[SeparatedGenes], rows: Array
) -> RobustCovariance:
    """Covariances ``(G, F, F)`` of all genes, and which contrasts ``(k, F)`` separated ones identify; no df (NaN)."""
    whole = covariance.numpy().copy()
    lost = np.flatnonzero(reason == Reason.SEPARATED.value)
    identified = {gene: np.zeros((0, len(rows))) for gene in lost.tolist()}
    for part in separated:
        kept = part.limit.combinations(rows)
        whole[part.limit.genes] = part.covariance
        for gene in part.limit.genes.tolist():
            identified[gene] = kept
            if len(kept) == len(rows):
                del identified[gene]
    return RobustCovariance(whole, np.full(len(whole), np.nan), identified=identified)


@dataclass(frozen=True)
class LimitFit:
    """Separated genes with their fit, the problem that was fitted, and estimates ``(g, P)`` of all coefficients."""

    genes: SeparatedGenes
    fit: EffectsFit
    problem: EffectsProblem
    coefficients: Array


def limit_fits(
    problem: EffectsProblem, units: DesignUnits, genes: Genes, reason: NDArray[np.object_]
) -> list[LimitFit]:
    """Fit what is left of the separated ones of some genes, those of a ``problem``, at their places ``genes``.

    Genes of which too little is left for random effects are not among them.
    """
    out: list[LimitFit] = []
    if problem.counts.shape[2] > 1 or not problem.likelihood.of_counts:
        return out
    for limit, directions in limits_of(problem, np.flatnonzero(reason == Reason.SEPARATED.value)):
        coefficients, blocks = limit.coefficients(units.coefficients), limit.groups(units.blocks)
        if limit.kept.sum() <= len(coefficients.names):
            continue
        try:
            check_unexplained(coefficients, blocks)
        except InvalidArgumentError:  # said of the genes by their reason
            continue
        left = limit.problem(problem_of_genes(problem, torch.from_numpy(limit.genes)))
        fit = fit_effects(left)
        good = np.flatnonzero(np.isin(fit.reason, [one.value for one in OPTIMA]))
        at = torch.from_numpy(good)
        fit, left, law = fit.take(at), problem_of_genes(left, at), covariance_law(left, fit.take(at))
        estimates = fit.coefficients[..., 0].numpy() @ limit.basis.T + FAR * directions[good]
        out.append(LimitFit(SeparatedGenes(replace(limit, genes=genes[limit.genes[good]]), law), fit, left, estimates))
    return out
