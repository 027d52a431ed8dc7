"""``MultinomGLM``: isoform usage with covariates and without a random effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyrosplice._modes import works_in_any_mode
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._usage.batched_model import BaseModel
from pyrosplice._usage.coefficient_table import coefficient_table
from pyrosplice._usage.configs import DEFAULTS, complete_configs, kept_history, minimizer_of, search_options
from pyrosplice._usage.infinite import endless_coefficients
from pyrosplice._usage.own_usage import require_followed
from pyrosplice._usage.prior_terms import prior_information
from pyrosplice._usage.reading.inputs import warn_if_collinear
from pyrosplice._usage.search import name_saddles, search_coefficients
from pyrosplice.errors import check_option
from pyrosplice.glmm._batches import MixedEngine, fit_without_effect
from pyrosplice.glmm._distributions import SpotCounts
from pyrosplice.glmm._fitted_guides import PointGuide
from pyrosplice.glmm._glm_objective import GLMObjective, StandardCoordinates, covariance_from_information
from pyrosplice.glmm._multinomial import MultinomialGLM
from pyrosplice.glmm._objective import at_held
from pyrosplice.guides._own_model import Program
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.posterior._draw_options import DrawOptions
from pyrosplice.posterior._draws import posterior_tree
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.priors._named import Priors
from pyrosplice.priors._sites import complete_priors, is_flat
from pyrosplice.reasons import Reason


@works_in_any_mode
class MultinomGLM(BaseModel):
    r"""Multinomial generalized linear model of isoform usage.

    .. math:: y_i \sim \operatorname{Multinomial}(n_i, \operatorname{softmax}([\eta_i, 0])), \quad \eta = X\beta + 1b'

    The last isoform is the reference. Estimates are maximum a posteriori, maximum likelihood under the flat priors.

    Parameters
    ----------
    fitting_method
        ``"iwls"`` or ``"newton"``: Newton's method with step halving, closed-form derivatives where the likelihood
        has them. With the softmax link, the canonical one, the two are the same algorithm. ``"gd"``: first-order, by
        ``fitting_configs["optim"]``.
    fitting_configs
        Any of: ``lr`` (first step length of adam and sgd, 0.01), ``optim`` ("adam", "sgd" or "lbfgs"), ``tol``
        (improvement in nats below which a gene has converged, 1e-5), ``tol_relative`` (False), ``max_epochs`` (1000;
        −1 is 10,000, and 0 leaves the start values), ``patience`` (epochs without improvement before "gd" shortens its
        steps: 5; 2 otherwise).
    likelihood
        Density of a spot's counts, any :class:`~pyrosplice.likelihoods._contract.Likelihood`; multinomial if None.
    priors
        Pyro distributions for ``beta`` and ``bias_eta``, see :mod:`pyrosplice.priors._sites`; ``"weak"`` for
        :func:`~pyrosplice.priors.weak_priors` of the data at hand; flat if None.
    model
        A Pyro model of your own: a class with the constructor of :mod:`pyrosplice.glmm._multinomial`'s, or a function
        of those of its arguments that it names. Its latent sites are in a plate of the genes, and Newton's method finds
        their mode, whatever ``fitting_method`` (:class:`~pyrosplice.guides.AutoNewtonMAP`); options and priors that it
        leaves unused are refused.

    Attributes
    ----------
    beta, bias_eta
        Coefficients ``(G, P, Q)`` and intercepts ``(G, Q)`` on the log-odds scale, Q = K − 1; NaN if not in your model.
    sites, engine
        Value of every latent site, those of your own model too; which way fits go.

    Raises :class:`InvalidArgumentError` for an unknown option or a value that does not fit.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> counts = torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM()
    >>> model.setup_data(counts)
    >>> model.fit()
    >>> model.get_isoform_ratio().shape
    torch.Size([5, 100, 3])
    """

    beta: Tensor
    bias_eta: Tensor
    _engine: MixedEngine
    _methods: tuple[str, ...] = ("iwls", "newton", "gd")

    def __init__(
        self,
        fitting_method: str = "iwls",
        fitting_configs: Mapping[str, Any] | None = None,
        *,
        likelihood: Likelihood | None = None,
        priors: Priors = None,
        model: Program | None = None,
    ) -> None:
        check_option("fitting_method", fitting_method, self._methods)
        super().__init__(likelihood=likelihood, priors=priors, model=model)
        self.fitting_method = fitting_method
        self.fitting_configs = complete_configs(fitting_configs, self._default_configs())

    def _default_configs(self) -> dict[str, Any]:
        return {**DEFAULTS, "patience": 5 if self.fitting_method == "gd" else 2}

    def setup_data(self, counts: object, design_mtx: object = None, device: str | torch.device = "cpu") -> None:
        """Take the data; forgets an earlier fit.

        Parameters
        ----------
        counts
            ``(G, N, K)`` or ``(N, K)``: molecules of each isoform at each spot, whole numbers, in any container; also
            a list of G tables ``(N, K)``.
        design_mtx
            Covariates ``(N, P)`` without intercept, which is always there; None for none. A table is paired with a
            table of counts by the names of the spots, whatever their order.
        device
            ``"cpu"``, ``"cuda"``, or ``"mps"`` (which has no float64: computes on the CPU, with a warning).

        Raises
        ------
        InvalidArgumentError
            Counts, design or device that cannot be used; says where. The model keeps its earlier data.
        NotImplementedError
            One isoform.

        Warns
        -----
        UserWarning
            Covariates that are constant or collinear, when their prior is flat: ratios and likelihood are unique, the
            coefficients are not (the smallest ones are reported, with infinite standard errors).

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> counts = torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0))
        >>> model = MultinomGLM()
        >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 100)[:, None])
        >>> model.n_genes, model.n_spots, model.n_isos, model.n_factors
        (5, 100, 3, 1)
        >>> model.setup_data(counts / 2)
        Traceback (most recent call last):
            ...
        pyrosplice.errors.InvalidArgumentError: counts: expected whole numbers, found 4.5 at gene 0, spot 0,
        isoform 1 (764 such entries).
        """
        table, design = self._checked(counts, design_mtx, device)
        shapes = self._site_shapes(table, design)
        self._named_priors(shapes, covariance=None)
        if is_flat(complete_priors(self.priors, shapes)["beta"]):
            warn_if_collinear(design)
        self._set_data(table, design)
        self._engine = MixedEngine(table, StandardCoordinates.of(design), None, self._guarded)  # ν held at zero
        self._set_parameters(self._start_values(table, shapes))

    def fit(
        self,
        store_param_history: bool = False,
        verbose: bool = False,
        quiet: bool = False,
        random_seed: int | None = None,
        diagnose: bool | None = None,
    ) -> dict[str, Tensor] | None:
        """Fit every gene; each stops on its own, see ``logger``.

        Searches of a GLMM start from closed-form values, not from the present parameters (σ excepted, where it is
        held), so a second fit gives the same result.

        Parameters
        ----------
        store_param_history
            Return the parameters of every epoch, ``{"beta": (E, G, P, Q), ...}``; of a GLMM those at every evaluation
            of the last search and the estimates, ν among them.
        verbose
            Log the loss of every epoch (logger ``pyrosplice``, level INFO).
        quiet
            Leave out the log's closing line.
        random_seed, diagnose
            Accepted for compatibility: fits are deterministic; a deprecated alias of ``store_param_history``.

        Raises
        ------
        InvalidArgumentError
            A subclass whose objective or predictor is not that which is fitted; a model of your own that is none, that
            leaves an option unread, or has a part that :mod:`pyrosplice.guides` cannot do.
        NotReadyError
            Before ``setup_data``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> counts = torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0))
        >>> model = MultinomGLM()
        >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 100)[:, None])
        >>> model.fit(quiet=True)
        >>> model.beta.shape, model.bias_eta.shape, model.logger.converged.all().item()
        (torch.Size([5, 1, 2]), torch.Size([5, 2]), True)
        """
        self._require_data()
        keep, own_program = kept_history(store_param_history, diagnose), self._own_program(again=True)
        if own_program is not None:
            self._fit_own(own_program, keep=keep, verbose=verbose, quiet=quiet)
            return None
        self._own = None  # an earlier fit of a model that is the shipped one by now
        require_followed(self)
        self._errors.clear()
        began = time.perf_counter()
        searched = self.fitting_configs["max_epochs"] != 0
        record, history = self._search(keep) if searched else (self._without_epochs(), self._last_epoch())
        self._name_trouble(record)
        self._finish(record, time.perf_counter() - began, verbose=verbose, quiet=quiet)
        return history if keep else None

    def forward(self) -> Tensor:
        """Log likelihood plus log prior of each gene at the present parameters, ``(G,)``; constants included."""
        self._require_data()
        own = self._followed()
        if own is not None:
            return own.log_density(self._own_values(own))
        return self.bound_likelihood.log_prob(self.counts, self.linear_predictor()).sum(-1) + self.log_prior_density()

    def linear_predictor(self) -> Tensor:
        """η ``(G, N, Q)`` at the present parameters.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM()
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> model.fit(quiet=True)
        >>> model.linear_predictor().shape  # genes, spots, logits against the last isoform
        torch.Size([5, 100, 2])
        """
        self._require_data()
        own = self._spot_counts("linear_predictor")
        return self.design_mtx @ self.beta + self.bias_eta.unsqueeze(1) if own is None else own.eta

    def get_isoform_ratio(self) -> Tensor:
        """Fitted usage of each isoform at each spot, ``(G, N, K)``; adds up to one.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> counts = torch.tensor([[[8.0, 2.0], [7.0, 3.0]]])  # one gene, two spots, two isoforms
        >>> model = MultinomGLM()
        >>> model.setup_data(counts)
        >>> model.fit(quiet=True)
        >>> model.get_isoform_ratio().round(decimals=3).tolist()  # of no covariate: the same at both spots
        [[[0.75, 0.25], [0.75, 0.25]]]
        """
        self._require_data()
        own = self._spot_counts("get_isoform_ratio")
        if own is not None:
            return own.likelihood.expected(own.eta).detach()
        return self.bound_likelihood.expected(self.linear_predictor()).detach()

    def _spot_counts(self, what: str) -> SpotCounts | None:
        """Distribution of the counts under a person's model, of which ``what`` is asked; None for the shipped one."""
        own = self._followed()
        return None if own is None else own.spot_counts(self._own_values(own), what)

    def vcov(self) -> Tensor:
        r"""Covariance of the estimates at the present parameters, ``(G, D, D)``, D = (P + 1) Q.

        The inverse of minus the full second derivative of the log posterior; of a GLMM the marginal one, (σ, θ)
        estimated too, and of its joint methods, given (σ, θ), the inverse of :math:`X'(W^{-1} + \Sigma)^{-1}X`. Order:
        ``beta`` (covariate by covariate, logits fastest), then ``bias_eta``. What is not identified is infinite.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> counts = torch.tensor([[[8.0, 2.0], [7.0, 3.0]]])
        >>> model = MultinomGLM()
        >>> model.setup_data(counts)
        >>> model.fit(quiet=True)
        >>> model.vcov().shape, round(1 / model.vcov().item(), 3)  # n p (1 - p) of 20 molecules
        (torch.Size([1, 1, 1]), 3.75)
        """
        information, scaling = self.observed_information()
        return covariance_from_information(information, scaling, self.bias_eta.shape[-1])

    def observed_information(self) -> tuple[Tensor, StandardCoordinates]:
        """Inverse of :meth:`vcov` in coefficients of standardised covariates ``(G, D, D)``, and what those are.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> counts = torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0))
        >>> model = MultinomGLM()
        >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 100)[:, None])
        >>> model.fit(quiet=True)
        >>> information, coordinates = model.observed_information()
        >>> information.shape  # genes, and (a covariate and the intercept) × two logits twice
        torch.Size([5, 4, 4])
        """
        self._require_data()
        own = self._followed()
        if own is not None:
            return own.coefficient_information(self._own_values(own), self.design_mtx, self.bias_eta.shape[-1])
        if self.likelihood.free:
            engine, zero = self._engine, self.bias_eta.new_zeros(self.n_genes, 1)
            values: dict[str, Tensor] = {**dict(self.named_parameters()), "sigma": zero, "theta_logit": zero}
            return engine.information(values, fix_sigma=True, log_prior=self._log_prior()), engine.scaling
        objective = self._objective()
        return objective.derivatives(objective.point(self.beta, self.bias_eta))[1], objective.scaling

    def prior_information(self) -> Tensor:
        """Share of the priors of β and b in :meth:`observed_information`, ``(G, D, D)``.

        Examples
        --------
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM(priors={"bias_eta": dist.Normal(0.0, 2.0)})
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> model.fit(quiet=True)
        >>> model.prior_information()[0].tolist()  # the inverse variance of the prior
        [[0.25, -0.0], [-0.0, 0.25]]
        """
        self._require_data()
        self._shipped_only("prior_information")
        priors = {name: prior for name, prior in self._free_priors().items() if name in ("beta", "bias_eta")}
        return prior_information(priors, self.design_mtx, self.beta, self.bias_eta)

    def standard_errors(self) -> dict[str, Tensor]:
        """Square roots of the diagonal of :meth:`vcov`: ``beta`` ``(G, P, Q)`` and ``bias_eta`` ``(G, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> counts = torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0))
        >>> model = MultinomGLM()
        >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 100)[:, None])
        >>> model.fit(quiet=True)
        >>> {name: tuple(se.shape) for name, se in model.standard_errors().items()}
        {'beta': (5, 1, 2), 'bias_eta': (5, 2)}
        """
        errors = torch.diagonal(self.vcov(), dim1=-2, dim2=-1).sqrt().unflatten(-1, (-1, self.bias_eta.shape[-1]))
        return {"beta": errors[:, :-1], "bias_eta": errors[:, -1]}

    to_frame = coefficient_table

    def posterior(  # noqa: PLR0913 (a documented interface)
        self,
        *,
        num_samples: int = 1000,
        method: str = "laplace",
        hyper: str = "plug-in",
        genes: str | Sequence[int | str] | None = None,
        names: Mapping[str, Sequence[Any]] | None = None,
        groups: Sequence[str] | None = None,
        usage: bool = False,
        seed: int = 0,
        nuts_options: NutsOptions | None = None,
        max_memory: str | float | None = None,
        num_chains: int | None = None,
        over_memory: str = "refuse",
        quiet: bool = False,
    ) -> xr.DataTree:
        r"""Posterior draws as an ``xarray.DataTree`` with the groups that ArviZ reads.

        Parameters
        ----------
        num_samples
            Draws a gene: of ``"laplace"`` and ``"importance"`` in all, of NUTS in each chain (four at least).
        method
            ``"laplace"``: Gaussians of the coefficients and of ν; with one count a spot they are off, and
            :func:`~pyrosplice.posterior._laplace_check` says for which genes. ``"importance"``: these draws, resampled
            by their Pareto-smoothed weights; exact as far as ``pareto_k`` (below 0.7) says. ``"nuts"``: the same Pyro
            model by NUTS, gene by gene; seconds to minutes a gene.
        hyper
            σ, θ and the likelihood's hyper-parameters at their estimates (``"plug-in"``), or integrated over (proper
            priors needed). ``"integrate"``: one or two on a grid, three to six by adaptive importance sampling of
            their Laplace posterior. ``"ccd"``: up to twelve by a central composite design; faster from three on, with
            rougher draws of them (see :mod:`pyrosplice.posterior._ccd`).
        genes
            Genes to draw from: positions, a mask, or names where ``names["gene"]`` gives them; all by default.
        names
            Coordinates by dimension: ``gene``, ``spot``, ``isoform``, ``covariate``.
        groups
            Optional groups to make (:mod:`pyrosplice.posterior._tree`); all by default.
        usage
            Whether to keep usage at every spot.
        seed, nuts_options
            Seed of all that is random; options of NUTS.
        max_memory
            What the draws may take, as ``"4 GB"`` or bytes; half of the memory that is free by default. What they
            will take is worked out, and logged, before anything is drawn.
        num_chains
            Four by default, as ArviZ's R̂ wants. NUTS runs each from a start and seed of its own; independent draws are
            divided in order, those that four does not divide (or below 16) into as many equal chains of four or more
            as can be, else one. What is the same in every draw, or NaN (a gene without a fit), has R̂ NaN.
        over_memory
            ``"refuse"`` draws that would take more, saying how many would not; or ``"thin"``: warn, make fewer or keep
            one of every few iterations of NUTS, and note the number asked for: attribute ``num_samples_asked``.
        quiet
            Hide the bar that appears after two seconds: of genes, or of iterations of NUTS by gene and chain.

        Raises
        ------
        InvalidArgumentError
            More memory needed than allowed; draws that are not ``num_chains`` equal ones; no such option or gene; a
            joint fit; flat priors where a proper one is needed; more hyper-parameters than ``hyper`` is for.
        NotReadyError
            Before ``setup_data``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM()
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> model.fit(quiet=True)
        >>> tree = model.posterior(num_samples=200, genes=[0, 3], seed=0)
        >>> dict(tree["posterior"]["bias_eta"].sizes)
        {'chain': 4, 'draw': 50, 'gene': 2, 'logit': 2}
        """
        self._require_data()
        self._shipped_only("posterior", "guide.sample_posterior(), or NUTS(estimator.model) from estimator.sites")
        require_followed(self)
        draws: dict[str, Any] = {"num_samples": num_samples, "method": method, "hyper": hyper, "seed": seed}
        kept: dict[str, Any] = {"genes": genes, "names": names, "groups": groups, "usage": usage}
        limits: dict[str, Any] = {"max_memory": max_memory, "over_memory": over_memory, "quiet": quiet}
        asked = DrawOptions(**draws, **kept, **limits, nuts_options=nuts_options, num_chains=num_chains)
        return posterior_tree(self.posterior_problem(), asked)

    def posterior_problem(self) -> PosteriorProblem:
        """What draws from the posterior depend on: data, priors and the present parameters.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM()
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> model.fit(quiet=True)
        >>> problem = model.posterior_problem()
        >>> problem.counts.shape
        torch.Size([5, 100, 3])
        """
        self._require_data()
        self._shipped_only("posterior_problem", "guide.sample_posterior()")
        shapes = self._site_shapes(self.counts, self.design_mtx)
        return PosteriorProblem(
            counts=self.counts,
            design=self.design_mtx,
            likelihood=self.likelihood,
            priors=self.priors,
            shapes=shapes,
            estimates={name: getattr(self, name).detach() for name in shapes},
            held=self._held(),
            engine=self._engine,
            log_prior=self._log_prior(),
            program=self.shipped_model,
            no_mode=self._no_mode(),
        )

    def shipped_model(self) -> MultinomialGLM:
        """The library's Pyro model of the data and options, whatever ``model`` is."""
        self._require_data()
        return MultinomialGLM(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        own = {"likelihood": self.likelihood, "priors": self.priors}
        return {"counts": self.counts, "design": self.design_mtx, **own}

    def _known_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._site_shapes(self.counts, self.design_mtx)

    @property
    def guide(self) -> Callable[[], dict[str, Tensor]]:
        """A Pyro guide: every site at its fitted value (MAP), ν of a marginal GLMM from its Laplace posterior.

        Of a model of your own, the guide that fitted it.
        """
        self._require_data()
        own = self._followed()
        if own is not None:
            return own.guide
        return self._guide_at(self._estimates(self._site_shapes(self.counts, self.design_mtx)))

    def _guide_at(self, values: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        return PointGuide(values)

    def _search(self, keep: bool) -> tuple[Convergence, dict[str, Tensor]]:
        method, configs = self.fitting_method, self.fitting_configs
        if self.likelihood.free:
            engine, minimizer = self._engine, minimizer_of(method, configs)
            record, steps = fit_without_effect(engine, self._log_prior(), search_options(configs), minimizer)
            self._set_parameters(values := steps[-1])
        else:
            record, steps = search_coefficients(self._objective(), method, configs, keep=keep)
            self._set_parameters(values := steps.pop())
        if not self.likelihood.log_concave:
            name_saddles(self._objective(), values, record)
        return record, {name: torch.stack([step[name] for step in steps]) for name in (steps[0] if keep else ())}

    def _last_epoch(self) -> dict[str, Tensor]:
        return {name: value.detach().clone().unsqueeze(0) for name, value in self.named_parameters()}

    def _objective(self) -> GLMObjective:
        own = {name: getattr(self, name).detach() for name in self.likelihood.free}
        return GLMObjective.of(self.counts, self.design_mtx, self.bound_likelihood, at_held(self._log_prior(), own))

    def _start_values(self, counts: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        values = {name: counts.new_zeros(shape) for name, shape in shapes.items()}
        return values | {name: values[name] + self.likelihood.hyperparameters[name] for name in self.likelihood.free}

    def _name_trouble(self, record: Convergence) -> None:
        """Note the genes whose coefficients are at infinity, and those without counts."""
        flat = {"beta", "bias_eta"} - set(self._free_priors())
        given = (self.counts, self.design_mtx, self.beta.detach(), self.bias_eta.detach())
        endless = endless_coefficients(*given, flat=flat, likelihood=self.likelihood)
        record.finish(torch.nonzero(endless).squeeze(-1), Reason.SEPARATED)
        record.finish(torch.nonzero(self.counts.sum((1, 2)) == 0).squeeze(-1), Reason.NO_COUNTS)
