"""Generalized linear mixed models of counts: the Pyro model, the mode of its random effects, Laplace's method."""
