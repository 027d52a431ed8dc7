"""What the multinomial models share: data, parameters, options, their record of the fit and their representation."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from pyro import poutine
from torch import Tensor
from torch.nn import Module, Parameter

from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError, check_option, is_number
from pyrosplice.estimators.configs import guide_options
from pyrosplice.estimators.inputs import as_counts, as_design, as_device, as_tensor, spot_names
from pyrosplice.estimators.own_fit import OwnFit, Task
from pyrosplice.estimators.own_model import (
    SHIPPED_ENGINE,
    Program,
    bound_model,
    check_model,
    have_shapes,
    latent_values,
    name_of,
    refuse_ignored,
    takes,
)
from pyrosplice.estimators.representation import Described
from pyrosplice.inference.convergence import Convergence
from pyrosplice.models.agreement import difference_from, overridden, random_values
from pyrosplice.models.guarded import guarded
from pyrosplice.models.isoform_effect import IsoformEffect
from pyrosplice.models.likelihoods import Likelihood, Multinomial
from pyrosplice.models.multinomial import MultinomialGLM
from pyrosplice.models.named_priors import Priors, check_priors, named_priors
from pyrosplice.models.prior_tables import SHIPPED, describe
from pyrosplice.models.priors import complete_priors, is_flat
from pyrosplice.modes import ordinary_attributes, works_in_any_mode
from pyrosplice.overrides import refuse_set_methods

logger = logging.getLogger("pyrosplice")

ModelType = TypeVar("ModelType", bound="BaseModel")


REAL = {"beta", "bias_eta", "theta_logit", "nu"}  # sites on the real line; all others are positive


def check_likelihood(likelihood: Any) -> None:
    """Raise unless it is a likelihood, or None for the default; lists the shipped ones."""
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        known = ", ".join(f"{name}()" for name in SHIPPED)
        hint = f" (call it: {likelihood.__name__}())" if isinstance(likelihood, type) else ""
        raise InvalidArgumentError(
            f"likelihood: expected an object of pyrosplice.likelihoods, one of {known}, or of your own subclass of "
            f"Likelihood; found {likelihood!r}{hint}."
        )
    refuse_set_methods(likelihood, "likelihood")
    for name in likelihood.hyperparameters if likelihood is not None else ():
        _check_held(name, getattr(likelihood, name))


def _check_held(name: str, value: Any) -> None:
    """Raise unless a likelihood's hyper-parameter is free, a positive number, or one a gene, ``(G, 1)``."""
    single = is_number(value) or (isinstance(value, Tensor) and (value.ndim == 0 or value.shape[1:] == (1,)))
    held = torch.as_tensor(value) if single else None
    if value is not None and (held is None or not bool((torch.isfinite(held) & (held > 0)).all())):
        raise InvalidArgumentError(
            f"likelihood: expected {name} to be a positive finite number, or a tensor (G, 1) of them, or None to "
            f"estimate it, found {value!r}."
        )


