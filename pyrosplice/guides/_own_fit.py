"""The fit of a Pyro model of a person's own: a guide by unit, and what an estimator makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._optimize.convergence import Convergence
from pyrosplice.errors import ModelFileError, RefusedModelError
from pyrosplice.glmm._distributions import SpotCounts
from pyrosplice.glmm._glm_objective import StandardCoordinates
from pyrosplice.glmm._observed_information import profiled_information
from pyrosplice.guides import AutoMarginalLaplace, AutoNewtonMAP, AutoUnits, FitOptions
from pyrosplice.guides._column_sizes import sizes_named, warn_of_sizes
from pyrosplice.guides._curvature import Curvature
from pyrosplice.guides._first_points import SiteStart
from pyrosplice.guides._own_model import Program, name_of
from pyrosplice.guides._unit_density import UnitDensity

FLAT = 1e-6  # curvature of a direction of the linear predictor: standard errors above 1000
STILL = 0.1  # length of a Newton step in it that is none at an optimum
STEP = 1e-4  # of differences of the exact gradient, in unconstrained coordinates, as in the guides


@dataclass(frozen=True)
class OwnFit:
    """A fitted model, and the values of its continuous latent sites.

    Attributes
    ----------
    name
        What the model is called.
    guide
        The fitted guide.
    values
        Estimates by site; of sites that are integrated out, the mode.
    """

    name: str
    guide: AutoUnits
    values: Mapping[str, Tensor]

    @property
    def engine(self) -> str:
        """Which way the fit went."""
        return f"{type(self.guide).__name__} of {self.name}: {self.guide.path}"

    def copies(self) -> dict[str, Tensor]:
        """Estimates by site, copied."""
        return {name: value.clone() for name, value in self.values.items()}

    @property
    def integrated(self) -> tuple[str, ...]:
        """Sites that were integrated out."""
        return self.guide.marginalize if isinstance(self.guide, AutoMarginalLaplace) else ()

    def log_density(self, values: Mapping[str, Tensor]) -> Tensor:
        """What was maximized, at other values, ``(G,)``; differentiable in them."""
        if isinstance(self.guide, AutoMarginalLaplace):
            outer = {name: value for name, value in values.items() if name not in self.integrated}
            return self.guide.log_marginal(outer, prior=True)
        return log_density_of(self.guide.density, values)

    def spot_counts(self, values: Mapping[str, Tensor], what: str) -> SpotCounts:
        """Distribution of the counts of the spots at values of the latent sites.

        Raises
        ------
        RefusedModelError
            The model observes something else, of which ``what`` is not known.
        """
        trace = self.guide.density.trace({name: value.double() for name, value in values.items()})
        nodes = trace.nodes.values()
        observed = [node["fn"] for node in nodes if node["type"] == "sample" and node["is_observed"]]
        found = [fn for fn in observed if isinstance(fn, SpotCounts)]
        if len(found) != 1:
            raise RefusedModelError(
                f"{what}: {self.name} observes {', '.join(type(fn).__name__ for fn in observed)}, of which it is not "
                "known; it is of one SpotCounts(likelihood, totals, eta, n_isos). Run the model at estimator.sites: "
                "poutine.condition(estimator.model, data=estimator.sites)()."
            )
        return found[0]

    def coefficient_information(
        self, values: Mapping[str, Tensor], design: Tensor, n_logits: int
    ) -> tuple[Tensor, StandardCoordinates]:
        """Information about ``beta`` and ``bias_eta`` in those of standardised covariates, and what these are."""
        scaling = StandardCoordinates.of(design)
        names = ["beta", "bias_eta"] if design.shape[1] else ["bias_eta"]
        shapes = {"beta": (design.shape[1], n_logits), "bias_eta": (n_logits,)}
        for name in names:
            found = tuple(self.values[name].shape) if name in self.values else None
            if found is not None and not same_numbers(found[1:], shapes[name]):
                raise RefusedModelError(
                    f"{name}: expected {shapes[name]} numbers a gene, covariates times logits, and {self.name} has it "
                    f"of shape {found}."
                )
        information = self.information(values, names)
        big = torch.kron(scaling.matrix, torch.eye(n_logits, dtype=torch.float64))
        return big.mT @ information @ big, scaling

    def information(self, values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        """Observed information ``(G, D, D)`` of real sites at given values, the other sites estimated too.

        Minus the second derivatives of the model's own density by autograd; of a marginal one by central differences of
        its exact gradient. Unknowns in the order of ``names``, the last dimension of a site fastest.
        """
        density = self.guide.density
        for name in names:
            if name not in density.latents or name in self.integrated or not density.latents[name].is_real():
                raise RefusedModelError(
                    f"{name}: {self.name} has no site of this name that is estimated and real, so that there is no "
                    f"information about it; its sites are {sorted(density.latents)}."
                )
        free = [name for name in density.latents if name not in self.integrated]
        columns = torch.tensor([column for name in free for column in _span(density.latents[name].columns)])
        point = density.unconstrain(values, density.latents).detach()
        with torch.inference_mode(False), torch.enable_grad():
            whole = self._differences(point, columns, free) if self.integrated else self._curvature(point)
        place = {column: row for row, column in enumerate(columns.tolist())}
        first = [place[c] for name in names for c in _span(density.latents[name].columns)]
        order = torch.tensor([*first, *sorted(set(place.values()) - set(first))], dtype=torch.long)
        return profiled_information(whole[:, order][:, :, order], len(first))

    def _curvature(self, point: Tensor) -> Tensor:
        curvature = Curvature(self.guide.density, tuple(self.guide.density.latents))
        return curvature.dense(curvature.expand(point[:, :0], point).hessian)

    def _differences(self, point: Tensor, columns: Tensor, names: Iterable[str]) -> Tensor:
        sites, rows = [self.guide.density.latents[name] for name in names], []

        def gradient(at: Tensor) -> Tensor:
            at = at.clone().requires_grad_(True)
            found = self.log_density({site.name: site.transform(site.unpack(at)) for site in sites})
            return torch.autograd.grad(found.sum(), at)[0][:, columns]

        for column in columns.tolist():
            step = torch.zeros_like(point)
            step[:, column] = STEP
            rows.append((gradient(point - step) - gradient(point + step)) / (2 * STEP))
        whole = torch.stack(rows, 1)
        return 0.5 * (whole + whole.mT)

    def record(self) -> Convergence:
        """How the search of each unit went, in the words of every fit."""
        found = self.guide.optimum
        record = Convergence.start(len(found.value))
        record.record(-found.value, torch.arange(len(found.value)))
        record.n_iter, record.reason = found.evaluations.clone(), list(found.reason)
        return record


@dataclass(frozen=True)
class SavedSites:
    """What a file holds of a model of a person's own: its name, the way its fit went, and its sites."""

    name: str
    engine: str
    sites: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, own: OwnFit) -> SavedSites:
        """Take from a fit what a file holds of it."""
        return cls(own.name, own.engine, {name: value.double().numpy() for name, value in own.values.items()})

    def copies(self) -> dict[str, Tensor]:
        """Estimates by site, copied."""
        return {name: torch.from_numpy(value.copy()) for name, value in self.sites.items()}


