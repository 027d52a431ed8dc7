r"""What the searches of mixed models have in common: their unknowns, and an objective that follows the mode.

The unknowns of a gene are its coefficients Γ, and σ and an angle ψ for each variance component:

.. math:: a = \sigma \sin\psi, \quad c = \sigma \cos\psi, \quad \theta = \sin^2\psi .

The likelihood is even and smooth in σ, and in ψ around 0 and π/2, so an optimum on the boundary (σ = 0, θ = 0 or
θ = 1, all of them normal on real data) is an ordinary stationary point, reached by ordinary steps, without bounds
and without a logit that runs to infinity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.glmm._mode import MixedModel, Mode

LogPrior = Callable[[dict[str, Tensor], Tensor], Tensor]  # (site values of the listed genes, genes) to (b,)


def at_held(log_prior: LogPrior | None, held: Mapping[str, Tensor]) -> LogPrior | None:
    """A log prior that takes some sites, values of all genes ``(G, ...)``, from here where it is not given them."""
    if log_prior is None or not held:
        return log_prior
    return lambda values, genes: log_prior({**{name: value[genes] for name, value in held.items()}, **values}, genes)


INNER_TOLERANCE = 1e-6  # Newton decrement, nats²
FINAL_TOLERANCE = 1e-12
ROUNDING = 1e-3  # below it, |σ| is rounded off for a prior of σ, which may have its mode, and a kink, at σ = 0


@dataclass(frozen=True)
class Linked:
    """What a log density depends on, as differentiable functions of the unknowns of some genes.

    Attributes
    ----------
    parameters
        Parameters of the mixed model.
    log_hyper
        Logs of the likelihood's hyper-parameters, (b, H).
    log_prior
        (b,).
    """

    parameters: Parameters
    log_hyper: Tensor
    log_prior: Tensor

    def hyper_values(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The likelihood's hyper-parameters by name, (b, 1) each, without gradients."""
        values = self.log_hyper.detach().exp()
        return {name: values[:, [h]] for h, name in enumerate(names)}


class SearchCoordinates(Protocol):
    """The unknowns of a search, one vector a gene, and what they are to the mixed model."""

    @property
    def hyper(self) -> tuple[str, ...]:
        """Names of the likelihood's hyper-parameters that depend on the unknowns."""
        ...

    def linked(self, vector: Tensor, genes: Tensor, log_prior: LogPrior | None) -> Linked:
        """What the density of the listed genes (b,) depends on, at their unknowns (b, d)."""
        ...

    def share(self, vector: Tensor, genes: Tensor) -> Tensor:
        """Spatial share θ of the variance, (b, n_components or Q)."""
        ...

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        """Longest step along ``direction`` that may be tried, in (0, 1], (b,)."""
        ...

    def information(self, mode: Mode, genes: Tensor, point: Tensor, hyper_scale: Tensor | None) -> Tensor:
        """Approximate information of the unknowns at a mode, (b, d, d), positive definite."""
        ...


