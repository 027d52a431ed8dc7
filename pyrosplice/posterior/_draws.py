"""Draws of a fitted model of isoform usage, as the tree of its posterior; checked before any is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyrosplice._tables.names import places_of
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option
from pyrosplice.posterior._memory import require_memory
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.posterior._sampling import METHODS, sample_posterior
from pyrosplice.posterior._tree import check_groups, data_tree, numbers_per_draw


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """What is asked of the posterior of isoform usage; :meth:`pyrosplice.MultinomGLM.posterior` documents it."""

    num_samples: int
    method: str
    hyper: str
    genes: str | Sequence[int | str] | None
    names: Mapping[str, Sequence[Any]] | None
    groups: Sequence[str] | None
    usage: bool
    seed: int
    nuts_options: NutsOptions | None
    max_memory: str | float | None

    def check(self) -> None:
        """Raise for what no model could follow."""
        method, options = self.method, self.nuts_options
        check_integer("num_samples", self.num_samples, least=4 if method == "nuts" else 1)
        check_option("method", method, METHODS)
        check_integer("seed", self.seed, least=0)
        if not (self.names is None or isinstance(self.names, Mapping)):
            raise InvalidArgumentError(f"names: expected a dictionary by dimension, found {type(self.names).__name__}.")
        if options is not None and (method != "nuts" or not isinstance(options, NutsOptions)):
            raise InvalidArgumentError(
                f"nuts_options: expected NutsOptions and method='nuts', found {options!r} and {method!r}."
            )


def posterior_tree(problem: PosteriorProblem, asked: DrawOptions) -> xr.DataTree:
    """Draw from the posterior of a fitted model; :meth:`pyrosplice.MultinomGLM.posterior` says how."""
    made = check_groups(problem, asked.groups, usage=asked.usage)
    asked.check()
    method, names, usage = asked.method, asked.names, asked.usage
    given = asked.genes.tolist() if isinstance(asked.genes, Tensor) else asked.genes
    genes = torch.from_numpy(places_of(given, (names or {}).get("gene", range(problem.n_genes)), "genes"))
    numbers = numbers_per_draw(problem, len(genes), made, usage=usage, method=method)
    require_memory(numbers, n_chains(method, asked.nuts_options) * asked.num_samples, asked.max_memory)
    samples = sample_posterior(
        problem,
        num_samples=asked.num_samples,
        method=method,
        hyper=asked.hyper,
        genes=genes,
        seed=asked.seed,
        nuts_options=asked.nuts_options,
    )
    return data_tree(problem, samples, genes=genes, names=names, groups=made, usage=usage, seed=asked.seed)


def n_chains(method: str, nuts_options: NutsOptions | None) -> int:
    """Number of chains that a method makes."""
    return (nuts_options or NutsOptions()).num_chains if method == "nuts" else 1
