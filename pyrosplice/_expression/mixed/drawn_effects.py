"""The posterior of expression with random effects as the tree that ArviZ reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.noise_models import mean_link
from pyrosplice._expression.posterior import Arrays, ExpressionDrawOptions
from pyrosplice._tables.names import places_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.posterior._chains import in_chains
from pyrosplice.posterior._effects_tree import LEAD, EffectsDraws, Sites, tree_of_effects
from pyrosplice.posterior._progress import progress
from pyrosplice.posterior._tree import GROUPS

RESERVED = ("location", "log2_effect", "space", "noise", "gene", "cell", "coefficient", "chain", "draw")


@dataclass(frozen=True)
class DrawnEffects:
    """Some genes of a fit with random effects, and how sites of their Pyro model are reported.

    Attributes
    ----------
    estimator
        The fit.
    genes
        Positions of the genes.
    priors
        By site.
    """

    estimator: MixedEstimator
    genes: Tensor
    priors: Mapping[str, Any] | None
    count_dims = ("cell",)

    @cached_property
    def draws(self) -> EffectsDraws:
        """The genes that are drawn from."""
        return EffectsDraws(
            self.estimator.problem(self.genes.numpy()), self.estimator.mixed.take(self.genes), self.priors
        )

    def reported(self, sites: Sites) -> Arrays:
        """What the tree has of the sites."""
        inputs, likelihood = self.estimator.input_data, self.draws.problem.likelihood
        constraints = inputs.constraints_loc
        free = sites["beta"][..., 0]
        location = free @ torch.from_numpy(constraints.matrix.T.copy()) + torch.from_numpy(constraints.shift)
        out: Arrays = {"location": ((*LEAD, "coefficient"), location.numpy())}
        if mean_link(likelihood) == "log":
            out["log2_effect"] = ((*LEAD, "coefficient"), location.numpy() / np.log(2))
        out |= {name: (LEAD, sites[name][..., 0].numpy()) for name in likelihood.free}
        for block in self.draws.problem.groups:
            out |= self.draws.of_groups(block, sites, None)
        for name in self.estimator.mixed.inner:
            out[name] = ((*LEAD, "cell"), self.draws.of_observations(name, sites)[..., 0].numpy())
            out[f"{name}: sd"] = (LEAD, sites[f"{name}_sd"][..., 0].numpy())
        return out

    def names(self) -> dict[str, Any]:
        """What the entries of each dimension are called."""
        inputs = self.estimator.input_data
        out = {
            "gene": np.asarray(inputs.counts.gene_names)[self.genes.numpy()],
            "coefficient": np.asarray(inputs.location.names),
        }
        return out | self.draws.level_names()

    def constants(self) -> Arrays:
        """The design and the offset."""
        problem = self.draws.problem
        offset = np.zeros(len(problem.design)) if problem.offset is None else problem.offset
        offset = offset if offset.ndim == 1 else offset[..., 0]
        design = self.estimator.input_data.location.matrix.copy()
        return {"design": (("cell", "coefficient"), design), "offset": (("gene", "cell")[2 - offset.ndim :], offset)}


def mixed_posterior(estimator: MixedEstimator, asked: ExpressionDrawOptions) -> xr.DataTree:
    """Draw from the posterior with random effects; :meth:`pyrosplice.ExpressionGLM.posterior` says how."""
    if isinstance(asked.priors, str):
        raise InvalidArgumentError(
            f"priors: expected a dictionary of Pyro distributions by site for a fit with random effects, found "
            f"{asked.priors!r}; without it they are flat."
        )
    which = places_of(asked.genes, estimator.input_data.counts.gene_names, "genes")
    if not len(which):
        raise InvalidArgumentError("genes: expected at least one, found none.")
    reserved = (*RESERVED, *estimator.input_data.likelihood.free)
    taken = [block.name for block in estimator.groups if block.name in reserved]
    if taken:
        raise InvalidArgumentError(f"effects: {taken[0]!r} is the name of something else in a posterior; give another.")
    data = DrawnEffects(estimator, torch.from_numpy(which), asked.priors)
    made = GROUPS if asked.groups is None else asked.groups
    kept = asked.within_memory(data.draws.numbers_per_draw(made, asked.method))
    with progress(quiet=asked.quiet):
        sites, stats = data.draws.draw(kept)
        tree = tree_of_effects(data, sites, stats, made, asked.seed)
    hyper = "integrate" if asked.method == "nuts" else asked.hyper or "plug-in"
    tree.attrs |= {"inference_library": "pyrosplice", "method": asked.method, "hyper": hyper}
    return in_chains(tree, asked, kept)
