r"""Spots with a field, with an effect of each spot, or with neither, as groups and coefficients see them.

The inner effects are eliminated by the Newton system of :mod:`pyrosplice.glmm._mode`, at the fixed part
:math:`C b + o`. With J the derivative of η in the inner effects, H their Hessian and :math:`T = H^{-1} J' W C` what
they undo of a change of b,

.. math::
    g = C' (r - W J\, \delta), \qquad M = C' W (C - J T),

δ being their Newton step while b stays. Columns of different supports share a right-hand side, since no field links two
supports: T takes w Q solves, whatever U is.

Under ``isoform_effect="symmetric"`` all of it, b too, is in the coordinates ``basis``, in which isoforms have no order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import matmul, matvec, planar
from pyrosplice._linalg.scaled import ScaledSolver
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.effects._isoform_effect import basis_of, check_isoform_effect
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import InnerGradient, InnerPoint
from pyrosplice.glmm._arrow.support_columns import SupportColumns
from pyrosplice.glmm._importance import posterior_deviations, posterior_form
from pyrosplice.glmm._laplace import Border, EffectMoments
from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.glmm._mode import MixedModel, NewtonStep
from pyrosplice.likelihoods._guarded import guarded

DIFFERENCE = 1e-4  # in the log of a hyper-parameter: central differences of a score are then exact to eight digits


class SpotEliminator:
    """Observations, likelihood and inner effects of all genes; an :class:`~.eliminator.Eliminator`.

    Parameters
    ----------
    problem
        What is fitted; its design and groups are in ``columns`` already.
    columns
        c of each observation, ``(N, w)``.
    supports
        Support of each observation, ``(N,)``: no field may link two of them.

    Attributes
    ----------
    basis
        Coordinates of the predictors in which b and the inner effects are; None for the predictors themselves.

    Raises
    ------
    InvalidArgumentError
        A field without a sparse precision and several supports; one that is truncated.
    """

    def __init__(self, problem: EffectsProblem, columns: Tensor, supports: Tensor):
        check_isoform_effect(
            problem.isoform_effect, share_variance=True, likelihood=problem.likelihood, counts=problem.counts
        )
        self.columns = SupportColumns(columns.to(torch.float64), supports)
        solver, self._latent_supports = _solver(problem, self.columns)
        self.basis = basis_of(problem.isoform_effect, problem.counts)
        self._model = MixedModel(
            problem.counts.to(torch.float64), None, solver, guarded(problem.likelihood, []), self.basis
        )
        self._offset = self.offset_of(problem)
        self.inner = ("space",) * (problem.space is not None) + ("noise",) * problem.noise
        self.hyper = self._model.hyper
        self.n_supports, self.width = self.columns.n_supports, columns.shape[1] * self._model.n_predictors
        self._fields = self.columns.of_predictors(self._model.n_predictors)
        self._bound: tuple[Tensor, Tensor, MixedModel] | None = None

    def zeros(self, genes: Tensor) -> Latents:
        """Inner effects at zero, of the listed genes."""
        return self._model.select(genes).zeros()

    def log_joint(self, at: InnerPoint) -> Tensor:
        """Log density of the counts and of the standardised inner effects, ``(b,)``, without Gaussian constants."""
        return self._model_at(at).log_joint(self._parameters(at), at.latents)

    def linearize(self, at: InnerPoint) -> SpotElimination:
        """Factorise the inner part of the Newton system there.

        Of genes that are not curved there, with the positive part of each spot's information, whose step ascends.
        """
        model, parameters = self._model_at(at), self._parameters(at)
        step = model.newton(parameters, at.latents, fields=self._fields)
        curved = step.curved
        if not model.likelihood.log_concave and not bool(curved.all()):
            step = model.newton(parameters, at.latents, exact=curved, fields=self._fields)
        return SpotElimination(self, step, curved)

    def slope_of(self, elimination: SpotElimination, log_hyper: Tensor) -> Tensor:
        """First-order change of the scores ``(b, N, Q)`` when logs of hyper-parameters change by ``(b, H)``."""
        step = elimination.step
        likelihood = step.model.likelihood

        def score(length: float) -> Tensor:
            logs = length * log_hyper
            moved = {name: getattr(likelihood, name) * logs[:, [h]].exp() for h, name in enumerate(self.hyper)}
            return likelihood.bind(moved).score(step.model.counts, step.eta)

        return (score(DIFFERENCE) - score(-DIFFERENCE)) / (2 * DIFFERENCE)

    def changed(self, sds: Tensor, fixed: Tensor) -> Parameters:
        """Parameters of the mixed model of standard deviations ``(b, I)`` and a fixed part of η, or changes of them."""
        values = dict(zip(self.inner, sds.unbind(1), strict=True))
        zero, q = sds.new_zeros(len(sds)), self._model.n_predictors
        spatial, white = (values.get(name, zero)[:, None].expand(-1, q) for name in ("space", "noise"))
        return Parameters(fixed, spatial, white[:, None])

    def carried(self, elimination: SpotElimination, step: Tensor) -> Latents:
        """Change of the inner effects that a change ``(b, U, w Q)`` of b calls forth, ``−T db``."""
        newton = elimination.step
        c, field = newton.parameters.white, newton.direction.field
        moved = self.columns.spread(step)
        if newton.factor is not None:
            own = step.index_select(1, self._latent_supports) if self.n_supports > 1 else step
            field = -matvec(elimination.absorbed, planar(own))
            moved = moved + newton.model.random_part(newton.parameters, Latents(field, torch.zeros_like(moved)))
        if not newton.noisy:
            return Latents(field, torch.zeros_like(moved))
        return Latents(field, -matvec(newton.white_covariance, matvec(newton.information, moved) * c))

    def _model_at(self, at: InnerPoint) -> MixedModel:
        """The mixed model of those genes with those hyper-parameters; that of the last call where they are the same."""
        known = self._bound
        if known is not None and torch.equal(known[0], at.genes):
            if torch.equal(known[1], at.log_hyper):
                return known[2]
            model = known[2]
        else:
            model = self._model.select(at.genes)
        if self.hyper:
            model = model.bound({name: at.log_hyper[:, [h]].exp() for h, name in enumerate(self.hyper)})
        self._bound = (at.genes.clone(), at.log_hyper.clone(), model)  # which callers may write to
        return model

    def _parameters(self, at: InnerPoint) -> Parameters:
        fixed = self.columns.spread(at.blocks)
        if self._offset is not None:
            fixed = fixed + (self._offset if len(self._offset) == 1 else self._offset[at.genes])
        return self.changed(at.sds, fixed)

    def offset_of(self, problem: EffectsProblem) -> Tensor | None:
        """Offset as ``(1 or G, N, Q)``, in the coordinates of the effects."""
        if problem.offset is None:
            return None
        offset = torch.as_tensor(problem.offset, dtype=torch.float64)
        if offset.ndim == 1:
            offset = offset[None, :, None].expand(1, -1, self._model.n_predictors)
        if self.basis is not None:
            offset = self.basis.coordinates(offset.expand(len(problem.counts), -1, -1))
        return planar(offset)


class SpotElimination:
    """The inner part of the Newton system of some genes at a point, eliminated; an :class:`~.eliminator.Elimination`.

    Parameters
    ----------
    eliminator
        Whose observations they are.
    step
        The Newton system of the inner effects, factorised.
    curved
        Whether each gene's inner Hessian is negative definite, ``(b,)``.
    """

    def __init__(self, eliminator: SpotEliminator, step: NewtonStep, curved: Tensor):
        self.eliminator, self.step, self.curved = eliminator, step, curved
        columns, fields = eliminator.columns, eliminator._fields
        assert step.taken is not None
        self.absorbed = step.taken  # (b, r, Q, w Q)
        self.left_over = step.left_over(fields, self.absorbed)  # (b, N, Q, w Q)
        self.information = columns.gather(matmul(step.effective, self.left_over))
        self.score = columns.gather(self.remaining(step.score, step.direction))
        self.decrement, self.logdet = step.decrement, step.logdet()

    def remaining(self, slope: Tensor, latents: Latents) -> Tensor:
        """What is left of a right-hand side in η ``(b, N, Q)`` for b, ``x − W J δ`` for the inner effects' part δ."""
        moved = self.step.model.random_part(self.step.parameters, latents)
        return slope - matvec(self.step.information, moved)

    def advance(self, step: Tensor) -> Latents:
        """The change of the inner effects that goes with a Newton step ``(b, U, w Q)`` of b."""
        return self.step.direction.moved(self.eliminator.carried(self, step))

    def respond(self, blocks: Tensor, sds: Tensor, log_hyper: Tensor) -> SpotResponse:
        """First-order change of the mode when b's fixed part, sds and logs of hyper-parameters change by these."""
        eliminator, step = self.eliminator, self.step
        if not bool((sds != 0).any()) and not bool((log_hyper != 0).any()):
            return SpotResponse(self, -(self.information @ blocks[..., None])[..., 0], eliminator.carried(self, blocks))
        change = eliminator.changed(sds, eliminator.columns.spread(blocks))
        moved = change.coefficients + step.model.random_part(change, step.latents)
        slope = -matvec(step.information, moved)
        if eliminator.hyper and bool((log_hyper != 0).any()):
            slope = slope + eliminator.slope_of(self, log_hyper)
        latents = step.response(slope, step.score, change)
        return SpotResponse(self, eliminator.columns.gather(self.remaining(slope, latents)), latents)

    def average_information(self, steps: Sequence[Tensor], latents: Sequence[Latents]) -> Tensor:
        """Average information ``(b, I, I)`` of the inner sds, given how b and the inner effects move with each."""
        eliminator, newton = self.eliminator, self.step
        model, units = newton.model, torch.eye(len(steps), dtype=torch.float64)
        none = torch.zeros_like(newton.eta)
        rates = [
            model.random_part(eliminator.changed(unit.expand(len(none), -1), none), newton.latents) for unit in units
        ]
        out = torch.zeros(len(none), len(rates), len(rates), dtype=torch.float64)
        for k, rate in enumerate(rates):
            moved = rate + eliminator.columns.spread(steps[k]) + model.random_part(newton.parameters, latents[k])
            weighted = matvec(newton.information, moved)
            for j, other in enumerate(rates):
                out[:, j, k] = (other * weighted).sum((1, 2))
        return out

    def deviations(self, n_draws: int, generator: torch.Generator) -> Iterator[tuple[Latents, Tensor]]:
        """Draws of the inner effects from their Gaussian given b, less its mean, and their quadratic forms ``(b,)``."""
        for deviation in posterior_deviations(self, n_draws, generator):
            yield deviation, posterior_form(self.step, deviation)

    def measure(self, covariance: Tensor) -> SpotMeasure:
        """Laplace's value at this point, taken for the mode, given the posterior covariance ``(b, U, wQ, wQ)`` of b."""
        return SpotMeasure(self, covariance)


