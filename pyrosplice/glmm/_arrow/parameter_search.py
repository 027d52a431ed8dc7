r"""The search over standard deviations and hyper-parameters of a batch of genes.

Standard deviations of either sign and logs of hyper-parameters, :math:`x = x_0 + W y` with :math:`W W'` the inverse of
the curvature that is expected at the start, so that the gradient in y is in sqrt(nats): searches stop where they
promise less than its square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._optimize.bfgs import FirstPoint, Options, minimize
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.glmm._arrow.arrow import Arrow, ArrowUnknowns
from pyrosplice.glmm._arrow.eliminator import Eliminator
from pyrosplice.glmm._arrow.joint_mode import OuterPoint
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace, laplace_at
from pyrosplice.glmm._latents import Latents

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
LogPrior = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Log density (b,) of effects' parameters (b, J), inner standard deviations (b, I), logs of hyper-parameters (b, H)."""
LOG_HYPER = (-12.0, 12.0)  # beyond, a dispersion makes no difference to any count below 10^5, nor a concentration
SD_STEP, HYPER_STEP = 0.25, 1.0  # longest steps, in units of the data and in logs (a prototype)
PROBE = 0.05  # change of an inner sd or log whose effect on the gradient is the first curvature
LOOSE = 1e-4  # largest Newton decrement of a mode on the way: value and gradient are carried to the mode from there
SHARE = 1e-2  # of the squared gradient before, in nats, that the next mode's decrement may be
LEAST_CURVATURE = 0.5  # of those, in units of the data


@dataclass(frozen=True)
class SearchStart:
    """Where a search begins: parameters x (B, d), unknowns of the mode, and the size (B,) that sds are measured in."""

    parameters: Array
    unknowns: ArrowUnknowns
    unit: Array


