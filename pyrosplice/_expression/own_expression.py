"""The part of :class:`~pyrosplice.ExpressionGLM` that follows a Pyro model of a person's own, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression.call_options import defaults_of, is_default
from pyrosplice._expression.engine.basis import identity
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.mixed.cell_effects import OF_EFFECTS, EffectsRequest
from pyrosplice._expression.noise_models import held_scale, likelihood_of, mean_link
from pyrosplice._expression.prepared_inputs import InputData, prepare
from pyrosplice._modes import works_in_any_mode
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from pyrosplice.guides import FitOptions
from pyrosplice.guides._agreement import difference_from, overridden, random_values
from pyrosplice.guides._column_sizes import sizes_named
from pyrosplice.guides._own_fit import OwnFit, SavedSites, Task, check_saved, endless
from pyrosplice.guides._own_model import (
    SHIPPED_ENGINE,
    Program,
    bound_model,
    have_shapes,
    latent_values,
    name_of,
    refuse_ignored,
)
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._counts import NegativeBinomial

OF_THE_ENGINE = {"train_args": None} | {
    name: default
    for name, default in defaults_of(expression_fit.model).items()
    if name in ("init_a", "init_b", "batch_size", "training_strategy", "quick_scale", "dtype", "device", "weights")
}

OF_THE_DATA = {*defaults_of(prepare)} - {"weights", "effects"}


class ExpressionPoints:
    """A Pyro guide with every coefficient of the shipped model at its estimate.

    Parameters
    ----------
    sites
        ``location`` and ``scale``, ``(G, 1, ·)``.
    """

    def __init__(self, sites: Mapping[str, Tensor]) -> None:
        self.sites = dict(sites)

    def __call__(self, counts: Tensor | None = None, *, n_genes: int | None = None) -> dict[str, Tensor]:
        """Sample every site; the arguments are the model's."""
        with pyro.plate("genes", len(self.sites["location"]), dim=-2):
            points = {name: dist.Delta(value, event_dim=1, validate_args=False) for name, value in self.sites.items()}
            return {name: pyro.sample(name, point) for name, point in points.items()}


