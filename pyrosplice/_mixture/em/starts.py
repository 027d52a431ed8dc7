"""Where EM starts: k-means++ seeds, Lloyd's iterations, and the first M-step."""

from __future__ import annotations

from dataclasses import replace

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from pyrosplice._mixture.em.loop import QuadraticExpectation
from pyrosplice._mixture.em.m_step import Penalty, maximize
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.sufficient_statistics import NEVER, Moments, coefficients
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType
from pyrosplice.errors import InvalidArgumentError

TRIES = 4
"""Cells that compete to be the next k-means++ seed."""


def uniforms(n_starts: int, n_components: int, seed: int | None) -> Tensor:
    """The random numbers that the seeds of one data set use, ``(R, M, T)``.

    The same for every data set of a batch; the first k components' do not depend on how many follow.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(int(seed))
    return torch.rand(n_components, n_starts, TRIES, dtype=torch.float64, generator=generator).movedim(0, 1)


def seed_means(rows: RowBlocks, shift: Tensor, draws: Tensor, *, spread: bool = True) -> tuple[Tensor, Tensor]:
    """Distinct cells to start from, by greedy k-means++ (``spread``) or uniformly at random.

    The seeds are nested: the first k of them are the seeds for k components.

    Parameters
    ----------
    rows
        B data sets.
    shift
        Subtracted from every cell, ``(B, D)``.
    draws
        :func:`uniforms`, ``(R, M, T)``.
    spread
        Draw cells in proportion to their squared distance from the nearest seed.

    Returns
    -------
    Seeds ``(B, R, M, D)`` with ``shift`` subtracted, and the number of distinct ones, ``(B,)``.
    """
    draws = draws.to(shift.device)
    n_starts, n_components, tries = draws.shape
    nearest = torch.full((rows.n_sets, n_starts, rows.n_rows), torch.inf, dtype=torch.float64, device=shift.device)
    present = rows.weights > 0 if rows.weights is not None else None
    means = shift.new_zeros(rows.n_sets, n_starts, n_components, rows.dim)
    distinct = torch.zeros(rows.n_sets, dtype=torch.int64, device=shift.device)
    weights = torch.ones((), dtype=torch.float64) if rows.weights is None else rows.weights[:, None]
    for m in range(n_components):
        mass = (nearest > 0).to(torch.float64) if m == 0 or not spread else nearest
        mass = mass * weights
        distinct += mass.amax((1, 2)) > 0
        fallback = present[:, None].expand_as(mass).to(torch.float64) if present is not None else torch.ones_like(mass)
        mass = torch.where((mass.amax(-1, keepdim=True) > 0), mass, fallback)
        count = 1 if m == 0 or not spread else tries
        picked = _draw(mass, draws[None, :, m, :count].expand(rows.n_sets, -1, -1))
        candidates = rows.take(picked.flatten(1)) - shift[:, None]
        candidates = candidates.view(rows.n_sets, n_starts, count, rows.dim)
        means[:, :, m], nearest = _best(rows, shift, candidates, nearest, weights)
    return means, distinct


def _draw(mass: Tensor, draws: Tensor) -> Tensor:
    """Index of cells drawn in proportion to ``mass`` ``(B, R, N)``, one for each of ``draws`` ``(B, R, T)``."""
    cumulative = mass.cumsum(-1)
    target = draws * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target.contiguous(), right=True)
    last = mass.shape[-1] - 1 - (mass > 0).flip(-1).to(torch.int8).argmax(-1, keepdim=True)
    return torch.minimum(index, last)


def _best(
    rows: RowBlocks, shift: Tensor, candidates: Tensor, nearest: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The candidate of ``(B, R, T, D)`` that leaves the least total distance, and the distances then."""
    sets, starts, tries, dim = candidates.shape
    flat = candidates.view(sets, starts * tries, dim)
    norms = flat.square().sum(-1)[..., None]
    gaps = nearest.new_empty(sets, starts, tries, rows.n_rows)
    for a, b in rows.spans():
        y = rows.block(a, b) - shift[:, None]
        size = y.square().sum(-1)[:, None]
        gap = torch.baddbmm(norms + size, flat, y.mT, alpha=-2)
        gap = torch.where(gap <= 1e-12 * (norms + size), torch.zeros_like(gap), gap)
        gaps[..., a:b] = torch.minimum(gap.view(sets, starts, tries, b - a), nearest[:, :, None, a:b])
    best = (gaps * weights[..., None, :] if weights.dim() else gaps).sum(-1).argmin(-1)
    pick = best[..., None, None]
    mean = candidates.gather(2, pick.expand(-1, -1, 1, dim))[:, :, 0]
    return mean, gaps.gather(2, pick.expand(-1, -1, 1, rows.n_rows))[:, :, 0]


