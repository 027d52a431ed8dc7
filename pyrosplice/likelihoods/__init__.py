"""Every shipped likelihood, and the class to extend."""

from pyrosplice.likelihoods.cell_counts import CellCounts
from pyrosplice.likelihoods.contract import Likelihood, Multinomial
from pyrosplice.likelihoods.counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods.isoform_shares import BetaBinomial, Binomial, DirichletMultinomial
from pyrosplice.likelihoods.normal import Normal

__all__ = [
    "BetaBinomial",
    "Binomial",
    "CellCounts",
    "DirichletMultinomial",
    "Likelihood",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "Poisson",
]
