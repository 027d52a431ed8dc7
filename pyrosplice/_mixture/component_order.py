"""Which component is which where priors tell them apart: k-means numbers its clusters as it likes."""

from __future__ import annotations

from dataclasses import replace

import pyro.distributions as dist
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import SitePriors, without_events

NEVER = -1e12  # log density of values that a prior excludes, finite for the assignment


def in_order_of(priors: SitePriors, parameters: MixtureParameters) -> MixtureParameters:
    """Number a mixture's components as priors of components expect them, by their joint log density."""
    m = parameters.n_components
    ranks, density = torch.arange(m), parameters.weights.new_empty(m, m)
    for shift in range(m):
        moved = (ranks + shift) % m
        density[ranks, moved] = _each_component(priors, _numbered(parameters, moved)).clamp(NEVER, -NEVER)
    _, best = linear_sum_assignment(density.numpy(), maximize=True)
    gain = density[ranks, torch.from_numpy(best)].sum() - density.diagonal().sum()
    return _numbered(parameters, torch.from_numpy(best)) if float(gain) > 1e-9 * m else parameters


def _numbered(parameters: MixtureParameters, order: Tensor) -> MixtureParameters:
    kind, covariances = parameters.covariance_type, parameters.covariances
    return replace(
        parameters,
        weights=parameters.weights[order],
        means=parameters.means[order],
        covariances=covariances if kind == "tied" else covariances[order],
    )


def _each_component(priors: SitePriors, parameters: MixtureParameters) -> Tensor:
    """Log prior density of each component, ``(M,)``, of what is a component's own."""
    means, total = parameters.means, torch.zeros_like(parameters.weights)
    weights = without_events(priors.weights)
    if isinstance(weights, dist.Dirichlet):
        total = total + torch.xlogy(weights.concentration - 1, parameters.weights)
    try:
        if priors.means is not None:
            total = total + priors.mean_distribution(parameters.covariance_matrices()).log_prob(means)
        if priors.covariances is not None and parameters.covariance_type != "tied":
            total = total + priors.covariance_distribution(means).log_prob(parameters.covariances)
    except ValueError:  # a value outside of a support, of which Pyro gives no density
        return torch.full_like(total, NEVER)
    return total
