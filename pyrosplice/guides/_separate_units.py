"""Checks by numbers, at every fit, that the units of a plate are problems apart, and on which plate a site has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyrosplice.errors import RefusedModelError
from pyrosplice.guides._first_points import ModelTrace, SiteStart, normal_numbers, shifted
from pyrosplice.guides._unit_density import ModelCall, UnitDensity, check_plates, sample_sites

LIBRARY_PLATE = "genes"  # the plate of units in the library's own models
RELATIVE, ROUNDING = 1e-8, 1e-12  # of a unit's largest derivative, and of that of all units: allowed for rounding


def unit_density(
    call: ModelCall,
    units: str | None,
    jacobian: frozenset[str],
    *,
    init: SiteStart,
    without: frozenset[str] = frozenset(),
) -> UnitDensity:
    """The density of a model by unit, its units found or checked.

    Parameters
    ----------
    call
        The model and its arguments.
    units
        Plate of the units; None for one problem; ``"auto"``: ``"genes"`` if there is such a plate, else the largest
        plate that holds every latent site, else one problem.
    jacobian
        As for :class:`UnitDensity`.
    init
        First point of each site.
    without
        Sites whose density is not looked at.

    Raises
    ------
    RefusedModelError
        Units that interact, or another part that cannot be done; named.
    """
    prototype = call.trace(init=init, without=without)
    check_plates(prototype)
    plate = _plate_of_units(prototype, units)
    density = UnitDensity(call, prototype, plate, jacobian)
    _check_first_point(density, without)
    if density.n_units > 1:
        _check_apart(density, without)
    return density


def _plate_of_units(prototype: ModelTrace, units: str | None) -> str | None:
    sites = sample_sites(prototype)
    sizes = {f.name: f.size for site in sites.values() for f in site["cond_indep_stack"]}
    if units is None:
        return None
    if units != "auto":
        if units not in sizes:
            raise RefusedModelError(
                f"units: expected a plate of the model, one of {sorted(sizes)}, or None for one problem, found "
                f"{units!r}."
            )
        return units
    if LIBRARY_PLATE in sizes:
        return LIBRARY_PLATE
    free = [s for s in sites.values() if not s["is_observed"] and not s["fn"].support.is_discrete]
    held = [{f.name for f in site["cond_indep_stack"]} for site in free]
    common = set.intersection(*held) if held else set()
    return max(common, key=lambda name: (sizes[name], name), default=None)


def _check_first_point(density: UnitDensity, without: frozenset[str]) -> None:
    values, _ = density.constrain(density.start)
    for name, site in sample_sites(density.trace(values, without=without)).items():
        if name not in without and not bool(torch.isfinite(site["log_prob"]).all()):
            raise RefusedModelError(
                f"{name}: its log density is not finite at the first point, where the latent sites have the means of "
                "their priors or the middle of their supports. Give ``init_loc_fn`` "
                "(pyro.infer.autoguide.init_to_value)."
            )


def _check_apart(density: UnitDensity, without: frozenset[str]) -> None:
    """Set the aliases; refuse sites whose density couples units."""
    point = shifted(density.start, 0, own=False).requires_grad_(True)
    trace = density.trace(density.constrain(point)[0], without=without)
    for name, site in sample_sites(trace).items():
        if name in without:
            continue
        plates = [f.name for f in site["cond_indep_stack"] if f.name == density.unit_plate]
        plates = plates or [f.name for f in site["cond_indep_stack"] if f.size == density.n_units]
        apart = [plate for plate, by_unit in _sums(site, plates, density.n_units) if is_apart(by_unit, point)]
        if not apart:
            where = "couples its units" if plates else "is in no plate of its units, and so shared by them"
            raise RefusedModelError(
                f"{name}: units of the plate {density.unit_plate!r} are no problems apart: the density of {name} "
                f"{where}. Give units=None to fit all as one problem."
            )
        if apart[0] != density.unit_plate:
            density.aliases[name] = apart[0]


def _sums(site: dict[str, Any], plates: list[str], n_units: int) -> Iterator[tuple[str, Tensor]]:
    density = site["log_prob"]
    for frame in site["cond_indep_stack"]:
        if frame.name in plates and -frame.dim <= density.ndim:
            yield frame.name, density.movedim(density.ndim + frame.dim, 0).reshape(n_units, -1).sum(1)


def is_apart(by_unit: Tensor, point: Tensor) -> bool:
    """Whether the gradient of a weighted sum over units ``(G,)`` is the weighted gradient of the sum, unit by unit."""
    if not by_unit.requires_grad:
        return True
    weights = 1.0 + 0.5 * torch.sin(torch.arange(1.0, len(by_unit) + 1, dtype=point.dtype))
    weighted, plain = (
        torch.autograd.grad(total, point, retain_graph=True, allow_unused=True)[0]
        for total in ((weights * by_unit).sum(), by_unit.sum())
    )
    if weighted is None:
        return True
    scale = plain.abs().amax(1, keepdim=True)
    allowed = RELATIVE * scale + ROUNDING * scale.amax()
    return bool(((weighted - weights[:, None] * plain).abs() <= allowed).all())


def probe(density: UnitDensity, seed: int = 7) -> Tensor:
    """A point near the first one at which structure is looked for: no number of it is special."""
    return density.start + 0.3 * normal_numbers(density.start, seed)
