"""Estimates beyond Laplace: the optimum of the importance-sampling marginal likelihood, from the Laplace optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import bfgs
from pyrosplice.glmm._importance import Importance, importance
from pyrosplice.glmm._marginal import MarginalFit
from pyrosplice.glmm._mode import MixedModel, Mode
from pyrosplice.glmm._objective import FINAL_TOLERANCE, LogPrior, Measure, ModeObjective, Unknowns

INTERIOR = 0.15  # radians from θ = 0 and θ = 1 at which a boundary gene starts, since there the slope in ψ is zero
ALONG = (0.0, 0.25, 0.5, 0.75, 1.0)  # where the value is compared between Laplace's estimates and the search's
ENOUGH = 1e-4  # nats that a Newton step still promises when a gene is done


@dataclass(frozen=True)
class StartingPoint:
    """Estimates to start from: ``coefficients`` (B, P, Q), ``sigma`` and ``theta`` (B, n_components)."""

    coefficients: Tensor
    sigma: Tensor
    theta: Tensor


@dataclass(frozen=True)
class RefinedFit:
    """Estimates of a batch of genes by importance sampling.

    Attributes
    ----------
    coefficients
        (B, P, Q), the intercept in the last row.
    sigma, theta
        (B, n_components).
    importance
        Log marginal likelihood at the estimates with its standard error and Pareto k̂.
    converged
        (B,).
    """

    coefficients: Tensor
    sigma: Tensor
    theta: Tensor
    importance: Importance
    converged: Tensor


class ImportanceObjective(ModeObjective):
    """Minus (importance-sampling log marginal likelihood + log prior), with the same random numbers at every call."""

    def __init__(self, model: MixedModel, unknowns: Unknowns, log_prior: LogPrior | None, *, n_draws: int, seed: int):
        super().__init__(model, unknowns, log_prior)
        self.n_draws, self.seed = n_draws, seed

    def measure(self, mode: Mode) -> Measure:
        """The corrected value and its gradient by Fisher's identity."""
        return importance(mode, n_draws=self.n_draws, seed=self.seed).measure


def refine(
    model: MixedModel,
    fit: MarginalFit | StartingPoint,
    *,
    n_draws: int = 400,
    seed: int = 0,
    log_prior: LogPrior | None = None,
    max_iter: int = 40,
) -> RefinedFit:
    """Move Laplace estimates to the optimum of the importance-sampling marginal likelihood.

    Laplace's method shrinks σ² and tilts towards θ = 1 where counts are low (about 15 % and one nat at two counts a
    spot); this removes both as far as k̂ says that the weights can be trusted.

    Parameters
    ----------
    model, fit
        The model and its Laplace fit.
    n_draws, seed
        Draws a gene (even) and their seed.
    log_prior
        As in the fit.
    max_iter
        Evaluations at most.

    Notes
    -----
    Quasi-Newton steps on the gradient, whose Monte Carlo error is another one than that of the value, and where counts
    are high a larger one. So the value decides in the end: the best of a few points from Laplace's estimates to where
    the steps led.
    """
    genes, spatial = model.genes, model.solver is not None
    remainder = model.solver.remainder if model.solver is not None else None
    unknowns = Unknowns(model.n_coefficients, model.n_predictors, fit.sigma.shape[1], spatial, remainder=remainder)
    objective = ImportanceObjective(model, unknowns, log_prior, n_draws=n_draws, seed=seed)
    angle = torch.asin(fit.theta.sqrt()).clamp(INTERIOR, math.pi / 2 - INTERIOR)
    point = unknowns.pack(fit.coefficients, fit.sigma.clamp_min(0.1), angle)
    _, gradient = objective.evaluate(genes, point, tolerance=FINAL_TOLERANCE)
    inverse = torch.linalg.inv(objective.information())
    done = torch.zeros_like(genes, dtype=torch.bool)
    for _ in range(max_iter):
        direction = -(inverse @ gradient[..., None])[..., 0]
        done = -(direction * gradient).sum(-1) <= 2 * ENOUGH
        if bool(done.all()):
            break
        length = objective.step_limit(genes, point, direction)
        step = torch.where(done[:, None], 0.0, length[:, None] * direction)
        point = point + step
        _, slope = objective.evaluate(genes, point, tolerance=FINAL_TOLERANCE)
        inverse, gradient = bfgs(inverse, step, slope - gradient), slope
    laplace = unknowns.pack(fit.coefficients, fit.sigma, torch.asin(fit.theta.sqrt()))
    point = _best_between(objective, laplace, point)
    if objective.mode is None:
        raise AssertionError("evaluate sets the mode")
    coefficients, sigma, angle = unknowns.unpack(point, genes)
    return RefinedFit(
        coefficients=coefficients,
        sigma=sigma.abs(),
        theta=angle.sin().square(),
        importance=importance(objective.mode, n_draws=n_draws, seed=seed),
        converged=done & torch.isfinite(gradient).all(-1),
    )


def _best_between(objective: ImportanceObjective, begin: Tensor, end: Tensor) -> Tensor:
    """The point of each gene with the highest value between two, where ``objective`` is left."""
    genes, best, least = objective.model.genes, begin, torch.full_like(begin[:, 0], math.inf)
    for share in ALONG:
        point = begin + share * (end - begin)
        loss, _ = objective.evaluate(genes, point, tolerance=FINAL_TOLERANCE)
        better = loss < least
        best, least = torch.where(better[:, None], point, best), torch.where(better, loss, least)
    objective.evaluate(genes, best, tolerance=FINAL_TOLERANCE)
    return best
