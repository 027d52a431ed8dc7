r"""Wald tests of contrasts from the full information matrix of the coefficients, and the form of effect sizes.

Coefficients of a gene are ``[β; b]``, ``(P + 1, Q)`` with the intercept last, flattened with logits fastest; their
covariance is the inverse of :math:`(\tilde X \otimes I)' V^{-1} (\tilde X \otimes I)`, intercept and all covariates
included (see :mod:`pyrosplice.hypothesis.score` for :math:`V^{-1}`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.dispersion import Dispersion, dispersed, trace_sf
from pyrosplice.hypothesis.likelihood_ratio import chi2_sf
from pyrosplice.hypothesis.score import PrecisionProduct, covariate_information
from pyrosplice.inference.glm import Standardisation


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


def coefficient_covariance(
    precision_product: PrecisionProduct,
    design: Tensor,
    *,
    n_genes: int,
    n_logits: int,
    dispersion: Dispersion | None = None,
) -> Tensor:
    """Covariance ``(B, (P + 1) Q, (P + 1) Q)`` of ``[β; b]`` for covariates ``(N, P)``; NaN where not estimable.

    Computed for standardised covariates and mapped back, so that origin and unit cost no accuracy. With a
    ``dispersion`` of the residuals, that of estimates whose score has it.
    """
    scaling = Standardisation.of(design.to(torch.float64))
    information = covariate_information(precision_product, scaling.design, n_genes, n_logits)
    factor, info = torch.linalg.cholesky_ex(information)
    singular = (info != 0)[:, None, None]
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.cholesky_inverse(torch.where(singular, eye, factor))  # one gene's trouble stays its own
    if dispersion is not None:
        inverse = inverse @ dispersed(dispersion.root, information) @ inverse
    return scaling.covariance(torch.where(singular, torch.nan, inverse), n_logits)


def contrast_test(
    beta: Tensor, covariance: Tensor, contrast: Tensor, dispersion: Dispersion | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Wald test that ``contrast @ β`` is zero in every logit.

    Parameters
    ----------
    contrast
        ``(C, P)``, linearly independent rows.
    dispersion
        That of the residuals which the ``covariance`` was made with: an F law instead of χ².

    Returns
    -------
    statistic, pvalue, dof
        ``(B, 1)``, ``(B, 1)`` and ``(1,)``, with dof C Q.
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
    dof = rank * n_logits
    pvalue = chi2_sf(statistic, dof) if dispersion is None else trace_sf(statistic, rank, dispersion)
    return statistic, pvalue, dof
