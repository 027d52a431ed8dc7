"""Every shipped likelihood, and the class to extend."""

from pyrosplice.likelihoods.contract import Likelihood, Multinomial
from pyrosplice.likelihoods.counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods.isoform_shares import BetaBinomial, Binomial, DirichletMultinomial

__all__ = [
    "BetaBinomial",
    "Binomial",
    "DirichletMultinomial",
    "Likelihood",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
]
