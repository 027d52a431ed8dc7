r"""Laplace's method by unit: the log density with the inner sites integrated out, and its exact gradient.

With :math:`\hat\nu(\phi)` the mode of the inner unknowns given the outer ones, and H minus the Hessian there,

.. math:: \log p(\phi) \approx \log p(\phi, \hat\nu) + \tfrac m2 \log 2\pi - \tfrac12 \log|H(\phi, \hat\nu)| .

The gradient has the determinant's, and follows the mode by the implicit function theorem (Kristensen et al. 2016,
J. Stat. Softw. 70(5)): with a the determinant's part of the gradient in ν, it adds
:math:`(H^{-1} a)' \partial_\phi \partial_\nu \log p`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from pyrosplice.guides._curvature import Curvature, Expansion
from pyrosplice.guides._searches import newton_search
from pyrosplice.reasons import Reason

INNER_TOLERANCE = 1e-8  # Newton decrement; the step taken there, and one more without a factorization, leave far less
CARRIED = 1e-4  # nats that this last step may be worth: more, and the inner search did not end at a mode
INNER_STEPS = 50


@dataclass(frozen=True)
class MarginalValue:
    """Laplace's approximation at outer unknowns.

    Attributes
    ----------
    value
        ``(G,)``; minus infinity where there is no mode with Gaussian curvature.
    gradient
        Gradient in the outer unknowns, ``(G, p)``.
    inner
        The mode, ``(G, m)``.
    found
        Whether each unit has such a mode, ``(G,)``.
    """

    value: Tensor
    gradient: Tensor
    inner: Tensor
    found: Tensor


@dataclass(frozen=True)
class CurvedValue(MarginalValue):
    """Laplace's approximation at outer unknowns, with minus the Hessian at the mode, ``(G, B, k, k)``."""

    hessian: Tensor


Marginal = Callable[[Tensor], MarginalValue]  # of unknowns (G, p)


class MarginalDensity:
    """Log density of the outer sites of a model; see the module.

    Parameters
    ----------
    curvature
        Curvature of the model's density in the inner sites.
    """

    def __init__(self, curvature: Curvature) -> None:
        self.curvature = curvature

    def __call__(self, outer: Tensor, start: Tensor) -> CurvedValue:
        """Laplace's approximation at outer unknowns ``(G, p)``; the mode is looked for from ``start`` ``(G, m)``."""
        curvature, every = self.curvature, torch.arange(len(outer))
        outer = outer.detach()
        inner, record = newton_search(curvature, outer, start, every, tolerance=INNER_TOLERANCE, max_iter=INNER_STEPS)
        with torch.enable_grad():
            phi, nu = outer.clone().requires_grad_(True), inner.clone().requires_grad_(True)
            at = curvature.expand(phi, nu, create_graph=True)
            root, info = torch.linalg.cholesky_ex(at.hessian.detach().nan_to_num())
            curved = (info == 0).all(1) & torch.isfinite(at.hessian.detach()).flatten(1).all(1)
            found = curved & torch.tensor([reason != Reason.NOT_FINITE for reason in record.convergence.reason])
            root = torch.where(curved[:, None, None, None], root, torch.eye(root.shape[-1]).to(root))
            gradient, rise, step = self._gradient(at, root, phi, nu)
        logs = 2 * torch.diagonal(root, dim1=-2, dim2=-1).log().sum((1, 2))
        value = -at.value.detach() + 0.5 * inner.shape[1] * math.log(2 * math.pi) - 0.5 * logs + rise
        found &= torch.isfinite(value) & (rise.abs() <= CARRIED)
        value = torch.where(found, value, -torch.inf)
        return CurvedValue(value, gradient, inner + step, found, at.hessian.detach())

    def _gradient(self, at: Expansion, root: Tensor, phi: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the marginal log density in φ; what is left to the mode, and what the value rises on the way."""
        inverse = torch.cholesky_inverse(root)
        whole = -at.value.sum() - 0.5 * (inverse * at.hessian).sum()
        direct, turned = torch.autograd.grad(
            whole, (phi, nu), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        slope = at.gradient.detach()
        determinant = turned + slope
        right = torch.stack([determinant, slope], -1)
        adjoint, back = self.curvature.solve(at.hessian.detach(), right).unbind(-1)
        rise = 0.5 * (slope * back).sum(1) - (determinant * back).sum(1)
        (followed,) = torch.autograd.grad((at.gradient * adjoint).sum(), phi, allow_unused=True, materialize_grads=True)
        return direct - followed, rise, -back


class MarginalFunction(torch.autograd.Function):
    """The marginal log density as a function of autograd, differentiable once."""

    @staticmethod
    def forward(ctx: FunctionCtx, outer: Tensor, marginal: Marginal) -> Tensor:
        """Value ``(G,)`` at outer unknowns ``(G, p)``."""
        found = marginal(outer)
        ctx.save_for_backward(found.gradient)
        return found.value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: BackwardCFunction, weight: Tensor) -> tuple[Tensor, None]:
        """Gradient of the marginal log density, from the weights of its values."""
        (gradient,) = ctx.saved_tensors
        return weight[:, None] * gradient, None


class OuterLoss:
    """Minus the marginal log density, as :func:`~pyrosplice._optimize.bfgs.minimize` takes it.

    Each search for a mode starts at that of the best point of its unit so far.
    """

    def __init__(self, density: MarginalDensity, outer: Tensor, inner: Tensor) -> None:
        self.density, self.outer, self.inner = density, outer.clone(), inner.clone()
        self.best = torch.full((len(outer),), -torch.inf, dtype=outer.dtype)
        self.evaluations = torch.zeros(len(outer), dtype=torch.int64)
        self.last: CurvedValue | None = None

    def evaluate(self, genes: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``(a,)`` and gradient ``(a, p)`` of some units."""
        outer = self.outer.index_copy(0, genes, point)
        self.last = found = self.density(outer, self.inner)
        self.evaluations[genes] += 1
        asked = torch.zeros_like(found.found).index_fill(0, genes, True)
        better = asked & (found.value > self.best)
        self.best = torch.where(better, found.value, self.best)
        self.inner = torch.where(better[:, None], found.inner, self.inner)
        self.outer = torch.where(better[:, None], outer, self.outer)
        return -found.value[genes], -found.gradient[genes]

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        """Limit a step to 2 in each unconstrained coordinate."""
        return (2.0 / direction.abs().amax(1).clamp_min(1e-300)).clamp_max(1.0)
