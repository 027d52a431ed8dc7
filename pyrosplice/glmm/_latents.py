"""Parameters of a mixed model and its random effects, standardised, of a batch of genes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyrosplice._linalg.blocks import planar


@dataclass(frozen=True)
class Parameters:
    """What the marginal likelihood is a function of.

    Attributes
    ----------
    coefficients
        (B, P, Q), for the columns of the design; of a model without one the fixed part of η itself, (B, N, Q).
    spatial, white
        Standard deviations a (B, Q) of the spatial and c (B, 1 or N, Q) of the independent part.
    """

    coefficients: Tensor
    spatial: Tensor
    white: Tensor

    def select(self, genes: Tensor) -> Parameters:
        """Take the values of some of the genes."""
        return Parameters(self.coefficients[genes], self.spatial[genes], self.white[genes])


@dataclass(frozen=True)
class Latents:
    """Standardised random effects: ``field`` z (B, r, Q) and ``noise`` e (B, N, Q)."""

    field: Tensor
    noise: Tensor

    def moved(self, step: Latents, length: Tensor | float = 1.0) -> Latents:
        """Move the random effects by ``length`` ``(B,)`` times a step."""
        scale = length[:, None, None] if isinstance(length, Tensor) else length
        return Latents(self.field + scale * step.field, self.noise + scale * step.noise)

    def replaced(self, genes: Tensor, others: Latents) -> Latents:
        """Copy with some genes' random effects taken from ``others``."""
        field, noise = self.field.clone(), self.noise.clone()  # which keeps their layout
        field[genes], noise[genes] = others.field, others.noise
        return Latents(field, noise)

    def select(self, genes: Tensor) -> Latents:
        """Take the random effects of some of the genes."""
        return Latents(planar(self.field[genes]), planar(self.noise[genes]))
