r"""Posterior draws of a batch of genes from Laplace's Gaussians, with the log weights that would make them exact.

Draws of φ (from its grid, cloud or design, or at the estimates), of the coefficients given φ, and of the random
effects u = (z, e) given both, each from a known density q. Their log weight

.. math::
    \log w = \log p(y, u \mid \Gamma, \varphi) + \log p(\Gamma, \varphi)
      - \log q(\varphi)\, q(\Gamma \mid \varphi)\, q(u \mid \Gamma, \varphi)

is constant if all of it is exact; the Pareto shape k̂ of the weights says how far it is from that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyrosplice.glmm._importance import posterior_deviations, posterior_form
from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.glmm._link_posterior import coefficient_responses
from pyrosplice.glmm._mode import MixedModel, Mode
from pyrosplice.posterior._target import Profile, Target

LANES = 512


@dataclass(frozen=True)
class Draws:
    """Draws of a batch of genes, with the engine's (standardised) coefficients.

    ``coefficients`` (S, B, P, Q), ``phi`` (S, B, d), ``nu`` of the logits (S, B, N, Q), ``log_weights`` (S, B).
    """

    coefficients: Tensor
    phi: Tensor
    nu: Tensor
    log_weights: Tensor


def draw_plugged_in(
    target: Target, coefficients: Tensor, phi: Tensor, n_draws: int, generator: torch.Generator
) -> Draws:
    """Draws at the estimated φ: one Gaussian of coefficients and random effects together, factorised once a gene."""
    profile = target.profile(coefficients, phi)
    centered, _ = profile.optimum()
    mode, model = profile.mode, profile.mode.step.model
    away, log_coefficients = _coefficient_draws(profile, n_draws, generator)
    responses = coefficient_responses(mode, coefficients.shape[1:])
    logdet = _logdet(mode)
    nu, weights = [], []
    for s, deviation in enumerate(posterior_deviations(mode, n_draws, generator)):
        shift = (away[s] + centered - coefficients).flatten(1)
        center = mode.latents
        for j, response in enumerate(responses):
            center = center.moved(response, shift[:, j])
        latents = center.moved(deviation)
        base = mode.step.parameters
        here = Parameters(centered + away[s], base.spatial, base.white)
        nu.append(model.effect(here, latents))
        weights.append(_log_ratio(mode, here, latents, deviation, logdet))
    drawn = centered + away
    prior = torch.stack([target.prior(one, phi) for one in drawn])
    log_weights = torch.stack(weights) + prior - log_coefficients
    return Draws(drawn, phi.expand(n_draws, *phi.shape), torch.stack(nu), log_weights)


class HyperPosterior(Protocol):
    """What is known of p(φ | y) of a batch of genes: a grid, a cloud of points or a design."""

    def sample(self, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw φ (S, B, d), with its log density (S, B) as drawn and coefficients near their optimum (S, B, P, Q)."""
        ...


def draw_integrated(
    target: Target, known: HyperPosterior, n_draws: int, generator: torch.Generator, *, n_effects: int = 1
) -> Draws:
    """Draws with φ integrated over: each draw with its own mode and Gaussian.

    With ``n_effects`` above one they are no longer Laplace's: of that many u one is kept by its weight, and the weight
    of the draw is their mean, which is as valid and varies less.
    """
    phis, log_phi, starts = known.sample(n_draws, generator)
    parts, n_genes = [], phis.shape[1]
    for rows in torch.arange(n_draws).split(max(LANES // n_genes, 1)):
        lanes = phis[rows].flatten(0, 1)
        profile = target.profile(starts[rows].flatten(0, 1), lanes)
        away, log_coefficients = _coefficient_draws(profile, 1, generator)
        drawn = profile.optimum()[0] + away[0]
        mode = target.mode(drawn, lanes)
        latents, weight = _effects(mode, n_effects, generator)
        nu = mode.step.model.effect(mode.step.parameters, latents)
        weight = weight + target.prior(drawn, lanes) - log_coefficients[0] - log_phi[rows].flatten()
        parts.append([x.reshape(len(rows), n_genes, *x.shape[1:]) for x in (drawn, lanes, nu, weight)])
    return Draws(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _effects(mode: Mode, n_tried: int, generator: torch.Generator) -> tuple[Latents, Tensor]:
    """Choose one of ``n_tried`` draws of u by weight, with the log of their mean ``p(y, u | Γ) / q(u | Γ)``, (L,)."""
    kept, total, logdet = mode.latents, mode.eta.new_full((len(mode.eta),), -torch.inf), _logdet(mode)
    for deviation in posterior_deviations(mode, n_tried, generator):
        latents = mode.latents.moved(deviation)
        weight = _log_ratio(mode, mode.step.parameters, latents, deviation, logdet)
        total = torch.logaddexp(total, torch.where(weight.isnan(), -torch.inf, weight))
        chosen = ~(torch.rand(len(total), generator=generator, dtype=total.dtype).log() >= weight - total)
        chosen = chosen[:, None, None]
        kept = Latents(torch.where(chosen, latents.field, kept.field), torch.where(chosen, latents.noise, kept.noise))
    return kept, total - math.log(n_tried)


def _coefficient_draws(profile: Profile, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Deviations (S, L, P, Q) from N(0, H⁻¹) and their log densities (S, L)."""
    information = profile.information
    values, vectors = torch.linalg.eigh(torch.nan_to_num(information))
    values = values.clamp_min(1e-8 * values.amax(-1, keepdim=True).clamp_min(1e-300))
    noise = torch.randn(n_draws, *values.shape, generator=generator, dtype=values.dtype)
    away = (vectors @ (noise * values.rsqrt()).unsqueeze(-1)).squeeze(-1)
    constant = 0.5 * values.log().sum(-1) - 0.5 * values.shape[-1] * torch.tensor(2 * torch.pi).log()
    return away.reshape(n_draws, *profile.coefficients.shape), constant - 0.5 * noise.square().sum(-1)


def _logdet(mode: Mode) -> Tensor:
    """Log determinant ``log |H_u| − Q log |P|`` at the factorised point, (L,)."""
    step, solver = mode.step, mode.step.model.solver
    value = step.white_logdet
    if solver is not None and step.factor is not None:
        value = value + step.factor.logdet() - step.model.n_predictors * solver.prior_logdet
    return value


def _log_ratio(mode: Mode, here: Parameters, latents: Latents, deviation: Latents, logdet: Tensor) -> Tensor:
    """Log weight ``log p(y, u | Γ) − log q(u | Γ)``: (L,)."""
    model: MixedModel = mode.step.model
    return model.log_joint(here, latents) + 0.5 * posterior_form(mode.step, deviation) - 0.5 * logdet
