"""Named priors of the isoform models; any other Pyro distribution will do as well."""

from pyrosplice.models.penalised_complexity import pc_sigma, pc_theta, weak_priors

__all__ = ["pc_sigma", "pc_theta", "weak_priors"]
