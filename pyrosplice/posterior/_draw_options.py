"""What can be asked of the posterior of isoform usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyrosplice.errors import InvalidArgumentError, check_integer, check_option
from pyrosplice.posterior._nuts import NutsOptions

METHODS = ("laplace", "importance", "nuts")
HYPER = ("plug-in", "integrate", "ccd")


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """What is asked of the posterior of isoform usage; :meth:`pyrosplice.MultinomGLM.posterior` documents it."""

    num_samples: int = 1000
    method: str = "laplace"
    hyper: str = "plug-in"
    genes: str | Sequence[int | str] | None = None
    names: Mapping[str, Sequence[Any]] | None = None
    groups: Sequence[str] | None = None
    usage: bool = False
    seed: int = 0
    nuts_options: NutsOptions | None = None
    max_memory: str | float | None = None

    def check(self) -> None:
        """Raise for what no model could follow."""
        method, options = self.method, self.nuts_options
        check_integer("num_samples", self.num_samples, least=4 if method == "nuts" else 1)
        check_option("method", method, METHODS)
        check_integer("seed", self.seed, least=0)
        if not (self.names is None or isinstance(self.names, Mapping)):
            raise InvalidArgumentError(f"names: expected a dictionary by dimension, found {type(self.names).__name__}.")
        if options is not None and (method != "nuts" or not isinstance(options, NutsOptions)):
            raise InvalidArgumentError(
                f"nuts_options: expected NutsOptions and method='nuts', found {options!r} and {method!r}."
            )
