"""What can be asked of the posterior of isoform usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.posterior._chains import ChainOptions

METHODS = ("laplace", "importance", "nuts")
HYPER = ("plug-in", "integrate", "ccd")


@dataclass(frozen=True, kw_only=True)
class DrawOptions(ChainOptions):
    """What is asked of the posterior of isoform usage; :meth:`pyrosplice.MultinomGLM.posterior` documents it."""

    hyper: str = "plug-in"
    genes: str | Sequence[int | str] | None = None
    names: Mapping[str, Sequence[Any]] | None = None
    groups: Sequence[str] | None = None
    usage: bool = False

    def check(self) -> None:
        """Raise for what no model could follow."""
        check_option("method", self.method, METHODS)
        self.check_chains()
        if not (self.names is None or isinstance(self.names, Mapping)):
            raise InvalidArgumentError(f"names: expected a dictionary by dimension, found {type(self.names).__name__}.")
