"""Options of the models of one batch: ``fitting_configs``, copied, completed and checked key by key; the likelihood."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import Minimizer, Objective, Options, minimize
from pyrosplice._optimize.first_order import Descent, DescentOptions
from pyrosplice._optimize.newton import NewtonOptions
from pyrosplice._optimize.step_rules import RULES
from pyrosplice._overrides import refuse_set_methods
from pyrosplice.errors import InvalidArgumentError, call_hint, check_option, is_number
from pyrosplice.guides import FitOptions
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.priors._prior_tables import SHIPPED

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


def _check_value(key: str, value: object) -> None:
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


def minimizer_of(method: str, configs: Mapping[str, Any]) -> Minimizer[Objective]:
    """What searches for the optimum of a mixed model: BFGS, or first-order steps for the ``*_gd`` methods."""
    own = {key: value for key, value in configs.items() if key != "update_nu_every_k"}
    return Descent(DescentOptions(**own)) if method.endswith("gd") else minimize


def search_options(configs: Mapping[str, Any]) -> Options:
    """When that search ends."""
    return Options(min(GRADIENT_NORM, 0.3 * configs["tol"] ** 0.5), _epochs(configs))


def newton_options(configs: Mapping[str, Any], keep: bool) -> NewtonOptions:
    """When Newton's method ends, and whether it keeps its steps."""
    return NewtonOptions(min(NEWTON_TOLERANCE, configs["tol"]), _epochs(configs), keep)


def guide_options(configs: Mapping[str, Any], defaults: Mapping[str, Any]) -> FitOptions:
    """Options for the guides of a person's own model, which are as exact as ``tol`` asks for, or more.

    Raises
    ------
    InvalidArgumentError
        An option that they do not have.
    """
    for key in ("lr", "optim", "tol_relative", "patience"):
        if configs[key] != defaults[key]:
            raise InvalidArgumentError(
                f"fitting_configs[{key!r}]: a model of your own is fitted by Newton's method, which has no such "
                f"option, found {configs[key]!r}; leave it out. tol and max_epochs are followed."
            )
    if configs["max_epochs"] == 0:
        raise InvalidArgumentError(
            "fitting_configs['max_epochs']: 0 leaves the start values, and the sites of a model of your own have none; "
            "expected at least 1, or -1."
        )
    return FitOptions(tolerance=min(FitOptions().tolerance, 0.3 * configs["tol"] ** 0.5), max_iter=_epochs(configs))


def _epochs(configs: Mapping[str, Any]) -> int:
    return 10_000 if configs["max_epochs"] == -1 else int(configs["max_epochs"])


def check_likelihood(likelihood: object) -> None:
    """Raise unless it is a likelihood, or None for the default; lists the shipped ones."""
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        known = ", ".join(f"{name}()" for name in SHIPPED)
        raise InvalidArgumentError(
            f"likelihood: expected an object of pyrosplice.likelihoods, one of {known}, or of your own subclass of "
            f"Likelihood; found {likelihood!r}{call_hint(likelihood, Likelihood)}."
        )
    refuse_set_methods(likelihood, "likelihood")
    if likelihood is None:
        return
    free = likelihood.free  # refuses names without an attribute
    for name in (name for name in likelihood.hyperparameters if name not in free):
        _check_held(name, getattr(likelihood, name))


def _check_held(name: str, value: object) -> None:
    """Raise unless a likelihood's hyper-parameter is held at a positive number, or one a gene, ``(G, 1)``."""
    single = is_number(value) or (isinstance(value, Tensor) and (value.ndim == 0 or value.shape[1:] == (1,)))
    held = torch.as_tensor(value) if single else None
    if held is None or not bool((torch.isfinite(held) & (held > 0)).all()):
        raise InvalidArgumentError(
            f"likelihood: expected {name} to be a positive finite number, or a tensor (G, 1) of them, or None to "
            f"estimate it, found {value!r}."
        )


def kept_history(store_param_history: bool, diagnose: bool | None) -> bool:
    """Whether to keep the history, by either of the two names of the argument."""
    if diagnose is None:
        return store_param_history
    warnings.warn("diagnose is deprecated; use store_param_history.", DeprecationWarning, stacklevel=3)
    return diagnose
