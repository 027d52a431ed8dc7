r"""The expression GLM as a Pyro model: one regression a gene, location and scale.

.. math::

    a_g &\sim p(a), \quad b_g \sim p(b) \\
    \eta_{gi} &= x_i' a_g + o_{gi}, \quad \zeta_{gi} = z_i' b_g + c_i \\
    y_{gi} &\sim \operatorname{Likelihood}(\eta_{gi}, \zeta_{gi})

For the negative binomial the mean is :math:`e^\eta` and the dispersion :math:`e^{-\zeta}`
(:mod:`pyrosplice.likelihoods`).

====================  =========  ========================================================================
what to override      required   for
====================  =========  ========================================================================
``__call__``          no         other sites, another density; in the plates ``genes`` (−2) and ``cells``
====================  =========  ========================================================================

``ExpressionGLM(model=MyModel)`` fits a subclass, or a function of ``counts`` and those of the constructor's arguments
that it names.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._cell_counts import CellCounts
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._counts import NegativeBinomial


class ExpressionModel:
    """Callable Pyro model with sites ``location`` (G, 1, P), ``scale`` (G, 1, R) and ``counts`` (G, N).

    Parameters
    ----------
    location, scale : Tensor (N, P), (N, R)
        Designs.
    likelihood : Likelihood
        Noise of one count given its predictors; negative binomial by default.
    location_prior, scale_prior : Distribution, optional
        Prior of each coefficient, batch shape () or (P,), (R,). Flat where None: the mode is then the maximum of
        the likelihood.
    offset : Tensor (N,) or (G, N), optional
        Added to the location predictor (log size factors).
    zeta_offset : Tensor (N,), optional
        Added to the scale predictor.

    Raises
    ------
    InvalidArgumentError
        For designs of different lengths.
    """

    def __init__(  # noqa: PLR0913 (a documented interface)
        self,
        location: Tensor,
        scale: Tensor,
        *,
        likelihood: Likelihood | None = None,
        location_prior: dist.TorchDistribution | None = None,
        scale_prior: dist.TorchDistribution | None = None,
        offset: Tensor | None = None,
        zeta_offset: Tensor | None = None,
    ) -> None:
        if len(location) != len(scale):
            raise InvalidArgumentError(f"scale: expected {len(location)} rows as in location, found {len(scale)}.")
        self.location, self.scale, self.likelihood = location, scale, likelihood or NegativeBinomial()
        self.location_prior = _coefficient_prior(location_prior, location)
        self.scale_prior = _coefficient_prior(scale_prior, scale)
        self.offset = location.new_zeros(len(location)) if offset is None else offset
        self.zeta_offset = location.new_zeros(len(location)) if zeta_offset is None else zeta_offset

    def __call__(self, counts: Tensor | None = None, *, n_genes: int | None = None) -> Tensor:
        """Sample the model, or score ``counts`` ``(G, N)``; returns the counts."""
        n_cells = len(self.location)
        g = n_genes if counts is None else len(counts)
        if g is None:
            raise InvalidArgumentError("n_genes: expected the number of genes where counts is None.")
        genes, cells = pyro.plate("genes", g, dim=-2), pyro.plate("cells", n_cells, dim=-1)
        with genes:
            a = pyro.sample("location", self.location_prior)
            b = pyro.sample("scale", self.scale_prior)
            eta = a.squeeze(-2) @ self.location.T + self.offset
            zeta = b.squeeze(-2) @ self.scale.T + self.zeta_offset
            with cells:
                return pyro.sample("counts", CellCounts(self.likelihood, eta, zeta), obs=counts)

    @property
    def n_coefficients(self) -> tuple[int, int]:
        """P and R."""
        return self.location.shape[1], self.scale.shape[1]


def _coefficient_prior(prior: dist.TorchDistribution | None, design: Tensor) -> dist.TorchDistribution:
    size = design.shape[1]
    if prior is None:
        return dist.ImproperUniform(dist.constraints.real_vector, (), (size,))
    return prior.expand(torch.Size([size])).to_event(1)