class OuterObjective:
    """Minus Laplace's value of a batch of genes as :func:`~pyrosplice._optimize.bfgs.minimize` takes it.

    Parameters
    ----------
    arrow, eliminator
        The problem.
    genes
        Which of it, (B,).
    start
        Where it starts.
    tolerance
        Newton decrement at which a mode is good enough at the end, in nats²; on the way :data:`SHARE` says.
    log_prior
        Of standard deviations and logs of hyper-parameters; None for none.
    """

    def __init__(
        self,
        arrow: Arrow,
        eliminator: Eliminator,
        genes: Tensor,
        start: SearchStart,
        *,
        tolerance: float,
        log_prior: LogPrior | None = None,
    ):
        self.arrow, self.eliminator, self.genes = arrow, eliminator, genes
        self.tolerance, self.log_prior = tolerance, log_prior
        self.origin, self.unknowns = start.parameters, start.unknowns
        self.latents = eliminator.zeros(genes)
        self.at = start.parameters.copy()
        self.enough = np.full(len(genes), max(tolerance, LOOSE))
        self.moves: list[tuple[ArrowUnknowns, Latents]] = []
        self.sizes = (arrow.n_parameters, len(eliminator.inner), len(eliminator.hyper))
        n, d = start.parameters.shape
        self.whitening = np.broadcast_to(np.eye(d), (n, d, d))
        self.unit = np.ones((n, d))
        self.unit[:, : sum(self.sizes[:2])] = self.unit[:, sum(self.sizes) :] = start.unit[:, None]
        self.caps = SD_STEP * self.unit
        self.caps[:, sum(self.sizes[:2]) :] *= HYPER_STEP / SD_STEP

    def parameters(self, rows: Tensor, y: Tensor) -> Array:
        """Parameters x (b, d) at whitened ones."""
        own = rows.numpy()
        return self.origin[own] + np.einsum("bij,bj->bi", self.whitening[own], y.numpy())

    def outer(self, rows: Rows, x: Array) -> OuterPoint:
        """Parts of parameters, hyper-parameters within their bounds."""
        psi, sds, log_hyper, coefficients = np.split(x, np.cumsum(self.sizes), axis=1)
        bounded = torch.from_numpy(np.clip(log_hyper, *LOG_HYPER))
        inner = torch.from_numpy(np.ascontiguousarray(sds))
        psi, coefficients = np.ascontiguousarray(psi), np.ascontiguousarray(coefficients)
        return OuterPoint(self.genes[torch.from_numpy(rows)], psi, inner, bounded, coefficients)

    def laplace(self, rows: Rows, x: Array, *, tolerance: float | None = None, keep: bool = True) -> ArrowLaplace:
        """Laplace's value at x (b, d) of the listed rows; its mode is where the next one is sought from."""
        pick = torch.from_numpy(rows)
        unknowns, latents = self.unknowns.select(rows), self.latents.select(pick)
        change = np.clip(x - self.at[rows], -2 * self.caps[rows], 2 * self.caps[rows])
        for j, (move, inner) in enumerate(self.moves):
            unknowns = unknowns.moved(move.select(rows), change[:, j])
            latents = latents.moved(inner.select(pick), torch.from_numpy(change[:, j].copy()))
        outer = self.outer(rows, x)
        enough = self.enough[rows] if tolerance is None else np.full(len(rows), tolerance)
        found = laplace_at(self.arrow, self.eliminator, outer, (unknowns, latents), tolerance=enough)
        if keep:
            self._keep(rows, x, found)
        return found

    def _keep(self, rows: Rows, x: Array, found: ArrowLaplace) -> None:
        sound = np.flatnonzero(np.isfinite(found.value))
        at, pick = rows[sound], torch.from_numpy(sound)
        self.unknowns.border[at] = found.unknowns.border[sound]
        self.unknowns.private[at] = found.unknowns.private[sound]
        self.latents = self.latents.replaced(torch.from_numpy(at), found.latents.select(pick))
        self.at[at] = x[sound]
        prediction = found.prediction
        if not self.moves:
            blank = self.unknowns
            self.moves = [
                (
                    ArrowUnknowns(np.zeros_like(blank.border), np.zeros_like(blank.private)),
                    self.eliminator.zeros(self.genes),
                )
                for _ in prediction.unknowns
            ]
        for j, (step, inner) in enumerate(zip(prediction.unknowns, prediction.latents, strict=True)):
            move, latent = self.moves[j]
            move.border[at], move.private[at] = step.border[sound], step.private[sound]
            self.moves[j] = (move, latent.replaced(torch.from_numpy(at), inner.select(pick)))

    def loss(self, x: Array, found: ArrowLaplace) -> tuple[Array, Array]:
        """Loss (b,) and its gradient (b, d) in x, prior and bounds of hyper-parameters included."""
        value, gradient = found.value.copy(), found.gradient.copy()
        low, high = self.sizes[0] + self.sizes[1], sum(self.sizes)
        if self.log_prior is not None:
            outer = found.mode.outer
            with torch.enable_grad():
                parts = [torch.from_numpy(outer.psi.copy()), outer.sds.clone(), outer.log_hyper.clone()]
                parts = [part.requires_grad_(True) for part in parts]
                density = self.log_prior(*parts)
                slopes = torch.autograd.grad(density.sum(), parts, allow_unused=True, materialize_grads=True)
            value += density.detach().numpy()
            gradient[:, :high] += torch.cat(slopes, 1).numpy()
        own = gradient[:, low:high]
        beyond = ((x[:, low:high] <= LOG_HYPER[0]) & (own < 0)) | ((x[:, low:high] >= LOG_HYPER[1]) & (own > 0))
        gradient[:, low:high] = np.where(beyond, 0.0, own)
        return np.where(np.isfinite(value), -value, np.inf), -gradient

    def evaluate(self, genes: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (b,) and gradient (b, d) of the listed genes (b,) at whitened parameters (b, d)."""
        x = self.parameters(genes, point)
        loss, gradient = self.loss(x, self.laplace(genes.numpy(), x))
        white = np.einsum("bij,bi->bj", self.whitening[genes.numpy()], gradient)
        share = np.nan_to_num(SHARE * (white**2).sum(1), nan=0.0)
        self.enough[genes.numpy()] = np.clip(share, self.tolerance, max(self.tolerance, LOOSE))
        return torch.from_numpy(loss), torch.from_numpy(white)

    def step_limit(self, genes: Tensor, point: Tensor, direction: Tensor) -> Tensor:
        """Longest step that may be tried, (b,)."""
        moved = np.einsum("bij,bj->bi", self.whitening[genes.numpy()], direction.numpy())
        return torch.from_numpy(1 / (np.abs(moved) / self.caps[genes.numpy()]).max(1, initial=1e-12)).clamp_max(1.0)

    def search(
        self, curvature: Array, held: NDArray[np.bool_], *, tolerance: float, max_iter: int
    ) -> tuple[Array, Array, Array, Convergence]:
        """Search from the start: parameters (B, d), losses (B,), norms of gradients (B,) and the record.

        ``curvature`` (B, d, d) is what is expected of groups and coefficients; that of inner effects is their average
        information, that of hyper-parameters is probed. The parameters that are ``held`` (d,) stay.
        """
        n, d = self.origin.shape
        rows = torch.arange(n)
        found = self.laplace(rows.numpy(), self.origin)
        loss, gradient = self.loss(self.origin, found)
        low, middle = self.sizes[0], sum(self.sizes[:2])
        hessian = curvature.copy()
        hessian[:, low:middle, low:middle] = found.inner_information()
        self.whitening = self._whitening(hessian, gradient, held)
        white = np.einsum("bij,bi->bj", self.whitening, gradient)
        record = Convergence.start(n)
        identity = torch.eye(d, dtype=torch.float64).expand(n, d, d).clone()
        first = FirstPoint(
            torch.zeros(n, d, dtype=torch.float64), identity, torch.from_numpy(loss), torch.from_numpy(white)
        )
        options = Options(tolerance=tolerance, max_iter=max_iter)
        y, last, slope = minimize(self, rows, first, convergence=record, options=options)
        return self.parameters(rows, y), last.numpy(), slope.norm(dim=-1).numpy(), record

    def _whitening(self, hessian: Array, gradient: Array, held: NDArray[np.bool_]) -> Array:
        rows, low, middle, high = np.arange(len(hessian)), self.sizes[0], sum(self.sizes[:2]), sum(self.sizes)
        for j in range(middle, high):
            probed = self.origin.copy()
            probed[:, j] += PROBE * self.unit[:, j]
            slope = self.loss(probed, self.laplace(rows, probed, keep=False))[1]
            hessian[:, low:high, j] = (slope - gradient)[:, low:high] / (PROBE * self.unit[:, j, None])
            hessian[:, j, low:middle] = hessian[:, low:middle, j]
        if high > low:
            unit = self.unit[:, low:high, None] * self.unit[:, None, low:high]
            hessian[:, low:high, low:high] = _positive(hessian[:, low:high, low:high] * unit) / unit
        factor = np.linalg.inv(np.swapaxes(np.linalg.cholesky(hessian), 1, 2))
        return np.where(held[:, None], 0.0, factor)


def _positive(matrix: Array) -> Array:
    """Symmetric part of matrices, their eigenvalues made positive."""
    matrix = np.where(np.isfinite(matrix), matrix, 0.0)
    values, vectors = np.linalg.eigh(0.5 * (matrix + np.swapaxes(matrix, 1, 2)))
    return (vectors * np.maximum(np.abs(values), LEAST_CURVATURE)[:, None]) @ np.swapaxes(vectors, 1, 2)
