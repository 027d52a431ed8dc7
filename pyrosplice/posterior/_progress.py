"""A bar of progress where draws take long: of genes, draws or sweeps; none of what is over in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm.auto import tqdm

AFTER = 2.0
"""Seconds after which a bar appears: what is done before has none."""
_hidden: ContextVar[bool] = ContextVar("hidden", default=True)
_after: ContextVar[float] = ContextVar("after", default=AFTER)
_open: ContextVar[tqdm | None] = ContextVar("open", default=None)


@contextmanager
def progress(*, quiet: bool, after: float = AFTER) -> Iterator[None]:
    """Let bars of the draws made within appear ``after`` some seconds, unless ``quiet``."""
    hidden, delay = _hidden.set(quiet), _after.set(after)
    try:
        yield
    finally:
        _hidden.reset(hidden)
        _after.reset(delay)


@contextmanager
def bar(total: int, description: str, unit: str) -> Iterator[tqdm]:
    """Show how much is done, after some seconds.

    Within a bar of the same description it is that one, so that batches count together; within another one (NUTS, which
    makes pilot draws on the way) there is none.
    """
    outer = _open.get()
    if outer is not None and outer.desc.removesuffix(": ") == description:
        yield outer
        return
    hidden = _hidden.get() or outer is not None
    with tqdm(total=total, desc=description, unit=unit, disable=hidden, delay=_after.get()) as made:
        if hidden:
            made.desc = description  # tqdm drops it
        token = _open.set(made)
        try:
            yield made
        finally:
            _open.reset(token)
