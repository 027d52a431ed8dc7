"""Laplace's method for any list of effects by dense algebra and autograd, written as the model is; no engine's code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.glmm._arrow.effects_problem import EffectsProblem


@dataclass(frozen=True)
class Values:
    """Parameters of one gene.

    Attributes
    ----------
    psi
        One vector ``(J,)`` a group effect.
    space, noise
        Standard deviations, numbers.
    log_hyper
        ``(H,)``.
    coefficients
        B ``(P, Q)``; None where they are integrated out (restricted likelihood).
    """

    psi: tuple[Tensor, ...] = ()
    space: Tensor | None = None
    noise: Tensor | None = None
    log_hyper: Tensor | None = None
    coefficients: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Values:
        """Copy with every tensor changed."""
        psi = tuple(change(p) for p in self.psi)
        rest = {name: None if x is None else change(x) for name, x in vars(self).items() if name != "psi"}
        return Values(psi, **rest)

    def gradient(self, value: Tensor) -> Values:
        """Derivatives of a number in every tensor."""
        rest = [x for name, x in vars(self).items() if name != "psi" and x is not None]
        found = iter(torch.autograd.grad(value, [*self.psi, *rest]))
        return self.each(lambda _: next(found))


class DenseModel:
    """The joint density of one gene's counts and of all its standardised latents (and of B, if it has no value).

    Parameters
    ----------
    problem
        What is fitted.
    gene
        Which gene.
    """

    def __init__(self, problem: EffectsProblem, gene: int = 0) -> None:
        self.problem, self.counts = problem, problem.counts[gene].double()
        self.n, self.q = len(self.counts), problem.likelihood.n_predictors(self.counts.shape[-1])
        offset = torch.zeros(self.n, self.q) if problem.offset is None else torch.as_tensor(problem.offset)
        offset = offset[gene] if offset.ndim == 3 else offset
        self.offset = (offset[:, None] if offset.ndim == 1 else offset).double().expand(self.n, self.q)
        self.design = torch.as_tensor(problem.design)
        between = torch.eye(self.q, dtype=torch.float64)
        self.between = torch.linalg.cholesky(between + 1 if problem.isoform_effect == "symmetric" else between)
        if problem.space is not None:
            self.root = torch.linalg.cholesky(problem.space.dense_covariance())
            if problem.space_by is not None:
                self.root = torch.as_tensor(problem.space_by)[:, None] * self.root

    def sizes(self, values: Values) -> list[tuple[int, int]]:
        """Rows and columns of B, of the effects of each group, of the field and of the noise."""
        rows = [len(self.design.T) if values.coefficients is None else 0]
        rows += [len(g.level_names) * g.columns.shape[1] for g in self.problem.groups]
        rows += [self.n * (self.problem.space is not None), self.n * self.problem.noise]
        return [(r, self.q) for r in rows]

    def log_joint(self, flat: Tensor, values: Values) -> Tensor:
        """Log density of counts and latents, without the Gaussian constants."""
        sizes = self.sizes(values)
        parts = [p.reshape(s) for p, s in zip(flat.split([r * q for r, q in sizes]), sizes, strict=True)]
        coefficients, *effects = parts
        eta = self.offset + self.design @ (coefficients if values.coefficients is None else values.coefficients)
        for group, psi, latent in zip(self.problem.groups, values.psi, effects, strict=False):
            width = group.columns.shape[1]
            v = latent.reshape(len(group.level_names), width, self.q)
            if group.root is not None:
                v = torch.einsum("de,ejq->djq", torch.as_tensor(group.root), v)
            scale = torch.einsum("j,jkl->kl", psi, torch.as_tensor(group.basis))
            u = torch.einsum("kl,dlq->dkq", scale, v) @ self.between.T
            levels = torch.as_tensor(group.levels)
            moved = torch.einsum("nk,nkq->nq", torch.as_tensor(group.columns), u[levels.clamp_min(0)])
            eta = eta + moved * (levels >= 0)[:, None]
        if self.problem.space is not None:
            eta = eta + values.space * (self.root @ effects[-2] @ self.between.T)
        if self.problem.noise:
            eta = eta + values.noise * (effects[-1] @ self.between.T)
        likelihood, names = self.problem.likelihood, self.problem.likelihood.free
        if names:
            likelihood = likelihood.bind({name: values.log_hyper[[h]].exp() for h, name in enumerate(names)})
        prior = sum(((e * e).sum() for e in effects), torch.zeros((), dtype=torch.float64))
        return likelihood.log_prob(self.counts, eta).sum() - 0.5 * prior

    def mode(self, values: Values) -> Tensor:
        """Most likely latents, by Newton's method with halved steps."""
        fixed = values.each(Tensor.detach)
        joint = lambda x: self.log_joint(x, fixed)  # noqa: E731
        flat = torch.zeros(sum(r * q for r, q in self.sizes(values)), dtype=torch.float64)
        for _ in range(200 if len(flat) else 0):
            gradient, hessian = torch.func.grad(joint)(flat), -torch.func.hessian(joint)(flat)
            if not bool(torch.linalg.cholesky_ex(hessian)[1] == 0):
                low, vectors = torch.linalg.eigh(hessian)
                hessian = (vectors * low.abs().clamp_min(1e-3)) @ vectors.T
            step, length = torch.linalg.solve(hessian, gradient), 1.0
            while length > 1e-6 and not bool(joint(flat + length * step) >= joint(flat) - 1e-9):
                length /= 2
            flat = flat + length * step
            if float(gradient @ step) < 1e-22:
                break
        return flat

    def laplace(self, values: Values) -> Tensor:
        """Log marginal likelihood by Laplace's method, differentiable in the values."""
        flat = self.mode(values)
        joint = lambda x: self.log_joint(x, values)  # noqa: E731
        if not len(flat):
            return joint(flat)
        curvature = torch.func.hessian(joint)(flat).detach()
        # one more step that autograd sees: it moves nothing, and carries the derivative of the mode
        flat = flat - torch.linalg.solve(curvature, torch.func.grad(joint)(flat))
        hessian, (rows, q) = -torch.func.hessian(joint)(flat), self.sizes(values)[0]
        return joint(flat) - 0.5 * torch.logdet(hessian) + 0.5 * rows * q * math.log(2 * math.pi)
