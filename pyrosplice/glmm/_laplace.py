r"""Laplace's method for mixed models: log marginal likelihood and its exact gradient.

Laplace's method in (s, e) and in ν = a s + c e (:mod:`pyrosplice.glmm._mode`) give the same value, since ν is
linear in them:

.. math::
    \log p(y) \approx \log p(y \mid \hat\eta) - \tfrac12 \hat s' P \hat s - \tfrac12 \hat e' \hat e
      + \tfrac{Q}{2} \log|P| - \tfrac12 \log|S| - \tfrac12 \sum_i \log|I + c W_i c| .

The constants of the Gaussian densities and of the integral cancel: this is a log marginal likelihood, not one up to a
constant. The gradient follows the mode by the implicit function theorem (the method of Kristensen et al. 2016,
J. Stat. Softw. 70(5)). It needs only the diagonal blocks of S⁻¹ and one more solve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import last_sum, matmul, matvec
from pyrosplice.glmm._latents import Latents
from pyrosplice.glmm._mode import Mode, NewtonStep


class Laplace:
    """Laplace's approximation of the marginal likelihood of a batch of genes.

    Parameters
    ----------
    mode
        Joint mode of the random effects; the determinant is carried to it from the last factorised point.

    Attributes
    ----------
    value
        Log marginal likelihood, (B,).
    covariance
        Posterior covariance of ν at each spot, (B, N, Q, Q).
    adjoint_eta
        The random effects' part in η of the adjoint, (B, N, Q).
    residual
        Derivative of ``value`` in the fixed part of each spot's linear predictor, (B, N, Q).
    coefficients_gradient, spatial_gradient, white_gradient
        Derivatives of ``value`` in the :class:`~pyrosplice.glmm._latents.Parameters`: (B, P, Q), (B, Q), and one of
        each spot for the independent part, (B, N, Q).
    """

    def __init__(self, mode: Mode):
        self.mode = mode
        step, model = mode.step, mode.step.model
        moments = EffectMoments(step)
        self.covariance = moments.covariance
        tilt = model.likelihood.information_gradient(model.counts, step.eta, self.covariance)
        logdet = step.logdet() + (tilt * (mode.eta - step.eta)).sum((1, 2))
        self.value = mode.log_joint - 0.5 * logdet
        self._gradient(moments, -0.5 * tilt)

    def hyper_gradient(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Derivative of ``value`` in the logs of the likelihood's hyper-parameters, and its scale: both (B, H)."""
        model = self.mode.step.model
        return model.likelihood.hyper_gradient(model.counts, self.mode.eta, names, self.adjoint_eta, self.covariance)

    def _gradient(self, moments: EffectMoments, tilt: Tensor) -> None:
        mode, step, model = self.mode, self.mode.step, self.mode.step.model
        adjoint = step.solve(step.pull_back(tilt))
        self.adjoint_eta = model.random_part(step.parameters, adjoint)
        response = matvec(step.information, self.adjoint_eta)
        self.residual = mode.score + tilt - response
        self.coefficients_gradient = model.coefficient_slope(self.residual)
        self.spatial_gradient, self.white_gradient = moments.gradients(mode.latents, adjoint, self.residual, mode.score)


class EffectMoments:
    """Posterior covariances at each spot, with the derivatives of Laplace's value that they make.

    Parameters
    ----------
    step
        The Newton system at the mode.
    border
        What coefficients outside of it add; None where they are held.

    Attributes
    ----------
    covariance
        Posterior covariance of η at each spot, (B, N, Q, Q).
    """

    def __init__(self, step: NewtonStep, border: Border | None = None):
        self.step = step
        a, c = step.parameters.spatial[:, None], step.parameters.white
        self.cross_white = step.white_covariance * c[..., None]  # of η with e
        self.covariance = self.cross_white * c[..., None, :]
        self.cross_spatial: Tensor | None = None  # of η with s
        around = None if border is None else border.covariance  # of what moves η but e: the coefficients and a s
        if step.factor is not None:
            spread = step.factor.spot_covariance() * a[..., None]
            through = spread * a[..., None, :]
            around = through if border is None else through + border.covariance
            spread = spread if border is None or border.cross is None else spread - border.cross
            self.cross_spatial = matmul(step.transfer, spread) if step.noisy else spread
        if around is not None and not step.noisy:
            self.covariance = around
        elif around is not None:
            through = matmul(step.transfer, around)
            self.covariance = self.covariance + matmul(through, step.transfer.mT)
            coupling = matmul(step.information, step.white_covariance * c[..., None])
            self.cross_white = self.cross_white - matmul(through, coupling)

    def gradients(self, latents: Latents, adjoint: Latents, residual: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of Laplace's value in the standard deviations: spatial (B, Q), and white (B, N, Q) of each spot.

        ``residual`` is the value's derivative in η at fixed ``latents``, ``score`` that of the log likelihood.
        """
        step = self.step
        white = residual * latents.noise + adjoint.noise * score
        if step.noisy:
            white = white - last_sum(step.information * self.cross_white.mT)
        spatial = torch.zeros_like(step.parameters.spatial)
        if step.model.solver is not None and self.cross_spatial is not None:
            spread = step.model.solver.spread
            trace = last_sum(step.information * self.cross_spatial.mT)
            spatial = (residual * spread(latents.field) + spread(adjoint.field) * score - trace).sum(1)
        return spatial, white


@dataclass(frozen=True)
class Border:
    """Posterior moments at each spot that are due to coefficients which vary too, (B, N, Q, Q) each.

    Attributes
    ----------
    covariance
        Of what is left of the coefficients' part in η once the field has undone its own.
    cross
        Of that with what the field undoes; None without a field.
    """

    covariance: Tensor
    cross: Tensor | None
