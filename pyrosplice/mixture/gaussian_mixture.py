"""The Gaussian mixture as a Pyro model: the specification that the EM engine is held equal to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from torch import Tensor
from torch.distributions import constraints

from pyrosplice.errors import InvalidArgumentError, check_number
from pyrosplice.priors.inverse_wishart import InverseWishart

CovarianceType = Literal["full", "tied", "diag", "spherical"]
COVARIANCE_TYPES: tuple[CovarianceType, ...] = get_args(CovarianceType)


@dataclass(frozen=True, kw_only=True)
class MixturePrior:
    r"""Conjugate prior of a Gaussian mixture; every part is flat unless it is given.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha),\quad \Sigma_m \sim \mathrm{IW}(\nu, \Psi),\quad
              \mu_m \mid \Sigma_m \sim N(\mu_0, \Sigma_m/\kappa).

    Diagonal and spherical mixtures have the one-dimensional case of the same prior, an inverse gamma
    :math:`\mathrm{IG}(\nu/2, \psi/2)`, on each variance: ψ is the diagonal of Ψ, or its mean.

    Parameters
    ----------
    concentration
        α of the symmetric Dirichlet; 1 (default) is flat.
    mean, mean_strength
        μ₀ ``(D,)`` and κ, the number of cells that the prior mean is worth; 0 (default) is flat.
    covariance_dof, covariance_scale
        ν and Ψ ``(D, D)``; None (default) is flat. The density falls as the −(ν + D + 1)/2 th power of the determinant
        (−(ν + 2)/2 th of a variance), so that Ψ/(ν + D + 1) is its mode. A full or tied prior with ν ≤ D − 1 is
        improper: a penalty, good for a mode but not for draws.

    Raises
    ------
    InvalidArgumentError
        A part without its partner, or a value outside its range.
    """

    concentration: float = 1.0
    mean: Tensor | None = None
    mean_strength: float = 0.0
    covariance_dof: float | None = None
    covariance_scale: Tensor | None = None

    def __post_init__(self) -> None:
        if check_number("concentration", self.concentration) == 0:
            raise InvalidArgumentError(f"concentration: expected a positive number, found {self.concentration}.")
        check_number("mean_strength", self.mean_strength)
        if self.covariance_dof is not None:
            check_number("covariance_dof", self.covariance_dof, least=-math.inf)
        object.__setattr__(self, "mean", _given_tensor("mean", self.mean, 1))
        scale = _given_tensor("covariance_scale", self.covariance_scale, 2)
        object.__setattr__(self, "covariance_scale", scale)
        if self.mean_strength < 0 or (self.mean_strength > 0) != (self.mean is not None):
            raise InvalidArgumentError("mean and mean_strength: give both (strength above 0), or neither.")
        if (self.covariance_dof is None) != (self.covariance_scale is None):
            raise InvalidArgumentError("covariance_dof and covariance_scale: give both, or neither.")
        if scale is not None:
            square = scale.shape[0] == scale.shape[1] and torch.allclose(scale, scale.mT)
            values = torch.linalg.eigvalsh(scale.double()) if square else scale.new_tensor([-1.0])
            if float(values.min()) < -1e-9 * float(values.abs().max()):
                raise InvalidArgumentError("covariance_scale: expected a symmetric matrix, positive semidefinite.")

    def check_features(self, dim: int) -> None:
        """Raise :class:`InvalidArgumentError` unless the prior is one of ``dim`` features."""
        for name, own in (("mean", self.mean), ("covariance_scale", self.covariance_scale)):
            if own is not None and own.shape[0] != dim:
                raise InvalidArgumentError(f"prior: {name}: expected {dim} features, as the cells, found {len(own)}.")

    @property
    def is_flat(self) -> bool:
        """True when maximising the posterior is maximising the likelihood."""
        return self.concentration == 1 and self.mean is None and self.covariance_scale is None

    def weight_distribution(self, like: Tensor, n_components: int) -> dist.TorchDistribution:
        """Distribution of the weights ``(M,)``."""
        return dist.Dirichlet(like.new_full((n_components,), self.concentration))

    def covariance_distribution(self, like: Tensor, covariance_type: CovarianceType) -> dist.TorchDistribution:
        """Distribution of one covariance: ``(D, D)``, ``(D,)`` or ``()`` as its type has it."""
        dim = like.shape[-1]
        matrix = covariance_type in ("full", "tied")
        if self.covariance_scale is None:
            shape = {"diag": (dim,), "spherical": ()}.get(covariance_type, (dim, dim))
            support = constraints.positive_definite if matrix else constraints.positive
            return dist.ImproperUniform(support, (), shape)
        assert self.covariance_dof is not None
        least = -(dim + 1) if matrix else 0
        if self.covariance_dof <= least:
            raise InvalidArgumentError(f"covariance_dof: expected more than {least}, found {self.covariance_dof}.")
        scale = self.covariance_scale.to(like)
        if matrix:
            return InverseWishart(self.covariance_dof, scale)
        half = like.new_tensor(self.covariance_dof / 2)
        variances = dist.InverseGamma(half, scale.diagonal() / 2)
        return variances.to_event(1) if covariance_type == "diag" else dist.InverseGamma(half, scale.trace() / dim / 2)

    def mean_distribution(self, covariance: Tensor) -> dist.TorchDistribution:
        """Distribution of a mean ``(D,)`` given its covariance matrix ``(..., D, D)``."""
        if self.mean is None:
            return dist.ImproperUniform(constraints.real_vector, (), covariance.shape[-1:])
        return dist.MultivariateNormal(self.mean.to(covariance), covariance / self.mean_strength)


def _given_tensor(name: str, value: Any, dimensions: int) -> Tensor | None:
    """A part of a prior as a finite Tensor of so many dimensions."""
    if value is None:
        return None
    if isinstance(value, (pd.Series, pd.DataFrame)):
        raise InvalidArgumentError(f"{name}: a prior knows no names; give an array in the order of the features.")
    try:
        found = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: expected numbers ({error}).") from error
    if found.dim() != dimensions or not bool(found.isfinite().all()):
        raise InvalidArgumentError(
            f"{name}: expected finite numbers in {dimensions} dimension(s), found shape {tuple(found.shape)}."
        )
    return found


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
        """All covariances as matrices ``(..., M, D, D)``."""
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
        """The same parameters on another device."""
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
    x: Tensor, *, n_components: int, covariance_type: CovarianceType = "full", prior: MixturePrior | None = None
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
    prior
        Flat when None.
    """
    weights, means, matrices = mixture_sites(x, n_components, covariance_type, prior or MixturePrior())
    factors = torch.linalg.cholesky(matrices)
    with pyro.plate("cells", len(x), dim=-1):
        z = pyro.sample("assignments", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(means[z], scale_tril=factors[z]), obs=x)