def _same_numbers(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes differ by dimensions of size one only."""
    return [size for size in shape if size != 1] == [size for size in other if size != 1]


def place_parameters(model: Module, values: Mapping[str, Tensor]) -> None:
    """(Re)place parameters; they carry no gradient unless the user asks (``requires_grad_()``)."""
    for name, value in values.items():
        model.register_parameter(name, Parameter(value.detach().clone(), requires_grad=False))


@works_in_any_mode
class BaseModel(Described, Module):
    """State of a model of isoform usage for a batch of genes with the same number of isoforms.

    Attributes
    ----------
    n_genes, n_spots, n_isos, n_factors
        Sizes G, N, K, P; zero (P: None) before ``setup_data``.
    counts, design_mtx
        The data, ``(G, N, K)`` and ``(N, P)``, float64.
    logger
        Per-gene :class:`~pyrosplice.inference.convergence.Convergence`; every gene "running" before ``fit``.
    fitting_time
        Seconds of the last fit; 0 before.
    """

    counts: Tensor
    design_mtx: Tensor
    fitting_method: str
    fitting_configs: dict[str, Any]
    _prior_sites: tuple[str, ...] = ("beta", "bias_eta")
    _own: OwnFit | None = None
    _decided: tuple[Program | None] | None = None

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
    def model(self) -> Program:
        """The Pyro model of the data: a callable without arguments, as ``pyro.infer`` takes them."""
        raise NotImplementedError

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
        names = [name for name in self._known_shapes() if name not in self._held()]
        values = {name: getattr(self, name).detach().clone() for name in names}
        return {name: value for name, value in values.items() if value.numel()}

    @property
    def bound_likelihood(self) -> Likelihood:
        """The likelihood with its hyper-parameters at their present values."""
        return self._guarded.bind({name: getattr(self, name) for name in self.likelihood.free})

    @property
    def _guarded(self) -> Likelihood:
        """The likelihood as engines use it: a gene for which it raises has NaN, and troubles no other."""
        return guarded(self.likelihood, self._errors)

    def _checked(self, counts: Any, design_mtx: Any, device: str | torch.device) -> tuple[Tensor, Tensor]:
        chosen = as_device(device)
        table = as_counts(counts, chosen, self.likelihood)
        return table, as_design(design_mtx, table.shape[1], chosen, spot_names(counts))

    def _named_priors(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        covariance: Any = None,
        isoform_effect: IsoformEffect = "independent",
    ) -> None:
        """Turn a name that was given as priors into those of this data."""
        if self._priors_name is not None:
            own = {"covariance": covariance, "likelihood": self.likelihood, "isoform_effect": isoform_effect}
            self.priors = named_priors(self._priors_name, shapes, **own)

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

    # a model of a person's own

    def _shipped(self) -> MultinomialGLM:
        """The library's Pyro model of the data and options."""
        raise NotImplementedError

    def _arguments(self) -> dict[str, Any]:
        """What it is made with."""
        raise NotImplementedError

    def _asked(self) -> dict[str, str]:
        """Of these, those of which something was asked for, in words."""
        asked = {"counts": "counts"}
        if self.design_mtx.shape[1]:
            asked["design"] = f"design_mtx: {self.design_mtx.shape[1]} covariates"
        if type(self.likelihood) is not Multinomial:
            asked["likelihood"] = f"likelihood={self.likelihood!r}"
        if self.priors:
            asked["priors"] = f"priors: of {', '.join(self.priors)}"
        return asked

    def _known_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the sites that are attributes."""
        raise NotImplementedError

    def _effects(self, program: Program, name: str, values: Mapping[str, Tensor]) -> list[str]:
        """Sites that the fitting method integrates out."""
        return []

    def _bound(self) -> Program:
        """The given model, made of the data; what it does not hold itself is held by conditioning."""
        assert self._given is not None
        arguments = self._arguments()
        program = bound_model(self._given, arguments, self._asked())
        held = arguments.get("fixed", {})
        return program if not held or takes(self._given, "fixed") else poutine.condition(program, data=held)

    def _own_program(self) -> Program | None:
        """The model that a person gave, where its density is not that of the shipped one; else None."""
        if self._given is None and "model" not in overridden(type(self))[1]:
            return None
        if self._decided is None:
            self._decided = (self._decide(),)
        return self._decided[0]

    def _decide(self) -> Program | None:
        program, name = self.model, self._model_name()
        values = latent_values(program, name, n_genes=self.n_genes)
        held = {site: getattr(self, site).detach().clone() for site in self._held() if site in values}
        for site, value in held.items():
            if value.shape != values[site].shape:
                raise InvalidArgumentError(
                    f"{site}: it is held at values of shape {tuple(value.shape)}, and {name} has it of shape "
                    f"{tuple(values[site].shape)}; give var_fix_sigma=False."
                )
        if held:
            program = poutine.condition(program, data=held)
            values = {site: value for site, value in values.items() if site not in held}
        known = self._shipped()
        shapes = {site: shape for site, shape in known.latent_shapes().items() if 0 not in shape}
        points = partial(random_values, shapes, lambda site: site not in REAL)
        if have_shapes(values, shapes) and difference_from(program, known, points) is None:
            return None
        refuse_ignored(program, name, self._without(values))
        return program

    def _model_name(self) -> str:
        return name_of(self.model if self._given is None else self._given)

    def _without(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Program, Program, Program]]:
        """Options that were given, in words, with the model without each, and the shipped model with and without."""
        complete = complete_priors(self.priors, {k: v for k, v in self._known_shapes().items() if k in self.priors})
        for site, prior in complete.items():
            if not is_flat(prior) and (self._priors_name is None or site in values):
                rest = {name: other for name, other in self.priors.items() if name != site}
                yield self._compared(f"priors[{site!r}]", priors=rest)
        if type(self.likelihood) is not Multinomial:
            yield self._compared(f"likelihood={self.likelihood!r}", likelihood=Multinomial())

    def _compared(self, words: str, **changed: Any) -> tuple[str, Program, Program, Program]:
        other = self.clone()
        for name, value in changed.items():
            setattr(other, name, value)
        return words, other.model, self._shipped(), type(self)._shipped(other)

    def _fit_own(self, program: Program, *, keep: bool, verbose: bool, quiet: bool) -> None:
        """Fit a model of a person's own by the guides."""
        if keep:
            raise InvalidArgumentError("store_param_history: the guide of a model of your own keeps none.")
        if self.device.type != "cpu":
            raise InvalidArgumentError(f"device: a model of your own is fitted on 'cpu', found {str(self.device)!r}.")
        options, began = guide_options(self.fitting_configs, self._default_configs()), time.perf_counter()
        name = self._model_name()
        effects = self._effects(program, name, latent_values(program, name))
        own = Task(name=name, n_units=self.n_genes, effects=effects, options=options).fit(program)
        self._take_own(own)
        self._errors.clear()
        if verbose:
            logger.info("%s: %s\n%s", type(self).__name__, own.engine, own.guide.report().to_string())
        self._finish(own.record(), time.perf_counter() - began, verbose=verbose, quiet=quiet)

    def _take_own(self, own: OwnFit) -> None:
        """Make estimates of the known sites the parameters; NaN where the model does not have a site."""
        known = {}
        for name, shape in self._known_shapes().items():
            if name in own.values:
                value = own.values[name]
                known[name] = value.reshape(shape) if _same_numbers(value.shape, shape) else value
            elif name not in self._held() and 0 not in shape:
                known[name] = torch.full(shape, torch.nan, dtype=torch.float64)
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

    def _set_parameters(self, values: Mapping[str, Tensor]) -> None:
        place_parameters(self, values)

    def _require_followed(self) -> None:
        """Raise where a subclass has an objective or a predictor of its own, which no fit would follow."""
        shipped, names = overridden(type(self))
        for name in sorted({"forward", "linear_predictor"} & {*names}):
            other = self.clone()
            start = torch.Generator().manual_seed(0)
            for value in other.parameters():
                value.data += 0.1 * torch.rand(value.shape, generator=start, dtype=value.dtype).to(value.device)
            with torch.no_grad():
                found, expected = getattr(other, name)(), getattr(shipped, name)(other)
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
                raise InvalidArgumentError(
                    f"{name}: {type(self).__name__} overrides it, and fits follow that of {shipped.__name__}. Give the "
                    "Pyro model (model=), which is what is fitted, or change priors= or likelihood=."
                )

    def _require_data(self) -> None:
        if not self.n_genes:
            raise NotReadyError(f"{type(self).__name__} has no data yet: call setup_data() first.")

    def clone(self: ModelType) -> ModelType:
        """A model of its own with the same data, options, parameters and record of the fit.

        The data are shared (they are never changed in place), everything else is copied.
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
        record.finish(genes, "max_epochs")
        return record

    def _finish(self, record: Convergence, seconds: float, *, verbose: bool, quiet: bool) -> None:
        if self._errors:
            failed = [gene for gene, reason in enumerate(record.reason) if reason == "not_finite"]
            record.finish(torch.tensor(failed, dtype=torch.int64), "raised")
        self.logger, self.fitting_time = record, seconds
        if verbose:
            for epoch, loss in enumerate(record.loss_history.sum(1).tolist()):
                logger.info("%s: epoch %d, loss %.6f", type(self).__name__, epoch, loss)
        if not quiet:
            logger.info("%s: %s", type(self).__name__, self._status())

    def _status(self) -> str:
        if not self.n_genes:
            return "no data; call setup_data()"
        if "running" in self.logger.reason:
            return "not fitted; call fit()"
        reasons = sorted({reason: self.logger.reason.count(reason) for reason in self.logger.reason}.items())
        counted = ", ".join(f"{number} {reason}" for reason, number in reasons)
        return f"fitted in {self.fitting_time:.3g} s: {counted}"

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
