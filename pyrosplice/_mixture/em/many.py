"""Many small mixtures at once: data sets × numbers of components × restarts as a few padded tensor programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pyrosplice._mixture.em.loop import CACHE_BYTES, EMOptions, EMResult, QuadraticExpectation, block_size, why_ended
from pyrosplice._mixture.em.m_step import Standardization
from pyrosplice._mixture.em.one_fit import MixtureForm, Problem, first_best
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.starts import seed_means, uniforms
from pyrosplice._mixture.em.sufficient_statistics import coefficients, n_features
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType, MixturePrior
from pyrosplice.reasons import Reason

MAX_PADDING = 1.3
MAX_LLOYD = 10  # k-means iterations before EM
MEMORY = CACHE_BYTES  # that the features and responsibilities of one program may take


@dataclass(frozen=True)
class Fit:
    """One fitted mixture.

    Attributes
    ----------
    parameters
        ``(M,)``, ``(M, D)`` and covariances, units of the data.
    log_likelihood, objective
        Log likelihood of its cells; the objective per cell, with the prior.
    n_iter, converged
        EM iterations; whether the tolerance was met.
    singular
        A covariance stopped being positive definite.
    distinct
        Number of distinct cells found for its components to start from; fewer than M leaves components empty.
    """

    parameters: MixtureParameters
    log_likelihood: float
    objective: float
    n_iter: int
    converged: bool
    singular: bool
    distinct: int

    @property
    def reason(self) -> Reason:
        """How the fit ended."""
        few = self.distinct < self.parameters.n_components and not self.singular
        return Reason.FEW_CELLS if few else why_ended(converged=self.converged, singular=self.singular)


def fit_many(
    sets: Sequence[Tensor],
    components: Sequence[int],
    form: MixtureForm,
    *,
    n_init: int = 1,
    options: EMOptions | None = None,
    seed: int = 0,
) -> list[dict[int, Fit]]:
    """Fit every data set with every number of components; a data set's result does not depend on the others.

    Parameters
    ----------
    sets
        Matrices ``(N_b, D)``, of any sizes.
    components
        Candidate numbers of components M.
    form, options
        As for one mixture.
    n_init
        k-means++ restarts of each; the best is kept.
    seed
        Seed of the restarts, the same random numbers for each data set.

    Returns
    -------
    For each data set, the best fit for each number of components.
    """
    draws = uniforms(n_init, max(components), seed)
    options = options or EMOptions()
    quiet = EMOptions(max_iter=options.max_iter, tolerance=options.tolerance)

    def run(problem: Problem, seeds: Tensor, group: Sequence[int]) -> EMResult:
        means, active = _candidates(seeds, group)
        return problem.run(problem.start(means, active, max_lloyd=MAX_LLOYD), quiet)

    alike = form.prior is None or isinstance(form.prior, MixturePrior)  # whatever the number of components
    groups = [(1, group) for group in _component_groups(components)] if alike else [(k, [k]) for k in components]
    out: list[dict[int, Fit]] = [{} for _ in sets]
    buckets = _buckets(sets, components, form.covariance_type, n_init)
    for bucket in tqdm(buckets, desc="mixtures", disable=not options.progress):
        rows = _rows([sets[b] for b in bucket], form.covariance_type)
        problem, made_for = Problem.of(rows, form, n_components=groups[0][0]), groups[0][0]
        seeds, distinct = seed_means(rows, problem.standardization.shift, draws)
        for n, group in groups:
            problem, made_for = (problem if n == made_for else Problem.of(rows, form, n_components=n)), n
            result = run(problem, seeds, group)
            for i, b in enumerate(bucket):
                fits = _best_fits(result, i, group, n_init, int(distinct[i]))
                if bool(result.singular[i].any()):
                    alone = _rows([sets[b]], form.covariance_type)
                    careful = Problem.of(alone, form, n_components=n, centered=True)
                    again = _best_fits(run(careful, seeds[i : i + 1], group), 0, group, n_init, int(distinct[i]))
                    fits |= {k: fit for k, fit in again.items() if not fit.singular}
                out[b].update(fits)
    return [{k: fits[k] for k in components} for fits in out]


def _rows(sets: Sequence[Tensor], covariance_type: CovarianceType) -> RowBlocks:
    if len(sets) == 1:
        return RowBlocks.from_tensor(sets[0], size=block_size(sets[0].shape[1], covariance_type))
    return RowBlocks.padded(sets)


def _buckets(
    sets: Sequence[Tensor], components: Sequence[int], covariance_type: CovarianceType, n_init: int
) -> list[list[int]]:
    """Data sets of similar size together, as many as fit into ``MEMORY``."""
    widest = max(max(g) * len(g) for g in _component_groups(components)) * n_init
    per_cell = 8 * (n_features(sets[0].shape[1], covariance_type) + 2 * widest)
    buckets: list[list[int]] = []
    for b in sorted(range(len(sets)), key=lambda i: -len(sets[i])):
        longest = len(sets[buckets[-1][0]]) if buckets else 0
        fits = buckets and (len(buckets[-1]) + 1) * longest * per_cell <= MEMORY
        if fits and longest <= MAX_PADDING * len(sets[b]):
            buckets[-1].append(b)
        else:
            buckets.append([b])
    return buckets


def _component_groups(components: Sequence[int]) -> list[list[int]]:
    """Numbers of components that are padded to one another: those with the same power of two above them."""
    groups: dict[int, list[int]] = {}
    for k in sorted(set(components)):
        groups.setdefault((k - 1).bit_length(), []).append(k)
    return list(groups.values())


def _candidates(seeds: Tensor, group: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Means ``(B, len(group) · R, M, D)`` and active components ``(1, len(group) · R, M)`` of nested seeds."""
    widest, n_init = max(group), seeds.shape[1]
    active = torch.arange(widest, device=seeds.device) < torch.tensor(group, device=seeds.device)[:, None]
    active = active.repeat_interleave(n_init, 0)[None]
    return seeds[:, :, :widest].repeat(1, len(group), 1, 1), active


