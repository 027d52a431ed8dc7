r"""Rising factorials, :math:`\log\Gamma(\alpha + y) - \log\Gamma(\alpha)`, and their derivatives in α.

The gamma functions of a large α cancel: at α = 1e8 the difference of two lgamma is wrong by 1e-7, and Newton's method
on it never comes to rest. From α = 1000 on, Stirling's series are subtracted term by term instead, of which two terms
are exact to rounding there. (:mod:`pyrosplice._expression.engine.count_table` has the same less y log α, which cancels
once more, for counts in tables and without autograd.)
Source: Abramowitz & Stegun (1972), 6.1.41, 6.3.18 and 6.4.12.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGE = 1e3


def log_rising(alpha: Tensor, counts: Tensor) -> Tensor:
    """Log of a rising factorial, ``log Γ(α + y) − log Γ(α)``, α > 0, y ≥ 0, not only whole; differentiable in α."""
    low, small, whole = _series_at(alpha, counts)
    series = (low - 0.5) * torch.log1p(counts * small) - counts * (whole.log() + 1)
    series = series + _fall(small, whole, lambda x, x2: x / 12 - x * x2 / 360)
    return torch.where(alpha > LARGE, series, torch.lgamma(alpha + counts) - torch.lgamma(alpha))


def rising_slope(alpha: Tensor, counts: Tensor) -> Tensor:
    """Derivative of :func:`log_rising` in α: ``ψ(α + y) − ψ(α)``."""
    _, small, whole = _series_at(alpha, counts)
    series = torch.log1p(counts * small) - _fall(small, whole, lambda x, x2: x / 2 + x2 / 12 - x2 * x2 / 120)
    return torch.where(alpha > LARGE, series, torch.digamma(alpha + counts) - torch.digamma(alpha))


def rising_bend(alpha: Tensor, counts: Tensor) -> Tensor:
    """Second derivative of :func:`log_rising` in α: ``ψ'(α + y) − ψ'(α)``."""
    _, small, whole = _series_at(alpha, counts)
    series = _fall(small, whole, lambda x, x2: x2 / 2 + x2 * x / 6 - x2 * x2 * x / 30) - counts * small * whole
    return torch.where(alpha > LARGE, series, torch.polygamma(1, alpha + counts) - torch.polygamma(1, alpha))


def rising_twist(alpha: Tensor, counts: Tensor) -> Tensor:
    """Third derivative of :func:`log_rising` in α: ``ψ''(α + y) − ψ''(α)``."""
    _, small, whole = _series_at(alpha, counts)
    series = counts * small * whole * (small + whole)
    series = series - _fall(small, whole, lambda x, x2: x2 * x + x2 * x2 / 2 - x2 * x2 * x2 / 6)
    return torch.where(alpha > LARGE, series, torch.polygamma(2, alpha + counts) - torch.polygamma(2, alpha))


def _fall(small: Tensor, whole: Tensor, terms: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return terms(whole, whole.square()) - terms(small, small.square())


def _series_at(alpha: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """α, 1 / α and 1 / (α + y), of an α for which the series holds, so that its gradient is finite too."""
    low = alpha.clamp_min(LARGE)
    return low, 1 / low, 1 / (low + counts)
