r"""Laplace's posterior of standard deviations and hyper-parameters, coefficients and all effects integrated out.

In :math:`\varphi`, logs of what is positive and the other entries of covariance roots as they are, under proper priors
:math:`p`, the log posterior :math:`f(\varphi) = \text{value}(x(\varphi)) + \log p(x) + \sum \log x_j` is taken for a
quadratic around its maximum. Its curvature is from differences of exact gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._modes import outside_inference_mode
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.laid_out import LaidOut, parameters_of
from pyrosplice.glmm._arrow.parameter_search import LogPrior, OuterObjective, SearchStart

Array = NDArray[np.float64]
STEP = 0.02  # central difference in φ: third derivatives are of the size of second ones, so about 1e-4 of these
MODE = 1e-13  # Newton decrement of the modes, in nats²
LEAST_CURVATURE = 0.1  # of proposals of φ, which reach over three units then: weights do the rest
LARGEST = 20.0  # log of a standard deviation
TAIL = 5  # degrees of freedom of proposals: log σ falls off like an exponential towards zero, a Gaussian too fast


@dataclass(frozen=True)
class ParameterDraws:
    """Draws x (S, G, d) of the engine's parameters (logs of hyper-parameters), and their log weights (S, G).

    The weight is the log of prior times Jacobian over the density that φ was drawn from.
    """

    x: Array
    log_weight: Array


@dataclass(frozen=True)
class ParameterPosterior:
    """Gaussian law of φ of G genes.

    Attributes
    ----------
    fit
        The fit at the maximum.
    mean, root : (G, d), (G, d, d)
        Of φ, and Cholesky factor of its covariance; NaN for a gene without a maximum.
    logged : (d,)
        Which of the engine's parameters φ has the log of.
    log_prior
        Log density of the engine's parameters.
    sizes
        Numbers of parameters of groups, inner standard deviations and hyper-parameters.
    """

    fit: EffectsFit
    mean: Array
    root: Array
    logged: NDArray[np.bool_]
    log_prior: LogPrior
    sizes: tuple[int, int, int]

    def sample(self, n_draws: int, generator: torch.Generator) -> ParameterDraws:
        """Draw from Student's t around the maximum."""
        d = self.mean.shape[1]
        normal = torch.randn(n_draws, *self.mean.shape, generator=generator, dtype=torch.float64)
        share = torch.randn(n_draws, len(self.mean), TAIL, generator=generator, dtype=torch.float64)
        normal = normal / share.square().mean(-1, keepdim=True).sqrt()
        log_density = -0.5 * (TAIL + d) * torch.log1p(normal.square().sum(-1) / TAIL)
        phi = self.mean + np.einsum("gij,sgj->sgi", self.root, normal.numpy())
        logs = np.where(self.logged, phi, 0.0)
        x = np.where(self.logged, np.exp(np.minimum(logs, LARGEST)), phi)
        logdet = np.log(np.diagonal(self.root, axis1=1, axis2=2)).sum(1)
        own = np.stack([self._own(one) for one in x]) + logs.sum(-1)
        return ParameterDraws(x, own - log_density.numpy() + logdet)

    def _own(self, x: Array) -> Array:
        parts = torch.from_numpy(np.nan_to_num(x, nan=1.0)).split(self.sizes, 1)
        density: Array = self.log_prior(*parts).numpy()
        return density


@outside_inference_mode
def parameter_posterior(problem: EffectsProblem, log_prior: LogPrior) -> ParameterPosterior:
    """Find the maximum of the log posterior of φ, and its curvature there.

    Parameters
    ----------
    problem
        What is fitted.
    log_prior
        Log density of parameters of groups, inner standard deviations and logs of hyper-parameters, of these as the
        engine has them (of logs for hyper-parameters); proper.
    """
    positive = [np.trace(matrix) > 0 for block in problem.groups for matrix in block.basis]
    n_inner, n_hyper = (problem.space is not None) + problem.noise, len(problem.likelihood.free)
    logged = np.array([*positive, *[True] * n_inner, *[False] * n_hyper], dtype=bool)
    chosen = torch.from_numpy(logged[: len(positive)])

    def density(psi: Tensor, sds: Tensor, log_hyper: Tensor) -> Tensor:
        jacobian = psi[:, chosen].abs().log().sum(1) + sds.abs().log().sum(1)
        return log_prior(psi, sds, log_hyper) + jacobian

    fit = fit_effects(problem, log_prior=density)
    x = parameters_of(fit)
    mean = np.where(logged, np.log(np.where(logged, x, 1.0)), x)
    root = np.full((*x.shape, x.shape[1]), np.nan)
    sound = np.flatnonzero(np.isfinite(mean).all(1))
    if len(sound):
        root[sound] = _root(problem, fit.take(torch.from_numpy(sound)), sound, (mean[sound], logged), density)
    return ParameterPosterior(fit, mean, root, logged, log_prior, (len(positive), n_inner, n_hyper))


def _root(
    problem: EffectsProblem,
    fit: EffectsFit,
    genes: NDArray[np.intp],
    at: tuple[Array, NDArray[np.bool_]],
    density: LogPrior,
) -> Array:
    """Cholesky factors (b, d, d) of the inverse of minus the curvature in φ."""
    (phi, logged), laid_out = at, LaidOut(problem)
    arrow, eliminator = laid_out.arrow, laid_out.eliminator
    unknowns = arrow.zeros(len(genes))
    beta = fit.coefficients.flatten(1).numpy()
    unknowns.border[:, : beta.shape[1]] = beta
    begin = SearchStart(parameters_of(fit), unknowns, np.ones(len(genes)))
    objective = OuterObjective(arrow, eliminator, torch.from_numpy(genes), begin, tolerance=MODE, log_prior=density)
    rows, d = np.arange(len(genes)), phi.shape[1]
    hessian = np.zeros((len(genes), d, d))
    for j in range(d):
        for sign in (1.0, -1.0):
            moved = phi.copy()
            moved[:, j] += sign * STEP
            x = np.where(logged, np.exp(np.where(logged, moved, 0.0)), moved)
            gradient = objective.loss(x, objective.laplace(rows, x, keep=False))[1]
            hessian[:, :, j] += sign * gradient * np.where(logged, x, 1.0) / (2 * STEP)
    hessian = 0.5 * (hessian + np.swapaxes(hessian, 1, 2))
    finite = np.asarray(np.isfinite(hessian).all((1, 2)))
    values, vectors = np.linalg.eigh(np.where(finite[:, None, None], hessian, np.eye(d)))
    covariance = (vectors / np.maximum(values, LEAST_CURVATURE)[:, None]) @ np.swapaxes(vectors, 1, 2)
    lower = np.linalg.cholesky(covariance)
    return np.where(finite[:, None, None], lower, np.nan)
