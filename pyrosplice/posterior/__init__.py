"""Posterior draws and what they say about the model, as an xarray DataTree that ArviZ reads."""
