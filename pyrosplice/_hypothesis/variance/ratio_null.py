r"""Finite-sample null law of the likelihood ratio of spatial variability.

A spatial field is one draw of one long vector, not many independent ones, and its smoothest directions are nearly the
intercept. So even with thousands of spots the ratio is 0 far more often than the half that boundary theory promises
(90 % on a 16 × 16 grid), and :math:`\tfrac12 \chi^2_0 + \tfrac12 \chi^2_1` rejects 1 % where it should reject 5 %. The
law is that of the linearised model at the null fit: working logits

.. math:: z = X B + \nu + \varepsilon, \qquad \nu_k \sim N(0, \sigma^2 (\theta V + (1 - \theta) I)), \quad
   \varepsilon_k \sim N(0, v_k I),

k along the eigenvectors of the information of a spot, v the noise of its counts. In the eigenbasis of V all
terms are independent and the ratio, profiled over (B, σ², θ), depends on a few sums of squares, so that thousands of
draws cost milliseconds.

The law is that *given* the gene's estimate of σ²: every draw is rescaled to have it. For one logit, or equal v, the
residual sum of squares is sufficient for σ² at θ = 0, so that the law given it is free of σ²; otherwise nearly. Where
the estimate is 0 it is the law at σ = 0 given that. (With the estimate plugged in, a test at 5 % would reject 3 % where
σ = 0 and 5.6 % where σ² is as large as its standard error.) The positive part is close to a scaled χ²_1, which
carries the law into the tail:

.. math:: P(LR > x) = P(LR > 0)\; P(\chi^2_1 > x / a).

A likelihood with an over-dispersion of its own has estimated v too, and may answer a spatial variance with less of it
where σ² is 0 already. v is then :math:`v e^\delta`: of the size of the residuals, the share ρ² of what is known is
spent on δ (:mod:`pyrosplice._hypothesis.variance.noise_freedom`). The law is also given that the null's estimate of δ
is 0. Where the noise is the least that the likelihood allows, the estimate is at its end, and v is known.

Sources: Crainiceanu & Ruppert (2004) JRSS B 66:165 for the spectral form; Greven et al. (2008) JCGS 17:870 for the
scaled tail; Lehmann & Romano (2005) "Testing statistical hypotheses", ch. 4, for conditioning.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from pyrosplice._hypothesis.likelihood_ratio import chi2_sf
from pyrosplice._hypothesis.variance.noise_freedom import NoiseFreedom, freely_scaled
from pyrosplice._hypothesis.variance.score_test import orthonormal_columns
from pyrosplice._hypothesis.variance.spatial_kernel import SpatialKernel
from pyrosplice.errors import InvalidArgumentError

_SEED = 0  # of the quasi-random numbers, which all genes share
_POSITIVE = 1e-3  # smallest ratio that counts as positive: grids are no finer
_SHARES = (0.0, 0.002, 0.006, 0.02, 0.04, 0.07, 0.11, 0.17, 0.25, 0.36, 0.52, 0.75, 1.0)  # of θ
_LEAST, _LARGEST = 0.07, 2.5  # σ² in standard errors of the least total variance; log of σ² over the largest
_ZERO = 1e-2  # standard errors up to which the estimate of σ² is 0
_END = 0.02  # standard errors of a log variance up to which the noise is the least that it can be
_ROUNDING = 1e-8  # loadings up to which they are 0
_PART = 512  # draws at a time
_STEP, _FARTHEST = 0.37, 7.0  # of the grid of log σ²; ratio of total variances (log) up to which it follows them


@dataclass(frozen=True)
class RatioNull:
    """Null law of the ratio: the chance ``P(LR > 0)`` and the scale a of its positive part, ``(B,)`` each."""

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
    freedom: NoiseFreedom | None = None,
    n_draws: int = 4096,
) -> RatioNull:
    """Null law of ``2 (log_full − log_null)`` for every gene.

    Parameters
    ----------
    information
        Information of the counts about their linear predictors, at the null fit without its random
        effect: ``(B, N, Q, Q)``.
    sigma
        σ of the null fit (θ = 0): ``(B, 1)`` where all logits share (σ, θ), else one each, ``(B, Q)``.
    kernel
        Kernel of V, from ``spatial_kernel(covariance, damping=0)``.
    design
        Covariates ``(N, P)`` of both models beside the intercept.
    freedom
        Freedom of the likelihood's estimated hyper-parameters; None if it has none.
    n_draws
        Of the simulation, a power of two: quasi-random along the largest eigenvalues of V. All genes share the numbers;
        a p-value of 0.05 has a relative error of some 3 % from them, one of 0.001 of 10 to 20 %.

    Raises
    ------
    InvalidArgumentError
        ``n_draws`` is not a power of two.
    """
    if n_draws < 2 or n_draws & (n_draws - 1):
        raise InvalidArgumentError(f"n_draws: expected a power of two, found {n_draws}.")
    shared = sigma.shape[1] == 1
    draws = _Draws.of(kernel, orthonormal_columns(design, kernel.diagonal), information.shape[-1], n_draws, _SEED)
    noise, variance = _noise(information, sigma.to(torch.float64), shared)
    none = torch.zeros_like(sigma)
    both = torch.stack([none, none] if freedom is None else [freedom.share, freedom.floor], -1)
    free = both.expand(-1, 1 if shared else information.shape[-1], -1).tolist()
    results = [_law(draws, v, s, shared, f) for v, s, f in zip(noise, variance, free, strict=True)]
    return RatioNull(*(torch.stack(parts) for parts in zip(*results, strict=True)))


def _noise(information: Tensor, sigma: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """Noise v ``(B, Q)`` of a typical spot's working logits, and σ² ``(B, Q)``.

    Of the directions that the mean information W has for eigenvectors, or where logits have a σ² each, of the logits
    themselves, which know ``1 / (W⁻¹)_kk``. v is such that a spot with it has the mean over spots of what they say
    about the fixed effects, ``1 / (1 / w_ik + σ²)``.
    """
    mean = torch.nan_to_num(information.mean(1))
    values, vectors = torch.linalg.eigh(mean)
    if shared:
        along = torch.einsum("bnkl,bkq,blq->bnq", information, vectors, vectors)
    else:
        kept = values.clamp_min(1e-12 * values.amax(-1, keepdim=True)).clamp_min(1e-300)
        inverse = (vectors.square() / kept[:, None]).sum(-1)
        own = torch.diagonal(mean, dim1=-2, dim2=-1)
        along = torch.diagonal(information, dim1=-2, dim2=-1) / (own * inverse).clamp_min(1.0)[:, None]
    along = along.clamp_min(0.0)
    variance = sigma.square().expand(-1, along.shape[-1])
    typical = (along / (1 + along * variance.unsqueeze(1))).mean(1).clamp_min(1e-8)
    return (1 / typical - variance).clamp_min(1e-8), variance


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
        uniform = qmc.Sobol(n_leading * n_logits, rng=rng).random(n_draws).clip(1e-12, 1 - 1e-12)
        single = torch.from_numpy(ndtri(uniform)).unflatten(-1, (n_leading, n_logits)).movedim(-1, 0)
        along = torch.from_numpy(rng.standard_normal((n_logits, n_draws, len(values) - n_leading, width)))
        across = rng.chisquare((dof[n_leading:] - width).clamp_min(1e-3).numpy(), along.shape[:-1])
        squares = torch.cat([single.square(), along.square().sum(-1) + torch.from_numpy(across)], -1)
        eigenvalues, vectors = torch.linalg.eigh(grams[n_leading:])
        roots = vectors * eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2)
        loads = torch.einsum("qmj,jp->qmjp", single, loading)
        loads = torch.cat([loads, torch.einsum("qmjp,jsp->qmjs", along, roots)], -2)
        return cls(values, dof, grams, squares, loads)

    def split(self, size: int) -> Iterator[_Draws]:
        """Parts of ``size`` draws, whose tables stay in the processor's cache."""
        for squares, loads in zip(self.squares.split(size, 1), self.loads.split(size, 1), strict=True):
            yield replace(self, squares=squares, loads=loads)

    def given(self, variance: Tensor, total: Tensor, logits: list[int], share: float = 0.0) -> tuple[Tensor, Tensor]:
        """Factors (M,) of the sums of squares that give ``logits`` the estimate ``variance`` of their σ², and pulls.

        Its equation is linear in them. Where the estimate is 0 they are at most what v explains: draws with an excess
        are reflected, as direction and length are independent and the length is nearly symmetric. Where v is estimated
        too, they fall short by less, and what else is known about v pulls it up by as much.
        """
        n_spots = float(self.dof.sum())
        residual = self.squares[logits].sum(-1) - self.loads[logits].sum(-2).square().sum(-1)
        excess = (residual / n_spots / total[:, None]).sum(0) / (1 / total).sum()
        error = (n_spots / 2 * total.square().reciprocal().sum()).rsqrt()
        if variance.max() > _ZERO * error:
            return 1 / excess, torch.zeros_like(excess)
        short = (excess - 1).abs() * (1 - share) ** 0.5
        return (1 - short).clamp_min(0.0) / excess, short

    def quadratic(self, logit: int, total: Tensor, model: _Model) -> Tensor:
        """Squared residuals about the fitted coefficients: data of variances ``total`` (M,), L models; (M, L)."""
        quadratic = self.squares[logit] @ model.precision
        for row in model.whitening:
            quadratic -= (self.loads[logit].flatten(1) @ row).square_()
        return quadratic.mul_(total[:, None])


