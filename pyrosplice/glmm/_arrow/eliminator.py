r"""How the observations of a support are seen by the groups and coefficients: the protocol between the two halves.

η of the observations of support u is :math:`\eta_i = (c_i' \otimes I_Q)\, b_u + \text{inner effects}`, with c_i the
``(w,)`` columns of observation i and b_u ``(w Q,)`` (column-major: index ``k * Q + q``). Supports are independent given
b: no inner effect (a field, an effect of single observations) links two of them. All that the rest of the model sees of
a support are a score and an information of b, the inner effects being eliminated:

.. math::
    g_u = C_u' r^*, \qquad M_u = C_u' W^* C_u, \qquad W^* = (W^{-1} + \Sigma)^{-1}

with Σ the inner effects' covariance. Shapes: b genes, U supports, w Q = ``width``, I inner parameters, H
hyper-parameters.
Derivatives of Laplace's value are by the adjoint: with h_i the covariance of η_i, the *tilt* is
:math:`t_i = -\tfrac12 \partial \operatorname{tr}(h_i W_i) / \partial \eta_i`, λ solves the whole Newton system for the
right-hand side J't, and

.. math::
    \frac{d\,\text{value}}{d\psi} = (r + t - W J \lambda)' \dot\eta + (\dot J \lambda)' r
       - \operatorname{tr}(W \dot J H^{-1} J'), \qquad \dot\eta = \dot J\,(\text{latents}).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyrosplice.glmm._latents import Latents


@dataclass(frozen=True)
class InnerPoint:
    """Where an eliminator is asked to linearise.

    Attributes
    ----------
    genes : (b,)
        Which genes of the problem.
    sds : (b, I)
        Standard deviations of the inner effects (of either sign).
    log_hyper : (b, H)
        Logs of the likelihood's free hyper-parameters.
    blocks : (b, U, w Q)
        Coefficients of each support.
    latents
        Standardised inner effects.
    """

    genes: Tensor
    sds: Tensor
    log_hyper: Tensor
    blocks: Tensor
    latents: Latents


class Eliminator(Protocol):
    """Observations, likelihood and inner effects of all genes.

    Attributes
    ----------
    inner
        I names of the inner effects' standard deviations, of ``("space", "noise")``.
    hyper
        H names of the likelihood's free hyper-parameters.
    n_supports, width
        U and w Q.
    """

    inner: tuple[str, ...]
    hyper: tuple[str, ...]
    n_supports: int
    width: int

    def zeros(self, genes: Tensor) -> Latents:
        """Inner effects at zero, of the listed genes."""
        ...

    def log_joint(self, at: InnerPoint) -> Tensor:
        """Log density of the counts and of the standardised inner effects, ``(b,)``, without Gaussian constants."""
        ...

    def linearize(self, at: InnerPoint) -> Elimination:
        """Factorise the inner part of the Newton system there."""
        ...


class Elimination(Protocol):
    """The inner part of the Newton system of some genes at a point, eliminated.

    Attributes
    ----------
    score : (b, U, w Q)
        g, the right-hand side that is left for b.
    information : (b, U, w Q, w Q)
        M.
    decrement : (b,)
        What the inner effects add to the Newton decrement at fixed b.
    curved : (b,)
        Whether the inner Hessian is negative definite there.
    logdet : (b,)
        Log determinant of minus that Hessian, less that of the inner effects' prior precision.
    """

    score: Tensor
    information: Tensor
    decrement: Tensor
    curved: Tensor
    logdet: Tensor

    def advance(self, step: Tensor) -> Latents:
        """The change of the inner effects that goes with a Newton step ``(b, U, w Q)`` of b."""
        ...

    def respond(self, blocks: Tensor, sds: Tensor, log_hyper: Tensor) -> Response:
        """First-order change of the mode when b's fixed part, sds and logs of hyper-parameters change by these."""
        ...

    def average_information(self, steps: Sequence[Tensor], latents: Sequence[Latents]) -> Tensor:
        r"""Average information ``(b, I, I)`` of the inner sds, given how b and the inner effects move with each.

        With V the covariance of η in a Gaussian model, :math:`\tfrac12 r' \dot V_j P \dot V_k r` (Gilmour et al. 1995,
        Biometrics 51: 1440): here :math:`\dot\eta_j' W\, d\eta_k`.
        """
        ...

    def deviations(self, n_draws: int, generator: torch.Generator) -> Iterator[tuple[Latents, Tensor]]:
        """Draws of the inner effects from their Gaussian given b, less its mean, and their quadratic forms ``(b,)``."""
        ...

    def measure(self, covariance: Tensor) -> InnerMeasure:
        """Laplace's value at this point, taken for the mode, given the posterior covariance ``(b, U, wQ, wQ)`` of b."""
        ...


class Response(Protocol):
    """How the mode moves: first what is left for b, then, once b's own movement is solved for, the inner effects."""

    score: Tensor  # (b, U, w Q): right-hand side for b

    def advance(self, step: Tensor) -> Latents:
        """The change of the inner effects, given that of b ``(b, U, w Q)``."""
        ...


class InnerMeasure(Protocol):
    """Laplace's value and what its gradient needs.

    Attributes
    ----------
    value : (b,)
        ``log p(y | η) − ½ z'Pz − ½ e'e − ½ log|inner Hessian|``, and the field's ``½ Q log|P|``.
    raw_score : (b, U, w Q)
        ``C' r`` with r the derivative of the log likelihood in η, inner effects not eliminated.
    tilt : (b, U, w Q)
        Right-hand side of the adjoint that is left for b once the inner effects are eliminated.
    """

    value: Tensor
    raw_score: Tensor
    tilt: Tensor

    def gradient(self, adjoint: Tensor) -> InnerGradient:
        """Derivatives of the value, given the adjoint's part ``(b, U, w Q)`` in b."""
        ...


@dataclass(frozen=True)
class InnerGradient:
    """Derivatives of Laplace's value: in b's fixed part ``(b, U, w Q)``, in the sds ``(b, I)``, in logs ``(b, H)``.

    ``blocks`` is ``C' (r + t − W J λ)``; determinants of what is outside of the eliminator are not in any of them, save
    through t.
    """

    blocks: Tensor
    sds: Tensor
    log_hyper: Tensor