@dataclass(frozen=True)
class Unknowns:
    """How the unknowns of a gene are laid out in a vector.

    Attributes
    ----------
    n_coefficients
        P, columns of the design, intercept included (the last one).
    n_predictors
        Q.
    n_components
        Variance components: 1 when shared, else Q.
    spatial
        Whether θ is an unknown; without it the random effect is independent between spots.
    fixed_sigma
        σ where it is not an unknown, (B, n_components).
    remainder
        Diagonal of V that its low-rank form leaves out, (N,).
    hyper
        Names of the likelihood's hyper-parameters that are unknowns, by their logs.
    """

    n_coefficients: int
    n_predictors: int
    n_components: int
    spatial: bool
    fixed_sigma: Tensor | None = None
    remainder: Tensor | None = None
    hyper: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Lengths of the four parts: coefficients, σ, ψ, logs of hyper-parameters."""
        free_sigma = self.n_components if self.fixed_sigma is None else 0
        return [
            self.n_coefficients * self.n_predictors,
            free_sigma,
            self.n_components if self.spatial else 0,
            len(self.hyper),
        ]

    def pack(
        self, coefficients: Tensor, sigma: Tensor, angle: Tensor | None, hyper: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Write the unknowns as one vector a gene, (B, d)."""
        parts = [coefficients.flatten(1)]
        if self.fixed_sigma is None:
            parts.append(sigma)
        if self.spatial and angle is not None:
            parts.append(angle)
        return torch.cat([*parts, *((hyper or {})[name].log() for name in self.hyper)], 1)

    def unpack(self, vector: Tensor, genes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (b, P, Q), σ and ψ (b, n_components)."""
        flat, sigma, angle, _ = vector.split(self.sizes, 1)
        if self.fixed_sigma is not None:
            sigma = self.fixed_sigma[genes]
        if not self.spatial:
            angle = torch.zeros_like(sigma)
        return flat.reshape(-1, self.n_coefficients, self.n_predictors), sigma, angle

    def hyper_values(self, vector: Tensor) -> dict[str, Tensor]:
        """Hyper-parameters of the likelihood, (b, 1) each."""
        logs = vector[:, vector.shape[1] - len(self.hyper) :]
        return {name: logs[:, [h]].exp() for h, name in enumerate(self.hyper)}

    def linked(self, vector: Tensor, genes: Tensor, log_prior: LogPrior | None) -> Linked:
        """Parameters, logs of hyper-parameters and log prior of the listed genes."""
        prior = vector.new_zeros(len(vector))
        if log_prior is not None:
            prior = log_prior(self.sites(vector, genes), genes)
        return Linked(self.parameters(vector, genes), vector[:, vector.shape[1] - len(self.hyper) :], prior)

    def share(self, vector: Tensor, genes: Tensor) -> Tensor:
        """Spatial share θ of the variance, (b, n_components)."""
        return self.unpack(vector, genes)[2].sin().square()

    def parameters(self, vector: Tensor, genes: Tensor) -> Parameters:
        """Standard deviations of both parts; differentiable in ``vector``."""
        coefficients, sigma, angle = self.unpack(vector, genes)
        sigma, angle = (x.expand(-1, self.n_predictors) for x in (sigma, angle))
        white = (sigma * angle.cos())[:, None]
        if self.remainder is not None:
            lost = angle.sin().square()[:, None] * self.remainder[:, None]
            white = sigma[:, None] * (angle.cos().square()[:, None] + lost).sqrt()
        return Parameters(coefficients, sigma * angle.sin(), white)

    def sites(self, vector: Tensor, genes: Tensor) -> dict[str, Tensor]:
        """Values of the sites of the Pyro model; differentiable in ``vector``."""
        coefficients, sigma, angle = self.unpack(vector, genes)
        sites = {"beta": coefficients[:, :-1], "bias_eta": coefficients[:, -1]}
        rounded = (sigma.square() / ROUNDING + ROUNDING) / 2
        sites["sigma"] = torch.where(sigma.abs() < ROUNDING, rounded, sigma.abs())
        if self.spatial:
            sites["theta_logit"] = 2 * angle.tan().abs().log()
        return {**sites, **self.hyper_values(vector)}

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        """Limit a step to 3 logits, 0.7 (or half of itself) in σ, 0.5 radians in ψ and 1 in a log."""
        n_gamma, n_sigma, n_angle, n_hyper = self.sizes
        sigma = point[:, n_gamma : n_gamma + n_sigma].abs()
        logits, angles = point.new_full((len(point), n_gamma), 3.0), point.new_full((len(point), n_angle), 0.5)
        logs = point.new_ones(len(point), n_hyper)
        most = torch.cat([logits, (0.5 * sigma).clamp_min(0.7), angles, logs], 1)
        return (most / direction.abs().clamp_min(1e-300)).amin(1).clamp_max(1.0)

    def information(self, mode: Mode, genes: Tensor, point: Tensor, hyper_scale: Tensor | None) -> Tensor:
        """Expected information of the coefficients, average information of the variances, and ``hyper_scale``."""
        tangents = self._tangents(mode)
        out = effect_information(mode, torch.stack(tangents, -1), torch.arange(len(tangents)) >= self.sizes[0])
        if hyper_scale is None:
            return out
        n_known, n_hyper = out.shape[1], hyper_scale.shape[1]
        whole = torch.nn.functional.pad(out, (0, n_hyper, 0, n_hyper))
        torch.diagonal(whole, dim1=1, dim2=2)[:, n_known:] = hyper_scale.clamp_min(1.0)
        return whole

    def _tangents(self, mode: Mode) -> list[Tensor]:
        """Derivative of η in each unknown, at fixed random effects."""
        parameters, model = mode.step.parameters, mode.step.model
        if model.design is None:
            raise AssertionError("coefficients are of a design")
        out = []
        for p in range(self.n_coefficients):
            for q in range(self.n_predictors):
                field = torch.zeros_like(mode.eta)
                field[:, :, q] = model.design[:, p]
                out.append(field)
        field = torch.zeros_like(mode.eta)
        if model.solver is not None:
            field = model.solver.spread(mode.latents.field)
        sigma = (parameters.spatial.square() + parameters.white[:, 0].square()).sqrt()[:, None].clamp_min(1e-8)
        nu = model.random_part(parameters, mode.latents)
        turned = field * parameters.white - mode.latents.noise * parameters.spatial[:, None]
        for tangent, size in ((nu / sigma, self.sizes[1]), (turned, self.sizes[2])):
            if size == 1:
                out.append(tangent)
            for q in range(size if size > 1 else 0):
                single = torch.zeros_like(tangent)
                single[:, :, q] = tangent[:, :, q]
                out.append(single)
        return out


def effect_information(mode: Mode, tangents: Tensor, of_variance: Tensor) -> Tensor:
    """Approximate information of unknowns of which η has the derivatives ``tangents`` (B, N, Q, d): (B, d, d).

    ``κ D' (W⁻¹ + Σ)⁻¹ D`` with D the derivative of η in the unknowns at fixed random effects: the expected information
    for the coefficients (κ = 1), the average information of REML for those ``of_variance`` (d,) (κ = 2).
    """
    products = mode.step.marginal_precision_product(tangents)
    kind = of_variance.to(tangents)
    weight = torch.where(kind[:, None] == kind, 1.0 + kind, 0.0)
    out = torch.einsum("bnqd,bnqe->bde", tangents, products) * weight
    scale = torch.diagonal(out, dim1=1, dim2=2).clamp_min(1.0)
    return out + torch.diag_embed(1e-3 * scale)


@dataclass(frozen=True)
class Measure:
    """A log density and its derivatives in the :class:`~pyrosplice.glmm._latents.Parameters`.

    ``value`` (B,), ``coefficients`` (B, P, Q), ``spatial`` (B, Q), ``white`` (B, N, Q): one for every spot. In the
    logs of the likelihood's hyper-parameters: ``hyper`` (B, H), and ``hyper_scale`` (B, H), about its information.
    """

    value: Tensor
    coefficients: Tensor
    spatial: Tensor
    white: Tensor
    hyper: Tensor | None = None
    hyper_scale: Tensor | None = None


class ModeObjective(ABC):
    """Minus (a log density at the mode of the random effects + log prior), following the mode of each gene.

    ================ ======== =====================================================
    what to override required for
    ================ ======== =====================================================
    ``measure``      yes      the log density and its derivatives, given the mode
    ``information``  no       the first Hessian of the search
    ================ ======== =====================================================
    """

    def __init__(self, model: MixedModel, unknowns: SearchCoordinates, log_prior: LogPrior | None):
        self.model, self.unknowns, self.log_prior = model, unknowns, log_prior
        self.latents = model.zeros()  # of every gene, where it was last evaluated
        self.batch, self.genes = model, model.genes
        self.mode: Mode | None = None
        self._point: Tensor | None = None
        self._hyper_scale: Tensor | None = None

    def evaluate(self, genes: Tensor, point: Tensor, *, tolerance: float = INNER_TOLERANCE) -> tuple[Tensor, Tensor]:
        """Loss (b,) and gradient (b, d); starts the inner iteration where the last mode says it should."""
        with torch.enable_grad():
            vector = point.detach().requires_grad_(True)
            linked = self.unknowns.linked(vector, genes, self.log_prior)
        known = linked.parameters
        parameters = Parameters(known.coefficients.detach(), known.spatial.detach(), known.white.detach())
        start = self._predict(genes, parameters)
        if not torch.equal(genes, self.genes):
            self.batch, self.genes = self.model.select(genes), genes
        if self.unknowns.hyper:
            self.batch = self.batch.bound(linked.hyper_values(self.unknowns.hyper))
        self.mode = mode = self.batch.mode(parameters, start, tolerance=tolerance)
        self.latents.field[genes], self.latents.noise[genes] = mode.latents.field, mode.latents.noise
        found = self.measure(mode)
        self._point, self._hyper_scale = point.detach(), found.hyper_scale
        white = found.white if known.white.shape[1] > 1 else found.white.sum(1, keepdim=True)
        with torch.enable_grad():
            surrogate = (
                (known.coefficients * found.coefficients).sum()
                + (known.spatial * found.spatial).sum()
                + (known.white * white).sum()
            )
            if found.hyper is not None:
                surrogate = surrogate + (linked.log_hyper * found.hyper).sum()
            (gradient,) = torch.autograd.grad(surrogate + linked.log_prior.sum(), vector)
        return -(found.value + linked.log_prior.detach()), -gradient

    @abstractmethod
    def measure(self, mode: Mode) -> Measure:
        """Log density of the genes of ``mode``, and its derivatives."""

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        """Limit a step as the coordinates do."""
        return self.unknowns.step_limit(genes, point, direction)

    def information(self) -> Tensor:
        """Approximate information of the unknowns at the last mode: (b, d, d), positive definite."""
        if self.mode is None or self._point is None:
            raise AssertionError("evaluate first")
        return self.unknowns.information(self.mode, self.genes, self._point, self._hyper_scale)

    def _predict(self, genes: Tensor, parameters: Parameters) -> Latents:
        """The better of the last mode and its first-order prediction at the new parameters."""
        current = self.latents.select(genes)
        if self.mode is None or not bool(torch.isin(genes, self.genes).all()):
            return current
        mode, kept = self.mode, torch.isin(self.genes, genes)
        old = mode.step.parameters
        change = Parameters(*(torch.zeros_like(x) for x in (old.coefficients, old.spatial, old.white)))
        change.coefficients[kept] = parameters.coefficients - old.coefficients[kept]
        change.spatial[kept] = parameters.spatial - old.spatial[kept]
        change.white[kept] = parameters.white - old.white[kept]
        step = mode.response(change).select(kept)
        batch = self.batch if bool(kept.all()) else self.batch.select(kept)
        better = batch.log_joint(parameters, current.moved(step)) > batch.log_joint(parameters, current)
        return current.moved(step, better.to(step.noise))
