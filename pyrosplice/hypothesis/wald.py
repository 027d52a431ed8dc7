r"""Wald tests of contrasts, the covariance of coefficients that they rest on, and the form of effect sizes.

Coefficients of a gene are ``[β; b]``, ``(P + 1, Q)`` with the intercept last, flattened with logits fastest. A is the
information that was observed: minus the second derivative of the log (marginal) likelihood in them and in all else that
was estimated. Their covariance is :math:`A^{-1}` by the model, and :math:`A^{-1} B A^{-1}` with the variance B that the
score has by the residuals (White 1982 Econometrica 50:1); r and :math:`V^{-1}` are those of
:mod:`pyrosplice.hypothesis.score`. For independent spots

.. math::
   B = \sum_i (\tilde x_i \otimes \tilde r_i)(\tilde x_i \otimes \tilde r_i)', \qquad
   \tilde r_i = (I - H_i)^{-1} r_i, \qquad H_i = V^{-1}_{ii} (\tilde x_i \otimes I)' A^{-1} (\tilde x_i \otimes I),

with about the residuals that spots have to fits without them (HC3; MacKinnon & White 1985 J. Econom. 29:305, Long &
Ervin 2000 Am. Stat. 54:217). Else B is :math:`(\tilde X \otimes I)' V^{-1} (\tilde X \otimes I)` with the dispersion
of the residuals (:mod:`pyrosplice.hypothesis.dispersion`). Either has ν = n − p degrees of freedom, for p coefficients
a logit and n spots as they inform.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.dispersion import dispersed, dispersion_of, effective_spots, trace_sf
from pyrosplice.hypothesis.likelihood_ratio import chi2_sf
from pyrosplice.hypothesis.score import Linearised, covariate_information
from pyrosplice.inference.newton import solve_curvature
from pyrosplice.linalg.blocks import matmul

SINGLE = 1 - 1e-6  # of a spot's leverage is taken off, so that one that alone fixes a coefficient adds nothing


@dataclass(frozen=True)
class Effects:
    """Estimates and standard errors ``(B, ...)``, and degrees of freedom ``(B,)`` of the latter (None: known)."""

    estimate: Tensor
    standard_error: Tensor
    dof: Tensor | None = None

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the confidence interval: Student's, or normal without degrees of freedom."""
        if not 0 < level < 1:
            raise InvalidArgumentError(f"level: expected a number between 0 and 1, found {level!r}.")
        tail = 0.5 + level / 2
        if self.dof is None:
            quantile = torch.special.ndtri(torch.tensor(tail, dtype=torch.float64))
        else:
            found = torch.as_tensor(stdtrit(self.dof.cpu().numpy(), tail)).to(self.estimate)
            quantile = found.reshape(-1, *[1] * (self.estimate.dim() - 1))
        return self.estimate - quantile * self.standard_error, self.estimate + quantile * self.standard_error


def score_variance(fit: Linearised, design: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """Variance B of the score ``(B, D, D)`` and its degrees of freedom ν ``(B,)``, NaN where there are none.

    Parameters
    ----------
    fit
        With all covariates.
    design
        Covariates and intercept, ``(N, P + 1)``.
    information
        A of these, ``(B, D, D)``, logits fastest.
    """
    n_genes, _, n_logits = fit.residual.shape
    if not fit.independent:
        dispersion = dispersion_of(fit.residual, fit.spot_precision, design.shape[1])
        expected = covariate_information(fit.precision_product, design, n_genes, n_logits)
        return dispersed(dispersion.root, expected), dispersion.dof
    eye = torch.eye(information.shape[-1], dtype=information.dtype, device=information.device)
    inverse = solve_curvature(information, eye.expand_as(information)).reshape(
        n_genes, *[design.shape[1], n_logits] * 2
    )
    spread = torch.einsum("ns,bsqtr,nt->bnqr", design, inverse, design)
    kept = torch.eye(n_logits).to(spread) - SINGLE * matmul(fit.spot_precision, spread)
    left, _ = torch.linalg.solve_ex(kept, fit.residual)
    added = torch.einsum("ns,bnq->bnsq", design, left).flatten(2)
    dof = effective_spots(fit.spot_precision) - design.shape[1]
    return added.mT @ added, torch.where(dof > 0, dof, torch.nan)


def contrast_test(
    beta: Tensor, covariance: Tensor, contrast: Tensor, dof: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Wald test that ``contrast @ β`` is zero in every logit.

    Parameters
    ----------
    contrast
        ``(C, P)``, linearly independent rows.
    dof
        Degrees of freedom ν of the ``covariance``, ``(B,)``: an F law instead of χ².

    Returns
    -------
    statistic, pvalue
        ``(B, 1)``; of C Q degrees of freedom.
    """
    n_logits = beta.shape[-1]
    value = (contrast @ beta).flatten(1).unsqueeze(-1)
    rows = torch.kron(contrast.contiguous(), torch.eye(n_logits, dtype=beta.dtype, device=beta.device))
    size = rows.shape[1]
    variance = rows @ covariance[:, :size, :size] @ rows.T
    factor, info = torch.linalg.cholesky_ex(variance)
    statistic = (value * torch.cholesky_solve(value, factor)).sum(-2)
    statistic = torch.where((info != 0).unsqueeze(-1), torch.nan, statistic)
    rank = torch.tensor([len(contrast)], device=beta.device)
    if dof is None:
        return statistic, chi2_sf(statistic, rank * n_logits)
    return statistic, trace_sf(statistic, rank, n_logits, dof)