@dataclass(frozen=True)
class _Model:
    """L models of one logit, by the variances of its nodes.

    ``precision`` (J, L) of the nodes, ``logdet`` (L,) of the variances, and ``whitening`` (P', J P', L), which takes
    the loads to the fitted part of the coefficients.
    """

    precision: Tensor
    whitening: Tensor
    logdet: Tensor

    @classmethod
    def of(cls, draws: _Draws, variances: Tensor) -> _Model:
        """Make the models with ``variances`` (L, J) of the nodes."""
        inverse, width = 1 / variances, draws.grams.shape[-1]
        factor = torch.linalg.cholesky((inverse @ draws.grams.flatten(1)).unflatten(-1, (width, width)))
        root = torch.linalg.inv(factor)
        whitening = torch.einsum("lps,lj->pjsl", root, inverse).flatten(1, 2)
        return cls(inverse.T.contiguous(), whitening, variances.log() @ draws.dof)


def _law(
    draws: _Draws, noise: Tensor, variance: Tensor, shared: bool, free: Sequence[Sequence[float]]
) -> tuple[Tensor, Tensor]:
    """Chance ``P(LR > 0)`` and scale a for one gene, whose components are ``free`` by (ρ², floor)."""
    q = len(noise)
    logits = [list(range(q))] if shared else [[k] for k in range(q)]
    ratio = torch.stack([_ratio(draws, noise, variance, k, *f) for k, f in zip(logits, free, strict=True)]).sum(0)
    above = ratio > _POSITIVE
    count = above.sum().to(ratio.dtype)
    scale = torch.where(count > 0, (ratio * above).sum() / count.clamp_min(1), 1.0)
    return (count + 1) / (len(ratio) + 1), scale


