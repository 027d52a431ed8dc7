"""Every shipped likelihood, and the class to extend."""

from pyrosplice.likelihoods._cell_counts import CellCounts
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._isoform_shares import BetaBinomial, Binomial, DirichletMultinomial
from pyrosplice.likelihoods._normal import Normal
from pyrosplice.likelihoods._softmax import draw_multinomial

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
    "draw_multinomial",
]
