"""Spatial graphs and the CAR covariance on them."""