def _ratio(
    draws: _Draws, noise: Tensor, variance: Tensor, logits: list[int], share: float = 0.0, floor: float = 0.0
) -> Tensor:
    """Likelihood ratios ``(M,)`` of logits that share (σ², θ), over a grid of both and parabolas along log σ².

    ``share`` ρ² and ``floor`` of δ are those of their :class:`NoiseFreedom`.
    """
    total = noise + variance
    log_size = _log_sizes(noise[logits], variance[logits], float(draws.dof.sum()))
    size, theta = torch.cat([log_size.new_zeros(1), log_size.exp()])[:, None, None], total.new_tensor(_SHARES)[:, None]
    shape = size * (1 - theta + theta * draws.values)  # (S, T, J)
    models = {k: _Model.of(draws, (noise[k] + shape).flatten(0, 1)) for k in logits}
    logdet = torch.stack([model.logdet for model in models.values()]).sum(0)
    weight = (total[logits].min() / total[logits]).square().tolist()  # logits of rare isoforms say little of δ
    n_values = float(draws.dof.sum()) * sum(weight)
    if floor > -_END * (2 / n_values) ** 0.5:
        share = 0.0
    ratios = []
    for part in draws.split(_PART):
        factor, pull = part.given(variance[logits], total[logits], logits, share)
        each = [part.quadratic(k, total[k] * factor, model) for k, model in models.items()]
        misfit = functools.reduce(torch.add, each)
        if share > 0:
            scaled = functools.reduce(torch.add, (w * quadratic for w, quadratic in zip(weight, each, strict=True)))
            misfit += freely_scaled(scaled, n_values, pull[:, None], share, floor) - scaled
        value = misfit.add_(logdet).mul_(-0.5).unflatten(-1, shape.shape[:2])
        profile = torch.maximum(_peak(value[:, 1:], log_size), value[:, 0])
        ratios.append(2 * (profile.amax(-1) - profile[:, 0]))
    return torch.cat(ratios)


