"""``fitting_configs``: the documented dictionary, copied, completed and checked key by key."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.optimize.bfgs import Minimiser, Options, minimise
from pyrosplice.optimize.first_order import Descent, DescentOptions
from pyrosplice.optimize.newton import NewtonOptions
from pyrosplice.optimize.step_rules import RULES

GRADIENT_NORM = 1e-3
NEWTON_TOLERANCE = 1e-10
"""Newton's steps are cheap near the optimum: they go on to this decrement whatever a looser ``tol`` asks for."""

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


def minimiser_of(method: str, configs: Mapping[str, Any]) -> Minimiser:
    """What searches for the optimum of a mixed model: BFGS, or first-order steps for the ``*_gd`` methods."""
    own = {key: value for key, value in configs.items() if key != "update_nu_every_k"}
    return Descent(DescentOptions(**own)) if method.endswith("gd") else minimise


def search_options(configs: Mapping[str, Any]) -> Options:
    """When that search ends."""
    return Options(min(GRADIENT_NORM, 0.3 * configs["tol"] ** 0.5), _epochs(configs))


def newton_options(configs: Mapping[str, Any], keep: bool) -> NewtonOptions:
    """When Newton's method ends, and whether it keeps its steps."""
    return NewtonOptions(min(NEWTON_TOLERANCE, configs["tol"]), _epochs(configs), keep)


def _epochs(configs: Mapping[str, Any]) -> int:
    return 10_000 if configs["max_epochs"] == -1 else int(configs["max_epochs"])


def kept_history(store_param_history: bool, diagnose: bool | None) -> bool:
    """Whether to keep the history, by either of the two names of the argument."""
    if diagnose is None:
        return store_param_history
    warnings.warn("diagnose is deprecated; use store_param_history.", DeprecationWarning, stacklevel=3)
    return diagnose
