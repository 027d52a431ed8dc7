"""Priors of a mixture: distributions by site, a name, or the conjugate prior's numbers; all are read to the first."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrosplice.errors import InvalidArgumentError, check_number, check_option
from pyrosplice.priors._inverse_wishart import InverseWishart
from pyrosplice.priors._named import name_of_priors
from pyrosplice.priors._prior_tables import describe
from pyrosplice.priors._scaled_normal import ScaledNormal
from pyrosplice.priors._sites import PriorSite, check_prior, completed, converted, is_flat

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

    def by_site(self, n_components: int, n_features: int, covariance_type: CovarianceType) -> dict[str, Any]:
        """Write the prior as Pyro distributions by site; flat ones are left out."""
        self.check_features(n_features)
        weights = torch.full((n_components,), float(self.concentration), dtype=torch.float64)
        found: dict[str, Any] = {} if self.concentration == 1 else {"weights": dist.Dirichlet(weights)}
        if self.mean is not None:
            found["means"] = ScaledNormal(self.mean.double().cpu(), float(self.mean_strength))
        if self.covariance_scale is not None:
            found["covariances"] = self._of_covariances(n_features, covariance_type)
        return found

    def _of_covariances(self, n_features: int, kind: CovarianceType) -> dist.TorchDistribution:
        assert self.covariance_scale is not None and self.covariance_dof is not None
        matrix = kind in ("full", "tied")
        least, dof = -(n_features + 1) if matrix else 0, self.covariance_dof
        if dof <= least:
            raise InvalidArgumentError(f"covariance_dof: expected more than {least}, found {dof}.")
        scale = self.covariance_scale.double().cpu()
        try:
            if matrix:
                return InverseWishart(dof, scale)
            rate = scale.diagonal() if kind == "diag" else scale.trace() / n_features
            return dist.InverseGamma(rate.new_tensor(dof / 2), rate / 2)
        except ValueError as error:
            raise InvalidArgumentError(
                "covariance_scale: a feature, or a combination of features, has no variance in it; expected a positive "
                "definite matrix. Leave out features that are the same in all cells."
            ) from error


MixturePriors = Mapping[str, Any] | MixturePrior | Literal["weak"] | None
"""What priors of a mixture may be given as; :class:`SitePriors` is what they are read to."""


def one_prior(prior: Any, priors: Any) -> Any:
    """What was given of two options that say the same: numbers of the conjugate prior, or distributions by site.

    Raises
    ------
    InvalidArgumentError
        Both were given.
    """
    if prior is not None and priors is not None:
        raise InvalidArgumentError(
            "prior, priors: expected one of them, found both; priors={'weights': ..., 'means': ..., 'covariances': "
            "...} says all that prior=MixturePrior(...) does."
        )
    return prior if priors is None else priors


def weak_prior(covariance: Tensor, mean: Tensor, n_components: int) -> MixturePrior:
    """The weakly informative prior of Fraley & Raftery (2007): a hundredth of a cell for the mean, D + 2 degrees.

    Parameters
    ----------
    covariance, mean
        Moments of all cells, ``(D, D)`` and ``(D,)``.
    n_components
        M; the prior covariance is that of all cells over M^(2/D).
    """
    dim = len(mean)
    return MixturePrior(
        mean=mean,
        mean_strength=0.01,
        covariance_dof=dim + 2.0,
        covariance_scale=covariance / n_components ** (2 / dim),
    )


def mixture_priors_of_cells(given: Any, cells: Tensor, n_components: int) -> Any:
    """Priors as given, but :func:`weak_prior` of the cells ``(N, D)`` in the place of ``"weak"``."""
    if not isinstance(given, str):
        return given
    values = cells.double()
    covariance = torch.cov(values.mT, correction=0).reshape(values.shape[1], values.shape[1])
    return weak_prior(covariance, values.mean(0), n_components)


def prior_sites(n_components: int, n_features: int, covariance_type: CovarianceType) -> dict[str, PriorSite]:
    """Shapes and supports of what a mixture has priors of; the numbers of priors are on the CPU."""
    m, d = n_components, n_features
    covariances = {
        "full": PriorSite((m, d, d), "positive_definite", "components", "cpu"),
        "tied": PriorSite((d, d), "positive_definite", None, "cpu"),
        "diag": PriorSite((m, d), "positive", "components", "cpu"),
        "spherical": PriorSite((m,), "positive", "components", "cpu"),
    }
    return {
        "weights": PriorSite((m,), "simplex", None, "cpu"),
        "means": PriorSite((m, d), "real", "components", "cpu"),
        "covariances": covariances[covariance_type],
    }


@dataclass(frozen=True)
class SitePriors:
    """Priors of one mixture's weights, means and covariances in float64, each for all M components; None is flat.

    Attributes
    ----------
    weights, means, covariances
        Distributions of batch shape ``()``, ``(M,)`` and ``(M,)``, or ``()`` where the covariance is tied.
    covariance_type
        Covariance type of the mixture.
    """

    weights: dist.TorchDistribution | None
    means: dist.TorchDistribution | None
    covariances: dist.TorchDistribution | None
    covariance_type: CovarianceType

    @classmethod
    def of(
        cls, given: MixturePriors | SitePriors, n_components: int, n_features: int, covariance_type: CovarianceType
    ) -> SitePriors:
        """Read priors, however they are given; ``"weak"`` is of cells, :func:`mixture_priors_of_cells`.

        Raises
        ------
        InvalidArgumentError
            Priors of another site, support, shape or device, or flat ones that are given.
        """
        if isinstance(given, SitePriors):
            return given
        if isinstance(given, MixturePrior):
            given = given.by_site(n_components, n_features, covariance_type)
        else:
            check_mixture_priors(given, covariance_type)
        assert not isinstance(given, str)
        sites = prior_sites(n_components, n_features, covariance_type)
        found: dict[str, Any] = dict.fromkeys(sites)
        for name, prior in (given or {}).items():
            if prior is not None:
                found[name] = completed(name, _of_all_components(name, prior, n_components), sites[name])
        return cls(**found, covariance_type=covariance_type)

    @property
    def not_conjugate(self) -> dict[str, str]:
        """Sites whose priors have no closed form in an M-step, and the priors in words."""
        given = {"weights": self.weights, "means": self.means, "covariances": self.covariances}
        return without_closed_form(given, self.covariance_type)

    @property
    def exchangeable(self) -> bool:
        """Whether conjugate priors are the same for all components, which have no order then."""
        known, alike = conjugate_kinds(self.covariance_type), True
        for name in ("weights", "means") if self.covariance_type == "tied" else known:
            prior = without_events(getattr(self, name))
            for number in () if prior is None else known[name][type(prior)]:
                values = getattr(prior, number)
                alike &= bool((values == values[:1]).all())
        return alike

    def without(self, sites: Collection[str]) -> SitePriors:
        """Copy with flat priors of some sites."""
        return replace(self, **dict.fromkeys(sites))  # type: ignore[arg-type]

    def weight_distribution(self, like: Tensor, n_components: int) -> dist.TorchDistribution:
        """Distribution of the weights ``(M,)``."""
        if self.weights is None:
            return dist.Dirichlet(like.new_ones(n_components))
        return converted(self.weights, like)

    def covariance_distribution(self, like: Tensor) -> dist.TorchDistribution:
        """Distribution of the covariances: ``(M, D, D)``, ``(D, D)``, ``(M, D)`` or ``(M,)`` as their type has it."""
        if self.covariances is not None:
            return converted(self.covariances, like)
        dim, kind = like.shape[-1], self.covariance_type
        shape = {"diag": (dim,), "spherical": ()}.get(kind, (dim, dim))
        support = constraints.positive_definite if kind in ("full", "tied") else constraints.positive
        return dist.ImproperUniform(support, (), shape)

    def mean_distribution(self, covariance: Tensor) -> dist.TorchDistribution:
        """Distribution of the means ``(M, D)`` given the covariance matrices ``(..., M, D, D)``."""
        if self.means is None:
            return dist.ImproperUniform(constraints.real_vector, (), covariance.shape[-1:])
        means = converted(self.means, covariance)
        return means.given(covariance) if isinstance(means, ScaledNormal) else means


def check_mixture_priors(given: Any, covariance_type: CovarianceType) -> None:
    """Raise unless priors by site, or a name, are of sites that a mixture has, on their supports, and not flat.

    Their shapes are those of cells, which :meth:`SitePriors.of` has.
    """
    name_of_priors(given)
    sites = prior_sites(1, 1, covariance_type)
    for name, prior in given.items() if isinstance(given, Mapping) else ():
        check_option("priors", name, sites)
        if prior is not None:
            check_prior(name, prior, sites[name])
            _require_not_flat(name, prior)


def has_covariances(given: Any) -> bool:
    """Whether priors by site, or the weak ones, have one of the covariances."""
    if isinstance(given, SitePriors):
        return given.covariances is not None
    return given == "weak" or (isinstance(given, Mapping) and given.get("covariances") is not None)


def closed_priors(
    given: MixturePriors, n_components: int, n_features: int, covariance_type: CovarianceType
) -> MixturePriors | SitePriors:
    """The priors, but flat where an M-step has no closed form for what was given; raises for other shapes."""
    if not isinstance(given, Mapping):
        return given
    known = SitePriors.of(given, n_components, n_features, covariance_type)
    return known.without(known.not_conjugate)


def without_closed_form(given: Any, covariance_type: CovarianceType) -> dict[str, str]:
    """Sites whose priors are not conjugate, and the priors in words."""
    known = conjugate_kinds(covariance_type)
    return {  # by its very class: a subclass may have a density of its own
        name: describe(prior)
        for name, prior in (given.items() if isinstance(given, Mapping) else ())
        if prior is not None and type(without_events(prior)) not in known[name]
    }


def conjugate_kinds(covariance_type: CovarianceType) -> dict[str, dict[type, tuple[str, ...]]]:
    """Priors that an M-step has a closed form for, by site, and the names of their numbers."""
    variances: dict[type, tuple[str, ...]] = {dist.InverseGamma: ("concentration", "rate")}
    return {
        "weights": {dist.Dirichlet: ("concentration",)},
        "means": {
            ScaledNormal: ("loc", "cells"),
            dist.Normal: ("loc", "scale"),
            dist.MultivariateNormal: ("loc", "covariance_matrix"),
        },
        "covariances": {InverseWishart: ("dof", "scale")} if covariance_type in ("full", "tied") else variances,
    }


def without_events(prior: Any) -> Any:
    """The distribution of single entries, of which Independent makes one of several."""
    return prior.base_dist if isinstance(prior, dist.Independent) else prior


def _of_all_components(name: str, prior: Any, n_components: int) -> Any:
    """The prior; a Dirichlet of one number has the same one for every component, however many there are."""
    if name == "weights" and type(prior) is dist.Dirichlet and prior.concentration.shape == (1,):
        return dist.Dirichlet(prior.concentration.expand(n_components))
    return prior


def _require_not_flat(name: str, prior: Any) -> None:
    if is_flat(prior):
        raise InvalidArgumentError(
            f"priors[{name!r}]: expected a distribution with a density, found {type(prior).__name__}, which is flat; "
            "leave the site out (or give None) for a flat prior."
        )


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
