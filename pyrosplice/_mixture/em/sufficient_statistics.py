r"""Quadratic features, and the two matrix products of which EM for Gaussian mixtures is made.

The log joint density of a cell and a component is linear in features of the cell,

.. math:: \log w_m + \log N(y \mid \mu_m, \Sigma_m) = T_m^\top f(y) + q(y),

and all that the M-step needs is linear in the same features, :math:`S_m = \sum_i r_{im} f(y_i)`:

========= ======================= ==================================================================
type      f(y)                    remark
========= ======================= ==================================================================
full      1, y, upper yyᵀ         P = 1 + D + D(D + 1)/2
tied      1, y                    yᵀΣ⁻¹y is the same for all components; Σ yyᵀ never changes
diag      1, y, y²                P = 1 + 2D
spherical 1, y, yᵀy               P = 2 + D
========= ======================= ==================================================================

Cells are columns, features rows: features ``(..., P, N)``, coefficients and statistics ``(..., M, P)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType

NEVER = -1e30
"""Log weight of a component that no cell may have; finite, so that products with it stay finite."""
PIECES, PIECES_UP_TO = 8, 48
"""Into how many products a sum over the cells of one data set is cut, and up to how many features that is faster."""


@dataclass(frozen=True)
class Moments:
    """Weighted sums over cells given their responsibilities.

    Attributes
    ----------
    counts
        ``(..., M)``.
    sums
        Sums of y, ``(..., M, D)``.
    squares
        Sums of yyᵀ, y² or yᵀy, shaped as the covariances are: tied has the total over components.
    origin
        What y is measured from in the sums and squares of each component, ``(..., M, D)``; None is zero.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor
    origin: Tensor | None = None

    def select(self, index: Tensor | tuple[Tensor, ...]) -> Moments:
        """The moments at ``index`` of the leading batch dimensions."""
        origin = None if self.origin is None else self.origin[index]
        return Moments(self.counts[index], self.sums[index], self.squares[index], origin)


