r"""A random intercept for each donor: the NB GLMM by Laplace's method.

.. math:: \eta_{gi} = x_i' \beta_g + u_{g, d(i)} + o_i, \qquad u_{gd} \sim N(0, \tau_g^2)

For a given τ the engine finds the joint mode of (β, u, ζ): donors enter as further columns of the design, their prior
as a log prior. τ maximises the Laplace approximation of the restricted likelihood,

.. math:: \ell(\hat\beta, \hat u, \hat\zeta) + \log N(\hat u; 0, \tau^2) - \tfrac12 \log\det H_{(\beta, u)}

(Breslow and Clayton 1993, on the likelihood itself), found on a grid of log τ for all genes at once and, since it is
smooth there, between the grid's points by a spline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from pyrosplice._expression.engine.gene_fits import GlmFit, safe_inverse
from pyrosplice._expression.engine.joint_newton import Derivatives, Newton, NewtonOptions, derivatives
from pyrosplice._expression.engine.pseudo_cells import Rows
from pyrosplice._expression.engine.row_source import Design, RowSource
from pyrosplice._expression.noise_models import held_scale
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
LOG_TAU = np.linspace(math.log(1e-3), math.log(4.0), 22)
OPTIONS = NewtonOptions(tol=1e-8, max_iter=60)
UNLIKELY = -1e100  # log likelihood of a τ at which it is not finite; a spline through it does not overflow
FINE = 401  # points between which τ is found: log τ to 0.02


@dataclass(frozen=True)
class TauProfile:
    r"""What a contrast's estimate is at each standard deviation of the donors, all ``(G, K)``.

    Attributes
    ----------
    log_tau : (K,)
        The grid.
    log_likelihood
        Restricted log likelihood.
    log_prior
        Jeffreys's density of log τ up to a constant: half the log of the information
        :math:`2 \sum_d (\tau^2 w_d / (1 + \tau^2 w_d))^2` with w_d that of donor d about its effect.
    variance
        Variance of the contrast.
    """

    log_tau: Array
    log_likelihood: Array
    log_prior: Array
    variance: Array


@dataclass(frozen=True)
class GlmmFit:
    """Mixed-model estimates of G genes.

    Attributes
    ----------
    location : (G, P), covariance : (G, P, P)
        Fixed effects and their covariance, the random effects integrated out.
    scale : (G, R)
        Scale coefficients.
    donor_effect : (G, J)
        Modes of u.
    tau : (G,)
        Standard deviation of the donors; at its lower bound 1e-3 where the data show none.
    log_likelihood, code : (G,)
        Laplace approximation of the restricted log likelihood, and a :class:`FitCode`.
    profile : TauProfile or None
        Profile of the contrast asked for.
    """

    location: Array
    covariance: Array
    scale: Array
    donor_effect: Array
    tau: Array
    log_likelihood: Array
    code: NDArray[np.int64]
    profile: TauProfile | None


def donor_design(design: Design) -> Design:
    """The design with a column for each donor appended to location.

    Raises
    ------
    InvalidArgumentError
        Where there are not more donors than coefficients that are constant within donors.
    """
    strata = design.strata
    assert strata is not None
    n_donors = int(strata.max()) + 1
    if n_donors - int((~varies_within(design)).sum()) < 1:
        raise InvalidArgumentError(
            f"donors: {n_donors} donor(s) cannot estimate {int((~varies_within(design)).sum())} coefficients that are "
            "constant within donors and a variance between them."
        )
    columns = np.zeros((len(strata), n_donors))
    columns[np.arange(len(strata)), strata] = 1.0
    return Design(
        np.column_stack([design.x, columns]),
        design.z,
        design.offset,
        design.zeta_offset,
        design.weights,
        strata,
        n_random=n_donors,
    )


def varies_within(design: Design) -> NDArray[np.bool_]:
    """Location columns that differ between cells of a donor ``(P,)``."""
    strata = design.strata
    assert strata is not None
    first = np.array([np.flatnonzero(strata == d)[0] for d in range(int(strata.max()) + 1)])
    return (np.abs(design.x - design.x[first][strata]) > 1e-12).any(0)


def fit_glmm(source: RowSource, fit: GlmFit, contrast: Array | None = None) -> GlmmFit:
    """Fit every gene that ``fit`` (the same model without donors) has an estimate of.

    Parameters
    ----------
    source
        Rows with a design from :func:`donor_design`.
    fit
        Where to start.
    contrast : (P,), optional
        Contrast of the location coefficients: its profile is kept.
    """
    g, p, r = len(fit.theta), fit.n_location, source.design.z.shape[1]
    j = source.design.x.shape[1] - p
    profile = None
    if contrast is not None:
        profile = TauProfile(LOG_TAU, *(np.full((g, len(LOG_TAU)), np.nan) for _ in range(3)))
    out = GlmmFit(
        np.full((g, p), np.nan),
        np.full((g, p, p), np.nan),
        np.full((g, r), np.nan),
        np.full((g, j), np.nan),
        np.full(g, np.nan),
        np.full(g, np.nan),
        fit.code.copy(),
        profile,
    )
    direction = None if contrast is None else contrast @ source.basis.matrix[:p, :p]
    for which, rows in source.conditioned.blocks(np.flatnonzero(np.isfinite(fit.theta).all(1))):
        start = torch.zeros(len(which), p + j + r, dtype=torch.float64, device=rows.x.device)
        base = torch.as_tensor(fit.basis.inward(fit.theta[which]), device=rows.x.device)
        scale = base[:, p:] if held_scale(source.likelihood) is not None else base[:, p:].clamp(-5, 8)
        start[:, :p], start[:, p + j :] = base[:, :p].clamp(-30, 30), scale
        _Block(rows, source, p, j).fit(out, which, start, direction)
    return out


@dataclass(frozen=True)
class _Block:
    """Genes that are fitted together: ``p`` fixed effects and ``j`` donors."""

    rows: Rows
    source: RowSource
    p: int
    j: int

    def fit(self, out: GlmmFit, which: NDArray[np.intp], start: Tensor, contrast: Array | None) -> None:
        p, j = self.p, self.j
        values, modes, theta = [], [], start
        for k, log_tau in enumerate(LOG_TAU):
            value, theta, information, _ = self.laplace(theta, torch.full_like(start[:, 0], log_tau))
            values.append(value.cpu().numpy())
            modes.append(theta)
            if out.profile is not None and contrast is not None:
                self._profile(out.profile, which, k, values[-1], information, contrast)
        fine = np.linspace(LOG_TAU[0], LOG_TAU[-1], FINE)
        known = np.where(np.isfinite(values), values, UNLIKELY)
        best = fine[CubicSpline(LOG_TAU, known)(fine).argmax(0)]
        near = np.abs(LOG_TAU[:, None] - best).argmin(0)
        theta = torch.stack(modes)[near, torch.arange(len(which))]
        value, theta, information, code = self.laplace(theta, torch.as_tensor(best, device=start.device))
        found, location = self.source.basis.outward(theta.cpu().numpy()), self.source.basis.part(slice(0, p))
        out.location[which], out.donor_effect[which] = found[:, :p], found[:, p : p + j]
        out.scale[which] = found[:, p + j :]
        out.covariance[which] = location.covariance(safe_inverse(information.cpu().numpy())[:, :p, :p])
        out.tau[which] = np.exp(best)
        out.log_likelihood[which] = value.cpu().numpy() - location.log_determinant
        found_code = code.cpu().numpy()
        # a donor's effect, which has a prior, bounds no coefficient: what is at infinity without donors is with them
        out.code[which] = np.where(out.code[which] == FitCode.SEPARATED, int(FitCode.SEPARATED), found_code)

    def _profile(
        self, profile: TauProfile, which: NDArray[np.intp], k: int, value: Array, information: Tensor, contrast: Array
    ) -> None:
        tau2 = math.exp(2 * LOG_TAU[k])
        weight = (information.diagonal(dim1=1, dim2=2)[:, self.p :] - 1 / tau2).clamp_min(0.0)
        share = (tau2 * weight / (1 + tau2 * weight)).cpu().numpy()
        inverse = safe_inverse(information.cpu().numpy())[:, : self.p, : self.p]
        profile.log_likelihood[which, k] = value
        with np.errstate(divide="ignore", invalid="ignore"):
            profile.log_prior[which, k] = 0.5 * np.log(np.square(share).sum(1))
            profile.variance[which, k] = np.einsum("p,gpq,q->g", contrast, inverse, contrast)

    def laplace(self, start: Tensor, log_tau: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Restricted log likelihood at τ, the mode, the information of (β, u) there, and how the search ended."""
        p, j, likelihood = self.p, self.j, self.source.likelihood
        penalty = _DonorPrior(torch.exp(-2 * log_tau), p, j, start.shape[1])
        solution = Newton(self.rows, likelihood, prior=penalty.derivatives, options=OPTIONS).run(start)
        everyone = torch.arange(len(start), device=start.device)
        d = derivatives(self.rows, likelihood, solution.theta) + penalty.derivatives(solution.theta, everyone)
        information = d.information[:, : p + j, : p + j]
        value = d.value - j * log_tau - 0.5 * torch.linalg.slogdet(information)[1]
        ok = (solution.code == int(FitCode.CONVERGED)) | (solution.code == int(FitCode.POISSON_BOUNDARY))
        code = torch.where(ok, int(FitCode.CONVERGED), solution.code.clamp_min(int(FitCode.FAILED)))
        return value, solution.theta, information, code


@dataclass(frozen=True)
class _DonorPrior:
    """Normal prior of the donors' levels, ``Σ −u² / 2τ²`` with a τ for each gene, as :class:`Derivatives`."""

    precision: Tensor
    p: int
    j: int
    size: int

    def derivatives(self, theta: Tensor, genes: Tensor) -> Derivatives:
        u, precision = theta[:, self.p : self.p + self.j], self.precision[genes][:, None]
        gradient = torch.zeros_like(theta)
        gradient[:, self.p : self.p + self.j] = -precision * u
        diagonal = torch.zeros_like(theta)
        diagonal[:, self.p : self.p + self.j] = precision
        return Derivatives(-0.5 * (precision * u.square()).sum(1), gradient, torch.diag_embed(diagonal))
