"""Fitting: Newton, Laplace, gradient; one row of convergence a gene."""
