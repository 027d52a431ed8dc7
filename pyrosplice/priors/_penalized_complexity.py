r"""Penalised-complexity priors of the variance components (Simpson et al. 2017, Stat. Sci. 32:1; Riebler et al. 2016).

A component is penalised by its distance from the simpler model without it, :math:`d = \sqrt{2\,\mathrm{KLD}}`, at a
constant rate: d is exponential. For σ the simpler model is σ = 0, and d is proportional to σ. For the spatial share
it is θ = 0 at the same total variance,

.. math:: 2\,\mathrm{KLD}(\theta) = -\log |(1 - \theta) I + \theta V|,

which has a greatest value d(1): the exponential is truncated there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from torch import Tensor

from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.priors._symmetric_normal import SymmetricNormal

KNOTS = np.linspace(-10.0, 10.0, 81)  # of logit θ; beyond them the limits θ → 0 and θ → 1 hold to about 0.1 %


def pc_sigma(upper: float = 2.0, probability: float = 0.05) -> dist.Exponential:
    """Exponential prior of σ, the size of the random effect in logits, with ``P(σ > upper) = probability``.

    Examples
    --------
    >>> from pyrosplice.priors import pc_sigma
    >>> prior = pc_sigma(upper=2.0, probability=0.05)
    >>> round(1 - prior.cdf(prior.mean.new_tensor(2.0)).item(), 3)
    0.05
    """
    if not upper > 0 or not 0 < probability < 1:
        raise InvalidArgumentError(
            f"upper, probability: expected a positive number and one in (0, 1), found {upper!r} and {probability!r}."
        )
    return dist.Exponential(torch.tensor(-math.log(probability) / upper, dtype=torch.float64))


def pc_theta(covariance: object, upper: float = 0.5, probability: float = 2 / 3) -> SpatialShare:
    """Prior of ``theta_logit``, the spatial share of the variance, with ``P(θ < upper) = probability``, for V.

    Parameters
    ----------
    covariance
        V, as ``corr_sp``: an object with ``precision`` or ``dense()``, or a dense ``(N, N)`` tensor.
    upper, probability
        Numbers in (0, 1). The probability must be greater than under d uniform up to d(1); the error says how large
        that is.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.priors import pc_theta
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    >>> prior = pc_theta(CarCovariance(knn_graph(spots)), upper=0.5, probability=0.7)
    >>> prior.log_prob(torch.tensor([-2.0, 0.0, 2.0])).shape
    torch.Size([3])
    """
    solver = covariance if isinstance(covariance, SpatialSolver) else solver_for(covariance)
    odds = torch.from_numpy(np.exp(KNOTS))
    factor = solver.factorize(odds[:, None, None, None].expand(-1, solver.n_spots, 1, 1).contiguous())
    explained = (factor.logdet() - solver.prior_logdet).numpy()  # log |I + r V|, r = θ / (1 − θ)
    trace = factor.spot_covariance().sum((1, 2, 3)).numpy()
    double = np.maximum(solver.n_spots * np.log1p(odds.numpy()) - explained, 1e-300)  # 2 KLD
    slope = 0.5 * odds.numpy() * (solver.n_spots / (1 + odds.numpy()) - trace)
    distance = np.sqrt(double)
    at = float(np.exp(np.interp(math.log(upper / (1 - upper)), KNOTS, np.log(distance))))
    share, top = probability, float(distance[-1])
    if not at / top < share < 1:
        raise InvalidArgumentError(
            f"probability: expected more than {at / top:.3g} (d({upper:g}) / d(1)) and less than 1, found {share!r}."
        )
    rate = brentq(lambda r: math.expm1(-r * at) / math.expm1(-r * top) - share, 1e-6 / top, 1e3 / at)
    return SpatialShare(torch.from_numpy(distance), torch.from_numpy(slope / distance), rate)


class SpatialShare(TorchDistribution):
    """Distribution of logit θ whose distance d(θ) is a truncated exponential; made by :func:`pc_theta`.

    Parameters
    ----------
    distance, slope
        d and its derivative in logit θ at :data:`KNOTS`.
    rate
        Rate of the exponential.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        distance: Tensor,
        slope: Tensor,
        rate: float,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.distance, self.slope, self.rate = distance, slope, float(rate)
        self._curves = [CubicSpline(KNOTS, values.log().numpy()).c for values in (distance, slope)]
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> SpatialShare:
        """Copy the distribution to a larger batch shape."""
        return SpatialShare(self.distance, self.slope, self.rate, torch.Size(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of logit θ; differentiable."""
        low, high = value.clamp_max(KNOTS[0]) - KNOTS[0], value.clamp_min(KNOTS[-1]) - KNOTS[-1]
        log_distance = self._curve(0, value) + low
        log_slope = self._curve(1, value) + low - high  # d ∝ θ near 0, d(1) − d ∝ 1 − θ near 1
        whole = math.log(-math.expm1(-self.rate * float(self.distance[-1])))
        return math.log(self.rate) - self.rate * log_distance.exp() + log_slope - whole

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw logit θ, by inversion."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=torch.float64)
        top = -math.expm1(-self.rate * float(self.distance[-1]))
        distance = -torch.log1p(-top * uniform) / self.rate
        logs = self.distance.log().numpy()
        found = np.interp(distance.log().numpy(), logs, KNOTS)
        below = np.minimum(distance.log().numpy() - logs[0], 0.0)
        return torch.from_numpy(np.asarray(found + below))

    def _curve(self, which: int, value: Tensor) -> Tensor:
        inside = value.clamp(KNOTS[0], KNOTS[-1])
        step = KNOTS[1] - KNOTS[0]
        piece = ((inside.detach() - KNOTS[0]) / step).long().clamp(0, len(KNOTS) - 2)
        x = inside - (KNOTS[0] + step * piece)
        cubic, square, line, constant = (torch.from_numpy(c)[piece] for c in self._curves[which])
        return ((cubic * x + square) * x + line) * x + constant


def weak_priors(
    covariance: object = None, likelihood: Likelihood | None = None, *, isoform_effect: IsoformEffect = "independent"
) -> dict[str, Any]:
    """Weakly informative, proper priors of every site: what posteriors of (σ, θ) need.

    ==================== ============================================= ==================================
    site                 prior                                         says
    ==================== ============================================= ==================================
    ``beta``             Normal(0, 1)                                  odds of 7 either way are unusual
    ``bias_eta``         Normal(0, 3)
    ``sigma``            exponential                                   P(σ > 2) = 0.05
    ``theta_logit``      penalised complexity, or θ uniform without V  P(θ < ½) = ⅔
    hyper-parameters     LogNormal(log start, 1.5)                     within a factor of 20
    ==================== ============================================= ==================================

    Parameters
    ----------
    covariance
        V, for the prior of θ.
    likelihood
        For its free hyper-parameters.
    isoform_effect
        Isoform effect of the model. With ``"symmetric"`` the priors of ``beta`` and ``bias_eta`` say the same of the
        log odds of any two isoforms (:class:`~pyrosplice.priors.SymmetricNormal`), not only of those against the last
        one.

    Examples
    --------
    >>> from pyrosplice.likelihoods import DirichletMultinomial
    >>> from pyrosplice.priors import weak_priors
    >>> sorted(weak_priors(likelihood=DirichletMultinomial()))
    ['beta', 'bias_eta', 'concentration', 'sigma', 'theta_logit']
    """
    check_option("isoform_effect", isoform_effect, get_args(IsoformEffect))

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    zero = number(0.0)
    own = {} if likelihood is None else {name: likelihood.hyperparameters[name] for name in likelihood.free}
    normal = SymmetricNormal if isoform_effect == "symmetric" else partial(dist.Normal, zero)
    return {
        "beta": normal(number(1.0)),
        "bias_eta": normal(number(3.0)),
        "sigma": pc_sigma(),
        "theta_logit": dist.Logistic(zero, number(1.0)) if covariance is None else pc_theta(covariance),
        **{name: dist.LogNormal(number(math.log(start)), number(1.5)) for name, start in own.items()},
    }
