r"""Joint Newton over location and scale coefficients, one problem a gene, batched.

The step solves the observed information of (a, b), cross block included, and is halved as a whole until the log
density rises. With one common dispersion α the step in it is taken in α itself where α is small: the log density is
smooth there down to and including the boundary α = 0 (Poisson), which is a whole infinity of steps away in log α.
Genes are independent: each stops for itself and says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pyrosplice._expression.engine.pseudo_cells import Derivatives
from pyrosplice._expression.engine.sparse_rows import FitRows
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.likelihoods._contract import Likelihood

BOUNDARY_ZETA = 28.0  # dispersion 7e-13: Poisson to the last digit of any likelihood
DIRECT_ZETA = 20.0  # beyond it, straight to the boundary
LINEAR_FROM = 0.7  # ζ from which a common dispersion is stepped as α rather than log α
MAX_STEP = 3.0  # largest change of a predictor in one step
FLAT_STEP = 1e-3  # a Newton step this long where nothing is left to gain: the optimum is at infinity
ADRIFT = 100.0  # predictors this far out, and still moving: so is theirs
STALLED_DECREMENT = 1e-6


@dataclass(frozen=True)
class NewtonOptions:
    """Stopping rules: ``tol`` bounds the Newton decrement, the likelihood left on the table (natural log units)."""

    tol: float = 1e-9
    max_iter: int = 100
    fit_location: bool = True
    fit_scale: bool = True


LogPrior = Callable[[Tensor, Tensor], Derivatives]  # of theta (g, D) and which genes of the block they are (g,)


@dataclass
class Solution:
    """Where each gene stopped: coefficients ``(G, D)``, log density, code and evaluations ``(G,)``."""

    theta: Tensor
    value: Tensor
    code: Tensor
    n_iter: Tensor


def derivatives(rows: FitRows, likelihood: Likelihood, theta: Tensor) -> Derivatives:
    """Log density of each gene and its first two derivatives in ``theta`` ``(G, P + R)``."""
    return rows.derivatives(likelihood, theta)


@dataclass
class _Active:
    """Genes still moving: best point so far, the step from it, and the fraction of the step on trial."""

    index: Tensor
    base: Tensor
    value: Tensor
    step: Tensor
    fraction: Tensor
    decrement: Tensor
    linear: Tensor  # the last coordinate steps in α
    boundary: Tensor  # held at α = 0
    rescues: Tensor

    @classmethod
    def at(cls, start: Tensor) -> _Active:
        g = start.shape[0]
        no, zero = torch.zeros(g, dtype=torch.bool, device=start.device), start.new_zeros(g)
        index = torch.arange(g, device=start.device)
        return cls(index, start, zero - torch.inf, torch.zeros_like(start), zero + 1, zero, no, no, zero)

    def select(self, genes: Tensor) -> _Active:
        return _Active(*(getattr(self, f.name)[genes] for f in fields(self)))

    def trial(self) -> Tensor:
        """The point to try: ``base + fraction · step``, the dispersion along a straight line in α where ``linear``."""
        move = self.fraction[:, None] * self.step
        point = self.base + move
        shrink = 1 - move[:, -1]  # α' / α
        zeta = self.base[:, -1] - shrink.clamp_min(1e-300).log()
        zeta = torch.where(zeta > DIRECT_ZETA, BOUNDARY_ZETA, zeta)
        point[:, -1] = torch.where(self.linear, zeta, point[:, -1])
        return point


class Newton:
    """The iteration, over the genes that are not done yet.

    Parameters
    ----------
    rows, likelihood
        The problem: what is observed, and its density.
    prior
        A function of ``theta`` ``(g, D)`` and the genes' places in the block ``(g,)`` that returns the
        :class:`Derivatives` of the log prior.
    options
        Stopping rules, and which block of the coefficients to hold.
    """

    def __init__(
        self,
        rows: FitRows,
        likelihood: Likelihood,
        *,
        prior: LogPrior | None = None,
        options: NewtonOptions | None = None,
    ) -> None:
        self.rows, self.likelihood, self.prior = rows, likelihood, prior
        self.options = options or NewtonOptions()
        self.p = rows.x.shape[1]
        d = self.p + rows.z.shape[1]
        scale_moves = self.options.fit_scale and bool(likelihood.free)
        self.one_dispersion = scale_moves and d == self.p + 1 and rows.common_scale and likelihood.is_negative_binomial
        self.held = torch.ones(d, dtype=torch.bool, device=rows.x.device)
        self.held[: self.p] = not self.options.fit_location
        self.held[self.p :] = not scale_moves
        self.reach = torch.cat([rows.x.abs().amax(0), rows.z.abs().amax(0)])  # largest change of a predictor per unit

    def run(self, start: Tensor) -> Solution:
        """Maximise from ``start`` ``(G, D)``; a gene whose density is not finite there fails."""
        g = start.shape[0]
        ran_out = torch.full((g,), int(FitCode.MAX_EPOCHS), dtype=torch.long, device=start.device)
        out = Solution(start.clone(), start.new_full((g,), -torch.inf), ran_out, torch.zeros_like(ran_out))
        active, rows, point = _Active.at(start), self.rows, start
        for iteration in range(1, self.options.max_iter + 1):
            done = self._advance(active, rows, point)
            if bool(done.any()):
                self._finish(out, active, done, iteration)
                keep = (~done).nonzero()[:, 0]
                if not len(keep):
                    return out
                active, rows = active.select(keep), rows.select(keep)
            point = active.trial()
        out.theta[active.index], out.value[active.index] = active.base, active.value
        out.n_iter[active.index] = self.options.max_iter
        adrift = self._length(active.base)[:, 0] * MAX_STEP > ADRIFT
        out.code[active.index[adrift]] = int(FitCode.SEPARATED)
        return out

    def _advance(self, active: _Active, rows: FitRows, point: Tensor) -> Tensor:
        """Take ``point`` where it is no worse and set the next step, else halve the step; which genes are done."""
        d = derivatives(rows, self.likelihood, point)
        if self.prior is not None:
            d = d + self.prior(point, active.index)
        rounding = torch.where(active.decrement < 1e-5, 1e-7, 1e-12 * (1 + active.value.abs()))
        required = 1e-4 * active.fraction * active.decrement - rounding
        better = d.value - active.value >= required
        active.base = torch.where(better[:, None], point, active.base)
        active.value = torch.where(better, d.value, active.value)
        if self.one_dispersion:
            active.boundary = active.base[:, -1] >= DIRECT_ZETA
        linear = active.base[:, -1] > LINEAR_FROM if self.one_dispersion else torch.zeros_like(better)
        step, decrement = self._step(d, linear & ~active.boundary, active.boundary)
        active.step = torch.where(better[:, None], step, active.step)
        active.linear = torch.where(better, linear & ~active.boundary, active.linear)
        active.decrement = torch.where(better, decrement, active.decrement)
        active.fraction = torch.where(better, torch.ones_like(decrement), active.fraction / 2)
        done = (better & (decrement < self.options.tol)) | (active.fraction < 1e-10)
        return done & ~self._rescue(active, rows, d, done & better & active.boundary)

    def _step(self, d: Derivatives, linear: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step ``(G, D)``, shortened to a trusted length, and the slope of the density along it."""
        held = self.held.expand_as(d.gradient)
        if self.one_dispersion:
            held = held.clone()
            held[:, -1] |= boundary
        gradient = d.gradient.masked_fill(held, 0.0)
        information = d.information.masked_fill(held[:, :, None] | held[:, None, :], 0.0)
        information.diagonal(dim1=1, dim2=2).masked_fill_(held, 1.0)
        information[:, -1, -1] -= torch.where(linear, gradient[:, -1], torch.zeros_like(gradient[:, -1]))
        step, definite = solve_ascent(information, gradient)
        long = (self._length(step) > 1).any(1) | (linear & (step[:, -1] > 1)) | ~definite
        some = long.nonzero()[:, 0]
        if len(some):  # far from the optimum: each block for itself, and no further than it can be trusted
            apart = information[some]
            apart[:, : self.p, self.p :] = 0
            apart[:, self.p :, : self.p] = 0
            near = solve_ascent(apart, gradient[some])[0]
            length = self._length(near).clamp_min(1)
            near = torch.cat([near[:, : self.p] / length[:, :1], near[:, self.p :] / length[:, 1:]], 1)
            near[:, -1] = torch.where(linear[some], near[:, -1].clamp_max(1.0), near[:, -1])
            step[some] = near
        return step, (step * gradient).sum(1)

    def _length(self, step: Tensor) -> Tensor:
        """How far a step may move the location and the scale predictor, in units of ``MAX_STEP`` ``(G, 2)``."""
        reach = step.abs() * self.reach
        return torch.stack([reach[:, : self.p].sum(1), reach[:, self.p :].sum(1)], 1) / MAX_STEP

    def _rescue(self, active: _Active, rows: FitRows, d: Derivatives, stopped: Tensor) -> Tensor:
        """Genes that stopped at α = 0 where the density still rises in α: sent back inside, by moments."""
        if not bool(stopped.any()):
            return stopped
        rise = -d.gradient[:, -1] * active.base[:, -1].exp()  # derivative in α at 0
        rescued = stopped & (rise > 1e-7) & (active.rescues < 2)
        genes = rescued.nonzero()[:, 0]
        if len(genes):
            curve = 0.5 * rows.select(genes).mean_sums(active.base[genes, : self.p])[1]
            active.rescues[genes] += 1
            active.step[genes] = 0
            active.step[genes, -1] = -(rise[genes] / curve).log().clamp(-DIRECT_ZETA, 2.0) - active.base[genes, -1]
        return rescued

    def _finish(self, out: Solution, active: _Active, done: Tensor, iteration: int) -> None:
        which = active.index[done]
        step, boundary = active.step[done], active.boundary[done]
        optimal = active.decrement[done] < max(STALLED_DECREMENT, self.options.tol)
        code = torch.full_like(which, int(FitCode.CONVERGED))
        flat = self._length(step) * MAX_STEP > FLAT_STEP
        code[boundary | (flat[:, 1] & (not self.one_dispersion))] = int(FitCode.POISSON_BOUNDARY)
        code[flat[:, 0]] = int(FitCode.SEPARATED)
        code[~optimal] = int(FitCode.STALLED)
        code[~optimal & ~torch.isfinite(active.value[done])] = int(FitCode.NOT_FINITE)
        final = optimal & ~flat.any(1) & (active.fraction[done] == 1)  # the last step is too short to need a look
        out.theta[which] = active.base[done] + torch.where(final[:, None], step, torch.zeros_like(step))
        out.value[which] = active.value[done] + torch.where(final, active.decrement[done] / 2, 0.0)
        out.code[which], out.n_iter[which] = code, iteration


def solve_ascent(information: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Newton step ``H⁻¹ g``, or ``|H|⁻¹ g`` where H is not positive definite; and whether it was."""
    factor, info = torch.linalg.cholesky_ex(information)
    step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
    definite = (info == 0) & torch.isfinite(step).all(1)
    bad = (~definite).nonzero()[:, 0]
    if len(bad):
        h = torch.nan_to_num(information[bad], nan=0.0, posinf=1e300, neginf=-1e300)
        size = h.diagonal(dim1=1, dim2=2).abs().sqrt().clamp_min(1e-150)
        values, vectors = torch.linalg.eigh(h / (size[:, :, None] * size[:, None, :]))
        inner = (vectors.mT @ (torch.nan_to_num(gradient[bad]) / size).unsqueeze(-1)).squeeze(-1)
        inner = inner / values.abs().clamp_min(1e-8)
        step[bad] = (vectors @ inner.unsqueeze(-1)).squeeze(-1) / size
    return step, definite
