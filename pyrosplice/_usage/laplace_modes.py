"""The random effect of every spot at its mode, and its Laplace posterior there."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pyrosplice.glmm._batches import MixedEngine, detached
from pyrosplice.glmm._effect_posterior import RandomEffectPosterior, bounded_away_from_zero
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import Mode


class AtModes(Protocol):
    """A :class:`~pyrosplice.MultinomGLMM`, as this module sees it."""

    n_genes: int
    device: torch.device

    def _require_data(self) -> None: ...

    def _shipped_only(self, what: str, instead: str = "") -> None: ...

    def _present(self) -> tuple[MixedEngine, Parameters]: ...


def posterior_mode(self: AtModes, genes: Tensor | None = None) -> Mode:
    """Mode of ν at the present (β, b, σ, θ) with its factorised Newton system, which tests are built from.

    Of the genes with these indices (None: all; memory grows with them), in coordinates ``step.model.basis``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> from pyrosplice.data import simulate_counts
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))))
    >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> counts = simulate_counts(covariance, n_genes=3, depth=5, sigma=0.7, theta=0.5, seed=0)
    >>> model.setup_data(counts, corr_sp=covariance)
    >>> model.fit(quiet=True)
    >>> model.posterior_mode().eta.shape
    torch.Size([3, 100, 2])
    """
    self._require_data()
    self._shipped_only("posterior_mode")
    engine, parameters = self._present()
    return engine.mode(parameters, torch.arange(self.n_genes, device=self.device) if genes is None else genes)


def random_effect_posterior(self: AtModes) -> RandomEffectPosterior:
    """Laplace posterior of ν at the present parameters: a Pyro distribution, ``(G,)`` of ``(N, Q)``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> from pyrosplice.data import simulate_counts
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))))
    >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> counts = simulate_counts(covariance, n_genes=3, depth=5, sigma=0.7, theta=0.5, seed=0)
    >>> model.setup_data(counts, corr_sp=covariance)
    >>> model.fit(quiet=True)
    >>> nu = model.random_effect_posterior()
    >>> nu.batch_shape, nu.event_shape, nu.sample((5,)).shape
    (torch.Size([3]), torch.Size([100, 2]), torch.Size([5, 3, 100, 2]))
    """
    self._require_data()
    self._shipped_only("random_effect_posterior", "guide.get_posterior()")
    engine, parameters = self._present()
    proper = bounded_away_from_zero(detached(parameters))
    return RandomEffectPosterior(engine.mode(proper, torch.arange(self.n_genes, device=self.device)))
