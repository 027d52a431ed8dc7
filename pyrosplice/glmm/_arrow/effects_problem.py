"""What is fitted: counts, a design, a likelihood and a list of latent Gaussian effects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.likelihoods._contract import Likelihood


@dataclass(frozen=True)
class EffectsProblem:
    r"""A generalized linear mixed model of G genes, each with parameters of its own.

    .. math::
        y_i \mid \eta_i \sim p(\eta_i, \text{hyper}), \qquad
        \eta = X B + o + \sum_e Z_e U_e + a\, x \odot s + c\, e, \quad s \sim N(0, V), \quad e \sim N(0, I)

    B has a flat prior. With ``restricted`` it is integrated out with the effects (restricted likelihood, glmmTMB's
    ``REML = TRUE``), else it maximises the marginal likelihood.

    Attributes
    ----------
    counts : (G, N, K)
        K = 1 for counts of cells, K isoforms for usage.
    design : (N, P)
        X, its intercept among the columns where the model has one; full rank.
    offset : (N,) or (G, N, Q), optional
        o, the log of size factors.
    likelihood
        Density of one observation; its free hyper-parameters are estimated, one a gene.
    groups
        Effects of groups.
    space
        V; None for no field.
    space_by : (N,), optional
        x, which multiplies the field: a spatially varying coefficient. None for 1.
    noise
        Whether every observation has an effect e of its own.
    isoform_effect
        Covariance between the logits of every effect (:mod:`pyrosplice.effects._isoform_effect`).

    Examples
    --------
    >>> import numpy as np, pandas as pd, torch
    >>> from pyrosplice.effects import Groups
    >>> from pyrosplice.glmm import EffectsProblem
    >>> from pyrosplice.likelihoods import Poisson
    >>> donor = Groups("donor").bind(pd.DataFrame({"donor": list("uuvvww")}))
    >>> counts = torch.tensor([[3.0, 2.0, 9.0, 8.0, 1.0, 0.0]], dtype=torch.float64)[..., None]  # genes, cells, 1
    >>> problem = EffectsProblem(counts, np.ones((6, 1)), likelihood=Poisson(), groups=(donor,))
    >>> problem.counts.shape, problem.groups[0].name
    (torch.Size([1, 6, 1]), '1 | donor')
    """

    counts: Tensor
    design: NDArray[np.float64]
    likelihood: Likelihood
    offset: NDArray[np.float64] | None = None
    groups: tuple[GroupBlock, ...] = ()
    space: SpatialSolver | None = None
    space_by: NDArray[np.float64] | None = None
    noise: bool = False
    isoform_effect: IsoformEffect = "independent"