class SpotResponse:
    """How the mode moves; a :class:`~.eliminator.Response`."""

    def __init__(self, elimination: SpotElimination, score: Tensor, latents: Latents):
        self._elimination, self.score, self._latents = elimination, score, latents

    def advance(self, step: Tensor) -> Latents:
        """The change of the inner effects, given that of b ``(b, U, w Q)``."""
        return self._latents.moved(self._elimination.eliminator.carried(self._elimination, step))


class SpotMeasure:
    """Laplace's value and what its gradient needs; an :class:`~.eliminator.InnerMeasure`.

    To ``value`` belongs what the inner effects' own Newton step, b held, does to the determinants to first order: with
    ``tilt`` times a step of b, and half of the whole decrement, value and determinants are those of the mode.
    """

    def __init__(self, elimination: SpotElimination, covariance: Tensor):
        self._elimination, step = elimination, elimination.step
        columns, model = elimination.eliminator.columns, step.model
        self.value = model.log_joint(step.parameters, step.latents) - 0.5 * step.logdet()
        self.raw_score = columns.gather(step.score)
        through = columns.products(elimination.left_over, covariance)
        undone = model.solver.spread(elimination.absorbed.flatten(2)) if model.solver is not None else None
        border = Border(
            matmul(through, elimination.left_over.mT),
            None if undone is None else matmul(through, undone.unflatten(2, elimination.absorbed.shape[2:]).mT),
        )
        self._moments = EffectMoments(step, border)
        self.covariance = self._moments.covariance  # of every predictor, (b, N, Q, Q)
        tilt = model.likelihood.information_gradient(model.counts, step.eta, self.covariance)
        self._tilt = -0.5 * tilt
        moved = model.random_part(step.parameters, step.direction)  # the determinants are carried to the mode
        self.value = self.value + (self._tilt * moved).sum((1, 2))
        self._latents = step.solve(step.pull_back(self._tilt))
        self.tilt = columns.gather(elimination.remaining(self._tilt, self._latents))

    def gradient(self, adjoint: Tensor) -> InnerGradient:
        """Derivatives of the value, given the adjoint's part ``(b, U, w Q)`` in b."""
        elimination, step = self._elimination, self._elimination.step
        eliminator, model = elimination.eliminator, step.model
        latents = self._latents.moved(step.direction).moved(eliminator.carried(elimination, adjoint))
        eta = eliminator.columns.spread(adjoint) + model.random_part(step.parameters, latents)
        residual = step.score + self._tilt - matvec(step.information, eta)
        spatial, white = self._moments.gradients(step.latents, latents, residual, step.score)
        found = {"space": spatial.sum(1), "noise": white.sum((1, 2))}
        sds = [found[name] for name in eliminator.inner]
        none = residual.new_zeros(len(residual), 0)
        hyper = none
        if eliminator.hyper:
            hyper, _ = model.likelihood.hyper_gradient(model.counts, step.eta, eliminator.hyper, eta, self.covariance)
        return InnerGradient(eliminator.columns.gather(residual), torch.stack(sds, 1) if sds else none, hyper)


