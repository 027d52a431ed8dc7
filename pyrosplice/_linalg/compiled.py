"""Numba's compiler for our kernels: compiled code is kept on disk where there is a place for it, else in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

Kernel = Callable[..., Any]


def compiled(**options: Any) -> Callable[[Kernel], Kernel]:
    """Compile by ``numba.njit`` with these options, cached next to the module or in the user's cache directory.

    In a read-only installation without a home there is neither (set ``NUMBA_CACHE_DIR`` to have one): functions are
    then compiled anew in every process.
    """

    def decorate(function: Kernel) -> Kernel:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return numba.njit(**options)(function)

    return decorate
