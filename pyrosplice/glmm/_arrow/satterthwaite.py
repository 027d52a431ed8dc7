r"""Degrees of freedom of contrasts of coefficients, by Satterthwaite's method, and of F tests (Fai and Cornelius).

The variance of a contrast, :math:`V = c' \operatorname{Cov}(\hat\beta) c`, is a function of the estimated parameters x
(standard deviations, logs of hyper-parameters). With A their covariance, the inverse of minus the second derivative of
the restricted log likelihood,

.. math:: \nu = \frac{2 V^2}{\nabla V' A \nabla V} .

Derivatives are differences of exact gradients and covariances, one evaluation a parameter. For several rows at once the
contrasts are turned to uncorrelated ones, and :math:`\nu = 2 E / (E - R)` with :math:`E = \sum_m \nu_m / (\nu_m - 2)`.
Source: Fai & Cornelius (1996), J. Stat. Comput. Simul. 54:363; Kuznetsova et al. (2017), J. Stat. Softw. 82(13), whose
``lmerTest`` has 2 where any of the :math:`\nu_m` is not above 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._modes import outside_inference_mode
from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.first_values import unit_of
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.parameter_search import LogPrior, OuterObjective, SearchStart
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.glmm._arrow.standard_columns import StandardColumns

Array = NDArray[np.float64]
STEP = 0.005  # difference of a parameter to either side, in units of the data or logs: a tenth of it is lost in the
# rounding of 10⁷ counts, whose degrees of freedom came out as 3 for 7
NEAR_ZERO = 0.04  # how far differences of a small sd reach, since nothing has a slope at zero (0.02 in a prototype)
MOST = 1e9  # degrees of freedom of a contrast whose variance does not move
LEAST_CURVATURE = 1e-3  # of a parameter that the likelihood says nothing about, in those units
MODE = 1e-14  # Newton decrement of the modes, in nats²
BATCH = 64  # genes worked on together


@dataclass(frozen=True)
class CovarianceLaw:
    """How the covariance of the coefficients of G genes moves with the parameters, and how uncertain these are.

    Attributes
    ----------
    covariance : (G, P Q, P Q)
        Of the coefficients, given the parameters.
    slopes : (G, d, P Q, P Q)
        Its derivatives in the parameters of the engine (:mod:`pyrosplice.glmm._arrow.standard_columns`).
    parameter_covariance : (G, d, d)
        A, of these parameters.
    """

    covariance: Tensor
    slopes: Tensor
    parameter_covariance: Tensor

    def take(self, genes: Tensor) -> CovarianceLaw:
        """Take some of the genes."""
        return CovarianceLaw(self.covariance[genes], self.slopes[genes], self.parameter_covariance[genes])

    def df(self, rows: Tensor) -> Tensor:
        """Degrees of freedom (G,) of the test that all contrasts (R, P Q) are zero: Satterthwaite's of a single one."""
        matrix = rows @ self.covariance @ rows.mT
        sound = torch.isfinite(matrix).all(-1).all(-1) & torch.isfinite(self.parameter_covariance).all(-1).all(-1)
        identity = torch.eye(len(rows), dtype=torch.float64)
        vectors = torch.linalg.eigh(torch.where(sound[:, None, None], matrix, identity))[1]
        own = self._of_each(vectors.mT @ rows)
        expected = (own / (own - 2)).sum(-1)
        joint = torch.where((own > 2).all(-1), 2 * expected / (expected - len(rows)), 2.0)
        alike = (own.amax(-1) - own.amin(-1)) <= 1e-8 * own.amax(-1)
        return torch.where(sound, torch.where(alike, own[:, 0], joint), torch.nan)

    def _of_each(self, rows: Tensor) -> Tensor:
        """Degrees of freedom (G, R) of each gene's own contrasts (G, R, P Q)."""
        variance = torch.einsum("gkp,gpq,gkq->gk", rows, self.covariance, rows)
        slope = torch.einsum("gkp,gdpq,gkq->gkd", rows, self.slopes, rows)
        spread = torch.einsum("gkd,gde,gke->gk", slope, self.parameter_covariance, slope)
        return 2 * variance.square() / spread.clamp_min(2 / MOST * variance.square())


