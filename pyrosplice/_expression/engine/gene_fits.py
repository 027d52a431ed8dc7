"""Fit every gene: start, Newton, and what the optimum tells, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pyrosplice._expression.engine.basis import Basis
from pyrosplice._expression.engine.joint_newton import (
    BOUNDARY_ZETA,
    LogPrior,
    Newton,
    NewtonOptions,
    Solution,
    derivatives,
    solve_ascent,
)
from pyrosplice._expression.engine.pseudo_cells import Derivatives, Rows, SearchEnd
from pyrosplice._expression.engine.row_source import RowSource
from pyrosplice._expression.engine.sparse_rows import FitRows
from pyrosplice._expression.noise_models import faults_named, held_scale, mean_link
from pyrosplice._optimize.convergence import FitCode, reasons_of_codes
from pyrosplice._optimize.newton import UPWARD, has_curvature
from pyrosplice._overrides import is_ours
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._normal import Normal

Array = NDArray[np.float64]
Index = NDArray[np.intp]
MOMENT_RANGE = (1e-3, 10.0)  # dispersions at which a fit may start
Start = Callable[[FitRows, Index], Tensor]


@dataclass(frozen=True)
class GlmFit:
    """Estimates of G genes.

    Attributes
    ----------
    theta : (G, D)
        Location then scale coefficients; NaN for genes without a count.
    log_likelihood, code, n_iter : (G,)
        Log density at ``theta``; a :class:`FitCode`; evaluations of the density.
    gradient : (G, D)
        Derivative of the log density, zero at an optimum.
    inner_information : (G, D, D), inner_fisher : (G, P, P)
        :attr:`information` and :attr:`fisher` in the coordinates of ``basis``, where they can be inverted.
    basis
        The coordinates in which the engine worked; everything else is in the design's own.
    reach : (P,)
        Largest entry of each location column there.
    """

    theta: Array
    log_likelihood: Array
    code: NDArray[np.int64]
    n_iter: NDArray[np.int64]
    gradient: Array
    inner_information: Array
    inner_fisher: Array
    basis: Basis
    reach: Array

    @cached_property
    def information(self) -> Array:
        """Observed information, location and scale jointly ``(G, D, D)``."""
        return self.basis.information(self.inner_information)

    @cached_property
    def fisher(self) -> Array:
        """Expected information of the location coefficients ``(G, P, P)``."""
        return self.basis.part(slice(0, self.n_location)).information(self.inner_fisher)

    @cached_property
    def covariance(self) -> Array:
        """Covariance of the coefficients ``(G, D, D)``; infinite variance where they are not identified.

        Location: inverse expected information. Scale: its block of the inverse observed information, which allows
        for the location being estimated. Between them zero, as the expected information is.
        """
        p = self.n_location
        out = np.zeros_like(self.inner_information)
        out[:, :p, :p] = self.basis.part(slice(0, p)).covariance(self.inner_covariance)
        scale = safe_inverse(self.inner_information)[:, p:, p:]
        out[:, p:, p:] = self.basis.part(slice(p, None)).covariance(scale)
        return out

    @cached_property
    def inner_covariance(self) -> Array:
        """Covariance of the location coefficients in the coordinates of ``basis`` ``(G, P, P)``."""
        return safe_inverse(self.inner_fisher)

    @cached_property
    def reason(self) -> NDArray[np.object_]:
        """Why the fit of each gene ended ``(G,)``: words of :class:`~pyrosplice.reasons.Reason`."""
        return reasons_of_codes(self.code)

    @property
    def n_location(self) -> int:
        """Number of location coefficients P."""
        return self.inner_fisher.shape[1]


@torch.inference_mode(False)
def fit_glm(
    source: RowSource,
    *,
    start: Start | None = None,
    prior: Callable[[Index], LogPrior] | None = None,
    options: NewtonOptions | None = None,
    genes: Index | None = None,
) -> GlmFit:
    """Maximise the log density of every gene of ``source`` (or of ``genes``; the others stay NaN and FAILED).

    Parameters
    ----------
    source
        Counts, design and likelihood.
    start
        Returns starting coefficients ``(g, D)`` of the design for a block; by default :func:`default_starter`.
    prior
        Returns, for a block of genes, the derivatives of their log prior: the mode of the posterior is then found.
    options
        Stopping rules and which coefficients to hold.
    """
    n_genes, p = source.counts.shape[1], source.design.x.shape[1]
    d = p + source.design.z.shape[1]
    fit = GlmFit(
        np.full((n_genes, d), np.nan),
        np.full(n_genes, np.nan),
        np.full(n_genes, int(FitCode.FAILED)),
        np.zeros(n_genes, np.int64),
        np.full((n_genes, d), np.nan),
        np.full((n_genes, d, d), np.nan),
        np.full((n_genes, p, p), np.nan),
        source.basis,
        source.reach,
    )
    begin, errors, tried = start or default_starter(source), [], 0
    for which, rows in source.conditioned.blocks(genes, fitted=True):
        if prior is None:
            empty = rows.without_counts.cpu().numpy()
            fit.code[which[empty]], fit.log_likelihood[which[empty]] = int(FitCode.ALL_ZERO), 0.0
            if empty.any():
                which, rows = which[~empty], rows.select(torch.as_tensor(~empty).nonzero()[:, 0].to(rows.x.device))
            if not len(which):
                continue
        errors += _fit_block(fit, _Block(which, rows, begin, prior), source.likelihood, options)
        tried += len(which)
    if errors and len(errors) == tried:  # the fault is no gene's
        with faults_named(source.likelihood):
            raise errors[0]
    return fit


@dataclass(frozen=True)
class _Block:
    """Genes that are fitted together, in the coordinates of the fit's basis."""

    which: Index
    rows: FitRows
    start: Start
    prior: Callable[[Index], LogPrior] | None

    def halves(self) -> list[_Block]:
        parts = np.array_split(np.arange(len(self.which)), 2)
        device = self.rows.x.device
        return [
            replace(self, which=self.which[part], rows=self.rows.select(torch.as_tensor(part, device=device)))
            for part in parts
        ]


