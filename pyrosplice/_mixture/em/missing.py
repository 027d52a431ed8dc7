r"""E-step for cells with missing values, marginalised under any covariance type.

With o the observed and m the missing features of a cell, its density is :math:`N(x_o \mid \mu_o, \Sigma_{oo})`,
and the M-step needs :math:`E[x_m \mid x_o] = \mu_m + \Sigma_{mo}\Sigma_{oo}^{-1}(x_o - \mu_o)` and
:math:`\Sigma_{mm} - \Sigma_{mo}\Sigma_{oo}^{-1}\Sigma_{om}` (Little & Rubin, Statistical Analysis with Missing
Data, chapter 11). Values are taken to be missing at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._mixture.em.m_step import Standardization
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.sufficient_statistics import NEVER, Moments, responsibilities_
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType
from pyrosplice.errors import InvalidArgumentError

GATHER_ELEMENTS = 4_000_000
_MOMENTS = ("counts", "sums", "squares", "origin")


@dataclass(frozen=True)
class _Conditionals:
    """A mixture seen through U patterns of observed features."""

    weight: Tensor  # (U, M, D, D): inverse of the observed block, 0 elsewhere
    log_constant: Tensor  # (U, M)
    regression: Tensor  # (U, M, D, D): Σ weight
    residual: Tensor  # (U, M, D, D): conditional covariance
    sound: Tensor  # (M,)

    @classmethod
    def of(cls, parameters: MixtureParameters, observed: Tensor) -> _Conditionals:
        matrix = parameters.covariance_matrices()
        both = observed[:, None, :, None] * observed[:, None, None, :]
        padded = matrix * both + torch.diag_embed(1 - observed)[:, None]
        factor, info = torch.linalg.cholesky_ex(padded)
        sound = (info == 0) & factor.isfinite().flatten(-2).all(-1)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factor = torch.where(sound[..., None, None], factor, eye)
        weight = torch.cholesky_inverse(factor) * both
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = -log_det - 0.5 * observed.sum(-1, keepdim=True) * math.log(2 * math.pi)
        regression = matrix @ weight
        log_weights = parameters.weights.log().clamp_min(NEVER)
        return cls(weight, constant + log_weights, regression, matrix - regression @ matrix, sound.all(0))


def missing_log_joint(parameters: MixtureParameters, x: Tensor) -> Tensor:
    """Log joint density ``(N, M)`` of cells ``(N, D)`` with NaN where unobserved, and one mixture's components."""
    observed = (~x.isnan()).to(torch.float64)
    patterns, pattern = torch.unique(observed, dim=0, return_inverse=True)
    conditionals = _Conditionals.of(parameters, patterns)
    step = _rows_at_once(parameters)
    parts = [
        _joint(conditionals, parameters, x[a : a + step], pattern[a : a + step], observed[a : a + step])[0]
        for a in range(0, len(x), step)
    ]
    return torch.cat(parts)


