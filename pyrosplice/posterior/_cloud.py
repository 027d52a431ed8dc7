r"""Integration over three to six hyper-parameters φ by adaptive importance sampling.

Where two hyper-parameters describe the same variation (σ and a concentration), the mass lies along bent ridges that are
narrower than the cells of a grid of few nodes an axis. Here a coarse grid of three, or a central composite design of
more, says where to look, and rounds of points are drawn from a mixture of Gaussian kernels at the points so far, each
as wide as the spread of its neighbours. The last round, from a mixture that it has no part in, is kept; its points have
the weights

.. math:: w_m = \tilde p(\varphi_m \mid y) / q(\varphi_m),

so that nothing is interpolated (population Monte Carlo: Cappé et al. 2004, J. Comput. Graph. Stat. 13:907).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from pyrosplice.posterior._ccd import design, hyper_design
from pyrosplice.posterior._grid import COARSE, coarse_grid, evaluated, nodes_of, plausible
from pyrosplice.posterior._target import Target

logger = logging.getLogger("pyrosplice")

POINTS, ROUNDS, KEPT = 160, 3, 384  # points of a round that learns, such rounds, and points of the last one at least
BROAD = 0.2  # share of the first mixture in every later one
BROAD_WIDTH = 0.5  # sd of its kernels, in steps of the coarse grid
MOST_IN_CLOUD = 6  # hyper-parameters
SCATTERED = 512  # points over the plausible range where there is no coarse grid
FEWEST = 30.0  # effective centres of a mixture, by flattening the weights; and effective points in the end
CENTERS = 512  # most of a mixture
NEIGHBORHOOD = 1.0  # distance of neighbours, in sds of all points
WIDTH, NARROWEST = 0.9, 0.05  # sd of a kernel, in sds of its neighbours; and of all points at least
ENOUGH, AGAIN = 0.2, 3  # share of effective points below which the last round is made again; times at most
LOWEST = 60.0  # nats below the top at which log weights are cut


@dataclass(frozen=True)
class Mixture:
    """Gaussian kernels of a batch of genes.

    ``centers`` (B, M, d), ``roots`` (B, M, d, d) of their covariances, ``log_shares`` (B, M), and what is known at
    the centres, ``coefficients`` (B, M, P, Q).
    """

    centers: Tensor
    roots: Tensor
    log_shares: Tensor
    coefficients: Tensor

    def select(self, genes: Tensor) -> Mixture:
        """The kernels of some of the genes."""
        return Mixture(*(getattr(self, f.name)[genes] for f in fields(self)))

    def sample(self, n_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points (B, S, d), with the coefficients of their centres (B, S, P, Q)."""
        which = torch.multinomial(self.log_shares.exp(), n_points, replacement=True, generator=generator)
        noise = torch.randn(*which.shape, self.centers.shape[-1], generator=generator, dtype=self.centers.dtype)
        gene = torch.arange(len(which))[:, None]
        away = (self.roots[gene, which] @ noise.unsqueeze(-1)).squeeze(-1)
        return self.centers[gene, which] + away, self.coefficients[gene, which]

    def log_prob(self, points: Tensor) -> Tensor:
        """Log density (B, S) at points (B, S, d)."""
        inverse = torch.linalg.inv(self.roots)
        constant = torch.linalg.slogdet(inverse)[1] + self.log_shares - 0.5 * points.shape[-1] * math.log(2 * math.pi)
        turned = (inverse @ self.centers.unsqueeze(-1)).squeeze(-1).unsqueeze(1)
        found = []
        for part in points.split(CENTERS, 1):
            scaled = torch.einsum("bmij,bsj->bsmi", inverse, part) - turned
            found.append(torch.logsumexp(constant.unsqueeze(1) - 0.5 * scaled.square().sum(-1), 2))
        return torch.cat(found, 1)


