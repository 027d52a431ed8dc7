"""Seeds for what draws from the global generator: NUTS and Pyro's distributions take no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set torch's global generator to ``seed``, and put it back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(int(seed))
        yield
