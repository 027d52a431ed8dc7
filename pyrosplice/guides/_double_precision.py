"""Runs a model that was written in float32 in float64, without a change to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Result = TypeVar("Result")


class DoublePrecision(TorchFunctionMode):
    """Inside this context every function of torch is given float64 for float32.

    Data, designs and priors that a model holds in float32 are taken at their exact values; what follows from them is
    computed in float64. Tensors that are written to in place stay what they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Result],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Result:
        """Call ``func`` with float64 for float32."""
        options = dict(kwargs or {})
        if _writes(func) or "out" in options:
            return func(args[0], *map(_doubled, args[1:]), **options) if args else func(**options)
        return func(*map(_doubled, args), **{name: _doubled(value) for name, value in options.items()})


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument, or an attribute of it."""
    name = getattr(func, "__name__", "")
    dunder = name.startswith("__")
    return name in ("__setitem__", "__set__", "__delete__") or (
        name.startswith("__i") and name not in ("__index__", "__int__", "__invert__") if dunder else name.endswith("_")
    )


def _doubled(value: object) -> object:
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(_doubled, value))
    return value
