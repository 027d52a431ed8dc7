r"""A random intercept for each donor: the NB GLMM by Laplace's method.

.. math:: \eta_{gi} = x_i' \beta_g + u_{g, d(i)} + o_i, \qquad u_{gd} \sim N(0, \tau_g^2)

For a given τ the engine finds the joint mode of (β, u, ζ): donors enter as further columns of the design, their prior
as a log prior. τ maximises the Laplace approximation of the restricted likelihood,

.. math:: \ell(\hat\beta, \hat u, \hat\zeta) + \log N(\hat u; 0, \tau^2) - \tfrac12 \log\det H_{(\beta, u)}

(Breslow and Clayton 1993, on the likelihood itself), by golden section on log τ for all genes at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.inference.nb_fit import GlmFit, safe_inverse
from pyrosplice.inference.nb_newton import Derivatives, FitCode, Newton, NewtonOptions, derivatives
from pyrosplice.inference.nb_rows import Rows
from pyrosplice.inference.nb_source import Design, RowSource

Array = NDArray[np.float64]
LOG_TAU = (math.log(1e-3), math.log(4.0))
OPTIONS = NewtonOptions(tol=1e-8, max_iter=60)
DIFFERENCE = 0.1  # of log τ, for derivatives at the optimum
GOLDEN = (math.sqrt(5) - 1) / 2


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
    covariance_slope : (G, P, P), tau_information : (G,)
        Derivative of ``covariance`` in log τ, and minus the second derivative of ``log_likelihood`` there.
    between : (P,)
        Which coefficients are constant within donors.
    least_df : int
        Donors less those.
    """

    location: Array
    covariance: Array
    scale: Array
    donor_effect: Array
    tau: Array
    log_likelihood: Array
    code: NDArray[np.int64]
    covariance_slope: Array
    tau_information: Array
    between: NDArray[np.bool_]
    least_df: int

    def df(self, contrast: Array) -> Array:
        r"""Satterthwaite's degrees of freedom of a contrast of location ``(G,)``.

        With V its variance, :math:`2 V^2 / \operatorname{var}\hat V`, the latter by the delta method from τ's. Not
        below ``least_df``; for a contrast between donors not above twice that, since a τ estimated at zero need not be
        zero.
        """
        information = np.maximum(np.nan_to_num(self.tau_information), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.einsum("p,gpq,q->g", contrast, self.covariance, contrast)
            slope = np.einsum("p,gpq,q->g", contrast, self.covariance_slope, contrast)
            df = 2 * variance**2 * information / slope**2
        most = 2.0 * self.least_df if np.any(contrast[self.between]) else np.inf
        return np.clip(np.where(np.isnan(df), np.inf, df), self.least_df, most)


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
        np.column_stack([design.x, columns]), design.z, design.offset, design.zeta_offset, design.weights, strata,
        n_random=n_donors,
    )  # fmt: skip


def varies_within(design: Design) -> NDArray[np.bool_]:
    """Location columns that differ between cells of a donor ``(P,)``."""
    strata = design.strata
    assert strata is not None
    first = np.array([np.flatnonzero(strata == d)[0] for d in range(int(strata.max()) + 1)])
    return (np.abs(design.x - design.x[first][strata]) > 1e-12).any(0)


def fit_glmm(source: RowSource, fit: GlmFit, *, n_steps: int = 16) -> GlmmFit:
    """Fit every gene that ``fit`` (the same model without donors) has an estimate of.

    Parameters
    ----------
    source
        With a design from :func:`donor_design`.
    fit
        Where to start.
    n_steps
        Golden-section steps: log τ is found to within ``8.3 · 0.618^n_steps``.
    """
    g, p, r = len(fit.theta), fit.n_location, source.design.z.shape[1]
    j = source.design.x.shape[1] - p
    inner = Design(source.design.x[:, :p], source.design.z, source.design.offset, source.design.zeta_offset,
                   strata=source.design.strata)  # fmt: skip
    between = ~varies_within(inner)
    out = GlmmFit(
        np.full((g, p), np.nan), np.full((g, p, p), np.nan), np.full((g, r), np.nan), np.full((g, j), np.nan),
        np.full(g, np.nan), np.full(g, np.nan), fit.code.copy(), np.full((g, p, p), np.nan), np.full(g, np.nan),
        between, j - int(between.sum()),
    )  # fmt: skip
    for which, rows in source.conditioned.blocks(np.flatnonzero(np.isfinite(fit.theta).all(1))):
        start = torch.zeros(len(which), p + j + r, dtype=torch.float64, device=rows.x.device)
        base = torch.as_tensor(fit.basis.inward(fit.theta[which]), device=rows.x.device)
        start[:, :p], start[:, p + j :] = base[:, :p].clamp(-30, 30), base[:, p:].clamp(-5, 8)
        _search(out, which, rows, source, start, p, j, n_steps)
    return out


