"""Laplace's method for a model that the sparse engine takes: its search, its value at any point, its posterior."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import Options, minimize
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.glmm._effect_posterior import RandomEffectPosterior, bounded_away_from_zero
from pyrosplice.glmm._latents import Latents
from pyrosplice.glmm._marginal import (
    NEAR_ZERO,
    PREFERENCE,
    SMALLEST_START,
    MarginalObjective,
    batches_of,
    search,
    search_spatial,
)
from pyrosplice.glmm._objective import FINAL_TOLERANCE, INNER_TOLERANCE, Linked
from pyrosplice.guides._engine_problem import EngineProblem
from pyrosplice.guides._marginal_density import MarginalValue
from pyrosplice.guides._searches import FitOptions, Optimum, is_small, judged
from pyrosplice.guides._site_coordinates import (
    LARGEST_LOGIT,
    SMALLEST_SIGMA,
    SearchLayout,
    SiteCoordinates,
    from_unconstrained,
)
from pyrosplice.reasons import Reason

FIRST_SIGMA = 0.5  # where searches begin
NEAR, TIGHT = 1e-2, 1e-8  # gradient norm below which modes are found to the second decrement (or 0.01 tolerance)
NEXT_TO = 1.0  # of an end, in log σ or logit θ: how near an estimate is taken to run to it
END_SLOPE = 1e-6  # in these, at an end where a density rises: it is of the order of 1 there, or vanishes
ROUGH = 1e-2  # gradient norm at which the search without space, which only gives a start, ends


class ModelObjective(MarginalObjective):
    """The engine's objective for some units of a model; modes are exact near the optimum, and evaluations counted."""

    def __init__(self, problem: EngineProblem, coordinates: SiteCoordinates, tight: float = TIGHT) -> None:
        model = problem.mixed_model(coordinates.units)
        super().__init__(model if coordinates.spatial else model.without_field(), coordinates, None)
        self.coordinates = coordinates
        self.evaluations = torch.zeros(len(coordinates.units), dtype=torch.int64)
        self._near, self._tight = False, tight

    def evaluate(self, genes: Tensor, point: Tensor, *, tolerance: float | None = None) -> tuple[Tensor, Tensor]:
        """Loss and gradient."""
        if tolerance is None:
            tolerance = self._tight if self._near else INNER_TOLERANCE
        loss, gradient = super().evaluate(genes, point, tolerance=tolerance)
        self.evaluations[genes] += 1
        self._near = bool((gradient.norm(dim=1) < NEAR).any())
        return loss, gradient


