r"""The part of the negative-binomial log density that depends on counts and scale alone.

.. math:: T(\zeta) = \sum_i w_i \left[ \log\Gamma(y_i + r) - \log\Gamma(r) - y_i \zeta \right], \qquad r = e^\zeta

Small integer counts enter by how many exceed each value: with :math:`n_j = \sum_i w_i [y_i > j]` and
:math:`\alpha = 1/r`, :math:`T = \sum_j n_j \log(1 + \alpha j)`: a sum of positive terms, free of the cancellation
that the gamma functions suffer as :math:`r \to \infty`, and as long as the largest count rather than the number of
cells. Large or fractional counts are kept as they are, and use Stirling's series where r is large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STIRLING_FROM = 30.0
# B_2k / (2k (2k − 1)), k = 1..3: the series of log Γ beyond its leading terms, to 3e-14 from there
STIRLING = (1 / 12, -1 / 360, 1 / 1260)


@dataclass(frozen=True)
class CountTable:
    """Counts of G genes at E levels of the scale (distinct rows of its design).

    Attributes
    ----------
    exceed : Tensor (G, E, J)
        Weight of the counts above j = 0..J−1, small integer counts only.
    values, multiplicity : Tensor (G, E, U)
        All other counts and their weights; padded with zeros.
    constant : Tensor (G,)
        ``−Σ w log y!``.
    """

    exceed: Tensor
    values: Tensor
    multiplicity: Tensor
    constant: Tensor

    def select(self, genes: Tensor) -> CountTable:
        """The table of some of the genes."""
        return CountTable(*(getattr(self, f)[genes] for f in ("exceed", "values", "multiplicity", "constant")))

    def sum_counts(self) -> Tensor:
        """Weighted sum of counts of each gene ``(G,)``."""
        return self.exceed.sum((1, 2)) + (self.multiplicity * self.values).sum((1, 2))

    def sum_squares(self) -> Tensor:
        """Weighted sum of squared counts, ``Σ w y²``, of each gene ``(G,)``."""
        odd = 2 * torch.arange(self.exceed.shape[-1], dtype=self.exceed.dtype, device=self.exceed.device) + 1
        return (self.exceed * odd).sum((1, 2)) + (self.multiplicity * self.values.square()).sum((1, 2))

    def saturated(self, zeta: Tensor) -> Tensor:
        r"""Rows' terms where every mean is its count, ``Σ w [y log y − (y + r) log(1 + y / r)]``: ``(G,)``.

        For one common scale, ``zeta`` ``(G, 1)``.
        """
        j = torch.arange(1, self.exceed.shape[-1] + 1, dtype=zeta.dtype, device=zeta.device)
        at_least = self.exceed.sum(1)
        exactly = at_least - torch.nn.functional.pad(at_least[:, 1:], (0, 1))
        values, weight = self.values.flatten(1), self.multiplicity.flatten(1)
        return (exactly * _saturated(j, zeta)).sum(1) + (weight * _saturated(values, zeta)).sum(1)

    def terms(self, zeta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T and its first and minus its second derivative in ζ, each ``(G, E)``; ``zeta`` is ``(G, E)``."""
        value, first, second = self._small(zeta)
        if self.values.shape[-1]:
            parts = rising_terms(self.values, zeta.unsqueeze(-1))
            sums = [(self.multiplicity * p).sum(-1) for p in parts]
            value, first, second = value + sums[0], first + sums[1], second + sums[2]
        return value, first, second

    def _small(self, zeta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.exceed.shape[-1] < 2:
            zero = torch.zeros_like(zeta)
            return zero, zero, zero
        j = torch.arange(self.exceed.shape[-1], dtype=zeta.dtype, device=zeta.device)
        aj = torch.exp(-zeta).unsqueeze(-1) * j
        shrink = 1 / (1 + aj)
        slope = self.exceed * aj * shrink
        return (self.exceed * torch.log1p(aj)).sum(-1), -slope.sum(-1), -(slope * shrink).sum(-1)


def _saturated(y: Tensor, zeta: Tensor) -> Tensor:
    return torch.special.xlogy(y, y) - (y + torch.exp(zeta)) * torch.log1p(y * torch.exp(-zeta))


def rising_terms(y: Tensor, zeta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Log of a rising factorial, :math:`\log\Gamma(y + r) - \log\Gamma(r) - y\zeta`, and its derivatives in ζ.

    ``y`` is ``(..., U)`` and ``zeta`` ``(..., 1)``. For r ≥ 30 by Stirling's series of the difference, whose terms are
    all of the order of y² / r; below that by the gamma functions themselves.
    """
    terms = _rising_stirling(y, zeta)
    small = (zeta[..., 0] < math.log(STIRLING_FROM)).nonzero(as_tuple=True)
    if len(small[0]):
        for series, exact in zip(terms, _rising_gamma(y[small], zeta[small]), strict=True):
            series[small] = exact
    return terms


def _rising_gamma(y: Tensor, zeta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r = zeta.exp()
    s = y + r
    value = torch.lgamma(s) - torch.lgamma(r) - y * zeta
    slope = r * (torch.digamma(s) - torch.digamma(r))
    curve = r * r * (torch.polygamma(1, s) - torch.polygamma(1, r))
    return value, slope - y, -(slope + curve)


def _rising_stirling(y: Tensor, zeta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Log of a rising factorial and its two derivatives in ζ, by Stirling's series.

    With :math:`x = y/r`, :math:`s = r + y`:
    :math:`(s - \tfrac12)\log(1 + x) - y + \sum_k c_k (s^{1-2k} - r^{1-2k})`.
    """
    alpha, r = torch.exp(-zeta), torch.exp(zeta)
    x = y * alpha
    shrink = torch.reciprocal(1 + x)
    log1p = torch.log1p(x)
    odds = x * shrink
    series = x * x * (0.5 - x * (1 / 3 - x * (0.25 - x * (0.2 - x * (1 / 6 - x / 7)))))
    r_gap = torch.where(x < 5e-3, series, x - log1p).mul_(r)  # r [x − log(1 + x)]
    value = (y - 0.5).mul_(log1p).sub_(r_gap)
    first = (0.5 * odds).sub_(r_gap)
    second = r_gap.sub_(y * odds).add_(0.5 * odds * shrink)
    inverse_s = alpha * shrink
    c1, c2, c3 = STIRLING
    square_s, square_r = inverse_s.square(), alpha * alpha
    value += inverse_s * (c1 + square_s * (c2 + square_s * c3))
    value -= alpha * (c1 + square_r * (c2 + square_r * c3))
    slope_s = inverse_s * (c1 + square_s * (3 * c2 + square_s * (5 * c3)))
    first -= slope_s * shrink
    first += alpha * (c1 + square_r * (3 * c2 + square_r * (5 * c3)))
    bend_s = inverse_s * (2 * c1 + square_s * (12 * c2 + square_s * (30 * c3)))
    second -= (bend_s * shrink - slope_s) * shrink
    second += alpha * (c1 + square_r * (9 * c2 + square_r * (25 * c3)))
    return value, first, second
