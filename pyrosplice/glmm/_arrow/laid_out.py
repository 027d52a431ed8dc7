"""A problem laid out for Laplace's method at given parameters, those of a fit among them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import Eliminator
from pyrosplice.glmm._arrow.joint_mode import OuterPoint
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace, laplace_at
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of

Array = NDArray[np.float64]
MODE = 1e-12  # Newton decrement of the modes, in nats²
AT_ONCE = 64  # genes that are worked on together


class LaidOut:
    """Supports, unknowns and observations of a problem, under the restricted likelihood.

    Parameters
    ----------
    problem
        In the predictors' own coordinates (``isoform_effect="independent"``).
    """

    def __init__(self, problem: EffectsProblem):
        self.problem, self.layout = problem, SupportLayout.of(problem)
        self.arrow = Arrow(self.layout, problem.groups, restricted=True)
        self.eliminator: Eliminator = eliminator_of(problem, self.layout)

    def laplace(self, genes: Tensor, x: Array, coefficients: Array) -> ArrowLaplace:
        """Laplace's value of genes, any of them any number of times, at parameters x (b, d).

        ``coefficients`` (b, P Q) are where the mode is sought from.
        """
        sizes = (self.arrow.n_parameters, len(self.eliminator.inner))
        psi, sds, log_hyper = (np.ascontiguousarray(part) for part in np.split(x, np.cumsum(sizes), axis=1))
        outer = OuterPoint(genes, psi, torch.from_numpy(sds), torch.from_numpy(log_hyper), np.zeros((len(x), 0)))
        unknowns = self.arrow.zeros(len(x))
        unknowns.border[:, : self.arrow.n_coefficients] = coefficients
        start = unknowns, self.eliminator.zeros(genes)
        return laplace_at(self.arrow, self.eliminator, outer, start, tolerance=MODE)

    def at_fit(self, fit: EffectsFit) -> Iterator[tuple[Tensor, ArrowLaplace]]:
        """Laplace's value at the estimates, of those genes that have any."""
        x, coefficients = parameters_of(fit), fit.coefficients.flatten(1).numpy()
        for genes in torch.from_numpy(np.flatnonzero(np.isfinite(x).all(1))).split(AT_ONCE):
            if len(genes):
                yield genes, self.laplace(genes, x[genes.numpy()], coefficients[genes.numpy()])


def parameters_of(fit: EffectsFit) -> Array:
    """Parameters of a fit as the engine has them, (G, d): of groups, inner standard deviations, logs of the others."""
    logs = [value.log() for value in fit.hyper.values()]
    x: Array = torch.cat([fit.parameters, fit.sds, *logs], 1).numpy()
    return x
