"""The Gaussian mixture as a Pyro model: the specification that the EM engine is held equal to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from torch import Tensor

from pyrosplice._mixture.mixture_prior import (
    CovarianceType,
    MixturePrior,
    MixturePriors,
    SitePriors,
    mixture_priors_of_cells,
    one_prior,
)


@dataclass(frozen=True)
class MixtureParameters:
    """Parameters of one mixture, or of a batch of them.

    Attributes
    ----------
    weights
        ``(..., M)``, sums to one.
    means
        ``(..., M, D)``, in units of the data.
    covariances
        full ``(..., M, D, D)``, tied ``(..., D, D)``, diag ``(..., M, D)``, spherical ``(..., M)``.
    covariance_type
        Which of the four.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    covariance_type: CovarianceType

    @property
    def n_components(self) -> int:
        """Number of components M."""
        return self.weights.shape[-1]

    def covariance_matrices(self) -> Tensor:
        """Write all covariances as matrices ``(..., M, D, D)``."""
        return as_matrices(self.covariances, self.means, self.covariance_type)

    def n_free(self) -> int:
        """Number of free parameters, for AIC and BIC."""
        m, d = self.means.shape[-2:]
        covariance = {"full": m * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diag": m * d, "spherical": m}
        return covariance[self.covariance_type] + m * d + m - 1

    def select(self, index: Tensor | int | tuple[Tensor, ...]) -> MixtureParameters:
        """The mixtures at ``index`` of the leading batch dimensions."""
        return MixtureParameters(self.weights[index], self.means[index], self.covariances[index], self.covariance_type)

    def to(self, device: torch.device) -> MixtureParameters:
        """Copy the parameters to another device."""
        weights, means, covariances = self.weights.to(device), self.means.to(device), self.covariances.to(device)
        return MixtureParameters(weights, means, covariances, self.covariance_type)


def as_matrices(covariances: Tensor, means: Tensor, covariance_type: CovarianceType) -> Tensor:
    """Covariances of any type as matrices ``(..., M, D, D)``; ``means`` ``(..., M, D)`` gives the shape."""
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return covariances[..., None, :, :].expand(*means.shape, means.shape[-1])
    variances = covariances if covariance_type == "diag" else covariances[..., None].expand(means.shape)
    return torch.diag_embed(variances)


def gaussian_mixture(
    x: Tensor,
    *,
    n_components: int,
    covariance_type: CovarianceType = "full",
    prior: MixturePrior | None = None,
    priors: MixturePriors | SitePriors = None,
) -> None:
    r"""Pyro model: cell i has component :math:`z_i \sim w`, and :math:`x_i \sim N(\mu_{z_i}, \Sigma_{z_i})`.

    Sites: ``weights``, ``covariances``, ``means``, ``assignments`` (enumerated), ``x``. To extend it, write another
    function of those of these arguments that it needs: ``GaussianMixture(model=…)`` fits it, and with the same sites,
    whose cells have the same density, it predicts as well.

    Parameters
    ----------
    x
        Cells ``(N, D)``.
    n_components
        M.
    covariance_type
        Structure of the covariances.
    prior, priors
        As of :class:`pyrosplice.GaussianMixture`; flat when None.
    """
    given = mixture_priors_of_cells(one_prior(prior, priors), x, n_components)
    weights, means, matrices = mixture_sites(x, n_components, covariance_type, given)
    factors = torch.linalg.cholesky(matrices)
    with pyro.plate("cells", len(x), dim=-1):
        z = pyro.sample("assignments", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(means[z], scale_tril=factors[z]), obs=x)


def mixture_sites(
    like: Tensor, n_components: int, covariance_type: CovarianceType, prior: MixturePriors | SitePriors
) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters: weights ``(M,)``, means ``(M, D)``, matrices ``(M, D, D)``; D and dtype are those of ``like``."""
    known = SitePriors.of(prior, n_components, like.shape[-1], covariance_type)
    weights = pyro.sample("weights", known.weight_distribution(like, n_components))
    covariance = known.covariance_distribution(like)
    shared = pyro.sample("covariances", covariance) if covariance_type == "tied" else None
    with pyro.plate("components", n_components, dim=-1):
        values = pyro.sample("covariances", covariance) if shared is None else shared
        matrices = as_matrices(values, like.new_empty(n_components, like.shape[-1]), covariance_type)
        means = pyro.sample("means", known.mean_distribution(matrices))
    return weights, means, matrices


def log_joint(
    sites: Mapping[str, Tensor], x: Tensor, *, covariance_type: CovarianceType, prior: MixturePriors | SitePriors = None
) -> Tensor:
    """Log density of the model at ``sites`` (weights, means, covariances), assignments summed out; differentiable."""
    conditioned = poutine.condition(gaussian_mixture, data=dict(sites))
    options = {"n_components": len(sites["weights"]), "covariance_type": covariance_type, "priors": prior}
    trace = poutine.trace(poutine.enum(conditioned, first_available_dim=-2)).get_trace(x, **options)
    return TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=1).log_prob(trace)


def log_prior(parameters: MixtureParameters, prior: MixturePriors | SitePriors) -> Tensor:
    """Log density of the prior alone at one mixture's parameters, constants included."""
    sites = {"weights": parameters.weights, "means": parameters.means, "covariances": parameters.covariances}
    conditioned = poutine.condition(mixture_sites, data=sites)
    options = (parameters.n_components, parameters.covariance_type, prior)
    trace = poutine.trace(conditioned).get_trace(parameters.means, *options)
    return torch.as_tensor(trace.log_prob_sum())
