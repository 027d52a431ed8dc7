"""The posterior of expression with random effects as the tree that ArviZ reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.noise_models import mean_link
from pyrosplice._expression.posterior import LARGEST_ETA, Arrays, ExpressionDrawOptions
from pyrosplice._tables.names import places_of
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._effects_model import CountGLMM
from pyrosplice.posterior._effects_draws import ParameterPriors, integrated, nuts_of_effects, plugged_in
from pyrosplice.posterior._memory import require_memory
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._sampling import OVERSAMPLED, resampled
from pyrosplice.posterior._seeding import seeded
from pyrosplice.posterior._tree import GROUPS, prior_draws, whole_numbers
from pyrosplice.priors._sites import is_flat, log_prior

Sites = dict[str, Tensor]
BY_CELL = ("posterior_predictive", "log_likelihood", "prior_predictive")
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

    @cached_property
    def problem(self) -> EffectsProblem:
        """What is fitted of these genes."""
        return self.estimator.problem(self.genes.numpy())

    @cached_property
    def model(self) -> CountGLMM:
        """Their Pyro model."""
        return CountGLMM(self.problem, priors=self.priors)

    def draw(self, asked: ExpressionDrawOptions) -> tuple[Sites, dict[str, Tensor]]:
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
            fit = self.estimator.mixed.take(self.genes)
            if known.any:
                fit = fit_effects(self.problem, log_prior=known.log_density(of_logs=False))
            n_draws = asked.num_samples * (OVERSAMPLED if asked.method == "importance" else 1)
            draws = plugged_in(self.problem, fit, n_draws, generator)
        sites, weights, k_hat = resampled(draws, asked.num_samples, asked.method, generator)
        stats = {"log_weight": weights - weights.amax(0), "pareto_k": k_hat.expand(weights.shape)}
        return {k: v.unsqueeze(0) for k, v in sites.items()}, {k: v.unsqueeze(0) for k, v in stats.items()}

    def reported(self, sites: Sites) -> Arrays:
        """What the tree has of the sites."""
        inputs, lead, likelihood = self.estimator.input_data, ("chain", "draw", "gene"), self.problem.likelihood
        constraints = inputs.constraints_loc
        free = sites["beta"][..., 0]
        location = free @ torch.from_numpy(constraints.matrix.T.copy()) + torch.from_numpy(constraints.shift)
        out: Arrays = {"location": ((*lead, "coefficient"), location.numpy())}
        if mean_link(likelihood) == "log":
            out["log2_effect"] = ((*lead, "coefficient"), location.numpy() / np.log(2))
        out |= {name: (lead, sites[name][..., 0].numpy()) for name in likelihood.free}
        for block in self.problem.groups:
            out |= self._of_groups(block, sites, lead)
        for name in self.estimator.mixed.inner:
            sd = sites[f"{name}_sd"]
            out[name] = ((*lead, "cell"), (sites[name][..., 0] * sd).numpy())
            out[f"{name}: sd"] = (lead, sd[..., 0].numpy())
        return out

    def _of_groups(self, block: GroupBlock, sites: Sites, lead: tuple[str, ...]) -> Arrays:
        level, column = f"{block.name}: level", f"{block.name}: column"
        covariance = self.model.effect_root(block, sites)
        covariance = covariance @ covariance.mT
        sd = torch.diagonal(covariance, dim1=-2, dim2=-1).sqrt()
        effects = self.model.level_effects(block, sites)[..., 0]
        out: Arrays = {
            block.name: ((*lead, level, column), effects.numpy()),
            f"{block.name}: sd": ((*lead, column), sd.numpy()),
        }
        if len(block.basis) > len(block.column_names):
            correlation = covariance / (sd.unsqueeze(-1) * sd.unsqueeze(-2))
            out[f"{block.name}: correlation"] = ((*lead, column, f"{column} beside"), correlation.numpy())
        return out

    def names(self) -> dict[str, Any]:
        """What the entries of each dimension are called."""
        inputs = self.estimator.input_data
        out = {
            "gene": np.asarray(inputs.counts.gene_names)[self.genes.numpy()],
            "coefficient": np.asarray(inputs.location.names),
        }
        for block in self.problem.groups:
            columns = [f"{block.name}: column", f"{block.name}: column beside"]
            out |= {f"{block.name}: level": np.asarray(block.level_names)}
            out |= {dim: np.asarray(block.column_names) for dim in columns}
        return out

    def counts(self, sites: Sites, generator: torch.Generator) -> Tensor:
        """Counts drawn at the sites, (C, S, G, N); NaN where these are."""
        eta = self.model.linear_predictor(sites).clamp(-LARGEST_ETA, LARGEST_ETA)
        known = eta.isfinite()
        own = {name: torch.nan_to_num(sites[name], nan=1.0) for name in self.problem.likelihood.free}
        totals = self.model.totals.expand(eta.shape[:-1])
        drawn = self.problem.likelihood.bind(own).draw(totals, eta.where(known, 0.0), generator=generator)
        return whole_numbers(drawn.double().where(known, torch.nan)[..., 0])

    def log_likelihood(self, sites: Sites) -> Tensor:
        """Log density of every count given the effects, (C, S, G, N)."""
        own = {name: sites[name] for name in self.problem.likelihood.free}
        return self.problem.likelihood.bind(own).log_prob(self.model.counts, self.model.linear_predictor(sites))

    def log_prior(self, sites: Sites) -> Tensor:
        """Log prior density of coefficients and parameters, (C, S, G)."""
        shape = sites["beta"].shape[:3]
        flat = {name: sites[name].flatten(0, 2) for name in self.model.priors}
        genes = torch.arange(shape[2]).repeat(shape[0] * shape[1])
        return log_prior(self.model.priors, flat, genes=genes).reshape(shape)


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
    n_chains = (asked.nuts_options or NutsOptions()).num_chains if asked.method == "nuts" else 1
    require_memory(_numbers_per_draw(data, made, asked.method), n_chains * asked.num_samples, asked.max_memory)
    sites, stats = data.draw(asked)
    tree = _tree(data, sites, stats, made, asked.seed)
    hyper = "integrate" if asked.method == "nuts" else asked.hyper or "plug-in"
    tree.attrs |= {"inference_library": "pyrosplice", "method": asked.method, "hyper": hyper}
    return tree


def _numbers_per_draw(data: DrawnEffects, groups: Sequence[str], method: str) -> dict[str, float]:
    """Numbers that one draw takes, by the group that keeps them."""
    n_genes, n_cells = data.model.counts.shape[:2]
    sites = sum(math.prod(shape) for shape in data.model.latent_shapes().values())
    proposals = OVERSAMPLED if method == "importance" else 1
    out = {group: float(n_genes * n_cells) for group in BY_CELL if group in groups}
    out |= {"posterior": 2.0 * sites, "proposals": float(proposals * sites)}
    return out | {"linear predictor": float(n_genes * n_cells)}


def _tree(
    data: DrawnEffects, sites: Sites, stats: Mapping[str, Tensor], groups: Sequence[str], seed: int
) -> xr.DataTree:
    lead = ("chain", "draw", "gene")
    names = data.names() | {dim: np.arange(size) for dim, size in zip(lead[:2], sites["beta"].shape[:2], strict=True)}
    generator = torch.Generator().manual_seed(seed)

    def dataset(arrays: Arrays) -> xr.Dataset:
        used = {dim for dims, _ in arrays.values() for dim in dims}
        return xr.Dataset(arrays, coords={k: v for k, v in names.items() if k in used})

    def counted(values: Tensor) -> xr.Dataset:
        return dataset({"counts": ((*lead, "cell"), values.numpy())})

    tree = {"posterior": dataset(data.reported(sites))}
    tree["sample_stats"] = dataset({k: (lead, v.numpy()) for k, v in stats.items()})
    if "posterior_predictive" in groups:
        tree["posterior_predictive"] = counted(data.counts(sites, generator))
    if "log_likelihood" in groups:
        tree["log_likelihood"] = counted(data.log_likelihood(sites))
    flat = [is_flat(prior) for prior in data.model.priors.values()]
    if "log_prior" in groups and not all(flat):
        tree["log_prior"] = dataset({"lp": (lead, data.log_prior(sites).numpy())})
    if "prior" in groups and not any(flat):
        with seeded(seed):
            prior = prior_draws(data.model, sites["beta"].shape[1], torch.arange(len(data.genes)))
        prior = {name: value.expand(sites["beta"].shape[0], *value.shape) for name, value in prior.items()}
        tree["prior"] = dataset(data.reported(prior))
        if "prior_predictive" in groups:
            tree["prior_predictive"] = counted(data.counts(prior, generator))
    problem = data.problem
    observed = whole_numbers(problem.counts[..., 0]).numpy()
    tree["observed_data"] = dataset({"counts": (("gene", "cell"), observed)})
    offset = np.zeros(len(problem.design)) if problem.offset is None else problem.offset
    offset = offset if offset.ndim == 1 else offset[..., 0]
    design = data.estimator.input_data.location.matrix.copy()
    constants = {"design": (("cell", "coefficient"), design), "offset": (("gene", "cell")[2 - offset.ndim :], offset)}
    return xr.DataTree.from_dict({**tree, "constant_data": dataset(constants)})
