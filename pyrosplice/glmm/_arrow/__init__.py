"""Latent Gaussian models of counts with any list of effects: groups border what couples single observations."""
