r"""Permutation null of a statistic that depends on where the spots are.

The rows (counts and covariates together) of a gene are moved to other positions. Every gene has its own seeded
sequence of distinct draws, which depends on the seed and the gene's number only, not on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError

PermutedStatistic = Callable[[Tensor, Tensor], Tensor]
"""Statistics (A,) of genes (A,) in an ``order`` (A, N): row ``order[a, i]`` of gene a stands at position i."""


@dataclass(frozen=True)
class PermutationNull:
    """How to permute.

    Attributes
    ----------
    n_permutations
        Largest number L of permutations a gene.
    seed
        Non-negative whole number.
    early_stop
        Stop a gene once so many permuted statistics h reached the observed one (sequential Monte Carlo test of Besag &
        Clifford 1991, Biometrika 78:301); its p-value is then :math:`h / l` after l permutations, valid as it is.
        None: never.
    """

    n_permutations: int = 1000
    seed: int = 0
    early_stop: int | None = None


def permutation_test(
    statistic: PermutedStatistic,
    null: PermutationNull,
    *,
    n_genes: int,
    n_spots: int,
    gene_numbers: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""P-values from each gene's own permutations, large statistics extreme.

    Parameters
    ----------
    statistic
        Called with the genes still in the running and one order for each.
    null
        How to permute.
    gene_numbers
        Numbers that identify the genes beyond this batch, ``(G,)``; default 0, 1, ….

    Returns
    -------
    observed, pvalue, n_used
        ``(G,)`` each. Without a stop, :math:`(1 + \#\{\ge\}) / (L + 1)`. NaN where the observed statistic is NaN; a
        NaN permuted statistic counts as reaching it.
    """
    n_permutations, early_stop = null.n_permutations, null.early_stop
    if n_permutations < 1:
        raise InvalidArgumentError(f"n_permutations: expected at least 1, found {n_permutations}.")
    if early_stop is not None and early_stop < 1:
        raise InvalidArgumentError(f"early_stop: expected at least 1 or None, found {early_stop}.")
    numbers = range(n_genes) if gene_numbers is None else gene_numbers.tolist()
    generators = [np.random.default_rng([null.seed, number]) for number in numbers]
    running = torch.arange(n_genes)
    observed = statistic(running, torch.arange(n_spots).expand(n_genes, -1))
    reached, used = torch.zeros(n_genes, dtype=torch.int64), torch.zeros(n_genes, dtype=torch.int64)
    running = running[~torch.isnan(observed)]
    for _ in range(n_permutations):
        if not len(running):
            break
        order = torch.from_numpy(np.stack([generators[g].permutation(n_spots) for g in running.tolist()]))
        reached[running] += (~(statistic(running, order) < observed[running])).to(torch.int64)
        used[running] += 1
        if early_stop is not None:
            running = running[reached[running] < early_stop]
    pvalue = (1.0 + reached.to(torch.float64)) / (used + 1)
    if early_stop is not None:
        pvalue = torch.where(reached >= early_stop, reached.to(torch.float64) / used, pvalue)
    return observed, torch.where(torch.isnan(observed), torch.nan, pvalue), used
