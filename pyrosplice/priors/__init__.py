"""Named priors, and those that Pyro does not ship; any other Pyro distribution will do as well."""

from pyrosplice.priors.inverse_wishart import InverseWishart
from pyrosplice.priors.penalized_complexity import pc_sigma, pc_theta, weak_priors
from pyrosplice.priors.scaled_normal import ScaledNormal
from pyrosplice.priors.symmetric_normal import SymmetricNormal

__all__ = ["InverseWishart", "ScaledNormal", "SymmetricNormal", "pc_sigma", "pc_theta", "weak_priors"]
