"""``fitting_configs``: the documented dictionary, copied, completed and checked key by key."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.inference.descent_rules import RULES

DEFAULTS: dict[str, Any] = {
    "lr": 0.01,
    "optim": "adam",
    "tol": 1e-5,
    "tol_relative": False,
    "max_epochs": 1000,
    "patience": 5,
}


def complete_configs(given: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A new dictionary with ``given`` over ``defaults``.

    Raises
    ------
    InvalidArgumentError
        A key that is not in ``defaults``, or a value that does not fit its key.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InvalidArgumentError(f"fitting_configs: expected a dict or None, found {type(given).__name__}.")
    for key in given or {}:
        check_option("fitting_configs", key, defaults)
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in (given or {}).items()}
    configs = {**defaults, **plain}
    for key, value in configs.items():
        _check_value(key, value)
    return configs


def _check_value(key: str, value: Any) -> None:
    name = f"fitting_configs[{key!r}]"
    if key == "optim":
        check_option(name, value, RULES)
    elif key == "tol_relative":
        check_option(name, value, (True, False))
    elif key in ("lr", "tol"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
            raise InvalidArgumentError(f"{name}: expected a positive number, found {value!r}.")
    elif isinstance(value, bool) or not isinstance(value, int) or value < (-1 if key == "max_epochs" else 1):
        wanted = (
            "0 (the start values), a positive integer or -1 (10,000)" if key == "max_epochs" else "a positive integer"
        )
        raise InvalidArgumentError(f"{name}: expected {wanted}, found {value!r}.")


def kept_history(store_param_history: bool, diagnose: bool | None) -> bool:
    """Whether to keep the history, by either of the two names of the argument."""
    if diagnose is None:
        return store_param_history
    warnings.warn("diagnose is deprecated; use store_param_history.", DeprecationWarning, stacklevel=3)
    return diagnose
