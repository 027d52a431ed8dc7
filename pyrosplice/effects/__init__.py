"""Latent Gaussian effects: how the random effects of a gene hang together."""