@dataclass(frozen=True)
class HyperCloud:
    """Weighted points of the posterior of φ of a batch of genes.

    Attributes
    ----------
    points
        (B, M, d).
    log_density
        Log density at the points, (B, M); integrates to one as far as the points can tell.
    log_weights
        (B, M), up to a constant a gene.
    coefficients
        Profiled out at the points, (B, M, P, Q).
    """

    points: Tensor
    log_density: Tensor
    log_weights: Tensor
    coefficients: Tensor

    def select(self, genes: Tensor) -> HyperCloud:
        """The points of some of the genes."""
        return HyperCloud(*(getattr(self, f.name)[genes] for f in fields(self)))

    def sample(self, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw φ (S, B, d) by weight, with its log density (S, B) and the coefficients there (S, B, P, Q).

        One of each n-th of the weight, in random order: a point is drawn at most once more often than its share.
        """
        edges = torch.softmax(self.log_weights, 1).cumsum(1)
        place = torch.rand(len(edges), n_draws, generator=generator, dtype=edges.dtype)
        place = edges[:, -1:] * (torch.arange(n_draws) + place) / n_draws
        rows = torch.searchsorted(edges, place).clamp_max(edges.shape[1] - 1)
        shuffled = torch.rand(rows.shape, generator=generator).argsort(1)
        rows, gene = rows.gather(1, shuffled).T, torch.arange(len(rows))
        return self.points[gene, rows], self.log_density[gene, rows], self.coefficients[gene, rows]


def effective(log_weights: Tensor) -> Tensor:
    """Effective number of points, (B,)."""
    return (2 * torch.logsumexp(log_weights, 1) - torch.logsumexp(2 * log_weights, 1)).exp()


def flattened(log_weights: Tensor) -> Tensor:
    """Log weights (B, M) to the greatest power up to 1 that leaves ``FEWEST`` effective ones; they sum to one."""
    log_weights = (log_weights - log_weights.amax(1, keepdim=True)).clamp_min(-LOWEST)
    low, high = torch.zeros_like(log_weights[:, :1]), torch.ones_like(log_weights[:, :1])
    enough = effective(log_weights)[:, None] >= FEWEST
    for _ in range(20):
        middle = 0.5 * (low + high)
        fine = effective(middle * log_weights)[:, None] >= FEWEST
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    return torch.log_softmax(torch.where(enough, 1.0, low) * log_weights, 1)


def kernels_at(cloud: HyperCloud) -> Mixture:
    """Kernels at the heaviest points."""
    kept = cloud.log_weights.topk(min(cloud.points.shape[1], CENTERS), 1).indices
    gene = torch.arange(len(kept))[:, None]
    points, log_shares = cloud.points[gene, kept], flattened(cloud.log_weights[gene, kept])
    share, eye = log_shares.exp().unsqueeze(-1), torch.eye(points.shape[-1], dtype=points.dtype)
    away = points - (share * points).sum(1, keepdim=True)
    root = torch.linalg.cholesky((share * away).mT @ away + 1e-8 * eye)
    white = torch.linalg.solve_triangular(root, away.mT, upper=False).mT
    near = torch.softmax(log_shares.unsqueeze(1) - 0.5 * (torch.cdist(white, white) / NEIGHBORHOOD).square(), 2)
    squares = (white.unsqueeze(-1) * white.unsqueeze(-2)).flatten(2)
    mean = near @ white
    local = (near @ squares).unflatten(-1, eye.shape) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    roots = root.unsqueeze(1) @ torch.linalg.cholesky(WIDTH**2 * local + NARROWEST**2 * eye)
    return Mixture(points, roots, log_shares, cloud.coefficients[gene, kept])


def hyper_cloud(
    target: Target, coefficients: Tensor, phi: Tensor, n_draws: int, generator: torch.Generator
) -> HyperCloud:
    """Points for ``n_draws`` draws of the genes of ``target``, from coefficients (B, P, Q) and φ (B, d) at the fit."""
    broad = (_on_grid if phi.shape[1] in COARSE else _on_design)(target, coefficients, phi)
    found = _round(target, broad, broad, POINTS, generator)
    for _ in range(ROUNDS - 1):
        found = _joined(found, _round(target, broad, kernels_at(found), POINTS, generator))
    found = _last(target, broad, found, max(KEPT, n_draws), generator, AGAIN)
    lost = int((effective(found.log_weights) < FEWEST).sum())
    if lost:
        logger.warning("hyper: p(φ | y) of %d of %d genes was not found: for these, use method='nuts'.", lost, len(phi))
    size = torch.logsumexp(found.log_weights, 1, keepdim=True) - math.log(found.points.shape[1])
    return replace(found, log_density=found.log_density - size)


def _on_grid(target: Target, coefficients: Tensor, phi: Tensor) -> Mixture:
    """Kernels at the nodes of a coarse grid over all of the plausible range."""
    axes, table, profiled = coarse_grid(target, coefficients, phi)
    nodes, step = nodes_of(axes), axes[..., 1] - axes[..., 0]
    roots = torch.diag_embed(BROAD_WIDTH * step).unsqueeze(1).expand(-1, nodes.shape[1], -1, -1)
    return Mixture(nodes, roots, flattened(table), profiled)


def _on_design(target: Target, coefficients: Tensor, phi: Tensor) -> Mixture:
    """Kernels at the points of a central composite design, and as many again scattered over the plausible range.

    Those of the design are as wide as its split normal density, which may know nothing of a long tail.
    """
    found, d = hyper_design(target, coefficients, phi), phi.shape[1]
    unit = design(d)[:, None].expand(-1, *phi.shape)
    roots = (found.axes * found.scales.mean(1).unsqueeze(1)).unsqueeze(1).expand(-1, len(unit), -1, -1)
    log_shares = phi.new_full((len(phi), len(unit)), -math.log(len(unit)))
    near = Mixture(found.at(unit).transpose(0, 1), roots, log_shares, found.expected(unit).transpose(0, 1))

    low, high = plausible(target, phi)
    place = torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(SCATTERED, dtype=phi.dtype)
    points = low + (high - low) * place.unsqueeze(1)
    density, profiled = evaluated(target, coefficients, points)
    roots = torch.diag_embed(BROAD_WIDTH * SCATTERED ** (-1 / d) * (high - low)).unsqueeze(1)
    roots = roots.expand(-1, SCATTERED, -1, -1)
    far = Mixture(points.transpose(0, 1), roots, flattened(density.T), profiled.transpose(0, 1))
    both = _joined(near, far)
    return replace(both, log_shares=both.log_shares - math.log(2))


def _last(
    target: Target, broad: Mixture, found: HyperCloud, n_points: int, generator: torch.Generator, again: int
) -> HyperCloud:
    """The round that is kept, made again from all that is known for genes where few of its points have the weight."""
    new = _round(target, broad, kernels_at(found), n_points, generator)
    poor = (effective(new.log_weights) < ENOUGH * n_points).nonzero()[:, 0]
    if not (again and len(poor)):
        return new
    known = _joined(found, new).select(poor)
    better = _last(target.select(poor), broad.select(poor), known, n_points, generator, again - 1)
    for f in fields(HyperCloud):
        getattr(new, f.name)[poor] = getattr(better, f.name)
    return new


def _round(target: Target, broad: Mixture, learnt: Mixture, n_points: int, generator: torch.Generator) -> HyperCloud:
    """Points from both mixtures, ``BROAD`` of them from the broad one."""
    n_broad = round(BROAD * n_points)
    parts = [broad.sample(n_broad, generator), learnt.sample(n_points - n_broad, generator)]
    points, start = (torch.cat(both, 1) for both in zip(*parts, strict=True))
    density, profiled = (x.transpose(0, 1) for x in evaluated(target, start.transpose(0, 1), points.transpose(0, 1)))
    share = n_broad / n_points
    chance = torch.logaddexp(broad.log_prob(points) + math.log(share), learnt.log_prob(points) + math.log1p(-share))
    return HyperCloud(points, density, density - chance, profiled)


PointsOrKernels = TypeVar("PointsOrKernels", HyperCloud, Mixture)


def _joined(one: PointsOrKernels, other: PointsOrKernels) -> PointsOrKernels:
    return replace(one, **{f.name: torch.cat([getattr(x, f.name) for x in (one, other)], 1) for f in fields(one)})