def _fit_block(fit: GlmFit, block: _Block, likelihood: Likelihood, options: NewtonOptions | None) -> list[Exception]:
    """Fit a block; where it raises, its halves, so that a gene that cannot be fitted fails alone: an error a gene."""
    try:
        _solve_block(fit, block, likelihood, options)
    except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
        if len(block.which) == 1:
            fit.code[block.which] = int(FitCode.RAISED)
            return [error]
        return [e for half in block.halves() for e in _fit_block(fit, half, likelihood, options)]
    return []


def _solve_block(fit: GlmFit, block: _Block, likelihood: Likelihood, options: NewtonOptions | None) -> None:
    which, rows, basis = block.which, block.rows, fit.basis
    log_prior = None if block.prior is None else _inner_prior(block.prior(which), basis)
    newton = Newton(rows, likelihood, prior=log_prior, options=options)
    start = block.start(rows, which)
    solution = newton.run(start if basis.trivial else start @ torch.as_tensor(basis.inverse.T.copy()).to(start))
    optimum = rows.optimum(likelihood, solution.theta)
    if newton.one_dispersion and log_prior is None:
        moved = _try_boundary(newton, solution, optimum.poisson_bound)
        if len(moved):
            optimum.replace(moved, rows.select(moved).optimum(likelihood, solution.theta[moved]))
    record(fit, which, optimum, solution.theta, log_prior)
    fit.code[which], fit.n_iter[which] = solution.code.cpu().numpy(), solution.n_iter.cpu().numpy()
    fit.log_likelihood[which] = solution.value.cpu().numpy()
    fit.code[which[_at_saddle(fit, which, newton.held.cpu().numpy())]] = int(FitCode.SADDLE)
    lost = ~(np.isfinite(fit.theta[which]).all(1) & np.isfinite(fit.log_likelihood[which]))
    # an overflow of the predictor, or nothing that identifies a coefficient
    fit.code[which[lost]] = int(FitCode.NOT_FINITE)


