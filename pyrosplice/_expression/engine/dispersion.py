r"""Dispersion beyond maximum likelihood: Cox–Reid adjusted, trended over the mean, and shrunken towards the trend.

The adjusted profile likelihood (Cox and Reid 1987; McCarthy, Chen and Smyth 2012, eq. 4) is

.. math:: A(\zeta) = \ell(\hat\beta(\zeta), \zeta) - \tfrac12 \log\det X' W X, \qquad W = \frac{\mu}{1 + \alpha\mu}

and corrects the dispersion for the coefficients that were estimated on the way. The trend maximises the local average
of A over genes of like mean; a shrunken dispersion maximises a gene's own A plus ``prior_df / residual df`` times that
average (Chen, Lun and Smyth 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.engine.joint_newton import DIRECT_ZETA, Newton, NewtonOptions, derivatives
from pyrosplice._expression.engine.pseudo_cells import Rows
from pyrosplice._expression.engine.row_source import RowSource
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]
LOWEST_ZETA = -8.0
STEP_TOL = 1e-7
GRID = np.linspace(-3.5, 9.0, 26)  # of ζ: dispersions 33 to 1e-4


@dataclass(frozen=True)
class Dispersions:
    """Dispersions of G genes: the trend, those shrunken to it, and the mean expression they were ordered by."""

    trend: Array
    shrunk: Array
    log_mean: Array


def cox_reid(source: RowSource, fit: GlmFit) -> tuple[Array, NDArray[np.int64]]:
    """Maximise the adjusted profile likelihood of every gene of one common dispersion.

    Returns
    -------
    theta : (G, D)
        Coefficients at the adjusted dispersion, location re-fitted; NaN where ``fit`` found no optimum.
    code : (G,)
        :class:`FitCode`; POISSON_BOUNDARY where the maximum is at zero dispersion.
    """
    theta, code = np.full_like(fit.theta, np.nan), fit.code.copy()
    for which, rows in source.conditioned.blocks(_estimable(fit)):
        start = torch.as_tensor(source.basis.inward(fit.theta[which]), device=rows.x.device)
        found, at_boundary = _maximize_adjusted(rows, source.likelihood, start)
        theta[which] = source.basis.outward(found.cpu().numpy())
        edge = at_boundary.cpu().numpy()
        kept = np.where(code[which] == FitCode.POISSON_BOUNDARY, int(FitCode.CONVERGED), code[which])
        code[which] = np.where(edge, int(FitCode.POISSON_BOUNDARY), kept)
    return theta, code


def _estimable(fit: GlmFit) -> NDArray[np.intp]:
    """Genes with a finite optimum of location, whose information can be inverted."""
    return np.flatnonzero(np.isin(fit.code, [FitCode.CONVERGED, FitCode.POISSON_BOUNDARY]))


def _maximize_adjusted(rows: Rows, likelihood: Likelihood, start: Tensor) -> tuple[Tensor, Tensor]:
    """Root of the profile derivative by secant steps, kept inside a bracket that halves when they are not trusted."""
    theta = start.clone()
    theta[:, -1] = theta[:, -1].clamp(-3.0, 6.0)
    low = torch.full_like(theta[:, -1], LOWEST_ZETA)
    high = torch.full_like(low, DIRECT_ZETA)
    active, block = torch.arange(len(theta), device=theta.device), rows
    previous = slope = torch.full_like(low, torch.nan)
    for _ in range(60):
        here = reprofile(block, likelihood, theta[active])
        theta[active] = here
        zeta = here[:, -1]
        gradient, curve = _profile_slope(block, likelihood, here)
        low = torch.where(gradient > 0, zeta, low)
        high = torch.where(gradient > 0, high, zeta)
        secant = (gradient - slope) / (zeta - previous)
        curve = torch.where(torch.isfinite(secant) & (secant < 0), -secant, curve)
        step = (gradient / curve).clamp(-2.0, 2.0)
        proposal = zeta + step
        inside = (proposal > low) & (proposal < high) & (curve > 0)
        proposal = torch.where(inside, proposal, (low + high) / 2)
        done = ((proposal - zeta).abs() < STEP_TOL) | (low > DIRECT_ZETA - 0.5)
        theta[active, -1] = proposal
        keep = (~done).nonzero()[:, 0]
        if not len(keep):
            break
        active, block = active[keep], block.select(keep)
        previous, slope, low, high = zeta[keep], gradient[keep], low[keep], high[keep]
    return theta, theta[:, -1] > DIRECT_ZETA - 1.0


def reprofile(rows: Rows, likelihood: Likelihood, theta: Tensor) -> Tensor:
    """Maximise location at the scale coefficients of ``theta``."""
    options = NewtonOptions(tol=1e-11, max_iter=30, fit_scale=False)
    return Newton(rows, likelihood, options=options).run(theta).theta


def _profile_slope(rows: Rows, likelihood: Likelihood, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Derivative of A in ζ, and minus the likelihood's second profile derivative ``(G,)``."""
    p = rows.x.shape[1]
    d = derivatives(rows, likelihood, theta)
    h_aa, h_ab = d.information[:, :p, :p], d.information[:, :p, p]
    path = -torch.linalg.solve_ex(h_aa, h_ab)[0]  # dβ̂/dζ
    mu, u = rows.eta(theta[:, :p]).exp(), torch.exp(rows.eta(theta[:, :p]) - rows.zeta(theta[:, p:]))
    shrink = 1 / (1 + u)
    weight_eta = rows.weight * mu * shrink.square()
    fisher = rows.design.gram(rows.weight * mu * shrink)
    change = weight_eta * (u + path @ rows.x.T)
    determinant = (torch.linalg.inv_ex(fisher)[0] * rows.design.gram(change)).sum((1, 2))
    curve = d.information[:, p, p] + (h_ab * path).sum(1)
    return d.gradient[:, p] - 0.5 * determinant, curve


