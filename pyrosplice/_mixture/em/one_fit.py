"""Fit mixtures to cells: standardise, start, run EM, keep the best of the restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyrosplice._mixture.component_order import in_order_of
from pyrosplice._mixture.em.centered import CenteredExpectation
from pyrosplice._mixture.em.loop import EMOptions, EMResult, Expectation, QuadraticExpectation, run_em
from pyrosplice._mixture.em.m_step import Penalty, Standardization
from pyrosplice._mixture.em.missing import MissingExpectation, impute_means, observed_mean_and_variance
from pyrosplice._mixture.em.row_blocks import RowBlocks, require_finite
from pyrosplice._mixture.em.starts import from_means, from_total_covariance, lloyd, seed_means
from pyrosplice._mixture.em.triangular import FEATURES_UP_TO, TriangularExpectation
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType, MixturePriors, SitePriors, weak_prior
from pyrosplice.errors import InvalidArgumentError

Strategy = Literal["random", "kmeans", "kmeans++"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True)
class MixtureForm:
    """Which mixture is fitted, whatever its number of components.

    Attributes
    ----------
    covariance_type
        Form of the covariances.
    prior
        Of weights, means and covariances.
    regularization
        Added to the variances, squared units of the data.
    """

    covariance_type: CovarianceType = "full"
    prior: MixturePriors | SitePriors = None
    regularization: float = 1e-6


@dataclass(frozen=True)
class Problem:
    """B data sets ready for EM.

    Attributes
    ----------
    rows
        The cells.
    standardization
        Standardization of each data set.
    expectation
        Their E-step.
    starter
        The E-step of complete data that starts are made with: ``expectation``, unless values are missing.
    penalty
        Prior and floor.
    named
        Priors that tell components apart, so that starts number them by these; None where they are all alike.
    """

    rows: RowBlocks
    standardization: Standardization
    expectation: Expectation
    starter: QuadraticExpectation
    penalty: Penalty
    named: SitePriors | None = None

    @classmethod
    def of(
        cls,
        rows: RowBlocks,
        form: MixtureForm,
        *,
        n_components: int = 1,
        missing: bool = False,
        features: bool = False,
        centered: bool = False,
    ) -> Problem:
        """Standardise ``rows``.

        The prior is one of ``n_components``, which matters where it has numbers for each or is the weak one;
        ``missing`` marginalises NaN; ``features`` asks for quadratic ones in any dimension; ``centered`` for the slower
        E-step that no tiny variance takes its digits.
        """
        covariance_type, regularization = form.covariance_type, form.regularization
        diagonal: CovarianceType = "spherical" if covariance_type == "spherical" else "diag"
        if missing:
            mean, variance = observed_mean_and_variance(rows)
            to_standard = Standardization.from_covariance(mean, variance, diagonal, regularization)
            complete = impute_means(rows, mean)
            covariance = complete.mean_and_covariance()[1]
        else:
            mean, covariance = rows.mean_and_covariance()
            scaled = diagonal if centered else covariance_type
            to_standard = Standardization.from_covariance(mean, covariance, scaled, regularization)
            complete = rows
        if not bool(mean.isfinite().all() and covariance.isfinite().all()):
            for a, b in rows.spans():
                for own in rows.block(a, b):
                    require_finite(own, a, allow_nan=missing)
            raise InvalidArgumentError("X: values so large that their variances overflow; rescale them.")
        triangular = covariance_type == "full" and rows.dim > FEATURES_UP_TO and not features
        whole = TriangularExpectation if triangular else QuadraticExpectation
        starter = (CenteredExpectation if centered else whole)(complete, to_standard, covariance_type, covariance)
        expectation = MissingExpectation(rows, to_standard, covariance_type) if missing else starter
        known = _priors_of(form.prior, n_components, covariance_type, mean, covariance)
        penalty, named = Penalty.of(known, regularization, to_standard), None if known[0].exchangeable else known[0]
        return cls(rows, to_standard, expectation, starter, penalty, named)

    def start(self, means: Tensor, active: Tensor, *, max_lloyd: int = 0, total: bool = False) -> MixtureParameters:
        """Standardised starting parameters from means ``(B, J, M, D)`` in centred units of the data."""
        if total:
            return self._numbered(from_total_covariance(self.starter, means, active, self.penalty))
        if max_lloyd:
            means = lloyd(self.starter, means, active, max_iter=max_lloyd)
        return self._numbered(from_means(self.starter, means, active, self.penalty)[0])

    def _numbered(self, start: MixtureParameters) -> MixtureParameters:
        if self.named is None:
            return start
        whole = self.standardization.backward(start)
        sets, problems = start.weights.shape[:2]
        index = [(torch.tensor(b), torch.tensor(j)) for b in range(sets) for j in range(problems)]
        each = [in_order_of(self.named, whole.select(pick).to(torch.device("cpu"))) for pick in index]
        parts = [[getattr(one, part) for one in each] for part in ("weights", "means", "covariances")]
        shaped = [torch.stack(part).unflatten(0, (sets, problems)).to(start.means) for part in parts]
        kind = start.covariance_type
        return self.standardization.forward(MixtureParameters(shaped[0], shaped[1], shaped[2], kind))

    def run(self, start: MixtureParameters, options: EMOptions) -> EMResult:
        """EM; the parameters come back in units of the data."""
        result = run_em(self.expectation, start, self.penalty, options)
        return replace(result, parameters=self.standardization.backward(result.parameters))


def _priors_of(
    prior: MixturePriors | SitePriors, n_components: int, kind: CovarianceType, mean: Tensor, covariance: Tensor
) -> list[SitePriors]:
    """Priors of all data sets, or those of each where they are the weak ones of its cells' moments."""
    weak = zip(covariance, mean, strict=True) if isinstance(prior, str) else ()
    given: list[Any] = [weak_prior(*one, n_components) for one in weak] or [prior]
    return [SitePriors.of(one, n_components, mean.shape[-1], kind) for one in given]