def _at_saddle(fit: GlmFit, which: Index, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which genes converged where the log density still rises to both sides: a symmetric start of one's own density."""
    information = torch.as_tensor(fit.inner_information[which][:, ~held][:, :, ~held])
    finite = torch.isfinite(information).flatten(1).all(1)
    upward = (finite & ~has_curvature(information, -UPWARD)).numpy()
    return np.asarray(upward & (fit.code[which] == FitCode.CONVERGED))


def _inner_prior(prior: LogPrior, basis: Basis) -> LogPrior:
    """A log prior of the design's coefficients in the coordinates of ``basis``."""
    if basis.trivial:
        return prior

    def inner(theta: Tensor, genes: Tensor) -> Derivatives:
        out = torch.as_tensor(basis.matrix).to(theta)
        d = prior(theta @ out.T, genes)
        return Derivatives(d.value, d.gradient @ out, out.T @ d.information @ out)

    return inner


def _try_boundary(newton: Newton, solution: Solution, bound: Tensor) -> Tensor:
    """Where the Poisson boundary may beat the interior optimum found (both can be maxima), fit from there and see.

    ``bound`` ``(G,)`` is what a first look at the boundary cannot exceed. Returns the genes that moved there.
    """
    some = ((solution.code == int(FitCode.CONVERGED)) & (bound > solution.value)).nonzero()[:, 0]
    rows, theta = newton.rows.select(some), solution.theta[some]
    theta[:, -1] = BOUNDARY_ZETA
    d = derivatives(rows, newton.likelihood, theta)
    p = rows.x.shape[1]
    gain = solve_ascent(d.information[:, :p, :p], d.gradient[:, :p])[0].mul(d.gradient[:, :p]).sum(1)
    close = (d.value + gain > solution.value[some]).nonzero()[:, 0]
    some = some[close]
    if not len(some):
        return some
    other = Newton(rows.select(close), newton.likelihood, options=newton.options).run(theta[close])
    better = other.value > solution.value[some]
    for mine, its in ((solution.theta, other.theta), (solution.value, other.value), (solution.code, other.code)):
        mine[some[better]] = its[better]
    solution.n_iter[some] += other.n_iter
    return some[better]


def record(fit: GlmFit, which: Index, optimum: SearchEnd, theta: Tensor, prior: LogPrior | None = None) -> None:
    """Write the coefficients of a block, given in the basis of the fit, and both information matrices there."""
    d, genes = optimum.derivatives, torch.arange(len(theta), device=theta.device)
    d = d if prior is None else d + prior(theta, genes)
    fit.theta[which] = fit.basis.outward(theta.cpu().numpy())
    fit.gradient[which] = fit.basis.gradient(d.gradient.cpu().numpy())
    fit.inner_information[which] = d.information.cpu().numpy()
    fit.inner_fisher[which] = optimum.fisher.cpu().numpy()


def score_statistic(source: RowSource, theta: Array, tested: Index) -> tuple[Array, Array, Array, Array]:
    """Score test of the location coefficients ``tested`` at ``theta`` ``(G, D)``, the optimum where they are held.

    Returns the statistic and its χ² p-value ``(G,)``, the one-step estimate and its standard error ``(G, k)``.
    """
    p, k = source.design.x.shape[1], len(tested)
    location = source.basis.part(slice(0, p))
    statistic, step, se = (np.full(shape, np.nan) for shape in ((len(theta),), (len(theta), k), (len(theta), k)))
    for which, rows in source.conditioned.blocks(np.flatnonzero(np.isfinite(theta).all(1)), fitted=True):
        at = torch.as_tensor(source.basis.inward(theta[which]), device=rows.x.device)
        gradient = location.gradient(derivatives(rows, source.likelihood, at).gradient[:, :p].cpu().numpy())[:, tested]
        inner = safe_inverse(rows.fisher(source.likelihood, at).cpu().numpy())
        covariance = location.covariance(inner)[:, tested][:, :, tested]
        step[which] = (covariance @ gradient[:, :, None])[:, :, 0]
        statistic[which] = (step[which] * gradient).sum(1)
        se[which] = np.sqrt(covariance.diagonal(axis1=1, axis2=2))
    return statistic, stats.chi2.sf(statistic, k), step, se


def safe_inverse(matrices: Array) -> Array:
    """Invert symmetric matrices ``(G, D, D)``.

    NaN stays NaN, and a matrix not positive definite gets infinite variances and NaN covariances.
    """
    h = torch.as_tensor(np.nan_to_num(matrices))
    size = h.diagonal(dim1=1, dim2=2).abs().sqrt().clamp_min(1e-150)
    factor, info = torch.linalg.cholesky_ex(h / (size[:, :, None] * size[:, None, :]))
    factor[info > 0] = torch.eye(h.shape[1], dtype=h.dtype)
    inverse = (torch.cholesky_inverse(factor) / (size[:, :, None] * size[:, None, :])).numpy()
    bad = (info > 0).numpy() | ~np.isfinite(inverse).all((1, 2))
    inverse[bad] = np.nan
    inverse[bad[:, None, None] & np.eye(h.shape[1], dtype=bool)] = np.inf
    inverse[np.isnan(matrices).any((1, 2))] = np.nan
    return inverse


def default_starter(source: RowSource, *, location: str = "closed_form", scale: str = "closed_form") -> Start:
    """A function that starts a block of genes: ``closed_form``, ``standard`` or ``all_zero`` for each part.

    It is given rows in the coordinates of the source's basis and returns coefficients of the design. A likelihood of
    another link than the log says for itself where location starts.
    """
    outward = torch.as_tensor(source.basis.matrix.T.copy(), device=source.device)
    group = torch.as_tensor(source.group, device=source.device)
    link = mean_link(source.likelihood)

    def start(rows: FitRows, _: Index) -> Tensor:
        if link == "log":
            a = log_link_location(rows, group, location)
        else:
            dense = cast(Rows, rows)  # sparse ones are negative binomial, whose link is the log
            observed = _observed(dense)
            level = observed if link == "identity" else source.likelihood.start(observed.unsqueeze(-1))
            a = _nearest_location(dense, level)
        zeta = _first_zeta(rows, a, source.likelihood, scale)
        b = rows.z.new_zeros(rows.n_genes, rows.z.shape[1])
        b = b if zeta is None else _solve_rows(rows.z, zeta - rows.zeta_offset)
        inner = torch.cat([a, b], 1)
        return inner if source.basis.trivial else inner @ outward

    return start


def log_link_location(rows: FitRows, group: Tensor, how: str) -> Tensor:
    """Location coefficients ``(G, P)`` from the groups' mean rates (least squares on their logs) or the overall one."""
    if how == "all_zero":
        return rows.x.new_zeros(rows.n_genes, rows.x.shape[1])
    ones = rows.design.pseudo_inverse.sum(0, keepdim=True)
    if how == "standard":
        return ((rows.sum_counts + 1e-3) / rows.exposure).log()[:, None] * ones
    if len(group) == int(group.max()) + 1:  # every row a group
        return _rescale(rows, rows.log_rates(), ones)
    return _rescale(rows, _group_log_rates(cast(Rows, rows), group), ones)  # sparse rows are not grouped


def _group_log_rates(rows: Rows, group: Tensor) -> Tensor:
    """Least-squares coefficients ``(G, P)`` of the log rates of the groups of rows."""
    n_groups, size = int(group.max()) + 1, rows.weight * rows.offset.exp()
    weight = rows.weight.mean(0)
    cells = weight.new_zeros(n_groups).index_add_(0, group, weight).clamp_min(1e-12)
    total = rows.total.new_zeros(rows.n_genes, n_groups).index_add_(1, group, rows.total.contiguous())
    exposure = size.new_zeros(size.shape[0], n_groups).index_add_(1, group, size)
    x = rows.x.new_zeros(n_groups, rows.x.shape[1]).index_copy_(0, group, rows.x)
    logs = torch.log((total.clamp_min(0) + 0.1 * cells) / exposure.clamp_min(1e-300))
    return _solve_rows(x * cells.sqrt()[:, None], logs * cells.sqrt())


def _rescale(rows: FitRows, a: Tensor, ones: Tensor) -> Tensor:
    """Move along ``ones`` until the fitted total is the observed one."""
    return a + torch.log((rows.sum_counts + 1e-3) / rows.mean_total(a))[:, None] * ones


def _moment_zeta(rows: FitRows, a: Tensor) -> Tensor:
    """Minus the log of the dispersion that matches the second moment about the fitted means ``(G,)``."""
    assert rows.table is not None
    total, square, product = rows.mean_sums(a)
    excess = rows.table.sum_squares() - 2 * product + square - total
    freedom = (rows.weight.sum(1) / (rows.weight.sum(1) - rows.x.shape[1]).clamp_min(1.0)).clamp_max(3.0)
    return -torch.log((freedom * excess / square).clamp(*MOMENT_RANGE))


def _first_zeta(rows: FitRows, a: Tensor, likelihood: Likelihood, how: str) -> Tensor | None:
    """Scale predictor to start from ``(G, 1)``: held, by moments, or of the start value; None for zero."""
    held = held_scale(likelihood)
    if held is not None:
        return torch.full_like(a[:, :1], held)
    if isinstance(likelihood, Normal) and is_ours(type(likelihood)):
        dense = cast(Rows, rows)
        spread = (dense.weight * (_observed(dense) - dense.eta(a)).square()).sum(1) / dense.weight.sum(1)
        return 0.5 * torch.log(spread.clamp_min(1e-20))[:, None]
    if how == "closed_form" and rows.table is not None:
        return _moment_zeta(rows, a)[:, None]
    if how == "closed_form" and likelihood.free:
        value = likelihood.hyperparameters[likelihood.free[0]]
        return torch.full_like(a[:, :1], likelihood.scale_sign * math.log(value))
    return None


def _nearest_location(rows: Rows, level: Tensor) -> Tensor:
    """Location coefficients ``(G, P)`` whose predictor is nearest to ``level``, ``(G, N)`` or ``(G, 1)``."""
    weight = rows.weight.mean(0).sqrt()
    return _solve_rows(rows.x * weight[:, None], (level - rows.offset) * weight)


def _observed(rows: Rows) -> Tensor:
    """Observation of each row, zero where its weight is."""
    return rows.total / rows.weight.clamp_min(1e-300)


def _solve_rows(design: Tensor, target: Tensor) -> Tensor:
    """Least squares of each row of ``target`` ``(G, N)`` on the columns of ``design`` ``(N, P)``: ``(G, P)``."""
    return target @ torch.linalg.pinv(design).T
