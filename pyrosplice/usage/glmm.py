"""``MultinomGLMM``: isoform usage with covariates and a spatial random effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrosplice.effects.isoform_effect import IsoformEffect, basis_of, check_isoform_effect
from pyrosplice.errors import check_option
from pyrosplice.glmm.batches import MixedEngine
from pyrosplice.glmm.distributions import EigenCovariance
from pyrosplice.glmm.fitted_guides import LaplaceGuide, PointGuide
from pyrosplice.glmm.glm_objective import Standardisation
from pyrosplice.glmm.joint import JointFit, fit_joint
from pyrosplice.glmm.marginal import MarginalFit, fit_marginal
from pyrosplice.glmm.multinomial import MultinomialGLMM
from pyrosplice.glmm.objective import LogPrior
from pyrosplice.glmm.random_effect import (
    LARGEST_LOGIT,
    START_THETA_LOGIT,
    fano_sigma,
    logit_of,
    observed_effect,
    spatial_solver,
    uniform_effect,
)
from pyrosplice.glmm.snapshots import Snapshots, joined
from pyrosplice.guides.own_fit import OwnFit
from pyrosplice.guides.own_model import Program, random_effects
from pyrosplice.likelihoods.contract import Likelihood
from pyrosplice.modes import works_in_any_mode
from pyrosplice.optimize.bfgs import Minimiser
from pyrosplice.optimize.convergence import Convergence
from pyrosplice.priors.named import Priors, with_variance_prior
from pyrosplice.priors.sites import SITES, complete_priors, is_flat
from pyrosplice.reasons import Reason
from pyrosplice.usage.configs import kept_history, search_options
from pyrosplice.usage.infinite import endless_variance
from pyrosplice.usage.own_usage import FollowedModel
from pyrosplice.usage.reading.inputs import as_covariance, spot_names, warn_if_collinear
from pyrosplice.usage.refinement import ImportanceSampling


@works_in_any_mode
class MultinomGLMM(ImportanceSampling):
    r"""Multinomial generalized linear mixed model of isoform usage in space.

    .. math::
        y_i \sim \operatorname{Multinomial}(n_i, \operatorname{softmax}([\eta_i, 0])), \quad
        \eta = X\beta + 1b' + \nu, \quad \nu_k \sim N(0, \sigma_k^2 (\theta_k V + (1 - \theta_k) I))

    The last isoform is the reference of η. By default it is also special to the random effect, see ``isoform_effect``.

    Parameters
    ----------
    share_variance
        One (σ, θ) for all logits of a gene, or one each.
    var_fix_sigma
        Hold σ at its value before the fit: the Fano-factor start of ``setup_data`` unless changed by
        ``update_params_from_dict``. That start measures counting noise as well; for inference on (σ, θ) use False
        with a marginal method.
    var_prior_model, var_prior_model_params
        Prior of σ: ``"none"``, ``"gamma"`` on σ (alpha 2, rate beta 0.3) or ``"inv_gamma"`` on σ² (alpha 3, beta 0.5);
        as a density of σ, see :func:`~pyrosplice.priors.sites.variance_prior`. Not beside ``priors["sigma"]``.
    init_ratio
        Value of ν before the fit: ``"uniform"`` 0, ``"observed"`` the log of the spots' smoothed ratios. The mode of ν
        is unique, so fits do not depend on it.
    fitting_method
        Joint: maximise the joint density of counts and ν over everything. Its optimum in (σ, θ) is degenerate by
        nature (θ runs to 1 whatever the data; without a prior σ runs to 0, reported as "unbounded"). Marginal:
        maximise the Laplace approximation of the marginal likelihood, ν integrated out; what tests rest on. ``*_gd``
        first-order by ``fitting_configs["optim"]``; ``*_newton`` by BFGS from the expected information. In all of
        them ν follows its mode by Newton's method at every evaluation. β maximises the marginal likelihood with only
        ν integrated out (as TMB does), not jointly with ν (as INLA and mgcv do).
    fitting_configs
        As for :class:`MultinomGLM`, and ``update_nu_every_k``, accepted for compatibility: ν is always at its mode.
        The Newton methods stop at a gradient norm of 1e-3 (nats per logit, σ, and radian of arcsin √θ) or tighter if
        ``tol`` asks for it.
    likelihood, priors
        As for :class:`MultinomGLM`; ``priors`` also of ``sigma`` and ``theta_logit``.
    model
        As for :class:`MultinomGLM`. Marginal methods integrate its random effects out by Laplace's method
        (:class:`~pyrosplice.guides.AutoMarginalLaplace`): the sites that its attribute ``random_effects`` names, else
        ``nu`` and every other site whose density depends on another one, ``beta`` and ``bias_eta`` aside. A σ that is
        held is the site ``sigma``.
    isoform_effect
        Covariance of ν between the logits of a spot. ``"independent"`` (default, the documented model): none, so that
        fits depend on which isoform is the last. ``"symmetric"``: I + 11', which is an independent effect of variance
        σ² of every isoform on the scale of the softmax, so that they do not, as far as the priors do not (``"weak"``
        ones do not either, see :class:`~pyrosplice.priors.SymmetricNormal`). Needs ``share_variance``, and a likelihood
        whose predictors are the K − 1 logits.

    Attributes
    ----------
    beta, bias_eta, nu, sigma, theta_logit
        ``(G, P, Q)``, ``(G, Q)``, ``(G, N, Q)``, and ``(G, 1)`` or ``(G, Q)``. θ at a boundary has logit ±36. ν is of
        the logits against the last isoform, whatever ``isoform_effect``; under ``"symmetric"`` its standard deviation
        is √2 σ (with two isoforms the models are the same, and σ is smaller by √2).
    gradient_norm, pareto_k
        Norm of the objective's gradient at the estimates (NaN before a fit) and k̂ after :meth:`refine`, ``(G,)``.
    log_marginal_null
        For marginal methods: log marginal likelihood at the gene's own θ = 0 optimum, ``(G,)``.

    Raises
    ------
    InvalidArgumentError
        An unknown option or a value that does not fit.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> from pyrosplice.spatial.car import get_cov_sp
    >>> generator = torch.Generator().manual_seed(0)
    >>> counts = torch.randint(0, 10, (5, 100, 3), generator=generator)
    >>> coords = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(counts, corr_sp=get_cov_sp(coords, k=4, rho=0.9))
    >>> model.fit()
    >>> model.nu.shape, model.sigma.shape
    (torch.Size([5, 100, 2]), torch.Size([5, 1]))
    """

    nu: Tensor
    sigma: Tensor
    theta_logit: Tensor
    _engine: MixedEngine
    _prior_sites = SITES
    _methods = ("joint_gd", "joint_newton", "marginal_gd", "marginal_newton")

    def __init__(  # noqa: PLR0913 (a documented interface)
        self,
        share_variance: bool = True,
        var_fix_sigma: bool = True,
        var_prior_model: str = "none",
        var_prior_model_params: Mapping[str, float] | None = None,
        init_ratio: str = "uniform",
        fitting_method: str = "joint_gd",
        fitting_configs: Mapping[str, Any] | None = None,
        *,
        likelihood: Likelihood | None = None,
        priors: Priors = None,
        isoform_effect: IsoformEffect = "independent",
        model: Program | None = None,
    ) -> None:
        for name, value in (("share_variance", share_variance), ("var_fix_sigma", var_fix_sigma)):
            check_option(name, value, (True, False))
        check_option("init_ratio", init_ratio, ("observed", "uniform"))
        priors = with_variance_prior(priors, var_prior_model, var_prior_model_params)
        super().__init__(fitting_method, fitting_configs, likelihood=likelihood, priors=priors, model=model)
        check_isoform_effect(isoform_effect, share_variance=share_variance, likelihood=self.likelihood)
        self.isoform_effect = isoform_effect
        self.share_variance, self.var_fix_sigma, self.init_ratio = share_variance, var_fix_sigma, init_ratio
        self.var_prior_model, self.var_prior_model_params = var_prior_model, dict(var_prior_model_params or {})
        self.gradient_norm = torch.zeros(0, dtype=torch.float64)
        self.log_marginal_null: Tensor | None = None
        self._eigen: EigenCovariance | None = None

    def _default_configs(self) -> dict[str, Any]:
        return {**super()._default_configs(), "patience": 5, "update_nu_every_k": 1}

    @property
    def is_marginal(self) -> bool:
        """Whether the objective is the marginal likelihood rather than the joint density."""
        return self.fitting_method.startswith("marginal")

    def setup_data(  # type: ignore[override]  # the documented order of arguments
        self,
        counts: Any,
        corr_sp: Any = None,
        design_mtx: Any = None,
        device: str | torch.device = "cpu",
        corr_sp_eigvals: Any = None,
        corr_sp_eigvecs: Any = None,
    ) -> None:
        """Take the data; forgets an earlier fit.

        Parameters
        ----------
        counts, design_mtx, device
            As for :meth:`MultinomGLM.setup_data`.
        corr_sp
            Spatial covariance V: ``(N, N)``, where a table goes by the names of the spots; an object with a sparse
            ``precision`` such as :class:`~pyrosplice.spatial.car.CarCovariance`; or a
            :class:`~pyrosplice.linalg.solver.SpatialSolver`, to share one between models. A dense V whose inverse is
            sparse is recognised; the identity means that nothing is spatial (θ is reported as 0).
        corr_sp_eigvals, corr_sp_eigvecs
            Leading eigenpairs ``(r,)``, ``(N, r)`` of V instead. With r < N the lost part of its diagonal (of
            ``corr_sp`` if given too, else of ones) is kept as independent variance.

        Raises
        ------
        InvalidArgumentError, NotImplementedError
            As for :meth:`MultinomGLM.setup_data`; also without a covariance or with one of another size.
        """
        table, design = self._checked(counts, design_mtx, device)
        given = as_covariance(spot_names(counts), corr_sp, corr_sp_eigvals, corr_sp_eigvecs)
        solver = spatial_solver(*given, n_spots=table.shape[1], device=table.device)
        shapes, scaling = self._site_shapes(table, design), Standardisation.of(design)
        check_isoform_effect(
            self.isoform_effect, share_variance=self.share_variance, likelihood=self.likelihood, counts=table
        )
        engine = MixedEngine(table, scaling, solver, self._guarded, basis_of(self.isoform_effect, table))
        space = solver if solver is None or solver.remainder is None else engine.dense_covariance()
        self._named_priors(shapes, space, self.isoform_effect)
        if is_flat(complete_priors(self.priors, shapes)["beta"]):
            warn_if_collinear(design)
        self._set_data(table, design)
        self._engine = engine
        self._eigen, self.log_marginal_null = None, None
        self.gradient_norm = torch.full_like(table[:, 0, 0], torch.nan)
        values = self._start_values(table, shapes)
        values["sigma"] = fano_sigma(table).expand(shapes["sigma"])
        values["theta_logit"] += START_THETA_LOGIT if solver is not None else -LARGEST_LOGIT
        effect = observed_effect if self.init_ratio == "observed" else uniform_effect
        self._set_parameters({**values, "nu": effect(table, shapes["bias_eta"][1])})

    def fit(
        self,
        store_param_history: bool = False,
        verbose: bool = False,
        quiet: bool = False,
        random_seed: int | None = None,
        diagnose: bool | None = None,
    ) -> dict[str, Tensor] | None:
        """Fit every gene; each stops on its own, see ``logger``.

        Searches start from closed-form values, not from the present parameters (σ excepted, where it is held), so a
        second fit gives the same result.

        Parameters
        ----------
        store_param_history
            Return the parameters at every evaluation of the last search, and the estimates as the last entry:
            ``{"beta": (E, G, P, Q), "nu": (E, G, N, Q), ...}``.
        verbose, quiet, random_seed, diagnose
            As for :meth:`MultinomGLM.fit`.

        Raises as :meth:`MultinomGLM.fit` does.
        """
        self._require_data()
        keep, own_program = kept_history(store_param_history, diagnose), self._program_to_fit()
        if own_program is not None:
            self._fit_own(own_program, keep=keep, verbose=verbose, quiet=quiet)
            return None
        self._require_followed()
        self._errors.clear()
        began = time.perf_counter()
        searched = self.fitting_configs["max_epochs"] != 0
        record, histories = self._search(keep) if searched else (self._without_epochs(), [])
        self._name_trouble(record)
        self._finish(record, time.perf_counter() - began, verbose=verbose, quiet=quiet)
        if not keep:
            return None
        last = {name: value.detach().unsqueeze(0) for name, value in self.named_parameters()}
        past = joined(histories) if searched else {}
        return {name: torch.cat([past.get(name, value[:0]), value]) for name, value in last.items()}

    def forward(self) -> Tensor:
        """Objective of each gene at the present parameters, ``(G,)``, constants included.

        Marginal methods: Laplace log marginal likelihood. Joint methods: joint log density of counts and ν. Plus the
        log prior. Differentiable in the parameters.
        """
        self._require_data()
        if self._followed() is not None:
            return super().forward()
        parameters = self._engine.parameters(self.beta, self.bias_eta, self.sigma, self.theta_logit)
        if self.is_marginal:
            return self._engine_here().log_marginal(parameters) + self.log_prior_density()
        return self._engine_here().log_joint(parameters, self.nu) + self.log_prior_density()

    def linear_predictor(self) -> Tensor:
        """η ``(G, N, Q)`` at the present parameters, ν included."""
        fixed_part = super().linear_predictor()
        return fixed_part + self.nu if self._own is None else fixed_part

    def var_total(self) -> Tensor:
        """σ², ``(G, 1)`` or ``(G, Q)``."""
        self._require_data()
        return self.sigma.detach().square()

    def var_sp_prop(self) -> Tensor:
        """θ, the spatial share of the variance, ``(G, 1)`` or ``(G, Q)``."""
        self._require_data()
        return torch.sigmoid(self.theta_logit.detach())

    def shipped_model(self) -> MultinomialGLMM:
        """The library's Pyro model of the data and options; decomposes the dense V, so N in the thousands."""
        self._require_data()
        return MultinomialGLMM(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        if self._eigen is None:
            self._eigen = EigenCovariance.from_dense(self._engine.dense_covariance())
        fixed = {name: getattr(self, name).detach().clone() for name in self._held()}
        own = {"share_variance": self.share_variance, "isoform_effect": self.isoform_effect}
        return {**super()._arguments(), "covariance": self._eigen, "fixed": fixed, **own}

    def _asked(self) -> dict[str, str]:
        asked = super()._asked()
        if self._engine.solver is not None:
            asked["covariance"] = "corr_sp: a covariance of the spots (IdentityCovariance is none)"
        if not self.share_variance:
            asked["share_variance"] = "share_variance=False"
        if self.isoform_effect != "independent":
            asked["isoform_effect"] = f"isoform_effect={self.isoform_effect!r}"
        return asked

    def _without(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, FollowedModel]]:
        yield from super()._without(values)
        if self.isoform_effect != "independent":
            yield f"isoform_effect={self.isoform_effect!r}", self._changed(isoform_effect="independent")

    def _known_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super()._known_shapes()
        return {**shapes, "nu": (self.n_genes, self.n_spots, shapes["bias_eta"][1])}

    def _effects(self, program: Program, name: str, values: Mapping[str, Tensor]) -> list[str]:
        return random_effects(program, name, values, ("beta", "bias_eta")) if self.is_marginal else []

    def _take_own(self, own: OwnFit) -> None:
        super()._take_own(own)
        self.gradient_norm, self.log_marginal_null = own.guide.optimum.gradient.norm(dim=1), None

    @property
    def guide(self) -> Callable[[], dict[str, Tensor]]:
        """A Pyro guide: every site at its fitted value, and ν from its Laplace posterior for the marginal methods."""
        self._require_data()
        own = self._followed()
        if own is not None:
            return own.guide
        every = (name for name in (*SITES, *self.likelihood.free) if name not in self._held())
        values = {name: getattr(self, name).detach() for name in every if getattr(self, name).numel()}
        if self.is_marginal:
            return LaplaceGuide(values, self.random_effect_posterior())
        return PointGuide({**values, "nu": self.nu.detach()})

    def _rows(self) -> dict[str, str]:
        kind = "of every isoform alike" if self.isoform_effect == "symmetric" else "of independent logits"
        return {**super()._rows(), "effect": kind}

    def _site_shapes(self, counts: Tensor, design: Tensor) -> dict[str, tuple[int, ...]]:
        shapes = super()._site_shapes(counts, design)
        n_genes, n_logits = shapes["bias_eta"]
        components = (n_genes, 1 if self.share_variance else n_logits)
        return {**shapes, "sigma": components, "theta_logit": components}

    def _search(self, keep: bool) -> tuple[Convergence, list[dict[str, Tensor]]]:
        """Fit all genes; with ``keep`` also the sites' values along each batch's search."""
        record = Convergence.start(self.n_genes, device=self.device)
        fits, histories = [], []
        for genes in self._engine.batches():
            snapshots = Snapshots(self._minimiser()) if keep else None
            fits.append(self._fit_batch(genes, snapshots or self._minimiser()))
            record.absorb(fits[-1].convergence, genes)
            if snapshots is not None:
                histories.append(self._sites(snapshots.stacked(), genes))
        self._take(fits)
        return record, histories

    def _fit_batch(self, genes: Tensor, minimiser: Minimiser) -> JointFit | MarginalFit:
        sigma, options = self.sigma.detach()[genes], search_options(self.fitting_configs)
        model, prior = self._engine.model(genes), self._engine_prior(genes)
        if not self.is_marginal:
            return fit_joint(
                model, sigma=sigma, fix_sigma=self.var_fix_sigma, log_prior=prior, options=options, minimiser=minimiser
            )
        return fit_marginal(
            model, share_variance=self.share_variance, fixed_sigma=sigma if self.var_fix_sigma else None,
            log_prior=prior, options=options, minimiser=minimiser,
        )  # fmt: skip

    def _engine_prior(self, genes: Tensor) -> LogPrior | None:
        prior = self._log_prior()
        return None if prior is None else self._engine.own_prior(prior, genes)

    def _take(self, fits: Sequence[JointFit | MarginalFit]) -> None:
        """Make the estimates of all batches the parameters."""
        names = ("coefficients", "sigma", "theta", "nu", "gradient_norm")
        found = {name: torch.cat([getattr(fit, name) for fit in fits]) for name in names}
        found |= {name: torch.cat([fit.hyper[name] for fit in fits]) for name in self.likelihood.free}
        self.gradient_norm = found.pop("gradient_norm")
        nulls = [fit.log_marginal_null for fit in fits if isinstance(fit, MarginalFit)]
        self.log_marginal_null = torch.cat(nulls) if nulls else None
        self._set_parameters(self._sites(found, torch.arange(self.n_genes, device=self.device)))

    def _sites(self, found: Mapping[str, Tensor], genes: Tensor) -> dict[str, Tensor]:
        """Estimates of the engine for some genes, with any leading dimensions, as values of the sites."""
        theta = found["theta"] if self._engine.solver is not None else torch.zeros_like(found["theta"])
        own = {name: found[name] for name in ("nu", "sigma", *self.likelihood.free)}
        return {**self._engine.weights(found["coefficients"], genes), "theta_logit": logit_of(theta), **own}

    def _name_trouble(self, record: Convergence) -> None:
        if self.is_marginal and "sigma" not in (*self._held(), *self._free_priors()) and len(record.loss_history) > 1:
            endless = endless_variance(self.counts, self.sigma.detach(), record.converged)
            record.finish(torch.nonzero(endless).squeeze(-1), Reason.ALL_OR_NOTHING)
        super()._name_trouble(record)
