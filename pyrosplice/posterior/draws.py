"""From a fitted model of isoform usage to the tree of its posterior; what is asked for is checked before any draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyrosplice.data.names import places_of
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option
from pyrosplice.posterior.memory import require_memory
from pyrosplice.posterior.nuts import NutsOptions
from pyrosplice.posterior.problem import PosteriorProblem
from pyrosplice.posterior.sampling import METHODS, sample_posterior
from pyrosplice.posterior.tree import check_groups, data_tree, numbers_per_draw


def posterior_tree(
    problem: PosteriorProblem, *, num_samples: int, method: str, hyper: str, genes: str | Sequence[int | str] | None,
    names: Mapping[str, Sequence[Any]] | None, groups: Sequence[str] | None, usage: bool, seed: int,
    nuts_options: NutsOptions | None, max_memory: str | float | None,
) -> xr.DataTree:  # fmt: skip
    """See :meth:`pyrosplice.MultinomGLM.posterior`."""
    made = check_groups(problem, groups, usage=usage)
    check_integer("num_samples", num_samples, least=4 if method == "nuts" else 1)
    check_option("method", method, METHODS)
    check_integer("seed", seed, least=0)
    if not (names is None or isinstance(names, Mapping)):
        raise InvalidArgumentError(f"names: expected a dictionary by dimension, found {type(names).__name__}.")
    if nuts_options is not None and (method != "nuts" or not isinstance(nuts_options, NutsOptions)):
        raise InvalidArgumentError(
            f"nuts_options: expected NutsOptions and method='nuts', found {nuts_options!r} and {method!r}."
        )
    given = genes.tolist() if isinstance(genes, Tensor) else genes
    chosen = torch.from_numpy(places_of(given, (names or {}).get("gene", range(problem.n_genes)), "genes"))
    numbers = numbers_per_draw(problem, len(chosen), made, usage=usage, method=method)
    require_memory(numbers, n_chains(method, nuts_options) * num_samples, max_memory)
    samples = sample_posterior(
        problem,
        num_samples=num_samples,
        method=method,
        hyper=hyper,
        genes=chosen,
        seed=seed,
        nuts_options=nuts_options,
    )
    return data_tree(problem, samples, genes=chosen, names=names, groups=made, usage=usage, seed=seed)


def n_chains(method: str, nuts_options: NutsOptions | None) -> int:
    """Chains that a method makes."""
    return (nuts_options or NutsOptions()).num_chains if method == "nuts" else 1
