"""The search over the sites that are not integrated out, and the Gaussian at its end."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import FirstPoint, Options, minimize
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._optimize.newton import UPWARD, has_curvature
from pyrosplice.guides._marginal_density import CurvedValue, Marginal, MarginalDensity, MarginalValue, OuterLoss
from pyrosplice.guides._searches import IDENTIFIED, FitOptions, Optimum, judged
from pyrosplice.guides._sparsity import vector_products
from pyrosplice.reasons import Reason

STEP = 1e-4  # of differences of the exact gradient, in unconstrained coordinates
LEAST = 1e-3  # of its largest eigenvalue, and of 1: least curvature of the first metric


@dataclass(frozen=True)
class OuterNormal:
    """Gaussian of the outer unknowns, and how the mode of the inner ones follows them.

    ``precision`` ``(G, p, p)``, ``response`` ``(G, m, p)``, ``failed`` the units without a positive definite one.
    """

    precision: Tensor
    response: Tensor
    failed: list[int]


def marginal_optimum(density: MarginalDensity, start: Tensor, rows: Tensor, options: FitOptions) -> Optimum:
    """The mode of the marginal density of some units from ``start`` ``(G, d)``; its point holds all unknowns."""
    curvature, n_units = density.curvature, len(start)
    loss = OuterLoss(density, start[:, curvature.rest], start[:, curvature.columns])
    begin = start[rows][:, curvature.rest]
    at_begin = loss.evaluate(rows, begin)
    at = loss.last
    assert at is not None
    first = FirstPoint(begin, first_metric(density, loss.outer, at)[rows], *at_begin)
    record = Convergence.start(n_units)
    point = begin
    if begin.shape[1]:
        limits = Options(tolerance=options.tolerance, max_iter=options.max_iter)
        point, _, _ = minimize(loss, rows, first, convergence=record, options=limits)
    else:
        record.finish(rows, Reason.CONVERGED)
    outer = loss.outer.index_copy(0, rows, point)
    end = density(outer, loss.inner)
    asked = set(rows.tolist())
    reasons = [
        Reason.RUNNING if unit not in asked else reason if found else Reason.NO_MODE
        for unit, (reason, found) in enumerate(zip(record.reason, end.found.tolist(), strict=True))
    ]
    optimum = Optimum(
        point=curvature.join(outer, end.inner),
        value=end.value,
        gradient=end.gradient,
        reason=reasons,
        identified=has_curvature(end.hessian, IDENTIFIED),
        evaluations=loss.evaluations,
        attempts=torch.ones_like(loss.evaluations),
    )
    return judged(optimum, torch.zeros_like(end.found), options.tolerance)


def first_metric(density: MarginalDensity, outer: Tensor, at: CurvedValue) -> Tensor:
    """First inverse Hessian of the search, ``(G, p, p)``: of the joint density, with the inner sites following."""
    curvature = density.curvature
    if not outer.shape[1]:
        return outer.new_zeros(len(outer), 0, 0)
    with torch.enable_grad():
        unknowns = curvature.join(outer, at.inner).requires_grad_(True)
        value = -curvature.density(unknowns).sum()
        (slope,) = torch.autograd.grad(value, unknowns, create_graph=True)
        seeds = torch.eye(unknowns.shape[1]).to(unknowns)[curvature.rest]
        products = vector_products(slope, unknowns, seeds[:, None].expand(-1, *unknowns.shape), create_graph=False)
    products = products.movedim(0, -1)  # (G, d, p)
    cross, own = products[:, curvature.columns], products[:, curvature.rest]
    own = own - cross.mT @ curvature.solve(at.hessian, cross)
    own = own.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(0.5 * (own + own.mT))
    size = values.abs()
    size = size.clamp_min(LEAST * size.amax(1, keepdim=True).clamp_min(1.0))
    return (vectors / size[:, None]) @ vectors.mT


def outer_normal(marginal: Marginal, outer: Tensor, at: MarginalValue, optimum: Optimum) -> tuple[OuterNormal, Optimum]:
    """The Gaussian at an optimum, by differences of the exact gradient; units that are at no maximum are marked."""
    rows, response = [], []
    for place in range(outer.shape[1]):
        step = torch.zeros_like(outer)
        step[:, place] = STEP
        up, down = marginal(outer + step), marginal(outer - step)
        rows.append((down.gradient - up.gradient) / (2 * STEP))
        response.append((up.inner - down.inner) / (2 * STEP))
    if not rows:
        none = outer.new_zeros(len(outer), 0, 0)
        return OuterNormal(none, outer.new_zeros(len(outer), at.inner.shape[1], 0), []), optimum
    precision = torch.stack(rows, 1)
    precision = 0.5 * (precision + precision.mT)
    curved = has_curvature(precision[:, None], IDENTIFIED)
    upward = ~has_curvature(precision[:, None], -UPWARD)
    reason = [
        Reason.SADDLE if up and was == Reason.CONVERGED else was
        for up, was in zip(upward.tolist(), optimum.reason, strict=True)
    ]
    marked = replace(optimum, reason=reason, identified=optimum.identified & curved)
    return OuterNormal(precision, torch.stack(response, -1), (~curved).nonzero()[:, 0].tolist()), marked
