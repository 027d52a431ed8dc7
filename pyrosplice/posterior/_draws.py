"""Draws of a fitted model of isoform usage, as the tree of its posterior; checked before any is made."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from pyrosplice._tables.names import places_of
from pyrosplice.posterior._chains import in_chains
from pyrosplice.posterior._draw_options import DrawOptions
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.posterior._progress import progress
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
    kept = asked.within_memory(numbers)
    with progress(quiet=asked.quiet):
        samples = sample_posterior(problem, kept, genes)
        tree = data_tree(problem, samples, names=names, groups=made, usage=usage, seed=asked.seed)
    return in_chains(tree, asked, kept)


def n_chains(method: str, nuts_options: NutsOptions | None) -> int:
    """Number of chains that a sampler makes; independent draws are made as one, and divided."""
    return (nuts_options or NutsOptions()).num_chains if method == "nuts" else 1
