r"""Integration over the hyper-parameters φ of each gene on a grid of its own (Rue, Martino and Chopin 2009).

At a node the coefficients Γ are profiled out and integrated by Laplace's method,

.. math:: \log p(\varphi \mid y) \approx \log \tilde p(y, \hat\Gamma, \varphi) - \tfrac12 \log |H_\Gamma(\varphi)| + c .

A coarse grid over all of the plausible range finds the box that holds the mass; a fine one covers the box, and is made
again for a gene whose mass is in half of its box. Between nodes the log density is interpolated by cubic splines. Three
hyper-parameters have only the coarse grid here: :mod:`pyrosplice.posterior._cloud` goes on from it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pandas as pd
import torch
from scipy.ndimage import zoom
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.posterior._problem import Drawable, target_of
from pyrosplice.posterior._target import Target

SIGMA_RANGE, THETA_RANGE, HYPER_RANGE = (-6.5, 1.7), (-8.0, 8.0), (-4.0, 4.0)
COARSE = {1: 17, 2: 11, 3: 7}
FINE = {1: 21, 2: 13}
NARROW = 0.5  # share of the box below which the grid is made again
DEPTH = 9.0  # nats below the top at which the mass is cut off
REFINED = 6  # cells between two nodes
LANES = 512
GAIN, ROUNDS = 0.5, 5  # nats that a Newton step in the coefficients may promise unseen; profiles of a node at most


@dataclass(frozen=True)
class HyperGrid:
    """Posterior of φ of a batch of genes.

    Attributes
    ----------
    axes
        Nodes of each gene and dimension, (B, d, n).
    log_density
        Log density at the nodes, (B, n, ..., n), up to a constant.
    coefficients
        Profiled out at the nodes, (B, n^d, P, Q).
    """

    axes: Tensor
    log_density: Tensor
    coefficients: Tensor

    def sample(self, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw φ (S, B, d), with its log density (S, B) as drawn and coefficients at the nearest node (S, B, P, Q)."""
        found = [self._gene(gene, n_draws, generator) for gene in range(len(self.axes))]
        return tuple(torch.stack(parts, 1) for parts in zip(*found, strict=True))  # type: ignore[return-value]

    def _gene(self, gene: int, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        axes, table = self.axes[gene], self.log_density[gene].numpy()
        d, n = axes.shape
        size = REFINED * (n - 1) + 1
        fine = zoom(table, size / n, order=3, mode="nearest", grid_mode=False)
        fine = torch.from_numpy(fine).flatten()
        step = (axes[:, -1] - axes[:, 0]) / (size - 1)
        chance = torch.softmax(fine, 0)
        cell = torch.multinomial(chance, n_draws, replacement=True, generator=generator)
        place = torch.stack(torch.unravel_index(cell, (size,) * d), -1)
        jitter = torch.rand(n_draws, d, generator=generator, dtype=axes.dtype) - 0.5
        phi = axes[:, 0] + step * (place + jitter)
        log_density = chance[cell].log() - step.log().sum()
        nearest = torch.round(place / REFINED).long()
        node = sum((nearest[:, k] * n ** (d - 1 - k) for k in range(d)), torch.zeros_like(cell))
        return phi, log_density, self.coefficients[gene, node]


def hyper_grid(target: Target, coefficients: Tensor, phi: Tensor) -> HyperGrid:
    """Grid of the genes of ``target`` around their estimates, coefficients (B, P, Q) and φ (B, d ≤ 2)."""
    d = phi.shape[1]
    coarse, table, _ = coarse_grid(target, coefficients, phi)
    low, high = _box(coarse, table)
    fine = _axes(low, high, FINE[d])
    table, profiled = _evaluate(target, coefficients, fine)
    low, high = _box(fine, table)
    narrow = (high - low < NARROW * (fine[..., -1] - fine[..., 0])).any(1).nonzero()[:, 0]
    if len(narrow):
        fine[narrow] = _axes(low[narrow], high[narrow], FINE[d])
        table[narrow], profiled[narrow] = _evaluate(target.select(narrow), coefficients[narrow], fine[narrow])
    return HyperGrid(fine, table.reshape(len(table), *[FINE[d]] * d), profiled)


def coarse_grid(target: Target, coefficients: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Axes (B, d ≤ 3, n) over the plausible range; log density (B, n^d), coefficients (B, n^d, P, Q) at the nodes."""
    axes = _axes(*plausible(target, phi), COARSE[phi.shape[1]])
    return axes, *_evaluate(target, coefficients, axes)


def nodes_of(axes: Tensor) -> Tensor:
    """Nodes (B, n^d, d) of the product of axes (B, d, n)."""
    d, n = axes.shape[1:]
    return axes[:, torch.arange(d), torch.tensor(list(itertools.product(range(n), repeat=d)))]


def plausible(target: Target, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Limits (B, d) of φ that leave out nothing one would believe."""
    width = target.sigma.shape[1]
    ranges = [SIGMA_RANGE] * (width * target.free_sigma) + [THETA_RANGE] * (width * target.free_theta)
    limits = torch.tensor(ranges, dtype=phi.dtype).reshape(-1, 2).expand(len(phi), -1, 2)
    names, given = target.hyper, target.engine.likelihood.hyperparameters
    start = phi.new_tensor([given[name] for name in names]).log()  # an estimate may have run to zero or infinity
    center = phi[:, limits.shape[1] :].clamp(start + HYPER_RANGE[0] / 2, start + HYPER_RANGE[1] / 2)
    own = center[..., None] + torch.tensor(HYPER_RANGE, dtype=phi.dtype)
    return torch.cat([limits, own], 1).unbind(-1)  # type: ignore[return-value]


def _axes(low: Tensor, high: Tensor, n: int) -> Tensor:
    return low.unsqueeze(-1) + (high - low).unsqueeze(-1) * torch.linspace(0, 1, n, dtype=low.dtype)


def _box(axes: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Per gene, the range of the nodes within ``DEPTH`` of the top and one more node on each side."""
    n_genes, d, n = axes.shape
    kept = (table >= table.amax(1, keepdim=True) - DEPTH).reshape(n_genes, *[n] * d)
    low, high = torch.empty(n_genes, d, dtype=axes.dtype), torch.empty(n_genes, d, dtype=axes.dtype)
    for k in range(d):
        others = [axis for axis in range(1, d + 1) if axis != k + 1]
        line = kept.amax(others) if others else kept
        first = line.int().argmax(1)
        last = n - 1 - line.flip(1).int().argmax(1)
        step = axes[:, k, 1] - axes[:, k, 0]
        low[:, k] = axes[:, k].gather(1, first[:, None])[:, 0] - step
        high[:, k] = axes[:, k].gather(1, last[:, None])[:, 0] + step
    return low, high


def _evaluate(target: Target, coefficients: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Log density (B, n^d) at all nodes, and the coefficients there; a node that fails is far below the others."""
    table, found = evaluated(target, coefficients, nodes_of(axes).transpose(0, 1))
    top = table.amax(0)
    if not bool(torch.isfinite(top).all()):
        raise InvalidArgumentError("hyper: a gene has no node with a finite posterior density; look at its fit.")
    return (table - top).clamp_min(-60.0).T, found.transpose(0, 1)


def evaluated(target: Target, start: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Log density (T, B) at any number of points (T, B, d), some at a time, and the coefficients there (T, B, P, Q).

    The density is −∞ where it cannot be had. The search for the coefficients starts at ``start``, (T, B, P, Q) or one
    for all points of a gene, (B, P, Q).
    """
    size = max(LANES // points.shape[1], 1)
    start = start.expand(len(points), *start.shape[-3:])
    lanes = zip(start.split(size), points.split(size), strict=True)
    values, found = zip(*(_profiled(target, *part) for part in lanes), strict=True)
    density = torch.cat(values)
    return torch.where(torch.isfinite(density), density, -torch.inf), torch.cat(found)


def _profiled(target: Target, start: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Log density (T, B) at nodes (T, B, d), the coefficients at their optimum (T, B, P, Q) and integrated over.

    A Newton step in the coefficients, and the quadratic value it promises, is believed where that is a small gain;
    elsewhere it is taken and looked at, as a promise from afar can be wrong by any number of nats.
    """
    genes, at = torch.arange(phi.shape[1]).repeat(len(phi)), phi.flatten(0, 1)
    value, optimum, lanes = phi.new_full((len(at),), -torch.inf), start.flatten(0, 1).clone(), torch.arange(len(at))
    for round_ in range(ROUNDS):
        profile = target.select(genes[lanes]).profile(optimum[lanes], at[lanes])
        moved, top = profile.optimum()
        sign, logdet = torch.linalg.slogdet(torch.nan_to_num(profile.information))
        promising = top - profile.value > GAIN
        if round_ + 1 == ROUNDS:
            top = torch.where(promising, profile.value, top)
        value[lanes], optimum[lanes] = top - 0.5 * torch.where(sign > 0, logdet, torch.nan), moved
        lanes = lanes[promising]
        if not len(lanes):
            break
    return value.reshape(phi.shape[:2]), optimum.reshape(start.shape)


def grid_table(model: Drawable, gene: int) -> pd.DataFrame:
    """Posterior density of (σ, θ) of one gene at the nodes of its grid: ``sigma``, ``theta``, ``log_density``.

    As a density of (log σ, logit θ), up to a constant; for models with one variance component and no other
    hyper-parameters.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> from pyrosplice.data import simulate_counts
    >>> from pyrosplice.posterior import grid_table
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))))
    >>> counts = simulate_counts(covariance, n_genes=2, depth=10, sigma=0.7, theta=0.5, seed=0)
    >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, priors="weak")
    >>> model.setup_data(counts, corr_sp=covariance)
    >>> model.fit(quiet=True)
    >>> table = grid_table(model, 0)
    >>> table.columns.tolist(), bool(table.loc[table["log_density"].idxmax(), "sigma"] > 0.1)
    (['sigma', 'theta', 'log_density'], True)
    """
    target, coefficients, phi = target_of(model.posterior_problem(), torch.tensor([gene]), hyper="integrate")
    if not (target.free_sigma and target.free_theta and phi.shape[1] == 2):
        raise InvalidArgumentError("model: expected one σ and one θ a gene, both estimated, and no hyper-parameters.")
    found = hyper_grid(target, coefficients, phi)
    log_sigma, logit = torch.meshgrid(*found.axes[0], indexing="ij")
    return pd.DataFrame(
        {
            "sigma": log_sigma.exp().flatten().numpy(),
            "theta": torch.sigmoid(logit).flatten().numpy(),
            "log_density": found.log_density[0].flatten().numpy(),
        }
    )
