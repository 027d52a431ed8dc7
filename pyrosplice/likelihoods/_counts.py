r"""Likelihoods of one count a spot (K = 1, Q = 1) with log link and known exposures: expression rather than usage.

.. math:: \mu_i = s_i e^{\eta_i}

The exposure :math:`s_i` (a size factor) belongs to the spot and is part of the likelihood object. A count of zero is
information here: no spot is left out.

Their ``terms`` leave out what depends on a count and the scale alone, which a table of counts serves better
(:class:`pyrosplice._expression.engine.count_table.CountTable`): :math:`-\log y!`, and for the negative binomial
:math:`\log\Gamma(y + r) - \log\Gamma(r) - y\zeta`. What is left knows a row by its total and its weight alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._cell_terms import LOG_LINK_LIMIT, Terms
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._rising import log_rising, rising_slope

SERIES_FROM = 8.0  # ζ from which differences of like terms are taken by series


class Poisson(Likelihood):
    r"""Poisson counts, :math:`y_i \sim \operatorname{Poisson}(s_i e^{\eta_i})`.

    Parameters
    ----------
    exposure
        s, ``(N,)``, positive; one for every spot if None.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.likelihoods import Poisson
    >>> model = MultinomGLM(likelihood=Poisson())  # one count a spot
    >>> model.setup_data(torch.tensor([[[2.0], [4.0], [6.0]]]))
    >>> model.fit(quiet=True)
    >>> round(model.bias_eta.exp().item(), 6)
    4.0
    """

    name = "Poisson"
    conditional = False
    log_concave = True
    n_categories = (1, 1)
    predictors = ("location",)
    by_totals = True

    def __init__(self, exposure: Tensor | None = None) -> None:
        if exposure is not None and not bool(((exposure > 0) & torch.isfinite(exposure)).all()):
            raise InvalidArgumentError("exposure: expected positive finite numbers, one a spot.")
        self.exposure = None if exposure is None else torch.as_tensor(exposure, dtype=torch.float64)

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density of the counts, ``y log μ − μ − log y!``."""
        return self.log_kernel(counts, eta) - torch.lgamma(counts[..., 0] + 1)

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density without ``−log y!``."""
        log_mean = self._log_mean(eta, Poisson)
        return counts[..., 0] * log_mean - log_mean.exp()

    def mean(self, eta: Tensor) -> Tensor:
        """Expected counts ``s e^η``."""
        return self._exposed(eta).exp().unsqueeze(-1)

    def variance(self, eta: Tensor) -> Tensor:
        """Variance of each count, which is the mean."""
        return self.mean(eta)

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw Poisson counts; ``totals`` are not used."""
        return torch.poisson(self.mean(eta), generator=generator)

    def start(self, counts: Tensor) -> Tensor:
        """Intercept to start from: the log of the count per exposure."""
        exposure = counts.shape[1] if self.exposure is None else self.exposure.sum()
        return ((counts.sum(1) + 0.5) / exposure).log()

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative in the predictor, ``y − μ``."""
        return counts - self._exposed(eta).exp().unsqueeze(-1)

    def curvature(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Information of a count about the predictor, which is its mean ``μ``."""
        return self._exposed(eta).exp()[..., None, None]

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """Log density of a row and its derivatives, ``t η − w e^η``."""
        eta = self._exposed(eta.unsqueeze(-1))
        mu = weight * eta.clamp_max(LOG_LINK_LIMIT).exp()
        zero = torch.zeros_like(mu)
        return Terms(total * eta - mu, total - mu, zero, mu, zero, zero)

    def location_information(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Tensor:
        """Expected information of a row about its predictor, ``w μ``."""
        return weight * self._exposed(eta.unsqueeze(-1)).clamp_max(LOG_LINK_LIMIT).exp()

    def _log_mean(self, eta: Tensor, kind: type[Poisson]) -> Tensor:
        """Log of the mean that the density of ``kind`` is taken around."""
        link = self.link_of(kind)
        return self._exposed(eta) if link is None else link(eta)[..., 0].log()

    def _exposed(self, eta: Tensor) -> Tensor:
        return eta[..., 0] if self.exposure is None else eta[..., 0] + self.exposure.to(eta).log()


class NegativeBinomial(Poisson):
    r"""Negative-binomial counts with mean :math:`\mu_i = s_i e^{\eta_i}` and variance :math:`\mu_i + \alpha\mu_i^2`.

    Parameters
    ----------
    dispersion
        α, one a gene: a number, ``(G, 1)``, or None to estimate it (site ``dispersion``). 0 excluded; α → 0 is the
        Poisson, and where data show no over-dispersion the estimate is a small number. In expression its scale
        predictor is :math:`\zeta = -\log\alpha`, the log of :math:`r = 1 / \alpha`.
    exposure
        As for :class:`Poisson`.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.likelihoods import NegativeBinomial
    >>> model = MultinomGLM(likelihood=NegativeBinomial())
    >>> model.setup_data(torch.tensor([[[2.0], [0.0], [9.0], [1.0], [8.0]]]))
    >>> model.fit(quiet=True)
    >>> round(model.bias_eta.exp().item(), 2), bool(model.dispersion > 0.1)
    (4.0, True)
    """

    name = "negative binomial"
    log_concave = True
    hyperparameters = {"dispersion": 0.3}  # noqa: RUF012 (read-only by its annotation)
    scale_sign = -1
    by_totals = True
    is_negative_binomial = True

    def __init__(self, dispersion: float | Tensor | None = None, exposure: Tensor | None = None) -> None:
        super().__init__(exposure)
        self.dispersion = dispersion

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density, ``log Γ(y + r) − log Γ(r) − log y! + y log(α μ) − (y + r) log(1 + α μ)``, r = 1/α."""
        y = counts[..., 0]
        return log_rising(1 / self._alpha(eta), y) - torch.lgamma(y + 1) + self.log_kernel(counts, eta)

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density without gamma functions, ``y log(α μ) − (y + r) log(1 + α μ)``."""
        y, alpha, log_mean = counts[..., 0], self._alpha(eta), self._log_mean(eta, NegativeBinomial)
        log_ratio = alpha.log() + log_mean
        return y * log_ratio - (y + 1 / alpha) * torch.nn.functional.softplus(log_ratio)

    def mean(self, eta: Tensor) -> Tensor:
        """Expected counts ``s e^η``."""
        return super().mean(eta)

    def variance(self, eta: Tensor) -> Tensor:
        """Variance of each count, ``μ + α μ²``."""
        mean = self.mean(eta)
        return mean + mean.square() * self._alpha(eta).unsqueeze(-1)

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a rate from the gamma distribution, then a Poisson count; ``totals`` are not used."""
        size = (1 / self._alpha(eta)).expand(eta.shape[:-1]).contiguous()
        rate = torch._standard_gamma(size, generator=generator) / size
        return torch.poisson(self.mean(eta) * rate.unsqueeze(-1), generator=generator)

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative in the predictor, ``(y − μ) / (1 + α μ)``.

        As ``y (1 − t) − t / α`` with ``t = α μ / (1 + α μ)`` it is finite at any η.
        """
        alpha, share, rest = self._shares(eta)
        return counts * rest - share / alpha

    def curvature(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Information of a count about the predictor, ``μ (1 + α y) / (1 + α μ)²``, as ``(1 / α + y) t (1 − t)``."""
        alpha, share, rest = self._shares(eta)
        return ((1 / alpha + counts) * share * rest).unsqueeze(-1)

    def hyper_gradient(
        self, counts: Tensor, eta: Tensor, names: Sequence[str], along: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r"""Derivatives in log α, with r = 1 / α and t as in :meth:`score`.

        Of a count: :math:`y - (y + r) t + r \log(1 + \alpha\mu) - r (\psi(y + r) - \psi(r))`, of its score
        :math:`t (r t - y (1 - t))`, and of its information :math:`t (1 - t) (y - 2 t (y + r))`.
        """
        if not names:
            return super().hyper_gradient(counts, eta, names, along, weight)
        alpha, share, rest = self._shares(eta)
        size = 1 / alpha
        spread = torch.nn.functional.softplus((self._alpha(eta).log() + self._exposed(eta)).unsqueeze(-1))
        slope = counts - (counts + size) * share + size * spread - size * rising_slope(size, counts)
        total = slope
        if along is not None:
            total = total + along * share * (size * share - counts * rest)
        if weight is not None:
            bend = share * rest * (counts - 2 * share * (counts + size))
            total = total - 0.5 * weight[..., 0] * bend
        return total.sum(-2), slope.square().sum(-2)

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """Log density of a row and its derivatives, ``t η − (t + w r) log(1 + μ/r)``.

        For row totals t and weights w; free of cancellation as r → ∞.
        """
        eta = self._exposed(eta.unsqueeze(-1))
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

    def location_information(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Tensor:
        """Expected information of a row about its predictor, ``w μ / (1 + μ / r)``."""
        mean = self._exposed(eta.unsqueeze(-1)).clamp_max(LOG_LINK_LIMIT).exp()
        return weight * (mean / (1 + mean * torch.exp(-zeta)))

    def _shares(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """α, t and 1 − t, against ``(..., N, 1)``."""
        alpha = self._alpha(eta)
        log_odds = (alpha.log() + self._exposed(eta)).unsqueeze(-1)
        return alpha.unsqueeze(-1), torch.sigmoid(log_odds), torch.sigmoid(-log_odds)

    def _alpha(self, eta: Tensor) -> Tensor:
        return torch.as_tensor(self.dispersion, dtype=eta.dtype, device=eta.device)


def _gap(u: Tensor, log1p: Tensor, odds: Tensor, zeta: Tensor) -> Tensor:
    """Difference ``log(1 + u) − u / (1 + u)``, by its series where u is small and the dispersion too."""
    gap = log1p - odds
    nearly_poisson = (zeta > SERIES_FROM).any(1).nonzero()[:, 0]
    if len(nearly_poisson):
        v = u[nearly_poisson]
        series = v * v * (0.5 - v * (2 / 3 - v * (0.75 - v * (0.8 - v * (5 / 6 - v * (6 / 7 - v * 0.875))))))
        gap[nearly_poisson] = torch.where(v < 1e-2, series, gap[nearly_poisson])
    return gap
