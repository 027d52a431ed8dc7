"""Latent Gaussian effects: how the random effects of a gene hang together."""

from pyrosplice.effects._isoform_effect import SoftmaxBasis

__all__ = ["SoftmaxBasis"]