def run_carefully(
    make: Callable[[bool], Problem], start: Callable[[Problem], MixtureParameters], options: EMOptions
) -> EMResult:
    """The best of the restarts of one data set; all are run again, centred, where one of them lost its digits.

    Parameters
    ----------
    make
        Makes the problem, centred or not.
    start
        Starting parameters, ``(1, J, M, ...)``.
    options
        Options of EM.
    """
    problem = make(False)
    result = problem.run(start(problem), options)
    best = best_of(result)
    if not bool(result.singular.any()):
        return best
    problem = make(True)
    careful = best_of(problem.run(start(problem), options))
    return best if bool(careful.singular) else careful


def start_one(
    problem: Problem, strategy: Strategy, draws: Tensor, means: Tensor | None = None, *, max_lloyd: int = 100
) -> MixtureParameters:
    """Starting parameters ``(1, R, M, ...)`` of one data set.

    Parameters
    ----------
    problem
        The data.
    strategy
        ``"kmeans"``: k-means++ seeds and Lloyd's iterations. ``"kmeans++"``: the seeds alone. ``"random"``: distinct
        cells, equal weights, the covariance of all cells.
    draws
        Uniform random numbers ``(R, M, T)``.
    means
        ``(M, D)``; overrides ``strategy``: every cell to its nearest mean, one M-step.
    max_lloyd
        Most iterations of k-means.

    Raises
    ------
    InvalidArgumentError
        Fewer distinct cells than components, or a given mean that is nearest to no cell.
    """
    shift = problem.standardization.shift
    n_components = draws.shape[1]
    active = torch.ones(1, 1, n_components, dtype=torch.bool, device=shift.device)
    if means is not None:
        centered = (means.to(shift) - shift)[None, None]
        start, moments = from_means(problem.starter, centered, active, problem.penalty)
        lost = (moments.counts[0, 0] == 0).nonzero()[:, 0].tolist()
        if lost:
            raise InvalidArgumentError(f"init_means: means {lost} are the nearest mean of no cell; give others.")
        return start
    seeds, distinct = seed_means(problem.starter.rows, shift, draws, spread=strategy != "random")
    if int(distinct) < n_components:
        raise InvalidArgumentError(
            f"num_components: found {n_components}, but the data have only {int(distinct)} distinct points."
        )
    return problem.start(seeds, active, max_lloyd=max_lloyd if strategy == "kmeans" else 0, total=strategy == "random")


def best_of(result: EMResult) -> EMResult:
    """The best of the J restarts of each data set, as J = 1; sound fits first."""
    score = torch.where(result.singular, result.objective.new_tensor(-torch.inf), result.objective)
    sets = torch.arange(score.shape[0], device=score.device)[:, None]
    pick = (sets, first_best(score)[:, None])
    rest = (result.log_likelihood, result.objective, result.n_iter, result.converged, result.singular)
    return EMResult(result.parameters.select(pick), *(r[pick] for r in rest))


def first_best(objective: Tensor) -> Tensor:
    """Index of the first of the largest, up to rounding, along the last dimension.

    Restarts often end in one optimum with its labels permuted; rounding must not decide between them.
    """
    largest = objective.amax(-1, keepdim=True)
    return (objective >= largest - 1e-9 * (1 + largest.abs())).to(torch.int8).argmax(-1)
