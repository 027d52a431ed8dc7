r"""A model's own sites as the unknowns of the sparse engine.

The unknowns of a unit are the unconstrained coordinates of its sites, but for sites that are σ or θ of the random
effect themselves: these are σ and the angle ψ with :math:`\theta = \sin^2\psi`, in which optima at σ = 0, θ = 0 and
θ = 1 are ordinary points (:mod:`pyrosplice.glmm._objective`). At every evaluation the model is run once, and the
engine's derivatives in η, σ, θ and the hyper-parameters are pulled back through that run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import planar
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import Mode
from pyrosplice.glmm._objective import ROUNDING, Linked, LogPrior, effect_information
from pyrosplice.guides._engine_problem import EngineProblem, ModelLinks
from pyrosplice.guides._sparsity import vector_products

LARGEST_LOGIT = 36.0  # of θ at an end, where 1 − θ is 2e-16
SMALLEST_SIGMA = 1e-8  # of an estimate: at σ = 0 the effect has no density
LOGITS, UNITS = 3.0, 2.0  # longest step, in η and in an unconstrained coordinate that η does not depend on


@dataclass(frozen=True)
class SearchLayout:
    """Which unknowns of a unit are which.

    Attributes
    ----------
    rest
        Columns, of the unknowns of the model, that stay unconstrained coordinates.
    sigma, angle
        Columns of the sites that are σ and θ, or none.
    """

    rest: Tensor
    sigma: Tensor
    angle: Tensor

    @classmethod
    def of(cls, problem: EngineProblem, *, scales: bool) -> SearchLayout:
        """Lay out unknowns: σ and ψ in place of sites σ and θ (``scales``), or unconstrained coordinates only."""
        latents = problem.density.latents
        every = torch.arange(problem.density.size)
        none = every[:0]
        sigma = every[latents[problem.sigma].columns] if scales and problem.sigma else none
        angle = every[latents[problem.theta].columns] if scales and problem.theta else none
        rest = torch.cat([none, *(every[latents[name].columns] for name in problem.outer)])
        return cls(rest[~torch.isin(rest, torch.cat([sigma, angle]))], sigma, angle)

    @property
    def sizes(self) -> list[int]:
        """Numbers of the three kinds."""
        return [len(self.rest), len(self.sigma), len(self.angle)]


class SiteCoordinates:
    """Unknowns of some units of a model, as :class:`~pyrosplice.glmm._objective.SearchCoordinates` has them.

    Parameters
    ----------
    problem
        What the engine reads of the model.
    layout
        Layout of the unknowns.
    units
        Which units are the engine's genes, ``(B,)``.
    others
        Unknowns ``(G, d)`` in this layout, at which units that are not asked for are held.
    spatial
        Whether the effect has its spatial part; else all of σ² is independent between spots.
    """

    def __init__(
        self, problem: EngineProblem, layout: SearchLayout, units: Tensor, others: Tensor, *, spatial: bool = True
    ) -> None:
        self.problem, self.layout, self.units, self.others = problem, layout, units, others
        self.spatial, self.hyper = spatial, problem.hyper
        self.reach = others.new_full((len(units), len(layout.rest)), UNITS)

    def values(self, vector: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values by site, and the log volume ``(G,)``, at unknowns of all units ``(G, d)``."""
        density, layout = self.problem.density, self.layout
        rest, sigma, angle = vector.split(layout.sizes, 1)
        rounded = torch.where(sigma.abs() < ROUNDING, (sigma.square() / ROUNDING + ROUNDING) / 2, sigma.abs())
        logit = 2 * angle.tan().abs().clamp(torch.e ** (-LARGEST_LOGIT / 2), torch.e ** (LARGEST_LOGIT / 2)).log()
        whole = vector.new_zeros(len(vector), density.size)
        whole = whole.index_copy(1, layout.rest, rest)
        whole = whole.index_copy(1, layout.sigma, rounded).index_copy(1, layout.angle, logit)
        values, volume = {}, vector.new_zeros(len(vector))
        for name in self.problem.outer:
            site = density.latents[name]
            coordinates = site.unpack(whole)
            is_sigma = name == self.problem.sigma and len(layout.sigma)
            values[name] = coordinates if is_sigma else site.transform(coordinates)
            if name in density.jacobian:
                volume = volume + site.log_volume(coordinates, values[name])
        return values, volume

    def linked(self, vector: Tensor, genes: Tensor, log_prior: LogPrior | None) -> Linked:
        """Run the model at the unknowns of the listed genes."""
        if log_prior is not None:
            raise AssertionError("the priors are the model's own")
        units = self.units[genes]
        values, volume = self.values(self.others.index_copy(0, units, vector))
        links = self.problem.links(values)
        eta = links.eta[units]
        basis = None if self.problem.basis is None else self.problem.basis.select(units)
        fixed = planar(eta if basis is None else basis.coordinates(eta))
        logs = [links.hyper[name][units].log() for name in self.hyper]
        return Linked(
            parameters=Parameters(fixed, *self._deviations(vector, links, units)),
            log_hyper=torch.cat([vector[:, :0], *logs], 1),
            log_prior=(links.others + volume)[units],
        )

    def _deviations(self, vector: Tensor, links: ModelLinks, units: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviations of the spatial ``(b, Q)`` and of the independent part ``(b, 1 or N, Q)``."""
        _, sigma, angle = vector.split(self.layout.sizes, 1)
        n_logits = links.sigma.shape[1]
        size = sigma.expand(-1, n_logits) if len(self.layout.sigma) else links.sigma[units]
        if not self.spatial:
            return torch.zeros_like(size), size[:, None]
        if len(self.layout.angle):
            share, other = angle.sin().expand_as(size), angle.cos().expand_as(size)
        else:
            logit = links.theta_logit[units]
            share, other = (torch.nn.functional.logsigmoid(sign * logit).mul(0.5).exp() for sign in (1, -1))
        lost = self.problem.solver.remainder
        if lost is None:
            return size * share, (size * other)[:, None]
        white = (other.square()[:, None] + share.square()[:, None] * lost[:, None]).sqrt()
        return size * share, size[:, None] * white

    def share(self, vector: Tensor, genes: Tensor) -> Tensor:
        """Spatial share θ of the variance, one for each component, or ``(b, Q)``."""
        if len(self.layout.angle):
            return vector.split(self.layout.sizes, 1)[2].sin().square()
        with torch.no_grad():
            found = self.linked(vector, genes, None).parameters
        spatial = found.spatial.square()
        return spatial / (spatial + found.white.square().mean(1)).clamp_min(1e-300)

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        """Limit a step to 3 logits, 0.7 (or half of itself) in σ, 0.5 radians in ψ, 2 in what η does not depend on."""
        _, n_sigma, n_angle = self.layout.sizes
        sigma = point[:, point.shape[1] - n_angle - n_sigma : point.shape[1] - n_angle].abs()
        most = [self.reach[genes], (0.5 * sigma).clamp_min(0.7), point.new_full((len(point), n_angle), 0.5)]
        return (torch.cat(most, 1) / direction.abs().clamp_min(1e-300)).amin(1).clamp_max(1.0)

    def information(self, mode: Mode, genes: Tensor, point: Tensor, hyper_scale: Tensor | None) -> Tensor:
        """Information of η (see :func:`effect_information`), of hyper-parameters and of priors, where they curve."""
        with torch.enable_grad():
            vector = point.detach().requires_grad_(True)
            linked = self.linked(vector, genes, None)
            known, solver = linked.parameters, mode.step.model.solver
            effect = mode.latents.noise * known.white
            if solver is not None:
                effect = effect + solver.spread(mode.latents.field) * known.spatial[:, None]
            fixed, moved = _tangents(torch.stack([known.coefficients, effect], 1), vector).unbind(1)
            slopes = _tangents(linked.log_hyper, vector)
            curved = -second_derivatives(linked.log_prior, vector)
        of_variance = (fixed == 0).flatten(0, 2).all(0)
        self._note_reach(genes, fixed)
        out = effect_information(mode, fixed + moved, of_variance)
        if hyper_scale is not None:
            out = out + torch.einsum("bhd,bh,bhe->bde", slopes, hyper_scale.clamp_min(1.0), slopes)
        values, vectors = torch.linalg.eigh(curved.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        return out + (vectors * values.clamp_min(0.0)[:, None]) @ vectors.mT

    def _note_reach(self, genes: Tensor, fixed: Tensor) -> None:
        n_rest = self.layout.sizes[0]
        steepest = fixed[..., :n_rest].abs().amax((1, 2))
        self.reach[genes] = torch.where(steepest > 0, LOGITS / steepest.clamp_min(1e-300), UNITS)

    def nearest_start(self, genes: Tensor, point: Tensor, target: Tensor) -> Tensor:
        """Unknowns at which, to first order, the fixed part of η is nearest to ``target`` ``(b, Q)``."""
        with torch.enable_grad():
            vector = point.detach().requires_grad_(True)
            fixed = self.linked(vector, genes, None).parameters.coefficients
            slopes = _tangents(fixed, vector)
        away = target[:, None] - fixed.detach()
        square = torch.einsum("bnqd,bnqe->bde", slopes, slopes)
        size = torch.diagonal(square, dim1=1, dim2=2)
        ridge = torch.where(size > 0, 1e-6 * size, 1.0)
        step = torch.linalg.solve(square + torch.diag_embed(ridge), torch.einsum("bnqd,bnq->bd", slopes, away))
        return point + step

    def unconstrained(self, vector: Tensor) -> Tensor:
        """Unconstrained coordinates of the sites but for the effect, ``(B, p)`` in the model's order."""
        whole = vector.new_zeros(len(vector), self.problem.density.size)
        rest, sigma, angle = vector.split(self.layout.sizes, 1)
        top = torch.e ** (LARGEST_LOGIT / 2)
        whole[:, self.layout.rest] = rest
        whole[:, self.layout.sigma] = sigma.abs().clamp_min(SMALLEST_SIGMA).log()
        whole[:, self.layout.angle] = 2 * angle.tan().abs().clamp(1 / top, top).log()
        return whole[:, SearchLayout.of(self.problem, scales=False).rest]


def from_unconstrained(layout: SearchLayout, point: Tensor) -> Tensor:
    """Unknowns in a layout from the unconstrained coordinates ``(G, d)`` of all sites."""
    angle = (0.5 * point[:, layout.angle]).exp().atan()
    return torch.cat([point[:, layout.rest], point[:, layout.sigma].exp(), angle], 1)


def _tangents(links: Tensor, vector: Tensor) -> Tensor:
    """Derivatives of links ``(b, ...)`` in their own gene's unknowns ``(b, d)``: ``(b, ..., d)``."""
    blank = links.new_zeros(*links.shape, vector.shape[1])
    if not links.requires_grad or not links.numel():
        return blank
    along = torch.ones_like(links, requires_grad=True)
    (pulled,) = torch.autograd.grad(links, vector, along, create_graph=True, materialize_grads=True)
    if not pulled.requires_grad:
        return blank
    seeds = torch.eye(vector.shape[1]).to(vector)[:, None].expand(-1, len(vector), -1)
    return vector_products(pulled, along, seeds, create_graph=False).movedim(0, -1)


def second_derivatives(value: Tensor, vector: Tensor) -> Tensor:
    """Hessians ``(b, d, d)`` of one number a gene, zero where it is linear."""
    blank = vector.new_zeros(*vector.shape, vector.shape[1])
    if not value.requires_grad:
        return blank
    (slope,) = torch.autograd.grad(value.sum(), vector, create_graph=True, materialize_grads=True)
    if not slope.requires_grad:
        return blank
    seeds = torch.eye(vector.shape[1]).to(vector)[:, None].expand(-1, len(vector), -1)
    found = vector_products(slope, vector, seeds, create_graph=False).movedim(0, -1)
    return 0.5 * (found + found.mT)
