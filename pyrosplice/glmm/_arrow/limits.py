r"""Separated genes at the supremum of their likelihood: what is left once some log means are at minus infinity.

Along the directions in which the likelihood of a gene only rises, the observations that recede have counts of zero with
probability one, whatever the random effects are. The others have the likelihood of a model of their own, whose design
is that of their rows: it has finite estimates, and its contrasts are all that the counts identify (Geyer 2009,
Electron. J. Stat. 3:259). Observations that recede stay in the arrays, with no coefficient and no mean, so that groups
and fields are as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._level_spaces import range_and_rows
from pyrosplice.effects._units import Coefficients
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._separation import receding_rows
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
Genes = NDArray[np.intp]
RECEDED = -50.0  # log mean of observations that recede: e⁻⁵⁰ of a count each
TOUCHES = 1e-6  # part of a contrast along a direction that goes to infinity above which it goes there too


@dataclass(frozen=True)
class Limit:
    r"""The model that is left of genes of which the same observations recede.

    Attributes
    ----------
    genes : (g,)
        Positions of the genes.
    kept : (N,)
        Observations that do not recede.
    basis : (P, r)
        B: coefficients are :math:`\beta = B \gamma` and what runs to infinity.
    identified : (P, r)
        Orthonormal basis of the contrasts that are identified, over the ``turn``.
    turn : (P, P)
        T, under which columns of the design are uncorrelated and of one size.
    """

    genes: Genes
    kept: NDArray[np.bool_]
    basis: Array
    identified: Array
    turn: Array

    def problem(self, whole: EffectsProblem) -> EffectsProblem:
        """What is left of a problem of just these genes."""
        receded = np.where(self.kept, 0.0, RECEDED)
        offset = np.zeros(len(self.kept)) if whole.offset is None else np.asarray(whole.offset, dtype=np.float64)
        kept = self.kept if offset.ndim == 1 else self.kept[:, None]
        offset = np.where(kept, offset, receded if offset.ndim == 1 else receded[:, None])
        return replace(whole, design=_products(whole.design, self.basis) * self.kept[:, None], offset=offset)

    def combinations(self, rows: Array) -> Array:
        """Combinations ``(q, k)`` of contrasts ``(k, P)`` that have a finite estimate."""
        scaled = rows @ self.turn
        length = np.linalg.norm(scaled, axis=1, keepdims=True)
        length = np.where(length > 0, length, 1.0)
        along = scaled / length
        along = along - (along @ self.identified) @ self.identified.T
        left, size, _ = np.linalg.svd(along)
        touched = int((size > TOUCHES).sum())
        return np.asarray(left[:, touched:].T / length.T, dtype=np.float64)

    def coefficients(self, whole: Coefficients) -> Coefficients:
        """The design of γ over the observations that are kept."""
        matrix = _products(whole.matrix[self.kept], self.basis)
        return Coefficients(matrix, [f"identified {k + 1}" for k in range(matrix.shape[1])])

    def groups(self, blocks: Sequence[GroupBlock]) -> tuple[GroupBlock, ...]:
        """Effects of groups over the observations that are kept, of the levels that these have."""
        return tuple(_at(block, self.kept) for block in blocks)


def limits_of(problem: EffectsProblem, genes: Genes) -> list[tuple[Limit, Array]]:
    """What is left of separated genes, those of which the same observations recede together.

    Parameters
    ----------
    problem
        Counts with one predictor, of all genes.
    genes
        Positions of those that are separated.

    Returns
    -------
    Pairs of a limit and directions ``(g, P)`` of the coefficients of its genes along which predictors of the
    observations that recede fall by one or more, and no others move.
    """
    turn = Coefficients(np.asarray(problem.design), [""] * problem.design.shape[1]).turn
    turned = _products(problem.design, turn)
    alike: dict[bytes, list[tuple[int, NDArray[np.bool_], Array]]] = {}
    for gene in genes.tolist():
        receded, direction = receding_rows(problem.counts[gene, :, 0].numpy() > 0, turned)
        if receded.any():
            alike.setdefault(receded.tobytes(), []).append((gene, ~receded, turn @ direction))
    out = []
    for same in alike.values():
        kept, places = same[0][1], np.array([gene for gene, *_ in same], dtype=np.intp)
        identified = range_and_rows(turned[kept])[1]
        limit = Limit(places, kept, turn @ identified, identified, turn)
        out.append((limit, np.stack([direction for *_, direction in same])))
    return out


def supremum_log_likelihood(problem: EffectsProblem) -> tuple[Tensor, NDArray[np.object_]]:
    """Suprema of the marginal log likelihoods of all genes ``(G,)``, and how the fits behind them ended.

    Those of separated genes are of what is left of them.
    """
    whole = fit_effects(problem, restricted=False)
    value, reason = whole.log_likelihood.clone(), whole.reason.copy()
    for limit, _ in limits_of(problem, np.flatnonzero(reason == Reason.SEPARATED.value)):
        at = torch.from_numpy(limit.genes)
        left = limit.problem(problem_of_genes(problem, at))
        fit = fit_effects(left, restricted=False)
        value[at], reason[limit.genes] = fit.log_likelihood, fit.reason
    return value, reason


def problem_of_genes(problem: EffectsProblem, genes: Tensor) -> EffectsProblem:
    """The problem of some of the genes."""
    offset = problem.offset
    given = offset is not None and np.ndim(offset) > 1
    return replace(problem, counts=problem.counts[genes], offset=np.asarray(offset)[genes.numpy()] if given else offset)


def _products(rows: Array, basis: Array) -> Array:
    """Multiply ``rows @ basis``, row by row alike, so that equal rows stay equal."""
    return np.stack([np.zeros(len(rows)), *((rows * own).sum(1) for own in basis.T)], 1)[:, 1:]


def _at(block: GroupBlock, kept: NDArray[np.bool_]) -> GroupBlock:
    levels = block.levels[kept]
    used = np.unique(levels[levels >= 0])
    names = tuple(block.level_names[k] for k in used)
    own = np.where(levels >= 0, np.searchsorted(used, levels), -1)
    return replace(block, levels=own, columns=block.columns[kept], level_names=names, root=None)
