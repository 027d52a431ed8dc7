"""A fitted model of isoform usage as draws from its posterior see it: data, priors, the estimates and an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._batches import MixedEngine
from pyrosplice.glmm._link_posterior import LinkPosterior
from pyrosplice.glmm._multinomial import MultinomialGLM
from pyrosplice.glmm._objective import LogPrior, at_held
from pyrosplice.glmm._random_effect import LARGEST_LOGIT
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.posterior._target import Target
from pyrosplice.priors._sites import complete_priors


@dataclass(frozen=True)
class PosteriorProblem:
    """What draws of G genes depend on.

    Attributes
    ----------
    counts, design
        ``(G, N, K)`` and ``(N, P)``.
    likelihood
        Noise of a spot's counts, its free hyper-parameters free.
    priors, shapes
        As given, by site; and the shape of each site that takes one, genes first.
    estimates
        Value of each of these sites at the fit.
    held
        Sites that the fit did not estimate.
    engine
        The data in the engine's terms.
    log_prior
        Log prior density of the values of the sites, or None where all are flat.
    program
        Makes the Pyro model of all genes; with a random effect that decomposes V.
    no_mode
        Why the estimates are no mode that Laplace's method could start from; None where they are.
    """

    counts: Tensor
    design: Tensor
    likelihood: Likelihood
    priors: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    estimates: Mapping[str, Tensor]
    held: tuple[str, ...]
    engine: MixedEngine
    log_prior: LogPrior | None
    program: Callable[[], MultinomialGLM]
    no_mode: str | None = None

    @property
    def n_genes(self) -> int:
        """Number G of genes."""
        return len(self.counts)

    @property
    def n_logits(self) -> int:
        """Number Q of logits of a gene."""
        return self.shapes["bias_eta"][1]

    @property
    def n_components(self) -> int:
        """Number of variance components of a gene; 0 without a random effect."""
        return self.shapes["sigma"][1] if self.has_effect else 0

    @property
    def has_effect(self) -> bool:
        """Whether there is a random effect."""
        return "sigma" in self.shapes

    @property
    def hyper_sites(self) -> tuple[str, ...]:
        """Sites other than the coefficients and the random effect."""
        return (*(("sigma", "theta_logit") if self.has_effect else ()), *self.likelihood.free)

    def complete_priors(self) -> dict[str, Any]:
        """The prior of every site, flat ones among them."""
        return complete_priors(self.priors, self.shapes)


class Drawable(Protocol):
    """A fitted model that has a posterior."""

    def posterior_problem(self) -> PosteriorProblem:
        """What draws from it depend on."""


def target_of(problem: PosteriorProblem, genes: Tensor, *, hyper: str) -> tuple[Target, Tensor, Tensor]:
    """Log posterior of some genes, with their coefficients (B, P, Q) and φ (B, d) at the fit."""
    if problem.no_mode is not None:
        raise InvalidArgumentError(problem.no_mode)
    at, engine, integrate = problem.estimates, problem.engine, hyper != "plug-in"
    own = {name: at[name] for name in problem.likelihood.free}
    zero = at["bias_eta"].new_zeros(problem.n_genes, 1)
    sigma, logit = at.get("sigma", zero), at.get("theta_logit", zero - LARGEST_LOGIT)
    if not integrate:
        engine = replace(engine, likelihood=engine.likelihood.bind(own))
    estimated = integrate and problem.has_effect
    target = Target(
        engine=engine,
        genes=genes,
        log_prior=at_held(problem.log_prior, {} if integrate else own),
        sigma=sigma[genes],
        theta_logit=logit[genes],
        free_sigma=estimated and "sigma" not in problem.held,
        free_theta=estimated and "theta_logit" not in problem.held,
    )
    coefficients = engine.coefficients(at["beta"][genes], at["bias_eta"][genes], genes)
    free = {name: at[name][genes] for name in engine.likelihood.free}
    return target, coefficients, target.phi(sigma[genes], logit[genes].clamp(-8, 8), free)


def link_posterior(problem: PosteriorProblem, *, corrected: bool = False) -> LinkPosterior:
    """Laplace's posterior of the linear predictors of all genes at the estimates.

    ``corrected``: with the coefficients a Newton step further, for estimates that are of other counts than these.
    """
    target, coefficients, phi = target_of(problem, torch.arange(problem.n_genes), hyper="plug-in")
    profile = target.profile(coefficients, phi)
    if corrected:
        profile = target.profile(profile.optimum()[0], phi)
    return LinkPosterior(profile.mode, profile.information)