@works_in_any_mode
class FollowedExpression:
    """Which Pyro model an expression GLM has, the fit of one of a person's own, and what is known of it."""

    estimator: Estimator | None
    noise_model: str | Likelihood
    _given: Program | None
    _fit: GlmFit | None
    _inputs: InputData | None = None
    _own: OwnFit | None = None
    _saved_own: SavedSites | None = None

    @property
    def model(self) -> Program:
        """The Pyro model, yours or the shipped one, of the free coefficients; called with counts ``(G, N)``.

        Refused where the fit has random effects, with the name of the model that has them.
        """
        inputs = self._input_data()
        refuse_effects("model", inputs)
        if self._given is None:
            return ExpressionModel(**model_arguments(inputs))
        return bound_model(self._given, model_arguments(inputs), _asked(inputs), data=("counts",))

    @property
    def guide(self) -> Callable[..., dict[str, Tensor]]:
        """A Pyro guide with every site at its estimate; of a model of your own, the guide that fitted it."""
        if self._own is not None:
            return self._own.guide
        if self._saved_own is not None:
            raise NotReadyError(f"guide: a loaded model has none of {self._saved_own.name}; call fit.")
        if self.estimator is not None:
            refuse_effects("guide", self.estimator.input_data)
        return ExpressionPoints(self._coefficients())

    @property
    def engine(self) -> str:
        """Which way a fit went: the engine of the shipped model, or the guide of one of your own, and what it did."""
        own = self._saved_own if self._own is None else self._own
        return SHIPPED_ENGINE if own is None else own.engine

    @property
    def sites(self) -> dict[str, Tensor]:
        """Estimates of the model's sites, ``(G, 1, ·)`` each; copies.

        Of the shipped model: ``location`` and ``scale``, the free coefficients. Those are all of it, but for a fit with
        random effects, whose others are tables: ``variance_components()``, levels in ``random_effects()``, the field
        in ``fitted_field()``. Of a model of your own: every latent site.
        """
        own = self._saved_own if self._own is None else self._own
        if own is not None:
            return own.copies()
        return self._coefficients()

    def _coefficients(self) -> dict[str, Tensor]:
        """Values of the shipped model's sites, ``(G, 1, ·)``."""
        if self._fit is None:
            raise NotReadyError("Call fit first.")
        theta, p = torch.from_numpy(self._fit.theta.copy()).unsqueeze(1), self._fit.n_location
        last = theta.shape[-1] if likelihood_of(self.noise_model).free else p
        return {"location": theta[..., :p], "scale": theta[..., p:last]}

    def _input_data(self) -> InputData:
        if self._inputs is not None:
            return self._inputs
        if self.estimator is None:
            raise NotReadyError("This needs the data: call fit (a loaded model has none).")
        return self.estimator.input_data

    @property
    def _link(self) -> str | None:
        """How means follow from the predictor; None of a model of one's own, which says for itself."""
        own = self._own is not None or self._saved_own is not None
        return None if own else mean_link(likelihood_of(self.noise_model))

    def _has_own(self) -> bool:
        return self._given is not None or "model" in overridden(type(self))[1]

    def _follow(self, settings: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[OwnFit, InputData] | None:
        """Fit the model that a person gave; None where it has the density of the shipped one."""
        before = self._inputs
        rest = {option: value for option, value in options.items() if option in OF_THE_DATA}
        asked = EffectsRequest.of(*(settings[name] for name in OF_EFFECTS))
        inputs = prepare(**{k: v for k, v in settings.items() if k not in OF_EFFECTS}, **rest, effects=asked)
        if inputs.effects is not None:
            raise InvalidArgumentError(
                f"formula_loc, effects: a model of your own says its random effects itself, found {inputs.effects}."
            )
        design = torch.from_numpy(inputs.design().x)
        try:
            self._inputs = inputs
            program, name = self.model, name_of(self.model if self._given is None else self._given)
            with sizes_named(design, name):
                counts = torch.from_numpy(inputs.counts.genes(np.arange(inputs.counts.shape[1])).astype(np.float64))
                known = ExpressionModel(**model_arguments(inputs))
                values = latent_values(program, name, counts, n_genes=len(counts))
                sizes = zip(("location", "scale"), known.n_coefficients, strict=True)
                shapes = {site: (len(counts), 1, size) for site, size in sizes}
                points = partial(random_values, shapes, lambda _: False)
                filled = {site: shape for site, shape in shapes.items() if shape[-1]}
                numbers = {site: value for site, value in values.items() if value.numel()}
                if have_shapes(numbers, filled) and difference_from(program, known, points, counts) is None:
                    return None
                for words, changed in _without(inputs):
                    self._inputs = changed
                    others = self.model, ExpressionModel(**model_arguments(changed))
                    refuse_ignored(words, name, (program, others[0]), (known, others[1]), counts)
        finally:
            self._inputs = before
        for option, value in options.items():
            if option in OF_THE_ENGINE and not is_default(value, OF_THE_ENGINE[option]):
                raise InvalidArgumentError(
                    f"{option}: it is an option of the engine of the shipped model, and {name} is fitted by a guide, "
                    f"found {value!r}; leave it out."
                )
        task = Task(name=name, n_units=len(counts), options=FitOptions(), design=design)
        return task.fit(program, counts), inputs

    def _saved_sites(self) -> SavedSites | None:
        """What is saved of a model of one's own."""
        return self._saved_own if self._own is None else SavedSites.of(self._own)

    def _take_saved(self, saved: SavedSites | None, path: str) -> None:
        """Take the sites of a file; raises where the model that it was saved with is not the one that was given."""
        check_saved(saved, self._given, path, needed=not self._has_own())
        self._saved_own = saved


def refuse_effects(what: str, inputs: InputData) -> None:
    """Raise :class:`RefusedModelError` where the fit has random effects, which the model of coefficients has not."""
    if inputs.effects is not None:
        raise RefusedModelError(
            f"{what}: the fit has random effects, {inputs.effects}, and this is of coefficients alone; "
            "pyrosplice.glmm.CountGLMM(glm.estimator.problem(genes)) is the Pyro model, genes an array of positions."
        )


def model_arguments(inputs: InputData) -> dict[str, Any]:
    """What a Pyro model of expression is made with; offsets ``(N,)``, or ``(G, N)`` gene-wise."""
    design = inputs.design()
    x, z, offset, shift = (
        torch.as_tensor(np.ascontiguousarray(part))
        for part in (design.x, design.z, design.offset.T, design.zeta_offset)
    )
    if not inputs.likelihood.free:
        z, shift = z[:, :0], torch.full_like(shift, held_scale(inputs.likelihood) or 0.0)
    return {"location": x, "scale": z, "likelihood": inputs.likelihood, "offset": offset, "zeta_offset": shift}


def _asked(inputs: InputData) -> dict[str, str]:
    """Arguments of which something was asked for, in words."""
    asked = {}
    if inputs.location.matrix.shape[1] > 1:
        asked["location"] = f"formula_loc: {', '.join(inputs.location.names)}"
    if inputs.scale.matrix.shape[1] > 1:
        asked["scale"] = f"formula_scale: {', '.join(inputs.scale.names)}"
    if np.any(inputs.offset):
        asked["offset"] = "size_factors, offsets"
    if not _is_default(inputs.likelihood):
        asked["likelihood"] = f"noise_model: {inputs.likelihood!r}"
    return asked


def _without(inputs: InputData) -> Iterator[tuple[str, InputData]]:
    """Options that were given, in words, and the data without each, or with other numbers in it."""
    if np.any(inputs.offset):
        yield "size_factors, offsets", replace(inputs, offset=np.zeros_like(inputs.offset))
    asked = _asked(inputs)
    if "likelihood" in asked and inputs.likelihood.free:
        yield asked["likelihood"], replace(inputs, likelihood=NegativeBinomial())
    if "location" in asked:
        yield asked["location"], replace(inputs, location=_with_other_numbers(inputs.location))
    if "scale" in asked:
        yield asked["scale"], replace(inputs, scale=_with_other_numbers(inputs.scale))


def _is_default(likelihood: Likelihood) -> bool:
    return type(likelihood) is NegativeBinomial and bool(likelihood.free)


def _with_other_numbers(design: DesignMatrix) -> DesignMatrix:
    return replace(design, matrix=1 + 2 * design.matrix[::-1])


def glm_fit_of(own: OwnFit, inputs: InputData) -> GlmFit:
    """The fit of a model of one's own as Wald tests take it: estimates of the coefficients and what is known of them.

    Covariances are those of the observed information, all other sites estimated too.

    Raises
    ------
    RefusedModelError
        The model has no site ``location`` of a real number for each free location coefficient.
    """
    arguments = model_arguments(inputs)
    p, r = arguments["location"].shape[1], arguments["scale"].shape[1]
    g = own.guide.density.n_units
    for name, size in (("location", p), ("scale", r)):
        if name in own.values and own.values[name].numel() != g * size:
            raise RefusedModelError(
                f"{name}: expected {size} free coefficients a gene, and {own.name} has it of shape "
                f"{tuple(own.values[name].shape)}."
            )
    if "location" not in own.values:
        raise RefusedModelError(
            f"location: {own.name} has no site of this name, so that there are no coefficients to test or to show; its "
            f"sites are {sorted(own.values)}."
        )
    names = ["location", *(["scale"] if r and "scale" in own.values else [])]
    latents, found = own.guide.density.latents, own.guide.optimum
    slope = torch.cat([found.gradient[:, latents[name].columns] for name in names], 1)
    information = own.information(own.values, names)
    fisher = own.information(own.values, ["location"])
    code = np.array([FitCode.of(reason) for reason in found.reason])
    reach = np.abs(arguments["location"].numpy()).max(0)
    away = endless(slope[:, :p] / torch.from_numpy(reach), fisher / torch.from_numpy(np.outer(reach, reach)))
    lost = (away & found.converged).numpy()
    empty = np.asarray(inputs.counts.genes(np.arange(g))).sum(1) == 0
    code[lost] = np.where(empty[lost], FitCode.ALL_ZERO, FitCode.SEPARATED)
    theta = torch.cat([own.values[name].reshape(g, -1) for name in names], 1).double().numpy().copy()
    theta[code == FitCode.ALL_ZERO] = np.nan  # as in a fit of the shipped model
    return GlmFit(
        theta=theta,
        log_likelihood=found.value.numpy(),
        code=code.astype(np.int64),
        n_iter=found.evaluations.numpy(),
        gradient=slope.numpy(),
        inner_information=information.numpy(),
        inner_fisher=fisher.numpy(),
        basis=identity(information.shape[1]),
        reach=reach,
    )
