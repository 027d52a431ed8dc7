"""Fit a generalized linear mixed model with any list of effects to every gene, by Laplace's method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._modes import outside_inference_mode
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_fit import EffectsFit, joined_fits, with_signs
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import Eliminator
from pyrosplice.glmm._arrow.first_values import START_SD, first_coefficients, first_hyper, unit_of
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace
from pyrosplice.glmm._arrow.layout import SupportLayout, equal_rows
from pyrosplice.glmm._arrow.parameter_search import LogPrior, OuterObjective, SearchStart
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.glmm._arrow.standard_columns import StandardColumns
from pyrosplice.glmm._latents import Latents
from pyrosplice.glmm._separation import FAR_LOGIT, separated
from pyrosplice.reasons import OPTIMA, Reason

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
BATCH_BYTES = 2**28  # of the arrays of a batch of genes
MOST_GENES = 64  # of a batch: more gain nothing (10,000 cells, 40 donors)
NO_SPREAD = 1e-3  # dispersion times mean count below which counts are Poisson's
EXPECTED = 1.5  # information of a level about its sd, times the square of it: about, where cells are many (a prototype)
MISSING = (Reason.NO_COUNTS, Reason.SEPARATED, Reason.NO_MODE, Reason.NOT_FINITE)
STALLED_NEAR = 0.01  # norm of a gradient in sqrt(nats), where rounding of modes is all that stops a search in the
# coefficients alone: 5e-5 nats are left at most
FIT_END = 1e-13  # Newton decrement of the modes that are reported, in nats²


@dataclass(frozen=True)
class EffectsOptions:
    """When searches stop.

    Attributes
    ----------
    tolerance
        Norm of the gradient in units of the curvature expected at the start, in sqrt(nats): half its square is about
        what a further step would gain.
    max_iter
        Evaluations of a gene at most.
    mode_tolerance
        Newton decrement of the modes where searches end, in nats²; on the way it is up to 1e-4.
    batch_genes
        Genes that are worked on together; None for as many as stay within 256 MB, 64 at most.
    """

    tolerance: float = 3e-4
    max_iter: int = 150
    mode_tolerance: float = 1e-7
    batch_genes: int | None = None


@outside_inference_mode
def fit_effects(
    problem: EffectsProblem,
    *,
    restricted: bool = True,
    log_prior: LogPrior | None = None,
    options: EffectsOptions | None = None,
) -> EffectsFit:
    """Estimate coefficients, standard deviations, hyper-parameters and random effects of every gene.

    Parameters
    ----------
    problem
        Counts, design, likelihood and effects.
    restricted
        Whether the coefficients are integrated with the effects (restricted likelihood; glmmTMB's ``REML = TRUE``) or
        maximise the marginal likelihood, as ratio tests of coefficients need.
    log_prior
        Log density (b,) of effects' parameters (b, J), inner standard deviations (b, I) and logs of hyper-parameters
        (b, H), differentiable; added to what is maximised. None for flat.
    options
        When to stop.

    Returns
    -------
    EffectsFit
        One gene never changes another; genes without an estimate are NaN, with a reason.

    Raises
    ------
    InvalidArgumentError
        Arrays of the problem do not fit each other, the design has not full rank, or too many effects cross.
    """
    options = options or EffectsOptions()
    _check_problem(problem)
    fitter = _Fitter(problem, restricted, log_prior, options)
    n_genes = len(problem.counts)
    counted = (
        ~np.asarray((problem.counts == 0).flatten(1).all(1)) if problem.likelihood.of_counts else np.ones(n_genes, bool)
    )
    size = options.batch_genes or fitter.batch_size()
    rows, empty = np.flatnonzero(counted), np.flatnonzero(~counted)
    batches = [rows[k : k + size] for k in range(0, len(rows), size)]
    parts = [fitter.fit(batch) for batch in batches]
    if len(empty):
        batches.append(empty)
        parts.append(fitter.nothing(empty, Reason.NO_COUNTS))
    return joined_fits(parts, batches)


@outside_inference_mode
def log_likelihood_given(problem: EffectsProblem, fit: EffectsFit) -> tuple[Tensor, NDArray[np.object_]]:
    """Maximise the marginal log likelihood in the coefficients alone, all else at the estimates of a ``fit``.

    The fit is of the same counts and effects, and may have another design. Returns the maxima ``(G,)``, NaN for genes
    without estimates, and how the searches ended.
    """
    _check_problem(problem)
    fitter = _Fitter(problem, False, None, EffectsOptions())
    given = torch.cat([fit.parameters, fit.sds, *(fit.hyper[name] for name in fitter.eliminator.hyper)], 1)
    value, size = torch.full((len(given),), torch.nan, dtype=torch.float64), fitter.batch_size()
    ended = fit.reason.copy()
    rows = np.flatnonzero(torch.isfinite(given).all(1).numpy())
    for k in range(0, len(rows), size):
        genes = rows[k : k + size]
        value[genes], ended[genes] = fitter.at_estimates(genes, fit)
    return value, ended


@dataclass(frozen=True)
class _Start:
    """Where the search of some genes begins: parameters x (b, d), their curvature (b, d, d), coefficients (b, P Q)."""

    genes: Rows
    x: Array
    curvature: Array
    coefficients: Array

    def select(self, rows: Rows) -> _Start:
        """Take some of the genes."""
        return _Start(self.genes[rows], self.x[rows], self.curvature[rows], self.coefficients[rows])


class _Fitter:
    """Fits batches of the genes of a problem."""

    def __init__(self, problem: EffectsProblem, restricted: bool, log_prior: LogPrior | None, options: EffectsOptions):
        self.problem, self.restricted, self.options = problem, restricted, options
        self._shape = problem.design.shape[1], problem.likelihood.n_predictors(problem.counts.shape[-1])
        self.standard = StandardColumns.of(problem, linear=log_prior is not None)
        self.log_prior = None if log_prior is None else self.standard.log_prior(log_prior)
        self.layout = SupportLayout.of(problem).turned(self.standard.fixed, self.standard.effects)
        self.arrow = Arrow(self.layout, problem.groups, restricted=restricted)
        self.eliminator: Eliminator = eliminator_of(problem, self.layout)
        first = first_coefficients(problem)
        self.coefficients, self.hyper = (
            self.standard.engine_coefficients(first.reshape(len(first), -1)),
            first_hyper(problem),
        )
        self.unit = unit_of(problem)
        diagonal = [np.trace(matrix) > 0 for block in problem.groups for matrix in block.basis]
        self.diagonal = np.array(diagonal, dtype=bool)
        self.distinct = problem.design[equal_rows(np.asarray(problem.design))[0]]

    def batch_size(self) -> int:
        """Genes whose arrays stay within :data:`BATCH_BYTES`."""
        arrow, layout, q = self.arrow, self.layout, self.layout.n_predictors
        maps = 4 * layout.n_supports * layout.width * (arrow.n_local + layout.width)
        unknowns = (arrow.n_parameters + 3) * (arrow.n_border + arrow.n_groups * arrow.n_private)
        dense = 3 * arrow.n_groups * arrow.n_private * arrow.n_border + 3 * arrow.n_border**2
        cells = 6 * len(layout.support) * q * (q + 1)
        space = 0 if self.problem.space is None else self.problem.space.factor_blocks * q**2
        return int(np.clip(BATCH_BYTES // (8 * (maps + unknowns + dense + cells + space)), 1, MOST_GENES))

    def fit(self, genes: Rows) -> EffectsFit:
        """Fit some genes."""
        start = self._start(genes)
        at, norm, record, objective = self._search(start, held=np.zeros(start.x.shape[1], bool))
        late = np.flatnonzero([reason not in OPTIMA for reason in record.reason])
        slanted = np.flatnonzero(~self.diagonal)
        if len(late) and len(slanted):  # from where the slopes are uncorrelated
            second = start.select(late)
            held = np.isin(np.arange(start.x.shape[1]), slanted)
            second = replace(second, x=self._search(second, held=held)[0])
            other, other_norm, other_record, _ = self._search(second, held=np.zeros_like(held))
            better = np.flatnonzero((other_record.best_loss <= record.best_loss[late] + 1e-6).numpy())
            at[late[better]], norm[late[better]] = other[better], other_norm[better]
            for k in better:
                record.reason[late[k]] = other_record.reason[k]
            record.n_iter[late] += other_record.n_iter
        return self._result(start, objective, at, (norm, record))

    def at_estimates(self, genes: Rows, fit: EffectsFit) -> tuple[Tensor, NDArray[np.object_]]:
        """Largest log likelihoods of some genes, all but the coefficients at the estimates of a fit; how they ended."""
        at = torch.from_numpy(genes)
        logs = [fit.hyper[name][at].log().numpy() for name in self.eliminator.hyper]
        psi = self.standard.engine_parameters(fit.parameters[at].numpy())
        x = np.concatenate([psi, fit.sds[at].numpy(), *logs], 1)
        curvature = np.broadcast_to(np.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1]))
        start = self._with_coefficients(_Start(genes, x, curvature, self.coefficients[genes]))
        held = np.arange(start.x.shape[1]) < x.shape[1]
        found, norm, record, objective = self._search(start, held=held)
        end = objective.laplace(np.arange(len(genes)), found, tolerance=FIT_END, keep=False)
        reasons = np.array([reason.value for reason in record.reason], dtype=object)
        reasons[(reasons == Reason.STALLED.value) & (norm < STALLED_NEAR)] = Reason.CONVERGED.value
        reasons[~np.isfinite(end.value)] = Reason.NO_MODE.value
        return torch.from_numpy(end.value), reasons

    def _start(self, genes: Rows) -> _Start:
        unit, n_inner = self.unit[genes, None], len(self.eliminator.inner)
        sds = START_SD * unit * np.concatenate([self.diagonal, np.ones(n_inner)])
        x = np.concatenate([sds, self.hyper[genes]], 1)
        d = x.shape[1]
        curvature = np.zeros((len(genes), d, d))
        curvature[:, range(d), range(d)] = 1.0
        levels = [
            EXPECTED * len(np.unique(block.levels[block.levels >= 0])) * self.layout.n_predictors
            for block in self.problem.groups
            for _ in block.basis
        ]
        curvature[:, range(len(levels)), range(len(levels))] = np.array(levels) / (START_SD * unit) ** 2
        start = _Start(genes, x, curvature, self.coefficients[genes])
        return start if self.restricted else self._with_coefficients(start)

    def _with_coefficients(self, start: _Start) -> _Start:
        """Coefficients among the parameters, at their restricted estimates and with the curvature there."""
        arrow = Arrow(self.layout, self.problem.groups, restricted=True)
        found = self._objective(arrow, start).laplace(np.arange(len(start.genes)), start.x, keep=False)
        n = arrow.n_coefficients
        d = start.x.shape[1]
        precision = np.broadcast_to(np.eye(n), (len(start.genes), n, n)).copy()
        sound = np.isfinite(found.value)
        precision[sound] = np.linalg.inv(found.covariance()[sound])
        curvature = np.zeros((len(start.genes), d + n, d + n))
        curvature[:, :d, :d], curvature[:, d:, d:] = start.curvature, precision
        beta = np.where(sound[:, None], found.unknowns.border[:, :n], start.coefficients)
        return _Start(start.genes, np.concatenate([start.x, beta], 1), curvature, beta)

    def _objective(self, arrow: Arrow, start: _Start) -> OuterObjective:
        """The objective of some genes, unknowns at zero but for the coefficients."""
        unknowns = arrow.zeros(len(start.genes))
        unknowns.border[:, : arrow.n_coefficients] = start.coefficients[:, : arrow.n_coefficients]
        begin = SearchStart(start.x, unknowns, self.unit[start.genes])
        own, tolerance = torch.from_numpy(start.genes), self.options.mode_tolerance
        return OuterObjective(arrow, self.eliminator, own, begin, tolerance=tolerance, log_prior=self.log_prior)

    def _search(self, start: _Start, *, held: NDArray[np.bool_]) -> tuple[Array, Array, Convergence, OuterObjective]:
        objective, options = self._objective(self.arrow, start), self.options
        at, _, norm, record = objective.search(
            start.curvature, held, tolerance=options.tolerance, max_iter=options.max_iter
        )
        return at, norm, record, objective

    def _result(
        self, start: _Start, objective: OuterObjective, at: Array, ended: tuple[Array, Convergence]
    ) -> EffectsFit:
        """Estimates at the end of a search, NaN where there are none."""
        found = objective.laplace(np.arange(len(at)), at, tolerance=FIT_END, keep=False)
        outer, n_fixed = found.mode.outer, self.layout.fixed.shape[2]
        coefficients = found.unknowns.border[:, :n_fixed] if self.restricted else outer.coefficients
        coefficients = self.standard.coefficients(coefficients)
        parameters = self.standard.parameters(outer.psi)
        volume = self.standard.log_volume if self.restricted else 0.0
        reasons = np.array([reason.value for reason in ended[1].reason], dtype=object)
        reasons[~np.isfinite(found.value)] = Reason.NO_MODE.value
        means = self.problem.counts[torch.from_numpy(start.genes)].mean((1, 2)).numpy()
        if self.problem.likelihood.is_negative_binomial and self.eliminator.hyper:
            flat = np.exp(outer.log_hyper[:, 0].numpy()) * means < NO_SPREAD
            reasons[flat & (reasons == Reason.CONVERGED.value)] = Reason.BOUNDARY.value
        reasons[self._separated(start.genes, coefficients)] = Reason.SEPARATED.value
        effects = [self._effect(found, e) for e in range(len(self.problem.groups))]
        fit = EffectsFit(
            coefficients=torch.from_numpy(coefficients.reshape(len(at), *self._shape).copy()),
            covariance=torch.from_numpy(self.standard.covariance(self._covariance(found))),
            parameters=torch.from_numpy(with_signs(parameters, [block.basis for block in self.problem.groups])),
            parameter_names=tuple(name for block in self.problem.groups for name in block.parameters),
            sds=outer.sds.abs(),
            inner=self.eliminator.inner,
            hyper={name: outer.log_hyper[:, k : k + 1].exp() for k, name in enumerate(self.eliminator.hyper)},
            log_likelihood=torch.from_numpy(found.value + volume),
            restricted=self.restricted,
            group_modes=tuple(mode for mode, _ in effects),
            group_sds=tuple(sd for _, sd in effects),
            latents=_positive(found.latents, self.eliminator.inner, outer.sds),
            gradient_norm=torch.from_numpy(ended[0].copy()),
            reason=reasons,
            n_iter=ended[1].n_iter,
            bases=tuple(block.basis for block in self.problem.groups),
            space_values=torch.zeros(len(at), 0, dtype=torch.float64),
        )
        return fit.in_logits(self._root(start.genes)).without([Reason(reason) in MISSING for reason in reasons])

    def _covariance(self, found: ArrowLaplace) -> Array:
        """Covariance (b, P Q, P Q) of the coefficients given the parameters."""
        if self.restricted:
            return found.covariance().copy()
        arrow = Arrow(self.layout, self.problem.groups, restricted=True)
        information = found.mode.system.elimination.information.numpy()
        factor = arrow.factor(arrow.map(found.mode.outer.psi), information)
        return factor.border_covariance[:, : arrow.n_coefficients, : arrow.n_coefficients].copy()

    def _effect(self, found: ArrowLaplace, e: int) -> tuple[Tensor, Tensor]:
        """Modes u (b, D, q, Q) of an effect, and their covariances (b, D, q Q, q Q)."""
        turn = self.standard.expanded(self.standard.effects[e])
        scale = turn @ self.arrow.scales(found.mode.outer.psi)[e][:, None]
        u = (scale @ self.arrow.effects(e, found.unknowns)[..., None])[..., 0]
        covariance = scale @ found.moments.effects(e) @ np.swapaxes(scale, -1, -2)
        return torch.from_numpy(u).unflatten(2, (-1, self.layout.n_predictors)), torch.from_numpy(covariance)

    def _root(self, genes: Rows) -> Tensor | None:
        """Logits of the coordinates that the engine works in, (b, Q, Q); None where they are the same."""
        if self.problem.isoform_effect == "independent":
            return None
        basis = basis_of(self.problem.isoform_effect, self.problem.counts[torch.from_numpy(genes)])
        return None if basis is None else basis.root.reshape(len(genes), *basis.root.shape[-2:])

    def _separated(self, genes: Rows, coefficients: Array) -> NDArray[np.bool_]:
        """Genes of which some coefficient has no finite estimate, whatever the effects."""
        if not self.problem.likelihood.of_counts:
            return np.zeros(len(genes), bool)
        beta = np.nan_to_num(coefficients.reshape(len(genes), *self._shape))
        reach = np.ptp(np.einsum("np,gpq->gnq", self.distinct, beta), axis=1).max(1, initial=0.0)
        far = np.flatnonzero(reach > FAR_LOGIT)
        out = np.zeros(len(genes), bool)
        if len(far):
            design = torch.as_tensor(self.problem.design)
            eta = torch.einsum("np,gpq->gnq", design, torch.from_numpy(beta[far]))
            out[far] = separated(self.problem.counts[torch.from_numpy(genes[far])], design, eta).numpy()
        return out

    def nothing(self, genes: Rows, reason: Reason) -> EffectsFit:
        """Estimates of genes that have none."""
        start = self._start(genes)
        ended = (np.full(len(genes), np.nan), Convergence.start(len(genes)))
        fit = self._result(start, self._objective(self.arrow, start), start.x, ended)
        return replace(fit.without([True] * len(genes)), reason=np.full(len(genes), reason.value, dtype=object))


def _check_problem(problem: EffectsProblem) -> None:
    """Raise unless the arrays of a problem fit each other and the design has full rank."""
    n_genes, n_observations = problem.counts.shape[:2]
    design = np.asarray(problem.design)
    if design.ndim != 2 or len(design) != n_observations:
        raise InvalidArgumentError(f"design: expected shape ({n_observations}, P), found {design.shape}.")
    rank = _rank(design)
    if rank < design.shape[1]:
        raise InvalidArgumentError(
            f"design: expected full rank, found {design.shape[1]} columns of rank {rank}. "
            "Drop those that others add up to."
        )
    n_predictors = problem.likelihood.n_predictors(problem.counts.shape[-1])
    shapes = ((n_observations,), (n_genes, n_observations, n_predictors))
    if problem.offset is not None and np.shape(problem.offset) not in shapes:
        raise InvalidArgumentError(
            f"offset: expected shape {shapes[0]} or {shapes[1]}, found {np.shape(problem.offset)}."
        )
    for name, numbers in (("counts", problem.counts), ("design", design), ("offset", problem.offset)):
        if numbers is not None and not bool(torch.isfinite(torch.as_tensor(numbers)).all()):
            raise InvalidArgumentError(f"{name}: expected finite numbers, found some that are not.")


def _rank(design: Array) -> int:
    """Rank of a design ``(N, P)``; a column far from zero counts by how it varies, where another one is constant."""
    constant = np.ptp(design, axis=0) == 0
    columns = np.where(constant, design, design - design.mean(0)) if constant.any() else design
    size = np.linalg.norm(columns, axis=0)
    return int(np.linalg.matrix_rank(columns / np.where(size > 0, size, 1.0), tol=1e-10)) if design.shape[1] else 0


def _positive(latents: Latents, inner: Sequence[str], sds: Tensor) -> Latents:
    """Inner effects of standard deviations that are not negative: the search knows either sign."""
    sign = {name: torch.where(sds[:, k] < 0, -1.0, 1.0)[:, None, None] for k, name in enumerate(inner)}
    one = torch.ones(1, dtype=torch.float64)
    return Latents(latents.field * sign.get("space", one), latents.noise * sign.get("noise", one))