def _peak(value: Tensor, grid: Tensor) -> Tensor:
    """Maximum over the middle axis of ``(M, S, T)``, by the parabola through the best point and its neighbours."""
    best, where = value.max(1, keepdim=True)
    inner = where.clamp(1, len(grid) - 2)
    before, middle, after = (value.gather(1, inner + step) for step in (-1, 0, 1))
    left, right = grid[inner] - grid[inner - 1], grid[inner + 1] - grid[inner]
    rise, fall = (middle - before) / left, (middle - after) / right
    bend = ((rise + fall) / (left + right)).clamp_min(1e-12)
    slope = (rise * right - fall * left) / (left + right)
    return torch.where(inner == where, best + slope.square() / (4 * bend), best).squeeze(1)


def _log_sizes(noise: Tensor, variance: Tensor, n_spots: float) -> Tensor:
    """Grid of log σ². Steps are of 1.5 standard errors near the null's estimate and grow to ``_STEP`` away from it.

    Logits of rare isoforms have large total variances.
    """
    total = noise + variance
    low, high = float(total.min().log()), float(total.max().log())
    low, high = low + math.log(_LEAST) - 0.5 * math.log(n_spots), min(high, low + _FARTHEST) + _LARGEST
    error = 1 / float((n_spots / 2 * (variance / total).square().sum()).clamp_min(1e-12).sqrt())
    center = min(max(float(variance.max().clamp_min(1e-12).log()), low), high)
    below, above = [center], [center]
    step = min(1.5 * error, _STEP)
    while below[-1] > low or above[-1] < high:
        if below[-1] > low:
            below.append(below[-1] - step)
        if above[-1] < high:
            above.append(above[-1] + step)
        if len(below) > 4 or len(above) > 4:
            step = min(1.4 * step, _STEP)
    return torch.tensor(sorted({*below, *above}), dtype=torch.float64)


def _loading(kernel: SpatialKernel, basis: Tensor) -> Tensor:
    """Products of the leading eigenvectors with the covariates, (r, P').

    An eigenvector's sign, and the basis of an eigenvalue that occurs twice, are accidents of the order of the spots. So
    that the draws of a seed do not depend on it, one vector of each eigenvalue holds all of the constant's share, > 0,
    the next all that is left of the second covariate's, and so on.
    """
    loading = kernel.vectors.T @ basis
    new = kernel.values.diff().abs() > 1e-9 * kernel.values[0]
    starts = [0, *(torch.nonzero(new).squeeze(-1) + 1).tolist(), len(loading)]
    return torch.cat([_turned(loading[first:last]) for first, last in pairwise(starts)])


def _turned(block: Tensor) -> Tensor:
    """Rows turned, and reflected, into echelon form with positive leading entries."""
    rows = []
    for column in range(block.shape[1]):
        vector = block[:, column]
        norm = vector.norm()
        if norm < _ROUNDING:
            continue
        mirror = vector.clone()
        mirror[0] -= norm
        length = mirror.norm()
        if length > _ROUNDING * norm:
            mirror = mirror / length
            block = block - 2 * mirror[:, None] * (mirror @ block)
        rows.append(block[:1])
        block = block[1:]
    return torch.cat([*rows, torch.zeros_like(block)])


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
