"""Every shipped likelihood, and the class to extend."""

from pyrosplice.models.count_likelihoods import NegativeBinomial, Poisson
from pyrosplice.models.likelihoods import Likelihood, Multinomial
from pyrosplice.models.usage_likelihoods import BetaBinomial, Binomial, DirichletMultinomial

__all__ = [
    "BetaBinomial",
    "Binomial",
    "DirichletMultinomial",
    "Likelihood",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
]
