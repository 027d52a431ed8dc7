"""Fits inside ``torch.inference_mode()``: what works by derivatives leaves that mode, and gives ordinary tensors."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import wraps
from inspect import isfunction
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from pyrosplice.errors import check_of_options

P = ParamSpec("P")
R = TypeVar("R")
Object = TypeVar("Object")
Kind = TypeVar("Kind", bound=type)


def ordinary(value: Tensor) -> Tensor:
    """The tensor itself, or a copy of one that was made in inference mode, which autograd would not take."""
    return value.clone() if value.is_inference() else value


def ordinary_attributes(value: Object) -> Object:
    """The object itself, or a copy of one that has tensors which were made in inference mode."""
    made = {name: ordinary(item) for name, item in vars(value).items() if isinstance(item, Tensor)}
    if all(item is getattr(value, name) for name, item in made.items()):
        return value
    other = copy(value)
    vars(other).update(made)
    return other


def outside_inference_mode(function: Callable[P, R], *, own_options: bool = False) -> Callable[P, R]:
    """The function, run outside the caller's inference mode if there is one; without gradients, as the caller is.

    With ``own_options`` it refuses those that it does not have; one wrapper does both, and warnings name the caller.
    """
    check = check_of_options(function) if own_options else None

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if check is not None:
            check(args, kwargs)
        if torch.get_default_device().type != "cpu":  # devices are told apart by the argument of that name
            with torch.device("cpu"):
                return run(*args, **kwargs)
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


def works_in_any_mode(kind: Kind) -> Kind:
    """Decorator of a class: all public methods that it defines are run :func:`outside_inference_mode`.

    They refuse options that they do not have, and list their own (:func:`~pyrosplice.errors.check_of_options`).
    """
    for name, method in list(vars(kind).items()):
        if isfunction(method) and (name == "__init__" or not name.startswith("_")):
            setattr(kind, name, outside_inference_mode(method, own_options=True))
        elif isinstance(method, property) and method.fget is not None:
            setattr(kind, name, property(outside_inference_mode(method.fget), method.fset, method.fdel, method.__doc__))
    return kind
