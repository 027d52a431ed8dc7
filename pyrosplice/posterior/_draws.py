"""Draws of a fitted model of isoform usage, as the tree of its posterior; checked before any is made."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from pyrosplice._tables.names import places_of
from pyrosplice.posterior._draw_options import DrawOptions
from pyrosplice.posterior._memory import require_memory
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.posterior._sampling import sample_posterior
from pyrosplice.posterior._tree import check_groups, data_tree, numbers_per_draw


def posterior_tree(problem: PosteriorProblem, asked: DrawOptions) -> xr.DataTree:
    """Draw from the posterior of a fitted model; :meth:`pyrosplice.MultinomGLM.posterior` says how."""
    made = check_groups(problem, asked.groups, usage=asked.usage)
    asked.check()
    method, names, usage = asked.method, asked.names, asked.usage
    given = asked.genes.tolist() if isinstance(asked.genes, Tensor) else asked.genes
    genes = torch.from_numpy(places_of(given, (names or {}).get("gene", range(problem.n_genes)), "genes"))
    numbers = numbers_per_draw(problem, len(genes), made, usage=usage, method=method)
    require_memory(numbers, n_chains(method, asked.nuts_options) * asked.num_samples, asked.max_memory)
    samples = sample_posterior(problem, asked, genes)
    return data_tree(problem, samples, names=names, groups=made, usage=usage, seed=asked.seed)


def n_chains(method: str, nuts_options: NutsOptions | None) -> int:
    """Number of chains that a method makes."""
    return (nuts_options or NutsOptions()).num_chains if method == "nuts" else 1