def check_saved(saved: SavedSites | None, model: Program | None, path: str, *, needed: bool) -> None:
    """Raise unless the model that was given with a file is the one that it was saved with.

    Parameters
    ----------
    saved
        What the file holds of one.
    model
        What was given; None for the shipped one.
    path
        The file, for messages.
    needed
        Whether it has to be given: a class that overrides ``model`` has it already.

    Raises
    ------
    ModelFileError
        None or another one was given; there is none in the file.
    """
    if model is None and saved is not None and needed:
        raise ModelFileError(
            f"{path} was saved with the model {saved.name}, and files hold no code: call load(path, "
            f"model={saved.name})."
        )
    if model is not None and (saved is None or saved.name != name_of(model)):
        was = "the shipped model; leave it out" if saved is None else saved.name
        raise ModelFileError(f"model: {path} was saved with {was}, found {name_of(model)}.")


def log_density_of(density: UnitDensity, values: Mapping[str, Tensor]) -> Tensor:
    """Log density of each unit ``(G,)`` at values of the latent sites; differentiable."""
    terms = density.terms(density.trace({name: values[name].double() for name in density.latents}))
    return torch.stack([term.sum(1) for term in terms.values()]).sum(0)


def observed_density(density: UnitDensity, values: Mapping[str, Tensor]) -> Tensor:
    """The part of it that is of the data, ``(G,)``: neither of latent sites nor of ``pyro.factor``."""
    trace = density.trace({name: value.double() for name, value in values.items()})
    factors = {name for name, node in trace.nodes.items() if isinstance(node.get("fn"), dist.Unit)}
    terms = density.terms(trace).items()
    own = [term.sum(1) for name, term in terms if name not in density.latents and name not in factors]
    return torch.stack(own).sum(0)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to fit.

    Attributes
    ----------
    name
        What the model is called.
    n_units
        Genes that are problems of their own; None for one problem.
    effects
        Sites to integrate out; none for the joint mode.
    options
        When searches end.
    start
        First point of each site; the guide's own by default.
    design
        Covariates ``(N, P)``; trouble with a model names columns of a size far from one.
    """

    name: str
    n_units: int | None
    effects: Sequence[str] = ()
    options: FitOptions
    start: SiteStart | None = None
    design: Tensor | None = None

    def fit(self, program: Program, *args: Any) -> OwnFit:
        """Fit the model, called with ``args``.

        Raises
        ------
        RefusedModelError
            A part that the guides cannot do; genes that are no problems of their own.
        """
        if self.design is None:
            return self._fit(program, *args)
        with sizes_named(self.design, self.name):
            own = self._fit(program, *args)
        warn_of_sizes(self.design, self.name, own.guide.converged)
        return own

    def _fit(self, program: Program, *args: Any) -> OwnFit:
        units = None if self.n_units is None else "auto"
        settings: dict[str, Any] = {"units": units, "init_loc_fn": self.start}
        guide = (
            AutoMarginalLaplace(program, marginalize=self.effects, **settings)
            if self.effects
            else AutoNewtonMAP(program, **settings)
        )
        try:
            guide.fit(*args, options=self.options)
        except RefusedModelError as error:
            hint = " (which is what pyrosplice.guides.AutoNewtonMAP takes; an estimator fits gene by gene)"
            raise RefusedModelError(f"{self.name}: {error}{hint if 'units=None' in str(error) else ''}") from error
        if self.n_units is not None and guide.density.n_units != self.n_units:
            raise RefusedModelError(
                f"model: expected a plate of the {self.n_units} genes that holds every latent site of {self.name}, "
                f"found {guide.density.unit_plate!r} of {guide.density.n_units}; call the plate of genes 'genes'."
            )
        return OwnFit(self.name, guide, guide.median())


def same_numbers(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes differ by dimensions of size one only."""
    return [size for size in shape if size != 1] == [size for size in other if size != 1]


def endless(slope: Tensor, information: Tensor) -> Tensor:
    """Which genes have coefficients at infinity: nothing holds a direction in which Newton's step is long, ``(G,)``.

    Parameters
    ----------
    slope, information : (G, D), (G, D, D)
        Derivatives of the log density, in coefficients of covariates of size one, so that units make no difference.
    """
    curvature, directions = torch.linalg.eigh(information.nan_to_num())
    along = (directions.mT @ slope.unsqueeze(-1)).squeeze(-1).abs()
    return ((curvature < FLAT) & (along >= STILL * curvature)).any(1)


def _span(columns: slice) -> range:
    return range(columns.start, columns.stop)