def _search(out: GlmmFit, which: NDArray[np.intp], rows: Rows, source: RowSource, start: Tensor, p: int, j: int,
            n_steps: int) -> None:  # fmt: skip
    low, high = (torch.full_like(start[:, 0], v) for v in LOG_TAU)
    inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    f_inner, theta, *_ = _laplace(rows, source, start, inner, p, j)
    f_outer, theta, *_ = _laplace(rows, source, theta, outer, p, j)
    for _ in range(n_steps):
        left = f_inner > f_outer
        low, high = torch.where(left, low, inner), torch.where(left, outer, high)
        point = torch.where(left, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
        value, theta, *_ = _laplace(rows, source, theta, point, p, j)
        inner, f_inner, outer, f_outer = (
            torch.where(left, point, outer), torch.where(left, value, f_outer),
            torch.where(left, inner, point), torch.where(left, f_inner, value),
        )  # fmt: skip
    log_tau = (low + high) / 2
    value, theta, information, ok = _laplace(rows, source, theta, log_tau, p, j)
    sides = [_laplace(rows, source, theta, log_tau + h, p, j) for h in (-DIFFERENCE, DIFFERENCE)]
    inverse, below, above = (
        safe_inverse(h.cpu().numpy())[:, :p, :p] for h in (information, sides[0][2], sides[1][2])
    )  # fmt: skip
    curve = (2 * value - sides[0][0] - sides[1][0]) / DIFFERENCE**2
    found, location = source.basis.outward(theta.cpu().numpy()), source.basis.part(slice(0, p))
    out.location[which], out.donor_effect[which] = found[:, :p], found[:, p : p + j]
    out.scale[which], out.covariance[which] = found[:, p + j :], location.covariance(inverse)
    with np.errstate(invalid="ignore"):  # infinite where a coefficient is not identified
        out.covariance_slope[which] = location.covariance((above - below) / (2 * DIFFERENCE))
    out.tau_information[which] = curve.cpu().numpy()
    out.tau[which] = log_tau.exp().cpu().numpy()
    out.log_likelihood[which] = value.cpu().numpy() - location.log_determinant
    found_code = np.where(ok.cpu().numpy(), int(FitCode.CONVERGED), int(FitCode.FAILED))
    # a donor's effect, which has a prior, bounds no coefficient: what is at infinity without donors is with them
    out.code[which] = np.where(out.code[which] == FitCode.SEPARATED, int(FitCode.SEPARATED), found_code)


def _laplace(
    rows: Rows, source: RowSource, start: Tensor, log_tau: Tensor, p: int, j: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Restricted log likelihood at τ, the mode, the information of (β, u) there, and whether the mode was found."""
    penalty = _DonorPrior(torch.exp(-2 * log_tau), p, j, start.shape[1])
    solution = Newton(rows, source.noise, prior=penalty.derivatives, options=OPTIONS).run(start)
    everyone = torch.arange(len(start), device=start.device)
    d = derivatives(rows, source.noise, solution.theta) + penalty.derivatives(solution.theta, everyone)
    information = d.information[:, : p + j, : p + j]
    value = d.value - j * log_tau - 0.5 * torch.linalg.slogdet(information)[1]
    ok = (solution.code == int(FitCode.CONVERGED)) | (solution.code == int(FitCode.POISSON_BOUNDARY))
    return value, solution.theta, information, ok


@dataclass(frozen=True)
class _DonorPrior:
    """``Σ −u² / 2τ²`` with a τ for each gene, as :class:`Derivatives`."""

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
