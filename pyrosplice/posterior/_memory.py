"""What a posterior will need of memory, said before it is made, and refused beyond a limit."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import psutil

from pyrosplice.errors import InvalidArgumentError

logger = logging.getLogger("pyrosplice")

SHARE = 0.5
"""Share of the machine's memory that ``max_memory=None`` allows."""
WORKING = 2.0
"""Peak over what is kept: a second copy of the largest arrays while they are made and labelled."""
NUMBER = 8  # bytes
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def require_memory(per_draw: Mapping[str, float], n_draws: int, max_memory: str | float | None) -> None:
    """Log what a posterior will need; raise where that is more than it may take.

    Parameters
    ----------
    per_draw
        Numbers of one draw, by what they are (a group, "latent field").
    n_draws
        Draws of all chains.
    max_memory
        Bytes, or text such as ``"4 GB"``; None for half of the machine's memory.

    Raises
    ------
    InvalidArgumentError
        More is needed, or ``max_memory`` is no amount of memory.
    """
    limit = as_bytes(max_memory)
    needed = WORKING * NUMBER * n_draws * sum(per_draw.values())
    logger.info("posterior: about %.2g GB for %d draws", needed / 1e9, n_draws)
    if needed > limit:
        largest = sorted(per_draw, key=lambda name: -per_draw[name])[:3]
        parts = ", ".join(f"{name} {WORKING * NUMBER * n_draws * per_draw[name] / 1e9:.2g} GB" for name in largest)
        raise InvalidArgumentError(
            f"max_memory: {n_draws} draws need about {needed / 1e9:.3g} GB ({parts}), more than the "
            f"{limit / 1e9:.3g} GB allowed. Leave out groups (groups=() keeps the posterior alone), thin the draws (a "
            "smaller num_samples, from which means and intervals hardly suffer), take fewer genes at a time, or raise "
            "max_memory."
        )


def as_bytes(memory: str | float | None) -> float:
    """Read an amount of memory, in bytes: a number, or text such as ``"4 GB"``; None for half of the machine's."""
    if memory is None:
        return SHARE * psutil.virtual_memory().total
    text = str(memory).strip().lower()
    if text == "inf":
        return float("inf")
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)i?b?", text)
    if match is None or isinstance(memory, bool) or not float(match[1]) > 0:
        raise InvalidArgumentError(f"max_memory: expected bytes, or text such as '4 GB', found {memory!r}.")
    return float(match[1]) * _UNITS[match[2]]
