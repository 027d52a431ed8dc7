"""Seeds for what draws from the global generator: NUTS and Pyro's distributions take no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set torch's global generator to ``seed``, and put it back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(int(seed))
        yield


def seed_of_chain(seed: Sequence[int], chain: int) -> int:
    """Seed of one chain, which does not depend on how many there are."""
    return int(np.random.SeedSequence([*seed, chain]).generate_state(1)[0])