def n_features(dim: int, covariance_type: CovarianceType) -> int:
    """Number P of features of a cell."""
    more = {"full": dim * (dim + 1) // 2, "tied": 0, "diag": dim, "spherical": 1}
    return 1 + dim + more[covariance_type]


def quadratic_features(y: Tensor, covariance_type: CovarianceType) -> Tensor:
    """Features ``(..., P, N)`` of standardised cells ``(..., D, N)``."""
    dim = y.shape[-2]
    out = y.new_empty(*y.shape[:-2], n_features(dim, covariance_type), y.shape[-1])
    out[..., 0, :] = 1
    out[..., 1 : 1 + dim, :] = y
    squares = out[..., 1 + dim :, :]
    if covariance_type == "diag":
        torch.mul(y, y, out=squares)
    elif covariance_type == "spherical":
        torch.sum(y * y, -2, keepdim=True, out=squares)
    elif covariance_type == "full":
        start = 0
        for i in range(dim):
            torch.mul(y[..., i : i + 1, :], y[..., i:, :], out=squares[..., start : start + dim - i, :])
            start += dim - i
    return out


def coefficients(parameters: MixtureParameters) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients T ``(..., M, P)``, which components are sound ``(..., M)``, smallest variance ``(...)``.

    Variances are those along the Cholesky factor's diagonal, a lower bound up to a factor of D on how far the
    statistics cancel. A component whose covariance is not positive definite gets the coefficients of the unit
    covariance and False.
    """
    kind, means = parameters.covariance_type, parameters.means
    dim = means.shape[-1]
    if kind in ("full", "tied"):
        factor, info = torch.linalg.cholesky_ex(parameters.covariances)
        sound = (info == 0) & factor.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)
        if not bool(sound.all()):
            factor = torch.where(sound[..., None, None], factor, torch.eye(dim).to(factor))
        precision = torch.cholesky_inverse(factor)
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        half_log_det = -pivots.log().sum(-1)
        if kind == "tied":
            precision, half_log_det, sound = precision[..., None, :, :], half_log_det[..., None], sound[..., None]
        linear = (precision @ means[..., None])[..., 0]
        smallest = pivots.square().flatten(-1 - (kind == "full")).amin(-1)
    else:
        variances = parameters.covariances if kind == "diag" else parameters.covariances[..., None]
        least, most = torch.aminmax(variances, dim=-1)
        sound = (least > 0) & (most < torch.inf)
        if not bool(sound.all()):
            variances = torch.where(sound[..., None], variances, torch.ones_like(variances))
        precision = variances.reciprocal()
        half_log_det = -0.5 * variances.expand(means.shape).log().sum(-1)
        linear = precision * means
        smallest = variances.flatten(-2).amin(-1)
    log_weights = parameters.weights.log().clamp_min(NEVER) - 0.5 * dim * math.log(2 * math.pi)
    constant = half_log_det + log_weights - 0.5 * (linear * means).sum(-1)
    table = [constant[..., None], linear]
    if kind == "full":
        upper, factors, _ = _upper_triangle(dim, means.device)
        table.append(precision.flatten(-2)[..., upper] * factors)
    elif kind != "tied":
        table.append(-0.5 * precision)
    return torch.cat(table, -1), sound.expand(parameters.weights.shape), smallest


@cache
def _upper_triangle(dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where the upper triangle is in a flat matrix, its factors in −½ yᵀPy, and where in it a full matrix is."""
    rows, cols = torch.triu_indices(dim, dim, device=device)
    index = torch.empty(dim, dim, dtype=torch.int64, device=device)
    index[rows, cols] = index[cols, rows] = torch.arange(len(rows), device=device)
    factors = torch.where(rows == cols, -0.5, -1.0).to(torch.float64)
    return rows * dim + cols, factors, index.flatten()


def moments_of(statistics: Tensor, dim: int, covariance_type: CovarianceType, total_squares: Tensor) -> Moments:
    """Statistics ``(..., M, P)`` unpacked; ``total_squares`` ``(..., D, D)`` is used by tied covariances alone."""
    counts, sums, rest = statistics[..., 0], statistics[..., 1 : 1 + dim], statistics[..., 1 + dim :]
    if covariance_type == "tied":
        return Moments(counts, sums, total_squares)
    if covariance_type == "diag":
        return Moments(counts, sums, rest)
    if covariance_type == "spherical":
        return Moments(counts, sums, rest[..., 0])
    index = _upper_triangle(dim, statistics.device)[2]
    return Moments(counts, sums, rest[..., index].unflatten(-1, (dim, dim)))


def responsibilities_(scores: Tensor) -> Tensor:
    """Turn log joint densities ``(..., M, N)`` into responsibilities in place; returns their log sums ``(..., N)``."""
    largest = scores.amax(-2)
    scores.sub_(largest.unsqueeze(-2)).exp_()
    total = scores.sum(-2)
    scores.div_(total.unsqueeze(-2))
    return largest.add_(total.log_())


def bounded_responsibilities_(scores: Tensor, table: Tensor, features: Tensor) -> Tensor:
    """Work out :func:`responsibilities_` of ``scores`` ``(B, J, M, N)`` of order one at most: two passes fewer.

    Exponentials are taken as they are. Cells that this takes out of the range of the dtype are done over, from
    ``scores = table @ features``, ``(B, J · M, P)`` and ``(B, P, N)``. A component whose density is lost where the
    cell stays in range has a responsibility below the square of the rounding error.
    """
    total = scores.exp_().sum(-2)
    limits = torch.finfo(scores.dtype)
    least, most = limits.tiny / limits.eps**2, limits.max * limits.eps
    lowest, highest = torch.aminmax(total)
    columns = None
    if not bool((lowest >= least) & (highest <= most)):
        lost = ~((total >= least) & (total <= most))
        columns = lost.flatten(0, -2).any(0).nonzero()[:, 0]
    scores.mul_(total.reciprocal().unsqueeze(-2))
    logs = total.log_()
    if columns is not None:
        careful = torch.bmm(table, features[..., columns]).view(*scores.shape[:-1], -1)
        logs[..., columns] = responsibilities_(careful)
        scores[..., columns] = careful
    return logs


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Products a bᵀ of ``(B, M, N)`` and ``(B, P, N)``, in float64; one long sum is cut for the threads to share."""
    whole = a.shape[-1] // PIECES * PIECES
    if len(a) > 1 or whole == 0 or b.shape[1] > PIECES_UP_TO:
        return torch.bmm(a, b.mT).to(torch.float64)
    left, right = (x[0, :, :whole].unflatten(1, (PIECES, -1)).movedim(1, 0) for x in (a, b))
    out = torch.bmm(left, right.mT).sum(0, keepdim=True, dtype=torch.float64)
    return out if whole == a.shape[-1] else out + torch.bmm(a[..., whole:], b[..., whole:].mT)


def nearest_(scores: Tensor) -> Tensor:
    """Turn scores ``(..., M, N)`` into one-hot rows of the largest in place; returns it ``(..., N)``."""
    best, label = scores.max(-2)
    scores.zero_().scatter_(-2, label.unsqueeze(-2), 1)
    return best
