"""Contract tests of what users write, in words; checks of calibration, by simulation."""

from pyrosplice.spatial._domains import Domains
from pyrosplice.testing._calibration import calibrate
from pyrosplice.testing._covariance import check_covariance
from pyrosplice.testing._likelihood import check_likelihood

__all__ = ["Domains", "calibrate", "check_covariance", "check_likelihood"]
