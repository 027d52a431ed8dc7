"""Which options a call takes: one table of those without effect, and the check that nothing else passes unseen."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from pyrosplice.errors import InvalidArgumentError, is_whole

WITHOUT_EFFECT = {
    "backend": "there is one engine",
    "close_session": "there are no sessions",
    "init_model": "a fit starts from init_a and init_b",
}
"""Options of the documented interface that are accepted and change nothing, with the reason."""

TRAINING_WITHOUT_EFFECT = {
    **dict.fromkeys(("learning_rate", "lr_b", "optim_algo", "method_b", "update_b_freq"), "Newton has no step rates"),
    **dict.fromkeys(
        ("convergence_criteria", "stopping_criteria", "loss_window_size", "ftol_b", "max_iter_b"),
        "a fit ends by tol or max_iter",
    ),
    **dict.fromkeys(("use_batching", "batch_size", "batched_model", "featurewise"), "every gene is fitted on its own"),
    **dict.fromkeys(("nproc", "autograd", "benchmark", "feature_batch_size"), "there is one engine"),
}
"""Options of a step of a training strategy that have no effect here, and why."""


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The named options of a function with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in kinds}


def known_options(
    call: str, given: Mapping[str, Any], allowed: Collection[str], without_effect: Mapping[str, str] = WITHOUT_EFFECT
) -> dict[str, Any]:
    """The options that ``call`` uses; those without effect are warned about where they ask for something.

    Raises
    ------
    InvalidArgumentError
        An option that the call does not have.
    """
    used = {name: value for name, value in given.items() if name in allowed}
    for name in given:
        if name not in allowed and name not in without_effect:
            raise InvalidArgumentError(f"{call}: no option {name!r}{_meant(name, allowed)}")
    idle = {n: without_effect[n] for n, value in given.items() if n not in allowed and not is_default(value, None)}
    if idle:
        said = "; ".join(f"{name!r} has no effect ({why})" for name, why in sorted(idle.items()))
        warnings.warn(f"{call}: {said}.", UserWarning, stacklevel=3)
    return used


def block_sizes(batch_size: Any) -> tuple[int | None, int | None]:
    """Cells and genes read at a time, None for a size of our choice, from one number of cells or a pair.

    Raises
    ------
    InvalidArgumentError
        Anything but one or two whole numbers above zero.
    """
    pair = tuple(batch_size) if isinstance(batch_size, (tuple, list)) else (batch_size, None)
    if len(pair) != 2 or not all(size is None or is_whole(size, 1) for size in pair):
        raise InvalidArgumentError(
            f"batch_size: expected cells, or (cells, genes), whole numbers of at least 1, found {batch_size!r}."
        )
    cells, genes = (None if size is None else int(size) for size in pair)
    return cells, genes


def _meant(name: str, allowed: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(sorted(allowed))}."


def is_default(value: Any, default: Any) -> bool:
    """Whether an option asks for nothing: None, empty, or what it is by default anyway."""
    if value is None or (isinstance(value, (list, tuple, Mapping, str)) and not len(value)):
        return True
    if isinstance(value, str) and isinstance(default, str):
        same = {"AUTO", "DEFAULT"}
        return value == default or {value.upper(), default.upper()} <= same
    return isinstance(value, (bool, int, float, np.bool_)) and np.isscalar(default) and bool(value == default)


def refuse_unused(call: str, test: str, given: Mapping[str, Any], defaults: Mapping[str, Any], instead: str) -> None:
    """Raise where options that a test does not use ask for something."""
    for name, value in given.items():
        if not is_default(value, defaults.get(name)):
            raise InvalidArgumentError(f"{name}: {call} with test={test!r} does not use it, found {value!r}; {instead}")
