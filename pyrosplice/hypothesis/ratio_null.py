r"""Finite-sample null law of the likelihood ratio of spatial variability.

A spatial field is one draw of one long vector, not many independent ones, and its smoothest directions are nearly the
intercept. So even with thousands of spots the ratio is 0 far more often than the half that boundary theory promises
(90 % on a 16 × 16 grid), and :math:`\tfrac12 \chi^2_0 + \tfrac12 \chi^2_1` rejects 1 % where it should reject 5 %. The
law is that of the linearised model at the null fit: working logits

.. math:: z = X B + \nu + \varepsilon, \qquad \nu_k \sim N(0, \sigma^2 (\theta V + (1 - \theta) I)), \quad
   \varepsilon_k \sim N(0, v_k I),

k along the eigenvectors of the information of a spot, v the noise of its counts. In the eigenbasis of V all
terms are independent and the ratio, profiled over (B, σ², θ), depends on a few sums of squares, so that thousands of
draws cost milliseconds. Its positive part is close to a scaled χ²_1, which carries the estimate into the tail:

.. math:: P(LR > x) = P(LR > 0)\; P(\chi^2_1 > x / a).

Sources: Crainiceanu & Ruppert (2004) JRSS B 66:165 for the spectral form; Greven et al. (2008) JCGS 17:870 for the
scaled tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pyrosplice.hypothesis.likelihood_ratio import chi2_sf
from pyrosplice.hypothesis.spatial_kernel import SpatialKernel
from pyrosplice.hypothesis.variance_component import orthonormal_columns

_POSITIVE = 1e-3  # smallest ratio that counts as positive: grids are no finer
_SHARES = (0.0, 0.005, 0.02, 0.05, 0.1, 0.17, 0.27, 0.4, 0.6, 0.8, 1.0)  # of θ
_LOG_SIZES = (-3.0, 2.5)  # of σ² over the null's total variances, from below the least to above the largest
_STEP, _FARTHEST = 0.37, 7.0  # of the grid of log σ²; ratio of total variances (log) up to which it follows them


@dataclass(frozen=True)
class RatioNull:
    """``P(LR > 0)`` and the scale a of its positive part, ``(B,)`` each."""

    positive: Tensor
    scale: Tensor

    def sf(self, statistic: Tensor) -> Tensor:
        """P-values; 1 where the ratio is 0, up to what counts as positive in the simulation."""
        tail = (self.positive * chi2_sf(statistic / self.scale, 1)).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(statistic > _POSITIVE, tail, torch.where(torch.isnan(statistic), torch.nan, 1.0))


def spatial_ratio_null(
    information: Tensor,
    sigma: Tensor,
    kernel: SpatialKernel,
    *,
    design: Tensor | None = None,
    share_variance: bool = True,
    n_draws: int = 2000,
    seed: int = 0,
) -> RatioNull:
    """Null law of ``2 (log_full − log_null)`` for every gene.

    Parameters
    ----------
    information
        Of the counts about their linear predictors, at the null fit without its random effect: ``(B, N, Q, Q)``.
    sigma
        σ of the null fit (θ = 0), ``(B, 1)`` or ``(B, Q)``.
    kernel
        Of V, from ``spatial_kernel(covariance, damping=0)``.
    design
        Covariates ``(N, P)`` of both models beside the intercept.
    share_variance
        One (σ, θ) for all logits, else one each.
    n_draws, seed
        Of the simulation; all genes share the same random numbers.
    """
    draws = _Draws.of(kernel, orthonormal_columns(design, kernel.diagonal), information.shape[-1], n_draws, seed)
    noise, variance = _noise(information, sigma.to(torch.float64))
    results = [_law(draws, v, s, share_variance) for v, s in zip(noise, variance, strict=True)]
    return RatioNull(*(torch.stack(parts) for parts in zip(*results, strict=True)))


def _noise(information: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Noise v ``(B, Q)`` of a typical spot's working logits, and σ² ``(B, Q)``.

    v is such that a spot with it has the mean over spots of what they say about the fixed effects,
    ``1 / (1 / w_ik + σ²)`` with w the information along the eigenvectors of its mean; σ² is at least its own standard
    error, since an estimate of 0 does not mean that it is.
    """
    _, vectors = torch.linalg.eigh(torch.nan_to_num(information.mean(1)))
    along = torch.einsum("bnkl,bkq,blq->bnq", information, vectors, vectors).clamp_min(0.0)
    variance = sigma.square().expand(-1, along.shape[-1])
    typical = (along / (1 + along * variance.unsqueeze(1))).mean(1).clamp_min(1e-8)
    noise = (1 / typical - variance).clamp_min(1e-8)
    error = (noise + variance) * (2 / along.shape[1]) ** 0.5
    return noise, torch.maximum(variance, error)


