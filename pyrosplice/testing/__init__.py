"""Contract tests of what users write: they say in words what a likelihood or a covariance gets wrong."""

from pyrosplice.testing.covariance import check_covariance
from pyrosplice.testing.likelihood import check_likelihood

__all__ = ["check_covariance", "check_likelihood"]
