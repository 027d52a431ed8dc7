"""Laplace's method for a model that the sparse engine takes: its search, its value at any point, its posterior."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyrosplice.glmm.effect_posterior import RandomEffectPosterior, bounded_away_from_zero
from pyrosplice.glmm.marginal import (
    NEAR_ZERO,
    PREFERENCE,
    SMALLEST_START,
    MarginalObjective,
    genes_at_once,
    search,
    search_spatial,
)
from pyrosplice.glmm.mode import Latents
from pyrosplice.glmm.objective import FINAL_TOLERANCE, INNER_TOLERANCE, Linked
from pyrosplice.guides.engine_problem import EngineProblem
from pyrosplice.guides.marginal_density import MarginalValue
from pyrosplice.guides.searches import FitOptions, Optimum, judged
from pyrosplice.guides.site_coordinates import SearchLayout, SiteCoordinates, from_unconstrained
from pyrosplice.optimize.bfgs import Options, minimise
from pyrosplice.optimize.convergence import Convergence

FIRST_SIGMA = 0.5  # where searches begin
NEAR, TIGHT = 1e-2, 1e-8  # gradient norm below which modes are found to the second decrement (or 0.01 tolerance)
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
        Of the model.

    Attributes
    ----------
    latents
        Random effects of all units where a search ended, from which modes are looked for.
    """

    def __init__(self, problem: EngineProblem) -> None:
        self.problem = problem
        self.latents = problem.mixed_model(torch.arange(len(problem.counts))).zeros()

    @property
    def batches(self) -> list[Tensor]:
        """Units that are worked on together, within bounded memory."""
        problem, n_units = self.problem, len(self.problem.counts)
        size = genes_at_once(problem.counts.shape[1], problem.n_logits, problem.solver.factor_blocks)
        return list(torch.arange(n_units).split(size))

    def search(self, point: Tensor, rows: Tensor, options: FitOptions, *, informed: bool) -> Optimum:
        """The mode of some units from unconstrained coordinates ``(G, d)``, or from what the engine knows of them.

        The point of the optimum is in σ and ψ, see :meth:`unconstrained`.
        """
        layout = SearchLayout.of(self.problem, scales=True)
        others = from_unconstrained(self.problem, layout, point)
        n_units = len(point)
        optimum = Optimum(
            point=others.clone(),
            value=others.new_full((n_units,), torch.nan),
            gradient=torch.full_like(others, torch.nan),
            reason=["running"] * n_units,
            identified=torch.zeros(n_units, dtype=torch.bool),
            evaluations=torch.zeros(n_units, dtype=torch.int64),
            attempts=torch.ones(n_units, dtype=torch.int64),
        )
        for units in rows.split(len(self.batches[0])):
            found = _BatchSearch(self.problem, layout, units, others, options).run(optimum, informed=informed)
            self.latents.field[units] = found.field.nan_to_num(posinf=0.0, neginf=0.0)
            self.latents.noise[units] = found.noise.nan_to_num(posinf=0.0, neginf=0.0)
        return judged(optimum, torch.zeros(n_units, dtype=torch.bool), options.tolerance)

    def unconstrained(self, point: Tensor) -> Tensor:
        """Unconstrained coordinates of the sites but for the effect, ``(G, p)``, of an optimum's point."""
        every = torch.arange(len(point))
        return SiteCoordinates(self.problem, SearchLayout.of(self.problem, scales=True), every, point).unconstrained(
            point
        )

    def __call__(self, outer: Tensor) -> MarginalValue:
        """At unconstrained coordinates ``(G, p)`` of the sites but for the effect."""
        found = []
        for units in self.batches:
            objective = self._objective(units, outer.detach())
            loss, gradient = objective.evaluate(objective.model.genes, outer.detach()[units], tolerance=FINAL_TOLERANCE)
            mode = objective.mode
            assert mode is not None
            there = mode.converged & torch.isfinite(loss)
            nu = objective.model.effect(mode.step.parameters, mode.latents)
            found.append((torch.where(there, -loss, -torch.inf), -gradient, nu.flatten(1), there))
        return MarginalValue(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def linked(self, outer: Tensor, units: Tensor) -> Linked:
        """What the effect of some units depends on, at coordinates of the other sites; runs the model."""
        objective = self._objective(units, outer)
        with torch.no_grad():
            return objective.unknowns.linked(outer[units], objective.model.genes, None)

    def posterior(self, linked: Linked, units: Tensor) -> RandomEffectPosterior:
        """Of the effect in some units, given the other sites; does not run the model."""
        model, values = self.problem.mixed_model(units), linked.log_hyper.exp()
        if self.problem.hyper:
            model = model.bound({name: values[:, [h]] for h, name in enumerate(self.problem.hyper)})
        with torch.no_grad():
            proper = bounded_away_from_zero(linked.parameters)
            mode = model.mode(proper, self.latents.select(units), tolerance=FINAL_TOLERANCE)
        return RandomEffectPosterior(mode, validate_args=False)

    def _objective(self, units: Tensor, outer: Tensor) -> ModelObjective:
        coordinates = SiteCoordinates(self.problem, SearchLayout.of(self.problem, scales=False), units, outer)
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
            record.finish(self.genes, "converged")
        elif informed:
            point, record = self._informed()
        else:
            record = Convergence.start(len(self.genes))
            point, _ = search(self.full, self.genes, self.start, record, self.options, minimise)
        self._finish(point, record, optimum)
        return self.full.latents

    def _informed(self) -> tuple[Tensor, Convergence]:
        """From the best fit without space, as the library's own fits go."""
        begin = self._first()
        rough = replace(self.options, tolerance=max(ROUGH, self.options.tolerance))
        null, null_loss = search(self.null, self.genes, begin, Convergence.start(len(self.genes)), rough, minimise)

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
            values = linked.log_hyper.exp()
            hyper = {name: values[:, [h]] for h, name in enumerate(self.problem.hyper)}
            likelihood = model.likelihood.bind(hyper)
            return likelihood.log_prob(model.counts, linked.parameters.coefficients).sum(-1) + linked.log_prior

    def _without_space(self, genes: Tensor, begin: Tensor, best: tuple[Tensor, Tensor, Convergence]) -> None:
        """Put genes at θ = 0 itself, in place, where that is as good as what the search found."""
        if not len(genes):
            return
        record = Convergence.start(len(self.genes))
        point, loss = search(self.full, genes, begin[genes], record, self.options, minimise)
        better = loss <= best[1][genes] + PREFERENCE
        best[0][genes[better]] = point[better]
        for gene in genes[better].tolist():
            best[2].reason[gene] = record.reason[gene]

    def _finish(self, point: Tensor, record: Convergence, optimum: Optimum) -> None:
        """Once more, tightly, with σ ≥ 0 and ψ in [0, π/2]."""
        rest, sigma, angle = point.split(self.layout.sizes, 1)
        old = self.full.unknowns.linked(point, self.genes, None).parameters
        point = torch.cat([rest, sigma.abs(), torch.atan2(angle.sin().abs(), angle.cos().abs())], 1)
        self.full.latents.field.mul_(torch.where(old.spatial < 0, -1.0, 1.0)[:, None])
        self.full.latents.noise.mul_(torch.where(old.white < 0, -1.0, 1.0))
        self.full.mode = None
        loss, gradient = self.full.evaluate(self.genes, point, tolerance=FINAL_TOLERANCE)
        mode = self.full.mode
        assert mode is not None
        units, there = self.units, mode.converged & torch.isfinite(loss)
        optimum.point[units], optimum.gradient[units] = point, -gradient
        optimum.value[units] = torch.where(there, -loss, -torch.inf)
        optimum.identified[units] = there
        optimum.evaluations[units] = self.full.evaluations + self.null.evaluations
        for gene, unit in enumerate(units.tolist()):
            optimum.reason[unit] = record.reason[gene] if bool(there[gene]) else "no_mode"
