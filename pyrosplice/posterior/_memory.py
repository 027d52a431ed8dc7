"""What a posterior will need of memory, said before it is made; beyond a limit refused, or thinned where asked for."""

from __future__ import annotations

import inspect
import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from pyrosplice.errors import InvalidArgumentError

logger = logging.getLogger("pyrosplice")

SHARE = 0.5
"""Share of the memory that is free that ``max_memory=None`` allows."""
OVER_MEMORY = ("refuse", "thin")
WORKING = 2.0
"""Peak over what is kept: a second copy of the largest arrays while they are made and labelled."""
NUMBER = 8  # bytes
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Kept:
    """How many draws of a chain are kept, and of how many iterations each is one."""

    n_draws: int
    step: int = 1


def draws_within(
    per_draw: Mapping[str, float],
    n_draws: int,
    n_chains: int = 1,
    *,
    max_memory: str | float | None,
    over_memory: str = "refuse",
    least_by_step: int = 0,
) -> Kept:
    """Log what a posterior will need; where that is more than it may take, raise, or thin and warn.

    Parameters
    ----------
    per_draw
        Numbers of one draw, by what they are (a group, "latent field").
    n_draws, n_chains
        Draws of a chain, and chains.
    max_memory
        Bytes, or text such as ``"4 GB"``; None for half of the memory that is free.
    over_memory
        ``"refuse"`` or ``"thin"``.
    least_by_step
        Of a sampler, each draw of which that is kept stands for equally many iterations: the fewest draws of a chain.

    Raises
    ------
    InvalidArgumentError
        More is needed and is to be refused, or one draw a chain is too much; ``max_memory`` is no amount of memory.
    """
    limit, whole = as_bytes(max_memory), n_draws * n_chains
    each = WORKING * NUMBER * n_chains * sum(per_draw.values())
    needed = each * n_draws
    logger.info("posterior: about %.2g GB for %d draws", needed / 1e9, whole)
    if needed <= limit:
        return Kept(n_draws)
    fitting, by_step = int(limit // each), least_by_step > 0
    fitting = fitting if fitting >= max(least_by_step, 1) else 0
    if over_memory == "refuse" or not fitting:
        raise InvalidArgumentError(_too_much(per_draw, whole, limit, fitting * n_chains))
    step = -(-n_draws // fitting) if by_step else 1
    kept = Kept(n_draws // step if by_step else fitting, step)
    warnings.warn(
        f"over_memory='thin': {whole} draws need about {needed / 1e9:.3g} GB, more than the {limit / 1e9:.3g} GB "
        f"allowed; {kept.n_draws * n_chains} are {f'kept, one of every {step}' if by_step else 'made'} "
        f"({n_chains} chain{'s' * (n_chains > 1)} of {kept.n_draws}).",
        stacklevel=_level_of_caller(),
    )
    return kept


def _level_of_caller() -> int:
    """How many calls above the one that asks the first line stands that is not the library's: doors differ in depth."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


def _too_much(per_draw: Mapping[str, float], n_draws: int, limit: float, fitting: int) -> str:
    size = {name: WORKING * NUMBER * n_draws * numbers / 1e9 for name, numbers in per_draw.items()}
    parts = ", ".join(f"{name} {size[name]:.2g} GB" for name in sorted(size, key=lambda name: -size[name])[:3])
    return (
        f"max_memory: {n_draws} draws need about {sum(size.values()):.3g} GB ({parts}), more than the "
        f"{limit / 1e9:.3g} GB allowed, into which {fitting or 'too few to keep'} would go. Leave out groups "
        "(groups=() keeps the posterior alone), thin the draws (a smaller num_samples, or over_memory='thin', from "
        "which means and intervals hardly suffer), take fewer genes at a time, or raise max_memory."
    )


def as_bytes(memory: str | float | None) -> float:
    """Read an amount of memory, in bytes: a number, or text such as ``"4 GB"``; None for half of what is free."""
    if memory is None:
        return SHARE * float(psutil.virtual_memory().available)
    text = str(memory).strip().lower()
    if text == "inf":
        return float("inf")
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*([kmgt]?)i?b?", text)
    if match is None or isinstance(memory, bool) or not float(match[1] + (match[2] or "")) > 0:
        raise InvalidArgumentError(f"max_memory: expected bytes, or text such as '4 GB', found {memory!r}.")
    return float(match[1] + (match[2] or "")) * _UNITS[match[3]]
