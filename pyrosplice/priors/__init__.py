"""Named priors of the isoform models; any other Pyro distribution will do as well."""

from pyrosplice.priors.penalized_complexity import pc_sigma, pc_theta, weak_priors
from pyrosplice.priors.symmetric_normal import SymmetricNormal

__all__ = ["SymmetricNormal", "pc_sigma", "pc_theta", "weak_priors"]
