"""A spatial covariance whose field is multiplied by a number of each spot: a spatially varying coefficient."""

from __future__ import annotations

from torch import Tensor

from pyrosplice._linalg.blocks import sandwich
from pyrosplice._linalg.solver import Factor, SpatialSolver


class ScaledSolver(SpatialSolver):
    """The covariance ``diag(x) V diag(x)`` of ``x ⊙ s``, by the solver for that of s.

    Parameters
    ----------
    solver
        The solver for V.
    scale
        x, ``(N,)``.
    """

    def __init__(self, solver: SpatialSolver, scale: Tensor):
        self.solver, self.scale = solver, scale[:, None]
        self.n_spots, self.n_latent, self.prior_logdet = solver.n_spots, solver.n_latent, solver.prior_logdet
        self.remainder = None if solver.remainder is None else solver.remainder * scale.square()

    def spread(self, latent: Tensor) -> Tensor:
        """Take latents to the scaled field, ``x ⊙ F z``."""
        return self.solver.spread(latent) * self.scale

    def gather(self, field: Tensor) -> Tensor:
        """Take numbers of the scaled field to the latents, ``F' (x ⊙ f)``."""
        return self.solver.gather(field * self.scale)

    def prior(self, latent: Tensor) -> Tensor:
        """Multiply latents by their prior precision, which has no scale."""
        return self.solver.prior(latent)

    def factorize(self, blocks: Tensor) -> Factor:
        """Factor ``P ⊗ I + F' x blockdiag(blocks) x F``."""
        return ScaledFactor(self.solver.factorize(sandwich(self.scale, blocks, self.scale)), self.scale)

    def color(self, noise: Tensor) -> Tensor:
        """Make a scaled field from standard normal numbers."""
        return self.solver.color(noise) * self.scale


class ScaledFactor(Factor):
    """The factor of the field before it is scaled."""

    def __init__(self, factor: Factor, scale: Tensor):
        self.factor, self.scale = factor, scale

    def logdet(self) -> Tensor:
        """Log determinant of each gene."""
        return self.factor.logdet()

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the factor."""
        return self.factor.solve(rhs)

    def spot_covariance(self) -> Tensor:
        """Posterior covariance of the scaled field at every spot."""
        return sandwich(self.scale, self.factor.spot_covariance(), self.scale)

    def color(self, noise: Tensor) -> Tensor:
        """Make posterior draws of the latents."""
        return self.factor.color(noise)
