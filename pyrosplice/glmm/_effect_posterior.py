r"""Laplace's posterior of the random effect: a Gaussian, block-diagonal over genes.

.. math:: \nu \mid y \;\approx\; N(\hat\nu, (\Sigma^{-1} + W)^{-1})

Drawn in two steps, the field given the counts and ν given the field, so that nothing dense is formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrosplice._linalg.blocks import matvec, nan_where_indefinite
from pyrosplice.glmm._effect_density import effect_density
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import Mode


class RandomEffectPosterior(TorchDistribution):
    """Gaussian posterior of ν at fixed coefficients and variances: batch shape ``(G,)``, event shape ``(N, Q)``.

    Parameters
    ----------
    mode
        Joint mode of the random effects.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.independent(constraints.real, 2)

    def __init__(self, mode: Mode, validate_args: bool | None = None) -> None:
        self._mode = mode
        self._model, self._parameters = mode.step.model, mode.step.parameters
        self.loc = self._model.effect(self._parameters, mode.latents)
        super().__init__(self.loc.shape[:1], self.loc.shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> RandomEffectPosterior:
        """Return itself: a batch of genes cannot be expanded further."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"batch shape is {tuple(self.batch_shape)} and stays so.")
        return self

    @property
    def mean(self) -> Tensor:
        """Random effects ν at the mode, ``(G, N, Q)``."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """Random effects ν at the mode, ``(G, N, Q)``."""
        return self.loc

    @property
    def spot_covariance(self) -> Tensor:
        """Posterior covariance of the logits of each spot, ``(G, N, Q, Q)``."""
        found, basis = Laplace(self._mode).covariance, self._model.basis
        return found if basis is None else basis.logit_covariance(found)

    @property
    def variance(self) -> Tensor:
        """Posterior variance of ν, ``(G, N, Q)``."""
        return torch.diagonal(self.spot_covariance, dim1=-2, dim2=-1)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ν, ``(*sample_shape, G, N, Q)``; ``generator`` makes them repeatable."""
        shape = torch.Size(sample_shape)
        n_draws, (n_genes, n_spots, q) = shape.numel(), self.loc.shape
        step, solver = self._mode.step, self._model.solver

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=self.loc.dtype, device=self.loc.device)

        root = nan_where_indefinite(step.white_covariance)
        draws = matvec(root, normal(n_draws, n_genes, n_spots, q)) * self._parameters.white
        if solver is not None and step.factor is not None:
            latent = step.factor.color(normal(n_genes, solver.n_latent, q, n_draws)).permute(3, 0, 1, 2)
            field = solver.spread(latent.reshape(n_draws * n_genes, -1, q)).reshape(n_draws, n_genes, n_spots, q)
            draws = draws + matvec(step.transfer, field * self._parameters.spatial[:, None])
        if self._model.basis is not None:
            draws = self._model.basis.logits(draws)
        return (self.loc + draws).reshape(*shape, n_genes, n_spots, q)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``(..., G)`` of ν ``(..., G, N, Q)``."""
        if self._validate_args:
            self._validate_sample(value)
        draws = value.reshape(-1, *self.loc.shape)
        return torch.stack([self._log_density(draw) for draw in draws]).reshape(value.shape[:-2])

    def _log_density(self, nu: Tensor) -> Tensor:
        step, n_genes = self._mode.step, len(nu)
        away, basis = nu - self.loc, self._model.basis
        away = away if basis is None else basis.coordinates(away)
        likelihood = (away * matvec(step.information, away)).sum((1, 2))
        prior = effect_density(self._model, self._parameters, away).value
        ratio = step.white_logdet  # log |Σ⁻¹ + W| + log |Σ|
        if self._model.solver is not None and step.factor is not None:
            ratio = ratio + step.factor.logdet() - self._model.n_predictors * self._model.solver.prior_logdet
        return prior - self._model.log_volume + 0.5 * (ratio - likelihood).reshape(n_genes)


def bounded_away_from_zero(parameters: Parameters) -> Parameters:
    """Keep c at 1e-8 of the total or more: a posterior needs a proper prior, however narrow."""
    total = (parameters.spatial.square()[:, None] + parameters.white.square()).sqrt().clamp_min(1e-6)
    return Parameters(parameters.coefficients, parameters.spatial, torch.maximum(parameters.white, 1e-8 * total))