def _best_fits(result: EMResult, i: int, group: Sequence[int], n_init: int, distinct: int) -> dict[int, Fit]:
    """The best restart of data set ``i`` for each number of components."""
    fits = {}
    p = result.parameters
    for g, k in enumerate(group):
        score = torch.where(result.singular[i], -torch.inf, result.objective[i])[g * n_init : (g + 1) * n_init]
        j = g * n_init + int(first_best(score))
        covariances = p.covariances[i, j] if p.covariance_type == "tied" else p.covariances[i, j, :k]
        own = MixtureParameters(p.weights[i, j, :k], p.means[i, j, :k], covariances, p.covariance_type)
        likelihood, objective = float(result.log_likelihood[i, j]), float(result.objective[i, j])
        flags = bool(result.converged[i, j]), bool(result.singular[i, j])
        fits[k] = Fit(own, likelihood, objective, int(result.n_iter[i, j]), *flags, distinct)
    return fits


def log_joint_of_cells(sets: Sequence[Tensor], parameters: Sequence[Sequence[MixtureParameters]]) -> list[list[Tensor]]:
    """Log joint densities ``(N_b, M)`` of each data set's cells under each of its mixtures.

    The features of a data set are made once for all of its mixtures.
    """
    return [_log_joint(cells, own) for cells, own in zip(sets, parameters, strict=True)]


def _log_joint(cells: Tensor, mixtures: Sequence[MixtureParameters]) -> list[Tensor]:
    kind: CovarianceType = "full" if mixtures[0].covariance_type == "tied" else mixtures[0].covariance_type
    rows = RowBlocks.from_tensor(cells, size=block_size(cells.shape[1], kind))
    mean, covariance = rows.mean_and_covariance()
    to_standard = Standardization.from_covariance(mean, covariance, kind, 0.0)
    tables = []
    for p in mixtures:
        full = p.covariance_matrices() if kind == "full" else p.covariances
        lead = MixtureParameters(p.weights, p.means, full, kind).select((None, None))  # type: ignore[arg-type]
        tables.append(coefficients(to_standard.forward(lead))[0][0, 0])
    table = torch.cat(tables)
    expectation = QuadraticExpectation(rows, to_standard, kind, covariance)
    scores = torch.cat([(table @ features[0]).mT for features, _ in expectation.features()])
    return list((scores + to_standard.log_det()).split([p.n_components for p in mixtures], 1))


def best_components(scores: Mapping[int, float]) -> int:
    """The number of components with the smallest criterion; the fewer on a tie."""
    return min(sorted(scores), key=lambda k: scores[k])
