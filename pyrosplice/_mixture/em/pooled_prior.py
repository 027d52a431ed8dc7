r"""A prior for the covariances of many patients' components, learned from all of them by empirical Bayes.

The covariances of components are taken as draws from one inverse-Wishart distribution with mean S. S is the
within-component covariance pooled over patients; the degrees of freedom ν maximise the marginal likelihood of the
components' scatter matrices :math:`A_k` of :math:`n_k` cells, covariances integrated out,

.. math:: \log p(A_k) = \tfrac{\nu}{2} \log|\Psi| - \tfrac{\nu + n_k}{2} \log|\Psi + A_k|
          + \log\Gamma_D\!\left(\tfrac{\nu + n_k}{2}\right) - \log\Gamma_D\!\left(\tfrac{\nu}{2}\right) + c_k,
          \quad \Psi = (\nu - D - 1) S.

Given :math:`n_k` cells the posterior mean of a covariance is then :math:`(c S + A_k)/(c + n_k)`: the prior is worth
:math:`c = \nu - D - 1` cells. The mode of the same posterior is far too small (its denominator has 2D + 2 more), so the
prior that is returned to EM has :math:`\Psi = c S` and c − D − 1 degrees of freedom, whose mode is that mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyrosplice._mixture.em.loop import EMOptions
from pyrosplice._mixture.em.many import Fit, fit_many, log_joint_of_cells
from pyrosplice._mixture.em.one_fit import MixtureForm
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType, MixturePrior

MOST_DOF = 1e4


def pooled_prior(
    sets: Sequence[Tensor],
    components: Sequence[int],
    *,
    covariance_type: CovarianceType,
    regularization: float,
    options: EMOptions,
    seed: int,
) -> MixturePrior:
    """The inverse-Wishart prior of all patients' components.

    It starts from fits with one covariance a patient (which few cells determine), their number of components by
    BIC; fits under the prior that they give improve it.

    Parameters
    ----------
    sets
        Cells of each patient ``(N_b, D)``.
    components
        Candidate numbers of components.
    covariance_type, regularization, options, seed
        Options of the fits.
    """
    prior = None
    kinds: tuple[CovarianceType, ...] = ("tied", covariance_type)
    for kind in kinds:
        form = MixtureForm(kind, prior, regularization)
        fits = fit_many(sets, components, form, options=options, seed=seed)
        chosen = [_by_bic(own, len(cells)) for own, cells in zip(fits, sets, strict=True)]
        prior = prior_of_mixtures(sets, chosen, covariance_type=covariance_type, regularization=regularization)
    assert prior is not None
    return prior


def prior_of_mixtures(
    sets: Sequence[Tensor],
    mixtures: Sequence[MixtureParameters],
    *,
    covariance_type: CovarianceType,
    regularization: float,
) -> MixturePrior:
    """The prior that the components of one mixture for each patient suggest, given the patient's cells."""
    return _estimate(*_scatters(sets, mixtures), regularization, covariance_type)


def _by_bic(fits: dict[int, Fit], n_cells: int) -> MixtureParameters:
    def bic(fit: Fit) -> float:
        return fit.parameters.n_free() * math.log(n_cells) - 2 * fit.log_likelihood

    return min(fits.values(), key=bic).parameters


def _scatters(sets: Sequence[Tensor], mixtures: Sequence[MixtureParameters]) -> tuple[Tensor, Tensor]:
    """Counts ``(C,)`` and scatter matrices ``(C, D, D)`` about their means of all patients' components."""
    counts, scatters = [], []
    joints = log_joint_of_cells(sets, [[m] for m in mixtures])
    for cells, (joint,) in zip(sets, joints, strict=True):
        resp = joint.softmax(1)
        count = resp.sum(0)
        mean = (resp.mT @ cells) / count.clamp_min(1e-300)[:, None]
        gap = cells - mean[:, None]
        counts.append(count)
        scatters.append((resp.mT[..., None] * gap).mT @ gap)
    count, scatter = torch.cat(counts), torch.cat(scatters)
    some = count > 1
    return count[some], scatter[some]


def _estimate(counts: Tensor, scatters: Tensor, regularization: float, kind: CovarianceType) -> MixturePrior:
    dim = scatters.shape[-1]
    eye = torch.eye(dim, dtype=scatters.dtype)
    pooled = scatters.sum(0) / (counts - 1).sum() + regularization * eye
    if kind in ("diag", "spherical"):
        variances = pooled.diagonal() if kind == "diag" else pooled.trace().expand(dim) / dim
        sums = (scatters.diagonal(dim1=-2, dim2=-1) / variances)[..., None, None]
        sums = sums.sum(1, keepdim=True) if kind == "spherical" else sums
        cells = (counts - 1)[:, None] * (dim if kind == "spherical" else 1)
        pooled, size = torch.diag_embed(variances), 1
    else:
        whiten = torch.linalg.solve_triangular(torch.linalg.cholesky(pooled), eye, upper=False)
        sums, cells, size = whiten @ scatters @ whiten.mT, counts - 1, dim
    least = math.log(1.01)
    best = minimize_scalar(
        lambda t: -_log_marginal(size + math.exp(t), cells, sums), bounds=(least, math.log(MOST_DOF)), method="bounded"
    )
    worth = math.exp(best.x) - 1
    if kind in ("diag", "spherical"):
        worth = max(worth, 2.01)
    return MixturePrior(covariance_dof=worth - size - 1, covariance_scale=worth * pooled)


def _log_marginal(dof: float, counts: Tensor, scatters: Tensor) -> float:
    """Log marginal likelihood of scatter matrices in units of the pooled covariance, constants in ν left out."""
    dim = scatters.shape[-1]
    scale = dof - dim - 1
    eye = torch.eye(dim, dtype=scatters.dtype)
    nu = torch.as_tensor(dof, dtype=scatters.dtype)
    log_det = torch.linalg.slogdet(scale * eye + scatters).logabsdet
    gamma = torch.special.multigammaln((nu + counts) / 2, dim) - torch.special.multigammaln(nu / 2, dim)
    return float((0.5 * dof * dim * math.log(scale) - 0.5 * (dof + counts) * log_det + gamma).sum())