class EngineDensity:
    """Log density of the sites of a model that are not integrated, by the sparse engine.

    Parameters
    ----------
    problem
        What the engine reads of the model.

    Attributes
    ----------
    latents
        Random effects of all units where a search ended, from which modes are looked for.
    """

    def __init__(self, problem: EngineProblem) -> None:
        self.problem = problem
        self.latents = problem.mixed_model(torch.arange(len(problem.counts))).zeros()
        self._own, self._scales = (SearchLayout.of(problem, scales=scales) for scales in (False, True))

    @property
    def batches(self) -> list[Tensor]:
        """Units that are worked on together, within bounded memory."""
        return batches_of(self.problem.counts, self.problem.n_logits, self.problem.solver)

    def search(self, point: Tensor, rows: Tensor, options: FitOptions, *, informed: bool) -> Optimum:
        """The mode of some units from unconstrained coordinates ``(G, d)``, or from what the engine knows of them.

        The search is in σ and ψ. Where σ is rounded off, or θ at an end, these do not tell an optimum: its end is
        judged in the sites' own coordinates, which are those of the optimum's point, and goes on in them if need be.
        """
        layout = self._scales
        others, outer = from_unconstrained(layout, point), point[:, self._own.rest]
        n_units = len(point)
        optimum = Optimum(
            point=outer.clone(),
            value=outer.new_full((n_units,), torch.nan),
            gradient=torch.full_like(outer, torch.nan),
            reason=[Reason.RUNNING] * n_units,
            identified=torch.zeros(n_units, dtype=torch.bool),
            evaluations=torch.zeros(n_units, dtype=torch.int64),
            attempts=torch.ones(n_units, dtype=torch.int64),
        )
        for units in rows.split(len(self.batches[0])):
            self._keep(
                units, _BatchSearch(self.problem, layout, units, others, options).run(optimum, informed=informed)
            )
            self._note(optimum, units)
            _, ends = self._rises_to_an_end(optimum)  # beyond which θ is no number other than 0 and 1
            more = units[(optimum.identified & ~ends & ~is_small(optimum, options.tolerance))[units]]
            if len(more):
                self._go_on(optimum, more, options)
        optimum = judged(optimum, torch.zeros(n_units, dtype=torch.bool), options.tolerance)
        vanishes, ends = self._rises_to_an_end(optimum)
        unbounded = (vanishes | ends) & ~optimum.converged
        reasons = zip(optimum.reason, unbounded.tolist(), strict=True)
        return replace(optimum, reason=[Reason.UNBOUNDED if rises else reason for reason, rises in reasons])

    def _go_on(self, optimum: Optimum, units: Tensor, options: FitOptions) -> None:
        """Search for some units in the sites' own coordinates from where they are, in place."""
        objective, record = self._objective(units, optimum.point), Convergence.start(len(units))
        limits = Options(tolerance=options.tolerance, max_iter=options.max_iter)
        point, _ = search(objective, objective.model.genes, optimum.point[units], record, limits, minimize)
        ends = torch.isin(self._own.rest, self._scales.angle)
        optimum.point[units] = torch.where(ends, point.clamp(-LARGEST_LOGIT, LARGEST_LOGIT), point)
        optimum.evaluations[units] += objective.evaluations
        for unit, reason in zip(units.tolist(), record.reason, strict=True):
            optimum.reason[unit] = reason
        self._keep(units, objective.latents)
        self._note(optimum, units)

    def _note(self, optimum: Optimum, units: Tensor) -> None:
        """Put value and gradient of some units, at the point of an optimum, in it."""
        at = self._at(optimum.point, units)
        optimum.value[units], optimum.gradient[units], optimum.identified[units] = at.value, at.gradient, at.found
        optimum.evaluations[units] += 1
        for unit in units[~at.found].tolist():
            optimum.reason[unit] = Reason.NO_MODE

    def _keep(self, units: Tensor, found: Latents) -> None:
        self.latents.field[units] = found.field.nan_to_num(posinf=0.0, neginf=0.0)
        self.latents.noise[units] = found.noise.nan_to_num(posinf=0.0, neginf=0.0)

    def _rises_to_an_end(self, optimum: Optimum) -> tuple[Tensor, Tensor]:
        """Whether σ is next to zero, and whether θ is next to 0 or 1, and the density rises that way, ``(G,)`` each."""
        layout, point, slope = self._scales, optimum.point, optimum.gradient
        sigma, theta = (torch.isin(self._own.rest, columns) for columns in (layout.sigma, layout.angle))
        vanishes = sigma & (point <= math.log(SMALLEST_SIGMA) + NEXT_TO) & (slope < 0)
        ends = theta & (point.abs() >= LARGEST_LOGIT - NEXT_TO) & (slope * point > 0)
        steep = slope.abs() > END_SLOPE
        return (vanishes & steep).any(1), (ends & steep).any(1)

    def __call__(self, outer: Tensor) -> MarginalValue:
        """Log marginal density at unconstrained coordinates ``(G, p)`` of the sites but for the effect."""
        found = [vars(self._at(outer.detach(), units)) for units in self.batches]
        return MarginalValue(**{name: torch.cat([part[name] for part in found]) for name in found[0]})

    def _at(self, outer: Tensor, units: Tensor) -> MarginalValue:
        """Log marginal density of some units, at coordinates of all."""
        objective = self._objective(units, outer)
        loss, gradient = objective.evaluate(objective.model.genes, outer[units], tolerance=FINAL_TOLERANCE)
        mode = objective.mode
        assert mode is not None
        there = mode.converged & torch.isfinite(loss)
        nu = objective.model.effect(mode.step.parameters, mode.latents)
        return MarginalValue(torch.where(there, -loss, -torch.inf), -gradient, nu.flatten(1), there)

    def linked(self, outer: Tensor, units: Tensor) -> Linked:
        """What the effect of some units depends on, at coordinates of the other sites; runs the model."""
        objective = self._objective(units, outer)
        with torch.no_grad():
            return objective.unknowns.linked(outer[units], objective.model.genes, None)

    def posterior(self, linked: Linked, units: Tensor) -> RandomEffectPosterior:
        """Posterior of the effect in some units, given the other sites; does not run the model."""
        model = self.problem.mixed_model(units)
        if self.problem.hyper:
            model = model.bound(linked.hyper_values(self.problem.hyper))
        with torch.no_grad():
            proper = bounded_away_from_zero(linked.parameters)
            mode = model.mode(proper, self.latents.select(units), tolerance=FINAL_TOLERANCE)
        return RandomEffectPosterior(mode, validate_args=False)

    def _objective(self, units: Tensor, outer: Tensor) -> ModelObjective:
        coordinates = SiteCoordinates(self.problem, self._own, units, outer)
        objective = ModelObjective(self.problem, coordinates)
        objective.latents = self.latents.select(units)
        return objective