def _rows_at_once(parameters: MixtureParameters) -> int:
    m, d = parameters.means.shape[-2:]
    return max(1, GATHER_ELEMENTS // (m * d * d))


def _joint(
    conditionals: _Conditionals, parameters: MixtureParameters, x: Tensor, pattern: Tensor, observed: Tensor
) -> tuple[Tensor, Tensor]:
    gap = (torch.nan_to_num(x)[:, None] - parameters.means) * observed[:, None]
    scaled = (conditionals.weight[pattern] @ gap[..., None])[..., 0]
    return conditionals.log_constant[pattern] - 0.5 * (gap * scaled).sum(-1), gap


class MissingExpectation:
    """E-step of one data set with NaN where a value is missing.

    Parameters
    ----------
    rows
        The cells, ``B = 1``.
    standardization
        Diagonal: features must not be mixed.
    covariance_type
        Covariance type of the mixtures.
    """

    def __init__(self, rows: RowBlocks, standardization: Standardization, covariance_type: CovarianceType) -> None:
        self.rows, self.standardization, self.covariance_type = rows, standardization, covariance_type
        self.total_weight = rows.total_weight()
        seen = sum((_observed(rows, a, b) * _column(rows, a, b)).sum(0, keepdim=True) for a, b in rows.spans())
        scale = standardization.inverse.diagonal(dim1=-2, dim2=-1).log()
        self._log_det = (seen * scale).sum(-1)

    def select(self, sets: Tensor) -> MissingExpectation:
        """Return itself: there is one data set."""
        return self

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """Run an E-step over all cells for each of the J mixtures ``(1, J, M, ...)``."""
        zero = torch.zeros((), dtype=torch.int64)
        each = [self._one(parameters.select((zero, torch.tensor(j)))) for j in range(parameters.weights.shape[1])]
        log_likelihood = torch.stack([e[0] for e in each])[None] + self._log_det
        moments = Moments(*(torch.stack([getattr(e[1], f) for e in each])[None] for f in _MOMENTS))
        return log_likelihood, moments, torch.stack([e[2] for e in each])[None]

    def _one(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        m, d = parameters.means.shape
        total = parameters.means.new_zeros(())
        counts, sums = total.new_zeros(m), total.new_zeros(m, d)
        squares, sound = total.new_zeros(m, d, d), torch.ones(m, dtype=torch.bool, device=total.device)
        step = min(self.rows.size, _rows_at_once(parameters))
        for a in range(0, self.rows.n_rows, step):
            b = min(a + step, self.rows.n_rows)
            x, observed = self._scaled(a, b), _observed(self.rows, a, b)
            patterns, pattern = torch.unique(observed, dim=0, return_inverse=True)
            conditionals = _Conditionals.of(parameters, patterns)
            joint, gap = _joint(conditionals, parameters, x, pattern, observed)
            resp = joint.mT.contiguous()
            weight = _column(self.rows, a, b)
            total = total + (responsibilities_(resp) * weight[:, 0]).sum()
            resp = resp * weight[:, 0]
            filled = (conditionals.regression[pattern] @ gap[..., None])[..., 0].movedim(1, 0)
            per_pattern = resp.new_zeros(m, len(patterns)).index_add_(1, pattern, resp)
            counts = counts + resp.sum(1)
            sums = sums + (resp[..., None] * filled).sum(1)
            squares = squares + (resp[..., None] * filled).mT @ filled
            squares = squares + torch.einsum("mu,umij->mij", per_pattern, conditionals.residual)
            sound = sound & conditionals.sound
        return total, Moments(counts, sums, self._shaped(squares), parameters.means), sound.all()

    def _scaled(self, a: int, b: int) -> Tensor:
        scale = self.standardization.inverse[0].diagonal()
        return (self.rows.block(a, b)[0] - self.standardization.shift) * scale

    def _shaped(self, squares: Tensor) -> Tensor:
        if self.covariance_type == "tied":
            return squares.sum(0)
        if self.covariance_type == "full":
            return squares
        diagonal = squares.diagonal(dim1=-2, dim2=-1)
        return diagonal if self.covariance_type == "diag" else diagonal.sum(-1)


def _observed(rows: RowBlocks, a: int, b: int) -> Tensor:
    return (~rows.block(a, b)[0].isnan()).to(torch.float64)


def _column(rows: RowBlocks, a: int, b: int) -> Tensor:
    weights = rows.block_weights(a, b)
    return torch.ones(b - a, 1, dtype=torch.float64, device=rows.device) if weights is None else weights[0][:, None]


def observed_mean_and_variance(rows: RowBlocks) -> tuple[Tensor, Tensor]:
    """Mean ``(1, D)`` of the observed values of each feature, and their covariance as a diagonal ``(1, D, D)``."""
    origin = torch.nan_to_num(rows.block(0, 1)[:, 0])
    seen = first = torch.zeros_like(origin)
    for a, b in rows.spans():
        weight = _observed(rows, a, b) * _column(rows, a, b)
        seen = seen + weight.sum(0)
        first = first + (weight * torch.nan_to_num(rows.block(a, b)[0] - origin)).sum(0)
    if bool((seen == 0).any()):
        empty = (seen[0] == 0).nonzero()[:, 0].tolist()
        raise InvalidArgumentError(f"X: features {empty} have no observed value; leave them out.")
    mean = origin + first / seen
    second = torch.zeros_like(mean)
    for a, b in rows.spans():
        gap = torch.nan_to_num(rows.block(a, b)[0] - mean)
        second = second + (_column(rows, a, b) * gap.square()).sum(0)
    return mean, torch.diag_embed(second / seen)


def impute_means(rows: RowBlocks, mean: Tensor) -> RowBlocks:
    """Fill every missing value with the mean of its feature, which is good enough to start from."""

    def read(a: int, b: int) -> Tensor:
        x = rows.block(a, b)
        return torch.where(x.isnan(), mean[:, None].expand_as(x), x)

    return RowBlocks(read, rows.n_rows, size=rows.size, weights=rows.weights)
