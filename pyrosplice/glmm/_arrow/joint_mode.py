"""The joint mode of all unknowns of a batch of genes, by Newton's method with a line search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.glmm._arrow.arrow import Arrow, ArrowFactor, ArrowUnknowns
from pyrosplice.glmm._arrow.eliminator import Elimination, Eliminator, InnerPoint
from pyrosplice.glmm._mode import Latents

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
FAR = 0.1  # decrement above which a step is held against the joint density: Newton's steps of less never overshoot
NEAR = 1e-4  # decrement at which a step is taken for the last: the next one is its square, about
STALLED = 1e-9  # decrement below which one that no longer falls is rounding
HALVINGS = 30
MOST_STEPS = 60


@dataclass(frozen=True)
class OuterPoint:
    """What the marginal likelihood is a function of, of b genes.

    Attributes
    ----------
    genes : (b,)
        Which of the problem.
    psi : (b, J)
        Parameters of the groups' effects.
    sds, log_hyper : (b, I), (b, H)
        Standard deviations of the inner effects, logs of hyper-parameters.
    coefficients : (b, P Q)
        Those that are not integrated; (b, 0) under the restricted likelihood.
    """

    genes: Tensor
    psi: Array
    sds: Tensor
    log_hyper: Tensor
    coefficients: Array

    def select(self, rows: Rows) -> OuterPoint:
        """Take some of the genes."""
        at = torch.from_numpy(rows)
        return OuterPoint(self.genes[at], self.psi[rows], self.sds[at], self.log_hyper[at], self.coefficients[rows])


@dataclass(frozen=True)
class NewtonSystem:
    """The Newton system at a point, solved: ``step`` and its ``decrement`` (b,); ``definite`` (b,) of the Hessian."""

    elimination: Elimination
    factor: ArrowFactor
    step: ArrowUnknowns
    decrement: Array
    definite: NDArray[np.bool_]


@dataclass(frozen=True)
class JointMode:
    """The joint mode.

    Attributes
    ----------
    outer
        The parameters.
    unknowns, latents
        Where ``system`` is; its step leads from there to the mode.
    found : (b,)
        Whether the gene has a mode, and it was found.
    """

    outer: OuterPoint
    unknowns: ArrowUnknowns
    latents: Latents
    system: NewtonSystem
    found: NDArray[np.bool_]


class ModeSearch:
    """Finds joint modes of the unknowns of an arrow and the inner effects of an eliminator."""

    def __init__(self, arrow: Arrow, eliminator: Eliminator):
        self.arrow, self.eliminator = arrow, eliminator

    def blocks(self, outer: OuterPoint, map_: Array, unknowns: ArrowUnknowns) -> Array:
        """Coefficients of each support, (b, U, w)."""
        out = self.arrow.blocks_of(map_, unknowns)
        if outer.coefficients.shape[1]:
            out += np.einsum("uwp,bp->buw", self.arrow.layout.fixed, outer.coefficients)
        return out

    def point(self, outer: OuterPoint, map_: Array, unknowns: ArrowUnknowns, latents: Latents) -> InnerPoint:
        """Write the point as eliminators take it."""
        blocks = torch.from_numpy(self.blocks(outer, map_, unknowns))
        return InnerPoint(outer.genes, outer.sds, outer.log_hyper, blocks, latents)

    def log_joint(self, outer: OuterPoint, map_: Array, unknowns: ArrowUnknowns, latents: Latents) -> Array:
        """Joint log density (b,), without the groups' Gaussian constants."""
        value = self.eliminator.log_joint(self.point(outer, map_, unknowns, latents)).numpy()
        return value - 0.5 * unknowns.dot(self.arrow.prior_slope(unknowns))

    def system(self, outer: OuterPoint, map_: Array, unknowns: ArrowUnknowns, latents: Latents) -> NewtonSystem:
        """Factorise and solve at a point; where the Hessian is indefinite, with the information made positive."""
        elimination = self.eliminator.linearize(self.point(outer, map_, unknowns, latents))
        information = elimination.information.numpy()
        factor = self.arrow.factor(map_, information)
        finite = np.isfinite(information).all((1, 2, 3))
        definite = np.isfinite(factor.logdet) & elimination.curved.numpy()
        turn = ~np.isfinite(factor.logdet) & finite
        if turn.any():
            information = information.copy()
            values, vectors = np.linalg.eigh(information[turn])
            floor = 1e-6 * np.abs(values).max((1, 2), keepdims=True)
            information[turn] = (vectors * np.maximum(np.abs(values), floor)[..., None, :]) @ np.swapaxes(
                vectors, -1, -2
            )
            factor = self.arrow.factor(map_, information)
        rhs = self.arrow.pull(map_, elimination.score.numpy())
        prior = self.arrow.prior_slope(unknowns)
        rhs = ArrowUnknowns(rhs.border - prior.border, rhs.private - prior.private)
        step = factor.solve(rhs)
        decrement = elimination.decrement.numpy() + rhs.dot(step)
        return NewtonSystem(elimination, factor, step, decrement, definite & np.isfinite(decrement))

    def find(self, outer: OuterPoint, unknowns: ArrowUnknowns, latents: Latents, *, tolerance: float) -> JointMode:
        """Go from a point to the mode, up to a last step with a decrement of at most ``tolerance`` nats².

        The joint density of a gene never falls. A step is checked where its decrement is not small, or is not smaller
        than that of the step before.
        """
        map_ = self.arrow.map(outer.psi)
        before = np.full(len(map_), np.inf)
        ended = np.zeros(len(map_), bool)
        for _ in range(MOST_STEPS):
            system = self.system(outer, map_, unknowns, latents)
            stalled = (system.decrement < STALLED) & (system.decrement > 0.5 * before)
            done = system.definite & ((system.decrement <= tolerance) | stalled)
            lost = ~np.isfinite(system.decrement) | ended
            rows = np.flatnonzero(~done & ~lost)
            if not len(rows):
                break
            before = np.where(np.isfinite(system.decrement), system.decrement, np.inf)
            moved = self._approach(outer.select(rows), map_[rows], unknowns.select(rows), latents, (rows, system))
            unknowns, latents = _replaced(unknowns, rows, moved[0]), latents.replaced(torch.from_numpy(rows), moved[1])
            ended[rows[moved[2]]] = True
        return JointMode(outer, unknowns, latents, system, done & ~lost)

    def _approach(
        self,
        outer: OuterPoint,
        map_: Array,
        unknowns: ArrowUnknowns,
        latents: Latents,
        taken: tuple[Rows, NewtonSystem],
    ) -> tuple[ArrowUnknowns, Latents, NDArray[np.bool_]]:
        """Newton steps of some genes, from a system of all genes, until a step is small enough to be the last."""
        rows, system = taken
        at = torch.from_numpy(rows)
        near = np.inf if 2 * len(rows) > len(system.decrement) else NEAR  # most of all: they go on together
        step, decrement, own = system.step.select(rows), system.decrement[rows], latents.select(at)
        inner = system.elimination.advance(
            torch.from_numpy(self.arrow.blocks_of(system.factor.map, system.step))
        ).select(at)
        stuck, before = np.zeros(len(rows), bool), np.full(len(rows), np.inf)
        live = np.arange(len(rows))
        for _ in range(MOST_STEPS):
            part, lat = unknowns.select(live), own.select(torch.from_numpy(live))
            checked = (decrement > FAR) | (decrement > before[live])
            part, lat, short = self._line_search(
                (outer.select(live), map_[live]), (part, lat), (step, inner), decrement, checked
            )
            unknowns, own = _replaced(unknowns, live, part), own.replaced(torch.from_numpy(live), lat)
            stuck[live] = short
            before[live] = decrement
            live = live[(decrement > near) & ~short]
            if not len(live):
                break
            lat = own.select(torch.from_numpy(live))
            next_ = self.system(outer.select(live), map_[live], unknowns.select(live), lat)
            step, decrement = next_.step, next_.decrement
            inner = next_.elimination.advance(torch.from_numpy(self.arrow.blocks_of(map_[live], step)))
            bad = ~np.isfinite(decrement)
            if bad.any():
                stuck[live[bad]] = True
                keep = np.flatnonzero(~bad)
                live, step, decrement = live[keep], step.select(keep), decrement[keep]
                inner = inner.select(torch.from_numpy(keep))
                if not len(live):
                    break
        return unknowns, own, stuck

    def _line_search(
        self,
        at: tuple[OuterPoint, Array],
        start: tuple[ArrowUnknowns, Latents],
        step: tuple[ArrowUnknowns, Latents],
        decrement: Array,
        checked: NDArray[np.bool_],
    ) -> tuple[ArrowUnknowns, Latents, NDArray[np.bool_]]:
        """Take the steps, those of the ``checked`` genes halved until the joint density rises; who finds none stays."""
        length = np.ones(len(decrement))
        rows = np.flatnonzero(checked)
        if len(rows):
            outer, map_ = at[0].select(rows), at[1][rows]
            pick = torch.from_numpy(rows)
            unknowns, latents = start[0].select(rows), start[1].select(pick)
            step_u, step_l = step[0].select(rows), step[1].select(pick)
            value, own = self.log_joint(outer, map_, unknowns, latents), np.ones(len(rows))
            for _ in range(HALVINGS):
                trial = latents.moved(step_l, torch.from_numpy(own))
                reached = self.log_joint(outer, map_, unknowns.moved(step_u, own), trial)
                short = ~(reached >= value + 1e-4 * own * decrement[rows] - 1e-11 * np.abs(value))
                if not short.any():
                    break
                own = np.where(short, 0.5 * own, own)
            length[rows] = np.where(short, 0.0, own)
        moved = start[1].moved(step[1], torch.from_numpy(length))
        return start[0].moved(step[0], length), moved, length == 0.0


def _replaced(unknowns: ArrowUnknowns, rows: Rows, others: ArrowUnknowns) -> ArrowUnknowns:
    border, private = unknowns.border.copy(), unknowns.private.copy()
    border[rows], private[rows] = others.border, others.private
    return ArrowUnknowns(border, private)
