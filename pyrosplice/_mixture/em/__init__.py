"""EM for Gaussian mixtures on sufficient statistics."""
