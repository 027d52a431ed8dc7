"""Chains of independent draws, so that R̂ and effective draws are those of ArviZ, and what was asked of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import xarray as xr

from pyrosplice.errors import InvalidArgumentError, check_integer, check_option, check_switches
from pyrosplice.posterior._memory import OVER_MEMORY, draws_within
from pyrosplice.posterior._nuts import NutsOptions

logger = logging.getLogger("pyrosplice")

CHAINS = 4
FEWEST = 4
"""Draws of a chain below which ArviZ has no R̂."""
INDEPENDENT = ("laplace", "importance")
"""Methods whose draws are made as one chain."""
ASKED = "num_samples_asked"
"""Attribute of a tree with fewer draws than were asked for, by ``over_memory="thin"``."""


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How many draws are asked for, in how many chains, and what they may take; doors document it.

    Attributes
    ----------
    num_samples
        Independent draws in all, or of each chain of NUTS.
    method, seed, nuts_options
        How they are made.
    num_chains
        None until :meth:`settled`, unless given.
    max_memory, over_memory
        Limit of what they take, and whether more is refused or thinned.
    quiet
        Whether to hide progress.
    """

    num_samples: int = 1000
    method: str = "laplace"
    seed: int = 0
    nuts_options: NutsOptions | None = None
    num_chains: int | None = None
    max_memory: str | float | None = None
    over_memory: str = "refuse"
    quiet: bool = False

    def check_chains(self) -> None:
        """Raise for numbers of draws and chains that no method could make."""
        check_integer("num_samples", self.num_samples, least=FEWEST if self.method == "nuts" else 1)
        check_integer("seed", self.seed, least=0)
        check_option("over_memory", self.over_memory, OVER_MEMORY)
        check_switches(quiet=self.quiet)
        if not (self.nuts_options is None or isinstance(self.nuts_options, NutsOptions)):
            raise InvalidArgumentError(f"nuts_options: expected NutsOptions, found {self.nuts_options!r}.")
        if self.nuts_options is not None and self.method != "nuts":
            raise InvalidArgumentError(
                f"nuts_options: expected method='nuts' with them, found {self.method!r}, which does not use them."
            )
        if self.num_chains is None:
            return
        check_integer("num_chains", self.num_chains)
        own = self.nuts_options.num_chains if self.nuts_options else self.num_chains
        if self.method == "nuts" and own not in (self.num_chains, NutsOptions().num_chains):
            raise InvalidArgumentError(
                f"num_chains: found {self.num_chains}, and {own} in nuts_options; give one of them."
            )
        if self.method != "nuts" and self.num_samples % self.num_chains:
            low = self.num_samples // self.num_chains * self.num_chains
            ask = " or ".join(str(one) for one in (low, low + self.num_chains) if one)
            raise InvalidArgumentError(
                f"num_chains: {self.num_samples} independent draws are not {self.num_chains} equal chains; ask for "
                f"num_samples={ask}, or leave num_chains out."
            )

    def settled(self) -> Self:
        """Take a number of chains."""
        if self.method == "nuts":
            options = self.nuts_options or NutsOptions()
            number = options.num_chains if self.num_chains is None else self.num_chains
            return replace(self, num_chains=number, nuts_options=replace(options, num_chains=number))
        return self if self.num_chains is not None else replace(self, num_chains=chains_of(self.num_samples))

    @property
    def step(self) -> str:
        """What a bar counts."""
        return "iteration" if self.method == "nuts" else "gene"

    @property
    def steps_of_gene(self) -> int:
        """How much of that a gene is, settled."""
        return (self.nuts_options or NutsOptions()).iterations(self.num_samples) if self.method == "nuts" else 1

    def within_memory(self, per_draw: Mapping[str, float]) -> Self:
        """The same, settled, with as many draws as memory allows (``over_memory="thin"``), else refused.

        Independent draws are made in a smaller number; NUTS makes as many iterations and keeps one of every few.
        """
        asked = self.settled()
        n_chains = asked.num_chains or 1
        limits: dict[str, Any] = {"max_memory": asked.max_memory, "over_memory": asked.over_memory}
        if asked.method != "nuts":
            kept = draws_within(per_draw, asked.num_samples // n_chains, n_chains, **limits)
            return replace(asked, num_samples=kept.n_draws * n_chains)
        kept = draws_within(per_draw, asked.num_samples, n_chains, least_by_step=FEWEST, **limits)
        options = asked.nuts_options or NutsOptions()
        return replace(asked, num_samples=kept.n_draws, nuts_options=replace(options, thin=options.thin * kept.step))


def chains_of(n_draws: int) -> int:
    """Into how many equal chains independent draws are divided: four, or as many up to four as divide them.

    A chain has four draws at least; where that cannot be, there is one chain.
    """
    fitting = (n for n in range(CHAINS, 1, -1) if n_draws % n == 0 and n_draws // n >= FEWEST)
    number = next(fitting, 1)
    if number != CHAINS and n_draws >= CHAINS * FEWEST:
        low = n_draws // CHAINS * CHAINS
        logger.info(
            "num_samples=%d is no multiple of %d: %d chain%s, all draws kept; %d or %d are %d chains",
            n_draws,
            CHAINS,
            number,
            "s" * (number > 1),
            low,
            low + CHAINS,
            CHAINS,
        )
    return number


def in_chains(tree: xr.DataTree, asked: ChainOptions, made: ChainOptions) -> xr.DataTree:
    """Divide the one chain of independent draws into those of ``made``, in order; say where fewer than asked were made.

    Every variable with draws is divided, weights and k̂ with theirs. What NUTS made has its chains already.
    """
    number = made.num_chains or 1
    whole = xr.DataTree.from_dict({name: _divided(child.to_dataset(), number) for name, child in tree.children.items()})
    whole.attrs |= tree.attrs
    if made.num_samples != asked.num_samples:
        whole.attrs[ASKED] = int(asked.num_samples)
    return whole


def _divided(group: xr.Dataset, number: int) -> xr.Dataset:
    if "chain" not in group.dims or group.sizes["chain"] == number:
        return group
    n_draws = group.sizes["draw"] // number
    variables = {}
    for name, array in group.data_vars.items():
        own = array.variable
        if "draw" in own.dims:
            own = own.transpose("chain", "draw", ...)
            values = own.values.reshape(number, n_draws, *own.shape[2:])
            own = xr.Variable(own.dims, values, array.attrs)
        variables[name] = own
    coords = {name: own.variable for name, own in group.coords.items() if not {"chain", "draw"} & {*own.dims}}
    coords |= {"chain": np.arange(number), "draw": np.arange(n_draws)}
    return xr.Dataset(variables, coords, group.attrs)