def adjusted_profile(source: RowSource, fit: GlmFit, grid: Array = GRID) -> Array:
    """A at each ζ of ``grid``, ``(G, K)``; NaN for genes without an estimate."""
    out = np.full((len(fit.theta), len(grid)), np.nan)
    volume = source.basis.part(slice(0, fit.n_location)).log_determinant
    for which, rows in source.conditioned.blocks(_estimable(fit)):
        theta = torch.as_tensor(source.basis.inward(fit.theta[which]), device=rows.x.device).clone()
        for k, zeta in enumerate(grid):
            theta[:, -1] = zeta
            theta = reprofile(rows, source.likelihood, theta)
            value = derivatives(rows, source.likelihood, theta).value
            penalty = torch.linalg.slogdet(rows.fisher(source.likelihood, theta))[1]
            out[which, k] = (value - 0.5 * penalty).cpu().numpy() - volume
    return out


def trend_and_shrink(
    profile: Array,
    log_mean: Array,
    *,
    residual_df: float,
    prior_df: float = 10.0,
    span: float = 0.3,
    grid: Array = GRID,
) -> Dispersions:
    """Trended and shrunken dispersions from adjusted profiles.

    Parameters
    ----------
    profile : (G, K)
        :func:`adjusted_profile`; genes with NaN take the trend at their mean.
    log_mean : (G,)
        What genes are ordered by; NaN gives NaN.
    residual_df
        Samples less coefficients.
    prior_df
        Weight of the trend, in degrees of freedom.
    span
        Share of the genes that the local average covers.
    """
    good = np.flatnonzero(np.isfinite(profile).all(1) & np.isfinite(log_mean))
    order = good[np.argsort(log_mean[good], kind="stable")]
    own = profile[order] - profile[order].max(1, keepdims=True)
    local = _tricube_average(own, max(int(span * len(order)), min(len(order), 50)))
    trend, shrunk = np.full(len(profile), np.nan), np.full(len(profile), np.nan)
    trend[order] = np.exp(-_argmax(local, grid))
    shrunk[order] = np.exp(-_argmax(own + prior_df / residual_df * local, grid))
    rest = np.flatnonzero(np.isnan(trend) & np.isfinite(log_mean))
    trend[rest] = shrunk[rest] = np.exp(np.interp(log_mean[rest], log_mean[order], np.log(trend[order])))
    return Dispersions(trend, shrunk, log_mean)


def _tricube_average(values: Array, window: int) -> Array:
    """Running weighted mean of rows, tricube over a window of rows that stays inside at the ends."""
    n = len(values)
    half = max(window // 2, 1)
    kernel = (1 - np.abs(np.arange(-half, half + 1) / (half + 1)) ** 3) ** 3
    size = n + 2 * half
    spectrum = np.fft.rfft(kernel, size)
    total = np.fft.irfft(np.fft.rfft(values, size, axis=0) * spectrum[:, None], size, axis=0)[half : half + n]
    weight = np.fft.irfft(np.fft.rfft(np.ones(n), size) * spectrum, size)[half : half + n]
    return total / weight[:, None]


def _argmax(curves: Array, grid: Array) -> Array:
    """Where each row's cubic spline is largest."""
    fine = np.linspace(grid[0], grid[-1], 20 * (len(grid) - 1) + 1)
    spline = CubicSpline(grid, curves, axis=1)
    values = spline(fine)
    best = np.clip(values.argmax(1), 1, len(fine) - 2)
    rows, step = np.arange(len(curves)), fine[1] - fine[0]
    left, center, right = (values[rows, best + k] for k in (-1, 0, 1))
    bend = left - 2 * center + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1.0), 0.0)
    return np.clip(fine[best] + np.clip(shift, -1, 1) * step, grid[0], grid[-1])
