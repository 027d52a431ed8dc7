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

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import matmul, matvec, sandwich
from pyrosplice.glmm._mode import Mode


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
    residual
        Derivative of ``value`` in the fixed part of each spot's linear predictor, (B, N, Q).
    coefficients_gradient, spatial_gradient, white_gradient
        Derivatives of ``value`` in the :class:`~pyrosplice.glmm._mode.Parameters`: (B, P, Q), (B, Q), and one of
        each spot for the independent part, (B, N, Q).
    """

    def __init__(self, mode: Mode):
        self.mode = mode
        step, model = mode.step, mode.step.model
        self._moments()
        tilt = model.likelihood.information_gradient(model.counts, step.eta, self.covariance)
        logdet = step.white_logdet + (tilt * (mode.eta - step.eta)).sum((1, 2))
        if model.solver is not None and step.factor is not None:
            logdet = logdet + step.factor.logdet() - model.n_predictors * model.solver.prior_logdet
        self.value = mode.log_joint - 0.5 * logdet
        self._gradient(-0.5 * tilt)

    def _moments(self) -> None:
        """Posterior covariance of ν at each spot, and of ν with s and with e."""
        step = self.mode.step
        a, c = step.parameters.spatial[:, None], step.parameters.white
        self.covariance = sandwich(c, step.white_covariance, c)
        self.cross_white = step.white_covariance * c[..., None]
        self.cross_spatial: Tensor | None = None
        if step.factor is not None:
            spread = step.factor.spot_covariance() * a[..., None]
            self.cross_spatial = matmul(step.transfer, spread)  # T a S⁻¹
            through = self.cross_spatial * a[..., None, :]
            self.covariance = self.covariance + matmul(through, step.transfer.mT)
            coupling = matmul(step.information, step.white_covariance * c[..., None])
            self.cross_white = self.cross_white - matmul(through, coupling)

    def hyper_gradient(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Derivative of ``value`` in the logs of the likelihood's hyper-parameters, and its scale: both (B, H)."""
        model = self.mode.step.model
        return model.likelihood.hyper_gradient(model.counts, self.mode.eta, names, self.adjoint_eta, self.covariance)

    def _gradient(self, tilt: Tensor) -> None:
        mode, step, model = self.mode, self.mode.step, self.mode.step.model
        adjoint = step.solve(step.pull_back(tilt))
        self.adjoint_eta = model.random_part(step.parameters, adjoint)
        response = matvec(step.information, self.adjoint_eta)
        self.residual = residual = mode.score + tilt - response
        self.coefficients_gradient = model.coefficient_slope(residual)
        trace = (step.information * self.cross_white.mT).sum(-1)
        self.white_gradient = residual * mode.latents.noise + adjoint.noise * mode.score - trace
        self.spatial_gradient = torch.zeros_like(step.parameters.spatial)
        if model.solver is not None and self.cross_spatial is not None:
            spread = model.solver.spread
            trace = (step.information * self.cross_spatial.mT).sum(-1)
            pull = residual * spread(mode.latents.field) + spread(adjoint.field) * mode.score - trace
            self.spatial_gradient = pull.sum(1)
