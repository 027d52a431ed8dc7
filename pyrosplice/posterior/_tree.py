"""Posterior draws as an ``xarray.DataTree`` with the groups that ArviZ reads.

====================== ==============================================================================
group                  variables, dims ``chain``, ``draw`` first
====================== ==============================================================================
posterior              the sites; ``theta``, ``sigma2``; ``effect_on_usage``; ``usage`` if asked for
posterior_predictive   ``counts``
log_likelihood         ``counts``, one a spot; without the spots that say nothing of any gene of the tree
left_out               ``counts``: the same with the spot's own random effect integrated out, given those of the others
                       (:mod:`pyrosplice.posterior._left_out`); only if asked for, it takes longer than the draws
log_prior              ``lp``, one a gene (where a prior is proper)
prior, prior_predictive  draws of the sites and counts, where every prior is proper
sample_stats           ``log_weight`` and ``pareto_k`` (Laplace), ``diverging`` (NUTS)
observed_data          ``counts``
constant_data          ``design``, ``total``
====================== ==============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, NoResultsError, check_option, check_switches
from pyrosplice.glmm._multinomial import MultinomialGLM
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.posterior._genes import DENSITIES, without_empty_spots
from pyrosplice.posterior._left_out import integrated_log_likelihood
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.posterior._sampling import OVERSAMPLED, Samples
from pyrosplice.posterior._seeding import seeded
from pyrosplice.priors._sites import is_flat, log_prior

DIMS: dict[str, tuple[str, ...]] = {
    "beta": ("covariate", "logit"),
    "bias_eta": ("logit",),
    "nu": ("spot", "logit"),
    "sigma": ("component",),
    "theta_logit": ("component",),
    "theta": ("component",),
    "sigma2": ("component",),
    "usage": ("spot", "isoform"),
    "effect_on_usage": ("covariate", "isoform"),
    "counts": ("spot", "isoform"),
}
GROUPS = ("posterior_predictive", "log_likelihood", "log_prior", "prior", "prior_predictive")
LEFT_OUT = "left_out"  # not made unless asked for: ten microseconds a draw and spot of three isoforms


def data_tree(
    problem: PosteriorProblem,
    samples: Samples,
    *,
    names: Mapping[str, Sequence[Any]] | None = None,
    groups: Sequence[str] = GROUPS,
    usage: bool = False,
    seed: int = 0,
) -> xr.DataTree:
    """Assemble the groups of a posterior tree; the module's table lists them.

    Parameters
    ----------
    problem, samples
        The fitted model, and draws of some of its genes.
    names
        Coordinates by dimension (``gene``, ``spot``, ``isoform``, ``covariate``); numbers by default.
    groups
        The optional ones to make.
    usage
        Whether to add ``usage`` at every spot to the posterior (it is large).
    seed
        Seed of predictive and prior draws.
    """
    genes = samples.genes
    counts, generator = problem.counts[genes], torch.Generator().manual_seed(int(seed))
    likelihood, totals = problem.likelihood.select(genes), counts.sum(-1)
    label = _Labels(problem, genes, names)
    eta, bound = predictors(problem.design, samples.sites, likelihood)
    tree = {
        "posterior": label.dataset({**samples.sites, **derived(problem.design, samples.sites, bound, eta, usage=usage)})
    }
    fitted = eta.isfinite().flatten(3).all(-1).flatten(0, 1).all(0)
    bound, seen = _of_genes(bound, fitted), eta[:, :, fitted]
    if "posterior_predictive" in groups:
        drawn = _every_gene(_drawn(bound, totals[fitted], seen, generator), fitted)
        tree["posterior_predictive"] = label.dataset({"counts": drawn})
    if "log_likelihood" in groups:
        density = _every_gene(bound.log_prob(counts[fitted], seen), fitted)
        tree["log_likelihood"] = label.dataset({"counts": density}, {"counts": ("spot",)})
    if LEFT_OUT in groups:
        seen_sites = {name: value[:, :, fitted] for name, value in samples.sites.items()}
        density = _every_gene(integrated_log_likelihood(problem, seen_sites, genes[fitted]), fitted)
        tree[LEFT_OUT] = label.dataset({"counts": density}, {"counts": ("spot",)})
    tree["sample_stats"] = label.dataset(_statistics(samples), {}, chains=2)
    priors = {name: p for name, p in problem.complete_priors().items() if p.event_shape.numel()}
    if "log_prior" in groups and not all(is_flat(prior) for prior in priors.values()):
        tree["log_prior"] = label.dataset({"lp": _log_prior(priors, samples.sites, genes)})
    if "prior" in groups and not any(is_flat(prior) for prior in priors.values()):
        tree |= _prior_groups(problem, label, totals, samples, seed, predictive="prior_predictive" in groups)
    tree["observed_data"] = label.dataset({"counts": counts}, chains=0)
    constants = {
        "design": (("spot", "covariate"), problem.design.numpy().copy()),
        "total": (("gene", "spot"), totals.numpy()),
    }
    tree["constant_data"] = xr.Dataset(constants, coords=label.coords({"gene", "spot", "covariate"}))
    whole = xr.DataTree.from_dict(tree)
    whole.attrs |= {"inference_library": "pyrosplice", "method": samples.method, "hyper": samples.hyper}
    return without_empty_spots(whole, DENSITIES)


def check_groups(problem: PosteriorProblem, groups: Sequence[str] | None, *, usage: bool) -> Sequence[str]:
    """Read which optional groups to make, all for None; refused where the likelihood does not say what they need."""
    check_switches(usage=usage)
    if isinstance(groups, str) or not (groups is None or isinstance(groups, Collection)):
        raise InvalidArgumentError(f"groups: expected a list of names among {list(GROUPS)}, found {groups!r}.")
    made = GROUPS if groups is None else groups
    for group in made:
        check_option("groups", group, (*GROUPS, LEFT_OUT))
    if LEFT_OUT in made and not problem.has_effect:
        raise InvalidArgumentError(
            "groups: 'left_out' integrates a random effect out, and this model has none; ask for 'log_likelihood'."
        )
    if usage or problem.design.shape[1]:
        problem.likelihood.require("mean")
    if {"posterior_predictive", "prior_predictive"} & {*made}:
        problem.likelihood.require("sample")
    return made


def numbers_per_draw(
    problem: PosteriorProblem,
    n_genes: int,
    groups: Sequence[str],
    *,
    usage: bool,
    method: str,
    n_isos: int | None = None,
) -> dict[str, float]:
    """Count the numbers that one draw of some genes takes, by the group that keeps them.

    ``n_isos``: isoforms of the widest gene of the tree, which the others are padded to.
    """
    _, n_spots, own = problem.counts.shape
    n_isos = own if n_isos is None else n_isos
    n_logits, shapes = problem.n_logits + n_isos - own, problem.shapes
    field = n_spots * n_logits if "sigma" in shapes else 0
    twice = shapes.get("sigma", (0, 0))[1] * 2  # σ² and θ beside σ and logit θ
    sites = sum(math.prod(shape[1:]) for shape in shapes.values()) + problem.design.shape[1] * n_isos + twice
    proposals = (OVERSAMPLED - 1) * (method == "importance")
    proper = not any(is_flat(p) for p in problem.complete_priors().values() if p.event_shape.numel())
    per_gene = {
        "posterior": sites + field + usage * n_spots * n_isos,
        "linear predictor": n_spots * n_logits,
        "proposals": proposals * (sites + field),
        "sample_stats": 2.0,
        "log_prior": float("log_prior" in groups),
        "posterior_predictive": n_spots * n_isos * ("posterior_predictive" in groups),
        "log_likelihood": n_spots * ("log_likelihood" in groups),
        LEFT_OUT: n_spots * (LEFT_OUT in groups),
        "prior": (sites + field) * (proper and "prior" in groups),
        "prior_predictive": n_spots * n_isos * (proper and "prior_predictive" in groups),
    }
    return {name: n_genes * float(numbers) for name, numbers in per_gene.items()}


def predictors(design: Tensor, sites: Mapping[str, Tensor], likelihood: Likelihood) -> tuple[Tensor, Likelihood]:
    """Linear predictors η ``(C, S, G, N, Q)`` and the likelihood at the draws."""
    eta = design @ sites["beta"] + sites["bias_eta"].unsqueeze(-2)
    return eta + sites["nu"] if "nu" in sites else eta, likelihood.bind(sites)


def derived(
    design: Tensor, sites: Mapping[str, Tensor], likelihood: Likelihood, eta: Tensor, *, usage: bool
) -> dict[str, Tensor]:
    r"""Work out what one reports: ``theta``, ``sigma2``, ``effect_on_usage`` and ``usage``.

    The effect of a covariate on usage is the change of the mean usage over spots when it goes up by one standard
    deviation everywhere (expected count, if the likelihood is one of counts), everything else as drawn.
    """
    out = {}
    if "theta_logit" in sites:
        out = {"theta": torch.sigmoid(sites["theta_logit"]), "sigma2": sites["sigma"].square()}
    if usage or sites["beta"].shape[-2]:
        mean = likelihood.expected(eta)
        out |= {"usage": mean} if usage else {}
    if sites["beta"].shape[-2]:
        spread = design.std(0)
        moved = [likelihood.expected(eta + scale * sites["beta"][..., [p], :]) for p, scale in enumerate(spread)]
        out["effect_on_usage"] = torch.stack([(one - mean).mean(-2) for one in moved], -2)
    return out


def _of_genes(bound: Likelihood, fitted: Tensor) -> Likelihood:
    """The likelihood at the draws of the genes with a finite fit, for which alone it can be asked."""
    if bool(fitted.all()):
        return bound
    if not bool(fitted.any()):
        raise NoResultsError("genes: none of them has a finite fit, of which there could be draws; see their reasons.")
    own = {name: getattr(bound, name) for name in bound.hyperparameters}
    return bound.bind({name: v[..., fitted, :] for name, v in own.items() if isinstance(v, Tensor) and v.ndim > 1})


def _every_gene(found: Tensor, fitted: Tensor) -> Tensor:
    """What was found for the fitted genes ``(C, S, ...)``, and NaN for the others."""
    if bool(fitted.all()):
        return found
    whole = found.new_full((*found.shape[:2], len(fitted), *found.shape[3:]), torch.nan, dtype=torch.float64)
    whole[:, :, fitted] = found.double()
    return whole


def _drawn(likelihood: Likelihood, totals: Tensor, eta: Tensor, generator: torch.Generator) -> Tensor:
    return likelihood.draw(totals.expand(eta.shape[:-1]), eta, generator=generator)


def _statistics(samples: Samples) -> dict[str, Tensor]:
    stats = dict(samples.stats)
    if "log_weights" in stats:
        weights = stats.pop("log_weights")
        stats["log_weight"] = weights - weights.amax(1, keepdim=True)
        stats["pareto_k"] = stats["pareto_k"].expand(weights.shape)
    return stats


def _log_prior(priors: Mapping[str, Any], sites: Mapping[str, Tensor], genes: Tensor) -> Tensor:
    flat = {name: sites[name].flatten(0, 1) for name in priors}
    n_draws = len(next(iter(flat.values())))
    values = {name: value.flatten(0, 1) for name, value in flat.items()}
    density = log_prior(priors, values, genes=genes.repeat(n_draws))
    return density.reshape(*next(iter(sites.values())).shape[:2], len(genes))


def _prior_groups(
    problem: PosteriorProblem,
    label: _Labels,
    totals: Tensor,
    samples: Samples,
    seed: int,
    *,
    predictive: bool,
) -> dict[str, xr.Dataset]:
    """Draw parameters from the prior, and counts under it, as often as from the posterior."""
    genes = samples.genes
    n_chains, n_draws = samples.sites["bias_eta"].shape[:2]
    with seeded(seed):
        sites = prior_draws(problem.program(), n_chains * n_draws, genes)
    chained = {name: value.unflatten(0, (n_chains, n_draws)) for name, value in sites.items()}
    eta, bound = predictors(problem.design, chained, problem.likelihood.select(genes))
    out = {"prior": label.dataset({**chained, **derived(problem.design, chained, bound, eta, usage=False)})}
    if predictive:
        drawn = _drawn(bound, totals, eta.clamp(-30, 30), torch.Generator().manual_seed(int(seed)))
        out["prior_predictive"] = label.dataset({"counts": drawn})
    return out


def prior_draws(program: MultinomialGLM, n_draws: int, genes: Tensor) -> dict[str, Tensor]:
    """Draws ``(S, G, ...)`` of every site from the prior of a Pyro model of all genes."""
    n_genes = len(program.counts)
    with pyro.poutine.block(), pyro.plate("draws", n_draws, dim=-2), pyro.plate("genes", n_genes, dim=-1):
        sites = program.sample_latents()
    empty = [name for name, prior in program.priors.items() if not prior.event_shape.numel()]  # no covariates
    held = {*getattr(program, "fixed", {}), *empty}
    whole = {name: v.expand(n_draws, *v.shape) if name in held else v for name, v in sites.items()}
    return {name: value[:, genes] for name, value in whole.items()}


def whole_numbers(values: Tensor) -> Tensor:
    """Make integers where all are whole, which is how ArviZ tells counts from measurements."""
    return values.long() if bool((values == values.round()).all()) else values


class _Labels:
    """Coordinates, and tensors as labelled arrays."""

    def __init__(self, problem: PosteriorProblem, genes: Tensor, names: Mapping[str, Sequence[Any]] | None) -> None:
        given = dict(names or {})
        sizes = dict(zip(("gene", "spot", "isoform"), problem.counts.shape, strict=True))
        sizes |= {"covariate": problem.design.shape[1], "logit": problem.n_logits, "component": problem.n_components}
        for dim, names_given in given.items():
            check_option("names", dim, sizes)
            if len(names_given) != sizes[dim]:
                found = f"expected {sizes[dim]} names, one each, found {len(names_given)}"
                raise InvalidArgumentError(f"names[{dim!r}]: {found}.")
        self.names = {dim: np.asarray(given.get(dim, np.arange(size))) for dim, size in sizes.items()}
        self.names["gene"] = self.names["gene"][genes.numpy()]

    def coords(self, dims: set[str]) -> dict[str, Any]:
        return {dim: self.names[dim] for dim in dims if dim in self.names}

    def dataset(
        self, values: Mapping[str, Tensor], dims: Mapping[str, tuple[str, ...]] | None = None, *, chains: int = 2
    ) -> xr.Dataset:
        """Tensors ``(C, S, G, ...)``, or ``(G, ...)`` with ``chains=0``."""
        leading = (*("chain", "draw")[:chains], "gene")
        arrays, used = {}, {"gene"}
        for name, value in values.items():
            own = (DIMS if dims is None else dims).get(name, ())
            if value.ndim == len(leading) + 1 and not own:
                value = value.squeeze(-1)  # a hyper-parameter of the likelihood
            used |= set(own)
            arrays[name] = ((*leading, *own), whole_numbers(value).numpy() if name == "counts" else value.numpy())
        shape = tuple(next(iter(values.values())).shape)
        chain = {"chain": np.arange(shape[0]), "draw": np.arange(shape[1])} if chains else {}
        return xr.Dataset(arrays, coords={**chain, **self.coords(used)})