@outside_inference_mode
def covariance_law(problem: EffectsProblem, fit: EffectsFit, *, log_prior: LogPrior | None = None) -> CovarianceLaw:
    """Differentiate the covariance of coefficients and the restricted likelihood at the estimates of every gene.

    Parameters
    ----------
    problem, fit
        What was fitted, and its fit under the restricted likelihood; genes without estimates are NaN.
    log_prior
        As it was fitted with.

    Raises
    ------
    InvalidArgumentError
        The fit is one of maximum likelihood.
    """
    if not fit.restricted:
        raise InvalidArgumentError("fit: expected one with restricted=True, found maximum likelihood. Fit again.")
    standard = StandardColumns.of(problem, linear=log_prior is not None)
    layout = SupportLayout.of(problem).turned(standard.fixed, standard.effects)
    arrow, eliminator = Arrow(layout, problem.groups, restricted=True), eliminator_of(problem, layout)
    logs = [fit.hyper[name].log() for name in eliminator.hyper]
    psi = torch.from_numpy(standard.engine_parameters(fit.parameters.numpy()))
    x = torch.cat([psi, fit.sds, *logs], 1).numpy()
    basis = basis_of(problem.isoform_effect, problem.counts)
    beta = (fit.coefficients if basis is None else basis.coordinates(fit.coefficients)).flatten(1).numpy()
    beta, log_prior = standard.engine_coefficients(beta), log_prior and standard.log_prior(log_prior)
    size = unit_of(problem)
    n, d, p = len(x), x.shape[1], beta.shape[1]
    variances = [np.trace(matrix) > 0 for block in problem.groups for matrix in block.basis]
    positive = np.array([*variances, *[True] * fit.sds.shape[1], *[False] * len(logs)], dtype=bool)
    whole = [np.full(shape, np.nan) for shape in ((n, p, p), (n, d, p, p), (n, d, d))]
    sound = np.flatnonzero(np.isfinite(x).all(1) & np.isfinite(beta).all(1))
    for first in range(0, len(sound), BATCH):
        genes = sound[first : first + BATCH]
        unknowns = arrow.zeros(len(genes))
        unknowns.border[:, :p] = beta[genes]
        begin, at = SearchStart(x[genes], unknowns, size[genes]), torch.from_numpy(genes)
        objective = OuterObjective(arrow, eliminator, at, begin, tolerance=MODE, log_prior=log_prior)
        for all_genes, part in zip(whole, _differences(objective, positive), strict=True):
            all_genes[genes] = part
    whole[:2] = map(standard.covariance, whole[:2])
    law = CovarianceLaw(*(torch.from_numpy(part) for part in whole))
    return law if basis is None else _in_logits(law, basis.root, problem.design.shape[1])


def _differences(objective: OuterObjective, positive: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Covariance of the coefficients, its slopes, and the covariance of the parameters, of a batch."""
    x, unit = objective.origin, objective.unit
    n, d = x.shape
    rows = np.arange(n)
    here = objective.laplace(rows, x)
    covariance = here.covariance().copy()
    slopes, hessian = np.zeros((n, d, *covariance.shape[1:])), np.zeros((n, d, d))
    for j in range(d):
        small = (x[:, j] / unit[:, j] < NEAR_ZERO) & positive[j]
        ends = []
        for step in (np.where(small, NEAR_ZERO - x[:, j] / unit[:, j], STEP), np.where(small, 0.0, -STEP)):
            moved = x.copy()
            moved[:, j] += step * unit[:, j]
            there = objective.laplace(rows, moved, keep=False)
            ends.append((step, there.covariance().copy(), objective.loss(moved, there)[1]))
        length = ends[0][0] - ends[1][0]
        slopes[:, j] = (ends[0][1] - ends[1][1]) / length[:, None, None]
        hessian[:, :, j] = (ends[0][2] - ends[1][2]) * unit / length[:, None]
    hessian = 0.5 * (hessian + np.swapaxes(hessian, 1, 2))
    sound: NDArray[np.bool_] = np.isfinite(hessian).all((1, 2))  # type: ignore[assignment]
    values, vectors = np.linalg.eigh(np.where(sound[:, None, None], hessian, np.eye(d)))
    inverse = (vectors / np.maximum(values, LEAST_CURVATURE)[:, None]) @ np.swapaxes(vectors, 1, 2)
    scale = unit[:, :, None]
    inverse = np.where(sound[:, None, None], inverse * scale * np.swapaxes(scale, 1, 2), np.nan)
    return covariance, slopes / scale[..., None], inverse


def _in_logits(law: CovarianceLaw, root: Tensor, n_fixed: int) -> CovarianceLaw:
    """Turn the law of coordinates to that of logits, which are ``root`` times them."""
    q = root.shape[-1]
    own = root.reshape(-1, q, q)
    turn = torch.einsum("pr,gkq->gpkrq", torch.eye(n_fixed, dtype=torch.float64), own)
    turn = turn.reshape(len(own), n_fixed * q, n_fixed * q)
    covariance = turn @ law.covariance @ turn.mT
    return CovarianceLaw(covariance, turn[:, None] @ law.slopes @ turn.mT[:, None], law.parameter_covariance)
