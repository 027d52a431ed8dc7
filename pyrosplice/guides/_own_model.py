"""A Pyro model of a person's own in an estimator: made with data and options, none of which it may leave unread.

The model is a class with the constructor of the shipped one, or a function that samples, of the same arguments. Either
is called by keyword with those arguments that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any
from zlib import crc32

import torch
from pyro import poutine
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, RefusedModelError
from pyrosplice.guides import init_to_center
from pyrosplice.guides._bijections import bijection
from pyrosplice.guides._first_points import SiteStart, normal_numbers
from pyrosplice.guides._unit_density import ModelCall, sample_sites

Program = Callable[..., Any]
SHIPPED_ENGINE = "closed-form engine"
NAMED = "random_effects"  # attribute of a model with the names of the sites that marginal methods integrate out
OFF_CENTER = 0.3  # standard deviation of points at which densities are compared, in unconstrained coordinates


def check_model(model: object) -> None:
    """Raise unless it is something to call, or None for the shipped one."""
    if model is not None and not callable(model):
        raise InvalidArgumentError(
            "model: expected a Pyro model, a class with the constructor of the shipped one or a function that samples, "
            f"found {type(model).__name__}."
        )


def name_of(model: object) -> str:
    """What a model is called in messages."""
    if isinstance(model, partial):
        return name_of(model.func)
    return getattr(model, "__name__", None) or type(model).__name__


def bound_model(
    model: Program, arguments: Mapping[str, Any], asked: Mapping[str, str], *, data: Collection[str] = ()
) -> Program:
    """The model with its arguments: an instance of a class, or a function with them bound.

    Parameters
    ----------
    model
        What a person gave.
    arguments
        What the shipped model is made with.
    asked
        Those of which something was asked for, and in which words.
    data
        Names of what the model is called with later on.

    Raises
    ------
    InvalidArgumentError
        An argument that was asked for and the model does not take, or one that it needs and there is not.
    """
    name, parameters = name_of(model), _parameters(model)
    every = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    taken = {key: value for key, value in arguments.items() if every or key in named}
    for key, words in asked.items():
        if key not in taken:
            raise InvalidArgumentError(
                f"{words}: {name} takes no argument {key!r}, so that the fit would not follow it. Give the model that "
                "argument, or leave the option out."
            )
    single = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    needed = [p.name for p in parameters if p.default is Parameter.empty and p.kind not in single]
    lacking = [key for key in needed if key not in {*taken, *data}]
    if lacking:
        raise InvalidArgumentError(
            f"model: {name} needs {', '.join(map(repr, lacking))}, and is called with {', '.join(arguments)}. Bind "
            "what is your own: functools.partial(model, name=value)."
        )
    program = model(**taken) if isinstance(model, type) else partial(model, **taken)
    if not callable(program):
        raise InvalidArgumentError(f"model: expected {name}(...) to be something to call, found no __call__.")
    return program


def takes(model: Program, argument: str) -> bool:
    """Whether a model takes an argument of that name."""
    return any(p.name == argument or p.kind is Parameter.VAR_KEYWORD for p in _parameters(model))


def _parameters(model: Program) -> list[Parameter]:
    read: Any = model
    if isinstance(model, partial) and isinstance(model.func, torch.nn.Module):
        read = partial(model.func.forward, *model.args, **model.keywords)
    elif isinstance(model, torch.nn.Module):  # its __call__ names no arguments
        read = model.forward
    try:
        return list(signature(read).parameters.values())
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"model: the arguments of {name_of(model)} cannot be read ({error}).") from error


def latent_values(program: object, name: str, *args: Any, n_genes: int = 1) -> dict[str, Tensor]:
    """A value of every continuous latent site, from one run.

    Raises
    ------
    InvalidArgumentError
        Nothing to call, or something that samples or observes nothing.
    RefusedModelError
        A latent site that is in no plate of the genes.
    """
    if not callable(program):
        raise InvalidArgumentError(f"model: expected a Pyro model, something to call, found {type(program).__name__}.")
    sites = _sites(program, args, _center)
    latent = {key: site["value"] for key, site in sites.items() if not site["is_observed"]}
    if not latent:
        raise InvalidArgumentError(
            f"model: {name} samples no latent site when it is called, so that there is nothing to estimate. Expected a "
            "class whose objects are Pyro models, or a function that calls pyro.sample."
        )
    if not any(site["is_observed"] for site in sites.values()):
        raise InvalidArgumentError(f"model: {name} observes nothing (pyro.sample(..., obs=counts)).")
    for key in latent if n_genes > 1 else ():
        if all(frame.size != n_genes for frame in sites[key]["cond_indep_stack"]):
            raise RefusedModelError(
                f"{key}: {name} has this latent site in no plate of the {n_genes} genes. An estimator fits gene by "
                "gene; a model in which genes share something is one problem: pyrosplice.guides.AutoNewtonMAP(model, "
                "units=None)."
            )
    return {key: value for key, value in latent.items() if value.is_floating_point()}


def _sites(program: Program, args: tuple[Any, ...], start: SiteStart) -> dict[str, Any]:
    """Sites of one run, the latent ones at ``start``, in float64 as the data are where it runs with that."""
    try:
        return sample_sites(ModelCall(program, args).trace(init=start))
    except RuntimeError:  # such as a product with a float32 matrix
        single = ModelCall(program, args).trace(init=lambda site: start(site).to(init_to_center(site).dtype))
        return sample_sites(single)


def _center(site: dict[str, Any]) -> Tensor:
    value = init_to_center(site)
    return value.double() if value.is_floating_point() else value


def _off_center(site: dict[str, Any]) -> Tensor:
    """A point at which no two entries are alike; the same at every call, whatever the numbers that others draw."""
    value = init_to_center(site)
    if not value.is_floating_point():
        return value
    transform = bijection(site["fn"].support)
    free = transform.inv(value.double())
    return transform(free + OFF_CENTER * normal_numbers(free, crc32(site["name"].encode())))


def integrated_sites(program: Program, name: str, values: Mapping[str, Tensor], apart: Collection[str]) -> list[str]:
    """Names of the sites to integrate out: what the model's ``random_effects`` says, or those that depend on others.

    Parameters
    ----------
    program, name
        The model, and what it is called.
    values
        Values of its latent sites.
    apart
        Sites that are no random effects whatever they depend on.

    Raises
    ------
    RefusedModelError
        There are none.
    """
    named = getattr(program.func if isinstance(program, partial) else program, NAMED, None)
    if named is not None:
        return [named] if isinstance(named, str) else list(named)
    with torch.no_grad():  # off the centers, where the density of a normal about another site has no slope
        point = _sites(program, (), _off_center)
    with torch.enable_grad():
        free = {key: point[key]["value"].detach().clone().requires_grad_(True) for key in values}
        trace = poutine.block(poutine.trace(poutine.condition(program, data=free)).get_trace)()
        trace.compute_log_prob()
        found = [
            key
            for key in free
            if key not in apart and (key == "nu" or _depends(trace.nodes[key]["log_prob"], key, free))
        ]
    if not found:
        raise RefusedModelError(
            f"fitting_method: a marginal one integrates random effects out, and {name} has none: no site whose density "
            f"depends on another one. Name them in its attribute {NAMED!r}, or give MultinomGLM the model."
        )
    return found


def _depends(density: Tensor, name: str, values: Mapping[str, Tensor]) -> bool:
    others = [value for key, value in values.items() if key != name]
    if not density.requires_grad or not others:
        return False
    slopes = torch.autograd.grad(density.sum(), others, retain_graph=True, allow_unused=True)
    return any(slope is not None and bool((slope != 0).any()) for slope in slopes)


def refuse_ignored(
    words: str, name: str, models: tuple[Program, Program], shipped: tuple[Program, Program], *args: Any
) -> None:
    """Raise where a model is the same whatever an option is, and the shipped one is not; see :func:`ignores`.

    Parameters
    ----------
    words, name
        The option, and what the model is called.
    models, shipped, *args
        As of :func:`ignores`.
    """
    if ignores(models, shipped, *args):
        raise unused(words, name)


def unused(words: str, name: str) -> InvalidArgumentError:
    """The error of an option, in words, that the model of that name does not use."""
    return InvalidArgumentError(
        f"{words}: the model {name} does not use it, so that the fit would not follow it. Use it in the model, or "
        "leave it out."
    )


def ignores(models: tuple[Program, Program], shipped: tuple[Program, Program], *args: Any) -> bool:
    """Whether a model has the same sites and densities with an option and without it, and the shipped one has not.

    Parameters
    ----------
    models, shipped
        The model with the option, and without it or with another value of it; and so the shipped one.
    *args
        What the models are called with.
    """
    return _alike(*models, args) and not _alike(*shipped, args)


def _alike(program: Program, other: Program, args: tuple[Any, ...]) -> bool:
    """Whether two models have the same sites and, at one point, the same densities in every unit and spot."""
    here = _densities(program, {}, args)
    values = {key: site["value"] for key, site in here.items() if not site["is_observed"]}
    try:
        there = _densities(other, values, args)
    except (RuntimeError, ValueError, TypeError, LookupError):  # it read what it cannot do with
        return False
    return here.keys() == there.keys() and all(
        site["fn"].shape() == there[key]["fn"].shape() and torch.equal(site["log_prob"], there[key]["log_prob"])
        for key, site in here.items()
    )


def _densities(program: Program, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> dict[str, Any]:
    with torch.no_grad():
        model = poutine.condition(program, data=dict(values)) if values else program
        return _sites(model, args, _off_center)


def have_shapes(values: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether sites are those of a table, of the same shapes."""
    return {name: tuple(value.shape) for name, value in values.items()} == dict(shapes)
