"""Where a search begins: the same point at every call, and others, as repeatable, for units that did not get there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrosplice.guides._bijections import bijection

Site = dict[str, Any]  # a node of a Pyro trace
SiteStart = Callable[[Site], Tensor]
JITTER = 0.1  # of the first point: sites alike, such as means of a mixture, would stay so on every step of Newton's
_SEED = 20_011


class ModelTrace(Protocol):
    """One run of a model: Pyro's own ``Trace``, whose sites hold what any handler puts in them."""

    @property
    def nodes(self) -> Mapping[str, Site]:
        """What was sampled, by name."""

    @property
    def plate_to_symbol(self) -> Mapping[str, str]:
        """Symbols that stand for the plates in packed tensors."""

    @property
    def symbol_to_dim(self) -> Mapping[str, int]:
        """Dimensions of the symbols in packed tensors, of plates and of discrete sites."""

    def pack_tensors(self) -> None:
        """Pack densities by their plates."""

    def log_prob_sum(self) -> Tensor:
        """Log density of the run."""


def is_subsample(site: Site) -> bool:
    """Whether a site is the choice of elements that a plate makes."""
    return site_is_subsample(cast("Message[..., Any]", site))


def init_to_center(site: Site) -> Tensor:
    """Start of a site, for any Pyro guide: the mean of its prior, or the middle of its support; never a random draw.

    Examples
    --------
    >>> import pyro
    >>> import pyro.distributions as dist
    >>> from pyro.infer.autoguide import AutoNormal
    >>> from pyrosplice.guides import init_to_center
    >>> def model():
    ...     pyro.sample("size", dist.Gamma(4.0, 2.0))
    >>> guide = AutoNormal(model, init_loc_fn=init_to_center)
    >>> _ = guide()
    >>> round(guide.median()["size"].item(), 3)  # the mean of the prior
    2.0
    """
    fn = site["fn"]
    if fn.support.is_discrete:
        return fn.enumerate_support(expand=True)[0] if fn.has_enumerate_support else fn.sample()
    transform, shape = bijection(fn.support), fn.shape()
    try:
        mean = fn.mean.detach().expand(shape)
        if bool(fn.support.check(mean).all()) and bool(torch.isfinite(transform.inv(mean)).all()):
            return mean.clone()
    except (NotImplementedError, AttributeError, RuntimeError, ValueError):  # no mean, or none in the support
        pass
    return transform(torch.zeros(transform.inverse_shape(torch.Size(shape)), dtype=_dtype(fn)))


def shifted(point: Tensor, attempt: int, *, own: bool) -> Tensor:
    """First point of an attempt, ``(G, d)``: 0 is the first one, and later ones are farther and farther from it.

    Parameters
    ----------
    point
        Unconstrained first point ``(G, d)``.
    attempt
        0, 1, 2, …
    own
        Whether the point was given by the person, and is not to be moved at attempt 0.
    """
    size = (0.0 if own else JITTER) if attempt == 0 else 0.5 * 2.0 ** (attempt - 1)
    return point + size * normal_numbers(point, _SEED + attempt)


def normal_numbers(like: Tensor, seed: int = _SEED) -> Tensor:
    """Standard normal numbers of the shape of a tensor, the same at every call with that seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _dtype(fn: object) -> torch.dtype:
    """Floating point type of what a distribution draws."""
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    types = [v.dtype for v in vars(base).values() if isinstance(v, Tensor) and v.is_floating_point()]
    return types[0] if types else torch.get_default_dtype()
