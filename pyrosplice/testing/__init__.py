"""Contract tests of what users write, in words; checks of calibration, by simulation."""

from pyrosplice.spatial.domains import Domains
from pyrosplice.testing.calibration import calibrate
from pyrosplice.testing.covariance import check_covariance
from pyrosplice.testing.likelihood import check_likelihood

__all__ = ["Domains", "calibrate", "check_covariance", "check_likelihood"]
