r"""Wald tests of contrasts, and the form of effect sizes.

Coefficients of a gene are ``[β; b]``, ``(P + 1, Q)`` with the intercept last, flattened with logits fastest. A is the
information that was observed: minus the second derivative of the log (marginal) likelihood, and of priors if there are
any, in them and in all else that was estimated. Their covariance is :math:`A^{-1}` by the model, and
:math:`A^{-1} B A^{-1}` with the variance B that the residuals give the score
(:func:`pyrosplice._hypothesis.coefficients.score.score_variance`). Source: White (1982) Econometrica 50:1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from pyrosplice._hypothesis.coefficients.residual_variance import trace_sf
from pyrosplice._hypothesis.likelihood_ratio import chi2_sf
from pyrosplice.errors import InvalidArgumentError


@dataclass(frozen=True)
class Effects:
    """Estimates and standard errors ``(B, P, K)``, and degrees of freedom ``(B, P)`` of the latter (None: known)."""

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
            quantile = torch.as_tensor(stdtrit(self.dof.cpu().numpy(), tail)).to(self.estimate).unsqueeze(-1)
        return self.estimate - quantile * self.standard_error, self.estimate + quantile * self.standard_error


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
    return statistic, trace_sf(statistic, rank, n_logits, dof.unsqueeze(-1))
