"""The engine's posterior of the random effect, as one Gaussian a unit over its unconstrained values."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrosplice.glmm._effect_posterior import RandomEffectPosterior
from pyrosplice.glmm._objective import Linked
from pyrosplice.guides._engine_search import EngineDensity


class EffectNormal(TorchDistribution):
    """Independent Gaussians of units, batch shape ``(G,)``, event shape ``(N Q,)``; nothing ``(N Q, N Q)`` is formed.

    Parameters
    ----------
    loc
        Means ``(G, N Q)``.
    engine
        Engine of the model.
    outer
        Unconstrained coordinates ``(G, p)`` of the other sites.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, engine: EngineDensity, outer: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.engine = loc, engine
        # the model is not run again: a draw is made inside of plates of others
        self._parts = [(units, engine.linked(outer, units)) for units in engine.batches]
        self.event = tuple(engine.latents.noise.shape[1:])
        self._kept: list[RandomEffectPosterior] = []  # shared with copies
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> EffectNormal:
        """Copy with dimensions to the left of the units."""
        shape = torch.Size(batch_shape)
        if shape[-1:] != self.loc.shape[:1]:
            raise NotImplementedError(f"EffectNormal: the last batch dimension is its {len(self.loc)} units.")
        expanded = copy(self)
        expanded._batch_shape = shape
        return expanded

    def centered(self) -> EffectNormal:
        """Copy around zero."""
        moved = copy(self)
        moved.loc = torch.zeros_like(self.loc)
        return moved

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, ..., G, N Q)``."""
        lead = (*torch.Size(sample_shape), *self.batch_shape[:-1])
        drawn = []
        for units, linked in self._parts:
            posterior = self._of(units, linked)
            drawn.append((posterior.sample(lead) - posterior.loc).flatten(-2))
        return self.loc + torch.cat(drawn, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``(..., G)``."""
        away = (value - self.loc).unflatten(-1, self.event)
        found = []
        for units, linked in self._parts:
            posterior = self._of(units, linked)
            found.append(posterior.log_prob(away[..., units, :, :] + posterior.loc))
        return torch.cat(found, -1)

    @property
    def mean(self) -> Tensor:
        """Mean of the effect, ``(G, N Q)``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of the effect, ``(G, N Q)``."""
        return torch.cat([self._of(units, linked).variance.flatten(1) for units, linked in self._parts])

    def _of(self, units: Tensor, linked: Linked) -> RandomEffectPosterior:
        """Posterior of a batch; worked out again at every call where there are many, which together are large."""
        if self._kept:
            return self._kept[0]
        posterior = self.engine.posterior(linked, units)
        if len(self._parts) == 1:
            self._kept.append(posterior)
        return posterior
