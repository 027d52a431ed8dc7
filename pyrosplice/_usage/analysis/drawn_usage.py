"""The posterior of usage with a list of effects as the tree that ArviZ reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from pyrosplice._usage.analysis.fits import UsageAnalysis, batches_alike
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches
from pyrosplice.posterior._chains import in_chains
from pyrosplice.posterior._draw_options import DrawOptions
from pyrosplice.posterior._effects_tree import (
    LEAD,
    Arrays,
    EffectsDraws,
    Sites,
    counted_steps,
    steps_of_gene,
    tree_of_effects,
)
from pyrosplice.posterior._genes import DENSITIES, joined, without_empty_spots
from pyrosplice.posterior._progress import bar, progress
from pyrosplice.posterior._tree import GROUPS

HYPER_OF_LISTS = ("plug-in", "integrate")
RESERVED = (
    *("beta", "bias_eta", "space", "noise", "usage", "counts", "design", "total"),
    *("gene", "spot", "isoform", "logit", "covariate", "chain", "draw"),
)


@dataclass(frozen=True)
class DrawnUsage:
    """Some genes of a fit with a list of effects, of one isoform count and one field, and how draws are reported.

    Attributes
    ----------
    analysis, genes
        The fit, and positions of the genes.
    priors
        By site of :class:`~pyrosplice.glmm.CountGLMM`.
    usage
        Whether to report usage at every spot.
    """

    analysis: UsageAnalysis
    genes: Sequence[int]
    priors: Mapping[str, Any] | None
    usage: bool
    count_dims = ("spot", "isoform")

    @cached_property
    def draws(self) -> EffectsDraws:
        """The genes that are drawn from."""
        fits = [self.analysis.fit.genes[gene] for gene in self.genes]
        spec = self.analysis.grouped_spec(with_design=self.analysis.fit.with_design)
        return EffectsDraws(spec.at(fits).problem(self.analysis.counts(self.genes)), spec.restored(fits), self.priors)

    def reported(self, sites: Sites) -> Arrays:
        """What the tree has of the sites."""
        problem, beta = self.draws.problem, sites["beta"].numpy()
        out: Arrays = {
            "beta": ((*LEAD, "covariate", "logit"), beta[..., 1:, :]),
            "bias_eta": ((*LEAD, "logit"), beta[..., 0, :]),
        }
        out |= {name: (LEAD, sites[name][..., 0].numpy()) for name in problem.likelihood.free}
        for block in problem.groups:
            out |= self.draws.of_groups(block, sites, "logit")
        for name in self.draws.fit.inner:
            out[name] = ((*LEAD, "spot", "logit"), self.draws.of_observations(name, sites).numpy())
            out[f"{name}: sd"] = (LEAD, sites[f"{name}_sd"][..., 0].numpy())
        if self.usage:
            own = {name: sites[name] for name in problem.likelihood.free}
            eta = self.draws.model.linear_predictor(sites)
            out["usage"] = ((*LEAD, "spot", "isoform"), problem.likelihood.bind(own).expected(eta).numpy())
        return out

    def names(self) -> dict[str, Any]:
        """What the entries of each dimension are called."""
        prepared, fit = self.analysis.prepared, self.analysis.fit
        design = prepared.design if fit.with_design else None
        return {
            "gene": np.asarray([prepared.gene_names[gene] for gene in self.genes]),
            "spot": prepared.data.adata.obs_names.to_numpy(),
            "covariate": np.asarray([] if design is None else design.names, dtype=object),
        } | self.draws.level_names()

    def constants(self) -> Arrays:
        """Covariates, and the counts of every spot."""
        problem = self.draws.problem
        design = np.ascontiguousarray(problem.design[:, 1:])
        return {
            "design": (("spot", "covariate"), design),
            "total": (("gene", "spot"), problem.counts.sum(-1).numpy()),
        }


def listed_posterior(
    analysis: UsageAnalysis, positions: Sequence[int], asked: DrawOptions, priors: Mapping[str, Any] | None
) -> xr.DataTree:
    """Draw from the posteriors of some genes; :meth:`pyrosplice.SplisosmGLMM.posterior` says how."""
    made = _groups_of(analysis, asked)
    if priors is not None and not isinstance(priors, Mapping):
        raise InvalidArgumentError(f"priors: expected a dictionary of Pyro distributions by site, found {priors!r}.")
    spec, prepared = analysis.grouped_spec(with_design=analysis.fit.with_design), analysis.prepared
    batches = batches_alike(analysis, spec, analysis.fit.genes)
    parts = [own for batch in batches if (own := [gene for gene in batch if gene in positions])]
    drawn = [DrawnUsage(analysis, own, priors, asked.usage) for own in parts]
    numbers: Counter[str] = Counter()
    for one in drawn:
        numbers.update(one.draws.numbers_per_draw(made, asked.method))
    kept, trees = asked.within_memory(numbers), []
    with progress(quiet=asked.quiet), bar(len(positions) * steps_of_gene(kept), *counted_steps(kept.method)):
        for one in drawn:
            sites, stats = one.draws.draw(kept)
            trees.append(without_empty_spots(tree_of_effects(one, sites, stats, made, asked.seed), DENSITIES))
    isoforms = {prepared.gene_names[gene]: prepared.isoform_names(gene) for gene in positions}
    tree = joined(trees, list(isoforms), isoforms)
    hyper = "integrate" if asked.method == "nuts" else asked.hyper
    tree.attrs |= {"inference_library": "pyrosplice", "method": asked.method, "hyper": hyper}
    return in_chains(tree, asked, kept)


def _groups_of(analysis: UsageAnalysis, asked: DrawOptions) -> Sequence[str]:
    """Optional groups to make; raises for what draws of a list of effects do not have."""
    asked.check()
    check_option("hyper", asked.hyper, HYPER_OF_LISTS)
    check_switches(usage=asked.usage)
    made = GROUPS if asked.groups is None else asked.groups
    if isinstance(made, str):
        raise InvalidArgumentError(f"groups: expected a list of names among {list(GROUPS)}, found {made!r}.")
    for group in made:
        check_option("groups", group, GROUPS)
    likelihood = analysis.options.likelihood
    if asked.usage:
        likelihood.require("mean")
    if {"posterior_predictive", "prior_predictive"} & {*made}:
        likelihood.require("sample")
    taken = [block.name for block in analysis.prepared.groups if block.name in (*RESERVED, *likelihood.free)]
    if taken:
        raise InvalidArgumentError(f"effects: {taken[0]!r} is the name of something else in a posterior; give another.")
    return made