def nearest_mean_table(means: Tensor, active: Tensor, expectation: QuadraticExpectation) -> Tensor:
    """Coefficients ``(B, J, M, 1 + D)`` of 1 and y whose scores rank the means by distance in units of the data."""
    factor = expectation.standardization.factor
    table = means.new_zeros(*means.shape[:3], 1 + means.shape[-1])
    constant = -0.5 * means.square().sum(-1)
    table[..., 0] = torch.where(active, constant, constant.new_tensor(NEVER))
    table[..., 1 : 1 + means.shape[-1]] = means @ factor[:, None]
    return table


def lloyd(
    expectation: QuadraticExpectation, means: Tensor, active: Tensor, *, max_iter: int, tolerance: float = 1e-4
) -> Tensor:
    """k-means from ``means`` ``(B, J, M, D)``, all cells a pass; a mean that loses its cells stays where it is.

    A problem stops when the squared shift of its means is below ``tolerance`` times the mean variance.
    """
    dim = means.shape[-1]
    factor = expectation.standardization.factor
    limit = tolerance * factor.square().sum((-2, -1))[:, None] / dim
    done = torch.zeros(means.shape[:2], dtype=torch.bool, device=means.device)
    for _ in range(max_iter):
        table = nearest_mean_table(means, active, expectation)
        _, sums = expectation.statistics(table)
        counts = sums[..., :1]
        moved = (sums[..., 1:] / counts.clamp_min(1e-300)) @ factor.mT[:, None]
        moved = torch.where((counts > 0) & ~done[..., None, None], moved, means)
        done = done | ((moved - means).square().sum((-2, -1)) <= limit)
        means = moved
        if bool(done.all()):
            break
    return means


def from_means(
    expectation: QuadraticExpectation, means: Tensor, active: Tensor, penalty: Penalty
) -> tuple[MixtureParameters, Moments]:
    """Start from means ``(B, J, M, D)``: every cell goes to its nearest one, then one M-step.

    A component with no more than D cells has no covariance of its own yet: it starts with the pooled one.
    """
    kind, dim = expectation.covariance_type, means.shape[-1]
    table = nearest_mean_table(means, active, expectation)
    previous = _blank(active, means @ expectation.standardization.inverse.mT[:, None], kind)
    while True:
        moments = expectation.hard_moments(table)
        start = maximize(moments, previous, penalty)
        if not expectation.promoted(*coefficients(start)[1:]):
            break
    if kind == "tied":
        return start, moments
    few = active & (moments.counts <= dim)
    share = moments.counts / moments.counts.sum(-1, keepdim=True)
    extra = (1,) * (start.covariances.dim() - share.dim())
    pooled = (share.reshape(*share.shape, *extra) * start.covariances).sum(2, keepdim=True)
    covariances = torch.where(few.reshape(*few.shape, *extra), pooled, start.covariances)
    return replace(start, covariances=covariances), moments


def from_total_covariance(
    expectation: QuadraticExpectation, means: Tensor, active: Tensor, penalty: Penalty
) -> MixtureParameters:
    """Equal weights, the given means ``(B, J, M, D)``, and for every component the covariance of all cells."""
    kind = expectation.covariance_type
    scaled = means @ expectation.standardization.inverse.mT[:, None]
    blank = _blank(active, scaled, kind)
    total = expectation.total_squares(1)[:, 0] / expectation.total_weight[:, None, None]
    shaped = {
        "diag": total.diagonal(dim1=-2, dim2=-1)[:, None, None],
        "spherical": total.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None],
        "tied": total[:, None],
    }.get(kind, total[:, None, None])
    return replace(blank, covariances=(shaped + penalty.floor).expand_as(blank.covariances).clone())


def _blank(active: Tensor, means: Tensor, kind: CovarianceType) -> MixtureParameters:
    """Equal weights over the active components, unit covariances."""
    weights = active.expand(means.shape[:-1]).to(means.dtype)
    weights = weights / weights.sum(-1, keepdim=True)
    ones = torch.ones_like(means)
    shape = {"diag": ones, "spherical": ones[..., 0], "tied": torch.diag_embed(ones[..., 0, :])}
    return MixtureParameters(weights, means, shape.get(kind, torch.diag_embed(ones)), kind)


def seed_of(random_state: object) -> int | None:
    """A seed from what scikit-learn takes as a random state; None for a new one each time."""
    if random_state is None:
        return None
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError as error:
        raise InvalidArgumentError(f"random_state: {error}") from error
