r"""Priors of the isoform models: any Pyro distribution for any site, flat by default.

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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from pyrosplice.errors import InvalidArgumentError, check_option, is_number
from pyrosplice.modes import ordinary
from pyrosplice.priors.symmetric_normal import SymmetricNormal

SITES = ("beta", "bias_eta", "sigma", "theta_logit")
REAL_SITES = ("beta", "bias_eta", "theta_logit")  # every other site is positive
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


def complete_priors(
    priors: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dist.TorchDistribution]:
    """One prior for each site of ``shapes``, expanded to batch shape ``(G,)`` and the site's own event shape.

    Parameters
    ----------
    priors
        Pyro distributions by site; sites left out (or None) get a flat, improper prior.
    shapes
        Shape of each site, genes first: ``{"beta": (G, P, Q), ...}``.

    Raises
    ------
    InvalidArgumentError
        A name that is no site of this model, a value that is no distribution, or one that does not broadcast.
    """
    given = dict(priors or {})
    for name in given:
        check_option("priors", name, shapes)
    return {name: _expanded(name, given.get(name), shape) for name, shape in shapes.items()}


def check_prior(name: str, prior: Any, *, real: bool) -> None:
    """Raise unless ``prior`` is a Pyro distribution of values that its site, ``real`` or else positive, may have.

    Raises
    ------
    InvalidArgumentError
        No distribution; one of torch's own, which lacks what Pyro needs; a support that is not the site's, real numbers
        for coefficients and logits, positive ones for σ and hyper-parameters (a prior on a part of them, such as a
        uniform one, is taken: the mode is then looked for within it).
    """
    if not isinstance(prior, torch.distributions.Distribution):
        raise InvalidArgumentError(f"priors[{name!r}]: expected a Pyro distribution, found {type(prior).__name__}.")
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
    wanted = "the real numbers" if real else "the positive numbers"
    if not (_is_real(support) if real else _is_positive(support)):
        raise InvalidArgumentError(
            f"priors[{name!r}]: expected a distribution on {wanted}, the support of this site, found "
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
            f"constraints.{'real' if real else 'positive'}."
        ) from error
    _require_density(name, prior, support, (-100.0, -1.0, 1.0, 100.0) if real else (-3.0, -1.0, 1.0, 3.0))


def _require_density(name: str, prior: Any, support: Any, places: Sequence[float]) -> None:
    """Raise unless a prior has a density on the support that it says it has, far from its middle on both sides."""
    if is_flat(prior):
        return
    for place in places:
        point = torch.full((*prior.batch_shape, *prior.event_shape), place, dtype=torch.float64)
        point = torch.distributions.transform_to(support)(point)
        try:
            density = _double(prior).log_prob(point)
        except ValueError:  # torch's own check of the support
            density = point.new_tensor(-torch.inf)
        if not bool(torch.isfinite(density).all()):
            raise InvalidArgumentError(
                f"priors[{name!r}]: expected a density on all of its support, {support}; {type(prior).__name__} has "
                f"none at {float(point.flatten()[0]):.3g}. Give a subclass of it with the right ``support``."
            )


def _is_real(support: Any) -> bool:
    return support is constraints.real or type(support) is type(constraints.real)


def _is_positive(support: Any) -> bool:
    """The positive half-line, zero or not, or an interval of it."""
    return float(torch.as_tensor(getattr(support, "lower_bound", -1.0)).min()) >= 0


def log_prior(
    priors: Mapping[str, dist.TorchDistribution], values: Mapping[str, Tensor], *, genes: Tensor | None = None
) -> Tensor:
    """Log prior density of each gene, summed over the sites in ``values``; differentiable.

    Parameters
    ----------
    priors
        Of :func:`complete_priors`, for G genes.
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


def _double(prior: Any) -> Any:
    """The same distribution with float64 parameters: ``Normal(0., 1.)`` has torch's default of float32."""
    changed = copy(prior)
    for name, value in vars(prior).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(changed, name, ordinary(value.double()))
        elif isinstance(value, torch.distributions.Distribution):
            setattr(changed, name, _double(value))
    return changed


def _expanded(name: str, prior: Any, shape: tuple[int, ...]) -> dist.TorchDistribution:
    if prior is None:
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        start = dist.Normal(zero, one) if name in REAL_SITES else dist.LogNormal(zero, one)
        return start.expand(shape).to_event(len(shape) - 1).mask(False)
    check_prior(name, prior, real=name in REAL_SITES)
    prior = _double(prior)
    if isinstance(prior, SymmetricNormal):  # which is of the number of isoforms that it is put to
        prior = prior.of_logits(shape[-1])
    n_batch = len(shape) - len(prior.event_shape)
    try:
        if n_batch < 1 or tuple(prior.event_shape) != shape[n_batch:]:
            raise RuntimeError
        expanded = prior.expand(torch.Size(shape[:n_batch]))
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"priors[{name!r}]: expected a distribution that broadcasts to shape {shape} (genes first), found batch "
            f"shape {tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}."
        ) from error
    return expanded.to_event(n_batch - 1)
