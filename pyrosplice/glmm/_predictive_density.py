r"""Log density of counts whose linear predictor is Gaussian: adaptive quadrature, or draws where it is long.

.. math::
    p(y_I) = \int \prod_{i \in I} p(y_i \mid \eta_i)\, N(\eta_I;\, m, R R')\, d\eta_I
           = \int e^{h(x)} \frac{dx}{(2\pi)^{D/2}}, \qquad
    h(x) = \sum_i \log p(y_i \mid (m + R x)_i) - \tfrac12 x'x

over one spot or a group I of them. With x̂ the mode of h, :math:`H = I + R' W R` its curvature there and
:math:`x = \hat x + H^{-1/2} z`, the integral is :math:`|H|^{-1/2}\, E_z\, e^{h(x) + z'z/2}` with z standard normal:
Gauss–Hermite nodes for z of up to three numbers, else pairs ± of draws. R may be singular.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrosplice._linalg.blocks import matmul, matvec, nan_where_indefinite, positive_part
from pyrosplice.likelihoods._contract import Likelihood

# Nodes an axis: within 1e-6 nats of 61 nodes where one molecule to 200 meet a standard deviation of 1 or less, within
# 2e-3 at 3 (tests/glmm/test_predictive_density.py). Rougher ones, 1e-3 at 1, where draws are averaged over.
FINE = {1: 25, 2: 15, 3: 9}
ROUGH = {1: 7, 2: 5, 3: 4}
N_DRAWS = 400  # of longer predictors
MOST_STEPS, DECREMENT = 60, 1e-8  # of Newton's search, nats²: the rule need not sit at the mode exactly
SMALL = 4  # numbers of predictors up to which elementwise operations are faster than LAPACK
AT_ONCE = 2**17  # predictors at some of the points


@dataclass(frozen=True)
class SpotGroups:
    """Counts of M groups of I spots each, genes first, and their likelihood.

    Attributes
    ----------
    likelihood
        With its hyper-parameters bound, ``(B, 1)`` each.
    counts
        ``(B, M, I, K)``.
    """

    likelihood: Likelihood
    counts: Tensor

    def kernel(self, eta: Tensor) -> Tensor:
        """Log density ``(..., B, M)`` of each group at predictors ``(..., B, M, I, Q)``, less :meth:`constant`."""
        return self._summed(self.likelihood.kernel(self.counts.flatten(1, 2), eta.flatten(-3, -2)))

    def constant(self, like: Tensor) -> Tensor:
        """What of it does not depend on the predictors, which are as ``like``."""
        counts, zero = self.counts.flatten(1, 2), torch.zeros_like(like).flatten(1, 2)
        return self._summed(self.likelihood.log_prob(counts, zero) - self.likelihood.kernel(counts, zero))

    def _summed(self, density: Tensor) -> Tensor:
        return density.unflatten(-1, self.counts.shape[1:3]).sum(-1)

    def slopes(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Score ``(B, M, I, Q)`` and information ``(B, M, I, Q, Q)``, of that its positive part."""
        counts, flat = self.counts.flatten(1, 2), eta.flatten(1, 2)
        score, information = self.likelihood.score(counts, flat), self.likelihood.information(counts, flat)
        if not self.likelihood.log_concave:
            information = positive_part(information)
        return score.unflatten(1, eta.shape[1:3]), information.unflatten(1, eta.shape[1:3])


