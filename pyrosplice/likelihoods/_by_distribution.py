"""What follows from a Pyro distribution that states a likelihood: the density of a spot, and draws with a generator."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError

Stated = Callable[[Tensor], dist.TorchDistribution]


def each_spot(stated: Stated, eta: Tensor) -> dist.TorchDistribution:
    """The distribution at ``eta`` ``(..., N, Q)`` with the counts of a spot as its event.

    Parameters are not validated: those of a gene without a fit are NaN, and are no other gene's error.
    """
    with dist.validation_enabled(False):
        found = stated(eta)
        if not isinstance(found, TorchDistributionMixin):  # Pyro's own, by either of its classes
            raise InvalidArgumentError(
                f"likelihood: expected distribution(eta) to be a Pyro distribution, found {type(found).__name__}."
            )
        return found if found.event_shape else found.to_event(1)


def log_prob_of(stated: Stated, counts: Tensor, eta: Tensor) -> Tensor:
    """Log density of each spot's counts ``(..., N)``; of any total, whatever total the distribution has."""
    with dist.validation_enabled(False):
        return each_spot(stated, eta).log_prob(counts)


def drawn_from(distribution: dist.TorchDistribution, generator: torch.Generator | None) -> Tensor:
    """Draw counts; distributions take no generator, so it seeds the global one, which is put back afterwards."""
    if generator is None:
        return distribution.sample()
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return distribution.sample()
