"""Pyro guides that are fitted by Newton's method, unit by unit, for any Pyro model: modes and Laplace's method.

=============================  =====================================================================================
guide                          what it is
=============================  =====================================================================================
:class:`AutoNewtonMAP`         all latent sites at their joint mode (``AutoDelta`` without a learning rate)
:class:`AutoMarginalLaplace`   some sites (random effects) integrated out, the others at the mode of what is left
=============================  =====================================================================================

Both are Pyro ``AutoGuide`` s: ``median``, ``quantiles``, ``get_posterior``, ``Predictive(model, guide=guide)``,
``Trace_ELBO`` and ``init_to_value(values=guide.median())`` for NUTS work as they do for Pyro's own. Beside that they
have ``fit``, ``report()`` (one row a unit), ``path`` (what ran, and why) and ``sample_posterior``.

The units of a model (genes, patients) are the elements of a plate that holds every latent site; they are found to be
problems apart by derivatives at every fit, or the model is refused. Without such a plate it is one problem. Discrete
sites are summed out; flat priors and constrained supports are taken; a model in float32 is worked on in float64.

``AutoMarginalLaplace`` takes the library's sparse engine where numbers show that it fits the same density: observed
``SpotCounts`` around a predictor to which one ``SpatialEffect`` is added. Anything else goes the generic way.

>>> import pyro, torch
>>> import pyro.distributions as dist
>>> from pyrosplice.guides import AutoMarginalLaplace
>>> def zero_inflated(counts):
...     genes = len(counts)
...     with pyro.plate("genes", genes, dim=-2):
...         gate = pyro.sample("gate", dist.Beta(torch.full((genes, 1), 2.0), 2.0))
...         level = pyro.sample("level", dist.Normal(torch.zeros(genes, 1), 3.0))
...         spread = pyro.sample("spread", dist.HalfNormal(torch.ones(genes, 1)))
...         with pyro.plate("spots", counts.shape[1], dim=-1):
...             effect = pyro.sample("effect", dist.Normal(0.0, spread.expand(counts.shape)))
...             rate = (level + effect).exp()
...             pyro.sample("counts", dist.ZeroInflatedPoisson(rate, gate=gate.expand(counts.shape)), obs=counts)
>>> counts = torch.poisson(torch.full((2, 40), 4.0), generator=torch.Generator().manual_seed(1))
>>> counts[:, ::3] = 0
>>> guide = AutoMarginalLaplace(zero_inflated, marginalize=["effect"]).fit(counts)
>>> guide.report()["converged"].tolist()
[True, True]
>>> guide.sample_posterior(5, seed=0)["effect"].shape
torch.Size([5, 2, 40])
"""

from pyrosplice.guides._auto_units import AutoUnits
from pyrosplice.guides._first_points import init_to_center
from pyrosplice.guides._marginal_laplace import AutoMarginalLaplace
from pyrosplice.guides._newton_map import AutoNewtonMAP, AutoUnitNormal
from pyrosplice.guides._precisions import DiagonalPrecision, MatrixPrecision, precision
from pyrosplice.guides._searches import FitOptions

__all__ = [
    "AutoMarginalLaplace",
    "AutoNewtonMAP",
    "AutoUnitNormal",
    "AutoUnits",
    "DiagonalPrecision",
    "FitOptions",
    "MatrixPrecision",
    "init_to_center",
    "precision",
]