def mixture_sites(
    like: Tensor, n_components: int, covariance_type: CovarianceType, prior: MixturePrior
) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters: weights ``(M,)``, means ``(M, D)``, matrices ``(M, D, D)``; D and dtype are those of ``like``."""
    weights = pyro.sample("weights", prior.weight_distribution(like, n_components))
    covariance = prior.covariance_distribution(like, covariance_type)
    shared = pyro.sample("covariances", covariance) if covariance_type == "tied" else None
    with pyro.plate("components", n_components, dim=-1):
        values = pyro.sample("covariances", covariance) if shared is None else shared
        matrices = as_matrices(values, like.new_empty(n_components, like.shape[-1]), covariance_type)
        means = pyro.sample("means", prior.mean_distribution(matrices))
    return weights, means, matrices


def log_joint(
    sites: Mapping[str, Tensor], x: Tensor, *, covariance_type: CovarianceType, prior: MixturePrior | None = None
) -> Tensor:
    """Log density of the model at ``sites`` (weights, means, covariances), assignments summed out; differentiable."""
    conditioned = poutine.condition(gaussian_mixture, data=dict(sites))
    options = {"n_components": len(sites["weights"]), "covariance_type": covariance_type, "prior": prior}
    trace = poutine.trace(poutine.enum(conditioned, first_available_dim=-2)).get_trace(x, **options)
    return TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=1).log_prob(trace)


def log_prior(parameters: MixtureParameters, prior: MixturePrior) -> Tensor:
    """Log density of the prior alone at one mixture's parameters, constants included."""
    sites = {"weights": parameters.weights, "means": parameters.means, "covariances": parameters.covariances}
    conditioned = poutine.condition(mixture_sites, data=sites)
    options = (parameters.n_components, parameters.covariance_type, prior)
    trace = poutine.trace(conditioned).get_trace(parameters.means, *options)
    return torch.as_tensor(trace.log_prob_sum())