def log_predictive(
    spots: SpotGroups, mean: Tensor, root: Tensor, *, nodes: dict[int, int] | None = None, seed: int = 0
) -> Tensor:
    """Log density of the counts of every group, ``(B, M)``; NaN where mean or root are.

    Parameters
    ----------
    spots
        The counts.
    mean
        Mean m of their linear predictors, ``(B, M, I, Q)``.
    root
        R, a root of their covariance, ``(B, M, I Q, D)``, predictors fastest.
    nodes
        Nodes an axis, by D; draws for a D without.
    seed
        Of the draws.
    """
    x, spread, logdet = _mode(spots, mean, root)
    center, through = _moved(mean, root, x), matmul(root, spread) if _is_small(root) else root @ spread
    total = torch.full_like(logdet, -torch.inf)
    points, log_weights = _rule(root.shape[-1], FINE if nodes is None else nodes, seed)
    for some in torch.arange(len(points)).split(max(AT_ONCE // mean.numel(), 1)):
        z = points[some].to(mean)
        eta = center + torch.einsum("bmdk,sk->sbmd", through, z).reshape(len(z), *mean.shape)
        square = (x + torch.einsum("bmdk,sk->sbmd", spread, z)).square().sum(-1)
        log_weight = log_weights[some].to(mean) + 0.5 * z.square().sum(-1)
        value = spots.kernel(eta) - 0.5 * square + log_weight[:, None, None]
        total = torch.logaddexp(total, torch.logsumexp(value, 0))
    return total - 0.5 * logdet + spots.constant(mean)


def _moved(mean: Tensor, root: Tensor, x: Tensor) -> Tensor:
    return mean + matvec(root, x).reshape(mean.shape)


def _mode(spots: SpotGroups, mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mode x̂ ``(B, M, D)`` by Newton's method, ``H^{-1/2}`` ``(B, M, D, D)`` and ``log |H|`` ``(B, M)`` there."""
    x = root.new_zeros(*root.shape[:2], root.shape[-1])
    value = spots.kernel(mean)
    for _ in range(MOST_STEPS):
        score, information = spots.slopes(_moved(mean, root, x))
        spread, logdet = _inverse_root(_curvature(root, information))
        gradient = matvec(root.mT, score.flatten(2)) - x
        scaled = matvec(spread.mT, gradient)
        step, decrement = matvec(spread, scaled), scaled.square().sum(-1)
        if not bool((decrement > DECREMENT).any()):
            break
        x, value = _line_search(spots, (mean, root), (x, value), (step, decrement))
    return x, spread, logdet


def _is_small(root: Tensor) -> bool:
    """Whether a call of LAPACK for each matrix costs more than the arithmetic."""
    return root.shape[-1] <= SMALL


def _curvature(root: Tensor, information: Tensor) -> Tensor:
    """Minus the second derivative in x, ``I + R' W R``: (B, M, D, D)."""
    blocks = root.unflatten(2, information.shape[2:4])
    weighted = matmul(information, blocks).flatten(2, 3)
    curvature = matmul(root.mT, weighted) if _is_small(root) else root.mT @ weighted
    torch.diagonal(curvature, dim1=-2, dim2=-1).add_(1.0)
    return curvature


def _inverse_root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Upper triangular U with ``U U' = H⁻¹``, and log |H|."""
    if not _is_small(matrix):
        factor = nan_where_indefinite(matrix)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        spread = torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True)
        return spread, 2 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    out, logdet = torch.zeros_like(matrix), torch.zeros_like(matrix[..., 0, 0])
    for k in range(matrix.shape[-1]):  # column k is e_k made orthogonal, in H's inner product, to those before
        column = torch.zeros_like(matrix[..., 0])
        column[..., k] = 1.0
        if k:
            column = column - matvec(out[..., :k], matvec(out[..., :k].mT, matrix[..., k]))
        norm = (column * matvec(matrix, column)).sum(-1)
        out[..., k] = column * norm.rsqrt().unsqueeze(-1)
        logdet += norm.log()
    return out, logdet


def _line_search(
    spots: SpotGroups, gaussian: tuple[Tensor, Tensor], at: tuple[Tensor, Tensor], newton: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Halve the steps that do not bring enough."""
    (x, value), (step, decrement) = at, newton
    length = torch.ones_like(value)
    for _ in range(30):
        moved = x + length.unsqueeze(-1) * step
        reached = spots.kernel(_moved(*gaussian, moved)) - 0.5 * moved.square().sum(-1)
        short = reached < value + 1e-4 * length * decrement - 1e-12 * value.abs()
        if not bool(short.any()):
            break
        length = torch.where(short, 0.5 * length, length)
    return moved, reached


def _rule(dimension: int, nodes: dict[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Points ``(R, D)`` and log weights ``(R,)`` of means over standard normal numbers."""
    if dimension not in nodes:
        generator = torch.Generator().manual_seed(int(seed))
        half = torch.randn(N_DRAWS // 2, dimension, generator=generator, dtype=torch.float64)
        return torch.cat([half, -half]), half.new_full((N_DRAWS,), -math.log(N_DRAWS))
    place, weight = np.polynomial.hermite_e.hermegauss(nodes[dimension])
    points = np.array(list(itertools.product(place, repeat=dimension)))
    weights = np.array(list(itertools.product(np.log(weight / weight.sum()), repeat=dimension))).sum(1)
    return torch.from_numpy(points), torch.from_numpy(weights)