def _solver(problem: EffectsProblem, columns: SupportColumns) -> tuple[SpatialSolver | None, Tensor]:
    """The field's solver, multiplied by its covariate, and the support of each of its latents."""
    solver, supports = problem.space, columns.supports
    if solver is None:
        if problem.space_by is not None:
            raise InvalidArgumentError("space_by: expected None without a field, which it would multiply. Give space.")
        return None, supports
    if solver.remainder is not None:
        raise InvalidArgumentError(
            "space: expected a covariance that is not truncated, found a low-rank one that leaves variance out. "
            "Use a sparse precision, or all eigenpairs."
        )
    shape: tuple[int, ...] = (len(supports),)
    by = () if problem.space_by is None else problem.space_by.shape
    if (solver.n_spots,) != shape or by not in ((), shape):
        raise InvalidArgumentError(
            f"space: expected a covariance of the {shape[0]} observations and space_by of shape {shape}, found one of "
            f"{solver.n_spots} spots and {by}."
        )
    spots = torch.arange(solver.n_spots, dtype=torch.float64).reshape(1, -1, 1)
    if columns.n_supports == 1:
        supports = supports.new_zeros(solver.n_latent)
    elif solver.n_latent != solver.n_spots or not torch.equal(solver.spread(spots), spots):
        raise InvalidArgumentError(
            f"space: expected a sparse precision where spots are of {columns.n_supports} supports, found "
            f"{type(solver).__name__}, whose field links all spots."
        )
    if problem.space_by is not None:
        solver = ScaledSolver(solver, torch.as_tensor(problem.space_by, dtype=torch.float64))
    return solver, supports
