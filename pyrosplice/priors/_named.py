"""Tables of priors that have a name: what ``priors="weak"`` means, wherever priors are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.priors._penalized_complexity import weak_priors
from pyrosplice.priors._sites import REAL_SITES, PriorSite, check_prior, variance_prior

NAMED = {"weak": weak_priors}

Priors = Mapping[str, Any] | str | None


def name_of_priors(priors: Priors) -> str | None:
    """The name, if it is one; raise unless it is, or a dictionary by site, or None."""
    if isinstance(priors, str) and priors in NAMED:
        return priors
    if priors is not None and not isinstance(priors, Mapping):
        names = ", ".join(map(repr, sorted(NAMED)))
        raise InvalidArgumentError(
            f"priors: expected a dictionary of Pyro distributions by site, or a name ({names}), found {priors!r}."
        )
    return None


def check_priors(priors: Priors, *, real: Collection[str] = REAL_SITES) -> str | None:
    """The name, if it is one; raise unless it is, or None, or a dictionary of distributions on their sites' values."""
    name = name_of_priors(priors)
    for site, prior in priors.items() if isinstance(priors, Mapping) else ():
        if prior is not None:
            check_prior(site, prior, PriorSite((), "real" if site in real else "positive"))
    return name


def with_variance_prior(priors: Priors, name: str, params: Mapping[str, float] | None) -> Priors:
    """Priors with that of σ by its documented name; raises where they have one already."""
    sigma = variance_prior(name, params)
    if sigma is None:
        return priors
    if isinstance(priors, str) or "sigma" in (priors or {}):
        raise InvalidArgumentError(
            f"var_prior_model: expected 'none' beside priors= that have one of sigma already, found {name!r}."
        )
    return {"sigma": sigma, **(priors or {})}


def named_priors(
    name: str,
    sites: Collection[str],
    *,
    covariance: object,
    likelihood: Likelihood,
    isoform_effect: IsoformEffect = "independent",
) -> dict[str, Any]:
    """The table of that name, for the sites that a model has; V is None where there is no space."""
    table = NAMED[name](covariance, likelihood, isoform_effect=isoform_effect)
    return {site: prior for site, prior in table.items() if site in sites}
