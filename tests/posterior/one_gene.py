"""The Pyro model of one gene of several."""

import torch

from pyrosplice.glmm._multinomial import MultinomialGLMM
from pyrosplice.priors._penalized_complexity import weak_priors
from tests.glmm.test_laplace import grid


def one_gene(program: MultinomialGLMM, gene: int) -> MultinomialGLMM:
    rows = torch.tensor([gene])
    priors = weak_priors(grid(5))
    return MultinomialGLMM(program.counts[rows], program.design, program.covariance, priors=priors)
