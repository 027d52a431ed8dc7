"""The log density of any Pyro model, one number a unit, as a function of one vector of unconstrained unknowns a unit.

Units (genes, patients, ...) are the elements of a plate that holds every latent site, or the model is one unit. What
sites, supports and plates there are is found by running the model once. Discrete latent sites are summed out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from pyrosplice.errors import RefusedModelError
from pyrosplice.guides._bijections import bijection
from pyrosplice.guides._double_precision import DoublePrecision
from pyrosplice.guides._first_points import ModelTrace, Site, SiteStart, is_subsample
from pyrosplice.guides._latent_sites import LatentSite

Model = Callable[..., Any]
Terms = dict[str, Tensor]  # log densities by site, (G, ...) each


@dataclass(frozen=True)
class ModelCall:
    """A model and what it is called with."""

    model: Model
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def trace(self, *, init: SiteStart, without: Collection[str] = ()) -> ModelTrace:
        """Run the model once, latent sites at ``init``, unseen by handlers around; ``without`` some densities."""
        started = InitMessenger(init)(self.model)
        trace = poutine.block(poutine.trace(started).get_trace)(*self.args, **self.kwargs)
        trace.compute_log_prob(site_filter=lambda name, _: name not in without)
        return cast(ModelTrace, trace)


class UnitDensity:
    """Log density of a model by unit; see the module.

    Parameters
    ----------
    call
        The model and its arguments.
    prototype
        One run of it (:meth:`ModelCall.trace`); gives the first point.
    unit_plate
        Name of the plate of units; None for one unit.
    jacobian
        Sites whose density is that of the unconstrained coordinates; of the others it is that of the values.

    Attributes
    ----------
    latents
        Continuous latent sites by name, in the model's order.
    enumerated
        Names of the discrete latent sites.
    start
        Unknowns of the prototype, ``(G, d)``.
    aliases
        Plate that counts the units at sites outside the plate of units, by site.

    Raises
    ------
    RefusedModelError
        For a part of the model from which no blocks of units can be made; the message names it.
    """

    def __init__(
        self, call: ModelCall, prototype: ModelTrace, unit_plate: str | None, jacobian: Collection[str] = frozenset()
    ) -> None:
        self.call, self.unit_plate, self.jacobian = call, unit_plate, frozenset(jacobian)
        sites = sample_sites(prototype)
        check_plates(prototype)
        _refuse_parameters(prototype)
        self.frames = {f.name: f for site in sites.values() for f in site["cond_indep_stack"]}
        self.nesting = max((-f.dim for f in self.frames.values()), default=0)
        self.n_units = 1 if unit_plate is None else self.frames[unit_plate].size
        free = {name: site for name, site in sites.items() if not site["is_observed"]}
        self.enumerated = [name for name, site in free.items() if _is_enumerated(name, site)]
        _refuse_scales(sites, self.enumerated)
        self.latents: dict[str, LatentSite] = {}
        parts, size = [], 0
        for name in (name for name in free if name not in self.enumerated):
            site, unconstrained = self._latent(name, free[name], size)
            self.latents[name] = site
            parts.append(site.pack(unconstrained).double())
            size += site.size
        if not size:
            raise RefusedModelError("model: found no continuous latent site, so there is nothing to estimate.")
        self.size, self.start = size, torch.cat(parts, 1)
        self.single_precision = _has_floats(sites.values())
        self.aliases: dict[str, str] = {}
        if _is_float32(sites.values()) or not self._takes_doubles():
            self.latents = {name: replace(site, dtype=torch.float32) for name, site in self.latents.items()}

    def _takes_doubles(self) -> bool:
        """Whether the model, as it is, runs with latent sites in float64: then they are handed out as such."""
        if not self.single_precision:
            return True
        model = poutine.condition(self.call.model, data=self.constrain(self.start)[0])
        try:
            poutine.block(model)(*self.call.args, **self.call.kwargs)
        except (RuntimeError, TypeError, ValueError):  # such as a product with a float32 matrix
            return False
        return True

    def _latent(self, name: str, site: Site, first: int) -> tuple[LatentSite, Tensor]:
        try:
            transform = bijection(site["fn"].support)
        except NotImplementedError as error:
            raise RefusedModelError(
                f"{name}: torch knows no coordinates for values in {site['fn'].support}; give a distribution whose "
                "``support`` is a standard one."
            ) from error
        value = site["value"].detach()
        unconstrained = transform.inv(value)
        if not bool(torch.isfinite(unconstrained).all()):
            raise RefusedModelError(
                f"{name}: the first point is not inside {site['fn'].support}; give ``init_loc_fn``."
            )
        axis, n_event = None, site["fn"].event_dim + unconstrained.ndim - value.ndim
        if self.unit_plate is not None:
            mine = [f for f in site["cond_indep_stack"] if f.name == self.unit_plate]
            if not mine:
                raise RefusedModelError(
                    f"{name}: latent site outside the plate {self.unit_plate!r}, shared by all of its units, so that "
                    "they are one problem. Give units=None to fit them as one."
                )
            axis = unconstrained.ndim - n_event + mine[0].dim
        n_own = unconstrained.numel() // self.n_units
        return (
            LatentSite(
                name=name,
                transform=transform,
                shape=tuple(unconstrained.shape),
                value_shape=tuple(value.shape),
                event_dim=site["fn"].event_dim,
                axis=axis,
                columns=slice(first, first + n_own),
                frames=site["cond_indep_stack"],
                dtype=torch.float64,
            ),
            unconstrained,
        )

    def constrain(self, unknowns: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values by site, in float64, and the log volume ``(G,)`` of the sites in ``jacobian``."""
        values, volume = {}, unknowns.new_zeros(self.n_units)
        for name, site in self.latents.items():
            coordinates = site.unpack(unknowns)
            values[name] = site.transform(coordinates)
            if name in self.jacobian:
                volume = volume + site.log_volume(coordinates, values[name])
        return values, volume

    def unconstrain(self, values: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
        """Unknowns ``(G, p)`` of some sites at given values; differentiable."""
        parts = [self.latents[name].pack(self.latents[name].transform.inv(values[name].double())) for name in names]
        return torch.cat([self.start.new_zeros(self.n_units, 0), *parts], 1)

    def trace(self, values: Mapping[str, Tensor], *, without: Collection[str] = ()) -> ModelTrace:
        """Run the model with its latent sites at ``values``; the densities of the sites ``without`` are left out."""
        with ExitStack() as stack:
            stack.enter_context(pyro.validation_enabled(False))
            if self.single_precision:
                stack.enter_context(DoublePrecision())
            model = poutine.condition(self.call.model, data=dict(values))
            if self.enumerated:
                expanded = pyro.infer.config_enumerate(model, "parallel")
                model = poutine.enum(expanded, first_available_dim=-1 - self.nesting)
            trace = poutine.block(poutine.trace(model).get_trace)(*self.call.args, **self.call.kwargs)
            trace.compute_log_prob(site_filter=lambda name, _: name not in without)
        return cast(ModelTrace, trace)

    def terms(self, trace: ModelTrace) -> Terms:
        """Log densities by site, ``(G, everything else)``; those that share a discrete site are summed over it."""
        sites = {name: site for name, site in sample_sites(trace).items() if "log_prob" in site}
        if not self.enumerated:
            return {name: self.by_unit(name, site["log_prob"], plates_of(site)) for name, site in sites.items()}
        trace.pack_tensors()
        plates = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
        out, tree = {}, OrderedDict[frozenset[str], list[Tensor]]()
        for name, site in sites.items():
            packed = site["packed"]["log_prob"]
            if set(packed._pyro_dims) <= set(plates):
                out[name] = self.by_unit(name, packed, _packed_plates(packed._pyro_dims, plates))
            else:
                around = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
                tree.setdefault(around, []).append(packed)
        discrete = {symbol for symbol in trace.symbol_to_dim if symbol not in plates}
        summed = contract_tensor_tree(tree, discrete) if tree else {}
        for count, term in enumerate(term for terms in summed.values() for term in terms):
            name = f"sum over {', '.join(self.enumerated)} ({count})"
            out[name] = self.by_unit(name, term, _packed_plates(term._pyro_dims, plates))
        return out

    def by_unit(self, name: str, values: Tensor, plates: Iterable[tuple[str, int]], *, event_dim: int = 0) -> Tensor:
        """Numbers ``(*plates, *event)`` of each element of a site's plates, as ``(G, everything else, *event)``."""
        batch_dim = values.ndim - event_dim
        event = values.shape[batch_dim:]
        if self.n_units == 1:
            return values.reshape(1, -1, *event)
        dims = dict(plates)
        names = (self.aliases.get(name), self.unit_plate, *self.aliases.values())
        axis = next((dims[plate] for plate in names if plate in dims), None)
        if axis is None:
            raise RefusedModelError(
                f"{name}: not in the plate {self.unit_plate!r}, and no plate of its {self.n_units} units keeps them "
                "apart there. Give units=None to fit all as one problem."
            )
        return values.movedim(batch_dim + axis, 0).reshape(self.n_units, -1, *event)

    def total(self, terms: Terms, volume: Tensor) -> Tensor:
        """Log density of each unit, ``(G,)``."""
        return volume + torch.stack([term.sum(1) for term in terms.values()]).sum(0)

    def __call__(self, unknowns: Tensor) -> Tensor:
        """Log density ``(G,)`` at unknowns ``(G, d)``."""
        values, volume = self.constrain(unknowns)
        return self.total(self.terms(self.trace(values)), volume)


def sample_sites(trace: ModelTrace) -> dict[str, Site]:
    """Sites of a trace that have a density, by name."""
    nodes = trace.nodes.items()
    return {name: site for name, site in nodes if site["type"] == "sample" and not is_subsample(site)}


def check_plates(prototype: ModelTrace) -> None:
    """Refuse plates that a Newton step cannot work with, naming them."""
    for name, site in prototype.nodes.items():
        if site["type"] == "sample" and is_subsample(site) and len(site["value"]) < site["fn"].size:
            raise RefusedModelError(
                f"plate {name!r}: subsampled, {len(site['value'])} of {site['fn'].size}; Newton's method needs all of "
                "the data. Leave out subsample_size, or fit by pyro.infer.SVI."
            )
    for name, site in sample_sites(prototype).items():
        for frame in site["cond_indep_stack"]:
            if not frame.vectorized:
                raise RefusedModelError(
                    f"{name}: in the sequential plate {frame.name!r}; use ``with pyro.plate(...)``, not a loop over it."
                )


def _is_enumerated(name: str, site: Site) -> bool:
    if not site["fn"].support.is_discrete:
        return False
    if not site["fn"].has_enumerate_support:
        raise RefusedModelError(
            f"{name}: latent, discrete, and {type(site['fn']).__name__} cannot be enumerated. If these are data, give "
            "them to ``fit``."
        )
    return True


def _refuse_scales(sites: Mapping[str, Site], enumerated: list[str]) -> None:
    for name, site in sites.items():
        if (
            enumerated
            and isinstance(site["scale"], Tensor | float | int)
            and not bool(torch.as_tensor(site["scale"] == 1).all())
        ):
            raise RefusedModelError(
                f"{name}: its density is scaled (poutine.scale), which has no meaning beside the sum over "
                f"{enumerated[0]}."
            )


def _refuse_parameters(prototype: ModelTrace) -> None:
    names = [name for name, site in prototype.nodes.items() if site["type"] == "param"]
    if names:
        raise RefusedModelError(
            f"{names[0]}: pyro.param, which this guide does not estimate; make it a sample site, with a flat prior "
            "(dist.ImproperUniform) if it has none."
        )


def _has_floats(sites: Iterable[Site]) -> bool:
    return any(
        t.dtype == torch.float32
        for site in sites
        for t in (site["value"], site["log_prob"] if "log_prob" in site else site["value"])
    )


def _is_float32(sites: Iterable[Site]) -> bool:
    """Whether all that is observed has a float32 density: a model of float32 data."""
    types = {site["log_prob"].dtype for site in sites if site["is_observed"]}
    return types == {torch.float32}


def plates_of(site: Site) -> list[tuple[str, int]]:
    """Names of a site's plates and their dimensions."""
    return [(frame.name, frame.dim) for frame in site["cond_indep_stack"]]


def _packed_plates(dims: str, plates: Mapping[str, str]) -> list[tuple[str, int]]:
    return [(plates[s], place - len(dims)) for place, s in enumerate(dims) if s in plates]
