"""Contract tests of what users write, in words; checks of calibration, by simulation."""

from pyrosplice.data.domains import Domains
from pyrosplice.testing.covariance import check_covariance
from pyrosplice.testing.likelihood import check_likelihood

__all__ = ["Domains", "check_covariance", "check_likelihood"]
