"""Posterior draws of models with a list of effects as the tree that ArviZ reads, whatever the counts are of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._effects_model import CountGLMM
from pyrosplice.posterior._effects_draws import ParameterPriors, integrated, nuts_of_effects, plugged_in
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._sampling import OVERSAMPLED, resampled
from pyrosplice.posterior._seeding import seeded
from pyrosplice.posterior._tree import prior_draws, whole_numbers
from pyrosplice.priors._sites import is_flat, log_prior

Sites = dict[str, Tensor]
Arrays = dict[str, tuple[tuple[str, ...], Any]]
LEAD = ("chain", "draw", "gene")
BY_OBSERVATION = ("posterior_predictive", "log_likelihood", "prior_predictive")
LARGEST_ETA = 30.0  # of a draw: e^30 counts


class AskedDraws(Protocol):
    """What is asked of draws."""

    @property
    def num_samples(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def hyper(self) -> str | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def nuts_options(self) -> NutsOptions | None: ...


def counted_steps(method: str) -> tuple[str, str]:
    """What the bars of draws are called, and what they count."""
    return ("nuts", "iteration") if method == "nuts" else ("posterior", "draw")


def steps_of_gene(asked: AskedDraws) -> int:
    """How much of that a gene is."""
    if asked.method == "nuts":
        return (asked.nuts_options or NutsOptions()).iterations(asked.num_samples)
    return asked.num_samples * (OVERSAMPLED if asked.method == "importance" or asked.hyper == "integrate" else 1)


@dataclass(frozen=True)
class EffectsDraws:
    """Some genes of a fit with a list of effects, with priors by site of their Pyro model."""

    problem: EffectsProblem
    fit: EffectsFit
    priors: Mapping[str, Any] | None

    @cached_property
    def model(self) -> CountGLMM:
        """Their Pyro model."""
        return CountGLMM(self.problem, priors=self.priors)

    def draw(self, asked: AskedDraws) -> tuple[Sites, dict[str, Tensor]]:
        """Sites (C, S, G, ...) and statistics (C, S, G)."""
        if asked.method == "nuts":
            options = asked.nuts_options or NutsOptions()
            sites, diverging = nuts_of_effects(self.problem, self.priors, asked.num_samples, asked.seed, options)
            return sites, {"diverging": diverging}
        known, generator = ParameterPriors.of(self.problem, self.priors), torch.Generator().manual_seed(asked.seed)
        known.require_flat_coefficients(asked.method)
        known.require_everywhere()
        if asked.hyper == "integrate":
            known.require_proper("hyper='integrate'")
            draws = integrated(self.problem, known, asked.num_samples, generator, method=asked.method)
        else:
            fit = self.fit
            if known.any:
                fit = fit_effects(self.problem, log_prior=known.log_density(of_logs=False))
            n_draws = asked.num_samples * (OVERSAMPLED if asked.method == "importance" else 1)
            draws = plugged_in(self.problem, fit, n_draws, generator)
        sites, weights, k_hat = resampled(draws, asked.num_samples, asked.method, generator)
        stats = {"log_weight": weights - weights.amax(0), "pareto_k": k_hat.expand(weights.shape)}
        return {k: v.unsqueeze(0) for k, v in sites.items()}, {k: v.unsqueeze(0) for k, v in stats.items()}

    def of_groups(self, block: GroupBlock, sites: Sites, predictor: str | None) -> Arrays:
        """Levels, standard deviations and correlations of an effect; of one predictor where its dimension is None."""
        level, column = f"{block.name}: level", f"{block.name}: column"
        covariance = self.model.effect_root(block, sites)
        covariance = covariance @ covariance.mT
        sd = torch.diagonal(covariance, dim1=-2, dim2=-1).sqrt()
        effects = self.model.level_effects(block, sites)
        named: Arrays = (
            {block.name: ((*LEAD, level, column), effects[..., 0].numpy())}
            if predictor is None
            else {block.name: ((*LEAD, level, column, predictor), effects.numpy())}
        )
        named[f"{block.name}: sd"] = ((*LEAD, column), sd.numpy())
        if len(block.basis) > len(block.column_names):
            correlation = covariance / (sd.unsqueeze(-1) * sd.unsqueeze(-2))
            named[f"{block.name}: correlation"] = ((*LEAD, column, f"{column} beside"), correlation.numpy())
        return named

    def of_observations(self, name: str, sites: Sites) -> Tensor:
        """An inner effect, ``"space"`` or ``"noise"``, on the predictors (C, S, G, N, Q); a field not multiplied."""
        return sites[name] @ self.model.between.T * sites[f"{name}_sd"].unsqueeze(-1)

    def level_names(self) -> dict[str, Any]:
        """Names of levels and columns by dimension."""
        out: dict[str, Any] = {}
        for block in self.problem.groups:
            columns = [f"{block.name}: column", f"{block.name}: column beside"]
            out |= {f"{block.name}: level": np.asarray(block.level_names)}
            out |= {dim: np.asarray(block.column_names) for dim in columns}
        return out

    def counts(self, sites: Sites, generator: torch.Generator) -> Tensor:
        """Counts drawn at the sites, (C, S, G, N, K); NaN where these are."""
        eta = self.model.linear_predictor(sites).clamp(-LARGEST_ETA, LARGEST_ETA)
        known = eta.isfinite().all(-1, keepdim=True)
        own = {name: torch.nan_to_num(sites[name], nan=1.0) for name in self.problem.likelihood.free}
        totals = self.model.totals.expand(eta.shape[:-1])
        drawn = self.problem.likelihood.bind(own).draw(totals, eta.where(known, 0.0), generator=generator)
        return drawn.double().where(known, torch.nan)

    def log_likelihood(self, sites: Sites) -> Tensor:
        """Log density of every observation given the effects, (C, S, G, N)."""
        own = {name: sites[name] for name in self.problem.likelihood.free}
        return self.problem.likelihood.bind(own).log_prob(self.model.counts, self.model.linear_predictor(sites))

    def log_prior(self, sites: Sites) -> Tensor:
        """Log prior density of coefficients and parameters, (C, S, G)."""
        shape = sites["beta"].shape[:3]
        flat = {name: sites[name].flatten(0, 2) for name in self.model.priors}
        genes = torch.arange(shape[2]).repeat(shape[0] * shape[1])
        return log_prior(self.model.priors, flat, genes=genes).reshape(shape)

    def numbers_per_draw(self, groups: Sequence[str], method: str) -> dict[str, float]:
        """Numbers that one draw takes, by the group that keeps them."""
        n_genes, n, k = self.model.counts.shape
        sites = sum(math.prod(shape) for shape in self.model.latent_shapes().values())
        proposals = OVERSAMPLED if method == "importance" else 1
        out = {
            group: float(n_genes * n * (1 if group == "log_likelihood" else k))
            for group in BY_OBSERVATION
            if group in groups
        }
        out |= {"posterior": 2.0 * sites, "proposals": float(proposals * sites)}
        return out | {"linear predictor": float(n_genes * n * k)}


class ReportedDraws(Protocol):
    """How the sites of a Pyro model are reported by a family."""

    @property
    def draws(self) -> EffectsDraws:
        """The genes that are drawn from."""

    @property
    def count_dims(self) -> tuple[str, ...]:
        """Dimensions of counts after those of genes; the first is that of observations."""

    def reported(self, sites: Sites) -> Arrays:
        """What the tree has of the sites."""

    def names(self) -> dict[str, Any]:
        """What the entries of each dimension are called."""

    def constants(self) -> Arrays:
        """What is known of the observations beside their counts."""


def tree_of_effects(
    data: ReportedDraws, sites: Sites, stats: Mapping[str, Tensor], groups: Sequence[str], seed: int
) -> xr.DataTree:
    """Assemble the groups of a tree from draws of the sites and their statistics."""
    draws, dims = data.draws, data.count_dims
    names = data.names() | {dim: np.arange(size) for dim, size in zip(LEAD[:2], sites["beta"].shape[:2], strict=True)}
    generator = torch.Generator().manual_seed(seed)

    def dataset(arrays: Arrays) -> xr.Dataset:
        used = {dim for own, _ in arrays.values() for dim in own}
        return xr.Dataset(arrays, coords={k: v for k, v in names.items() if k in used})

    def counted(values: Tensor, lead: tuple[str, ...] = LEAD) -> xr.Dataset:
        own = values if len(dims) == 2 else values[..., 0]
        return dataset({"counts": ((*lead, *dims), whole_numbers(own).numpy())})

    tree = {"posterior": dataset(data.reported(sites))}
    tree["sample_stats"] = dataset({k: (LEAD, v.numpy()) for k, v in stats.items()})
    if "posterior_predictive" in groups:
        tree["posterior_predictive"] = counted(draws.counts(sites, generator))
    if "log_likelihood" in groups:
        tree["log_likelihood"] = dataset({"counts": ((*LEAD, dims[0]), draws.log_likelihood(sites).numpy())})
    flat = [is_flat(prior) for prior in draws.model.priors.values()]
    if "log_prior" in groups and not all(flat):
        tree["log_prior"] = dataset({"lp": (LEAD, draws.log_prior(sites).numpy())})
    if "prior" in groups and not any(flat):
        with seeded(seed):
            shape = sites["beta"].shape[:2]
            prior = prior_draws(draws.model, shape.numel(), torch.arange(len(draws.problem.counts)))
        prior = {name: value.unflatten(0, shape) for name, value in prior.items()}
        tree["prior"] = dataset(data.reported(prior))
        if "prior_predictive" in groups:
            tree["prior_predictive"] = counted(draws.counts(prior, generator))
    tree["observed_data"] = counted(draws.problem.counts, ("gene",))
    return xr.DataTree.from_dict({**tree, "constant_data": dataset(data.constants())})
