"""Latent Gaussian effects: of groups, of neighbourhoods, of single observations."""

from pyrosplice.effects._effect import Effect
from pyrosplice.effects._field import Field, Independent
from pyrosplice.effects._group_terms import Groups
from pyrosplice.effects._isoform_effect import SoftmaxBasis

__all__ = ["Effect", "Field", "Groups", "Independent", "SoftmaxBasis"]
