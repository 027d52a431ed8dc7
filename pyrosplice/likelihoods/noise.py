r"""Noise of an expression GLM: the density of one count given its location and scale predictors.

Arrays are ``(G, N)``, genes first; genes never interact. A cell with predictors η (location) and ζ (scale) has

================  ====================================  ===========================
noise             mean                                  scale
================  ====================================  ===========================
NegativeBinomial  :math:`\mu = e^\eta`                  :math:`r = e^\zeta`, variance :math:`\mu + \mu^2 / r`
Poisson           :math:`\mu = e^\eta`                  none
Normal            :math:`\mu = \eta`                    standard deviation :math:`\sigma = e^\zeta`
================  ====================================  ===========================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosplice.errors import NotStatedError
from pyrosplice.likelihoods.rising import log_rising
from pyrosplice.overrides import Extensible

LOG_LINK_LIMIT = 300.0  # exp stays finite, and so does its square
SERIES_FROM = 8.0  # ζ from which differences of like terms are taken by series


class Terms(NamedTuple):
    """Log density of each entry and its derivatives, all ``(G, N)``; ``h_*`` are minus second derivatives."""

    value: Tensor
    g_eta: Tensor
    g_zeta: Tensor
    h_eta: Tensor
    h_cross: Tensor
    h_zeta: Tensor


class Noise(Extensible):
    r"""Log density :math:`\log p(y \mid \eta, \zeta)` and its derivatives.

    ================ ======== ==========================================================================
    what to override required for
    ================ ======== ==========================================================================
    ``distribution`` yes      the Pyro model; everything else works from its ``log_prob`` by autograd
    ``terms``        no       speed: log density and derivatives in closed form
    ``inverse_link`` no       a mean that is not :math:`e^\eta`
    ================ ======== ==========================================================================

    A subclass of a shipped noise that overrides ``distribution`` is that distribution: what its parent has in closed
    form goes back to autograd, unless it gives it again. ``terms`` of a class of one's own include all of the log
    density; only those of a class that says so with ``additive`` leave out what a table of counts serves.
    """

    closed_forms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "terms": ("distribution",),
        "variance": ("distribution", "log_link"),
        "expected_weight": ("distribution", "variance", "inverse_link", "log_link"),
        "additive": ("distribution", "terms"),
        "is_negative_binomial": ("distribution", "terms"),
    }
    name: str = "noise"
    log_link: bool = True
    has_scale: bool = True
    is_negative_binomial: bool = False  # exp(−ζ) is its dispersion, and terms() are those of NegativeBinomial
    additive: bool = False  # terms() sees a row only through (total, weight): rows may be summed before fitting

    def distribution(self, eta: Tensor, zeta: Tensor) -> dist.TorchDistribution:
        """Distribution of one observation, batch shape that of ``eta``."""
        raise NotStatedError(f"{type(self).__name__} has no distribution; override Noise.distribution.")

    def inverse_link(self, eta: Tensor) -> Tensor:
        """Mean of an observation with location predictor ``eta``."""
        return eta.exp() if self.log_link else eta

    def variance(self, mean: Tensor, zeta: Tensor) -> Tensor:
        """Variance of an observation with this mean and scale predictor."""
        eta = mean.log() if self.log_link else mean
        return self.distribution(eta, zeta).variance

    def expected_weight(self, eta: Tensor, zeta: Tensor) -> Tensor:
        r"""Expected information of one observation on η: :math:`(d\mu/d\eta)^2 / \operatorname{var} y`."""
        mean = self.inverse_link(eta)
        return (mean.square() if self.log_link else 1.0) / self.variance(mean, zeta)

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """Weighted log density and derivatives of rows with ``total`` = weight × observation."""
        observed = torch.where(weight > 0, total / weight, torch.zeros_like(total))
        with torch.enable_grad():
            e = eta.detach().clone().requires_grad_(True)
            z = zeta.detach().expand_as(e).clone().requires_grad_(True)
            value = weight * self.distribution(e, z).log_prob(observed)
            g_e, g_z = _grad(value, e, z)
            h_ee, h_ez = _grad(g_e, e, z)
            _, h_zz = _grad(g_z, e, z)
        return Terms(*(t.detach() for t in (value, g_e, g_z, -h_ee, -h_ez, -h_zz)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _grad(value: Tensor, e: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    if not value.requires_grad:
        return torch.zeros_like(e), torch.zeros_like(z)
    grads = torch.autograd.grad(value.sum(), (e, z), create_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(e) if g is None else g for g in grads)  # type: ignore[return-value]


class ExactGammaPoisson(dist.GammaPoisson):
    """The Gamma–Poisson with a density that is right at any concentration.

    The gamma functions of Pyro's cancel at large ones: at 1e12, where the negative binomial is the Poisson, a log
    density is wrong by 0.01.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``log Γ(r + y) − log Γ(r) − log y! − r log(1 + μ / r) − y log(1 + r / μ)``."""
        r, rate = self.concentration, self.rate
        beyond = torch.log1p(1 / rate)  # of the odds μ / r
        value = value.to(beyond)
        return log_rising(r, value) - torch.lgamma(value + 1) - r * beyond - value * (rate.log() + beyond)


class NegativeBinomial(Noise):
    r"""NB2 counts, :math:`\operatorname{var} y = \mu + \alpha \mu^2` with dispersion :math:`\alpha = e^{-\zeta}`.

    :meth:`terms` leaves out :math:`\log\Gamma(y + r) - \log\Gamma(r) - y\zeta - \log y!`, which depends on a count
    and the scale alone: a table of counts a gene serves better
    (:class:`pyrosplice.expression.engine.count_table.CountTable`). What is left depends on a row only through its total
    and its weight, so rows of equal predictors may be summed.
    """

    name = "nb"
    additive = True
    is_negative_binomial = True

    def distribution(self, eta: Tensor, zeta: Tensor) -> dist.TorchDistribution:
        """Gamma–Poisson with concentration r and rate r / μ; fractional counts have a density too."""
        r = zeta.exp()
        return ExactGammaPoisson(concentration=r, rate=r * torch.exp(-eta), validate_args=False)

    def variance(self, mean: Tensor, zeta: Tensor) -> Tensor:
        """``μ + μ² / r``."""
        return mean + mean.square() * torch.exp(-zeta)

    def expected_weight(self, eta: Tensor, zeta: Tensor) -> Tensor:
        """``μ / (1 + μ / r)``."""
        mean = eta.clamp_max(LOG_LINK_LIMIT).exp()
        return mean / (1 + mean * torch.exp(-zeta))

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """``t η − (t + w r) log(1 + μ/r)`` for row totals t and weights w, free of cancellation as r → ∞."""
        r = zeta.clamp_max(LOG_LINK_LIMIT).exp()
        u = (eta - zeta).clamp_(max=LOG_LINK_LIMIT).exp_()
        log1p, shrink = torch.log1p(u), torch.reciprocal(u + 1)
        odds = u * shrink
        wr = weight * r
        both = total + wr
        fitted = both * odds
        spread = total * odds
        wr_gap = _gap(u, log1p, odds, zeta).mul_(wr)
        cross = torch.mul(wr, u).sub_(total).mul_(odds).mul_(shrink)
        return Terms(
            value=total * eta - both.mul_(log1p),
            g_eta=total - fitted,
            g_zeta=spread - wr_gap,
            h_eta=fitted.mul_(shrink),
            h_cross=cross,
            h_zeta=spread.mul_(shrink).add_(wr_gap).sub_(odds.square_().mul_(wr)),
        )


def _gap(u: Tensor, log1p: Tensor, odds: Tensor, zeta: Tensor) -> Tensor:
    """``log(1 + u) − u / (1 + u)``, by its series where u is small and the dispersion so small that it matters."""
    gap = log1p - odds
    nearly_poisson = (zeta > SERIES_FROM).any(1).nonzero()[:, 0]
    if len(nearly_poisson):
        v = u[nearly_poisson]
        series = v * v * (0.5 - v * (2 / 3 - v * (0.75 - v * (0.8 - v * (5 / 6 - v * (6 / 7 - v * 0.875))))))
        gap[nearly_poisson] = torch.where(v < 1e-2, series, gap[nearly_poisson])
    return gap


class Poisson(Noise):
    """Poisson counts: no scale."""

    name = "poisson"
    has_scale = False
    additive = True

    def distribution(self, eta: Tensor, zeta: Tensor) -> dist.TorchDistribution:
        """Poisson with mean ``exp(eta)``."""
        return dist.Poisson(eta.exp(), validate_args=False)

    def variance(self, mean: Tensor, zeta: Tensor) -> Tensor:
        """The mean."""
        return mean

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """``t η − w e^η``; the constant ``−log y!`` is left to the table of counts."""
        mu = weight * eta.clamp_max(LOG_LINK_LIMIT).exp()
        zero = torch.zeros_like(mu)
        return Terms(total * eta - mu, total - mu, zero, mu, zero, zero)


class Normal(Noise):
    """Gaussian observations with identity link; the scale predictor is the log standard deviation."""

    name = "norm"
    log_link = False

    def distribution(self, eta: Tensor, zeta: Tensor) -> dist.TorchDistribution:
        """Normal with mean ``eta`` and standard deviation ``exp(zeta)``."""
        return dist.Normal(eta, zeta.exp())

    def variance(self, mean: Tensor, zeta: Tensor) -> Tensor:
        """``exp(2 ζ)``."""
        return torch.exp(2 * zeta).expand_as(mean)

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """``−w [log √(2π) + ζ + (y − η)² e^{−2ζ} / 2]``."""
        precision = torch.exp(-2 * zeta)
        residual = torch.where(weight > 0, total / weight, torch.zeros_like(total)) - eta
        wp = weight * precision
        quadratic = wp * residual.square()
        return Terms(
            value=-weight * (0.5 * math.log(2 * math.pi) + zeta) - 0.5 * quadratic,
            g_eta=wp * residual,
            g_zeta=quadratic - weight,
            h_eta=wp.expand_as(eta),
            h_cross=2 * wp * residual,
            h_zeta=2 * quadratic,
        )


NOISE: dict[str, type[Noise]] = {cls.name: cls for cls in (NegativeBinomial, Poisson, Normal)}
