"""The Pyro models, their priors and likelihoods: the specification of every family."""
