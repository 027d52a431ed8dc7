"""Hyper-parameters that a likelihood names: which are to be estimated, and whether their start values can be."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pyrosplice.errors import InvalidArgumentError


def free_hyperparameters(likelihood: object, starts: Mapping[str, float]) -> tuple[str, ...]:
    """Name those that are None, to be estimated, after a look at all of them.

    Raises
    ------
    InvalidArgumentError
        One is no attribute, or starts at what is not a positive number.
    """
    kind, known = type(likelihood).__name__, {name: getattr(likelihood, name, likelihood) for name in starts}
    for name, start in starts.items():
        if known[name] is likelihood:
            raise InvalidArgumentError(
                f"likelihood: {kind} names the hyper-parameter {name!r} and has no attribute of that name; set it, to "
                "None where it is to be estimated, else to its value."
            )
        if not (isinstance(start, int | float) and math.isfinite(start) and start > 0):
            raise InvalidArgumentError(
                f"likelihood: hyperparameters of {kind}: expected a positive number to start {name!r} from, "
                f"found {start!r}."
            )
    return tuple(name for name, value in known.items() if value is None)
