r"""Tail probabilities of weighted sums of χ² variables, the null law of quadratic forms.

.. math:: X = \sum_j \lambda_j \chi^2_{d_j}, \qquad
   K(s) = \log E\,e^{sX} = -\tfrac12 \sum_j d_j \log(1 - 2\lambda_j s)

The tail is the Bromwich integral of :math:`e^{K(s) - sx}/s`. It is taken along a hyperbola through the
saddlepoint that bends towards the side on which :math:`e^{-sx}` decays: every term is then of the size of the
tail itself, so the *relative* error stays near rounding however small the probability, and the trapezoidal rule
converges geometrically for any degrees of freedom (one included). References: Rice (1980) SIAM J. Sci. Stat.
Comput. 1:438, "Distribution of quadratic forms in normal random variables – evaluation by numerical
integration"; Weideman & Trefethen (2007) Math. Comp. 76:1341 for the choice of contour.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_STEP = 0.15  # of the trapezoidal rule, in the hyperbola's own parameter
_NODES = 56
_ROOT_ITERATIONS = 100
_ROOT_TOLERANCE = 1e-3  # any contour right of the pole is exact; the best one is only the cheapest
_BLOCK = 2**12  # weights worked on at once, so that their values at all nodes stay in cache
_TINY = torch.finfo(torch.float64).tiny


def chi2_mixture_sf(statistic: Tensor, weights: Tensor, dof: Tensor | None = None) -> Tensor:
    """``P(X > statistic)``, at least the smallest normal double for a finite statistic, so that it is never 0.

    Parameters
    ----------
    statistic
        Observed values, ``(...)``.
    weights
        λ, ``(..., J)``, broadcast against ``statistic``; may be negative. Zero weights are inert.
    dof
        Degrees of freedom d ≥ 0, ``(..., J)``; real values are allowed. Default 1 each.

    Returns
    -------
    Tensor
        ``(...)``. NaN where the statistic or a weight is not a number, or where no weight is different from 0.
    """
    return chi2_mixture_log_sf(statistic, weights, dof).exp().clamp_min(_TINY)


def chi2_mixture_log_sf(statistic: Tensor, weights: Tensor, dof: Tensor | None = None) -> Tensor:
    """``log P(X > statistic)``; arguments as in :func:`chi2_mixture_sf`. Exact far below the range of a double."""
    weights = weights.to(torch.float64)
    dof = torch.ones_like(weights) if dof is None else dof.to(torch.float64)
    shape = torch.broadcast_shapes(statistic.shape, weights.shape[:-1], dof.shape[:-1])
    q = statistic.to(torch.float64).expand(shape).reshape(-1)
    lam = weights.expand(*shape, weights.shape[-1]).reshape(q.shape[0], -1)
    d = dof.expand(*shape, weights.shape[-1]).reshape(q.shape[0], -1)
    d = torch.where(lam == 0, 0.0, d)
    scale = (lam.abs() * (d > 0)).amax(-1)
    usable = torch.isfinite(q) & torch.isfinite(lam).all(-1) & torch.isfinite(d).all(-1) & (scale > 0)
    out = torch.full_like(q, math.nan)
    out[torch.isneginf(q) & (scale > 0)] = 0.0
    out[torch.isposinf(q) & (scale > 0)] = -math.inf
    for rows in torch.nonzero(usable).squeeze(-1).split(max(1, _BLOCK // lam.shape[-1])):
        size = scale[rows]
        out[rows] = _log_sf(q[rows] / size, lam[rows] / size.unsqueeze(-1), d[rows])
    return out.reshape(shape)


def _log_sf(q: Tensor, lam: Tensor, dof: Tensor) -> Tensor:
    """Both tails of finite problems scaled to max |λ| = 1: the small one is integrated, the other follows from it."""
    above = q >= (lam * dof).sum(-1)
    sign = torch.where(above, 1.0, -1.0).to(q)
    q, lam = sign * q, sign.unsqueeze(-1) * lam
    possible = (q < 0) | ((lam > 0) & (dof > 0)).any(-1)  # a sum of negative terms is never positive
    tail = torch.full_like(q, -math.inf)
    tail[possible] = _log_upper_tail(q[possible], lam[possible], dof[possible]).clamp_max(-1e-300)
    return torch.where(above, tail, torch.log1p(-tail.exp()))


def _log_upper_tail(q: Tensor, lam: Tensor, dof: Tensor) -> Tensor:
    """``log P(X > q)`` for q at or above the mean: the contour crosses the real axis right of the pole at 0."""
    center = _saddlepoint(q, lam, dof).unsqueeze(-1)
    ratio = lam / (1 - 2 * lam * center)
    second = 2 * (dof * ratio**2).sum(-1, keepdim=True) + center**-2
    third = 8 * (dof * ratio**3).sum(-1, keepdim=True) - 2 * center**-3
    width = second.rsqrt()
    bend = torch.sign(q).unsqueeze(-1) * (third.abs() * width / (3 * second)).clamp(0.25, 1.0)

    u = _STEP * torch.arange(_NODES, dtype=q.dtype, device=q.device)
    real = width * bend * (torch.cosh(u) - 1)  # s − centre
    imag = width * torch.sinh(u)
    log_size, angle = _log_integrand(real, imag, center.squeeze(-1), q, lam, dof)
    slope_real = width * bend * torch.sinh(u)
    slope_imag = width * torch.cosh(u)
    terms = log_size.exp() * (torch.cos(angle) * slope_imag + torch.sin(angle) * slope_real)
    terms[..., 0] *= 0.5
    start = -0.5 * (dof * torch.log1p(-2 * lam * center)).sum(-1) - center.squeeze(-1) * q - center.squeeze(-1).log()
    return start + torch.log(terms.sum(-1).clamp_min(_TINY) * (_STEP / math.pi))


def _log_integrand(
    real: Tensor, imag: Tensor, center: Tensor, q: Tensor, lam: Tensor, dof: Tensor
) -> tuple[Tensor, Tensor]:
    """Log modulus and angle of ``e^{K(s) − sq} / s`` at ``center + real + i imag`` over its value at ``center``."""
    slope = (2 * lam / (1 - 2 * lam * center.unsqueeze(-1))).unsqueeze(-1)  # (B, J, 1): 1 − 2λs, scaled to 1 at centre
    x = 1 - slope * real.unsqueeze(-2)
    y = -slope * imag.unsqueeze(-2)
    half = -0.5 * dof.unsqueeze(-2)
    log_size = (half @ (0.5 * torch.log(x * x + y * y))).squeeze(-2)
    angle = (half @ torch.atan2(y, x)).squeeze(-2)
    q, center = q.unsqueeze(-1), center.unsqueeze(-1)
    log_size = log_size - real * q - 0.5 * torch.log((1 + real / center) ** 2 + (imag / center) ** 2)
    return log_size, angle - imag * q - torch.atan2(imag / center, 1 + real / center)


def _saddlepoint(q: Tensor, lam: Tensor, dof: Tensor) -> Tensor:
    """Root s > 0 of ``K'(s) = q + 1/s``: Newton steps kept inside a shrinking bracket. (B,)"""
    top = torch.where(dof > 0, lam, -math.inf).amax(-1)
    high = torch.where(top > 0, 0.5 / top, math.inf)
    high = torch.minimum(high, torch.where(q < 0, (0.5 * dof.sum(-1) + 1) / -q, math.inf))
    low = torch.zeros_like(high)
    s = 0.5 * high
    for _ in range(_ROOT_ITERATIONS):
        ratio = lam / (1 - 2 * lam * s.unsqueeze(-1))
        value = (dof * ratio).sum(-1) - q - 1 / s
        slope = 2 * (dof * ratio**2).sum(-1) + s**-2
        low, high = torch.where(value < 0, s, low), torch.where(value < 0, high, s)
        step = s - value / slope
        new = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
        if bool(((new - s).abs() <= _ROOT_TOLERANCE * s).all()):
            break
        s = new
    return s