@dataclass(frozen=True)
class _Draws:
    """M draws of standard normal data of one logit each, in the eigenbasis of V: J nodes of d_j eigenvalues.

    ``squares`` (Q, M, J) are the sums of squares of the nodes, ``loads`` (Q, M, J, P') their products with the
    covariates, whose Gram matrices are ``grams`` (J, P', P').
    """

    values: Tensor
    dof: Tensor
    grams: Tensor
    squares: Tensor
    loads: Tensor

    @classmethod
    def of(cls, kernel: SpatialKernel, basis: Tensor, n_logits: int, n_draws: int, seed: int) -> _Draws:
        rng = np.random.default_rng(seed)
        loading = _loading(kernel, basis)
        values, dof, grams = _nodes(kernel, loading)
        n_leading, width = len(kernel.values), basis.shape[1]
        single = torch.from_numpy(rng.standard_normal((n_logits, n_draws, n_leading)))
        along = torch.from_numpy(rng.standard_normal((n_logits, n_draws, len(values) - n_leading, width)))
        across = rng.chisquare((dof[n_leading:] - width).clamp_min(1e-3).numpy(), along.shape[:-1])
        squares = torch.cat([single.square(), along.square().sum(-1) + torch.from_numpy(across)], -1)
        eigenvalues, vectors = torch.linalg.eigh(grams[n_leading:])
        roots = vectors * eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2)
        loads = torch.einsum("qmj,jp->qmjp", single, loading)
        loads = torch.cat([loads, torch.einsum("qmjp,jsp->qmjs", along, roots)], -2)
        return cls(values, dof, grams, squares, loads)

    def log_likelihood(self, logit: int, total: Tensor, variances: Tensor) -> Tensor:
        """Profiled over the coefficients: data of variance ``total``, model ``variances`` (L, J); (M, L)."""
        inverse = 1 / variances
        quadratic = self.squares[logit] @ inverse.T
        load = self.loads[logit].movedim(-1, 0) @ inverse.T  # (P', M, L)
        factor = torch.linalg.cholesky((inverse @ self.grams.flatten(1)).unflatten(-1, self.grams.shape[1:]))
        fitted = torch.linalg.solve_triangular(factor, load.movedim(-1, 0), upper=False)  # (L, P', M)
        quadratic = quadratic - fitted.square().sum(1).T
        return -0.5 * (total * quadratic + variances.log() @ self.dof)


def _law(draws: _Draws, noise: Tensor, variance: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """``P(LR > 0)`` and a for one gene."""
    total = noise + variance
    shares = total.new_tensor(_SHARES)
    values = []
    for k in range(len(noise)):
        size = _sizes(total if shared else total[k : k + 1])[:, None, None]
        shape = 1 - shares[:, None] + shares[:, None] * draws.values
        variances = noise[k] + size * shape  # (S, T, J)
        values.append(draws.log_likelihood(k, total[k], variances.flatten(0, 1)).unflatten(-1, variances.shape[:2]))
    together = [torch.stack(values).sum(0)] if shared else values
    ratio = torch.stack([_ratio(value) for value in together]).sum(0)
    above = ratio > _POSITIVE
    count = above.sum().to(ratio.dtype)
    scale = torch.where(count > 0, (ratio * above).sum() / count.clamp_min(1), 1.0)
    return (count + 1) / (len(ratio) + 1), scale


def _sizes(total: Tensor) -> Tensor:
    """Grid of σ²: 0, then equal steps of its log. Logits of rare isoforms have large total variances."""
    low, high = float(total.min().log()), float(total.max().log())
    low, high = low + _LOG_SIZES[0], min(high, low + _FARTHEST) + _LOG_SIZES[1]
    grid = torch.linspace(low, high, math.ceil((high - low) / _STEP) + 1, dtype=torch.float64)
    return torch.cat([grid.new_zeros(1), grid.exp()])


def _ratio(value: Tensor) -> Tensor:
    """Likelihood ratios ``(M,)`` from log likelihoods on the grid of σ² (0, then equal steps of its log) and θ."""
    best, where = value[:, 1:].max(1, keepdim=True)
    inner = where.clamp(1, value.shape[1] - 3)
    before, middle, after = (value[:, 1:].gather(1, inner + step) for step in (-1, 0, 1))
    bend = (2 * middle - before - after).clamp_min(1e-12)
    peak = torch.where(inner == where, best + (before - after).square() / (8 * bend), best).squeeze(1)
    profile = torch.maximum(peak, value[:, 0])  # (M, T)
    return 2 * (profile.amax(-1) - profile[:, 0])


def _loading(kernel: SpatialKernel, basis: Tensor) -> Tensor:
    """Products of the leading eigenvectors with the covariates, (r, P').

    An eigenvector's sign, and the basis of an eigenvalue that occurs twice, are accidents of the order of the spots. So
    that the draws of a seed do not depend on it, one vector of each eigenvalue holds all of the constant's share, > 0.
    """
    loading = kernel.vectors.T @ basis
    new = kernel.values.diff().abs() > 1e-9 * kernel.values[0]
    starts = [0, *(torch.nonzero(new).squeeze(-1) + 1).tolist(), len(loading)]
    blocks = []
    for first, last in pairwise(starts):
        block = torch.linalg.qr(loading[first:last], mode="complete").R
        signs = torch.ones_like(block[:, :1])
        diagonal = torch.diagonal(block)
        signs[: len(diagonal), 0] = torch.where(diagonal < 0, -1.0, 1.0)
        blocks.append(signs * block)
    return torch.cat(blocks)


def _nodes(kernel: SpatialKernel, loading: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leading eigenvalues one by one, two nodes for the others: values, multiplicities and Gram matrices."""
    grams = loading.unsqueeze(-1) * loading.unsqueeze(-2)
    left = kernel.n_spots - len(kernel.values)
    if left == 0:
        return kernel.values, torch.ones_like(kernel.values), grams
    mean = (kernel.diagonal.sum() - kernel.values.sum()) / left
    square = (kernel.trace_square - float(kernel.values.square().sum())) / left
    spread = (square - mean.square()).clamp_min(0.0).sqrt()
    reach = (kernel.skewness**2 + 4) ** 0.5
    ends = mean + spread * mean.new_tensor([kernel.skewness + reach, kernel.skewness - reach]) / 2
    share = mean.new_tensor([reach - kernel.skewness, reach + kernel.skewness]) / (2 * reach)
    rest = torch.eye(loading.shape[1], dtype=loading.dtype, device=loading.device) - grams.sum(0)
    return (
        torch.cat([kernel.values, ends]),
        torch.cat([torch.ones_like(kernel.values), left * share]),
        torch.cat([grams, share[:, None, None] * rest]),
    )
