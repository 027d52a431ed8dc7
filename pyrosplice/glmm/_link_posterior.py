r"""Laplace's posterior of the linear predictor, coefficients and random effects together, at fitted and at new spots.

Variances and the likelihood's own hyper-parameters are at their estimates. Around the mode (Γ̂, û),

.. math::
    \Gamma \mid y \sim N(\hat\Gamma, H^{-1}), \qquad
    u \mid \Gamma, y \sim N(\hat u + \dot u\, (\Gamma - \hat\Gamma), H_u^{-1})

and a predictor is linear in both, so that it is Gaussian: at a fitted spot x'Γ + ν; at a new one
:math:`x_*'\Gamma + a s_* + c e_*`, with the field s_* given that at the fitted spots
(:mod:`pyrosplice.spatial._new_spots`) and a new i.i.d. effect e_*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import sandwich
from pyrosplice.glmm._importance import posterior_deviations
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.glmm._mode import Mode
from pyrosplice.spatial._new_spots import NewSpots

AT_ONCE = 64  # new spots whose variances are solved for together


@dataclass(frozen=True)
class Places:
    """Where a predictor is asked for: n spots.

    Attributes
    ----------
    design
        ``(n, P)``, the engine's columns with the intercept's.
    fitted
        Which fitted spot each is, ``(n,)``; −1 for a new one.
    field
        The field at the new ones, in their order; None where nothing is spatial, or none is new.
    """

    design: Tensor
    fitted: Tensor
    field: NewSpots | None = None

    @property
    def old(self) -> Tensor:
        """Which are fitted spots, ``(n,)``."""
        return self.fitted >= 0


class LinkPosterior:
    """Gaussian posterior of η of a batch of genes, in the coordinates of the engine.

    Parameters
    ----------
    mode
        Mode of the random effects at the estimates.
    information
        Information H of the coefficients, (B, D, D), predictors fastest.
    """

    def __init__(self, mode: Mode, information: Tensor) -> None:
        self.mode, self.model, self.parameters = mode, mode.step.model, mode.step.parameters
        values, vectors = torch.linalg.eigh(torch.nan_to_num(information))
        values = values.clamp_min(1e-8 * values.amax(-1, keepdim=True).clamp_min(1e-300))
        self.root = vectors * values.rsqrt().unsqueeze(-2)  # of H⁻¹
        self.responses = coefficient_responses(mode, self.parameters.coefficients.shape[1:])

    @property
    def design(self) -> Tensor:
        """Design of the fitted spots, (N, P)."""
        if self.model.design is None:
            raise AssertionError("a model of coefficients has a design")
        return self.model.design

    def mean(self, places: Places) -> Tensor:
        """Mean of η, (B, n, Q)."""
        fixed = torch.einsum("np,bpq->bnq", places.design, self.parameters.coefficients)
        return fixed + self._effect(places, self.mode.latents)

    def covariance(self, places: Places) -> Tensor:
        """Covariance of η at each spot, (B, n, Q, Q)."""
        slopes = self.slopes(places) @ self.root.unsqueeze(1)
        out = slopes @ slopes.mT
        out[:, places.old] += Laplace(self.mode).covariance[:, places.fitted[places.old]]
        if not bool(places.old.all()):
            out[:, ~places.old] += self._new_covariance(places.field)
        return out

    def slopes(self, places: Places) -> Tensor:
        """Derivative of η in the coefficients, the random effects at their mode: (B, n, Q, D)."""
        columns, q = [], self.model.n_predictors
        for j, response in enumerate(self.responses):
            column = self._effect(places, response)
            column[..., j % q] += places.design[:, j // q]
            columns.append(column)
        return torch.stack(columns, -1)

    def joint_covariance(self, spots: Tensor) -> Tensor:
        """Covariance of η at I fitted spots together, (B, I Q, I Q), predictors fastest."""
        step, n = self.mode.step, len(spots)
        places = Places(self.design[spots], spots)
        slopes = self.slopes(places).flatten(1, 2) @ self.root
        own = sandwich(self._white()[:, spots], step.white_covariance[:, spots], self._white()[:, spots])
        out = torch.stack([torch.block_diag(*gene) for gene in own])
        if step.factor is not None:
            weights = torch.zeros(n, self.model.counts.shape[1], dtype=out.dtype)
            weights[torch.arange(n), spots] = 1.0
            field = self._field_covariance(weights)[:, spots]  # (B, I, Q, I, Q)
            transfer = step.transfer[:, spots]
            half = torch.einsum("biqr,birjs->biqjs", transfer, field)
            out = out + torch.einsum("biqjs,bjts->biqjt", half, transfer).flatten(3, 4).flatten(1, 2)
        out = out + slopes @ slopes.mT
        return (out + out.mT) / 2

    def draws(self, places: Places, n_draws: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Draws of η at all spots together, (B, n, Q) each."""
        mean, slopes, q = self.mean(places), self.slopes(places), self.model.n_predictors
        for deviation in posterior_deviations(self.mode, n_draws, generator):
            noise = torch.randn(*self.root.shape[:2], 1, generator=generator, dtype=mean.dtype)
            shift = (self.root @ noise).squeeze(-1)
            eta = mean + torch.einsum("bnqd,bd->bnq", slopes, shift) + self._effect(places, deviation)
            new = ~places.old
            if bool(new.any()):
                shape = (len(mean), int(new.sum()), q)
                extra = self._white()[:, :1] * torch.randn(*shape, generator=generator, dtype=mean.dtype)
                if places.field is not None:
                    normal = torch.randn(*shape, generator=generator, dtype=mean.dtype)
                    extra = extra + self.parameters.spatial[:, None] * places.field.noise(normal)
                eta[:, new] += extra
            yield eta

    def _white(self) -> Tensor:
        return self.parameters.white.expand(-1, self.model.counts.shape[1], self.model.n_predictors)

    def _effect(self, places: Places, latents: Latents) -> Tensor:
        """Random effect that latents make, at new spots its expectation: (B, n, Q)."""
        effect = self.model.random_part(self.parameters, latents)
        out = effect[:, places.fitted.clamp_min(0)] * places.old[:, None]
        if places.field is not None and self.model.solver is not None:
            field = places.field.expected(self.model.solver.spread(latents.field))
            out[:, ~places.old] = self.parameters.spatial[:, None] * field
        return out

    def _field_covariance(self, weights: Tensor) -> Tensor:
        """Covariance of ``a s`` at the fitted spots and m combinations ``(m, N)`` of it, given Γ: (B, N, Q, m, Q)."""
        solver, factor, a = self.model.solver, self.mode.step.factor, self.parameters.spatial
        if solver is None or factor is None:
            raise AssertionError("a field is asked for where there is none")
        q, n_genes = a.shape[1], len(a)
        unit = torch.einsum("mn,qr->nqmr", weights, torch.eye(q, dtype=weights.dtype))
        pulled = solver.gather(unit.flatten(1).unsqueeze(0)).unflatten(2, (q, -1)).expand(n_genes, -1, -1, -1)
        solved = solver.spread(factor.solve(pulled).flatten(2)).unflatten(2, unit.shape[1:])
        return solved * a[:, None, :, None, None] * a[:, None, None, None, :]

    def _new_covariance(self, field: NewSpots | None) -> Tensor:
        """Covariance of the random effect at each new spot given the coefficients: (B, M, Q, Q), or (B, 1, Q, Q)."""
        white = torch.diag_embed(self._white()[:, :1].square())
        if field is None or self.model.solver is None:
            return white
        parts = []
        for some in torch.arange(len(field)).split(AT_ONCE):
            weights = field.weights(some)
            through = self._field_covariance(weights)
            parts.append(torch.einsum("mn,bnqmr->bmqr", weights, through))
        left = field.variance[:, None] * self.parameters.spatial.square()[:, None]
        found = torch.cat(parts, 1) + torch.diag_embed(left) + white
        return (found + found.mT) / 2


def coefficient_responses(mode: Mode, shape: torch.Size) -> list[Latents]:
    """How the mode moves with each coefficient, predictors fastest."""
    base = mode.step.parameters
    responses = []
    for p in range(shape[0]):
        for q in range(shape[1]):
            unit = torch.zeros_like(base.coefficients)
            unit[:, p, q] = 1.0
            responses.append(
                mode.response(Parameters(unit, torch.zeros_like(base.spatial), torch.zeros_like(base.white)))
            )
    return responses
