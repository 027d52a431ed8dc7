"""What a job says while it works: one bar of its steps on standard error, and warnings where they happen."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm.auto import tqdm


class Steps:
    """A bar of the steps of a job; the library's own bars, of genes or patients, stand below it."""

    def __init__(self, total: int, *, show: bool) -> None:
        self.show = show
        self._bar = tqdm(total=total, unit="step", file=sys.stderr, disable=not show)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Name what is being done, and count it once it is."""
        self._bar.set_description(what)
        yield
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


@contextmanager
def warnings_told(program: str, told: list[str]) -> Iterator[None]:
    """Show each warning once, in one line on standard error, and keep its text in ``told``."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in told:
            told.append(text)
            say(sys.stderr, f"{program}: warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of other packages, and for programmers
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = show
        yield


def say(stream: TextIO, text: str) -> None:
    """Write a line, with "?" for letters that a console (of Windows: cp1252) does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()
