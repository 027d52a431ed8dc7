r"""Isoform usage as Pyro models: the specification that every engine of the library is tested against.

For gene g, spot i with :math:`n_{gi}` molecules, logits k = 1..Q of the isoforms against the last one:

.. math::

   y_{gi} &\sim \operatorname{Multinomial}(n_{gi}, \operatorname{softmax}([\eta_{gi}, 0])) \\
   \eta_g &= X \beta_g + 1 b_g' + \nu_g \\
   \nu_{gk} &\sim \mathcal N(0, \sigma_{gk}^2 (\theta_{gk} V + (1 - \theta_{gk}) I))

independently over the logits or, with ``isoform_effect="symmetric"``, with covariance :math:`I + 11'` between them:
then :math:`\nu_{gk} = \psi_{gk} - \psi_{gK}`, and the ψ of the K isoforms are independent and have that law each.

Both classes are callables without arguments, so ``pyro.poutine``, ``pyro.infer.NUTS`` and ``pyro.infer.SVI`` take them
as they are; ``pyro.poutine.uncondition(model)`` draws the counts instead of conditioning on them, for ``Predictive``.

To change the model, pass ``priors=`` and ``likelihood=``, or subclass and override one method:

====================  =========  =========================================================
what to override      required   for
====================  =========  =========================================================
``sample_latents``    no         other sites, or other dependence between them
``linear_predictor``  no         another predictor from the values of the sites
``__call__``          no         another density of the counts
====================  =========  =========================================================

``MultinomGLM(model=MyModel)`` and ``MultinomGLMM(model=MyModel)`` fit it (an estimator whose property ``model`` is
overridden does too): what has the density of the shipped model goes by the engine of that, everything else by
:mod:`pyrosplice.guides`. A function that samples will do as well; it gets those of the constructor's arguments that it
names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrosplice.effects._isoform_effect import IsoformEffect, check_isoform_effect
from pyrosplice.glmm._distributions import EigenCovariance, SpatialEffect, SpotCounts, carried
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.priors._named import Priors, check_priors, named_priors
from pyrosplice.priors._sites import REAL_SITES, complete_priors


class MultinomialGLM:
    """Pyro model of isoform counts with covariates and without a random effect.

    Parameters
    ----------
    counts
        ``(G, N, K)``.
    design
        Covariates ``(N, P)``, P may be 0; the intercept is the site ``bias_eta``.
    likelihood
        Density of a spot's counts; :class:`Multinomial` by default.
    priors
        Pyro distributions by site (:mod:`pyrosplice.priors._sites`) or ``"weak"``
        (:func:`~pyrosplice.priors.weak_priors`); flat by default.

    Notes
    -----
    Sites: ``beta`` ``(G, P, Q)`` (none when P = 0), ``bias_eta`` ``(G, Q)`` and the likelihood's free hyper-parameters
    ``(G, 1)`` by their names, in the plate ``genes`` (dim −1); ``counts`` in the plates ``rows`` (the same genes,
    dim −2) and ``spots`` (dim −1). A flat prior is improper: it has a density but no draws of its own, so simulating
    the prior asks for proper ones.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.glmm import MultinomialGLM
    >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
    >>> model = MultinomialGLM(counts, torch.linspace(-1, 1, 25).double()[:, None])
    >>> from pyro import poutine
    >>> sites = poutine.trace(model).get_trace().nodes
    >>> sites["beta"]["value"].shape, sites["counts"]["value"].shape
    (torch.Size([2, 1, 2]), torch.Size([2, 25, 3]))
    """

    real_sites: Collection[str] = REAL_SITES  # every other site is positive

    def __init__(
        self,
        counts: Tensor,
        design: Tensor,
        *,
        likelihood: Likelihood | None = None,
        priors: Priors = None,
    ) -> None:
        self.counts = counts
        self.design = design
        self.totals = counts.sum(-1)
        self.likelihood = likelihood or Multinomial()
        name, shapes = check_priors(priors, real=self.real_sites), self.site_shapes()
        if name is not None:
            priors = self._named(name, shapes)
        self.priors = complete_priors(
            priors,  # type: ignore[arg-type]  # no name any more
            shapes,
            real=self.real_sites,
        )

    def _named(self, name: str, sites: Collection[str]) -> dict[str, Any]:
        """The priors of that name."""
        return named_priors(name, sites, covariance=None, likelihood=self.likelihood)

    def site_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each site that takes a prior, genes first.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.glmm import MultinomialGLM
        >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
        >>> model = MultinomialGLM(counts, torch.linspace(-1, 1, 25).double()[:, None])
        >>> model.site_shapes()
        {'beta': (2, 1, 2), 'bias_eta': (2, 2)}
        """
        n_genes, _, n_isos = self.counts.shape
        n_logits = self.likelihood.n_predictors(n_isos)
        own = dict.fromkeys(self.likelihood.free, (n_genes, 1))
        return {"beta": (n_genes, self.design.shape[1], n_logits), "bias_eta": (n_genes, n_logits), **own}

    def latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each latent site that :meth:`sample_latents` samples, genes first.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.glmm import MultinomialGLM
        >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
        >>> model = MultinomialGLM(counts, torch.linspace(-1, 1, 25).double()[:, None])
        >>> model.latent_shapes()
        {'beta': (2, 1, 2), 'bias_eta': (2, 2)}
        """
        return self.site_shapes()

    def sample_latents(self) -> dict[str, Tensor]:
        """Sample every latent site (called inside the plate of genes); values by site.

        Examples
        --------
        >>> import pyro
        >>> import torch
        >>> from pyrosplice.glmm import MultinomialGLM
        >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
        >>> model = MultinomialGLM(counts, torch.linspace(-1, 1, 25).double()[:, None])
        >>> with pyro.plate("genes", 2, dim=-1):
        ...     values = model.sample_latents()
        >>> values["bias_eta"].shape
        torch.Size([2, 2])
        """
        return {name: self._sample(name) for name in self.priors}

    def _sample(self, name: str) -> Tensor:
        prior = self.priors[name]
        if prior.event_shape.numel() == 0:  # no covariates: nothing to sample
            return self.design.new_zeros(prior.shape())
        return pyro.sample(name, prior)

    def linear_predictor(self, values: Mapping[str, Tensor]) -> Tensor:
        """Linear predictor η ``(..., G, N, Q)`` from the values of the sites.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.glmm import MultinomialGLM
        >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
        >>> model = MultinomialGLM(counts, torch.linspace(-1, 1, 25).double()[:, None])
        >>> values = {"beta": torch.zeros(2, 1, 2).double(), "bias_eta": torch.ones(2, 2).double()}
        >>> model.linear_predictor(values).shape
        torch.Size([2, 25, 2])
        """
        return self.design @ values["beta"] + values["bias_eta"].unsqueeze(-2)

    def __call__(self) -> Tensor:
        """Run the model once; returns η ``(..., G, N, Q)``."""
        n_genes, n_spots, n_isos = self.counts.shape
        with pyro.plate("genes", n_genes, dim=-1):
            values = self.sample_latents()
        eta = self.linear_predictor(values)
        own = {name: values[name] for name in self.likelihood.free}
        if eta.ndim > 3:  # draws come to the left of the plates; dim −2 of the latents belongs to no plate
            eta, own = eta.squeeze(-4), {name: value.squeeze(-3) for name, value in own.items()}
        with pyro.plate("rows", n_genes, dim=-2), pyro.plate("spots", n_spots, dim=-1):
            pyro.sample("counts", SpotCounts(self.likelihood.bind(own), self.totals, eta, n_isos), obs=self.counts)
        return eta


class MultinomialGLMM(MultinomialGLM):
    """Pyro model of isoform counts with covariates and a spatial random effect on each logit.

    Parameters
    ----------
    counts, design, likelihood, priors
        As in :class:`MultinomialGLM`.
    covariance
        Spatial covariance V: dense ``(N, N)``, its decomposition, or whatever describes it
        (:class:`~pyrosplice.spatial.car.CarCovariance`), which a fit does not decompose.
    share_variance
        One (σ, θ) a gene (shape ``(G, 1)``), or one per logit (``(G, Q)``).
    fixed
        Values of sites that are known rather than latent, e.g. ``{"sigma": tensor}``.
    isoform_effect
        ``"independent"``: ν of the logits are independent, and what isoform is the last matters. ``"symmetric"``: those
        of a spot have covariance I + 11' (times the variance), so that it does not
        (:mod:`pyrosplice.effects._isoform_effect`). Asks for ``share_variance``, and a likelihood of K − 1 logits.

    Notes
    -----
    More sites in the plate ``genes``: ``sigma``, ``theta_logit`` and ``nu`` ``(G, N, Q)``. Whatever ``isoform_effect``
    is, ν is on the scale of the logits against the last isoform: η is the fixed part plus ν. σ is the standard
    deviation of a logit's ν (``"independent"``), or of the effect of an isoform on the scale of the softmax
    (``"symmetric"``), where a logit, the difference of two isoforms, has √2 σ.

    Raises
    ------
    InvalidArgumentError
        ``isoform_effect="symmetric"`` without ``share_variance``, or with a likelihood of other predictors.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.glmm import MultinomialGLMM
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
    >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))))
    >>> model = MultinomialGLMM(counts, torch.zeros(25, 0).double(), covariance)
    >>> from pyro import poutine
    >>> model.latent_shapes()
    {'beta': (2, 0, 2), 'bias_eta': (2, 2), 'sigma': (2, 1), 'theta_logit': (2, 1), 'nu': (2, 25, 2)}
    """

    def __init__(  # noqa: PLR0913 (a documented interface)
        self,
        counts: Tensor,
        design: Tensor,
        covariance: object,
        *,
        share_variance: bool = True,
        likelihood: Likelihood | None = None,
        priors: Priors = None,
        fixed: Mapping[str, Tensor] | None = None,
        isoform_effect: IsoformEffect = "independent",
    ) -> None:
        check_isoform_effect(
            isoform_effect, share_variance=share_variance, likelihood=likelihood or Multinomial(), counts=counts
        )
        self.isoform_effect = isoform_effect
        self.space = carried(EigenCovariance.from_dense(covariance) if isinstance(covariance, Tensor) else covariance)
        self.share_variance = share_variance
        self.fixed = dict(fixed or {})
        super().__init__(counts, design, likelihood=likelihood, priors=priors)

    def site_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each site that takes a prior, genes first."""
        shapes = super().site_shapes()
        n_genes, n_logits = shapes["bias_eta"]
        components = (n_genes, 1 if self.share_variance else n_logits)
        return {**shapes, "sigma": components, "theta_logit": components}

    def latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each latent site that :meth:`sample_latents` samples, genes first."""
        shapes = {name: shape for name, shape in self.site_shapes().items() if name not in self.fixed}
        return {**shapes, "nu": (len(self.counts), self.design.shape[0], shapes["bias_eta"][1])}

    def _named(self, name: str, sites: Collection[str]) -> dict[str, Any]:
        space = None if self.space.is_identity else self.space.solver
        return named_priors(
            name, sites, covariance=space, likelihood=self.likelihood, isoform_effect=self.isoform_effect
        )

    @property
    def covariance(self) -> EigenCovariance:
        """Spatial covariance V, decomposed."""
        return self.space.eigen

    def effect(self, values: Mapping[str, Tensor]) -> SpatialEffect:
        """Distribution of ν given the values of the other sites.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.glmm import MultinomialGLMM
        >>> from pyrosplice.spatial import CarCovariance, knn_graph
        >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
        >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))))
        >>> model = MultinomialGLMM(counts, torch.zeros(25, 0).double(), covariance)
        >>> values = {"sigma": torch.full((2, 1), 0.5).double(), "theta_logit": torch.zeros(2, 1).double()}
        >>> values["bias_eta"] = torch.zeros(2, 2).double()
        >>> effect = model.effect(values)
        >>> effect.batch_shape, effect.event_shape
        (torch.Size([2]), torch.Size([25, 2]))
        """
        n_logits, kind = values["bias_eta"].shape[-1], self.isoform_effect
        return SpatialEffect(self.space, values["sigma"], values["theta_logit"], n_logits, isoform_effect=kind)

    def sample_latents(self) -> dict[str, Tensor]:
        """Sample the latent sites that are not fixed, then ν given its variances."""
        values = {name: self.fixed[name] if name in self.fixed else self._sample(name) for name in self.priors}
        return {**values, "nu": pyro.sample("nu", self.effect(values))}

    def linear_predictor(self, values: Mapping[str, Tensor]) -> Tensor:
        """Linear predictor η ``(..., G, N, Q)`` from the values of the sites."""
        return super().linear_predictor(values) + values["nu"]


def log_density(model: Callable[[], Any], values: Mapping[str, Tensor]) -> Tensor:
    """Joint log density of each gene ``(G,)`` under a Pyro model at given values of its latent sites.

    Differentiable in ``values``. Sums to ``poutine.trace(model).get_trace().log_prob_sum()``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.glmm import MultinomialGLM, log_density
    >>> counts = torch.poisson(torch.full((2, 25, 3), 5.0), generator=torch.Generator().manual_seed(0)).double()
    >>> model = MultinomialGLM(counts, torch.linspace(-1, 1, 25).double()[:, None])
    >>> values = {name: torch.zeros(shape).double() for name, shape in model.latent_shapes().items()}
    >>> log_density(model, values).shape  # of each gene
    torch.Size([2])
    """
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data=dict(values))).get_trace()
    trace.compute_log_prob()
    total: Tensor | float = 0.0
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not pyro.poutine.util.site_is_subsample(site):
            total = total + (site["log_prob"].sum(-1) if name == "counts" else site["log_prob"])
    return torch.as_tensor(total)
