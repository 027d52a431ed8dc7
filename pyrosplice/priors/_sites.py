r"""Priors by site: any Pyro distribution for any site of a model, flat by default.

The sites of the isoform models are

==============  ==================  ==========================  =====================================================
site            shape of one gene   default                     meaning
==============  ==================  ==========================  =====================================================
``beta``        ``(P, Q)``          flat on the reals           covariate effects
``bias_eta``    ``(Q,)``            flat on the reals           intercepts
``sigma``       ``(1,)`` / ``(Q,)``  flat on the positive reals  standard deviation of the random effect
``theta_logit`` ``(1,)`` / ``(Q,)``  flat on the reals           logit of the spatial share of its variance
likelihood's    ``(1,)``            flat on the positive reals  its hyper-parameters, e.g. ``concentration``
==============  ==================  ==========================  =====================================================

A prior may have any batch and event shape that broadcasts to its site: ``Normal(0, 1)`` is independent over all
entries, ``MultivariateNormal(zeros(Q), S)`` for ``beta`` couples the logits of each covariate, and so on.
:class:`~pyrosplice.priors.SymmetricNormal` couples them so that no isoform is special, whatever their number.

The flat priors are a normal (log-normal for σ) under ``mask(False)``, Pyro's idiom for a factor that is constant: the
density is improper and zero on the log scale, while samplers and autoguides still find a point to start from.

Mixtures have sites of their own (:func:`~pyrosplice._mixture.mixture_prior.prior_sites`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from pyrosplice._modes import ordinary
from pyrosplice.errors import InvalidArgumentError, check_option, is_number
from pyrosplice.priors._symmetric_normal import SymmetricNormal

SITES = ("beta", "bias_eta", "sigma", "theta_logit")
REAL_SITES = ("beta", "bias_eta", "theta_logit")  # every other site is positive
Support = Literal["real", "positive", "simplex", "positive_definite"]
SUPPORTS: dict[Support, str] = {
    "real": "the real numbers",
    "positive": "the positive numbers",
    "simplex": "shares that add up to one",
    "positive_definite": "covariance matrices",
}
PLACES: dict[Support, tuple[float, ...]] = {"real": (-100.0, -1.0, 1.0, 100.0), "positive": (-3.0, -1.0, 1.0, 3.0)}
"""Where a density is asked for, in unconstrained coordinates; the middle where there is no other."""
VARIANCE_PRIORS: dict[str, dict[str, float]] = {
    "none": {},
    "gamma": {"alpha": 2.0, "beta": 0.3},
    "inv_gamma": {"alpha": 3.0, "beta": 0.5},
}


def variance_prior(name: str, params: Mapping[str, float] | None = None) -> dist.TorchDistribution | None:
    r"""Prior of σ by its documented name; None for "none".

    ``"gamma"`` is :math:`\sigma \sim \operatorname{Gamma}(\alpha, \text{rate } \beta)`. ``"inv_gamma"`` is
    :math:`\sigma^2 \sim \operatorname{InvGamma}(\alpha, \beta)`, returned as the density of the site σ, that is with
    the factor :math:`2\sigma` of the change of variables: the density that Pyro integrates is the one maximised.

    Raises
    ------
    InvalidArgumentError
        Unknown name or parameter, or a parameter that is not positive.
    """
    check_option("var_prior_model", name, VARIANCE_PRIORS)
    if not isinstance(params, Mapping | None):
        raise InvalidArgumentError(f"var_prior_model_params: expected a dict or None, found {type(params).__name__}.")
    values = {**VARIANCE_PRIORS[name], **(params or {})}
    for key, value in values.items():
        check_option(f"var_prior_model_params for {name!r}", key, VARIANCE_PRIORS[name])
        if not (is_number(value) and value > 0):
            raise InvalidArgumentError(f"var_prior_model_params[{key!r}]: expected a positive number, found {value!r}.")
    if name == "none":
        return None
    alpha, beta = (torch.tensor(float(values[key]), dtype=torch.float64) for key in ("alpha", "beta"))
    if name == "gamma":
        return dist.Gamma(alpha, beta)
    root = torch.distributions.transforms.PowerTransform(torch.tensor(0.5, dtype=torch.float64))
    return dist.TransformedDistribution(dist.InverseGamma(alpha, beta), [root])


@dataclass(frozen=True)
class PriorSite:
    """What a prior is compared with: a site's shape, what its values are, and its units.

    Attributes
    ----------
    shape
        Shape of all values, units first.
    support
        What each of them may be.
    units
        What its leading dimension counts, ``"genes"`` or ``"components"``; None for a site that is of all of them.
    device
        Where the numbers of a prior have to be; None for anywhere.
    """

    shape: tuple[int, ...]
    support: Support
    units: str | None = "genes"
    device: str | None = None


Law = TypeVar("Law", bound=torch.distributions.Distribution)


def complete_priors(
    priors: Mapping[str, Any] | None,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    real: Collection[str] = REAL_SITES,
) -> dict[str, dist.TorchDistribution]:
    """Complete the priors of all sites of ``shapes``, expanded to batch shape ``(G,)`` and the site's event shape.

    Parameters
    ----------
    priors
        Pyro distributions by site; sites left out (or None) get a flat, improper prior.
    shapes
        Shape of each site, genes first: ``{"beta": (G, P, Q), ...}``.
    real
        Sites of real numbers; every other site is positive.

    Raises
    ------
    InvalidArgumentError
        A name that is no site of this model, a value that is no distribution, or one that does not broadcast.
    """
    given = dict(priors or {})
    for name in given:
        check_option("priors", name, shapes)
    return {name: _expanded(name, given.get(name), shape, name in real) for name, shape in shapes.items()}


def _expanded(
    name: str, prior: dist.TorchDistribution | None, shape: tuple[int, ...], real: bool
) -> dist.TorchDistribution:
    if prior is None:
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        start = dist.Normal(zero, one) if real else dist.LogNormal(zero, one)
        return start.expand(shape).to_event(len(shape) - 1).mask(False)
    site = PriorSite(shape, "real" if real else "positive")
    check_prior(name, prior, site)
    return completed(name, prior, site)


def completed(name: str, prior: dist.TorchDistribution, site: PriorSite) -> dist.TorchDistribution:
    """A prior that :func:`check_prior` took in float64, expanded to its site: one batch dimension, of units, or none.

    Raises
    ------
    InvalidArgumentError
        It does not broadcast to the site's shape.
    """
    prior, shape = converted(prior), site.shape
    if isinstance(prior, SymmetricNormal):  # which is of the number of isoforms that it is put to
        prior = prior.of_logits(shape[-1])
    n_batch, n_units = len(shape) - len(prior.event_shape), int(site.units is not None)
    try:
        if n_batch < n_units or tuple(prior.event_shape) != shape[n_batch:]:
            raise RuntimeError
        expanded = prior.expand(torch.Size(shape[:n_batch]))
    except RuntimeError as error:
        first = "" if site.units is None else f" ({site.units} first)"
        raise InvalidArgumentError(
            f"priors[{name!r}]: expected a distribution on {SUPPORTS[site.support]} that broadcasts to shape "
            f"{shape}{first}, found {type(prior).__name__} of batch shape {tuple(prior.batch_shape)} and event shape "
            f"{tuple(prior.event_shape)}."
        ) from error
    return expanded.to_event(n_batch - n_units)


def check_prior(name: str, prior: object, site: PriorSite) -> None:
    """Raise unless ``prior`` is a Pyro distribution of values that its site may have, whatever its shape.

    Raises
    ------
    InvalidArgumentError
        No distribution; one of torch's own, which lacks what Pyro needs; a support that is not the site's, such as real
        numbers for coefficients and logits, positive ones for σ and hyper-parameters (a prior on a part of them, such
        as a uniform one, is taken: the mode is then looked for within it).
    """
    wanted = site.support
    if not isinstance(prior, torch.distributions.Distribution):
        raise InvalidArgumentError(
            f"priors[{name!r}]: expected a Pyro distribution on {SUPPORTS[wanted]}, found {type(prior).__name__}."
        )
    if not isinstance(prior, TorchDistributionMixin):
        kind = type(prior).__name__
        own = kind if hasattr(dist, kind) else "TorchDistribution"
        raise InvalidArgumentError(
            f"priors[{name!r}]: {kind} is one of torch's distributions, which Pyro's models cannot sample from; use "
            f"pyro.distributions.{own}."
        )
    try:
        support: Any = prior.support
    except NotImplementedError as error:
        raise InvalidArgumentError(
            f"priors[{name!r}]: {type(prior).__name__} does not say its support; give it the property ``support``."
        ) from error
    whole = support
    while hasattr(support, "base_constraint"):  # of independent entries, and of mixtures
        support = support.base_constraint
    if not _is_within(support, wanted):
        raise InvalidArgumentError(
            f"priors[{name!r}]: expected a distribution on {SUPPORTS[wanted]}, the support of this site, found "
            f"{type(prior).__name__} on {support}."
        )
    if prior.is_discrete if hasattr(prior, "is_discrete") else support.is_discrete:
        raise InvalidArgumentError(f"priors[{name!r}]: {type(prior).__name__} is discrete; this site is continuous.")
    try:
        torch.distributions.transform_to(whole)
    except NotImplementedError as error:
        raise InvalidArgumentError(
            f"priors[{name!r}]: {type(prior).__name__} says its support is {whole}, to which torch knows no "
            "transformation, so that neither modes nor draws can be found; give a subclass of it whose ``support`` is "
            f"constraints.{wanted}."
        ) from error
    if site.device is not None:
        _require_device(name, prior, site.device)
    _require_density(name, prior, support, PLACES.get(wanted, (0.0,)))


def _require_density(
    name: str, prior: dist.TorchDistribution, support: constraints.Constraint, places: Sequence[float]
) -> None:
    """Raise unless a prior has a density on the support that it says it has, far from its middle on both sides."""
    if is_flat(prior):
        return
    for place in places:
        point = torch.full((*prior.batch_shape, *prior.event_shape), place, dtype=torch.float64)
        point = torch.distributions.transform_to(support)(point)
        try:
            density = converted(prior).log_prob(point)
        except ValueError:  # torch's own check of the support
            density = point.new_tensor(-torch.inf)
        if not bool(torch.isfinite(density).all()):
            raise InvalidArgumentError(
                f"priors[{name!r}]: expected a density on all of its support, {support}; {type(prior).__name__} has "
                f"none at {float(point.flatten()[0]):.3g}. Give a subclass of it with the right ``support``."
            )


def _is_within(support: object, wanted: Support) -> bool:
    """Whether values of one support are of the other; positive ones with zero or not, or of an interval of them."""
    if wanted == "positive":
        return float(torch.as_tensor(getattr(support, "lower_bound", -1.0)).min()) >= 0
    site: Any = getattr(constraints, wanted)
    return support is site or type(support) is type(site)


def _require_device(name: str, prior: object, device: str) -> None:
    """Raise unless all numbers of a prior are where they have to be."""
    for value in vars(prior).values():
        if isinstance(value, torch.distributions.Distribution):
            _require_device(name, value, device)
        elif isinstance(value, Tensor) and value.device.type != device:
            raise InvalidArgumentError(
                f"priors[{name!r}]: expected {type(prior).__name__} with numbers on {device!r}, from where they are "
                f"moved to the data, found them on {str(value.device)!r}; make it of tensors on {device!r}."
            )


def log_prior(
    priors: Mapping[str, dist.TorchDistribution], values: Mapping[str, Tensor], *, genes: Tensor | None = None
) -> Tensor:
    """Log prior density of each gene, summed over the sites in ``values``; differentiable.

    Parameters
    ----------
    priors
        Priors of :func:`complete_priors`, for G genes.
    values
        Values by site, genes first.
    genes
        Which of the G genes the values belong to, ``(B,)``, a gene any number of times; all of them once if None.

    Returns
    -------
    Tensor
        ``(B,)``; minus infinity for a gene with a value outside a prior's support (or NaN), which troubles no other.
    """
    first = next(iter(values.values()))
    genes = torch.arange(len(first), device=first.device) if genes is None else genes
    density = first.new_zeros(len(first))
    for name, value in values.items():
        if value.numel() and not is_flat(priors[name]):  # no covariates, no prior of them
            density = density + _log_density(priors[name], value, genes)
    return density


def _log_density(prior: dist.TorchDistribution, value: Tensor, genes: Tensor) -> Tensor:
    n_event = len(prior.event_shape)
    support: Any = prior.support
    table = _occurrence(genes), genes  # a prior's parameters are of all G genes: one table of them a repetition
    times = int(table[0].max()) + 1 if len(genes) else 0
    inner = torch.distributions.transform_to(support)(value.new_zeros((times, *prior.shape())))
    every = inner.index_put(table, value)
    inside = support.check(every)
    every = torch.where(inside.reshape(*inside.shape, *[1] * n_event), every, inner)
    return torch.where(inside, prior.log_prob(every), -torch.inf)[table]


def _occurrence(genes: Tensor) -> Tensor:
    """How many times the gene of each row (B,) has come before."""
    order = torch.argsort(genes, stable=True)
    times = torch.unique(genes, return_counts=True)[1]
    first = (times.cumsum(0) - times).repeat_interleave(times)
    return torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device) - first)


def is_flat(prior: dist.TorchDistribution) -> bool:
    """Whether a completed prior has constant (improper) density, so that engines may leave it out."""
    return isinstance(prior, dist.ImproperUniform) or (
        isinstance(prior, dist.MaskedDistribution) and prior._mask is False
    )


def converted(prior: Law, like: Tensor | None = None) -> Law:
    """Copy a distribution to float64 parameters, or to those of the type and device of ``like``.

    ``Normal(0., 1.)`` has torch's default of float32.
    """
    changed = copy(prior)
    for name, value in vars(prior).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(changed, name, ordinary(value.double() if like is None else value.to(like)))
        elif isinstance(value, torch.distributions.Distribution):
            setattr(changed, name, converted(value, like))
    return changed
