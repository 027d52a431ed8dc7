"""Contract tests of what users write, in words; checks of calibration, by simulation."""

from pyrosplice.spatial._domains import Domains
from pyrosplice.testing._calibration import calibrate
from pyrosplice.testing._covariance import check_covariance
from pyrosplice.testing._likelihood import check_likelihood
from pyrosplice.testing._own_effect import check_effect

__all__ = ["Domains", "calibrate", "check_covariance", "check_effect", "check_likelihood"]
