"""``MultinomGLMM``: isoform usage with covariates and a spatial random effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrosplice._modes import works_in_any_mode
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._usage import laplace_modes, own_usage, refinement
from pyrosplice._usage.configs import minimizer_of, search_options
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.grouped import grouped_methods
from pyrosplice._usage.grouped.given_groups import read_groups
from pyrosplice._usage.grouped.grouped_fit import GroupedFit
from pyrosplice._usage.infinite import endless_variance
from pyrosplice._usage.reading.inputs import as_covariance, spot_names, warn_if_collinear
from pyrosplice._usage.search import MixedSearch
from pyrosplice.effects._isoform_effect import IsoformEffect, basis_of, check_isoform_effect
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches
from pyrosplice.glmm._batches import MixedEngine
from pyrosplice.glmm._distributions import EigenCovariance
from pyrosplice.glmm._fitted_guides import LaplaceGuide, PointGuide
from pyrosplice.glmm._glm_objective import StandardCoordinates
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._multinomial import MultinomialGLMM
from pyrosplice.glmm._random_effect import INIT_RATIOS, spatial_solver, start_of_effect
from pyrosplice.guides._own_fit import OwnFit
from pyrosplice.guides._own_model import Program, integrated_sites
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.priors._named import Priors, with_variance_prior
from pyrosplice.priors._sites import SITES, complete_priors, is_flat
from pyrosplice.reasons import Reason


@works_in_any_mode
class MultinomGLMM(MultinomGLM):
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
        Hold σ at its value before the fit: the Fano-factor start unless changed by ``update_params_from_dict``. That
        start measures counting noise as well; for inference on (σ, θ) use False with a marginal method.
    var_prior_model, var_prior_model_params
        Prior of σ: ``"none"``, ``"gamma"`` on σ (alpha 2, rate beta 0.3) or ``"inv_gamma"`` on σ² (alpha 3, beta 0.5);
        as a density of σ, see :func:`~pyrosplice.priors._sites.variance_prior`. Not beside ``priors["sigma"]``.
    init_ratio
        Value of ν before the fit, on which none depends: ``"uniform"`` 0, ``"observed"`` logs of smoothed ratios.
    fitting_method
        Joint: maximise the joint density of counts and ν, whose optimum in (σ, θ) is degenerate by nature (θ runs to 1
        whatever the data; without a prior σ runs to 0, reported as "unbounded"). Marginal: maximise the Laplace
        approximation of the marginal likelihood, only ν integrated out (as TMB does; INLA and mgcv take β at the joint
        mode with ν); what tests rest on. ``*_gd`` first-order by ``fitting_configs["optim"]``; ``*_newton`` by BFGS
        from the expected information. In all of them ν follows its mode at every evaluation.
    fitting_configs
        As for :class:`MultinomGLM`, and ``update_nu_every_k``, accepted for compatibility. The Newton methods stop at
        a gradient norm of 1e-3 (nats per logit, σ, and radian of arcsin √θ) or tighter if ``tol`` asks for it.
    likelihood, priors
        As for :class:`MultinomGLM`; ``priors`` also of ``sigma`` and ``theta_logit``.
    model
        As for :class:`MultinomGLM`. Marginal methods integrate its random effects out by Laplace's method
        (:class:`~pyrosplice.guides.AutoMarginalLaplace`): the sites that its attribute ``random_effects`` names, else
        ``nu`` and every other site whose density depends on another one, ``beta`` and ``bias_eta`` aside. A σ that is
        held is the site ``sigma``.
    isoform_effect
        Covariance of ν between the logits of a spot, see :mod:`pyrosplice.effects._isoform_effect`: ``"independent"``
        (default, as documented: fits depend on which isoform is the last), or ``"symmetric"``, with which they do not
        as far as the priors do not (``"weak"`` ones do not), for ``share_variance`` and predictors that are logits.

    Attributes
    ----------
    beta, bias_eta, nu, sigma, theta_logit
        ``(G, P, Q)``, ``(G, Q)``, ``(G, N, Q)``, and ``(G, 1)`` or ``(G, Q)``. θ at a boundary has logit ±36. ν is of
        the logits against the last isoform, whatever ``isoform_effect``; under ``"symmetric"`` its standard deviation
        is √2 σ (with two isoforms the models are the same, and σ is smaller by √2).
    gradient_norm, pareto_k, log_marginal_null
        Norm of the objective's gradient at the estimates (NaN before a fit), k̂ after :meth:`refine`, and, of marginal
        methods, the log marginal likelihood at the gene's own θ = 0 optimum, ``(G,)`` each.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> from pyrosplice.spatial.car import get_cov_sp
    >>> counts = torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0))
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
    pareto_k: Tensor | None
    log_marginal_null: Tensor | None = None
    _eigen: EigenCovariance | None = None
    _grouped: GroupedFit | None = None
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
        check_switches(share_variance=share_variance, var_fix_sigma=var_fix_sigma)
        check_option("init_ratio", init_ratio, INIT_RATIOS)
        priors = with_variance_prior(priors, var_prior_model, var_prior_model_params)
        super().__init__(fitting_method, fitting_configs, likelihood=likelihood, priors=priors, model=model)
        check_isoform_effect(isoform_effect, share_variance=share_variance, likelihood=self.likelihood)
        self.isoform_effect, self.init_ratio = isoform_effect, init_ratio
        self.share_variance, self.var_fix_sigma = share_variance, var_fix_sigma
        self.var_prior_model, self.var_prior_model_params = var_prior_model, dict(var_prior_model_params or {})
        self.gradient_norm = torch.zeros(0, dtype=torch.float64)

    def _default_configs(self) -> dict[str, Any]:
        return {**super()._default_configs(), "patience": 5, "update_nu_every_k": 1}

    @property
    def is_marginal(self) -> bool:
        """Whether the objective is the marginal likelihood rather than the joint density."""
        return self.fitting_method.startswith("marginal")

    def setup_data(  # type: ignore[override]  # noqa: PLR0913 (the documented arguments, in their order)
        self,
        counts: object,
        corr_sp: object = None,
        design_mtx: object = None,
        device: str | torch.device = "cpu",
        corr_sp_eigvals: object = None,
        corr_sp_eigvecs: object = None,
        *,
        groups: object = None,
        table: object = None,
    ) -> None:
        """Take the data; forgets an earlier fit.

        Parameters
        ----------
        counts, design_mtx, device
            As for :meth:`MultinomGLM.setup_data`.
        corr_sp
            Spatial covariance V: ``(N, N)``, where a table goes by the names of the spots; an object with a sparse
            ``precision`` such as :class:`~pyrosplice.spatial.car.CarCovariance`; or a
            :class:`~pyrosplice._linalg.solver.SpatialSolver`, to share one between models. A dense V whose inverse is
            sparse is recognised; the identity means that nothing is spatial (θ is reported as 0).
        corr_sp_eigvals, corr_sp_eigvecs
            Leading eigenpairs ``(r,)``, ``(N, r)`` of V instead. With r < N the lost part of its diagonal (of
            ``corr_sp`` if given too, else of ones) is kept as independent variance.
        groups
            Random effects of groups of spots beside ν: N labels; several, ``{"section": labels, "donor": labels}``;
            or of columns of ``table`` an effect such as ``Groups("donor", slopes="~ 1 + age")``, terms such as
            ``"(1 | donor/section)"``, or a list of these. All is then estimated by restricted likelihood
            (:class:`~pyrosplice.glmm.CountGLMM`, flat priors), which needs ``fitting_method="marginal_newton"`` and
            ``var_fix_sigma=False``; the covariance between logits is ``isoform_effect``. Without ``corr_sp``
            nothing is spatial.
        table
            DataFrame with a row a spot, paired with a table of counts by the names of the spots.

        Raises
        ------
        InvalidArgumentError, NotImplementedError
            As for :meth:`MultinomGLM.setup_data`; also without a covariance or with one of another size; groups that
            cannot be read or told apart, options that a fit with groups does not have, or a table without groups.
        """
        counted, design = self._checked(counts, design_mtx, device)
        if groups is not None:
            read = read_groups(groups, table, counted.shape[1], spot_names(counts))
            field = corr_sp, corr_sp_eigvals, corr_sp_eigvecs
            grouped_methods.set_grouped(self, (counted, design), field, read, counts)
            return
        if table is not None:
            raise InvalidArgumentError("table: it has the columns of groups, and there are none; leave it out.")
        given = as_covariance(spot_names(counts), corr_sp, corr_sp_eigvals, corr_sp_eigvecs)
        solver = spatial_solver(*given, n_spots=counted.shape[1], device=counted.device)
        shapes, effect = self._site_shapes(counted, design), self.isoform_effect
        check_isoform_effect(effect, share_variance=self.share_variance, likelihood=self.likelihood, counts=counted)
        engine = MixedEngine(counted, StandardCoordinates.of(design), solver, self._guarded, basis_of(effect, counted))
        space = solver if solver is None or solver.remainder is None else engine.dense_covariance()
        self._named_priors(shapes, covariance=space, isoform_effect=effect)
        if is_flat(complete_priors(self.priors, shapes)["beta"]):
            warn_if_collinear(design)
        self._set_data(counted, design)
        self._engine, self._grouped = engine, None
        self._eigen = self.log_marginal_null = self.pareto_k = None
        self.gradient_norm = torch.full_like(counted[:, 0, 0], torch.nan)
        sizes = {"n_logits": shapes["bias_eta"][1], "n_components": shapes["sigma"][1]}
        start = start_of_effect(counted, **sizes, spatial=solver is not None, init_ratio=self.init_ratio)
        self._set_parameters({**self._start_values(counted, shapes), **start})

    def forward(self) -> Tensor:
        """Objective of each gene at the present parameters, ``(G,)``, constants included.

        Marginal methods: Laplace log marginal likelihood. Joint methods: joint log density of counts and ν. Plus the
        log prior. Differentiable in the parameters. Beside groups: the restricted log likelihood at the estimates.
        """
        self._require_data()
        if self._grouped is not None:
            return self._grouped.effects.log_likelihood
        if self._followed() is not None:
            return super().forward()
        engine, parameters = self._present()
        density = engine.log_marginal(parameters) if self.is_marginal else engine.log_joint(parameters, self.nu)
        return density + self.log_prior_density()

    def linear_predictor(self) -> Tensor:
        """η ``(G, N, Q)`` at the present parameters, ν and effects of groups included."""
        fixed_part = super().linear_predictor()
        if self._grouped is not None:
            return fixed_part + self.nu + self._grouped.levels()
        return fixed_part + self.nu if self._own is None else fixed_part

    def var_total(self) -> Tensor:
        """σ², ``(G, 1)`` or ``(G, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLMM
        >>> from pyrosplice.spatial import get_cov_sp
        >>> counts = torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0))
        >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
        >>> model.setup_data(counts, corr_sp=get_cov_sp(torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))))
        >>> model.fit(quiet=True)
        >>> bool((model.var_total() == model.sigma**2).all())
        True
        """
        self._require_data()
        return self.sigma.detach().square()

    def var_sp_prop(self) -> Tensor:
        """θ, the spatial share of the variance, ``(G, 1)`` or ``(G, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLMM
        >>> from pyrosplice.data import simulate_counts
        >>> from pyrosplice.spatial import CarCovariance, knn_graph
        >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))))
        >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
        >>> counts = simulate_counts(covariance, n_genes=3, depth=30, sigma=1.5, theta=1.0, seed=0)
        >>> model.setup_data(counts, corr_sp=covariance)
        >>> model.fit(quiet=True)
        >>> (model.var_sp_prop() > 0.5).tolist()  # all of the variance was spatial
        [[True], [True], [True]]
        """
        self._require_data()
        return torch.sigmoid(self.theta_logit.detach())

    posterior_mode = laplace_modes.posterior_mode
    random_effect_posterior = laplace_modes.random_effect_posterior

    def observed_information(self) -> tuple[Tensor, StandardCoordinates]:
        """Inverse of :meth:`vcov` in coefficients of standardised covariates ``(G, D, D)``, and what those are."""
        self._require_data()
        if self._grouped is not None:
            self._grouped.refuse("observed_information", "vcov()")
        if self._followed() is not None:
            return super().observed_information()
        engine, parameters = self._present()
        if not self.is_marginal:
            found = [engine.conditional_information(engine.mode(parameters, genes)) for genes in engine.batches()]
            return engine.logit_information(torch.cat(found)), engine.scaling
        values, prior = dict(self.named_parameters()), self._log_prior()
        return self._engine.information(values, fix_sigma=self.var_fix_sigma, log_prior=prior), engine.scaling

    importance = refinement.sampled_likelihood
    refine = refinement.refined_estimates
    fit = grouped_methods.fit_genes_of
    variance_components = grouped_methods.variances_of_groups
    random_effects = grouped_methods.levels_of_groups

    effects = property(grouped_methods.effects)

    @property
    def engine(self) -> str:
        """Which way a fit goes."""
        return super().engine if self._grouped is None else "restricted Laplace likelihood of a list of effects"

    @property
    def sites(self) -> dict[str, Tensor]:
        """Present value of every latent site of the model; with groups their parameters, ``beta`` with an intercept."""
        return super().sites if self._grouped is None else self._grouped.sites

    def vcov(self) -> Tensor:
        """Covariance ``(G, D, D)`` of the estimates, see :meth:`MultinomGLM.vcov`; with groups given the variances."""
        return super().vcov() if self._grouped is None else self._grouped.vcov()

    def update_params_from_dict(self, params: Mapping[str, Any]) -> None:
        """Replace some parameters by the values in a dictionary; refused with groups, whose parameters are a fit's."""
        if self._grouped is not None:
            self._grouped.refuse("update_params_from_dict")
        super().update_params_from_dict(params)

    @property
    def variance_priors(self) -> dict[str, TorchDistribution]:
        """Priors of σ and logit θ that are not flat, by site."""
        return {name: prior for name, prior in self._free_priors().items() if name in ("sigma", "theta_logit")}

    def shipped_model(self) -> MultinomialGLMM:
        """The library's Pyro model of the data and options; decomposes the dense V, so N in the thousands."""
        self._require_data()
        if self._grouped is not None:
            return self._grouped.model  # type: ignore[return-value]  # whose sites are others
        return MultinomialGLMM(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        if self._eigen is None:
            self._eigen = EigenCovariance.from_dense(self._engine.dense_covariance())
        own = {"share_variance": self.share_variance, "isoform_effect": self.isoform_effect}
        return {**super()._arguments(), "covariance": self._eigen, "fixed": self._values(self._held()), **own}

    def _asked(self) -> dict[str, str]:
        effect = own_usage.effect_asked_for(self._engine.solver is not None, self.share_variance, self.isoform_effect)
        return super()._asked() | effect

    def _changes(self, values: Mapping[str, Tensor]) -> Iterator[own_usage.Change]:
        yield from super()._changes(values)
        yield from own_usage.with_another_effect(self._asked(), self._eigen)

    def _known_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super()._known_shapes()
        return {**shapes, "nu": (self.n_genes, self.n_spots, shapes["bias_eta"][1])}

    def _effects(self, program: Program, name: str, values: Mapping[str, Tensor]) -> list[str]:
        return integrated_sites(program, name, values, ("beta", "bias_eta")) if self.is_marginal else []

    def _take_own(self, own: OwnFit) -> None:
        super()._take_own(own)
        self.gradient_norm, self.log_marginal_null = own.guide.optimum.gradient.norm(dim=1), None

    def _guide_at(self, values: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        if self._grouped is not None:
            self._grouped.refuse("guide", "Pyro's own guides of estimator.model from estimator.sites")
        if self.is_marginal:
            return LaplaceGuide(values, self.random_effect_posterior())
        return PointGuide({**values, "nu": self.nu.detach()})

    def _shipped_only(self, what: str, instead: str = "") -> None:
        if self._grouped is not None:
            self._grouped.refuse(what)
        super()._shipped_only(what, instead)

    def _rows(self) -> dict[str, str]:
        groups = {} if self._grouped is None else {"groups": str(self._grouped.spec.effects)}
        kind = "of every isoform alike" if self.isoform_effect == "symmetric" else "of independent logits"
        return {**super()._rows(), "effect": kind, **groups}

    def _site_shapes(self, counts: Tensor, design: Tensor) -> dict[str, tuple[int, ...]]:
        shapes = super()._site_shapes(counts, design)
        n_genes, n_logits = shapes["bias_eta"]
        components = (n_genes, 1 if self.share_variance else n_logits)
        return {**shapes, "sigma": components, "theta_logit": components}

    def _present(self) -> tuple[MixedEngine, Parameters]:
        """The engine, with the likelihood's hyper-parameters at their present values, and the other present values."""
        parameters = self._engine.parameters(self.beta, self.bias_eta, self.sigma, self.theta_logit)
        return replace(self._engine, likelihood=self.bound_likelihood), parameters

    def _held(self) -> tuple[str, ...]:
        if self._grouped is not None:
            return ()
        sigma = ("sigma",) if self.var_fix_sigma else ()
        return sigma if self._engine.solver is not None else (*sigma, "theta_logit")

    def _free_priors(self) -> dict[str, TorchDistribution]:
        return {name: prior for name, prior in super()._free_priors().items() if name not in self._held()}

    def _no_mode(self) -> str | None:
        expected = f"fitting_method: expected a marginal fit to draw from, found {self.fitting_method!r}"
        return None if self.is_marginal else f"{expected}: the joint optimum of (σ, θ) is not an estimate."

    def _finish(self, *args: Any, **kwargs: Any) -> None:
        self.pareto_k = None
        super()._finish(*args, **kwargs)

    def _search(self, keep: bool) -> tuple[Convergence, dict[str, Tensor]]:
        method, configs = self.fitting_method, self.fitting_configs
        options, minimizer = search_options(configs), minimizer_of(method, configs)
        kind = {"marginal": self.is_marginal, "share_variance": self.share_variance, "fix_sigma": self.var_fix_sigma}
        search = MixedSearch(
            engine=self._engine, log_prior=self._log_prior(), options=options, minimizer=minimizer, **kind
        )
        found = search.run(self.sigma.detach(), keep=keep)
        self.gradient_norm, self.log_marginal_null = found.gradient_norm, found.log_marginal_null
        self._set_parameters(found.values)
        past = found.history
        return found.record, {k: torch.cat([past[k], last]) for k, last in self._last_epoch().items() if k in past}

    def _name_trouble(self, record: Convergence) -> None:
        if self.is_marginal and "sigma" not in (*self._held(), *self._free_priors()) and len(record.loss_history) > 1:
            endless = endless_variance(self.counts, self.sigma.detach(), record.converged)
            record.finish(torch.nonzero(endless).squeeze(-1), Reason.ALL_OR_NOTHING)
        super()._name_trouble(record)
