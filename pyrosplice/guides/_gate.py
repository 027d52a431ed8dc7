r"""Whether the sparse engine may fit a Pyro model: told by numbers at every fit, and refused in words.

The engine works on counts around :math:`\eta = h + \nu` with one spatial effect ν. It asks no more of a model than
that its density depends on the sites other than ν by η, by σ and θ of ν, by the likelihood's hyper-parameters, and by
terms without ν. The last check needs no list of what might be missed: at a point at which nothing is special the
gradient of the model's own density in every site is compared with that through these links, the engine's closed forms
in it. What differs is named. It cannot see a dependence that has no derivative and is not there between two points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.errors import RefusedModelError
from pyrosplice.glmm._distributions import SpatialEffect, SpotCounts
from pyrosplice.guides._engine_problem import EngineProblem, ModelLinks, of_effect, read_links
from pyrosplice.guides._first_points import Site, init_to_center, normal_numbers
from pyrosplice.guides._latent_sites import LatentSite
from pyrosplice.guides._separate_units import is_apart, probe, unit_density
from pyrosplice.guides._unit_density import ModelCall, UnitDensity, plates_of, sample_sites
from pyrosplice.likelihoods._by_autograd import as_fitted
from pyrosplice.likelihoods._contract import Likelihood

AGREEMENT = 1e-7  # relative, of two ways to one derivative
EXACT = 1e-9  # of numbers that are to be the same but for rounding


def problem_of(
    model: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    marginalize: Sequence[str],
    units: str | None = "auto",
) -> EngineProblem:
    """Read what the sparse engine needs from a Pyro model; refused, by name, where it may not fit it.

    Parameters
    ----------
    model
        A Pyro model.
    args, kwargs
        What it is called with.
    marginalize, units
        As for :class:`~pyrosplice.guides.AutoMarginalLaplace`.

    Raises
    ------
    RefusedModelError
        The part of the model that is not for the engine, named.
    """
    call = ModelCall(model, tuple(args), dict(kwargs or {}))
    names = frozenset(marginalize)
    return read_problem(unit_density(call, units, names, init=init_to_center, without=names), tuple(marginalize))


def read_problem(density: UnitDensity, marginalize: tuple[str, ...]) -> EngineProblem:
    """Read what the engine needs from a density that is set up already."""
    if len(marginalize) != 1:
        raise RefusedModelError(
            f"marginalize: {len(marginalize)} sites ({', '.join(marginalize)}); the engine integrates one effect."
        )
    if density.enumerated:
        raise RefusedModelError(f"{density.enumerated[0]}: a discrete site, which the engine does not sum over.")
    if marginalize[0] not in density.latents:
        raise RefusedModelError(f"marginalize: {marginalize[0]!r} is no latent site of the model.")
    gate = _Gate(density, marginalize[0])
    gate.check_effect()
    observed = gate.check_observed()
    likelihood, by_autograd = gate.check_likelihood(observed)
    gate.check_links(observed, likelihood)
    return EngineProblem(
        density=density,
        effect=marginalize[0],
        observed=observed,
        counts=gate.counts(observed),
        solver=gate.effect.space.solver,
        basis=basis_of(gate.effect.isoform_effect, gate.counts(observed)),
        likelihood=likelihood,
        hyper=gate.hyper(observed),
        sigma=gate.site_of_sigma(),
        theta=gate.site_of_theta(),
        by_autograd=by_autograd,
    )


@dataclass(frozen=True)
class _Run:
    """A run of the model at unknowns ``(G, d)``."""

    point: Tensor
    values: dict[str, Tensor]
    trace: Any


class _Gate:
    """Runs of a model at points at which nothing is special: two that differ in the effect, and another."""

    def __init__(self, density: UnitDensity, name: str) -> None:
        self.density, self.name = density, name
        self.site: LatentSite = density.latents[name]
        first = probe(density)
        moved = first.clone()
        moved[:, self.site.columns] += normal_numbers(moved[:, self.site.columns], 13)
        self.lazy: frozenset[str] = frozenset()  # sites whose density would decompose a covariance
        early = density.trace(density.constrain(first)[0], without=(name,)).nodes[name]["fn"]
        if type(early) is SpatialEffect and early.space.is_lazy:
            self.lazy = frozenset((name,))
        self.first = self._run(first.requires_grad_(True))
        with torch.no_grad():
            self.moved, self.other = self._run(moved), self._run(probe(density, 17))
        self.effect: SpatialEffect = self.first.trace.nodes[name]["fn"]

    def _run(self, point: Tensor) -> _Run:
        values, _ = self.density.constrain(point)
        return _Run(point, values, self.density.trace(values, without=self.lazy))

    def check_effect(self) -> None:
        """ν is one SpatialEffect a unit, with its own density and a covariance that no site moves."""
        fn, name, node = self.effect, self.name, self.first.trace.nodes[self.name]
        if not isinstance(fn, SpatialEffect):
            raise RefusedModelError(f"{name}: {type(fn).__name__}; the engine integrates a SpatialEffect.")
        n_effects = torch.Size(self.site.value_shape[: self.site.batch_dim]).numel()
        if n_effects != self.density.n_units:
            raise RefusedModelError(
                f"{name}: {n_effects} effects in {self.density.n_units} unit(s); the engine takes one for each unit."
            )
        if _is_scaled(node):
            raise RefusedModelError(f"{name}: its density is scaled or masked, which the engine's is not.")
        if type(fn) is not SpatialEffect and not _close(node["log_prob"], SpatialEffect.log_prob(fn, node["value"])):
            raise RefusedModelError(f"{name}: {type(fn).__name__} has a density of its own, not that of SpatialEffect.")
        others = self.moved.trace.nodes[name]["fn"], self.other.trace.nodes[name]["fn"]
        if any(fn.space is not other.space and not _same_space(fn, other) for other in others):
            raise RefusedModelError(f"{name}: its covariance depends on other sites; the engine has one V.")
        for link in ("sigma", "theta_logit"):
            if not _close(getattr(fn, link), getattr(others[0], link)):
                raise RefusedModelError(f"{name}: its {link} depends on {name} itself.")
            by_unit = of_effect(self.site, getattr(fn, link))
            mixed = (by_unit * normal_numbers(by_unit, 19)).sum(1)
            if self.density.n_units > 1 and not is_apart(mixed, self.first.point):
                raise RefusedModelError(
                    f"{name}: units of the plate {self.density.unit_plate!r} are no problems apart: its {link} couples "
                    "its units. Give units=None to fit all as one problem."
                )

    def check_observed(self) -> str:
        """The one site that depends on ν is counts around η, which moves one for one with ν."""
        first, moved = (sample_sites(run.trace) for run in (self.first, self.moved))
        depend = [n for n in first if n != self.name and not _same(first[n], moved[n])]
        wrong = [n for n in depend if not (first[n]["is_observed"] and isinstance(first[n]["fn"], SpotCounts))]
        if wrong:
            kind = type(first[wrong[0]]["fn"]).__name__
            raise RefusedModelError(
                f"{wrong[0]}: {kind}, depends on {self.name}; with the engine only SpotCounts that are observed may."
            )
        if len(depend) != 1:
            found = ", ".join(depend) or "none"
            raise RefusedModelError(
                f"{self.name}: the engine takes one observed site that depends on it, SpotCounts; found {found}."
            )
        observed = depend[0]
        n_spots, n_logits = self.effect.event_shape
        shape = (self.density.n_units, n_spots, n_logits)
        eta, away = (self.eta(observed, run) for run in (self.first, self.moved))
        if tuple(eta.shape) != shape:
            raise RefusedModelError(
                f"{observed}: eta of shape {tuple(eta.shape)} beside {self.name} of shape {shape} (units, spots, "
                "logits); the engine adds one to the other."
            )
        step = (self.moved.point - self.first.point)[:, self.site.columns].reshape(shape)
        if not _close(away - eta, step):
            raise RefusedModelError(
                f"{observed}: eta does not move one for one with {self.name}, as the engine's does."
            )
        return observed

    def check_likelihood(self, observed: str) -> tuple[Likelihood, tuple[str, ...]]:
        """The likelihood as fitted; its density at two points is that of the site."""
        for run in (self.moved, self.other):
            node, here = run.trace.nodes[observed], self.first.trace.nodes[observed]
            if not torch.equal(node["value"], here["value"]):
                raise RefusedModelError(f"{observed}: the counts are not the same at every run.")
        moved = self.hyper_values(observed, self.moved)
        for name, value in self.hyper_values(observed, self.first).items():
            if not _close(value, moved[name]):
                raise RefusedModelError(f"{observed}: {name} of the likelihood depends on {self.name}.")
        plain: Likelihood = self.first.trace.nodes[observed]["fn"].likelihood
        if plain.free:
            raise RefusedModelError(f"{observed}: {plain.free[0]} of the likelihood has no value.")
        names, given, counts = self.hyper(observed), self.given_counts(observed), self.counts(observed)
        values = self.hyper_values(observed, self.first)
        if any(bool((value <= 0).any()) for value in values.values()):
            raise RefusedModelError(f"{observed}: the engine takes hyper-parameters that are positive.")
        plain = plain.bind({name: value.detach() for name, value in values.items()})
        likelihood, by_autograd = as_fitted(plain, counts, self.eta(observed, self.first).detach())
        for run in (self.first, self.other):
            bound = likelihood.bind(self.hyper_values(observed, run)) if names else likelihood
            own = bound.log_prob(given, self.eta(observed, run)).sum(-1)
            site = run.trace.nodes[observed]
            found = self.density.by_unit(observed, site["log_prob"], plates_of(site)).sum(1)
            if not _close(found, own, AGREEMENT):
                raise RefusedModelError(
                    f"{observed}: its density is not that of the likelihood at eta: scaled, masked or overridden, or "
                    "the likelihood depends on other sites otherwise than through its hyper-parameters."
                )
        return likelihood, by_autograd

    def check_links(self, observed: str, likelihood: Likelihood) -> None:
        """The gradient of the model's density in every other site is that through the links."""
        point, nodes = self.first.point, self.first.trace.nodes
        names, eta = self.hyper(observed), self.eta(observed, self.first)
        values = self.hyper_values(observed, self.first)
        total, counts, fixed = nodes[observed]["log_prob"].sum(), self.counts(observed), eta.detach()
        links: list[tuple[Tensor, Tensor]] = [(eta, likelihood.score(counts, fixed))]
        if names:
            slopes = likelihood.hyper_score(counts, fixed, names).sum(1)
            links += [(values[name].log(), slopes[:, [h]]) for h, name in enumerate(names)]
        if self.name not in self.lazy:
            own = nodes[self.name]["log_prob"].sum()
            parts = [
                x for x in (self.effect.sigma, self.effect.theta_logit, nodes[self.name]["value"]) if x.requires_grad
            ]
            total = total + own
            slope = torch.autograd.grad(own, parts, retain_graph=True, allow_unused=True, materialize_grads=True)
            links += zip(parts, slope, strict=True)
        links = [(link, slope) for link, slope in links if link.requires_grad]
        (whole,) = torch.autograd.grad(total, point, retain_graph=True)
        (through,) = torch.autograd.grad([link for link, _ in links], point, [slope for _, slope in links])
        for name, site in self.density.latents.items():
            mine, theirs = whole[:, site.columns], through[:, site.columns]
            allowed = AGREEMENT * (1 + whole.abs().amax(1, keepdim=True))
            if not bool(((mine - theirs).abs() <= allowed).all()):
                raise RefusedModelError(
                    f"{name}: acts on {observed} or {self.name} otherwise than through eta, sigma, theta and the "
                    "likelihood's hyper-parameters, which are all that the engine knows."
                )

    def links(self, run: _Run, observed: str) -> ModelLinks:
        """Read what counts and effect depend on from a run."""
        return read_links(self.density, run.trace, self.name, observed, self.hyper(observed))

    def eta(self, observed: str, run: _Run) -> Tensor:
        """Linear predictor ``(G, N, Q)``."""
        node = run.trace.nodes[observed]
        return self.density.by_unit(observed, node["fn"].eta, plates_of(node), event_dim=1)

    def counts(self, observed: str) -> Tensor:
        """Counts ``(G, N, K)``, float64."""
        return self.given_counts(observed).double()

    def given_counts(self, observed: str) -> Tensor:
        """Counts in the numbers of the site: of integers torch works out the constants of a density in float32."""
        node = self.first.trace.nodes[observed]
        value = node["value"].expand(*node["fn"].batch_shape, *node["fn"].event_shape)
        return self.density.by_unit(observed, value, plates_of(node), event_dim=1)

    def hyper(self, observed: str) -> tuple[str, ...]:
        """Hyper-parameters of the likelihood that depend on other sites."""
        likelihood = self.first.trace.nodes[observed]["fn"].likelihood
        given = {name: getattr(likelihood, name) for name in likelihood.hyperparameters}
        free = tuple(name for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad)
        for name in free:
            if given[name].numel() != self.density.n_units:
                raise RefusedModelError(
                    f"{observed}: {name} of shape {tuple(given[name].shape)}; the engine takes one number a unit."
                )
        return free

    def hyper_values(self, observed: str, run: _Run) -> dict[str, Tensor]:
        """Their values, ``(G, 1)``."""
        likelihood = run.trace.nodes[observed]["fn"].likelihood
        return {name: getattr(likelihood, name).reshape(-1, 1) for name in self.hyper(observed)}

    def site_of_sigma(self) -> str | None:
        """The site that is σ itself and may be searched in down to zero."""
        return self._site_that_is("sigma", lambda x: x, lambda site: site.is_exponential())

    def site_of_theta(self) -> str | None:
        """The site that is logit θ, or θ, and may be searched in to both ends."""
        return self._site_that_is("theta_logit", lambda x: x, LatentSite.is_real) or self._site_that_is(
            "theta_logit", torch.logit, LatentSite.is_logistic
        )

    def _site_that_is(
        self, link: str, transform: Callable[[Tensor], Tensor], may: Callable[[LatentSite], bool]
    ) -> str | None:
        for name, site in self.density.latents.items():
            if name == self.name or name in self.density.jacobian or not may(site):
                continue
            if site.size not in (1, self.effect.event_shape[1]):
                continue
            pairs = [
                (of_effect(self.site, getattr(run.trace.nodes[self.name]["fn"], link)), site.pack(run.values[name]))
                for run in (self.first, self.other)
            ]
            if all(_close(found, transform(value).expand_as(found)) for found, value in pairs):
                return name
        return None


def _is_scaled(node: Site) -> bool:
    scale, mask = node["scale"], node["mask"]
    return bool((torch.as_tensor(scale) != 1).any()) or not (mask is None or mask is True)


def _same_space(first: SpatialEffect, second: SpatialEffect) -> bool:
    field = normal_numbers(torch.zeros(1, first.space.n_spots, 1, dtype=torch.float64), 23)
    if second.space.n_spots != first.space.n_spots:
        return False
    return _close(first.space.solver.covariance_product(field), second.space.solver.covariance_product(field))


def _same(first: Site, second: Site) -> bool:
    """Whether a site has the same density in two runs."""
    a, b = first.get("log_prob"), second.get("log_prob")
    if a is None or b is None:
        return True
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-12, atol=1e-12, equal_nan=True))


def _close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> bool:
    found, expected = found.detach(), expected.detach()
    if found.shape != expected.shape:
        return False
    finite = expected.isfinite()
    size = expected[finite].abs().amax() if bool(finite.any()) else 0.0
    return bool(((found == expected) | ((found - expected).abs() <= tolerance * (1 + size))).all())
