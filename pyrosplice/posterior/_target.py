r"""The log posterior of a batch of genes with ν integrated out by Laplace's method, at many points at once.

A *lane* is a gene at a value of its hyper-parameters φ, which are laid out without bounds as

.. math:: \varphi = (\log \sigma,\ \operatorname{logit} \theta,\ \log \text{hyper-parameters of the likelihood}).

Lanes are ordered with the genes fastest: the same genes again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._optimize.newton import solve_curvature
from pyrosplice.glmm._batches import MixedEngine
from pyrosplice.glmm._effect_posterior import bounded_away_from_zero
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import MixedModel, Mode
from pyrosplice.glmm._objective import LogPrior
from pyrosplice.glmm._random_effect import unit_deviations

INNER_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Target:
    """Log posterior of some genes as a function of coefficients and φ.

    Attributes
    ----------
    engine
        Data and likelihood, its hyper-parameters free.
    genes
        Which genes of the engine, (B,).
    log_prior
        Log prior density of the values of the sites, or None where all are flat.
    sigma, theta_logit
        Where they are not in φ: (B, c).
    free_sigma, free_theta
        Whether they are.
    """

    engine: MixedEngine
    genes: Tensor
    log_prior: LogPrior | None
    sigma: Tensor
    theta_logit: Tensor
    free_sigma: bool
    free_theta: bool

    @property
    def model(self) -> MixedModel:
        """The engine's model of the genes."""
        return self.engine.model(self.genes)

    def select(self, rows: Tensor) -> Target:
        """The target of some of the genes."""
        return replace(self, genes=self.genes[rows], sigma=self.sigma[rows], theta_logit=self.theta_logit[rows])

    @property
    def hyper(self) -> tuple[str, ...]:
        """Names of the likelihood's free hyper-parameters."""
        return self.engine.likelihood.free

    def phi(self, sigma: Tensor, theta_logit: Tensor, hyper: dict[str, Tensor]) -> Tensor:
        """Hyper-parameters φ (B, d) from values of the sites (B, ·)."""
        parts = [sigma.clamp_min(1e-6).log()] if self.free_sigma else []
        parts += [theta_logit] if self.free_theta else []
        return torch.cat([sigma[:, :0], *parts, *(hyper[name].log() for name in self.hyper)], 1)

    def sites(self, phi: Tensor) -> dict[str, Tensor]:
        """Values (L, ·) of ``sigma``, ``theta_logit`` and hyper-parameters at φ (L, d)."""
        times, width = len(phi) // len(self.genes), self.sigma.shape[1]
        sizes = [width * self.free_sigma, width * self.free_theta, *[1] * len(self.hyper)]
        logs, logits, *own = phi.split(sizes, 1)
        sigma = logs.exp() if self.free_sigma else self.sigma.repeat(times, 1)
        theta_logit = logits if self.free_theta else self.theta_logit.repeat(times, 1)
        hyper = {name: value.exp() for name, value in zip(self.hyper, own, strict=True)}
        return {"sigma": sigma, "theta_logit": theta_logit, **hyper}

    def prior(self, coefficients: Tensor, phi: Tensor) -> Tensor:
        """Log prior density (L,) of the coefficients and of φ, on φ's own scale."""
        times, sites = len(phi) // len(self.genes), self.sites(phi)
        jacobian = sum((sites[name].log().sum(-1) for name in self._logged()), phi.new_zeros(len(phi)))
        if self.log_prior is None:
            return jacobian
        rows = torch.arange(len(self.genes)).repeat(times)
        density = self.engine.own_prior(self.log_prior, self.genes)
        values = {"beta": coefficients[:, :-1], "bias_eta": coefficients[:, -1], **sites}
        return density(values, rows) + jacobian

    def parameters(self, coefficients: Tensor, phi: Tensor) -> Parameters:
        """The engine's parameters (L, ...)."""
        sites, q = self.sites(phi), coefficients.shape[-1]
        deviations = unit_deviations(sites["sigma"], sites["theta_logit"], q, self.engine.solver)
        return bounded_away_from_zero(Parameters(coefficients, *deviations))

    def mode(self, coefficients: Tensor, phi: Tensor) -> Mode:
        """Mode of the random effects of every lane."""
        times, sites = len(phi) // len(self.genes), self.sites(phi)
        model = self.model.select(torch.arange(len(self.genes)).repeat(times))
        if self.hyper:
            model = model.bound({name: sites[name] for name in self.hyper})
        return model.mode(self.parameters(coefficients, phi), model.zeros(), tolerance=INNER_TOLERANCE)

    def _logged(self) -> tuple[str, ...]:
        return (*(("sigma",) if self.free_sigma else ()), *self.hyper)

    def profile(self, coefficients: Tensor, phi: Tensor) -> Profile:
        """The log posterior around coefficients (L, P, Q) given φ (L, d), to second order."""
        mode = self.mode(coefficients, phi)
        laplace = Laplace(mode)
        with torch.enable_grad():
            point = coefficients.detach().requires_grad_(True)
            prior = self.prior(point, phi)
            gradient, bend = torch.zeros_like(point), point.new_zeros(*point.flatten(1).shape, point[0].numel())
            if prior.requires_grad:
                (gradient,) = torch.autograd.grad(prior.sum(), point, create_graph=True)
                bend = _rows(gradient, point)
        return Profile(
            mode,
            laplace.value + prior.detach(),
            coefficients,
            laplace.coefficients_gradient + gradient.detach(),
            self.engine.conditional_information(mode) - bend,
        )


@dataclass(frozen=True)
class Profile:
    """A point: mode of ν, log posterior (L,) with ν integrated out, its derivatives in the coefficients.

    ``gradient`` (L, P, Q), ``information`` (L, D, D): expected, that of the prior included.
    """

    mode: Mode
    value: Tensor
    coefficients: Tensor
    gradient: Tensor
    information: Tensor

    def optimum(self) -> tuple[Tensor, Tensor]:
        """Where a Newton step leads, (L, P, Q), and the log posterior there, (L,), to second order."""
        slope = self.gradient.flatten(1)
        move = solve_curvature(self.information, slope.unsqueeze(-1)).squeeze(-1)
        move = torch.nan_to_num(move * (3.0 / move.abs().amax(-1, keepdim=True).clamp_min(3.0)))
        curved = (move * (self.information @ move.unsqueeze(-1)).squeeze(-1)).sum(-1)
        value = self.value + (slope * move).sum(-1) - 0.5 * curved
        return self.coefficients + move.reshape(self.coefficients.shape), value


def _rows(gradient: Tensor, point: Tensor) -> Tensor:
    """Second derivatives (L, D, D), each lane's own."""
    flat = gradient.flatten(1)
    if not flat.requires_grad:
        return flat.new_zeros(*flat.shape, flat.shape[1])
    columns = [torch.autograd.grad(flat[:, j].sum(), point, retain_graph=True)[0] for j in range(flat.shape[1])]
    return torch.stack([column.flatten(1) for column in columns], -1)
