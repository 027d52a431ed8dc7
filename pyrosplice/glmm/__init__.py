"""Generalized linear mixed models of counts: the Pyro model, the mode of its random effects, Laplace's method."""

from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._distributions import EigenCovariance, SpatialEffect, SpotCounts
from pyrosplice.glmm._effects_model import CountGLMM
from pyrosplice.glmm._multinomial import MultinomialGLM, MultinomialGLMM, log_density

__all__ = [
    "CountGLMM",
    "EffectsProblem",
    "EigenCovariance",
    "MultinomialGLM",
    "MultinomialGLMM",
    "SpatialEffect",
    "SpotCounts",
    "log_density",
]