class _BatchSearch:
    """The search of a batch of units."""

    def __init__(
        self, problem: EngineProblem, layout: SearchLayout, units: Tensor, others: Tensor, options: FitOptions
    ) -> None:
        self.problem, self.layout, self.units = problem, layout, units
        full, null = (SiteCoordinates(problem, layout, units, others, spatial=space) for space in (True, False))
        tight = min(TIGHT, 1e-2 * options.tolerance)
        self.full, self.null = ModelObjective(problem, full, tight), ModelObjective(problem, null)
        self.start, self.genes = others[units], self.full.model.genes
        self.options = Options(tolerance=options.tolerance, max_iter=options.max_iter)

    def run(self, optimum: Optimum, *, informed: bool) -> Latents:
        """Search, and write what was found to the rows of these units; returns the random effects there."""
        if not self.start.shape[1]:
            point, record = self.start, Convergence.start(len(self.genes))
            record.finish(self.genes, Reason.CONVERGED)
        elif informed:
            point, record = self._informed()
        else:
            record = Convergence.start(len(self.genes))
            point, _ = search(self.full, self.genes, self.start, record, self.options, minimize)
        self._finish(point, record, optimum)
        return self.full.latents

    def _informed(self) -> tuple[Tensor, Convergence]:
        """Search from the best fit without space, as the library's own fits go."""
        begin = self._first()
        rough = replace(self.options, tolerance=max(ROUGH, self.options.tolerance))
        null, null_loss = search(self.null, self.genes, begin, Convergence.start(len(self.genes)), rough, minimize)

        def at(angle: float) -> Tensor:
            rest, sigma, psi = null.split(self.layout.sizes, 1)
            return torch.cat([rest, sigma.abs().clamp_min(SMALLEST_START), torch.full_like(psi, angle)], 1)

        best, loss, record = search_spatial(self.full, self.genes, at, self.options)
        if self.layout.sizes[2]:
            suspect = (self.full.unknowns.share(best, self.genes) < NEAR_ZERO).any(1) | (null_loss <= loss)
            self._without_space(suspect.nonzero()[:, 0], at(0.0), (best, loss, record))
        return best, record

    def _first(self) -> Tensor:
        """σ = 0.5 and the fixed part at the likelihood's own start, where that is better than the first point."""
        rest, sigma, angle = self.start.split(self.layout.sizes, 1)
        plain = torch.cat([rest, torch.full_like(sigma, FIRST_SIGMA), angle], 1)
        coordinates, model = self.null.coordinates, self.null.model
        near = coordinates.nearest_start(self.genes, plain, model.likelihood.start(model.counts))
        first, second = (self._plain_density(point) for point in (plain, near))
        better = torch.isfinite(second) & ~(second < first)
        return torch.where(better[:, None], near, plain)

    def _plain_density(self, point: Tensor) -> Tensor:
        """Log density without a random effect, but for a constant, ``(B,)``."""
        model = self.null.model
        with torch.no_grad():
            linked = self.null.coordinates.linked(point, self.genes, None)
            likelihood = model.likelihood.bind(linked.hyper_values(self.problem.hyper))
            return likelihood.log_prob(model.counts, linked.parameters.coefficients).sum(-1) + linked.log_prior

    def _without_space(self, genes: Tensor, begin: Tensor, best: tuple[Tensor, Tensor, Convergence]) -> None:
        """Put genes at θ = 0 itself, in place, where that is as good as what the search found."""
        if not len(genes):
            return
        record = Convergence.start(len(self.genes))
        point, loss = search(self.full, genes, begin[genes], record, self.options, minimize)
        better = loss <= best[1][genes] + PREFERENCE
        best[0][genes[better]] = point[better]
        for gene in genes[better].tolist():
            best[2].reason[gene] = record.reason[gene]

    def _finish(self, point: Tensor, record: Convergence, optimum: Optimum) -> None:
        """Store a result with σ ≥ 0 and ψ in [0, π/2]."""
        rest, sigma, angle = point.split(self.layout.sizes, 1)
        old = self.full.coordinates.linked(point, self.genes, None).parameters
        point = torch.cat([rest, sigma.abs(), torch.atan2(angle.sin().abs(), angle.cos().abs())], 1)
        self.full.latents.field.mul_(torch.where(old.spatial < 0, -1.0, 1.0)[:, None])
        self.full.latents.noise.mul_(torch.where(old.white < 0, -1.0, 1.0))
        optimum.point[self.units] = self.full.coordinates.unconstrained(point)
        optimum.evaluations[self.units] = self.full.evaluations + self.null.evaluations
        for unit, reason in zip(self.units.tolist(), record.reason, strict=True):
            optimum.reason[unit] = reason
