"""The part of the multinomial models that follows a Pyro model of a person's own, where there is one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch.nn import Module, Parameter

from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from pyrosplice.glmm.distributions import SpotCounts
from pyrosplice.glmm.glm_objective import Standardisation
from pyrosplice.glmm.multinomial import MultinomialGLM
from pyrosplice.guides.agreement import difference_from, overridden, random_values
from pyrosplice.guides.own_fit import OwnFit, Task, endless, same_numbers
from pyrosplice.guides.own_model import (
    SHIPPED_ENGINE,
    Program,
    bound_model,
    have_shapes,
    ignores,
    latent_values,
    name_of,
    refuse_ignored,
    takes,
)
from pyrosplice.likelihoods.contract import Likelihood, Multinomial
from pyrosplice.modes import works_in_any_mode
from pyrosplice.optimize.convergence import Convergence
from pyrosplice.priors.sites import complete_priors, is_flat
from pyrosplice.reasons import Reason
from pyrosplice.usage.configs import guide_options
from pyrosplice.usage.reading.design import Design

logger = logging.getLogger("pyrosplice")

Pairs = tuple[tuple[Program, Program], tuple[Program, Program]]
REAL = {"beta", "bias_eta", "theta_logit", "nu"}  # sites on the real line; all others are positive


FAR = 12.0  # logits beyond which an estimate may be at infinity


def place_parameters(model: Module, values: Mapping[str, Tensor]) -> None:
    """(Re)place parameters; they carry no gradient unless the user asks (``requires_grad_()``)."""
    for name, value in values.items():
        model.register_parameter(name, Parameter(value.detach().clone(), requires_grad=False))


@works_in_any_mode
class FollowedModel(Module):
    """Which Pyro model an estimator of isoform usage has, the fit of one of a person's own, and what is known of it.

    ==================  ========  ==============================================
    what to override    required  for
    ==================  ========  ==============================================
    ``shipped_model``  yes       the library's own Pyro model
    ``_arguments``      yes       what it is made with
    ``_known_shapes``   yes       the sites that are attributes
    ``_asked``          no        arguments that a model may not leave unread
    ``_without``        no        options that it may not leave unused
    ``_replaced``       no        arguments that it may not leave unused
    ``_effects``        no        sites that the fitting method integrates out
    ==================  ========  ==============================================
    """

    counts: Tensor
    design_mtx: Tensor
    device: torch.device
    n_genes: int
    n_spots: int
    fitting_configs: dict[str, Any]
    likelihood: Likelihood
    priors: dict[str, Any]
    _given: Program | None
    _priors_name: str | None
    _errors: list[Exception]
    _own: OwnFit | None = None
    _decided: tuple[Program | None] | None = None

    @property
    def model(self) -> Program:
        """The Pyro model of the data, yours or the shipped one; called without arguments, as by ``pyro.infer``."""
        self._require_data()
        return self.shipped_model() if self._given is None else self._bound()

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

    # what the estimators give

    def clone(self) -> Self:
        """A copy with parameters of its own."""
        raise NotImplementedError

    def _require_data(self) -> None:
        raise NotImplementedError

    def _default_configs(self) -> dict[str, Any]:
        raise NotImplementedError

    def _held(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _set_parameters(self, values: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def _finish(self, record: Convergence, seconds: float, *, verbose: bool, quiet: bool) -> None:
        raise NotImplementedError

    def shipped_model(self) -> MultinomialGLM:
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

    def _program_to_fit(self) -> Program | None:
        """The same, decided again: options and values that are held may have changed."""
        self._decided = None
        program = self._own_program()
        if program is None:
            self._own = None  # an earlier fit of a model that is the shipped one by now
        return program

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
        known = self.shipped_model()
        shapes = {site: shape for site, shape in known.latent_shapes().items() if 0 not in shape}
        points = partial(random_values, shapes, lambda site: site not in REAL)
        if have_shapes(values, shapes) and difference_from(program, known, points) is None:
            return None
        for words, other in (*self._without(values), *self._replaced()):
            refuse_ignored(words, name, *self._beside(program, known, other, held))
        return program

    def _unread(self) -> list[str]:
        """Sites that are held at values of which a person's model knows nothing."""
        values = latent_values(self.model, self._model_name(), n_genes=self.n_genes)
        found = []
        for site in (name for name in self._held() if name not in values):
            other = self.clone()
            place_parameters(other, {site: 1 + 2 * getattr(self, site).detach()})
            if ignores(*self._beside(self.model, self.shipped_model(), other, {})):
                found.append(site)
        return found

    @staticmethod
    def _beside(program: Program, known: Program, other: FollowedModel, held: Mapping[str, Tensor]) -> Pairs:
        """A model and the shipped one, each beside that of another estimator, which is not made before it is run."""

        def mine() -> Any:
            return poutine.condition(other.model, data=dict(held))()

        return (program, mine), (known, lambda: other.shipped_model()())

    def _model_name(self) -> str:
        return name_of(self.model if self._given is None else self._given)

    def _without(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, FollowedModel]]:
        """Options that were given, in words, and an estimator without each."""
        complete = complete_priors(self.priors, {k: v for k, v in self._known_shapes().items() if k in self.priors})
        for site, prior in complete.items():
            if not is_flat(prior) and (self._priors_name is None or site in values):
                rest = {name: other for name, other in self.priors.items() if name != site}
                yield f"priors[{site!r}]", self._changed(priors=rest)
        if type(self.likelihood) is not Multinomial:
            rest = {name: prior for name, prior in self.priors.items() if name not in self.likelihood.free}
            yield f"likelihood={self.likelihood!r}", self._changed(likelihood=Multinomial(), priors=rest)

    def _replaced(self) -> Iterator[tuple[str, FollowedModel]]:
        """Arguments of which something was asked for, in words, and an estimator with other numbers in each."""
        asked = self._asked()
        generator = torch.Generator().manual_seed(0)
        spots = torch.randperm(self.n_spots, generator=generator).to(self.counts.device)
        yield asked["counts"], self._changed(counts=2 * self.counts[:, spots])
        if "design" in asked:
            yield asked["design"], self._changed(design_mtx=1 + 2 * self.design_mtx[spots])

    def _changed(self, **options: Any) -> FollowedModel:
        other = self.clone()
        for name, value in options.items():
            setattr(other, name, value)
        return other

    def _fit_own(self, program: Program, *, keep: bool, verbose: bool, quiet: bool) -> None:
        """Fit a model of a person's own by the guides."""
        if keep:
            raise InvalidArgumentError("store_param_history: the guide of a model of your own keeps none.")
        if "forward" in overridden(type(self))[1]:
            raise InvalidArgumentError(
                f"forward: {type(self).__name__} overrides it beside a model, whose density is what is fitted; put "
                "what it adds into the model."
            )
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
        record = own.record()
        self._name_endless(own, record)
        self._finish(record, time.perf_counter() - began, verbose=verbose, quiet=quiet)

    def _name_endless(self, own: OwnFit, record: Convergence) -> None:
        """Genes that a flat prior leaves without an optimum, in the words of the shipped fits."""
        empty = (self.counts.sum((1, 2)) == 0) & ~own.guide.optimum.identified
        record.finish(torch.nonzero(empty).squeeze(-1), Reason.NO_COUNTS)
        shapes = self._known_shapes()
        n_logits, sites = shapes["bias_eta"][1], {}
        for name in ("beta", "bias_eta"):
            site, shape = own.guide.density.latents.get(name), shapes[name]
            if 0 in shape:
                continue
            if site is None or name in own.integrated or not (site.is_real() and same_numbers(site.value_shape, shape)):
                return
            sites[name] = own.values[name].double().clone().requires_grad_(True)
        scale = Standardisation.of(self.design_mtx).matrix  # of covariates of size one, whatever their units
        coefficients = torch.cat([site.detach().reshape(self.n_genes, -1, n_logits) for site in sites.values()], 1)
        if not bool((torch.linalg.solve(scale, coefficients).abs() > FAR).any()):
            return
        with torch.enable_grad():
            slopes = torch.autograd.grad(own.log_density({**own.values, **sites}).sum(), list(sites.values()))
        slope = torch.cat([part.reshape(self.n_genes, -1, n_logits) for part in slopes], 1)
        information, _ = own.coefficient_information(own.values, self.design_mtx, n_logits)
        away = endless((scale.mT @ slope).flatten(1), information)
        record.finish(torch.nonzero(away & own.guide.converged & ~empty).squeeze(-1), Reason.SEPARATED)

    def _take_own(self, own: OwnFit) -> None:
        """Make estimates of the known sites the parameters; NaN where the model does not have a site."""
        known, unread = {}, self._unread()
        for name, shape in self._known_shapes().items():
            if name in own.values:
                value = own.values[name]
                known[name] = value.reshape(shape) if same_numbers(value.shape, shape) else value
            elif (name not in self._held() or name in unread) and 0 not in shape:
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

    def _spot_counts(self, what: str) -> SpotCounts | None:
        """Distribution of the counts under a person's model, of which ``what`` is asked; None for the shipped one."""
        own = self._followed()
        return None if own is None else own.spot_counts(self._own_values(own), what)

    def _shipped_only(self, what: str, instead: str = "") -> None:
        """Raise for what only the shipped model has."""
        if self.n_genes and self._own_program() is not None:
            raise RefusedModelError(
                f"{what}: it is worked out for the shipped model, and this estimator's is {self._model_name()}."
                f"{f' Use {instead}.' if instead else ''}"
            )


def require_plain(design: Design | None, name: str) -> None:
    """Raise where covariates are levels of a factor, which are fitted in a coding that only the shipped model knows."""
    if design is not None and not np.array_equal(design.coding, np.eye(len(design.coding))):
        raise RefusedModelError(
            f"design_mtx: expected columns of numbers with {name}, found the levels of a factor, {list(design.names)}, "
            "which are fitted without one of them and coded again for the shipped model. Give all levels but one."
        )
