"""Where searches start: coefficients, hyper-parameters and the size of standard deviations."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem

Array = NDArray[np.float64]
START_SD = 0.3  # loses over .01 nats in 0-1 of 400 genes, beside .05 and .8 (a prototype, five models)
LEAST_DISPERSION, MOST_DISPERSION = 0.05, 7.0  # of a start by moments


def unit_of(problem: EffectsProblem) -> Array:
    """Size (G,) that a standard deviation of an effect is measured in: 1, or the spread of real numbers."""
    if problem.likelihood.of_counts:
        return np.ones(len(problem.counts))
    spread = problem.counts.flatten(1).std(1).numpy()
    return np.where(spread > 0, spread, 1.0)


def first_coefficients(problem: EffectsProblem) -> Array:
    """Coefficients (G, P, Q) whose predictors are nearest to the likelihood's start, less the mean offset."""
    level = problem.likelihood.start(problem.counts)
    if problem.offset is not None:
        offset = torch.as_tensor(problem.offset, dtype=torch.float64)
        log_link = problem.likelihood.of_counts and problem.likelihood.n_categories == (1, 1)
        mean = (
            offset.exp().mean(0 if offset.ndim == 1 else 1).log()
            if log_link
            else offset.mean(-1 if offset.ndim == 1 else 1)
        )
        level = level - mean
    basis = basis_of(problem.isoform_effect, problem.counts)
    if basis is not None:
        level = basis.coordinates(level[:, None])[:, 0]
    fixed = np.linalg.lstsq(problem.design, np.ones(len(problem.design)), rcond=None)[0]
    return fixed[:, None] * level.numpy()[:, None, :]


def first_hyper(problem: EffectsProblem) -> Array:
    """Logs of the free hyper-parameters (G, H)."""
    likelihood, counts = problem.likelihood, problem.counts
    out = np.log([[likelihood.hyperparameters[name] for name in likelihood.free]] * len(counts)).reshape(
        len(counts), -1
    )
    if likelihood.is_negative_binomial and likelihood.free:
        out[:, 0] = np.log(_moment_dispersion(problem))
    elif not likelihood.of_counts and "sd" in likelihood.free:
        out[:, likelihood.free.index("sd")] = np.log(unit_of(problem))
    return out


def _moment_dispersion(problem: EffectsProblem) -> Array:
    """Dispersion (G,) by moments: what the variance of a gene's counts is above that of their mean and size factors."""
    counts = problem.counts[..., 0].numpy()
    mean, variance = np.maximum(counts.mean(1), 1e-9), counts.var(1)
    size = np.zeros((1, counts.shape[1])) if problem.offset is None else np.asarray(problem.offset)
    size = np.exp(size.reshape(-1, counts.shape[1]))
    spread = size.var(1) / size.mean(1) ** 2
    return np.clip((variance / mean - spread * mean - 1) / mean, LEAST_DISPERSION, MOST_DISPERSION)
