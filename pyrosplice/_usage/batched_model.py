"""What the multinomial models share: data, parameters, options, their record of the fit and their representation."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import pandas as pd
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn import Module, Parameter

from pyrosplice._devices import as_device
from pyrosplice._modes import ordinary_attributes, works_in_any_mode
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._representation import Described
from pyrosplice._usage import own_usage
from pyrosplice._usage.configs import check_likelihood, guide_options
from pyrosplice._usage.reading.inputs import as_counts, as_design, as_tensor, spot_names
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError, check_option
from pyrosplice.glmm._multinomial import MultinomialGLM
from pyrosplice.glmm._objective import LogPrior
from pyrosplice.guides._agreement import overridden
from pyrosplice.guides._own_fit import OwnFit, Task
from pyrosplice.guides._own_model import (
    SHIPPED_ENGINE,
    Program,
    bound_model,
    check_model,
    latent_values,
    name_of,
    takes,
)
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._guarded import guarded
from pyrosplice.priors._named import Priors, check_priors, named_priors
from pyrosplice.priors._prior_tables import describe, prior_table
from pyrosplice.priors._sites import complete_priors, is_flat, log_prior
from pyrosplice.reasons import Reason, describe_reasons

logger = logging.getLogger("pyrosplice")


def place_parameters(model: Module, values: Mapping[str, Tensor]) -> None:
    """Place parameters; they carry no gradient unless the user asks (``requires_grad_()``)."""
    for name, value in values.items():
        model.register_parameter(name, Parameter(value.detach().clone(), requires_grad=False))


@works_in_any_mode
class BaseModel(Described, Module):
    """State of a model of isoform usage for a batch of genes with the same number of isoforms, and which model it is.

    ==================  ========  =====================================================
    what to override    required  for
    ==================  ========  =====================================================
    ``shipped_model``   yes       the library's own Pyro model
    ``_arguments``      yes       what it is made with
    ``_known_shapes``   yes       the sites that are attributes
    ``_asked``          no        arguments that a model of one's own may not leave unread
    ``_changes``        no        options and data that it may not leave unused
    ``_effects``        no        sites that the fitting method integrates out
    ==================  ========  =====================================================

    Attributes
    ----------
    n_genes, n_spots, n_isos, n_factors
        Sizes G, N, K, P; zero (P: None) before ``setup_data``.
    counts, design_mtx
        The data, ``(G, N, K)`` and ``(N, P)``, float64.
    logger
        Per-gene :class:`~pyrosplice._optimize.convergence.Convergence`; every gene "running" before ``fit``.
    fitting_time
        Seconds of the last fit; 0 before.
    """

    bias_eta: Tensor
    fitting_method: str
    fitting_configs: dict[str, Any]
    _own: OwnFit | None = None
    _decided: tuple[Program | None] | None = None
    _prior_sites: tuple[str, ...] = ("beta", "bias_eta")

    def __init__(self, *, likelihood: Likelihood | None, priors: Priors, model: Program | None = None) -> None:
        super().__init__()
        check_likelihood(likelihood)
        check_model(model)
        self._given = model
        self.likelihood = ordinary_attributes(likelihood or Multinomial())
        self._errors: list[Exception] = []  # of the likelihood, in the last fit
        for site in priors if isinstance(priors, Mapping) else ():
            check_option("priors", site, (*self._prior_sites, *self.likelihood.free))
        self._priors_name = check_priors(priors)
        self.priors: dict[str, Any] = {} if isinstance(priors, str) else dict(priors or {})
        self.n_genes = self.n_spots = self.n_isos = 0
        self.n_factors: int | None = None
        self.device = torch.device("cpu")
        self.fitting_time = 0.0
        self.logger = Convergence.start(0)

    @property
    def bound_likelihood(self) -> Likelihood:
        """The likelihood with its hyper-parameters at their present values."""
        return self._guarded.bind({name: getattr(self, name) for name in self.likelihood.free})

    @property
    def _guarded(self) -> Likelihood:
        """The likelihood as engines use it: a gene for which it raises has NaN, and troubles no other."""
        return guarded(self.likelihood, self._errors)

    @property
    def model(self) -> Program:
        """The Pyro model of the data, yours or the shipped one; called without arguments, as by ``pyro.infer``."""
        self._require_data()
        if self._given is None:
            return self.shipped_model()
        arguments = self._arguments()
        program, held = bound_model(self._given, arguments, self._asked()), arguments.get("fixed", {})
        return program if not held or takes(self._given, "fixed") else poutine.condition(program, data=held)

    @property
    def engine(self) -> str:
        """Which way a fit goes: the engine of the shipped model, or the guide of one of your own, and what it did."""
        own = self._followed() if self.n_genes else None
        return SHIPPED_ENGINE if own is None else own.engine

    @property
    def sites(self) -> dict[str, Tensor]:
        """Present value of every latent site of the model, those of a model of your own among them; copies."""
        self._require_data()
        own = self._followed()
        if own is not None:
            return {name: value.detach().clone() for name, value in self._own_values(own).items()}
        return self._estimates(self._known_shapes())

    def shipped_model(self) -> MultinomialGLM:
        """The library's Pyro model of the data and options.

        Examples
        --------
        >>> import torch
        >>> from pyro import poutine
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM()
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> sites = poutine.trace(model.shipped_model()).get_trace().nodes
        >>> sites["bias_eta"]["value"].shape, "counts" in sites
        (torch.Size([5, 2]), True)
        """
        raise NotImplementedError

    def _arguments(self) -> dict[str, Any]:
        """What a Pyro model is made with."""
        raise NotImplementedError

    def _known_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the sites that are attributes."""
        raise NotImplementedError

    def _default_configs(self) -> dict[str, Any]:
        raise NotImplementedError

    def _asked(self) -> dict[str, str]:
        """Arguments of the Pyro model of which something was asked for, in words."""
        return own_usage.asked_for(self.design_mtx, self.likelihood, self.priors)

    def _changes(self, values: Mapping[str, Tensor]) -> Iterator[own_usage.Change]:
        """What a model with these sites has to make use of, in words, and attributes with something else."""
        named = None if self._priors_name is None else values
        yield from own_usage.without_options(self.priors, self.likelihood, self._known_shapes(), named)
        yield from own_usage.with_other_data(self._asked(), self.counts, self.design_mtx)

    def _effects(self, program: Program, name: str, values: Mapping[str, Tensor]) -> list[str]:
        """Sites that the fitting method integrates out."""
        return []

    def _others(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Self]]:
        """Make estimators with something else in place of each thing that was asked for, with its words."""
        for words, attributes in self._changes(values):
            other = self.clone()
            for name, value in attributes.items():
                setattr(other, name, value)
            yield words, other

    def _own_program(self, *, again: bool = False) -> Program | None:
        """The model that a person gave, where its density is not that of the shipped one; else None.

        Decided ``again`` for a fit: options and values that are held may have changed.
        """
        if self._given is None and "model" not in overridden(type(self))[1]:
            return None
        if again:
            self._decided = None
        if self._decided is None:
            self._decided = (own_usage.own_program(self, self._model_name(), self._values(self._held()), self._others),)
        return self._decided[0]

    def _model_name(self) -> str:
        return name_of(self.model if self._given is None else self._given)

    def _fit_own(self, program: Program, *, keep: bool, verbose: bool, quiet: bool) -> None:
        """Fit a model of a person's own by the guides."""
        if keep:
            raise InvalidArgumentError("store_param_history: the guide of a model of your own keeps none.")
        own_usage.require_fittable(self)
        options, began = guide_options(self.fitting_configs, self._default_configs()), time.perf_counter()
        name = self._model_name()
        effects = self._effects(program, name, latent_values(program, name))
        task = Task(name=name, n_units=self.n_genes, effects=effects, options=options, design=self.design_mtx)
        own = task.fit(program)
        self._take_own(own)
        self._errors.clear()
        if verbose:
            logger.info("%s: %s\n%s", type(self).__name__, own.engine, own.guide.report().to_string())
        record = own_usage.record_of(own, self.counts, self.design_mtx, self._known_shapes())
        self._finish(record, time.perf_counter() - began, verbose=verbose, quiet=quiet)

    def _take_own(self, own: OwnFit) -> None:
        """Make estimates of the known sites the parameters; NaN where the model does not have a site."""
        held = self._values(self._held())
        unread = own_usage.unread_sites(self, own.name, held)
        known = own_usage.known_values(own, self._known_shapes(), held.keys() - unread)
        self._own = own
        self._set_parameters(known)

    def _own_values(self, own: OwnFit) -> dict[str, Tensor]:
        known = self._known_shapes()
        return {
            name: getattr(self, name).reshape(value.shape) if name in known else value
            for name, value in own.values.items()
        }

    def _followed(self) -> OwnFit | None:
        """The fit of a person's model, None where the shipped one is fitted."""
        if self._own_program() is None:
            return None
        if self._own is None:
            raise NotReadyError(f"{type(self).__name__}: {self._model_name()} is not fitted yet; call fit() first.")
        return self._own

    def _shipped_only(self, what: str, instead: str = "") -> None:
        """Raise for what only the shipped model has."""
        if self.n_genes and self._own_program() is not None:
            raise RefusedModelError(
                f"{what}: it is worked out for the shipped model, and this estimator's is {self._model_name()}."
                f"{f' Use {instead}.' if instead else ''}"
            )

    def _estimates(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Present values of those of some sites that a fit estimates, copied."""
        values = self._values(name for name in names if name not in self._held())
        return {name: value for name, value in values.items() if value.numel()}

    def _values(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Present values of some sites, copied."""
        return {name: getattr(self, name).detach().clone() for name in names}

    def _checked(self, counts: object, design_mtx: object, device: str | torch.device) -> tuple[Tensor, Tensor]:
        chosen = as_device(device)
        table = as_counts(counts, chosen, self.likelihood)
        return table, as_design(design_mtx, table.shape[1], chosen, spot_names(counts))

    def _named_priors(self, shapes: Mapping[str, tuple[int, ...]], **space: Any) -> None:
        """Turn a name that was given as priors into those of this data."""
        if self._priors_name is not None:
            self.priors = named_priors(self._priors_name, shapes, likelihood=self.likelihood, **space)

    def _site_shapes(self, counts: Tensor, design: Tensor) -> dict[str, tuple[int, ...]]:
        """Shape of each site that takes a prior, genes first."""
        n_genes, _, n_isos = counts.shape
        n_logits = self.likelihood.n_predictors(n_isos)
        own = dict.fromkeys(self.likelihood.free, (n_genes, 1))
        return {"beta": (n_genes, design.shape[1], n_logits), "bias_eta": (n_genes, n_logits), **own}

    def prior_table(self) -> pd.DataFrame:
        """Tabulate every site that takes a prior: shape of a gene's values, support, prior, role.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM(priors="weak")
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> model.prior_table()[["prior", "role"]]
                                   prior                                       role
        site
        beta      Normal(loc=0, scale=1)  covariate effects on the linear predictor
        bias_eta  Normal(loc=0, scale=3)                                 intercepts
        """
        self._require_data()
        return prior_table(self.priors, self._site_shapes(self.counts, self.design_mtx))

    def _free_priors(self) -> dict[str, TorchDistribution]:
        """Priors of the sites that a fit estimates, without the flat ones."""
        priors = complete_priors(self.priors, self._site_shapes(self.counts, self.design_mtx))
        return {name: prior for name, prior in priors.items() if not is_flat(prior)}

    def _log_prior(self) -> LogPrior | None:
        """What engines add to their log likelihood, or None if every prior is flat."""
        priors = self._free_priors()
        if not priors:
            return None
        return lambda values, genes: log_prior(priors, {name: values[name] for name in priors}, genes=genes)

    def log_prior_density(self) -> Tensor:
        """Log prior density of each gene at the present parameters, ``(G,)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM(priors="weak")
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> model.fit(quiet=True)
        >>> model.log_prior_density().shape
        torch.Size([5])
        """
        self._shipped_only("log_prior_density", "forward(), which has all of it")
        priors = self._free_priors()
        if not priors:
            return self.bias_eta.new_zeros(self.n_genes)
        return log_prior(priors, {name: getattr(self, name) for name in priors})

    def _held(self) -> tuple[str, ...]:
        """Sites that a fit does not estimate."""
        return ()

    def _no_mode(self) -> str | None:
        """Why the estimates are no mode to draw around, if they are none."""
        return None

    def _set_data(self, counts: Tensor, design: Tensor) -> None:
        self.counts, self.design_mtx, self.device = counts, design, counts.device
        self.n_genes, self.n_spots, self.n_isos = counts.shape
        self.n_factors = design.shape[1]
        self.logger, self.fitting_time = Convergence.start(self.n_genes), 0.0
        self._own = self._decided = None

    def _set_parameters(self, values: Mapping[str, Tensor]) -> None:
        place_parameters(self, values)

    def _require_data(self) -> None:
        if not self.n_genes:
            raise NotReadyError(f"{type(self).__name__} has no data yet: call setup_data() first.")

    def clone(self) -> Self:
        """Copy the model with its data, options, parameters and record of the fit.

        The data are shared (they are never changed in place), everything else is copied.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM()
        >>> model.setup_data(torch.randint(0, 10, (5, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> other = model.clone()
        >>> other.fit(quiet=True)
        >>> bool(model.bias_eta.abs().sum() == 0), bool(other.bias_eta.abs().sum() == 0)  # only the copy is fitted
        (True, False)
        """
        new = copy.copy(self)
        new._parameters = {}
        new.fitting_configs = dict(self.fitting_configs)
        new.priors = dict(self.priors)
        new.logger = copy.deepcopy(self.logger)
        place_parameters(new, dict(self.named_parameters(recurse=False)))
        return new

    def update_params_from_dict(self, params: Mapping[str, Any]) -> None:
        """Replace some parameters by the values in a dictionary.

        Raises
        ------
        InvalidArgumentError
            A name that is no parameter of this model, or a value of another shape. Nothing is changed then.
        NotReadyError
            Before ``setup_data``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice import MultinomGLM
        >>> model = MultinomGLM()
        >>> model.setup_data(torch.randint(0, 10, (1, 100, 3), generator=torch.Generator().manual_seed(0)))
        >>> model.update_params_from_dict({"bias_eta": torch.log(torch.tensor([[2.0, 1.0]]))})
        >>> model.get_isoform_ratio()[0, 0].numpy().round(3)
        array([0.5 , 0.25, 0.25])
        """
        self._require_data()
        own = dict(self.named_parameters(recurse=False))
        values = {}
        for name, value in params.items():
            check_option("params", name, own)
            values[name] = as_tensor(value, f"params[{name!r}]").to(own[name])
            if values[name].shape != own[name].shape:
                raise InvalidArgumentError(
                    f"params[{name!r}]: expected shape {tuple(own[name].shape)}, found {tuple(values[name].shape)}."
                )
        for name, value in values.items():
            own[name].data.copy_(value)

    def _without_epochs(self) -> Convergence:
        """The record of a fit of ``max_epochs=0``, which leaves every parameter where it is."""
        genes = torch.arange(self.n_genes, device=self.device)
        record = Convergence.start(self.n_genes, device=self.device)
        record.record(-self(), genes)
        record.finish(genes, Reason.MAX_EPOCHS)
        return record

    def _finish(self, record: Convergence, seconds: float, *, verbose: bool, quiet: bool) -> None:
        if self._errors:
            failed = [gene for gene, reason in enumerate(record.reason) if reason == Reason.NOT_FINITE]
            record.finish(torch.tensor(failed, dtype=torch.int64), Reason.RAISED)
        self.logger, self.fitting_time = record, seconds
        if verbose:
            for epoch, loss in enumerate(record.loss_history.sum(1).tolist()):
                logger.info("%s: epoch %d, loss %.6f", type(self).__name__, epoch, loss)
        if not quiet:
            logger.info("%s: %s", type(self).__name__, self._status())

    def _status(self) -> str:
        if not self.n_genes:
            return "no data; call setup_data()"
        if Reason.RUNNING in self.logger.reason:
            return "not fitted; call fit()"
        return f"fitted in {self.fitting_time:.3g} s: {describe_reasons(self.logger.reason)}"

    def _options(self) -> dict[str, Any]:
        """What the fit depends on: the Newton methods take no first-order options, and ν is always at its mode."""
        used = set(self.fitting_configs) - {"update_nu_every_k"}
        if not self.fitting_method.endswith("gd"):
            used = {"tol", "max_epochs"}
        own = {name: value for name, value in self.fitting_configs.items() if name in used}
        return {"fitting_method": self.fitting_method, **own}

    def _title(self) -> str:
        if not self.n_genes:
            return type(self).__name__
        size = f"{self.n_genes} genes × {self.n_spots} spots × {self.n_isos} isoforms, {self.n_factors} covariates"
        return f"{type(self).__name__}: {size}"

    def _rows(self) -> dict[str, str]:
        own = {} if self._own is None else {"model": self._own.name, "engine": self._own.engine}
        return own | {
            "likelihood": self.likelihood.name,
            "priors": ", ".join(f"{name} ~ {describe(prior)}" for name, prior in self.priors.items())
            or self._priors_name
            or "flat",
            "fitting": ", ".join(f"{key}={value!r}" for key, value in self._options().items()),
            "status": self._status(),
        }
