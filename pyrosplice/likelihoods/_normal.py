"""Normal observations: numbers that may be negative, one a cell, around their linear predictor."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosplice.likelihoods._cell_terms import Terms
from pyrosplice.likelihoods._contract import Likelihood


class Normal(Likelihood):
    r"""Normal observations with identity link, :math:`y_i \sim \mathcal N(\eta_i, \sigma^2)`.

    Parameters
    ----------
    sd
        σ, one a gene: a number, ``(G, 1)``, or None to estimate it (site ``sd``). In expression its scale predictor is
        :math:`\zeta = \log\sigma`.

    Notes
    -----
    In a mixed model, σ²(1 − θ) of the random effect is variation of the same kind: hold one of the two.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.likelihoods import Normal
    >>> model = MultinomGLM(likelihood=Normal())  # measurements, not counts
    >>> model.setup_data(torch.tensor([[[1.5], [-0.5], [2.0], [1.0]]]))
    >>> model.fit(quiet=True)
    >>> round(model.bias_eta.item(), 4)
    1.0
    """

    name = "normal"
    conditional = False
    of_counts = False
    log_concave = True
    n_categories = (1, 1)
    predictors = ("location",)
    hyperparameters = {"sd": 1.0}  # noqa: RUF012 (read-only by its annotation)

    def __init__(self, sd: float | Tensor | None = None) -> None:
        self.sd = sd

    def distribution(self, eta: Tensor) -> dist.TorchDistribution:
        """Normal distribution around the predictor."""
        sd = torch.as_tensor(self.sd, dtype=eta.dtype, device=eta.device).unsqueeze(-1)
        return dist.Normal((self.link_of(Normal) or torch.clone)(eta), sd)

    def start(self, counts: Tensor) -> Tensor:
        """Intercept to start from: the mean."""
        return counts.mean(1)

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """Log density of a row and its derivatives, ``−w [log √(2π) + ζ + (y − η)² e^{−2ζ} / 2]``."""
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

    def location_information(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Tensor:
        """Expected information of a row about its predictor, ``w / σ²``."""
        return weight * torch.exp(-2 * zeta).expand_as(eta)
